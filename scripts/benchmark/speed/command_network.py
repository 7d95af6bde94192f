"""Time of the 2D network from images to keypoints, and multiply-adds of its head and backbone."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmark.figures import Figure, Judged, targets_table
from benchmark.results import write_results
from benchmark.speed.network import (
    Work,
    matrix_rate,
    multiply_adds,
    parts,
    random_network,
    variants,
)
from benchmark.timing import Timing, time_calls
from ptri.errors import UserError
from ptri.evaluation.table import grid

TARGET_MS, TARGET_THREADS, TARGET_SHARE = 20.0, 2, 1 / 3
PUBLISHED = "the published network: 1190-1730 ms at 384 px; its head is 95 of 141 G multiply-adds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    if args.size < 32 or args.size % 32 or args.views < 1 or args.repeats < 1:
        raise UserError("--size: a multiple of 32 px; --views and --repeats: at least 1")
    work = {name: multiply_adds(random_network(name), args.size) for name in args.backbone}
    network = random_network(args.timed)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.views, 3, args.size, args.size, generator=generator)
    timings: dict[int, list[Timing]] = {}
    stages: dict[int, list[Timing]] = {}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for threads in args.threads:
            torch.set_num_threads(threads)
            calls = variants(network, images, None if args.no_onnx else Path(folder), threads)
            timings[threads] = time_calls(calls, args.repeats, args.seconds)
            stages[threads] = time_calls(parts(network, images), args.repeats, args.seconds)
    rates = {threads: matrix_rate(threads) for threads in args.threads}
    rows = []
    standard = (args.timed, args.size, args.views) == ("mobileone_s0", 256, 4)
    if standard and TARGET_THREADS in timings:
        best = min(timings[TARGET_THREADS], key=lambda timing: timing.fastest)
        label = f"best with {TARGET_THREADS} threads: {best.name}"
        rows.append(Judged(label, Figure(1000 * best.fastest), most=TARGET_MS, unit=" ms"))
    for name, count in work.items():
        share = Figure((count.head + count.rest) / count.backbone)
        label = f"{name}: multiply-adds of head and rest over the backbone's"
        rows.append(Judged(label, share, most=TARGET_SHARE, strict=True))
    counts = [[name, *(f"{value:.1f}" for value in count)] for name, count in work.items()]
    title = f"multiply-adds of one image of {args.size} px, millions"
    lines = [
        f"{args.timed}, {args.views} views of {args.size} px, fused, head and decoding included",
        _table("ms of a call", timings),
        _table("ms of the eager call's stages", stages),
        f"{title}\n{grid(['', *Work._fields], counts)}",
        targets_table("Targets", rows),
        PUBLISHED,
    ]
    timed = work.get(args.timed) or multiply_adds(network, args.size)
    total = args.views * sum(timed) / 1000
    lines += [
        f"{threads} thread(s): {total:.2f} G multiply-adds at the {rate:.0f} G/s of a 1024 x 1024 "
        f"matrix product would be {1000 * total / rate:.1f} ms"
        for threads, rate in rates.items()
    ]
    content = {
        "targets": [row.to_json() for row in rows],
        "timings": {threads: [t._asdict() for t in many] for threads, many in timings.items()},
        "stages": {threads: [t._asdict() for t in many] for threads, many in stages.items()},
        "matrix_product_giga_per_second": rates,
        "multiply_adds_millions": {name: count._asdict() for name, count in work.items()},
    }
    return write_results(args, "speed2d", "\n\n".join(lines), content)


def _table(title: str, timings: dict[int, list[Timing]]) -> str:
    rows = []
    for threads, many in timings.items():
        for timing in many:
            seconds = timing.fastest, timing.median, timing.processor
            numbers = [f"{1000 * value:.1f}" for value in seconds]
            rows.append([f"{threads} thread(s), {timing.name}", *numbers, str(timing.repeats)])
    heads = ["", "fastest", "median", "processor time", "calls"]
    return f"{title}\n{grid(heads, rows)}"
