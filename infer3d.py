"""Evaluates the 3D network on Human3.6M-style data, or solves a recording: keypoints or videos.

python infer3d.py configs/demo.yaml
python infer3d.py configs/recording.yaml data.root=path/to/recording
python infer3d.py configs/videos.yaml data.root=path/to/recording
"""

import argparse
import logging
import sys

import torch

from ptri import config
from ptri.errors import UserError, exit_status
from ptri.evaluation import evaluate, outputs
from ptri.recordings import run as recording


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config", help="YAML file, see configs/; data.kind: h36m, recording, videos"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change a setting; or more YAML"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder")
    args = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    runs = {"h36m": evaluate.run, "recording": recording.run, "videos": recording.run}

    def infer() -> None:
        settings = config.load(args.config, args.overrides)
        if settings.data.kind not in runs:
            raise UserError(f"data.kind: {settings.data.kind}; infer3d.py takes {', '.join(runs)}")
        folder = outputs.output_folder(settings, args.overwrite)
        if settings.run.threads:
            torch.set_num_threads(settings.run.threads)
        print(f"{runs[settings.data.kind](settings, folder)}\n\nwritten: {folder}/")

    return exit_status(infer)


if __name__ == "__main__":
    sys.exit(main())
