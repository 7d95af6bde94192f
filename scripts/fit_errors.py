"""Fits the error model of generated keypoints (`generated.errors`) to a 2D detector's errors.

What the posterior needs to know of the detector is written into the metadata of its weights: how it
draws bones, how much it overstates its noise, and how far a frame's errors go together. The last is
given: docs/rig_posterior.md, "Errors that go together", tells how to measure it.

python scripts/render_people.py --out data/rendered --subjects S8 --frames 8 --fps 4 --cameras 8
    --variety action --actions Directions-1,Eating-1,...     (a person each; 8 or more)
python scripts/fit_errors.py data/rendered --subjects 8 --out configs/errors_s0.yaml
python scripts/fit_errors.py data/rendered --detector movenet --calibrate --out errors.yaml

The people must not be those that the network was trained on, nor those that results are reported
for. To train with the errors: train3d.py configs/fusion.yaml configs/detector_s0.yaml. All of it,
for a detector of your own: docs/detectors.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from detector_errors.clips import detect, join
from detector_errors.ellipses import calibrate, ellipse_table
from detector_errors.fit import fit
from detector_errors.named import WEIGHTS, named_detector
from detector_errors.report import detector_of, settings_of, table, to_yaml

from ptri import config as configuration
from ptri.detectors.peaks import write_peak_errors
from ptri.errors import UserError, exit_status
from ptri.models.weights import write_detector
from ptri.people.error_model import ErrorModel
from ptri.system import choose_device


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("roots", nargs="+", help="people in the Human3.6M layout")
    add("--subjects", type=int, nargs="+", default=[8], help="whose errors count (8)")
    text = "whose file of weights keeps what is fitted (ours)"
    add("--detector", default="ours", choices=WEIGHTS, help=text)
    add("--weights", help="of the detector; the shipped ones by default")
    add("--image-size", type=int, default=0, help="ours: px; 0: as the weights were trained")
    add("--calibrate", action="store_true", help="first fit the ellipses of heatmaps' peaks")
    add("--views", type=int, nargs="+", help="cameras; all by default")
    add("--length", type=int, default=8, help="frames of a clip (8); at least 4")
    add("--frames", type=int, default=0, help="at most so many of a root in every view; 0: all")
    add("--rounds", type=int, default=8, help="of the fit (8)")
    add("--repeats", type=int, default=2, help="simulations of a statistic (2)")
    add("--frame-worth", type=float, default=0.2, help="what a frame is worth, 0 to 1 (0.2)")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--threads", type=int, default=0, help="of the CPU; 0: torch's own choice")
    add("--out", required=True, help="YAML to write; its table goes beside it, as .txt")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return exit_status(lambda: print(run(args)))


def run(args: argparse.Namespace) -> str:
    """Detects, fits and writes the settings and the table.

    Returns:
        The text to print.

    Raises:
        UserError: no such detector, weights, data or subjects; too few or too short clips.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.length < 4:
        raise UserError(f"--length: {args.length}; at least 4 frames tell bias from noise")
    weights = args.weights or WEIGHTS.get(args.detector)
    device = choose_device(args.device)
    detector = named_detector(args.detector, weights, args.image_size).to(device)
    data = {"test_subjects": args.subjects, "views": args.views, "workers": 0}
    configs = []
    for root in args.roots:
        layers = {"run": {"name": "fit_errors"}, "data": {**data, "root": root}}
        configs.append(configuration.from_dicts([("command line: ", layers)]))
    if args.calibrate:
        if not hasattr(detector, "peaks"):
            raise UserError(f"--calibrate: {args.detector} states its covariances itself; leave it")
        write_peak_errors(weights, calibrate(detector, configs))
        detector = named_detector(args.detector, weights, args.image_size).to(device)
    detected = join([detect(detector, config, args.length, args.frames) for config in configs])
    clips = detected.clips
    fitted = fit(clips, ErrorModel(), args.seed, args.rounds, args.repeats)
    write_detector(weights, detector_of(fitted, clips, args.frame_worth))
    settings = settings_of(fitted, clips)
    B, T, V = clips.keypoints.xy.shape[:3]
    people = ", ".join(f"S{number}" for number in args.subjects)
    comment = (
        f"Errors of {weights} on {people} of rendered people: {B} clips of {T} frames, "
        f"{V} views.\nscripts/fit_errors.py wrote it, for generated.errors."
        "\nHow well it matches the network: the table beside this file."
    )
    ellipses = ellipse_table(detected)
    text = "\n\n".join(
        [table(fitted, clips, ErrorModel(), args.seed), *[ellipses] * bool(ellipses)]
    )
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(to_yaml(settings, comment))
    out.with_suffix(".txt").write_text(text + "\n")
    return f"{text}\n\nwritten: {out}, {out.with_suffix('.txt')}, meta of {weights}"


if __name__ == "__main__":
    sys.exit(main())
