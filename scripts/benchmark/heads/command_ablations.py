"""Trains every head of configs/ablations with the same budget, then evaluates all of them."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from export_weights import export
from tqdm import tqdm

from benchmark.heads import tables
from benchmark.heads.unseen import check_families, make_rig_sets
from benchmark.heads.weights import describe, evaluate, load_head, make_solver
from benchmark.results import write_results
from ptri import checkpoint
from ptri import config as configuration
from ptri.config import Config, load
from ptri.errors import UserError
from ptri.evaluation.outputs import run_folder
from ptri.training import engine
from ptri.training.task3d import RigTask

CONFIGS = "configs/ablations"
OURS = "fusion"
EPOCHS = 10  # a checkpoint after each
RIGS, CLIPS = 64, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--heads", nargs="+", metavar="NAME", help=f"YAML files of {CONFIGS}; default: all")
    add("--steps", type=int, default=4800, help="of every head, 32 scenes each")
    add("--scenes", type=int, default=8192, help="of the pool that heads with cameras train on")
    add("--rigs", type=int, default=RIGS, help="evaluated, of each family at T = 1")
    add("--clips", type=int, default=CLIPS, help="evaluated, of each family at T = 27")
    add("--seed", type=int, default=0)
    add("--set", nargs="*", default=[], metavar="section.key=value", help="of every head")
    add("--weights", metavar="FOLDER", help="also write the heads' weights there, in fp16")
    add("--fresh", action="store_true", help="train again what is trained")
    add("--out", default="outputs/ablations", help="folder for pool, runs, tables and JSON")
    add("--threads", type=int, default=1)


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    if min(args.steps, args.scenes, args.rigs, args.clips) < 1:
        raise UserError("--steps, --scenes, --rigs, --clips: at least 1 each")
    folder = Path(args.out)
    plans = [_settings(path, args, folder) for path in _files(args.heads)]
    seconds = {}
    for plan in tqdm(plans, desc="heads", unit="head", disable=None):
        seconds[plan.run.name] = _train(plan, args.fresh, folder)
    first = plans[0]
    check_families(first)
    solver, config = make_solver(str(first.init.checkpoint_3d), None, args.set)
    heads = []
    for plan in plans:
        path = run_folder(plan) / "last.pt"
        heads.append(load_head(plan.run.name, path, config))
        if args.weights:
            export(path, Path(args.weights) / f"{plan.run.name}.pt", True, "fusion.")
    counts = {1: args.rigs, 27: args.clips}
    head_scores = evaluate(
        heads, make_rig_sets(), counts, solver, config, args.seed, folder / "solved"
    )
    rows = tables.targets(head_scores, OURS)
    times = ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items())
    note = (
        f"{args.steps} steps of every head, pool of {args.scenes} scenes; {args.rigs} rigs of each "
        f"family at T = 1, {args.clips} at T = 27; minutes of training: {times}"
    )
    figures = tables.figures(head_scores)
    text = tables.report(figures, rows, OURS, note)
    chosen = {"heads": describe(heads), "training_seconds": seconds}
    content = tables.to_json(head_scores, figures, rows)
    return write_results(args, "ablations", text, content, **chosen)


def _files(names: list[str] | None) -> list[Path]:
    files = {path.stem: path for path in sorted(Path(CONFIGS).glob("*.yaml"))}
    for name in names or []:
        if name not in files:
            raise UserError(f"--heads: no {name}.yaml in {CONFIGS}; there are {', '.join(files)}")
    chosen = names or list(files)
    return [files[name] for name in sorted(chosen, key=lambda name: name != OURS)]


def _settings(path: Path, args: argparse.Namespace, folder: Path) -> Config:
    """A head's configuration with the common budget."""
    epochs = min(EPOCHS, args.steps)
    if args.steps % epochs:
        raise UserError(f"--steps {args.steps}: must be a multiple of {EPOCHS}")
    budget = [
        f"run.out={folder / 'runs'}",
        f"run.seed={args.seed}",
        f"run.threads={args.threads}",
        f"train.epochs={epochs}",
        f"train.steps_per_epoch={args.steps // epochs}",
        f"train.validate_every_epochs={epochs}",
    ]
    plan = load(path, budget)
    if plan.generated.pool is not None:
        pool = [f"generated.pool={folder / 'pool.pt'}", f"generated.pool_scenes={args.scenes}"]
        budget += pool
    return load(path, [*budget, *args.set])


def _train(plan: Config, fresh: bool, folder: Path) -> float:
    """Trains or continues a head; returns the seconds of all its runs."""
    run = run_folder(plan)
    log = folder / "seconds.json"
    seconds = json.loads(log.read_text()) if log.is_file() else {}
    begun = (run / "last.pt").is_file()
    if begun and not fresh:
        saved = checkpoint.load(run / "last.pt")
        _check_same(run, saved["config"], configuration.to_dict(plan))
        if saved["epoch"] >= plan.train.epochs:
            return seconds.get(plan.run.name, float("nan"))
    start, resume = time.perf_counter(), begun and not fresh
    before = seconds.get(plan.run.name, 0.0) if resume else 0.0
    try:
        engine.fit(RigTask(plan), resume=resume, overwrite=not resume)
    finally:  # also where it is stopped, to go on later
        seconds[plan.run.name] = before + time.perf_counter() - start
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(json.dumps(seconds, indent=1) + "\n")
    return seconds[plan.run.name]


def _check_same(run: Path, old: dict, new: dict) -> None:
    """Raises UserError where a run was begun with other settings."""
    for section in ("generated", "posterior", "model", "train", "init"):
        for key, value in new[section].items():
            before = old.get(section, {}).get(key, value)  # of an earlier version, without the key
            if before != value and key != "pool":
                raise UserError(
                    f"{run}: begun with {section}.{key}={before!r}, now {value!r}; use the same "
                    "settings, another --out, or --fresh to train again"
                )
