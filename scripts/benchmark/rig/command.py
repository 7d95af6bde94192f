"""Accuracy, honesty and verdict of the rig posterior beside other methods and bounds."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmark.figures import targets_table
from benchmark.results import write_results
from benchmark.rig import plots, tables
from benchmark.rig.cases import People
from benchmark.rig.grid import FRAMES, GRIDS, METHODS, make_grid
from benchmark.rig.run import Options, run_grid
from benchmark.rig.targets import check
from benchmark.rigs import GROUPS, NAMES, choose
from ptri.errors import UserError

_QUICK = {
    "families": ["ring4", "wall"],
    "frames": [1, 10],
    "cases": 16,
    "methods": ["ours", "ours-geometry", "opencv", "ba-fivepoint-cauchy", "calibrated"],
}
_TARGETS = "Targets; in brackets the worst family of those pooled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--families", nargs="+", metavar="NAME", help=f"of {', '.join((*GROUPS, *NAMES))}")
    add("--frames", nargs="+", type=int, metavar="T", help=f"default {FRAMES}")
    add("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(METHODS)}")
    add("--grid", default="targets", choices=GRIDS, help="noise and outliers: see make_grid")
    add("--cases", type=int, metavar="N", help="at T = 1; a half at 10, a quarter at 50 (100)")
    add("--seed", type=int, default=0)
    add("--fps", type=float, help="of all cells; 0: frames minutes apart (see rig/cases.py)")
    add("--mocap", metavar="NPZ", help="motion capture instead of generated postures")
    add("--bone-spread", type=float, default=People().bone_spread, help="relative")
    add("--stated", type=float, default=3.0, help="px that methods are told; 0: the true noise")
    add("--config", metavar="YAML", help="settings of our own estimator")
    add("--set", nargs="*", default=[], metavar="section.key=value", help="change them")
    add("--quick", action="store_true", help="fewer families, frames, cases and methods")
    add("--fresh", action="store_true", help="do not take earlier results from the folder")
    add("--out", default="outputs/benchmark", help="folder for results, tables and pictures")
    add("--threads", type=int, default=1)
    add("--jobs", type=int, default=1, help="processes; times are then those of a busy machine")


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    full = {"families": ["held-out"], "frames": FRAMES, "cases": 100, "methods": METHODS}
    default = _QUICK if args.quick else full
    families = choose(args.families or default["families"])
    methods = tuple(args.methods or default["methods"])
    if "calibrated" not in methods:
        methods = (*methods, "calibrated")  # the structure's errors are relative to it
    frames = tuple(args.frames or default["frames"])
    count = args.cases or default["cases"]
    if count < 2 or min(frames) < 1:
        raise UserError(f"--cases {count}, --frames {frames}: at least 2 cases and 1 frame")
    grid = make_grid(families, frames, methods, args.grid, args.fps)
    people = People(args.mocap, bone_spread=args.bone_spread)
    options = Options(count, args.seed, people, args.stated or None, tuple(args.set), args.config)
    folder = Path(args.out)
    results = run_grid(grid, options, folder / "cells", args.fresh, args.jobs)
    rows = check(results)
    parts = [tables.accuracy(results), tables.against_adjustment(results)]
    parts += [tables.honesty(results), targets_table(_TARGETS, rows)]
    text = "\n\n".join(part for part in parts if part)
    drawn = plots.error_against_frames(results, folder / "rig.png")
    content = {"targets": [row.to_json() for row in rows], "cells": tables.to_json(results)}
    chosen = {"families": families, "frames": frames, "cases": count}
    return write_results(args, "rig", text, content, "rig.png" * drawn, **chosen)
