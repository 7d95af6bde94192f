"""What each factor of the rendered images buys on photographs: equal budgets without one each."""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark import photos_scores
from benchmark.photos import crop_persons, load_network, load_persons, predict
from ptri import config as configuration
from ptri.config import Config
from ptri.data.labels import NPY_NAME
from ptri.errors import UserError
from ptri.evaluation.outputs import run_folder, write_json
from ptri.training import engine
from ptri.training.task2d import HeatmapTask

CONFIG = "configs/rendered_2d_s0.yaml"
ALL = "all factors"
# name -> (what it says, settings of the images, of the augmentation)
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {
    "all": (ALL, {}, {}),
    "clothes": ("only tight shirts and shorts", {"clothed": 0.0}, {}),
    "backgrounds": (
        "no backgrounds: bare rooms",
        {"background_share": 0.0, "collages": 0.0, "clutter": 0},
        {},
    ),
    "occluders": (
        "nothing in the way",
        {"occluders": 0.0, "held": 0.0, "second_person": 0.0},
        {"occluder": 0.0},
    ),
    "colours": (
        "no colour augmentation",
        {},
        {"color": 0.0, "hue": 0.0, "gamma": 0.0, "grey": 0.0, "channels": 0.0},
    ),
}
TRAIN, TEST = (1, 5, 6, 7), 8
SIZE = 288  # px of the images written, as configs/render.yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the subcommand."""
    add = parser.add_argument
    add("persons", help="JSON of persons (image, bbox, keypoints) or COCO's annotations")
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="default: all five")
    add("--images", type=int, default=2000, help="of each of the four crowds that are trained on")
    add("--test-images", type=int, default=500, help="with all factors, of a fifth crowd")
    add("--epochs", type=int, default=2, help="over the row's images")
    add("--size", type=int, default=128, help="px of the network")
    add("--seed", type=int, default=0)
    add("--render", nargs="*", default=[], metavar="key=value", help="of all rows' images, such as "
        "garments=FOLDER backgrounds=FOLDER mocap=FILE")  # fmt: skip
    add("--set", nargs="*", default=[], metavar="section.key=value", help="of all rows' training")
    add("--out", default="outputs/factors", help="folder for images, runs, table and JSON")
    add("--threads", type=int, default=1)


def run(args: argparse.Namespace) -> str:
    """Renders and trains what is not there yet; scores every row on photographs and renders.

    Rows that other calls with the same folder made are in the table too, so that two processes may
    share the work.

    Returns:
        The text to print.

    Raises:
        UserError: unreadable photographs, bad settings, or a folder made with others.
        ImportError: the `render` extra is not installed.
    """
    torch.set_num_threads(args.threads)
    persons = load_persons(args.persons)
    folder = Path(args.out)
    settings = {name: getattr(args, name) for name in ("images", "epochs", "size", "seed")}
    settings |= {"render": args.render, "set": args.set}
    crops = crop_persons(persons, args.size)
    for name in args.rows:
        found = folder / f"{name}.json"
        if found.is_file():
            _check_same(found, settings)
            continue
        start = time.perf_counter()
        plan = _train(name, args, folder)
        seconds = time.perf_counter() - start
        best = run_folder(plan) / "last.pt"
        network, _ = load_network(best)
        guess = predict(network, crops)
        held_out = json.loads((run_folder(plan) / "metrics.jsonl").read_text().splitlines()[-1])
        content = {
            "settings": settings,
            "photos": photos_scores.score(crops, guess, args.seed),
            "right": photos_scores.right(crops, guess, 0.2).tolist(),
            "labelled": crops.labelled.tolist(),
            "photos_of": list(crops.photos),
            "held_out": {key: value for key, value in held_out.items() if "/" in key},
            "seconds": seconds, "python": platform.python_version(), "torch": torch.__version__,
        }  # fmt: skip
        write_json(found, content)
    done = {n: json.loads((folder / f"{n}.json").read_text())
            for n in ROWS if (folder / f"{n}.json").is_file()}  # fmt: skip
    text = _table(done, args)
    (folder / "factors.txt").write_text(text + "\n")
    return f"{text}\n\nwritten: factors.txt in {folder}/"


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    before = json.loads(path.read_text())["settings"]
    for key, value in settings.items():
        if before[key] != value:
            raise UserError(
                f"{path}: made with {key} {before[key]!r}, now {value!r}; use the same settings, "
                "or another --out"
            )


