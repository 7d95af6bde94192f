"""Time of the 2D network from images to keypoints, and multiply-adds of its head and backbone."""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import torch

from benchmark.speed.network import (
    Timing,
    Work,
    matrix_rate,
    measure,
    multiply_adds,
    parts,
    random_network,
    variants,
)
from ptri.errors import UserError

TARGET_MS, TARGET_THREADS, TARGET_SHARE = 20.0, 2, 1 / 3
PUBLISHED = "the published network: 1190-1730 ms at 384 px; its head is 95 of 141 G multiply-adds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = parser.add_argument
    add("--backbone", nargs="+", default=["mobileone_s0", "mobileone_s4"], help="of `work`")
    add("--timed", default="mobileone_s0", help="backbone that is timed")
    add("--size", type=int, default=256, help="px")
    add("--views", type=int, default=4, help="images at once")
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--repeats", type=int, default=100, help="of every call; the fastest counts")
    add("--seconds", type=float, default=60.0, help="at most, for each number of threads")
    add("--no-onnx", action="store_true", help="without ONNX Runtime (extra `export`)")
    add("--out", default="outputs/benchmark", help="folder for results")


def run(args: argparse.Namespace) -> str:
    """Times and counts; writes text and JSON.

    Returns:
        The text to print.

    Raises:
        UserError: bad arguments, or ONNX Runtime wanted and not installed.
    """
    if args.size < 32 or args.size % 32 or args.views < 1 or args.repeats < 1:
        raise UserError("--size: a multiple of 32 px; --views and --repeats: at least 1")
    work = {name: multiply_adds(random_network(name), args.size) for name in args.backbone}
    network = random_network(args.timed)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.views, 3, args.size, args.size, generator=generator)
    timings, stages = [], []
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for threads in args.threads:
            torch.set_num_threads(threads)
            place = None if args.no_onnx else Path(folder)
            calls = variants(network, images, place, threads)
            timings += measure(calls, threads, args.repeats, args.seconds)
            stages += measure(parts(network, images), threads, args.repeats, args.seconds)
    rates = {threads: matrix_rate(threads) for threads in args.threads}
    text = _text(args, timings, stages, work)
    own = work.get(args.timed) or multiply_adds(network, args.size)
    total = args.views * sum(own) / 1000
    for threads, rate in rates.items():
        text += (
            f"\n{threads} thread(s): {total:.2f} G multiply-adds at the {rate:.0f} G/s of a "
            f"1024 x 1024 matrix product would be {1000 * total / rate:.1f} ms"
        )
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed2d.txt").write_text(text + "\n")
    content = {
        "settings": {**vars(args), "python": platform.python_version(), "torch": torch.__version__},
        "timings": [t._asdict() for t in timings],
        "stages": [t._asdict() for t in stages],
        "matrix_product_giga_per_second": rates,
        "multiply_adds_millions": {name: one._asdict() for name, one in work.items()},
    }
    (folder / "speed2d.json").write_text(json.dumps(content, indent=1))
    return f"{text}\n\nwritten: speed2d.txt, speed2d.json in {folder}/"


def _text(
    args: argparse.Namespace, timings: list[Timing], stages: list[Timing], work: dict[str, Work]
) -> str:
    lines = [
        f"{args.timed}, {args.views} views of {args.size} px, fused, head and decoding included; "
        "ms of a call, * = not met"
    ]
    lines += _rows(timings)
    best = [t for t in timings if t.threads == TARGET_THREADS]
    if best and (args.timed, args.size, args.views) == ("mobileone_s0", 256, 4):
        first = min(best, key=lambda t: t.fastest)
        mark = " " if first.fastest <= TARGET_MS else "*"
        lines.append(
            f"best with {TARGET_THREADS} threads: {first.fastest:.1f} ms{mark} "
            f"(<= {TARGET_MS:g} ms), {first.name}"
        )
    lines += [PUBLISHED, "", "stages of the eager call", *_rows(stages), ""]
    lines.append(f"multiply-adds of one image of {args.size} px, millions")
    for name, one in work.items():
        share = (one.head + one.rest) / one.backbone
        mark = " " if share < TARGET_SHARE else "*"
        lines.append(
            f"{name:16s} backbone {one.backbone:8.1f}, head {one.head:7.1f}, the rest "
            f"{one.rest:6.1f}: {share:.3f} of the backbone{mark} (< 1/3)"
        )
    return "\n".join(lines)


def _rows(timings: list[Timing]) -> list[str]:
    return [
        f"{t.threads} thread{'s' * (t.threads > 1):1s}  {t.name:32s} fastest {t.fastest:7.1f}   "
        f"median {t.median:7.1f}   processor time {t.processor:7.1f}   ({t.repeats} calls)"
        for t in timings
    ]
