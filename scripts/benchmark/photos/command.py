"""The 2D network on labelled persons in real photographs, beside other methods' keypoints."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from benchmark.figures import targets_table
from benchmark.photos import pictures, scores
from benchmark.photos.peers import read_peer, write_crops
from benchmark.photos.persons import Crops, Guess, crop_persons, load_network, predict
from benchmark.results import write_results
from ptri.data.annotations import choose_persons
from ptri.errors import UserError
from ptri.evaluation import draw

DEFAULT = "checkpoints/ptri_2d_s0.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    torch.set_num_threads(args.threads)
    if args.crop_scale <= 0 or any(size < 32 or size % 32 for size in args.size or ()):
        raise UserError("--size and --crop-scale: a multiple of 32 px, and a positive number")
    persons = choose_persons(args.persons, args.min_keypoints)
    if args.write_crops:
        size = (args.size or [256])[0]
        crops = crop_persons(persons, size, args.crop_scale)
        write_crops(crops, args.crop_scale, Path(args.write_crops))
        return f"{len(crops.names)} crops of {size} px written to {args.write_crops}/"
    networks: dict[str, tuple[Crops, Guess]] = {}
    for path in args.checkpoint:
        network, trained = load_network(path, args.flip)
        for size in args.size or [trained]:
            crops = crop_persons(persons, size, args.crop_scale)
            name = f"{Path(path).stem} {size}{' flip' if args.flip else ''}"
            while name in networks:
                name += "'"
            networks[name] = (crops, predict(network, crops))
    crops = crop_persons(persons, 256, args.crop_scale)
    guesses = dict(read_peer(path, crops, args.crop_scale) for path in args.peer)
    answers = {**networks, **{name: (crops, guess) for name, guess in guesses.items()}}
    figures = {name: scores.score(*answer, args.seed) for name, answer in answers.items()}
    rows = scores.check({n: figures[n] for n in networks}, {n: figures[n] for n in guesses})
    count = next(iter(figures.values()))["count"]
    head = (
        f"{len(crops.names)} persons in {len(set(crops.photos))} photographs, {count} labelled "
        f"joints; crops of {args.crop_scale:g} x the box's longer side; percent"
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
