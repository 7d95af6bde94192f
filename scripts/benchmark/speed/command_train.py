"""Throughput and memory of training and of the rig posterior on a GPU, and what waits for it."""

from __future__ import annotations

import argparse
import contextlib
import math
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from benchmark.results import write_results
from benchmark.speed.pretend import DEVICE, pretend
from benchmark.speed.train import make_solve, make_step, stages_3d, task_2d, task_3d
from benchmark.speed.waits import Trace, cuda_waits
from ptri.errors import UserError
from ptri.evaluation.table import grid
from ptri.system import choose_device
from ptri.training.optimizer import amp_type

MOST_LINES = 12  # of the waits' sources that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add("--sizes", nargs="+", type=int, default=[256, 384], help="px of 2D training")
    add("--frames", nargs="+", type=int, default=[1, 27], help="of the posterior's rigs")
    add("--seconds", type=float, default=5.0, help="that each call is repeated for")
    add("--amp", default="auto", choices=["auto", "off", "bf16", "fp16"], help="train.amp")
    add("--quick", action="store_true", help="small batches and one repeat, for a CPU")
    add("--out", default="outputs/benchmark", help="folder for results")


def run(args: argparse.Namespace) -> str:
    if args.seconds <= 0 or any(size < 32 or size % 32 for size in args.sizes):
        raise UserError("--seconds: above 0; --sizes: multiples of 32 px")
    device = choose_device(args.device)
    amp = amp_type(args.amp, device)
    seconds = 0.0 if args.quick else args.seconds
    images, samples, rigs = (2, 2, 2) if args.quick else (64, 32, 256)
    bar = tqdm(total=len(args.sizes) + len(args.frames) + 1, disable=None, leave=False)
    rows: list[list[str]] = []
    numbers: dict[str, float] = {}
    traces: dict[str, Trace] = {}

    def rate(name: str, count: int, unit: str, call: Callable[[], Any]) -> None:
        taken = _median_seconds(call, device, seconds)
        numbers[name] = count / taken
        rows.append([name, str(count), f"{1000 * taken:.0f}", f"{count / taken:.3g} {unit}/s"])
        bar.update()

    # 1. Throughput.
    for size in args.sizes:
        call, _ = make_step(task_2d(size, images, args.amp), device)
        rate(f"2D training, {size} px", images, "images", call)
    for frames in args.frames:
        count = max(rigs // frames, 1)
        call = make_solve(frames, count, device)
        rate(f"posterior, 4 views, T = {frames}", count, "rigs", call)
    call, state = make_step(task_3d(args.sizes[0], samples, args.amp), device)
    rate(f"3D training, 4 views, {args.sizes[0]} px", samples, "samples", call)
    # 2. A 3D step by stage.
    stages = stages_3d(call, state)
    bar.close()
    # 3. What the CPU waits for, at small sizes: it does not depend on them.
    place = device if device.type == "cuda" else DEVICE
    watch = cuda_waits if device.type == "cuda" else pretend
    with watch() if place == DEVICE else contextlib.nullcontext() as pretended:
        calls = {
            "2D training step": make_step(task_2d(64, 2, "off"), place)[0],
            "3D training step": make_step(task_3d(64, 2, "off"), place)[0],
            "posterior, T = 1": make_solve(1, 2, place),
            "posterior, T = 8": make_solve(8, 1, place),
        }
        for name, call in calls.items():
            call()  # constants are made in the first
            traces[name] = _traced(call, pretended)
    parts = [[name, f"{1000 * s:.0f}", _gigabytes(m)] for name, (s, m) in stages.items()]
    lines = [
        hardware(device),
        f"precision of training: {amp or torch.float32}; random weights or the shipped ones, the "
        "images of data/demo, loaded before",
        grid(["", "at once", "ms", "throughput"], rows),
        f"A 3D training step of {samples} samples by stage, waiting after each",
        grid(["", "ms", "peak memory, GB"], parts),
        _waits_table(traces, device),
    ]
    content = {
        "throughput": numbers,
        "stages": {name: stage._asdict() for name, stage in stages.items()},
        "waits": {
            name: {" ".join(k): n for k, n in trace.waits.most_common()}
            for name, trace in traces.items()
        },
        "operators": {name: trace.operators for name, trace in traces.items()},
    }
    return write_results(args, "train", "\n\n".join(lines), content, device=str(device))


def _traced(call: Callable[[], Any], pretended: Trace | None) -> Trace:
    """The waits of one call; of a pretended device in its own trace's terms."""
    if pretended is None:
        with cuda_waits() as trace:
            call()
        return trace
    pretended.waits.clear()
    before = pretended.operators
    call()
    trace = Trace()
    trace.waits, trace.operators = pretended.waits.copy(), pretended.operators - before
    return trace


def _median_seconds(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Of calls that are repeated for so long, after one that warms up."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    call()
    taken: list[float] = []
    while not taken or sum(taken) < seconds:
        start = now()
        call()
        taken.append(now() - start)
    return sorted(taken)[len(taken) // 2]


def hardware(device: torch.device) -> str:
    """One line on the machine and what computes on it."""
    if device.type != "cuda":
        what = f"CPU ({platform.machine()}, {torch.get_num_threads()} thread(s))"
        return f"{what}, torch {torch.__version__}"
    about = torch.cuda.get_device_properties(device)
    memory = about.total_memory / 2**30
    return f"{about.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}"


def _gigabytes(size: float) -> str:
    return "-" if math.isnan(size) else f"{size / 1e9:.2f}"


def _waits_table(traces: dict[str, Trace], device: torch.device) -> str:
    how = "as CUDA reports them" if device.type == "cuda" else "on a pretended device"
    heads = ["", "waits", "operators"]
    rows = [[n, str(t.waits.total()), str(t.operators or "-")] for n, t in traces.items()]
    lines = [f"How often the CPU waits for the GPU, {how}", grid(heads, rows)]
    total = sum((trace.waits for trace in traces.values()), start=type(Trace().waits)())
    places = [[str(n), kind, line] for (line, kind), n in total.most_common(MOST_LINES)]
    return "\n".join([*lines, "", grid(["waits", "for", "in"], places)])
