"""Prepares and checks a Human3.6M tree.

python scripts/prepare_h36m.py check ROOT     what is there, what is missing, three overlays
python scripts/prepare_h36m.py convert ROOT   labels .npy -> .h5 (safe, opens faster, smaller)
python scripts/prepare_h36m.py build ROOT     labels from h36m-fetch and una-dinosauria files

ROOT holds extra/ (labels) and processed/S*/<Action>/imageSequence[-undistorted]/<camera>/*.jpg.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ptri.config import DataConfig
from ptri.data import h36m
from ptri.data.h36m_build import build_labels
from ptri.data.labels import H5_NAME, NPY_NAME, read_labels, write_h5, write_npy
from ptri.errors import UserError, exit_status
from ptri.evaluation import data_report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="what is there and what is missing")
    check.add_argument("--read", action="store_true", help="look for truncated images too")
    check.add_argument("--out", default="runs/check_h36m", help="folder of the overlays")
    convert = commands.add_parser("convert", help="labels .npy -> .h5")
    build = commands.add_parser("build", help="labels where the .npy is missing")
    build.add_argument("--una", help="the una-dinosauria folder h36m/ with cameras.h5")
    build.add_argument("--npy", action="store_true", help="write the .npy form as well")
    for command in (check, convert, build):
        command.add_argument("root", help="the data set's folder")
    for command in (convert, build):
        command.add_argument("--overwrite", action="store_true", help="replace existing labels")
    args = parser.parse_args(arguments)
    commands = {"check": run_check, "convert": run_convert, "build": run_build}
    return exit_status(lambda: commands[args.command](args))


def run_convert(args: argparse.Namespace) -> int:
    source, target = (Path(args.root) / "extra" / name for name in (NPY_NAME, H5_NAME))
    if not source.is_file():
        raise UserError(f"{source}: no such file; expected the learnable-triangulation labels")
    _refuse_existing([target], args.overwrite)
    labels = read_labels(source)
    write_h5(target, labels)
    before, after = (path.stat().st_size / 1e6 for path in (source, target))
    print(f"{target}: {len(labels.frame)} frames, {before:.1f} MB -> {after:.1f} MB")
    return 0


def run_build(args: argparse.Namespace) -> int:
    extra = Path(args.root) / "extra"
    _refuse_existing([extra / H5_NAME, extra / NPY_NAME], args.overwrite)
    labels = build_labels(args.root, args.una)
    write_h5(extra / H5_NAME, labels)
    if args.npy:
        write_npy(extra / NPY_NAME, labels)
    print(
        f"{extra / H5_NAME}: {len(labels.frame)} frames of {', '.join(labels.subject_names)}; "
        f"look at them with: python scripts/prepare_h36m.py check {args.root}"
    )
    return 0


def _refuse_existing(paths: list[Path], overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists already; give --overwrite to replace it")


def run_check(args: argparse.Namespace) -> int:
    """Prints the report; 0 if the tree is complete, 1 if not."""
    index = h36m.choose_frames(DataConfig(root=args.root), "all", min_views=1)
    print(f"images    {h36m.FOLDERS[index.images.undistorted]}")
    return data_report.check(index, args.read, Path(args.out))


if __name__ == "__main__":
    sys.exit(main())
