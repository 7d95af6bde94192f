"""Writes a 2D network for another runtime, runs what it wrote, and compares it with PyTorch.

python scripts/export.py checkpoints/ptri_2d_s0.pt --to onnx       # make onnx
python scripts/export.py checkpoints/ptri_2d_s0.pt --to coreml     # make coreml, and so on

onnx: the whole network, `images` (N, 3, S, S) float32, RGB, 0 to 255, any N, to `xy` (N, 17, 2) px
with integer coordinates at pixel centres, `covariance` (N, 17, 2, 2) px^2 and `confidence` (N, 17).

coreml, executorch, litert: for phones, one image to heatmaps and features. The application decodes
them (docs/phones.md); what it needs for that is written beside the package, as JSON. Their
packages clash with each other's, so each has an environment of its own: `make coreml` makes
.venv-coreml, whose Python runs this script.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch
from benchmark.photos.persons import load_network

from ptri.errors import UserError, exit_status
from ptri.evaluation.table import grid
from ptri.export import check, decode, to_onnx
from ptri.export.files import megabytes, remove
from ptri.export.graph import Exported
from ptri.models.network2d import Network2D
from ptri.skeleton import H36M17

FORMATS = ("onnx", "coreml", "executorch", "litert")
# What rounding in another order does to a soft decoding; more means another graph.
ONNX_TOLERANCE = {"xy": 0.05, "covariance": 0.02, "confidence": 0.002}
CALIBRATION, TEST = [1], [9, 11]  # subjects of the images


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", help="shipped weights of a 2D network, or best.pt of train2d.py")
    add("--to", choices=FORMATS, required=True)
    add("--precision", nargs="+", help="float32, float16, w8, ...: what the format can; or all")
    add("--size", type=int, help="px, a multiple of 32; default: the training's")
    add("--out", type=Path, default=Path("outputs/export"), help="folder for the files")
    add(
        "--images",
        default="data/demo",
        help="in Human3.6M's layout: S9 and S11 check, S1 calibrates",
    )
    add("--every", type=int, default=1, help="check with every n-th frame")
    add("--flip", action="store_true", help="onnx: average with the mirrored image")
    add("--normalised", action="store_true", help="onnx: input already normalised")
    add("--overwrite", action="store_true", help="replace files")
    args = parser.parse_args(arguments)
    return exit_status(lambda: print(work(args)))


def work(args: argparse.Namespace) -> str:
    """Exports and checks; the text to print.

    Raises:
        UserError: bad arguments, missing packages, or a file that computes something else.
    """
    if args.to != "onnx" and (args.flip or args.normalised):
        raise UserError(f"--flip and --normalised: for --to onnx only, not {args.to}")
    network, trained = load_network(args.source, args.flip)
    size = args.size or trained
    if size < 32 or size % 32:
        raise UserError(f"--size {size}: expected a multiple of 32 px")
    if args.every < 1:
        raise UserError(f"--every {args.every}: expected at least 1")
    stem = f"{Path(args.source).stem}_{size}"
    if args.to == "onnx":
        return onnx(network, args, size, args.out / f"{stem}.onnx")
    return phones(network, args, size, stem)


def onnx(network: Network2D, args: argparse.Namespace, size: int, target: Path) -> str:
    """The whole network as one graph, checked on generated pictures."""
    if args.precision not in (None, ["float32"]):
        raise UserError(f"--precision {' '.join(args.precision)}: --to onnx writes float32 only")
    make_room(target, args.overwrite)
    module = Exported(network, not args.normalised)
    to_onnx.write(module, target, size)
    worst = dict.fromkeys(ONNX_TOLERANCE, 0.0)
    for count in (1, 3):  # two batches: the first dimension is free
        images = pictures(count, size)
        images = images / 64 - 2 if args.normalised else images
        differences = to_onnx.compare(module, target, images)
        worst = {name: max(worst[name], differences[name]) for name in worst}
    bad = {name: value for name, value in worst.items() if not value <= ONNX_TOLERANCE[name]}
    if bad:
        target.unlink()
        raise UserError(f"{target}: the graph differs from the network ({bad}); not written")
    differences = ", ".join(f"{name} {value:.2g}" for name, value in worst.items())
    return f"{target}: {megabytes(target):.1f} MB; largest differences to eager: {differences}"


def phones(network: Network2D, args: argparse.Namespace, size: int, stem: str) -> str:
    """Backbone and head as packages of one or more precisions, checked on the images."""
    runtime = importlib.import_module(f"ptri.export.to_{args.to}")
    precisions = args.precision or [runtime.PRECISIONS[0]]
    precisions = runtime.PRECISIONS if precisions == ["all"] else precisions
    unknown = [name for name in precisions if name not in runtime.PRECISIONS]
    if unknown:
        known = ", ".join(runtime.PRECISIONS)
        raise UserError(f"--precision {unknown[0]}: --to {args.to} can {known}, or all")
    targets = {name: args.out / f"{stem}_{name}{runtime.SUFFIX}" for name in precisions}
    for target in targets.values():
        make_room(target, args.overwrite)
    calibration = check.read_images(args.images, CALIBRATION, size, every=5).pixels
    images = check.read_images(args.images, TEST, size, args.every)
    expected = check.reference(network, images.pixels)
    module = Exported(network, decoded=False)
    weights, rows = decode.decoder_of(network.reliability), []
    args.out.mkdir(parents=True, exist_ok=True)
    for precision, target in targets.items():
        runtime.write(module, target, size, precision, calibration)
        outputs = runtime.run(target)(images.pixels)
        differences = check.compare(outputs, weights, expected, images)
        if not differences.agrees(precision):
            remove(target)
            raise UserError(f"{target}: differs from PyTorch ({differences}); not written")
        rows.append([target.name, f"{megabytes(target):.2f}", *differences.row()])
    decoder = args.out / f"{stem}_decoder.json"
    decode.write_decoder(decoder, weights, size, list(H36M17.joints))
    error, found = check.accuracy(expected.xy, images)
    rows.append(["PyTorch", "", "", "", "", "", "", f"{error:.2f}", f"{100 * found:.1f} %"])
    count = len(images.pixels)
    title = f"{args.out}: {count} images of {size} px; distances in px to PyTorch and to the truth"
    heads = ["", "MB", *check.HEADS]
    return f"{title}\n\n{grid(heads, rows)}\n\ndecoding: {decoder}"


def make_room(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists; choose another --out or give --overwrite")
    remove(target)


def pictures(count: int, size: int) -> torch.Tensor:
    """Smooth random pictures with some noise, (N, 3, S, S), 0 to 255."""
    generator = torch.Generator().manual_seed(count)
    coarse = 255 * torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    noise = 10 * torch.randn(smooth.shape, generator=generator)
    return (smooth + noise).clamp(0, 255)


if __name__ == "__main__":
    sys.exit(main())
