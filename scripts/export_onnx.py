"""Writes a 2D network as ONNX: image to keypoints with covariance and confidence.

python scripts/export_onnx.py checkpoints/ptri_2d_s0.pt outputs/ptri_2d_s0.onnx

Input `images` (N, 3, S, S) float32, RGB, 0 to 255, any N; outputs `xy` (N, 17, 2) px with integer
coordinates at pixel centres, `covariance` (N, 17, 2, 2) px^2, `confidence` (N, 17). The graph is
run by ONNX Runtime on noise and on smooth pictures and compared with the network before this ends.
Needs the extra `export`: pip install 'ptri[export]'.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from benchmark.photos.persons import load_network

from ptri.errors import UserError, exit_status
from ptri.models.export import compare, export

# What rounding in another order does to a soft decoding; more means another graph.
TOLERANCE = {"xy": 0.05, "covariance": 0.02, "confidence": 0.002}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="shipped weights, or best.pt of a run")
    parser.add_argument("target", help="file to write, .onnx")
    parser.add_argument("--size", type=int, help="px, a multiple of 32; default: the training's")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--normalised", action="store_true", help="input already normalised")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    args = parser.parse_args(arguments)
    return exit_status(lambda: print(work(args)))


def work(args: argparse.Namespace) -> str:
    """Exports and checks; the text to print.

    Raises:
        UserError: bad arguments, missing packages, or a graph that computes something else.
    """
    target = Path(args.target)
    if target.exists() and not args.overwrite:
        raise UserError(f"{target}: exists; choose another name or give --overwrite")
    network, trained = load_network(args.source, args.flip)
    size = args.size or trained
    if size < 32 or size % 32:
        raise UserError(f"--size {size}: expected a multiple of 32 px")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    export(network, target, size, not args.normalised)
    worst = dict.fromkeys(TOLERANCE, 0.0)
    for count in (1, 3):  # two batches: the first dimension is free
        images = _pictures(count, size)
        images = images / 64 - 2 if args.normalised else images
        differences = compare(network, target, images, not args.normalised)
        worst = {name: max(worst[name], differences[name]) for name in worst}
    bad = {name: value for name, value in worst.items() if not value <= TOLERANCE[name]}
    if bad:
        target.unlink()
        raise UserError(f"{target}: the graph differs from the network ({bad}); not written")
    differences = ", ".join(f"{name} {value:.2g}" for name, value in worst.items())
    megabytes = target.stat().st_size / 1e6
    return f"{target}: {megabytes:.1f} MB, {size} px; largest differences to eager: {differences}"


def _pictures(count: int, size: int) -> torch.Tensor:
    """Smooth random pictures with some noise, (N, 3, S, S), 0 to 255."""
    generator = torch.Generator().manual_seed(count)
    coarse = 255 * torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    noise = 10 * torch.randn(smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 255)


if __name__ == "__main__":
    sys.exit(main())
