"""Figures, targets and tables of the heads on unseen rigs, with bootstrap intervals over rigs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from benchmark.heads.unseen import FRAMES, TRAINING, UNSEEN, VIEWS, Cell, Scores

DRAWS = 1000  # of the bootstrap
RIVAL = "fixed_views_mlp"
Range = tuple[float, float]
Found = dict[str, dict[Cell, Scores]]  # by head


class Figure(NamedTuple):
    """A figure with its 95 % interval over rigs; NaN: not measured."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def text(self, digits: int = 2) -> str:
        """As printed."""
        if math.isnan(self.value):
            return "-"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


class Row(NamedTuple):
    """A target at one T with what was measured."""

    label: str
    num_frames: int
    figure: Figure
    limit: Range
    aim: str  # the limit in words

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        if math.isnan(self.figure.value):
            return None
        return self.limit[0] <= self.figure.value <= self.limit[1]


def figure(parts: list[tuple[np.ndarray, ...]], seed: int = 0) -> Figure:
    """Mean of the first of one array, or ratio of means of two, pooled over families.

    Args:
        parts: for every family one or two arrays (B,) of its rigs; rigs with a NaN do not count.
            Families weigh alike, and each is resampled by itself.
    """
    parts = [np.stack(arrays) for arrays in parts]
    parts = [part[:, np.isfinite(part).all(0)] for part in parts]
    if not parts or any(part.shape[1] == 0 for part in parts):
        return Figure()
    rng = np.random.default_rng(seed)

    def value(means: np.ndarray) -> np.ndarray:  # (families, arrays, ...)
        mean = means.mean(0)
        return mean[0] / mean[1] if len(mean) == 2 else mean[0]

    drawn = []
    for part in parts:
        index = rng.integers(part.shape[1], size=(DRAWS, part.shape[1]))
        drawn.append(part[:, index].mean(-1))  # (arrays, DRAWS)
    low, high = np.quantile(value(np.stack(drawn)), (0.025, 0.975))
    return Figure(float(value(np.stack([part.mean(1) for part in parts]))), float(low), float(high))


def mean_of(
    found: Found, head: str, cells: list[Cell], key: str, over: str | None = None
) -> Figure:
    """Mean of a score over cells, or its ratio to another of the same head (or ``head:key``)."""
    parts = []
    for cell in cells:
        own = found.get(head, {}).get(cell, {})
        if key not in own:
            return Figure()
        arrays = (own[key],)
        if over is not None:
            name, _, other = over.rpartition(":")
            rival = found.get(name or head, {}).get(cell, {})
            if other not in rival:
                return Figure()
            arrays = (own[key], rival[other])
        parts.append(arrays)
    return figure(parts)


def unseen_cells(num_frames: int) -> list[Cell]:
    """The families that no training saw, four views."""
    return [Cell(family, num_frames) for family in UNSEEN]


def view_cells(views: int, of: int) -> list[Cell]:
    """The same with fewer or more views, T = 1."""
    return [Cell(family, 1, views, of) for family in UNSEEN]


def targets(found: Found, ours: str, views: tuple[int, ...] = VIEWS) -> list[Row]:
    """The targets of one head against the others, at every T."""
    rows = []

    def add(label: str, T: int, value: Figure, limit: Range, aim: str) -> None:
        rows.append(Row(label, T, value, limit, aim))

    for T, most in zip(FRAMES, (1.10, 1.01)):
        cells = unseen_cells(T)
        ratio = mean_of(found, ours, cells, "mpjpe", "calibrated")
        label = "unseen families, 4 views: MPJPE over calibrated"
        add(label, T, ratio, (-math.inf, most), f"<= {most:.2f}")
    cells = unseen_cells(1)
    rival = mean_of(found, RIVAL, cells, "mpjpe", f"{ours}:mpjpe")
    add(f"unseen families: {RIVAL} over ours", 1, rival, (3.0, math.inf), ">= 3")
    rival = mean_of(found, RIVAL, [Cell(TRAINING)], "mpjpe", f"{ours}:mpjpe")
    label = f"training family: {RIVAL} over ours"
    add(label, 1, rival, (math.nextafter(1.0, 2.0), math.inf), "> 1")
    for fewer, more in pairwise(views):
        ratio = _views_ratio(found, ours, fewer, more, max(views))
        add(f"unseen families: {more} views over {fewer}", 1, ratio, (0.0, 0.9999), "< 1")
    for T in FRAMES:
        plain = mean_of(found, ours, unseen_cells(T), "answered", "triangulation:answered")
        label = "unseen families: ours over triangulation, true cameras"
        add(label, T, plain, (0.0, 0.9999), "< 1")
    for level, limit in ((50, (0.45, 0.55)), (90, (0.86, 0.94))):
        for T in FRAMES:
            share = mean_of(found, ours, unseen_cells(T), f"coverage{level}")
            aim = f"{limit[0]:.2f} to {limit[1]:.2f}"
            add(f"unseen families: {level} % joint regions hold", T, share, limit, aim)
    return rows


