"""Tables of a run, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from benchmark.rig.cases import Cell
from benchmark.rig.run import Result
from benchmark.rig.scores import pool, summarise
from benchmark.rig.targets import FRAMES, Row
from benchmark.rigs import trained

# figure -> heading, format
_ACCURACY = {
    "median_deg": ("median", "{:.2f}"),
    "rms_deg": ("RMS", "{:.2f}"),
    "bound_deg": ("bound", "{:.2f}"),
    "bound_body_deg": ("with body", "{:.2f}"),
    "over_bound": ("RMS/bound", "{:.2f}"),
    "over_bound_kept": ("not failed", "{:.2f}"),
    "failures": ("fail %", "{:.1%}"),
    "n_mpjpe": ("MPJPE mm", "{:.1f}"),
    "over_ceiling": ("/ceiling", "{:.2f}"),
    "ms": ("ms", "{:.0f}"),
}
_HONESTY = {
    "coverage_R50": ("R 50", "{:.2f}"),
    "coverage_R90": ("R 90", "{:.2f}"),
    "coverage_x50": ("x 50", "{:.2f}"),
    "coverage_x90": ("x 90", "{:.2f}"),
    "bad_rigs": ("failed rigs", "{:d}"),
    "flagged": ("flagged", "{:.0%}"),
    "rejected_good": ("good rejected", "{:.1%}"),
    "scale": ("scale err", "{:.1%}"),
    "ess": ("ESS", "{:.0f}"),
}


def accuracy(results: list[Result]) -> str:
    """Errors of every method on every cell."""
    blocks = []
    for cell, group in groupby(results, key=lambda result: result.cell):
        rows = []
        for result in group:
            figures = summarise(result.flat) if result.flat else {}
            rows.append((result.method, figures, result.note))
        blocks.append(_block(f"{describe(cell)}", rows, _ACCURACY))
    return "\n\n".join(blocks)


def against_adjustment(results: list[Result]) -> str:
    """Where ours is worse than bundle adjustment after five-point and resection, cell by cell."""
    lines, cells = [], 0
    for cell, group in groupby(results, key=lambda result: result.cell):
        figures = {r.method: summarise(r.flat) for r in group if r.flat}
        rivals = [name for name in figures if name.startswith("ba-fivepoint")]
        if "ours" not in figures or not rivals:
            continue
        cells += 1
        worse = []
        for name in rivals:
            for key, label in (("median_deg", "median deg"), ("failures", "failures"),
                               ("n_mpjpe", "MPJPE mm")):  # fmt: skip
                own, other = figures["ours"][key], figures[name][key]
                if own > other:
                    worse.append(f"{label} {own:.3g} against {other:.3g} of {name}")
        if worse:
            lines.append(f"  {cell.name}: {'; '.join(worse)}")
    head = f"Ours is worse than adjustment after five-point in {len(lines)} of {cells} cells"
    return "\n".join([head, *lines]) if cells else ""


def honesty(results: list[Result]) -> str:
    """Stated uncertainty and verdict of our own estimator, by kind of errors and T."""
    own = [r for r in results if r.method == "ours" and r.flat]
    rows = []
    for T in sorted({r.cell.num_frames for r in own}):
        for errors in ("gaussian", "detector"):
            chosen = [
                r for r in own if r.cell.num_frames == T and r.cell.errors == errors
            ]  # fmt: skip
            for family in sorted({r.cell.family for r in chosen}):
                flat = [r.flat for r in chosen if r.cell.family == family]
                rows.append((f"T={T} {errors} {family}", summarise(pool(flat)), ""))
            if chosen:
                rows.append((f"T={T} {errors} all", summarise(pool([r.flat for r in chosen])), ""))
    return _block("Ours: coverage of its regions, verdict, metric scale", rows, _HONESTY)


def targets(rows: list[Row]) -> str:
    """Each target beside what was measured."""
    lines = ["Targets (value; * = not met; worst family of those pooled in brackets)"]
    lines.append(f"{'':44s}" + "".join(f"{f'T = {T}':>34s}" for T in FRAMES))
    for label, group in groupby(rows, key=lambda row: row.target.label):
        by_frames = {row.num_frames: row for row in group}
        cells = [_target_cell(by_frames.get(T)) for T in FRAMES]
        lines.append(f"{label:44s}" + "".join(f"{cell:>34s}" for cell in cells))
    judged = [row.met for row in rows if row.met is not None]
    lines.append(f"met: {sum(judged)} of {len(judged)}")
    return "\n".join(lines)


def _target_cell(row: Row | None) -> str:
    if row is None:
        return "-"
    scale, unit = row.target.scale, row.target.unit
    low, high = (scale * limit for limit in row.limit)
    limit = f"<= {high:g}" if math.isinf(low) else f"{low:g}-{high:g}"
    if low > -math.inf and high == scale:
        limit = f">= {low:g}"
    if math.isnan(row.value):
        return f"none to count ({limit}{unit})"
    worst = f" [{row.worst}]" if row.worst else ""
    mark = " " if row.met else "*"
    return f"{scale * row.value:.3g}{unit}{mark} ({limit}){worst}"


def describe(cell: Cell) -> str:
    """A cell in words."""
    fps = cell.frames_per_second
    spacing = (
        f", {fps:g} frames/s" if fps else (", frames minutes apart" if cell.num_frames > 1 else "")
    )
    return (
        f"{cell.family} ({trained(cell.family)}), T = {cell.num_frames}{spacing}, {cell.errors} "
        f"errors {cell.noise:g} px, {100 * cell.outliers:g} % outliers, "
        f"{100 * cell.missing:g} % missing"
    )


def _block(
    title: str,
    rows: Iterable[tuple[str, dict[str, float], str]],
    columns: dict[str, tuple[str, str]],
) -> str:
    rows = list(rows)
    width = max([len(name) for name, _, _ in rows] + [20])
    lines = [title, " " * width + "".join(f"{head:>14s}" for head, _ in columns.values())]
    for name, figures, note in rows:
        if note:
            lines.append(f"{name:{width}s}  {note}")
            continue
        text = ""
        for key, (_, form) in columns.items():
            value = figures.get(key, math.nan)
            text += f"{'' if math.isnan(value) else form.format(value):>14s}"
        lines.append(f"{name:{width}s}{text}")
    return "\n".join(lines)


def to_json(results: list[Result], rows: list[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything printed, as plain values; NaN and infinity become null."""
    cells = [
        {
            **result.cell._asdict(),
            "fps": result.cell.frames_per_second,
            "trained": trained(result.cell.family),
            "method": result.method,
            "note": result.note,
            **(summarise(result.flat) if result.flat else {}),
        }
        for result in results
    ]
    met = [
        {
            "target": row.target.label,
            "method": row.target.method,
            "num_frames": row.num_frames,
            "value": row.value,
            "low": row.limit[0],
            "high": row.limit[1],
            "met": row.met,
            "worst": row.worst,
        }
        for row in rows
    ]
    return _plain({"settings": settings, "targets": met, "cells": cells})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
