"""Time of the rig posterior on one thread, and its growth with views, frames, joints, samples."""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from benchmark.figures import Figure, Judged, targets_table
from benchmark.results import write_results
from benchmark.rig.ours import make_model
from benchmark.speed.rig import Size, exponent, make_call
from benchmark.timing import Timing, time_calls

BATCH = 32
FRAME, RIG = " ms a frame", " s a rig"
# label, size, at most, unit
TARGETS = [
    ("T = 1, batches of 32, 512 samples in all", Size(BATCH), 10.0, FRAME),
    ("T = 1, batches of 32, 512 samples x 4", Size(BATCH, num_samples=2048), 10.0, FRAME),
    ("T = 50, one rig, 512 samples in all", Size(1, 50), 0.3, RIG),
    ("T = 50, one rig, 512 samples x 4", Size(1, 50, num_samples=2048), 0.3, RIG),
]
GROWTH = {
    "num_views": (Size(8, 4), (2, 3, 4, 6, 8)),
    "num_frames": (Size(1, 1), (1, 2, 5, 10, 20, 50, 100)),
    "num_joints": (Size(4, 4), (17, 25, 34, 51)),
    "num_samples": (Size(4, 4), (256, 512, 1024, 2048, 4096, 8192)),
}
PUBLISHED = "the published sampler: 1.39 s a frame for 128 samples (anchor, 4 views)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repeats", type=int, default=3, help="timed calls of each size; the median counts")
    add("--threads", type=int, default=1)
    add("--config", metavar="YAML", help="settings of the estimator")
    add("--set", nargs="*", default=[], metavar="section.key=value", help="change them")
    add("--quick", action="store_true", help="the targets only, no growth")
    add("--out", default="outputs/benchmark", help="folder for results")


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    model, options = make_model(tuple(args.set), args.config)
    growth = {} if args.quick else GROWTH
    total = len(TARGETS) + sum(len(values) for _, values in growth.values())
    with tqdm(total=total, unit="size", disable=None) as bar:

        def timed(name: str, size: Size) -> Timing:
            (timing,) = time_calls({name: make_call(model, options, size)}, args.repeats)
            bar.update()
            return timing

        rows, targets = [], []
        for label, size, limit, unit in TARGETS:
            timing = timed(label, size)
            factor = 1000 / BATCH if unit == FRAME else 1.0
            note = (
                f"fastest {factor * timing.fastest:.3g}, processor {factor * timing.processor:.3g}"
            )
            figure = Figure(factor * timing.median)
            rows.append(Judged(label, figure, most=limit, unit=unit, note=note))
            targets.append({**size._asdict(), **timing._asdict(), **rows[-1].to_json()})
        curves = {
            name: {value: timed(name, base._replace(**{name: value})) for value in values}
            for name, (base, values) in growth.items()
        }
    head = f"Time of the rig posterior, {args.threads} thread(s), 4 views, 17 joints"
    lines = [targets_table(head, rows), PUBLISHED]
    slopes = {}
    for name, timings in curves.items():
        medians = {size: timing.median for size, timing in timings.items()}
        slopes[name] = exponent(list(medians), list(medians.values()))
        points = ", ".join(f"{size}: {1000 * seconds:.0f}" for size, seconds in medians.items())
        lines.append(f"{name:12s} time ~ size^{slopes[name]:.2f}   ms: {points}")
    points = {
        name: {size: timing._asdict() for size, timing in timings.items()}
        for name, timings in curves.items()
    }
    content = {"targets": targets, "exponents": slopes, "growth": points}
    return write_results(args, "speed", "\n".join(lines), content)
