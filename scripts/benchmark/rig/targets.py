"""The targets of the rig posterior, and whether a run meets them."""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmark.figures import Figure, Judged
from benchmark.rig.cases import Cell
from benchmark.rig.grid import FRAMES
from benchmark.rig.run import Result
from benchmark.rig.scores import pool, summarise
from benchmark.rigs import GROUPS, NAMES

Range = tuple[float, float]


class Target(NamedTuple):
    """A figure with what it has to be for T = 1, 10, 50, of cells with 3 px of noise."""

    label: str
    figure: str  # of `summarise`
    families: tuple[str, ...]
    limits: tuple[Range, ...]  # at least, at most
    unit: str = ""  # " %": of a hundredth
    method: str = "ours"
    outliers: float = 0.05
    errors: str = "gaussian"

    def judges(self, cell: Cell) -> bool:
        asked = (3.0, self.outliers, self.errors)
        return cell.family in self.families and (cell.noise, cell.outliers, cell.errors) == asked


def _up_to(*most: float) -> tuple[Range, ...]:
    return tuple((-math.inf, value) for value in most)


def _coverage() -> list[Target]:
    rows = []
    for kind, errors, half, nine in (
        ("independent", "gaussian", (0.45, 0.55), (0.86, 0.94)),
        ("detector-like", "detector", (0.40, 0.60), (0.82, 0.96)),
    ):
        for what, name in (("rotation", "R"), ("joints", "x")):
            for level, limit in ((50, half), (90, nine)):
                label, figure = f"coverage {level} %, {what}, {kind}", f"coverage_{name}{level}"
                rows.append(Target(label, figure, NAMES, (limit,) * 3, errors=errors))
    return rows


_ORDINARY = GROUPS["ordinary"]
_BOUND, _CEILING = _up_to(1.3, 1.15, 1.1), _up_to(1.25, 1.03, 1.01)
TARGETS = [
    Target(
        "rotation, median, 4-view ring", "median_deg", ("ring4",), _up_to(3.2, 0.35, 0.17), " deg"
    ),
    Target(
        "RMS over the Cramer-Rao bound", "over_bound", _ORDINARY, _BOUND, " x", "ours-geometry", 0.0
    ),
    Target("failures, ordinary families", "failures", _ORDINARY, _up_to(0.02, 0.002, 0), " %"),
    Target("failures, two views 60 deg", "failures", ("two60",), _up_to(0.15, 0.01, 0), " %"),
    Target("failures, two views 20 deg", "failures", ("two20",), _up_to(0.1, 0.01, 0), " %"),
    Target("MPJPE (one scale) over ceiling", "over_ceiling", _ORDINARY, _CEILING, " x"),
    *_coverage(),
    Target("failures flagged", "flagged", NAMES, ((0.95, math.inf),) * 3, " %"),
    Target("good cases rejected", "rejected_good", NAMES, _up_to(0.02, 0.01, 0.01), " %"),
    Target("metric scale, median error", "scale", NAMES, _up_to(0.04, 0.03, 0.025), " %"),
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
                and target.judges(result.cell)
            ]
            if not chosen:
                continue

            def value_of(*parts: Result, name: str = target.figure) -> float:
                return summarise(pool([part.flat for part in parts])).get(name, math.nan)

            worst = _worst({result.cell.family: value_of(result) for result in chosen}, limit)
            column, value = f"T = {num_frames}", Figure(value_of(*chosen))
            rows.append(
                Judged(target.label, value, *limit, False, column, unit=target.unit, note=worst)
            )
    return rows


def _worst(families: dict[str, float], limit: Range) -> str:
    """The family farthest to the wrong side of a range, in brackets; "" of fewer than two."""
    known = {family: value for family, value in families.items() if not math.isnan(value)}
    if len(known) < 2:
        return ""
    return f"[{max(known, key=lambda name: max(known[name] - limit[1], limit[0] - known[name]))}]"
