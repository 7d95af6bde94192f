"""Plausible mistakes, and what is said of each."""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
import torch
from tqdm import tqdm

from benchmark.figures import median
from benchmark.mistakes.cases import make_case
from benchmark.mistakes.scores import Outcome, outcome
from benchmark.mistakes.table import MISTAKES, Mistake
from benchmark.results import write_results
from ptri.config import load
from ptri.evaluation.table import grid
from ptri.models.weights import find_model

KINDS = ("refused", "named", "rejected", "accepted", "fault")
HEADINGS = ["mistake", "in", *KINDS, "error, deg", "stated, deg", "said most often"]
WIDTH = 90  # characters of the words
LEGEND = """fault: accepted, and the error of a view lies outside the stated 99 % region
* = listed in docs/mistakes.md as what cannot be told; faults beyond those: {}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rigs", type=int, default=6, help="of each mistake, each with its own person (6)")
    add("--views", nargs="+", type=int, default=[4], help="numbers of views (4)")
    add("--only", nargs="*", default=[], help="mistakes whose name holds one of these")
    errors = "settings of the detections' errors, such as configs/detector_movenet.yaml"
    add("--config", metavar="YAML", help=errors)
    add("--set", nargs="*", default=[], metavar="section.key=value", help="change them")
    add("--weights", help="of lifter and fusion; default: the shipped ones")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1)
    add("--out", default="outputs/benchmark", help="folder for tables and JSON")


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    config = load(args.config, ["run.name=benchmark", *args.set])
    model = find_model(args.weights, torch.device("cpu"))
    chosen = [m for m in MISTAKES if not args.only or any(o in m.name for o in args.only)]
    blocks, content, faults = [], {}, []
    for num_views in args.views:
        seeds = range(args.seed, args.seed + args.rigs)
        cases = [make_case(config, seed, num_views) for seed in seeds]
        rows = []
        for mistake in tqdm(chosen, f"{num_views} views", unit="mistake", disable=None):
            outcomes = [outcome(case, mistake, model) for case in cases]
            excuse = mistake.excuse(num_views)
            rows.append(_row(mistake, outcomes, bool(excuse)))
            faults += [o for o in outcomes if o.kind == "fault" and not excuse]
            key = f"{num_views} views, {mistake.name}, {mistake.where}"
            content[key] = [part._asdict() for part in outcomes]
        blocks.append(f"{num_views} views, {args.rigs} rigs each\n{grid(HEADINGS, rows)}")
    blocks.append(LEGEND.format(len(faults)))
    return write_results(args, "mistakes", "\n\n".join(blocks), {"outcomes": content})


def _row(mistake: Mistake, outcomes: list[Outcome], excused: bool) -> list[str]:
    counts = Counter(part.kind for part in outcomes)
    words = Counter(part.words[:WIDTH] for part in outcomes).most_common(1)[0][0]
    numbers = (
        median(np.array([getattr(part, key) for part in outcomes if part.kind != "refused"]))
        for key in ("error_deg", "stated_deg")
    )
    shares = [str(counts[kind]) if counts[kind] else "" for kind in KINDS]
    shares[-1] += "*" * bool(shares[-1] and excused)
    return [
        mistake.name,
        mistake.where,
        *shares,
        *(f"{n:.1f}" if n == n else "-" for n in numbers),
        words,
    ]
