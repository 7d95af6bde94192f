"""The rules of the verdict: from what was measured to whether a rig can be trusted.

Four kinds of evidence, from the posterior and the keypoints alone:

* too little: a view without keypoints, keypoints on a line, rays that hardly cross, or a posterior
  so wide (or of several modes) that some pair of cameras may be turned against each other by more
  than the limit;
* one bad view: each view is held against what the others say of the joints
  (`ptri.verdict.leave_one_out`); it may fit them better with left and right exchanged, mirrored or
  at another time, or fit nowhere;
* keypoints that disagree as a whole: most are outliers, or many times as far off as they state;
* of a recording, two halves that give other cameras (`ptri.recordings.solve`).

The verdict reports. It does not repair: solving again with a view read anew did more harm than good
on detectors that nobody had tuned to (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ptri.posterior.sampling import RigSolution
from ptri.structures import MANY_FRAMES, constant
from ptri.verdict.figures import Figures, measure
from ptri.verdict.leave_one_out import Examination
from ptri.verdict.readings import Reading
from ptri.verdict.verdict import Code, Verdict

MIN_KEYPOINTS = 6  # of a view, over all frames: a camera pose has six unknowns
# Nats by which another reading of one view must fit better than the view's own. Of a moment: the
# label swaps that a detector makes are not rare (one view in a hundred and more).
MOMENTARY_NATS = 7.0
# Of whole clips. A mirrored image with its labels kept looks much like the person seen from behind,
# so that little tells them apart; exchanged labels move every limb, and less than this, in nats a
# point, is some frames' swap.
MIRRORED_NATS = 10.0
EXCHANGED_NATS = 0.4
MOVED_DEG = 8.0  # another reading matters if it turns the camera by more,
PLAIN_NATS = 1.0  # or, of whole clips, if it fits better by so much a point
SHIFT_NATS = 1.0  # a point, by which a time shift must fit better; motion leaves no doubt
SHIFT_LEAST = 0.75  # frames; less is the clock's, not the file's
FITS_NATS = 2.6  # a point; a reading that leaves more does not explain the view
MISFIT_NATS = 3.0  # a point; a view that leaves more under every reading fits nowhere
MISFIT_RATIO = 1.6  # and that much more than the median of the views
MAX_NOISE = 5.0  # residuals over their stated standard deviation
MIN_USED = 0.4  # share of a view's keypoints that are no outliers
USUAL_USED = 0.6  # the same of the views beside one that is odd


def judge(
    solution: RigSolution, max_rotation_std_deg: float, times: Tensor | None = None
) -> list[Verdict]:
    """Whether each of B rigs can be trusted, and if not, why.

    Args:
        max_rotation_std_deg: a pair of cameras that may be turned against each other by more
            (root mean square of the angle) is too uncertain.
        times: (T,) numbers of the frames, in which shifts in time are told; default 0 to T - 1.
    """
    figures, examination = measure(solution, times)
    suspects = blame(examination, solution.evidence.observations.xy.shape[1])
    return [decide(*rig, max_rotation_std_deg) for rig in zip(figures, suspects)]


def decide(figures: Figures, suspect: Verdict | None, limit: float) -> Verdict:
    """The verdict on one rig: the first objection.

    Args:
        suspect: on a view that does not fit the others as it is, see `blame`.
        limit: deg, as in `judge`.
    """
    objections = _objections(figures, suspect, limit)
    return next(objections, Verdict(Code.ACCEPTED))._replace(figures=figures)


def _objections(figures: Figures, suspect: Verdict | None, limit: float) -> Iterator[Verdict]:
    """All that speaks against a rig, in the order in which it counts."""
    least = min(figures.seen)
    if least < MIN_KEYPOINTS:
        view = figures.seen.index(least)
        yield Verdict(Code.FEW_KEYPOINTS, view, value=least, limit=MIN_KEYPOINTS)
    if not figures.finite:
        yield Verdict(Code.NO_SAMPLE)
    yield from _shape(figures, 0)
    if suspect is not None:
        yield suspect
    used = figures.used
    if min(used) < MIN_USED and sorted(used)[(len(used) - 1) // 2] > USUAL_USED:
        yield Verdict(Code.MISFIT, used.index(min(used)))
    if figures.noise > MAX_NOISE:
        yield Verdict(Code.NOISE, value=figures.noise, limit=MAX_NOISE)
    share = sum(used) / len(used)
    if share < MIN_USED:
        yield Verdict(Code.OUTLIERS, value=share, limit=MIN_USED)
    worst = max(map(max, figures.doubt_deg))
    if worst > limit and figures.several:
        yield Verdict(Code.SEVERAL_MODES)
    if worst > limit:
        view = next(i for i, row in enumerate(figures.doubt_deg) if worst in row)
        other = figures.doubt_deg[view].index(worst)
        yield Verdict(Code.UNCERTAIN, view, other, value=worst, limit=limit)
    yield from _shape(figures, 1)


def _shape(figures: Figures, which: int) -> Iterator[Verdict]:
    """Keypoints on a line and rays that hardly cross, at the stated noise (0) or the residuals'."""
    if figures.on_a_line[which]:
        yield Verdict(Code.ON_A_LINE)
    angle, needed = figures.parallax_deg, figures.parallax_needed_deg[which]
    if angle < needed:
        yield Verdict(Code.PARALLAX, value=angle, limit=needed)


