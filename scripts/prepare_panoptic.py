"""Checks a CMU Panoptic tree: what is there, what is missing, three overlays.

python scripts/prepare_panoptic.py check ROOT

ROOT holds <sequence>/calibration_<sequence>.json, hdPose3d_stage1_coco19/ and hdImgs/ or hdVideos/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from ptri.config import DataConfig
from ptri.data import panoptic
from ptri.data.panoptic_files import (
    Sequence,
    bone_lengths,
    check_units,
    inside_shares,
    read_sequence,
    sequence_names,
    upright,
)
from ptri.errors import UserError, exit_status
from ptri.evaluation import data_report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="what is there and what is missing")
    check.add_argument("root", help="the folder of the sequences")
    check.add_argument("--read", action="store_true", help="look for truncated images too")
    check.add_argument("--person", type=int, help="id of who counts in frames with several people")
    check.add_argument("--out", default="runs/check_panoptic", help="folder of the overlays")
    args = parser.parse_args(arguments)
    return exit_status(lambda: run_check(args))


def run_check(args: argparse.Namespace) -> int:
    """Prints the report; 0 if the tree is complete, 1 if not."""
    root = Path(args.root)
    images, names, broken = panoptic.Images(root), sequence_names(root), 0
    for name in names:
        try:
            sequence = read_sequence(root, name)
            print(describe(sequence, images), flush=True)
            check_units(sequence)
        except UserError as error:  # the others are still looked at
            print(f"{name}: cannot be used: {error}", flush=True)
            broken += 1
    print()
    if broken:
        print(f"{broken} of {len(names)} sequences cannot be used; mend or remove them")
        return 1
    data = DataConfig(kind="panoptic", root=args.root, person=args.person)
    absent = [n for n in [*data.train_sequences, *data.test_sequences] if n not in names]
    if absent:
        print(f"not here  {', '.join(absent)} (of data.train_sequences and data.test_sequences)")
    index = panoptic.choose_frames(data, "all", min_views=1)
    return data_report.check(index, args.read, Path(args.out))


def describe(sequence: Sequence, images: panoptic.Images) -> str:
    """What a sequence holds, and whether its bodies are people in front of its cameras."""
    names, count = sequence.camera_names, len(sequence.frame)
    there = [name for name in names if images.any_of(sequence.name, name)]
    _, per_frame = np.unique(sequence.frame, return_counts=True)
    shares = inside_shares(sequence)
    crowded, empty = (per_frame > 1).sum(), sequence.num_frames - len(per_frame)
    bones = ", ".join(f"{bone} {mm / 10:.1f}" for bone, mm in bone_lengths(sequence).items())
    lines = [
        f"{sequence.name}: {sequence.num_frames} frames, {crowded} with several people, {empty} "
        f"with nobody; {count} bodies of {len(set(sequence.person))} ids, {sequence.skeleton.name}",
        f"  cameras  {len(names)} HD; images of {len(there)}"
        + (f": {', '.join(there)}" if 0 < len(there) < len(names) else ""),
        f"  joints   {100 * shares.mean():.0f} % of those known project into the images, least "
        f"{100 * shares.min():.0f} % (camera {names[int(shares.argmin())]})",
        f"  bones    {bones} cm (medians)",
        f"  upright  {100 * upright(sequence):.0f} % of the bodies",
    ]
    return "\n".join(lines if count else lines[:2])


if __name__ == "__main__":
    sys.exit(main())
