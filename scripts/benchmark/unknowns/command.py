"""What users do not know of their cameras: by how much each started late."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from benchmark.results import write_results
from benchmark.rig.cases import Cell, People
from benchmark.rig.ours import make_model
from benchmark.rigs import choose
from benchmark.unknowns.clocks import FPS, make_clock_cases, outcome
from ptri.evaluation.table import grid

HEADINGS = [
    "family", "rigs", "lag off by, frames", "90th percentile", "off by > 1 frame", "off / stated",
    "rotation, deg: found", "true clocks", "as they are",
]  # fmt: skip
TARGET = "targets: lag off by <= 0.15 frames (median), > 1 frame in <= 1 %"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--families", nargs="+", default=["held-out"], help="of rigs, or a group of them")
    add("--rigs", type=int, default=10, help="of each family (10)")
    add("--views", type=int, help="of each rig; default: the family's own number")
    add("--frames", type=int, default=150, help=f"of every view, at {FPS:g} frames/s (150)")
    add("--late", type=float, default=60.0, help="most frames between two views (60)")
    add("--mocap", metavar="NPZ", help="motions to draw people from; default: made-up ones")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--out", default="outputs/benchmark", help="folder for the table and JSON")


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    model, options = make_model()
    people = People(args.mocap)
    rows, content = [], {}
    families = choose(args.families)
    with tqdm(total=len(families) * args.rigs, unit="rig", disable=None) as bar:
        for family in families:
            cell = Cell(family, args.frames, views=args.views)
            outcomes = []
            for case in make_clock_cases(cell, args.rigs, args.late, args.seed, people):
                outcomes.append(outcome(model, options, case, args.seed))
                bar.update()
            rows.append([family, *_row(outcomes)])
            content[family] = [
                {name: np.asarray(value).tolist() for name, value in one._asdict().items()}
                for one in outcomes
            ]
    text = f"{grid(HEADINGS, rows)}\n\n{TARGET}\nrotations: mean of the pairs, median of the rigs"
    return write_results(args, "unknowns", text, {"clocks": content})


def _row(outcomes: list) -> list[str]:
    off, std = (np.concatenate([getattr(one, name) for one in outcomes]) for name in ("off", "std"))
    far = np.abs(np.nan_to_num(off, nan=np.inf))
    angles = [
        np.nanmedian([getattr(one, f"{name}_deg") for one in outcomes])
        for name in ("found", "true", "as_is")
    ]
    return [
        str(len(outcomes)),
        f"{np.median(far):.3f}",
        f"{np.quantile(far, 0.9):.3f}",
        f"{100 * (far > 1).mean():.1f} %",
        f"{np.nanmedian(np.abs(off) / std):.2f}",
        *(f"{angle:.2f}" for angle in angles),
    ]
