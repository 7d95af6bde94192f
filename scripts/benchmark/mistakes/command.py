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
from benchmark.mistakes.table import MISTAKES
from benchmark.results import write_results
from ptri.config import load
from ptri.evaluation.table import grid
from ptri.models.weights import find_model

KINDS = ("refused", "named", "rejected", "accepted", "fault")
HEADINGS = ["mistake", "in", *KINDS, "error, deg", "stated, deg", "said most often"]
WIDTH = 90  # characters of the words


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
    blocks, content = [], {}
    for num_views in args.views:
        seeds = range(args.seed, args.seed + args.rigs)
        cases = [make_case(config, seed, num_views) for seed in seeds]
        rows = []
        for mistake in tqdm(chosen, f"{num_views} views", unit="mistake", disable=None):
            outcomes = [outcome(case, mistake, model) for case in cases]
            rows.append(_row(mistake.name, mistake.where, outcomes))
            key = f"{num_views} views, {mistake.name}, {mistake.where}"
            content[key] = [part._asdict() for part in outcomes]
        head = f"{num_views} views, {args.rigs} rigs each; fault: accepted, the error outside"
        blocks.append(f"{head} the stated 99 % region\n{grid(HEADINGS, rows)}")
    return write_results(args, "mistakes", "\n\n".join(blocks), {"outcomes": content})


def _row(name: str, where: str, outcomes: list[Outcome]) -> list[str]:
    counts = Counter(part.kind for part in outcomes)
    words = Counter(part.words[:WIDTH] for part in outcomes).most_common(1)[0][0]
    numbers = (
        median(np.array([getattr(part, key) for part in outcomes if part.kind != "refused"]))
        for key in ("error_deg", "stated_deg")
    )
    shares = [str(counts[kind]) if counts[kind] else "" for kind in KINDS]
    return [name, where, *shares, *(f"{n:.1f}" if n == n else "-" for n in numbers), words]
