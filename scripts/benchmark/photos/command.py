"""The 2D network on labelled persons in real photographs, beside other methods' keypoints."""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
from pathlib import Path
from typing import Any

import torch

from benchmark.photos import pictures
from benchmark.photos import scores as scoring
from benchmark.photos.peers import read_peer, write_crops
from benchmark.photos.persons import Crops, Guess, crop_persons, load_network, load_persons, predict
from ptri.errors import UserError
from ptri.evaluation import draw as visualize

DEFAULT = "checkpoints/ptri_2d_s0.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = parser.add_argument
    add("persons", help="JSON of persons (image, bbox, keypoints) or COCO's annotations")
    add("--checkpoint", nargs="+", default=[DEFAULT], metavar="PT", help=f"default {DEFAULT}")
    add("--size", nargs="+", type=int, metavar="PX", help="network image; default: the training's")
    add("--crop-scale", type=float, default=1.0, help="side of the crop / longer side of the box")
    add("--min-keypoints", type=int, default=10, help="labelled ones of COCO's 17, of a person")
    add("--flip", action="store_true", help="average with the mirrored image")
    add("--peer", nargs="+", default=[], metavar="JSON", help="keypoints of scripts/peer_*.py")
    add("--write-crops", metavar="FOLDER", help="only write the crops, for a peer")
    add("--seed", type=int, default=0, help="of the interval")
    add("--threads", type=int, default=1)
    add("--out", default="outputs/benchmark", help="folder for results and pictures")


def run(args: argparse.Namespace) -> str:
    """Scores every network and peer; writes text, JSON and two pictures of each.

    Returns:
        The text to print.

    Raises:
        UserError: unreadable input, or peers of other crops.
    """
    torch.set_num_threads(args.threads)
    if args.crop_scale <= 0 or any(size < 32 or size % 32 for size in args.size or ()):
        raise UserError("--size and --crop-scale: a multiple of 32 px, and a positive number")
    persons = load_persons(args.persons, args.min_keypoints)
    if args.write_crops:
        size = (args.size or [256])[0]
        write_crops(crop_persons(persons, size, args.crop_scale), args.crop_scale,
                    Path(args.write_crops))  # fmt: skip
        return f"{len(persons)} crops of {size} px written to {args.write_crops}/"
    own: dict[str, tuple[Crops, Guess]] = {}
    for path in args.checkpoint:
        network, trained = load_network(path, args.flip)
        for size in args.size or [trained]:
            crops = crop_persons(persons, size, args.crop_scale)
            name = f"{Path(path).stem} {size}{' flip' if args.flip else ''}"
            while name in own:
                name += "'"
            own[name] = (crops, predict(network, crops))
    crops = crop_persons(persons, 256, args.crop_scale)
    peers = {name: (crops, guess) for name, guess in
             (read_peer(path, crops, args.crop_scale) for path in args.peer)}  # fmt: skip
    both = {**own, **peers}
    scores = {name: scoring.score(*pair, args.seed) for name, pair in both.items()}
    rows = scoring.check({n: scores[n] for n in own}, {n: scores[n] for n in peers})
    count = next(iter(scores.values()))["count"]
    head = (
        f"{len(persons)} persons in {len(set(crops.photos))} photographs, {count} labelled joints; "
        f"crops of {args.crop_scale:g} x the box's longer side; percent"
    )
    text = "\n".join([head, scoring.table(scores), "", scoring.target_lines(rows)])
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, pair in both.items():
        plain = re.sub(r"[^\w.-]+", "_", name)
        visualize.save(pictures.contact_sheet(*pair), folder / f"photos_{plain}_sheet.png")
        visualize.save(pictures.worst(*pair), folder / f"photos_{plain}_worst.png")
    (folder / "photos.txt").write_text(text + "\n")
    settings = {**vars(args), "python": platform.python_version(), "torch": torch.__version__}
    content = {
        "settings": settings,
        "persons": crops.names,
        "targets": rows,
        "methods": {
            name: {
                **figures,
                "person_errors": dict(
                    zip(crops.names, scoring.person_errors(*both[name]).round(4).tolist())
                ),
            }
            for name, figures in scores.items()
        },
    }
    (folder / "photos.json").write_text(json.dumps(_plain(content), indent=1))
    return f"{text}\n\nwritten: photos.txt, photos.json, two pictures of each in {folder}/"


def _plain(value: Any) -> Any:
    """NaN and infinity become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