def _train(name: str, args: argparse.Namespace, folder: Path) -> Config:
    """Renders a row's images and trains on them; returns the run's configuration."""
    _, images, augment = ROWS[name]
    # Rows that differ in nothing but augmentation share images.
    root = folder / "images" / (name if images else "all")
    _render(root, args, images, TRAIN, args.images)
    test = folder / "images" / "test"
    _render(test, args, {}, (TEST,), args.test_images)
    steps = 4 * args.images // 32
    plan = configuration.load(
        CONFIG,
        [
            f"run.name={name}", f"run.out={folder / 'runs'}", f"run.seed={args.seed}",
            f"run.threads={args.threads}", f"data.root={root}", f"data.test_root={test}",
            "data.test_every=1", f"data.image_size={args.size}", "data.workers=0",
            f"train.epochs={args.epochs}", f"train.steps_per_epoch={steps}", "train.image_sizes=[]",
            f"train.validate_every_epochs={args.epochs}", "train.lr=1.5e-3", "train.batch_size=32",
            "train.warmup_steps=50", "train.ema_decay=0.99", "evaluate.pictures=0",
            *(f"augment.{key}={value}" for key, value in augment.items()), *args.set,
        ],
    )  # fmt: skip
    resume = (run_folder(plan) / "last.pt").is_file()
    engine.fit(HeatmapTask(), plan, resume=resume, overwrite=not resume)
    return plan


def _render(
    root: Path, args: argparse.Namespace, changes: dict, subjects: tuple[int, ...], images: int
) -> None:
    """Writes a data set unless it is complete."""
    from ptri.render.layout import render_dataset
    from ptri.render.settings import RenderSettings, settings_from

    if (root / "extra" / NPY_NAME).is_file():
        return
    base = RenderSettings(mode="single", size=SIZE, quality=88, seed=args.seed + 1)
    given = dict(item.split("=", 1) for item in args.render if "=" in item)
    if len(given) != len(args.render):
        raise UserError("--render: expected key=value, such as garments=FOLDER")
    crowds = tuple(f"S{number}" for number in subjects)
    fixed = {**changes, "out": str(root), "images": images, "subjects": crowds}
    render_dataset(replace(settings_from(given, base), **fixed))


def _table(done: dict[str, dict], args: argparse.Namespace) -> str:
    """PCK on photographs with the paired difference to all factors, and errors on renders."""
    count = 4 * args.images
    lines = [
        f"{count} images of every row, {args.epochs} passes, {args.size} px, seed {args.seed}; "
        "photographs: PCK of the torso, percent, and the difference to all factors with its 90 % "
        "interval over photographs;",
        f"renders: all factors, people not trained on ({args.test_images})",
        f"{'':<38}{'@0.1':>7}{'@0.2':>7}{'difference @0.2':>24}{'renders: mean px':>18}"
        f"{'median':>8}{'exchanged %':>13}",
    ]  # fmt: skip
    base = done.get("all")
    for name, found in done.items():
        photos, held_out = found["photos"], found["held_out"]
        gap = "" if base is None or name == "all" else _gap(found, base, args.seed)
        tenth, fifth = 100 * photos["pck10_torso"], 100 * photos["pck20_torso"]
        lines.append(
            f"{ROWS[name][0]:<38}{tenth:>7.1f}{fifth:>7.1f}{gap:>24}"
            f"{held_out['x2d/l2']:>18.1f}{held_out['x2d/median']:>8.1f}"
            f"{100 * held_out['x2d/swapped']:>13.1f}"
        )
    return "\n".join(lines)


def _gap(found: dict, base: dict, seed: int) -> str:
    """Difference of PCK@0.2 in percent with its 90 % interval, photographs drawn again."""
    labelled = np.array(base["labelled"])
    change = (np.array(found["right"], float) - np.array(base["right"], float)) * labelled
    _, group = np.unique(base["photos_of"], return_inverse=True)
    gain, of = (np.bincount(group, part.sum(1)) for part in (change, labelled))
    drawn = np.random.default_rng(seed).integers(len(of), size=(2000, len(of)))
    low, high = np.percentile(100 * gain[drawn].sum(1) / of[drawn].sum(1), (5, 95))
    return f"{100 * gain.sum() / of.sum():+.1f} [{low:+.1f}, {high:+.1f}]"
