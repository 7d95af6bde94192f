"""The targets of the rig posterior, and whether a run meets them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from benchmark.figures import Figure, Judged
from benchmark.rig.cases import Cell
from benchmark.rig.grid import FRAMES
from benchmark.rig.run import Result
from benchmark.rig.scores import pool, summarise
from benchmark.rigs import GROUPS

Range = tuple[float, float]


class Target(NamedTuple):
    """A figure with what it has to be for T = 1, 10, 50."""

    label: str
    figure: str  # of `summarise`
    cells: Callable[[Cell], bool]
    limits: tuple[Range, Range, Range]  # at least, at most
    unit: str = ""  # " %": of a hundredth
    method: str = "ours"


def _standard(cell: Cell) -> bool:
    return cell.errors == "gaussian" and cell.noise == 3.0 and cell.outliers == 0.05


def _of(family: str) -> Callable[[Cell], bool]:
    return lambda cell: _standard(cell) and cell.family == family


def _ordinary(cell: Cell) -> bool:
    return _standard(cell) and cell.family in GROUPS["ordinary"]


def _clean(cell: Cell) -> bool:
    ordinary = cell.family in GROUPS["ordinary"]
    return ordinary and cell.errors == "gaussian" and cell.noise == 3.0 and cell.outliers == 0


def _detector(cell: Cell) -> bool:
    return cell.errors == "detector" and cell.noise == 3.0 and cell.outliers == 0.05


def _up_to(*most: float) -> tuple[Range, Range, Range]:
    first, second, third = ((-math.inf, value) for value in most)
    return first, second, third


def _coverage() -> list[Target]:
    rows = []
    for kind, cells, half, nine in (
        ("independent", _standard, (0.45, 0.55), (0.86, 0.94)),
        ("detector-like", _detector, (0.40, 0.60), (0.82, 0.96)),
    ):
        for what, name in (("rotation", "R"), ("joints", "x")):
            for level, limit in ((50, half), (90, nine)):
                label = f"coverage {level} %, {what}, {kind}"
                rows.append(Target(label, f"coverage_{name}{level}", cells, (limit,) * 3))
    return rows


_RING = _up_to(3.2, 0.35, 0.17)
_BOUND, _CEILING = _up_to(1.3, 1.15, 1.1), _up_to(1.25, 1.03, 1.01)
TARGETS = [
    Target(
        "rotation, median, 4-view ring", "median_deg", _of("ring4"), _up_to(3.2, 0.35, 0.17), " deg"
    ),
    Target(
        "RMS over the Cramer-Rao bound",
        "over_bound",
        _clean,
        _up_to(1.3, 1.15, 1.1),
        " x",
        "ours-geometry",
    ),
    Target("failures, ordinary families", "failures", _ordinary, _up_to(0.02, 0.002, 0), " %"),
    Target("failures, two views 60 deg", "failures", _of("two60"), _up_to(0.15, 0.01, 0), " %"),
    Target("failures, two views 20 deg", "failures", _of("two20"), _up_to(0.1, 0.01, 0), " %"),
    Target("MPJPE (one scale) over ceiling", "over_ceiling", _ordinary, _CEILING, " x"),
    *_coverage(),
    Target("failures flagged", "flagged", _standard, ((0.95, math.inf),) * 3, " %"),
    Target("good cases rejected", "rejected_good", _standard, _up_to(0.02, 0.01, 0.01), " %"),
    Target("metric scale, median error", "scale", _standard, _up_to(0.04, 0.03, 0.025), " %"),
]


def check(results: list[Result]) -> list[Judged]:
    """Every target at every T that was run; the note names the worst family of those pooled."""
    rows = []
    for target in TARGETS:
        for num_frames, limit in zip(FRAMES, target.limits):
            chosen = [
                result
                for result in results
                if result.method == target.method
                and result.flat
                and result.cell.num_frames == num_frames
                and target.cells(result.cell)
            ]
            if not chosen:
                continue
            value = summarise(pool([one.flat for one in chosen])).get(target.figure, math.nan)
            families = {
                one.cell.family: summarise(one.flat).get(target.figure, math.nan) for one in chosen
            }
            rows.append(
                Judged(
                    target.label,
                    Figure(value),
                    *limit,
                    column=f"T = {num_frames}",
                    unit=target.unit,
                    note=_worst(families, limit),
                )
            )
    return rows


def _worst(families: dict[str, float], limit: Range) -> str:
    """The family farthest to the wrong side of a range, in brackets; "" of fewer than two."""
    known = {family: value for family, value in families.items() if not math.isnan(value)}
    if len(known) < 2:
        return ""
    return f"[{max(known, key=lambda name: max(known[name] - limit[1], limit[0] - known[name]))}]"
