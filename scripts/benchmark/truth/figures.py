"""Figures of many cases, with 95 % intervals by bootstrap over clips.

Frames of one clip, and views of one rig, go together: clips are drawn again, not cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2

from benchmark.figures import Figure
from benchmark.truth.cells import Result
from ptri.evaluation.metrics import FAILURE_DEG

DRAWS = 500
GOOD_DEG = 5.0  # a good rig: every pair of views is nearer to the truth
WORSE_DEG, WORSE_LEVEL = 2.0, 0.99  # a view that ends worse than the plain solve: by so much, and
# outside its own stated region of that level
# Verdicts that name a view without blaming it for what it shows.
NO_BLAME = ("FEW_KEYPOINTS", "UNCERTAIN", "HALVES")
# Mahalanobis distance, squared, that half of the truths exceed where the covariance is right.
MEDIAN_SQUARE = float(chi2.ppf(0.5, 3))
QUARTILES = 4


class Pool(NamedTuple):
    """Results of several cells."""

    results: Sequence[Result]

    def array(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Values of a score, flat, and the clip of each."""
        parts = [r.scores[name].reshape(len(r.clips), -1) for r in self.results]
        clips = [np.repeat(r.clips, part.shape[1]) for r, part in zip(self.results, parts)]
        return np.concatenate([part.ravel() for part in parts]), np.concatenate(clips)

    def of_rigs(self, name: str, function) -> np.ndarray:
        """A function (N, ...) -> (N,) of a score, of all cases."""
        return np.concatenate([function(r.scores[name]) for r in self.results])

    @property
    def clips(self) -> np.ndarray:
        return np.concatenate([r.clips for r in self.results])


def share(values: np.ndarray, clips: np.ndarray, over: np.ndarray | None = None) -> Figure:
    """Mean of values, NaN left out; or the ratio of their sum to that of others."""
    over = np.ones(len(values)) if over is None else np.asarray(over, float)
    values = np.asarray(values, float)
    keep = np.isfinite(values) & np.isfinite(over)
    if not keep.any() or not over[keep].any():
        return Figure()
    values, over = values[keep], over[keep]
    times, group = _drawn(clips[keep])
    above, below = (times @ np.bincount(group, part) for part in (values, over))
    drawn = above[below > 0] / below[below > 0]
    return _figure(values.sum() / over.sum(), drawn, times)


def quantile(values: np.ndarray, clips: np.ndarray, level: float) -> Figure:
    """Quantile of values, NaN left out."""
    keep = ~np.isnan(values)
    if not keep.any():
        return Figure()
    order = values[keep].argsort()
    ordered = values[keep][order]
    times, group = _drawn(clips[keep][order])
    total = times[:, group].cumsum(1)  # (draws, N)
    drawn = ordered[(total >= level * total[:, -1:]).argmax(1)]
    return _figure(_quantiles(ordered, level), drawn, times)


def _drawn(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each of C clips is drawn (DRAWS, C), and the number (N,) of each value's clip."""
    names, group = np.unique(clips, return_inverse=True)
    rng = np.random.default_rng(0)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS), group


def _figure(value: float, drawn: np.ndarray, times: np.ndarray) -> Figure:
    if times.shape[1] < 2:  # one clip says nothing about others
        return Figure(float(value))
    return Figure(float(value), *map(float, _quantiles(drawn, (0.025, 0.975))))


def _quantiles(values: np.ndarray, levels) -> np.ndarray:
    """Some of the values, since a distance by a covariance of no extent is infinite."""
    return np.quantile(values, levels, method="inverted_cdf")


# --- what is counted -------------------------------------------------------------------------


