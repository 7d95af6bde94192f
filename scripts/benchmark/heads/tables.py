"""Figures, targets and tables of the heads on unseen rigs, with bootstrap intervals over rigs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from benchmark.figures import Figure, Judged, bootstrap, targets_table
from benchmark.heads.unseen import FRAMES, TRAINING, UNSEEN, VIEWS, RigSet, Scores
from ptri.evaluation.table import grid

RIVAL = "fixed_views_mlp"
HeadScores = dict[str, dict[RigSet, Scores]]  # by head


def mean_of(
    head_scores: HeadScores, head: str, rig_sets: list[RigSet], key: str, over: str | None = None
) -> Figure:
    """Mean of a score over sets of rigs, or its ratio to another (``key`` or ``head:key``)."""
    columns = [_values(head_scores, head, rig_sets, key)]
    if over is not None:
        name, _, other = over.rpartition(":")
        columns.append(_values(head_scores, name or head, rig_sets, other))
    return bootstrap(list(zip(*columns)))


def _values(
    head_scores: HeadScores, head: str, rig_sets: list[RigSet], key: str
) -> list[np.ndarray]:
    """A score of each set's rigs; nothing where a set lacks it."""
    scores = [head_scores.get(head, {}).get(rig_set, {}) for rig_set in rig_sets]
    return [part[key] for part in scores] if all(key in part for part in scores) else []


def unseen_sets(num_frames: int) -> list[RigSet]:
    """The families that no training saw, four views."""
    return [RigSet(family, num_frames) for family in UNSEEN]


def view_sets(views: int, of: int) -> list[RigSet]:
    """The same with fewer or more views, T = 1."""
    return [RigSet(family, 1, views, of) for family in UNSEEN]


def targets(head_scores: HeadScores, ours: str) -> list[Judged]:
    """The targets of one head against the others, at every T."""
    rows = []

    def add(label: str, T: int, value: Figure, least=-math.inf, most=math.inf, strict=False):
        rows.append(Judged(label, value, least, most, strict, f"T = {T}", ".2f"))

    for T, most in zip(FRAMES, (1.10, 1.01)):
        ratio = mean_of(head_scores, ours, unseen_sets(T), "mpjpe", "calibrated")
        add("unseen families, 4 views: MPJPE over calibrated", T, ratio, most=most)
    rival = mean_of(head_scores, RIVAL, unseen_sets(1), "mpjpe", f"{ours}:mpjpe")
    add(f"unseen families: {RIVAL} over ours", 1, rival, least=3.0)
    rival = mean_of(head_scores, RIVAL, [RigSet(TRAINING)], "mpjpe", f"{ours}:mpjpe")
    add(f"training family: {RIVAL} over ours", 1, rival, least=1.0, strict=True)
    for fewer, more in pairwise(VIEWS):
        nested = [view_sets(views, max(VIEWS)) for views in (more, fewer)]  # of the same rigs
        ratio = bootstrap(
            list(zip(*(_values(head_scores, ours, sets, "mpjpe") for sets in nested)))
        )
        add(f"unseen families: {more} views over {fewer}", 1, ratio, most=1.0, strict=True)
    for T in FRAMES:
        plain = mean_of(head_scores, ours, unseen_sets(T), "answered", "triangulation:answered")
        label = "unseen families: ours over triangulation, true cameras"
        add(label, T, plain, most=1.0, strict=True)
    for level, limit in ((50, (0.45, 0.55)), (90, (0.86, 0.94))):
        for T in FRAMES:
            share = mean_of(head_scores, ours, unseen_sets(T), f"coverage{level}")
            add(f"unseen families: {level} % joint regions hold", T, share, *limit)
    return rows


# heading, figure of (head_scores, head)
Column = tuple[str, Callable[[HeadScores, str], Figure], int]


def columns() -> dict[str, list[Column]]:
    """Tables by title: what is printed of every head."""

    def at(rig_sets: list[RigSet], key: str, over: str | None = None):
        return lambda head_scores, head: mean_of(head_scores, head, rig_sets, key, over)

    def errors(rig_sets: list[RigSet]) -> list[Column]:
        return [
            ("MPJPE, mm", at(rig_sets, "mpjpe"), 1),
            ("true cameras", at(rig_sets, "calibrated"), 1),
            ("ratio", at(rig_sets, "mpjpe", "calibrated"), 3),
            ("ratio, scale aside", at(rig_sets, "scaled", "calibrated_scaled"), 3),
            ("50 % hold", at(rig_sets, "coverage50"), 2),
            ("90 % hold", at(rig_sets, "coverage90"), 2),
        ]

    tables = {}
    for T in FRAMES:
        tables[f"Unseen families ({', '.join(UNSEEN)}), 4 views, T = {T}"] = errors(unseen_sets(T))
        tables[f"{TRAINING} (trained), 4 views, T = {T}"] = errors([RigSet(TRAINING, T)])
    by_views: list[Column] = [
        (f"{V} views", at(view_sets(V, max(VIEWS)), "mpjpe"), 1) for V in VIEWS
    ]
    tables["Unseen families, T = 1, MPJPE in mm by number of views (nested)"] = by_views
    return tables


def report(head_scores: HeadScores, rows: list[Judged], ours: str, note: str) -> str:
    """Every head on every family and number of views, then the targets, then the note."""
    blocks = []
    for title, table in columns().items():
        lines = [
            [head, *(make(head_scores, head).text(f".{n}f") for _, make, n in table)]
            for head in head_scores
        ]
        lines = [line for line in lines if set(line[1:]) != {"-"}]
        if lines:
            blocks.append(f"{title}\n" + grid(["", *(name for name, _, _ in table)], lines))
    head = f"Targets, of {ours}; [95 % interval over rigs]"
    return "\n\n".join([*blocks, targets_table(head, rows), note])


def to_json(head_scores: HeadScores, rows: list[Judged]) -> dict[str, Any]:
    """Everything printed, and the mean of every score of every set."""
    printed = {
        title: {
            head: {name: make(head_scores, head)._asdict() for name, make, _ in table}
            for head in head_scores
        }
        for title, table in columns().items()
    }
    rig_sets = [
        {
            **rig_set._asdict(),
            "head": head,
            "rigs": len(next(iter(scores.values()))),
            **{name: float(np.nanmean(value)) for name, value in scores.items()},
        }
        for head, by_set in head_scores.items()
        for rig_set, scores in by_set.items()
    ]
    return {"targets": [row.to_json() for row in rows], "tables": printed, "rig_sets": rig_sets}
