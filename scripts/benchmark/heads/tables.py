"""Figures, targets and tables of the heads on unseen rigs, with bootstrap intervals over rigs."""

from __future__ import annotations

import math
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


Figures = dict[str, dict[str, dict[str, Figure]]]  # by title, head and heading
_KEYS = {
    "MPJPE, mm": ("mpjpe",),
    "true cameras": ("calibrated",),
    "ratio": ("mpjpe", "calibrated"),
    "ratio, scale aside": ("scaled", "calibrated_scaled"),
    "50 % hold": ("coverage50",),
    "90 % hold": ("coverage90",),
}
_DIGITS = {"ratio": 3, "ratio, scale aside": 3, "50 % hold": 2, "90 % hold": 2}  # of others: 1


def figures(head_scores: HeadScores) -> Figures:
    """What is printed of every head."""
    tables = {}
    for T in FRAMES:
        unseen = f"Unseen families ({', '.join(UNSEEN)}), 4 views, T = {T}"
        tables[unseen] = {name: (unseen_sets(T), *key) for name, key in _KEYS.items()}
        trained = f"{TRAINING} (trained), 4 views, T = {T}"
        tables[trained] = {name: ([RigSet(TRAINING, T)], *key) for name, key in _KEYS.items()}
    tables["Unseen families, T = 1, MPJPE in mm by number of views (nested)"] = {
        f"{V} views": (view_sets(V, max(VIEWS)), "mpjpe") for V in VIEWS
    }
    return {
        title: {
            head: {name: mean_of(head_scores, head, *which) for name, which in table.items()}
            for head in head_scores
        }
        for title, table in tables.items()
    }


def report(tables: Figures, rows: list[Judged], ours: str, note: str) -> str:
    """Every head on every family and number of views, then the targets, then the note."""
    blocks = []
    for title, by_head in tables.items():
        lines = [
            [head, *(figure.text(f".{_DIGITS.get(name, 1)}f") for name, figure in row.items())]
            for head, row in by_head.items()
        ]
        lines = [line for line in lines if set(line[1:]) != {"-"}]
        if lines:
            headings = next(iter(by_head.values()))
            blocks.append(f"{title}\n{grid(['', *headings], lines)}")
    head = f"Targets, of {ours}; [95 % interval over rigs]"
    return "\n\n".join([*blocks, targets_table(head, rows), note])


def to_json(head_scores: HeadScores, tables: Figures, rows: list[Judged]) -> dict[str, Any]:
    """Everything printed, and the mean of every score of every set."""
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
    printed = {
        title: {
            head: {name: figure._asdict() for name, figure in row.items()}
            for head, row in by_head.items()
        }
        for title, by_head in tables.items()
    }
    return {"targets": [row.to_json() for row in rows], "tables": printed, "rig_sets": rig_sets}
