"""2D detectors on labelled persons in real photographs, beside other methods' keypoints."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from detector_errors.named import WEIGHTS, named_detector

from benchmark.figures import targets_table
from benchmark.photos import pictures, scores
from benchmark.photos.peers import read_peer, write_crops
from benchmark.photos.persons import Crops, Guess, crop_persons, predict
from benchmark.results import write_results
from ptri.data.annotations import choose_persons
from ptri.detectors.protocol import PoseDetector
from ptri.errors import UserError
from ptri.evaluation import draw


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("persons", help="JSON of persons (image, bbox, keypoints) or COCO's annotations")
    text = "as detector.name, or multipose (MoveNet's network for several persons)"
    add(
        "--detector", nargs="+", default=["movenet", "multipose", "ours"], metavar="NAME", help=text
    )
    add("--checkpoint", nargs="+", metavar="PT", help="weights of ours; default: the shipped")
    add("--size", nargs="+", type=int, metavar="PX", help="crops of ours; default: the training's")
    text = "side of the crop / longer side of the box; default: the detector's own"
    add("--crop-scale", type=float, help=text)
    add("--min-keypoints", type=int, default=10, help="labelled ones of COCO's 17, of a person")
    add("--flip", action="store_true", help="ours: average with the mirrored image")
    add("--peer", nargs="+", default=[], metavar="JSON", help="keypoints of scripts/peer_*.py")
    add("--write-crops", metavar="FOLDER", help="only write the crops, for a peer")
    add("--seed", type=int, default=0, help="of the interval")
    add("--threads", type=int, default=1)
    add("--out", default="outputs/benchmark", help="folder for results and pictures")


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    scale = 1.0 if args.crop_scale is None else args.crop_scale
    if scale <= 0 or any(size < 32 or size % 32 for size in args.size or ()):
        raise UserError("--size and --crop-scale: a multiple of 32 px, and a positive number")
    persons = choose_persons(args.persons, args.min_keypoints)
    if args.write_crops:
        size = (args.size or [256])[0]
        crops = crop_persons(persons, size, scale)
        write_crops(crops, scale, Path(args.write_crops))
        return f"{len(crops.names)} crops of {size} px written to {args.write_crops}/"
    networks: dict[str, tuple[Crops, Guess]] = {}
    for name, detector in _detectors(args):
        own = args.crop_scale or detector.crop_scale
        crops = crop_persons(persons, detector.image_size, own)
        networks[name] = (crops, predict(detector, crops))
    crops = crop_persons(persons, 256, scale)
    guesses = dict(read_peer(path, crops, scale) for path in args.peer)
    answers = {**networks, **{name: (crops, guess) for name, guess in guesses.items()}}
    figures = {name: scores.score(*answer, args.seed) for name, answer in answers.items()}
    rows = scores.check({n: figures[n] for n in networks}, {n: figures[n] for n in guesses})
    count = next(iter(figures.values()))["count"]
    head = (
        f"{len(crops.names)} persons in {len(set(crops.photos))} photographs, {count} labelled "
        f"joints; percent"
    )
    text = "\n".join([head, scores.table(figures), "", targets_table("Targets", rows)])
    methods = {}
    for name, answer in answers.items():
        plain = Path(args.out) / ("photos_" + re.sub(r"[^\w.-]+", "_", name))
        draw.save(pictures.contact_sheet(*answer), Path(f"{plain}_sheet.png"))
        draw.save(pictures.worst(*answer), Path(f"{plain}_worst.png"))
        person_errors = scores.person_errors(*answer).round(4).tolist()
        methods[name] = {**figures[name], "person_errors": dict(zip(crops.names, person_errors))}
    targets = [row.to_json() for row in rows]
    content = {"persons": crops.names, "targets": targets, "methods": methods}
    return write_results(args, "photos", text, content, "two pictures of each")


def _detectors(args: argparse.Namespace) -> Iterator[tuple[str, PoseDetector]]:
    """What to call it, and the detector.

    Raises:
        UserError: no such detector, or weights that are missing or corrupt.
    """
    taken = set()
    for name in args.detector:
        ours = name == "ours"
        for path in (args.checkpoint if ours else None) or [None]:
            for size in (args.size if ours else None) or [0]:
                detector = named_detector(name, path, size, args.flip)
                label = name
                if ours:
                    stem = Path(path or WEIGHTS[name]).stem
                    label = f"{stem} {detector.image_size}{' flip' if args.flip else ''}"
                while label in taken:
                    label += "'"
                taken.add(label)
                yield label, detector
