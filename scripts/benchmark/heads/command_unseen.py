"""All heads on rig families that training never saw, beside the targets; trains nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmark.heads import tables
from benchmark.heads.unseen import VIEWS, check_families, make_rig_sets
from benchmark.heads.weights import describe, evaluate, load_head, make_solver, named_heads
from benchmark.results import write_results
from ptri.errors import UserError

WEIGHTS = "checkpoints/ptri_3d.pt"
FOLDER = "checkpoints/ablations"
OURS = "ours"
DETECTOR = "configs/detector_s0.yaml"  # detections err as the shipped 2D network's do
RIGS, CLIPS = 64, 16  # of a family: of one frame, of 27
_QUICK = (6, 1)
SPEED = "images in, joints out, <= 50 ms a frame: printed by make demo, not measured here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rigs", type=int, help=f"rigs of each family at T = 1 ({RIGS})")
    add("--clips", type=int, help=f"rigs of each family at T = 27 ({CLIPS})")
    add("--seed", type=int, default=0)
    add("--ours", metavar="FILE", default=WEIGHTS, help="weights of lifter and fusion")
    add("--heads", nargs="*", default=[], metavar="NAME=FILE", help=f"beside those of {FOLDER}")
    errors = f"settings, such as the detections' ({DETECTOR}; '': errors at their defaults)"
    add("--config", metavar="YAML", default=DETECTOR, help=errors)
    add("--set", nargs="*", default=[], metavar="section.key=value", help="change them")
    add("--quick", action="store_true", help="few rigs: a minute or two, wide intervals")
    add("--out", default="outputs/benchmark", help="folder for tables, JSON and solved rigs")
    add("--threads", type=int, default=1)


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    rigs, clips = _QUICK if args.quick else (RIGS, CLIPS)
    counts = {1: args.rigs or rigs, 27: args.clips or clips}
    if min(counts.values()) < 1:
        raise UserError(f"--rigs {counts[1]}, --clips {counts[27]}: at least 1")
    solver, config = make_solver(args.ours, args.config or None, args.set)
    check_families(config)
    heads = [load_head(OURS, args.ours, config)]
    heads += named_heads(args.heads, Path(FOLDER), config)
    solved = Path(args.out) / "unseen_solved"
    head_scores = evaluate(heads, make_rig_sets(), counts, solver, config, args.seed, solved)
    rows = tables.targets(head_scores, OURS)
    note = f"{counts[1]} rigs of each family at T = 1, {counts[27]} at T = 27; {SPEED}"
    figures = tables.figures(head_scores)
    text = tables.report(figures, rows, OURS, note)
    chosen = {"rigs": counts[1], "clips": counts[27], "views": VIEWS, "heads": describe(heads)}
    return write_results(args, "unseen", text, tables.to_json(head_scores, figures, rows), **chosen)
