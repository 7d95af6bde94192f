"""Time of the rig posterior on one thread, and its growth with views, frames, joints, samples."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

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
    """Options of the subcommand."""
    add = parser.add_argument
    add("--repeats", type=int, default=3, help="timed calls of each size; the median counts")
    add("--threads", type=int, default=1)
    add("--config", metavar="YAML", help="settings of the estimator")
    add("--set", nargs="*", default=[], metavar="section.key=value", help="change them")
    add("--quick", action="store_true", help="the targets only, no growth")
    add("--out", default="outputs/benchmark", help="folder for results and the picture")


def run(args: argparse.Namespace) -> str:
    """Times every size; writes JSON and a picture.

    Returns:
        The text to print.
    """
    start = time.perf_counter()
    torch.set_num_threads(args.threads)
    model = make_model(tuple(args.set), args.config)
    growth = {} if args.quick else GROWTH
    total = len(TARGETS) + sum(len(values) for _, values in growth.values())
    with tqdm(total=total, unit="size", disable=None) as bar:

        def timed(name: str, size: Size) -> Timing:
            (timing,) = time_calls({name: make_call(model, size)}, args.repeats)
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
    for name, timings in curves.items():
        points = ", ".join(f"{size}: {1000 * one.median:.0f}" for size, one in timings.items())
        lines.append(f"{name:12s} time ~ size^{exponent(*_curve(timings)):.2f}   ms: {points}")
    if curves:
        draw(curves, Path(args.out) / "speed.png")
    slopes = {name: exponent(*_curve(timings)) for name, timings in curves.items()}
    points = {
        name: {size: timing._asdict() for size, timing in timings.items()}
        for name, timings in curves.items()
    }
    content = {"targets": targets, "exponents": slopes, "growth": points}
    text = "\n".join(lines)
    return write_results(args, "speed", text, content, start, "speed.png" * bool(curves))


def _curve(timings: dict[int, Timing]) -> tuple[list[int], list[float]]:
    return list(timings), [timing.median for timing in timings.values()]


def draw(curves: dict[str, dict[int, Timing]], path: Path) -> None:
    """Time against each size, with the line of linear growth through the largest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(curves), 3.0), layout="constrained")
    for axis, (name, timings) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items()
    ):
        sizes, seconds = _curve(timings)
        axis.plot(sizes, seconds, "o-", label=f"measured, exponent {exponent(sizes, seconds):.2f}")
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        axis.plot(sizes, linear, "k:", label="linear")
        base = GROWTH[name][0]
        rest = {"batch": "B", "num_frames": "T", "num_views": "V", "num_joints": "J"}
        title = ", ".join(f"{s} = {getattr(base, k)}" for k, s in rest.items() if k != name)
        axis.set_title(title, fontsize=8)
        axis.set_xlabel(name.replace("num_", ""))
        axis.set_ylabel("s")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes], fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.3, which="both", lw=0.4)
        axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
