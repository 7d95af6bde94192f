"""Prepares and checks a Human3.6M tree.

python scripts/prepare_h36m.py check ROOT     what is there, what is missing, three overlays
python scripts/prepare_h36m.py convert ROOT   labels .npy -> .h5 (safe, opens faster, smaller)
python scripts/prepare_h36m.py build ROOT     labels from h36m-fetch and una-dinosauria files

ROOT holds extra/ (labels) and processed/S*/<Action>/imageSequence[-undistorted]/<camera>/*.jpg.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from ptri.config import DataConfig
from ptri.data import h36m_index
from ptri.data.h36m import H36M
from ptri.data.h36m_build import build_labels
from ptri.data.h36m_index import Index
from ptri.data.labels import H5_NAME, NPY_NAME, read_labels, write_h5, write_npy
from ptri.errors import UserError, exit_status
from ptri.evaluation import draw as visualize
from ptri.evaluation.table import grid
from ptri.skeleton import H36M17

IMAGES = {"image_size": 384, "crop_scale": 1.2}  # of the overlays


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
    index = h36m_index.choose_frames(DataConfig(root=args.root, **IMAGES), "all", min_views=1)
    labels = index.labels
    print(f"labels    {index.source}: {len(labels.frame)} frames")
    print(f"subjects  {', '.join(labels.subject_names)}")
    print(f"cameras   {', '.join(labels.camera_names)}")
    print(f"images    {h36m_index.FOLDERS[index.undistorted]}, {index.seen.sum()} labelled")
    h36m_index.check_labels(index)
    share = h36m_index.joints_in_boxes(index)
    print(f"joints    {100 * share:.1f} % project into 1.5 x their box")
    missing = h36m_index.missing_images(index)
    print()
    print(count_table(index, missing))
    problems = [f"missing: {path}" for path in missing]
    if args.read:
        gone = set(map(str, missing))
        reports = h36m_index.damaged_images(index)
        problems += [text for text in reports if text.partition(":")[0] not in gone]
    print()
    for path in write_overlays(index, set(missing), Path(args.out)):
        print(f"overlay   {path}")
    for problem in problems[:20]:
        print(problem)
    if len(problems) > 20:
        print(f"... and {len(problems) - 20} more")
    print(f"{len(problems)} problems" if problems else "complete")
    return 1 if problems else 0


def count_table(index: Index, missing: list[Path]) -> str:
    """Labelled frames per action and subject; in brackets the missing images."""
    labels = index.labels
    counts = Counter(zip(labels.subject[index.rows], labels.action[index.rows]))
    gone = Counter((path.parts[-5], path.parts[-4]) for path in missing)
    present = [s for s in range(len(labels.subject_names)) if any(k[0] == s for k in counts)]
    rows = []
    for a, action in enumerate(labels.action_names):
        cells = []
        for s in present:
            number = gone[(labels.subject_names[s], action)]
            cells.append(f"{counts[(s, a)] or '-'}" + (f" ({number} missing)" if number else ""))
        rows.append([action, *cells, str(sum(counts[(s, a)] for s in present))])
    totals = [sum(n for key, n in counts.items() if key[0] == s) for s in present]
    rows.append(["all", *map(str, totals), str(sum(totals))])
    return grid(["", *(labels.subject_names[s] for s in present), "all"], rows)


def write_overlays(index: Index, missing: set[Path], out: Path, number: int = 3) -> list[Path]:
    """Writes pictures of frames spread over the index, all views with the projected skeleton."""
    dataset = H36M(index, DataConfig(**IMAGES))
    complete = [
        item
        for item in np.linspace(0, len(dataset) - 1, min(len(dataset), 30)).astype(int)
        if missing.isdisjoint(
            index.image_path(index.rows[item], index.cameras[view])
            for view in np.flatnonzero(index.seen[item])
        )
    ]
    chosen = [complete[i] for i in np.linspace(0, len(complete) - 1, number).astype(int)]
    paths = []
    for item in dict.fromkeys(chosen if complete else []):
        try:
            sample = dataset[int(item)]
        except UserError as error:  # a damaged image: told, and the others still shown
            print(f"overlay   none of {error}")
            continue
        name = h36m_index.frame_name(index.labels, dataset.row(item))
        views = np.flatnonzero(index.seen[item])
        pictures = [
            visualize.overlay(
                visualize.denormalise(image.numpy()),
                H36M17,
                xy.numpy(),
                title=f"{name}, {index.labels.camera_names[index.cameras[view]]}",
            )
            for image, xy, view in zip(sample.images, sample.joints2d, views)
        ]
        path = out / (name.replace("/", "_").replace(" ", "_") + ".jpg")
        visualize.save(visualize.beside(pictures), path)
        paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(main())
