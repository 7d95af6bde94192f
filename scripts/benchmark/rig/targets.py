"""The targets of the rig posterior, and whether a run meets them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

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
    limits: tuple[Range, Range, Range]  # low, high
    scale: float = 1.0  # of the printed number
    unit: str = ""
    method: str = "ours"


class Row(NamedTuple):
    """A target at one T with what was measured."""

    target: Target
    num_frames: int
    value: float  # NaN: not measured
    limit: Range
    worst: str  # the family with the worst figure, where several are pooled

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        if math.isnan(self.value):
            return None
        return self.limit[0] <= self.value <= self.limit[1]


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


def _up_to(*highs: float) -> tuple[Range, Range, Range]:
    first, second, third = ((-math.inf, high) for high in highs)
    return first, second, third


def _within(low: float, high: float) -> tuple[Range, Range, Range]:
    return ((low, high),) * 3


def _coverage() -> list[Target]:
    rows = []
    for kind, cells, half, nine in (
        ("independent", _standard, (0.45, 0.55), (0.86, 0.94)),
        ("detector-like", _detector, (0.40, 0.60), (0.82, 0.96)),
    ):
        for what, name in (("rotation", "R"), ("joints", "x")):
            for level, limit in ((50, half), (90, nine)):
                label = f"coverage {level} %, {what}, {kind}"
                rows.append(Target(label, f"coverage_{name}{level}", cells, _within(*limit)))
    return rows


TARGETS = [
    Target("rotation, median, 4-view ring", "median_deg", _of("ring4"), _up_to(3.2, 0.35, 0.17),
           unit=" deg"),
    Target("RMS over the Cramer-Rao bound", "over_bound", _clean, _up_to(1.3, 1.15, 1.1),
           unit=" x", method="ours-geometry"),
    Target("failures, ordinary families", "failures", _ordinary, _up_to(0.02, 0.002, 0), 100, " %"),
    Target("failures, two views 60 deg", "failures", _of("two60"), _up_to(0.15, 0.01, 0), 100,
           " %"),
    Target("failures, two views 20 deg", "failures", _of("two20"), _up_to(0.1, 0.01, 0), 100, " %"),
    Target("MPJPE (one scale) over ceiling", "over_ceiling", _ordinary, _up_to(1.25, 1.03, 1.01),
           unit=" x"),
    *_coverage(),
    Target("failures flagged", "flagged", _standard, ((0.95, 1.0),) * 3, 100, " %"),
    Target("good cases rejected", "rejected_good", _standard, _up_to(0.02, 0.01, 0.01), 100, " %"),
    Target("metric scale, median error", "scale", _standard, _up_to(0.04, 0.03, 0.025), 100, " %"),
]  # fmt: skip


def check(results: list[Result]) -> list[Row]:
    """Every target at every T that was run."""
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
            each = {
                one.cell.family: summarise(one.flat).get(target.figure, math.nan) for one in chosen
            }
            rows.append(Row(target, num_frames, value, limit, _worst(each, limit)))
    return rows


def _worst(each: dict[str, float], limit: Range) -> str:
    """The family farthest to the wrong side of a range, where there are several."""
    known = {family: value for family, value in each.items() if not math.isnan(value)}
    if len(known) < 2:
        return ""

    def excess(family: str) -> float:
        return max(known[family] - limit[1], limit[0] - known[family])

    return max(known, key=excess)
