"""2D detectors on rendered rigs with exact truth: cameras, their regions, joints."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from detector_errors.clips import Detected
from detector_errors.named import named_detector
from tqdm import tqdm

from benchmark.detectors.cases import detected, windows
from benchmark.detectors.scores import Scores, score
from benchmark.figures import Figure, Judged, bootstrap, mean, median, targets_table
from benchmark.results import check_names, write_results
from benchmark.rig.scores import pool
from ptri.config import PosteriorConfig, load
from ptri.errors import UserError
from ptri.evaluation.metrics import FAILURE_DEG
from ptri.evaluation.pictures import spread
from ptri.evaluation.table import grid
from ptri.models.pose_model import PoseModel
from ptri.models.weights import build_model
from ptri.structures import UNKNOWN_DETECTOR, Detector

WEIGHTS = "checkpoints/ptri_3d.pt"
FRAMES = (1, 10, 27)
MOST = 0.9  # of our error over that of robust triangulation with the true cameras
HEADINGS = {
    "rigs": "rigs",
    "median": "median deg",
    "failed": "> 10 deg",
    "rotation50": "R in 50 %",
    "rotation90": "in 90 %",
    "joints50": "joints in 50 %",
    "joints90": "in 90 %",
    "accepted": "accepted",
    "mpjpe": "MPJPE mm",
    "answered": "seen joints",
    "calibrated": "true cameras",
    "triangulated": "triangulated",
    "ratio": "MPJPE over triangulated",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("roots", nargs="+", help="people before rigs, by scripts/render_people.py")
    add("--detectors", nargs="+", default=["movenet", "ours"], help="names of detector.name")
    add("--frames", nargs="+", type=int, default=list(FRAMES), help="of a rig (1 10 27)")
    add("--most", type=int, default=0, help="rigs of each number of frames; 0: all")
    add("--unknown", action="store_true", help="also as if nothing were known of the errors")
    text = "also at these worths of a frame, see docs/rig_posterior.md, to choose one"
    add("--frame-worth", nargs="+", type=float, default=[], metavar="SHARE", help=text)
    add("--weights", default=WEIGHTS, help="of lifter and fusion")
    add("--config", metavar="YAML", help="settings, such as the posterior's")
    add("--set", nargs="*", default=[], metavar="section.key=value", help="change them")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--out", default="outputs/benchmark", help="folder for tables, JSON and detections")


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    if min(args.frames) < 1:
        raise UserError(f"--frames {min(args.frames)}: at least 1")
    check_names([Path(root) for root in args.roots])
    fixed = ["run.name=benchmark", "data.kind=videos", f"init.checkpoint_3d={args.weights}"]
    config = load(args.config, [*fixed, *args.set])
    model = build_model(config, with_images=False).eval()
    judged, blocks, content = [], [], {}
    for name in args.detectors:
        detector = named_detector(name)
        for root in map(Path, args.roots):
            found = detected(root, detector, max(args.frames), Path(args.out))
            for words, assumed in assumptions(detector.known, args).items():
                model.detector = assumed
                title = f"{name}, {root.name}{words}"
                figures = {
                    T: summarise(_scores(model, found, T, config.posterior, title, args))
                    for T in args.frames
                }
                blocks.append(_table(title, figures))
                content[title] = {
                    f"T = {T}": {key: figure._asdict() for key, figure in part.items()}
                    for T, part in figures.items()
                }
                if not words:
                    ratio = figures[max(args.frames)]["ratio"]
                    judged.append(Judged(title, ratio, most=MOST, strict=True))
    head = f"MPJPE over robust triangulation with the true cameras, T = {max(args.frames)}"
    text = "\n\n".join([*blocks, targets_table(head, judged)])
    return write_results(args, "detectors", text, {"figures": content})


def assumptions(known: Detector, args: argparse.Namespace) -> dict[str, Detector]:
    """What the solver is told of a detector, by what the title says of that."""
    told = {"": known}
    if args.unknown:
        told[", errors unknown"] = UNKNOWN_DETECTOR
    for worth in args.frame_worth:
        told[f", a frame worth {worth:g}"] = known._replace(frame_worth=worth)
    return told


def _scores(
    model: PoseModel,
    found: Detected,
    num_frames: int,
    options: PosteriorConfig,
    title: str,
    args: argparse.Namespace,
) -> list[Scores]:
    chosen = windows(*found.clips.joints.shape[:2], num_frames)
    if args.most:
        chosen = [chosen[row] for row in spread(len(chosen), args.most)]
    bar = tqdm(chosen, f"{title}, T = {num_frames}", unit="rig", disable=None)
    return [score(model, found, window, options, args.seed) for window in bar]


def summarise(scores: list[Scores]) -> dict[str, Figure]:
    """Figures of N rigs; intervals of 95 % over rigs."""
    flat = pool(scores)
    figures = {"rigs": Figure(len(scores)), "median": Figure(median(flat["angle"]))}
    figures["failed"] = Figure(mean(~(flat["angle"] <= FAILURE_DEG)))
    for name in HEADINGS:
        if name in flat:
            figures[name] = Figure(mean(flat[name]))
    figures["ratio"] = bootstrap([(flat["answered"], flat["triangulated"])])
    return figures


def _table(title: str, figures: dict[int, dict[str, Figure]]) -> str:
    def text(name: str, figure: Figure) -> str:
        if math.isnan(figure.value):
            return "-"
        if name in ("failed", "accepted") or name[-2:] in ("50", "90"):
            return figure.text(".0f", " %")
        return figure.text({"rigs": ".0f", "median": ".2f", "ratio": ".2f"}.get(name, ".1f"))

    rows = [
        [f"T = {T}", *(text(name, part[name]) for name in HEADINGS)] for T, part in figures.items()
    ]
    return f"{title}\n{grid(['', *HEADINGS.values()], rows)}"
