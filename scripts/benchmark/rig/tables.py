"""Tables of a run, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from benchmark.rig.cases import Cell
from benchmark.rig.run import Result
from benchmark.rig.scores import pool, summarise
from benchmark.rigs import trained
from ptri.evaluation.table import grid

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
_COMPARED = {"median_deg": "median deg", "failures": "failures", "n_mpjpe": "MPJPE mm"}


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
            for key, label in _COMPARED.items():
                ours, rival = figures["ours"][key], figures[name][key]
                if ours > rival:
                    worse.append(f"{label} {ours:.3g} against {rival:.3g} of {name}")
        if worse:
            lines.append(f"  {cell.name}: {'; '.join(worse)}")
    head = f"Ours is worse than adjustment after five-point in {len(lines)} of {cells} cells"
    return "\n".join([head, *lines]) if cells else ""


def honesty(results: list[Result]) -> str:
    """Stated uncertainty and verdict of our own estimator, by T, kind of errors and family."""
    groups: dict[tuple[int, bool, str], list[dict]] = {}
    for result in results:
        if result.method == "ours" and result.flat:
            cell = result.cell
            for family in (cell.family, "~all"):  # sorts behind the families
                key = (cell.num_frames, cell.errors == "detector", family)
                groups.setdefault(key, []).append(result.flat)
    rows = []
    for (T, detector, family), parts in sorted(groups.items()):
        label = f"T={T} {'detector' if detector else 'gaussian'} {family.removeprefix('~')}"
        rows.append((label, summarise(pool(parts)), ""))
    return _block("Ours: coverage of its regions, verdict, metric scale", rows, _HONESTY)


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
    """A row for each name with figures; a note stands in place of figures that there are not."""
    lines, notes = [], []
    for name, figures, note in rows:
        if note:
            notes.append(f"{name}: {note}")
            continue
        values = [(figures.get(key, math.nan), form) for key, (_, form) in columns.items()]
        lines.append([name, *("" if math.isnan(x) else form.format(x) for x, form in values)])
    header = ["", *(heading for heading, _ in columns.values())]
    return "\n".join([title, grid(header, lines), *notes])


def to_json(results: list[Result]) -> list[dict[str, Any]]:
    """What is printed of every method on every cell, as plain values."""
    return [
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
