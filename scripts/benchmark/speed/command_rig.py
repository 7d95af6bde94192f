"""Time of the rig posterior on one thread, and its growth with views, frames, joints, samples."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from tqdm import tqdm

from benchmark.rig.ours import make_model
from benchmark.speed.rig import Size, Timing, exponent, measure

BATCH = 32
# label, size, limit, unit of the printed figure, its factor from seconds a call
TARGETS = [
    ("T = 1, batches of 32, 512 samples in all", Size(BATCH), 10.0, "ms a frame", 1000 / BATCH),
    ("T = 1, batches of 32, 512 samples x 4", Size(BATCH, num_samples=2048), 10.0, "ms a frame",
     1000 / BATCH),
    ("T = 50, one rig, 512 samples in all", Size(1, 50), 0.3, "s a rig", 1.0),
    ("T = 50, one rig, 512 samples x 4", Size(1, 50, num_samples=2048), 0.3, "s a rig", 1.0),
]  # fmt: skip
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
    torch.set_num_threads(args.threads)
    model = make_model(tuple(args.set), args.config)
    growth = {} if args.quick else GROWTH
    total = len(TARGETS) + sum(len(values) for _, values in growth.values())
    with tqdm(total=total, unit="size", disable=None) as bar:

        def timed(size: Size) -> Timing:
            result = measure(model, size, args.repeats)
            bar.update()
            return result

        aimed = [(target, timed(target[1])) for target in TARGETS]
        curves = {
            name: [timed(base._replace(**{name: value})) for value in values]
            for name, (base, values) in growth.items()
        }
    text = _table(aimed, curves, args.threads)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.txt").write_text(text + "\n")
    (folder / "speed.json").write_text(json.dumps(_to_json(aimed, curves, vars(args)), indent=1))
    if curves:
        draw(curves, folder / "speed.png")
    return f"{text}\n\nwritten: speed.txt, speed.json{', speed.png' * bool(curves)} in {folder}/"


def _table(aimed: list, curves: dict[str, list[Timing]], threads: int) -> str:
    lines = [f"Time of the rig posterior, {threads} thread(s), 4 views, 17 joints; * = not met"]
    for (label, _, limit, unit, factor), timing in aimed:
        value, best, used = (factor * x for x in timing[1:])
        mark = " " if value <= limit else "*"
        rest = f"fastest {best:.3g}, processor time {used:.3g}"
        lines.append(f"{label:44s}{value:9.3g} {unit}{mark} (<= {limit:g}; {rest})")
    lines.append(f"{'':44s}{PUBLISHED}")
    for name, timings in curves.items():
        sizes, seconds = _curve(name, timings)
        points = ", ".join(f"{int(x)}: {1000 * y:.0f}" for x, y in zip(sizes, seconds))
        lines.append(f"{name:12s} time ~ size^{exponent(sizes, seconds):.2f}   ms: {points}")
    return "\n".join(lines)


def _curve(name: str, timings: list[Timing]) -> tuple[list[float], list[float]]:
    return [getattr(t.size, name) for t in timings], [t.median for t in timings]


def _to_json(aimed: list, curves: dict[str, list[Timing]], settings: dict) -> dict:
    def plain(timing: Timing) -> dict:
        seconds = {f"{name}_s": getattr(timing, name) for name in Timing._fields[1:]}
        return {**timing.size._asdict(), **seconds}

    def growth(name: str, timings: list[Timing]) -> dict:
        slope = exponent(*_curve(name, timings))
        return {"exponent": slope, "points": [plain(timing) for timing in timings]}

    return {
        "settings": {**settings, "python": platform.python_version(), "torch": torch.__version__},
        "targets": [
            {"label": label, "limit": limit, "unit": unit, "value": factor * timing.median,
             "met": factor * timing.median <= limit, **plain(timing)}
            for (label, _, limit, unit, factor), timing in aimed
        ],
        "growth": {name: growth(name, timings) for name, timings in curves.items()},
    }  # fmt: skip


def draw(curves: dict[str, list[Timing]], path: Path) -> None:
    """Time against each size, with the line of linear growth through the largest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(curves), 3.0), layout="constrained")
    for axis, (name, timings) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items()
    ):
        sizes, seconds = _curve(name, timings)
        axis.plot(sizes, seconds, "o-", label=f"measured, exponent {exponent(sizes, seconds):.2f}")
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        axis.plot(sizes, linear, "k:", label="linear")
        base = timings[0].size
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
    figure.savefig(path, dpi=110)
