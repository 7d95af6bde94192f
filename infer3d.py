"""Evaluates the 3D network on Human3.6M or Panoptic, or solves a recording: keypoints or videos.

python infer3d.py configs/demo.yaml
python infer3d.py configs/recording.yaml data.root=path/to/recording
python infer3d.py configs/videos.yaml data.root=path/to/recording
torchrun --nproc-per-node 2 infer3d.py configs/demo.yaml   # data sets: scenes shared out
"""

import os

# Before torch is loaded: threads that wait without spinning. A second busy process otherwise makes
# both many times slower (a minute of video: 519 for 105 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ptri import config
from ptri.config import Config
from ptri.errors import UserError, exit_status
from ptri.evaluation import outputs
from ptri.evaluation import run as dataset
from ptri.recordings import run as recording
from ptri.system import World, joined, together


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config", help="YAML file, see configs/; data.kind: h36m, panoptic, recording, videos"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change a setting; or more YAML"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder")
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    runs: dict[str, Callable[[Config, Path, World], str]] = {
        "h36m": dataset.run,
        "panoptic": dataset.run,
        "recording": lambda settings, folder, _: recording.run(settings, folder),
        "videos": lambda settings, folder, _: recording.run(settings, folder),
    }

    def prepare(world: World) -> tuple[Config, Path]:
        settings = config.load(args.config, args.overrides)
        kind = settings.data.kind
        if kind not in runs:
            raise UserError(f"data.kind: {kind}; infer3d.py takes {', '.join(runs)}")
        if kind in ("recording", "videos") and world.size > 1:
            raise UserError(f"data.kind: {kind}; one process solves it: start without torchrun")
        if settings.run.threads:
            torch.set_num_threads(settings.run.threads)
        return settings, outputs.output_folder(settings, args.overwrite)

    def infer() -> None:
        with joined() as world:
            settings, folder = together(world, lambda: prepare(world))
            text = runs[settings.data.kind](settings, folder, world)
            if world.first:
                print(f"{text}\n\nwritten: {folder}/")

    return exit_status(infer)


if __name__ == "__main__":
    sys.exit(main())
