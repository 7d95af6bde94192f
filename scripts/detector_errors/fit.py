"""Fits the error model's parameters to a detector's statistics, by simulating those.

Method of simulated moments (McFadden 1989): each parameter has a statistic that answers to it; the
squared differences between measured and simulated statistics, in standard errors, are minimised by
Levenberg's damped steps with common random numbers. How hard single joints are, and are said to be,
is corrected beside it by what the simulated errors miss; where the detector's joints lie off ours
in everybody is taken as measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor
from tqdm import tqdm

from detector_errors.clips import Clips, simulate
from detector_errors.moments import LABELS, Statistics, measure
from detector_errors.truth import Truth, true_views
from ptri.errors import UserError
from ptri.people.error_model import ErrorModel
from ptri.structures import Keypoints, take

SHARES = ("steady_spread", "rounding", "correlated_share", "confident_outliers", "confident_swaps")
PLAIN = ("confidence_logit",)  # fitted as they are; shares by their logit, all others by their log
_EDGE = 5e-3  # shares stay this far from 0 and 1 while they are fitted
_LEAST = 1e-4  # numbers above 0 stay above this
_STEP = 0.15  # for the derivatives: large enough that rates change the number of events
_PRIOR = 2.0  # spread about the start in those units: holds what no statistic tells
_GROUPS = 8  # of clips, for the standard errors
_FINEST = 0.03  # standard errors are not taken to be smaller, relative
_LARGEST_STEP = 1.0
# First guesses: what is measured directly, as much of what is measured, and middling values.
_MEASURED = (
    *("clip_spread", "view_spread", "noise_spread", "steady_spread"),
    *("confidence_noise", "confidence_slope", "confidence_logit"),
)
_AT_MOST = {"body_swap_rate": 0.5, "limb_swap_rate": 0.5, "limb_copy_rate": 0.3}
_GUESSES = {"bias_follows": 0.5, "profile_copies": 1.5, "confident_swaps": 0.5, "fault_s": 1.0}
_STALE = 2  # accepted steps after which the derivatives are computed anew


class Fit(NamedTuple):
    """Fitted settings, and what they were fitted to."""

    options: ErrorModel
    measured: Statistics
    simulated: Statistics  # at the options, with other random numbers
    error: dict[str, float]  # standard error of each measured number
    names: list[str]  # parameters that were fitted: whose statistic could be measured


def fit(
    clips: Clips,
    start: ErrorModel,
    seed: int = 0,
    rounds: int = 8,
    repeats: int = 2,
) -> Fit:
    """Fits every parameter that `detector_errors.moments.LABELS` names, and those of the joints.

    Args:
        clips: a detector's keypoints of known people.
        start: settings to start from; keeps what is not fitted.
        rounds: steps of the minimisation.
        repeats: simulations that a simulated statistic is the mean of.

    Raises:
        UserError: the clips say too little.
    """
    truth = true_views(clips)
    measured, error = measure(truth, clips.keypoints), standard_errors(truth, clips.keypoints)
    names = [name for name in LABELS if math.isfinite(measured.values[name])]
    given = clips.keypoints.xy.isfinite().all(-1).flatten(0, -2).any(0)  # (17,)
    if "noise" not in names or not measured.joint[given].isfinite().all():
        raise UserError(
            "too few joints inside the images to measure a detector's errors on: give more frames"
        )
    options = _opened(start, measured, clips.fps)
    origin = to_numbers(options, names)

    def simulated(options: ErrorModel, first: int = 0, count: int = repeats) -> Statistics:
        runs = [
            measure(truth, simulate(clips, options, seed + first + run).keypoints)
            for run in range(count)
        ]
        return average(runs)

    def residual(statistics: Statistics, options: ErrorModel) -> np.ndarray:
        off = [(statistics.values[k] - measured.values[k]) / error[k] for k in names]
        held = (to_numbers(options, names) - origin) / _PRIOR
        return np.nan_to_num(np.concatenate([off, held]), nan=0.0)  # a share of nothing

    def once(options: ErrorModel) -> np.ndarray:
        return residual(simulated(options, count=1), options)

    damping, age, slope = 1.0, _STALE, None
    now = simulated(options)
    bar = tqdm(range(rounds), desc="fit", unit="round", disable=None)
    for _ in bar:
        before = residual(now, options)
        if age >= _STALE:
            slope, age = derivatives(options, names, once), 0
        for _ in range(4):
            step = _step(slope, before, damping)
            tried = corrected(moved(options, names, step), measured, now)
            result = simulated(tried)
            after = residual(result, tried)
            if after @ after < before @ before:
                slope = slope + np.outer(after - before - slope @ step, step) / (step @ step)
                options, now, age, damping = tried, result, age + 1, damping / 5
                break
            damping *= 5
        else:
            age, damping = _STALE, 1.0
        bar.set_postfix(misfit=f"{float(min(after @ after, before @ before)):.1f}")
    return Fit(options, measured, simulated(options, repeats), error, names)


def _step(slope: np.ndarray, residual: np.ndarray, damping: float) -> np.ndarray:
    left = slope.T @ slope
    left = left + damping * np.diag(left.diagonal())
    step = -np.linalg.solve(left, slope.T @ residual)
    return step.clip(-_LARGEST_STEP, _LARGEST_STEP)


def derivatives(
    options: ErrorModel,
    names: list[str],
    residual: Callable[[ErrorModel], np.ndarray],
) -> np.ndarray:
    """Forward differences (residuals, parameters) with the same random numbers."""
    now, columns = residual(options), []
    for number in range(len(names)):
        step = np.zeros(len(names))
        step[number] = _STEP
        there = moved(options, names, step)
        real = to_numbers(there, names) - to_numbers(options, names)  # shorter at a bound
        if abs(real[number]) < 0.1 * _STEP:
            there = moved(options, names, -step)
            real = to_numbers(there, names) - to_numbers(options, names)
        columns.append((residual(there) - now) / real[number])
    return np.stack(columns, 1)


def to_numbers(options: ErrorModel, names: list[str]) -> np.ndarray:
    """Parameters as unbounded numbers."""

    def number(name: str, value: float) -> float:
        if name in SHARES:
            return logit(min(max(value, _EDGE), 1 - _EDGE))
        return value if name in PLAIN else math.log(max(value, _LEAST))

    return np.array([number(name, getattr(options, name)) for name in names])


def moved(options: ErrorModel, names: list[str], step: np.ndarray) -> ErrorModel:
    """The options a step (of `to_numbers`) away, within their ranges."""

    def value(name: str, number: float) -> float:
        if name in SHARES:
            return min(max(expit(number), _EDGE), 1 - _EDGE)
        return number if name in PLAIN else math.exp(min(number, 20.0))

    numbers = dict(zip(names, to_numbers(options, names) + step))
    values = {name: _in_range(options, name, value(name, x)) for name, x in numbers.items()}
    return dataclasses.replace(options, **values)


def corrected(options: ErrorModel, measured: Statistics, simulated: Statistics) -> ErrorModel:
    """How hard the joints are, and are said to be, by what simulations of both miss."""
    noise = _relative(torch.tensor(options.joint_noise) * _missed(measured.joint, simulated.joint))
    # The true noise's share of what is stated changes with it.
    old = torch.tensor(options.joint_noise) * torch.tensor(options.joint_stated)
    stated = _relative(old * _missed(measured.stated, simulated.stated) / noise)
    return dataclasses.replace(options, joint_noise=noise.tolist(), joint_stated=stated.tolist())


def _missed(measured: Tensor, simulated: Tensor) -> Tensor:
    return (measured / simulated).log().clamp(-0.7, 0.7).exp()


def _relative(factors: Tensor) -> Tensor:
    """Factors of geometric mean one; 1 for joints that are not given (NaN)."""
    return (factors / factors.log().nanmean().exp()).nan_to_num(1.0)


def standard_errors(truth: Truth, keypoints: Keypoints) -> dict[str, float]:
    """Of each number, from groups of clips."""
    count = len(truth.scale)  # a spread over clips needs two in a group
    groups = torch.arange(count).tensor_split(min(_GROUPS, count // 2))
    parts = [measure(take(truth, rows), take(keypoints, rows)).values for rows in groups]
    errors = {}
    for name in LABELS:
        values = np.array([part[name] for part in parts])
        known = np.isfinite(values)
        size = float(np.abs(values[known]).mean()) if known.any() else 1.0
        spread = float(values[known].std(ddof=1)) if known.sum() > 2 else size
        errors[name] = max(spread / math.sqrt(max(known.sum(), 1)), _FINEST * size, 1e-4)
    return errors


def average(runs: list[Statistics]) -> Statistics:
    """The mean of every number over simulations."""
    values = {name: float(np.mean([run.values[name] for run in runs])) for name in LABELS}
    return Statistics(values, *(torch.stack(parts).mean(0) for parts in list(zip(*runs))[1:]))


def _opened(start: ErrorModel, measured: Statistics, fps: float) -> ErrorModel:
    """The start with every factor at work, and first guesses that need no simulation."""
    values = measured.values
    joint, stated = _relative(measured.joint), _relative(measured.stated / measured.joint)
    guess = {"noise": values["noise"] / 1.18}  # the median of a Rayleigh distribution
    guess |= {name: values[name] for name in _MEASURED}
    guess |= {name: min(values[name], most) for name, most in _AT_MOST.items()} | _GUESSES
    guess = {name: value for name, value in guess.items() if math.isfinite(values[name])}
    return dataclasses.replace(
        start,
        **{name: _in_range(start, name, max(value, _EDGE)) for name, value in guess.items()},
        fps=fps,
        joint_noise=joint.tolist(),
        joint_stated=stated.tolist(),
        definition_mean=measured.definition.tolist(),
    )


def _in_range(options: ErrorModel, name: str, value: float) -> float:
    """A setting within what it allows."""
    limits = next(item.metadata for item in dataclasses.fields(options) if item.name == name)
    return float(min(max(value, limits["low"]), limits["high"]))