def blame(examination: Examination, num_frames: int) -> list[Verdict | None]:
    """Of each rig the view that fits the others best under another reading, or worst under all.

    Args:
        num_frames: that the rigs were solved from.
    """
    as_is = examination.cost[..., 0]  # (B, V) nats a point
    gain = as_is[..., None] - examination.cost  # (B, V, H)
    turned = torch.rad2deg(examination.turned) > MOVED_DEG
    count = examination.points[..., None].clamp_min(1)
    if num_frames >= MANY_FRAMES:
        turned = turned | (gain > PLAIN_NATS)
        mirrored = tuple(reading is Reading.MIRRORED for reading in examination.readings)
        mirrored = constant(mirrored, gain.device, torch.bool)
        least = torch.where(mirrored, MIRRORED_NATS / count, EXCHANGED_NATS)
    else:
        least = MOMENTARY_NATS / count
    fits = turned & (examination.cost < FITS_NATS) & (gain > least)
    gain = torch.where(fits, gain, 0.0)
    shift = as_is - examination.lag_cost
    fits = examination.lag.abs() > examination.spacing * SHIFT_LEAST
    fits = fits & (examination.lag_cost < FITS_NATS) & (shift > SHIFT_NATS)
    fits = fits & (examination.lag_cost < examination.cost.amin(-1))
    shift = torch.where(fits, shift, 0.0)
    # Costs of views that cannot be examined are infinite, their gains NaN.
    gain = torch.cat([gain, shift[..., None]], -1).nan_to_num(0.0)  # (B, V, H + 1)
    best, which = gain.flatten(1).max(1)
    # A view that fits nowhere, next to others that fit each other.
    least = torch.where(torch.isfinite(as_is), examination.cost.amin(-1), torch.nan)
    worst, misfit = least.nan_to_num(0.0).max(1)
    usual = least.nanmedian(1).values
    odd = (worst > MISFIT_NATS) & (worst > MISFIT_RATIO * usual)
    suspects: list[Verdict | None] = []
    num_readings = len(examination.readings)
    columns = best, which, misfit, odd, examination.lag
    for gained, number, worst_view, is_odd, lag in zip(*(value.tolist() for value in columns)):
        view, reading = divmod(number, num_readings + 1)
        if gained <= 0:
            suspects.append(Verdict(Code.MISFIT, worst_view) if is_odd else None)
        elif reading == num_readings:
            suspects.append(Verdict(Code.SHIFTED, view, lag=lag[view]))
        else:
            suspects.append(Verdict(Code.MISREAD, view, reading=examination.readings[reading]))
    return suspects
