"""A detector's keypoints of rendered people before rigs, as a pool to train the fusion on.

Its rigs are solved as those of generated scenes are (`ptri/training/solved_scenes.py`).

python scripts/pool_detections.py data/rendered_rigs --detector movenet --out pool_movenet.pt
python train3d.py configs/fusion.yaml configs/detector_movenet.yaml \\
    generated.more_pools=[pool_movenet.pt]
"""

from __future__ import annotations

import argparse
import logging
import sys

import torch
from detector_errors.clips import detect
from detector_errors.named import named_detector
from detector_errors.pool import TIMES, write_pool
from torch import nn

from ptri import config as configuration
from ptri.errors import exit_status
from ptri.models.weights import find_model
from ptri.system import choose_device

ALL_SUBJECTS = list(range(1, 100))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("roots", nargs="+", help="people in the Human3.6M layout, all of them")
    add("--detector", default="movenet", help="a name of detector.name (movenet)")
    add("--weights", help="of the detector; the shipped ones by default")
    add("--lifter", help="weights whose lifter solves the rigs; the shipped ones by default")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu or cuda; of the detector")
    add("--threads", type=int, default=0, help="of the CPU; 0: torch's own choice")
    add("--out", required=True, help="file to write, for generated.more_pools")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return exit_status(lambda: print(run(args)))


def run(args: argparse.Namespace) -> str:
    """Detects, solves and writes.

    Returns:
        The text to print.

    Raises:
        UserError: no such detector, weights or data; too few or too short clips.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    detector = named_detector(args.detector, args.weights)
    if isinstance(detector, nn.Module):  # rtmlib's choose for themselves
        detector.to(choose_device(args.device))
    clips = []
    for root in args.roots:
        data = {"root": root, "test_subjects": ALL_SUBJECTS, "workers": 0}
        layers = {"run": {"name": "pool"}, "data": data}
        config = configuration.from_dicts([("command line: ", layers)])
        clips.append(detect(detector, config, max(TIMES)).clips)
    model = find_model(args.lifter, torch.device("cpu"))
    model.detector = detector.known
    count = write_pool(args.out, clips, model, args.seed)
    return f"{count} scenes of {sum(len(part.joints) for part in clips)} clips: {args.out}"


if __name__ == "__main__":
    sys.exit(main())
