"""What the figures should be, by the number of frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from benchmark.figures import Figure, Judged
from benchmark.truth.cases import GENERATED

HELD_OUT_DETECTORS, HELD_OUT_FAMILIES = ("mediapipe",), ("wall",)
POOLED = "development"  # families of four views that are not held out, together
Range = tuple[float, float]


class Target(NamedTuple):
    """Of one, some ten, and 50 frames or more: at least, at most; None: no target."""

    figure: str
    label: str
    limits: tuple[Range | None, Range | None, Range | None]
    generated: bool | None = None  # of generated cases, of real detectors; None: of both


def _most(*values: float | None) -> tuple[Range | None, ...]:
    return tuple(None if value is None else (-math.inf, value) for value in values)


TARGETS = (
    Target("level90", "R in 90 %", ((0.8, 0.96), (0.82, 0.96), (0.82, 0.96)), False),
    Target("level50", "R in 50 %", ((0.38, 0.62), (0.4, 0.6), (0.4, 0.6)), False),
    Target("level90", "R in 90 %", ((0.86, 0.94),) * 3, True),
    Target("level50", "R in 50 %", ((0.45, 0.55),) * 3, True),
    Target("joints90", "joints in 90 %", ((0.8, 0.96), (0.82, 0.96), (0.82, 0.96)), False),
    Target("body90", "fused in 90 %", ((0.8, 0.96), (0.82, 0.96), (0.82, 0.96)), False),
    Target("failed_of_accepted", "> 10 deg of accepted", _most(0.1, 0.01, 0.0)),
    Target("rejected_of_good", "good rejected", _most(None, 0.05, 0.03), False),
    Target("blamed", "good views blamed", _most(0.01, 0.01, 0.01)),
    Target("worse", "worse than plain", _most(0.0, 0.0, 0.0)),
)


def judge(
    detector: str, family: str, num_frames: int, figures: Mapping[str, Figure]
) -> list[Judged]:
    """Those figures that have a target, beside it."""
    size = 0 if num_frames < 4 else 1 if num_frames < 50 else 2
    rows = []
    for target in TARGETS:
        limits = target.limits[size]
        if limits is None or target.figure not in figures:
            continue
        if target.generated is None or target.generated == (detector in GENERATED):
            label = f"{title(detector, family)}: {target.label}"
            figure, column = figures[target.figure], f"T = {num_frames}"
            rows.append(Judged(label, figure, *limits, False, column, ".0f", " %"))
    return rows


def title(detector: str, family: str) -> str:
    """A row's name; ``#`` marks what nothing was chosen on."""
    marks = ("#" * held_out(detector, ""), "#" * held_out("", family))
    return f"{detector}{marks[0]}, {family}{marks[1]}"


def stands_alone(family: str) -> bool:
    """Whether a family is judged by itself: held out, or of another number of views."""
    return family in HELD_OUT_FAMILIES or " " in family


def held_out(detector: str, family: str) -> bool:
    return detector in HELD_OUT_DETECTORS or family in HELD_OUT_FAMILIES