def _views_ratio(found: Found, head: str, fewer: int, more: int, of: int) -> Figure:
    parts = []
    for a, b in zip(view_cells(more, of), view_cells(fewer, of)):
        own = found.get(head, {})
        if a not in own or b not in own:
            return Figure()
        parts.append((own[a]["mpjpe"], own[b]["mpjpe"]))  # nested views of the same rigs
    return figure(parts)


def targets_table(rows: list[Row], ours: str) -> str:
    """Each target beside what was measured."""
    lines = [f"Targets, of {ours}; * = not met; [95 % interval over rigs]"]
    lines.append(f"{'':56s}" + "".join(f"{f'T = {T}':>38s}" for T in FRAMES))
    for label in dict.fromkeys(row.label for row in rows):
        text = ""
        for T in FRAMES:
            own = [row for row in rows if row.label == label and row.num_frames == T]
            text += f"{_cell(own[0]) if own else '':>38s}"
        lines.append(f"{label:56s}{text}")
    judged = [row.met for row in rows if row.met is not None]
    lines.append(f"met: {sum(judged)} of {len(judged)}")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    if row.met is None:
        return f"not measured ({row.aim})"
    return f"{row.figure.text()}{' ' if row.met else '*'} ({row.aim})"


# heading, figure of (found, head)
Column = tuple[str, Callable[[Found, str], Figure], int]


def columns(views: tuple[int, ...] = VIEWS) -> dict[str, list[Column]]:
    """Tables by title: what is printed of every head."""

    def at(cells: list[Cell], key: str, over: str | None = None):
        return lambda found, head: mean_of(found, head, cells, key, over)

    def errors(cells: list[Cell]) -> list[Column]:
        return [
            ("MPJPE, mm", at(cells, "mpjpe"), 1), ("true cameras", at(cells, "calibrated"), 1),
            ("ratio", at(cells, "mpjpe", "calibrated"), 3),
            ("ratio, scale aside", at(cells, "scaled", "calibrated_scaled"), 3),
            ("50 % hold", at(cells, "coverage50"), 2), ("90 % hold", at(cells, "coverage90"), 2),
        ]  # fmt: skip

    tables = {}
    for T in FRAMES:
        tables[f"Unseen families ({', '.join(UNSEEN)}), 4 views, T = {T}"] = errors(unseen_cells(T))
        tables[f"{TRAINING} (trained), 4 views, T = {T}"] = errors([Cell(TRAINING, T)])
    by_views: list[Column] = [
        (f"{V} views", at(view_cells(V, max(views)), "mpjpe"), 1) for V in views
    ]
    tables["Unseen families, T = 1, MPJPE in mm by number of views (nested)"] = by_views
    return tables


def heads_tables(found: Found, views: tuple[int, ...] = VIEWS) -> str:
    """Every head on every family and number of views."""
    blocks = []
    for title, cols in columns(views).items():
        lines = [title, " " * 20 + "".join(f"{name:>22s}" for name, _, _ in cols)]
        for head in found:
            values = [make(found, head).text(digits) for _, make, digits in cols]
            if any(value != "-" for value in values):
                lines.append(f"{head:20s}" + "".join(f"{value:>22s}" for value in values))
        if len(lines) > 2:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def to_json(found: Found, rows: list[Row], views: tuple[int, ...] = VIEWS) -> dict[str, Any]:
    """Everything printed, and the mean of every score of every cell."""
    printed = {
        title: {
            head: {name: make(found, head)._asdict() for name, make, _ in cols} for head in found
        }
        for title, cols in columns(views).items()
    }
    cells = [
        {**cell._asdict(), "head": head, "rigs": len(next(iter(scores.values()))),
         **{name: float(np.nanmean(value)) for name, value in scores.items()}}
        for head, by_cell in found.items()
        for cell, scores in by_cell.items()
    ]  # fmt: skip
    met = [
        {"target": row.label, "num_frames": row.num_frames, **row.figure._asdict(),
         "aim": row.aim, "met": row.met}
        for row in rows
    ]  # fmt: skip
    return {"targets": met, "tables": printed, "cells": cells}
