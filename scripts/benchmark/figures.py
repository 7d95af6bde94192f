"""Figures: means without NaN, bootstrap intervals, targets, and the tables that show them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ptri.evaluation.table import grid


class Figure(NamedTuple):
    """A number with its interval, where it has one; NaN: not measured."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def text(self, form: str = ".2f", unit: str = "") -> str:
        """As printed; the unit " %" is a hundredth."""
        if math.isnan(self.value):
            return "-"
        value, low, high = (f"{_factor(unit) * number:{form}}" for number in self)
        return f"{value}{unit}" + ("" if math.isnan(self.low) else f" [{low}, {high}]")


class Judged(NamedTuple):
    """A figure beside its target: at least ``least`` and at most ``most``."""

    label: str
    figure: Figure
    least: float = -math.inf
    most: float = math.inf
    strict: bool = False  # more than ``least``, less than ``most``
    column: str = ""  # of the table: rows of one label stand in one line
    form: str = ".3g"
    unit: str = ""  # " %": of a hundredth
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        value = self.figure.value
        if math.isnan(value):
            return None
        if self.strict:
            return self.least < value < self.most
        return self.least <= value <= self.most

    @property
    def aim(self) -> str:
        """The target in words."""
        least, most = (_factor(self.unit) * limit for limit in (self.least, self.most))
        equal = "" if self.strict else "="
        if math.isinf(least):
            return f"<{equal} {most:g}"
        return f">{equal} {least:g}" if math.isinf(most) else f"{least:g} to {most:g}"

    def text(self) -> str:
        """As printed: ``*`` marks a target that is not met."""
        if self.met is None:
            return f"not measured ({self.aim})"
        number = self.figure.text(self.form, self.unit)
        return f"{number}{'' if self.met else '*'} ({self.aim})" + f" {self.note}" * bool(self.note)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**self._asdict(), "figure": self.figure._asdict(), "aim": self.aim, "met": self.met}


def _factor(unit: str) -> int:
    return 100 if unit == " %" else 1


def targets_table(title: str, rows: Sequence[Judged], columns: Sequence[str] = ()) -> str:
    """Each target beside what was measured, and how many are met.

    Args:
        columns: their order; default: as the rows name them.
    """
    columns = columns or tuple(dict.fromkeys(row.column for row in rows))
    cells = {(row.label, row.column): row.text() for row in rows}
    lines = [
        [label, *(cells.get((label, column), "-") for column in columns)]
        for label in dict.fromkeys(row.label for row in rows)
    ]
    judged = [row.met for row in rows if row.met is not None]
    headings = [column or "measured (target)" for column in columns]
    table = grid(["", *headings], lines)
    return f"{title}; * = not met\n{table}\nmet: {sum(judged)} of {len(judged)}"


def bootstrap(
    groups: Sequence[tuple[np.ndarray, ...]],
    seed: int = 0,
    levels: tuple[float, float] = (0.025, 0.975),
    draws: int = 1000,
) -> Figure:
    """Mean of one array, or ratio of the means of two, with its interval.

    Args:
        groups: of each one or two arrays (N,); a row with a NaN does not count. Groups weigh
            alike, and each is drawn again by itself.
        levels: quantiles at the ends of the interval.
    """
    parts = [np.stack(arrays) for arrays in groups]
    parts = [part[:, np.isfinite(part).all(0)] for part in parts]
    if not parts or any(part.shape[1] == 0 for part in parts):
        return Figure()
    rng = np.random.default_rng(seed)

    def value(means: np.ndarray) -> np.ndarray:  # (groups, arrays, ...)
        mean_ = means.mean(0)
        return mean_[0] / mean_[1] if len(mean_) == 2 else mean_[0]

    drawn = []
    for part in parts:
        index = rng.integers(part.shape[1], size=(draws, part.shape[1]))
        drawn.append(part[:, index].mean(-1))  # (arrays, draws)
    low, high = np.quantile(value(np.stack(drawn)), levels)
    return Figure(float(value(np.stack([part.mean(1) for part in parts]))), float(low), float(high))


def mean(values: np.ndarray) -> float:
    """Without NaN; NaN of nothing."""
    return _of_numbers(np.mean, values)


def median(values: np.ndarray) -> float:
    """Without NaN; NaN of nothing."""
    return _of_numbers(np.median, values)


def rms(values: np.ndarray) -> float:
    """Root of the mean square, without NaN; NaN of nothing."""
    return mean(np.square(values)) ** 0.5


def _of_numbers(function: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    return float(function(values)) if len(values) else math.nan