def summarise(results: Sequence[Result]) -> dict[str, Figure]:
    """All figures of some cells' cases."""
    pool = Pool(results)
    clips = pool.clips
    count = {"rigs": Figure(len(clips)), "clips": Figure(len(np.unique(clips)))}
    if results[0].cell.kind:
        return count | _verdicts(pool)
    figures = count | _regions(pool) | _verdicts(pool)
    for name in ("angle", "plain_angle", "cauchy_angle"):
        figures[f"{name}_median"] = quantile(*pool.array(name), 0.5)
        figures[f"{name}_95"] = quantile(*pool.array(name), 0.95)
    calibrated = pool.array("calibrated")[0]
    figures["over_calibrated"] = share(*pool.array("mpjpe"), calibrated)
    return figures


def _regions(pool: Pool) -> dict[str, Figure]:
    figures = {}
    for what in ("level", "joints", "body"):
        values, clips = pool.array(what)
        for level in (0.5, 0.9):
            figures[f"{what}{100 * level:.0f}"] = share(inside(values, level), clips)
    figures["too_small"] = too_small(*pool.array("square"))
    return figures


def inside(levels: np.ndarray, level: float) -> np.ndarray:
    """1 where a region of a level holds the truth, else 0; NaN where that is not known."""
    return np.where(np.isnan(levels), np.nan, levels <= level)


def too_small(square: np.ndarray, clips: np.ndarray) -> Figure:
    """Factor on the stated standard deviations at which half of the truths lie within the middle.

    Args:
        square: squared Mahalanobis distances of rotations.
    """
    return Figure(*(value**0.5 for value in _scaled(quantile(square, clips, 0.5))))


def _scaled(figure: Figure) -> Figure:
    return Figure(*(value / MEDIAN_SQUARE for value in figure))


def _verdicts(pool: Pool) -> dict[str, Figure]:
    clips = pool.clips
    code = pool.of_rigs("code", lambda values: values)
    accepted = code == "ACCEPTED"
    worst = pool.of_rigs("angle", lambda angle: np.nan_to_num(angle, nan=180.0).max(1))
    view = pool.of_rigs("view", lambda view: view).astype(int)
    good_views = [row for result in pool.results for row in result.scores["good"]]  # (N, V)
    named = np.array([v >= 0 and bool(row[v]) for v, row in zip(view, good_views)])
    good = worst < GOOD_DEG
    figures = {
        "accepted": share(accepted, clips),
        "failed_of_accepted": share((worst > FAILURE_DEG) & accepted, clips, accepted),
        "rejected_of_good": share(good & ~accepted, clips, good),
        "blamed": share(named & ~np.isin(code, NO_BLAME), clips),
    }
    if all("plain_away" in result.scores for result in pool.results):
        gained = [r.scores["plain_away"] - r.scores["away"] for r in pool.results]
        outside = [r.scores["level"] > WORSE_LEVEL for r in pool.results]
        worse = [(-by > WORSE_DEG) & out for by, out in zip(gained, outside)]
        for name, parts in (("worse", worse), ("better", [by > WORSE_DEG for by in gained])):
            figures[name] = share(np.concatenate([part.any(1) for part in parts]), clips)
    return figures


def codes(results: Sequence[Result]) -> dict[str, int]:
    """How often each verdict was given, the most frequent first."""
    names, counts = np.unique(
        np.concatenate([result.scores["code"] for result in results]), return_counts=True
    )
    order = counts.argsort()[::-1]
    return {str(names[row]): int(counts[row]) for row in order}


def by_difficulty(results: Sequence[Result]) -> list[dict[str, Figure]]:
    """Coverage of rotations in the quartiles of the stated width, the narrowest first."""
    pool = Pool(results)
    (width, clips), (level, _), (square, _) = (
        pool.array(name) for name in ("width", "level", "square")
    )
    parts = []
    for rows in np.array_split(width.argsort(kind="stable"), QUARTILES):
        if not len(rows):
            continue
        part = {"width": Figure(float(np.median(width[rows])))}
        for stated in (0.5, 0.9):
            part[f"level{100 * stated:.0f}"] = share(inside(level[rows], stated), clips[rows])
        part["too_small"] = too_small(square[rows], clips[rows])
        parts.append(part)
    return parts
