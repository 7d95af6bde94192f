"""Packages of the 2D network for phones: work, weights, size, time on one thread of this CPU."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.results import write_results
from benchmark.speed.network import multiply_adds, random_network
from benchmark.timing import time_calls
from ptri.errors import UserError
from ptri.evaluation.table import grid
from ptri.export import files, to_coreml, to_executorch, to_litert, to_onnx
from ptri.export.graph import Exported

# What is made: a runtime's module and a precision; Core ML's packages cannot be timed here.
MADE = (
    (to_coreml, "float16"),
    (to_coreml, "w8"),
    (to_executorch, "float32"),
    (to_executorch, "w8a8"),
    (to_litert, "float32"),
    (to_litert, "float16"),
    (to_litert, "w8a8"),
)
NAMES = {to_coreml: "Core ML", to_executorch: "ExecuTorch", to_litert: "LiteRT"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backbone", nargs="+", default=["mobileone_s0", "mobileone_s4"])
    add("--size", nargs="+", type=int, default=[192, 256], help="px")
    add("--repeats", type=int, default=100, help="of every call; the fastest counts")
    add("--seconds", type=float, default=60.0, help="at most, for each network and size")
    add("--out", default="outputs/benchmark", help="folder for results")


def run(args: argparse.Namespace) -> str:
    if any(size < 32 or size % 32 for size in args.size) or args.repeats < 1:
        raise UserError("--size: multiples of 32 px; --repeats: at least 1")
    torch.set_num_threads(1)
    columns = [(name, size) for name in args.backbone for size in args.size]
    figures = {column: measure(*column, args.repeats, args.seconds) for column in columns}
    (first, *_) = figures.values()
    rows = [[label, *(figures[column][label] for column in columns)] for label in first]
    table = grid(["", *(f"{name}, {size} px" for name, size in columns)], rows)
    title = (
        "random weights; fastest of the calls, one thread, uint8 pixels to heatmaps and features"
    )
    content = {f"{name}_{size}": figures[name, size] for name, size in columns}
    return write_results(args, "phones", f"{title}\n\n{table}", content)


def measure(backbone: str, size: int, repeats: int, seconds: float) -> dict[str, str]:
    """One column of the table: label -> number, in words."""
    network = random_network(backbone)
    module = Exported(network, decoded=False)
    work = multiply_adds(network, size)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, size, size), np.uint8)
    column = {
        "multiply-adds, M": f"{work.backbone + work.head:.0f}",
        "parameters, M": f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}",
    }
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "network.onnx"
        to_onnx.write(module, graph, size)
        calls: dict[str, Callable[[], Any]] = {
            "PyTorch, eager": lambda: module(torch.from_numpy(image).float()),
            "ONNX Runtime": partial(_run_onnx, to_onnx.open_session(graph), image),
        }
        column["ONNX float32, MB"] = f"{files.megabytes(graph):.2f}"
        for runtime, precision in MADE:
            label = f"{NAMES[runtime]} {precision}"
            target = Path(folder) / f"network_{precision}{runtime.SUFFIX}"
            runtime.write(module, target, size, precision, image)
            column[f"{label}, MB"] = f"{files.megabytes(target):.2f}"
            if runtime is not to_coreml:
                calls[label] = partial(runtime.run(target), image)
        for timing in time_calls(calls, repeats, seconds):
            column[f"{timing.name}, ms"] = f"{1000 * timing.fastest:.1f}"
    return column


def _run_onnx(session: Any, image: np.ndarray) -> list[np.ndarray]:
    return session.run(None, {"images": image.astype(np.float32)})
