"""Training on Human3.6M: schedules for 1 and 8 GPUs, their time estimated from measured steps."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmark.schedule import (
    TRAIN_FRAMES,
    TRAIN_VIEWS,
    Step,
    enlarge,
    gpu_seconds,
    is_2d,
    loading_seconds,
    measure,
    plan,
)
from benchmark.speed2d import matrix_rate
from ptri.config import Config, load, replace
from ptri.errors import UserError

# What is measured on: the demo's first subject, and the shipped lifter and fusion.
ROOT, SUBJECT, WEIGHTS = Path("data/demo"), 1, "checkpoints/ptri_3d.pt"
IMAGES = 8  # of a measured step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = parser.add_argument
    files = ["configs/h36m_2d.yaml", "configs/h36m_3d.yaml"]
    add("configs", nargs="*", default=files, help="of train2d.py or train3d.py, on Human3.6M")
    add("--sizes", nargs="+", type=int, default=[256, 384], help="px")
    add("--gpus", nargs="+", type=int, default=[1, 8])
    add("--peak", type=float, default=312.0, help="published T operations/s (A100: bf16, dense)")
    add("--share", nargs=2, type=float, default=[0.05, 0.2], help="of it, low and high: a guess")
    add("--launch", nargs=2, type=float, default=[5, 20], help="microseconds an operator: a guess")


def run(args: argparse.Namespace) -> str:
    """Measures a step of each configuration and size on one thread, and works out schedules.

    Returns:
        The text to print.

    Raises:
        UserError: bad arguments, settings or data.
    """
    low, high = args.share
    if not 0 < low <= high <= 1 or args.peak <= 0 or not 0 <= args.launch[0] <= args.launch[1]:
        raise UserError(
            "--share: low and high, 0 < low <= high <= 1; --launch: low and high; --peak: above 0"
        )
    if min(args.gpus) < 1 or min(args.sizes) < 64 or any(size % 32 for size in args.sizes):
        raise UserError("--gpus: at least 1; --sizes: multiples of 32 px, at least 64")
    configs = {path: load(path) for path in args.configs}
    for path, config in configs.items():
        if config.data.kind != "h36m":
            raise UserError(f"{path}: data.kind: {config.data.kind}; expected h36m")
    torch.set_num_threads(1)
    rate = 2 * matrix_rate(1)
    lines = [
        "Human3.6M, S1 and S5 to S8: "
        f"{TRAIN_FRAMES * TRAIN_VIEWS:,} images of {TRAIN_FRAMES:,} frames at 50 a second",
        f"measured: one thread of this machine, {rate:.0f} G operations/s in a matrix product",
        f"assumed, measured on no GPU: {low:.0%} to {high:.0%} of {args.peak:g} T operations/s and "
        f"{args.launch[0]:g} to {args.launch[1]:g} microseconds an operator; without optimizer and "
        "exchange of gradients",
        "commands: at the head of each configuration",
    ]
    with tempfile.TemporaryDirectory() as folder:
        enlarge(ROOT, Path(folder), f"S{SUBJECT}")
        for path, config in configs.items():
            for size in args.sizes:
                own = replace(config, data__image_size=size, data__train_subjects=[SUBJECT])
                own = replace(own, model__pretrained=False)
                if not is_2d(config):
                    own = replace(own, init__checkpoint_3d=WEIGHTS)
                step = measure(own, str(ROOT), IMAGES if is_2d(own) else IMAGES // TRAIN_VIEWS)
                load_s = loading_seconds(own, Path(folder))
                lines += ["", *_lines(args, path, config, size, step, rate, load_s)]
    return "\n".join(lines)


def _lines(
    args: argparse.Namespace,
    path: str,
    config: Config,
    size: int,
    step: Step,
    rate: float,
    load_s: float,
) -> list[str]:
    workers = max(config.data.workers, 1)
    batch = config.train.batch_size * (1 if is_2d(config) else TRAIN_VIEWS)  # images
    lines = [
        f"{path}, {size} px",
        f"  measured: {1000 * step.seconds:.0f} ms of a core an image (forward and backward), "
        f"{step.giga:.2f} G operations ({step.giga / step.seconds / rate:.0%} of the matrix "
        f"product's rate), {step.operators:,} operators a step, {step.megabytes:.0f} MB kept in "
        f"float32 ({step.megabytes * batch / 1000:.0f} GB for {batch})",
        f"  measured: {1000 * load_s:.1f} ms of a core to read (1000 px), crop and augment one",
    ]
    for gpus in args.gpus:
        chosen = plan(config, gpus)
        slow, fast = (
            gpu_seconds(step, chosen, args.peak * share, launch * 1e-6) / 60
            for share, launch in zip(args.share, reversed(args.launch))
        )
        loading = chosen.images * load_s / (gpus * workers) / 60
        lines += [
            f"  {gpus} GPUs: {config.train.epochs} epochs, {chosen.steps:,} steps of "
            f"{chosen.batch} samples, train.lr={chosen.lr:.1e}, {chosen.images:,} images; "
            f"estimated {fast:.0f} to {slow:.0f} min on the GPU; loading: {loading:.0f} min where "
            f"each of {gpus * workers} workers has a core",
        ]
    return lines
