"""The rules of the verdict: from what was measured to whether a rig can be trusted.

Four kinds of evidence, from the posterior and the keypoints alone:

* too little: a view without keypoints, keypoints on a line, rays that hardly cross, or a posterior
  so wide (or of several modes) that some pair of cameras may be turned against each other by more
  than the limit;
* one bad view: each view is held against what the others say of the joints
  (`ptri.verdict.leave_one_out`); it may fit them better with left and right exchanged, mirrored or
  at another time, or fit nowhere;
* keypoints that disagree as a whole: most are outliers, or many times as far off as they state;
* of a recording, two halves that give other cameras (`ptri.recordings.halves`).

The verdict reports. It does not repair: solving again with a view read anew did more harm than good
on detectors that nobody had tuned to (docs/decisions.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.posterior.sampling import RigSolution
from ptri.structures import MANY_FRAMES
from ptri.verdict.figures import Figures, Suspect, measure
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
    return [
        decide(one._replace(suspect=suspect), max_rotation_std_deg)
        for one, suspect in zip(figures, suspects)
    ]


def decide(figures: Figures, limit: float) -> Verdict:
    """The verdict on one rig: the first rule that objects.

    Args:
        limit: deg, as in `judge`.
    """
    verdict = (
        _too_few(figures)
        or _shape(figures, as_stated=True)
        or _one_view(figures)
        or _all_keypoints(figures)
        or _spread(figures, limit)
        or _shape(figures, as_stated=False)
        or Verdict(Code.ACCEPTED)
    )
    return verdict._replace(figures=figures)


def _too_few(figures: Figures) -> Verdict | None:
    least = min(figures.seen)
    if least < MIN_KEYPOINTS:
        view = figures.seen.index(least)
        return Verdict(Code.FEW_KEYPOINTS, view, value=least, limit=MIN_KEYPOINTS)
    return None if figures.finite else Verdict(Code.NO_SAMPLE)


def _shape(figures: Figures, as_stated: bool) -> Verdict | None:
    """Keypoints on a line and rays that hardly cross, at the stated noise or at the residuals'."""
    which = 0 if as_stated else 1
    if figures.on_a_line[which]:
        return Verdict(Code.ON_A_LINE)
    angle, needed = figures.parallax_deg, figures.parallax_needed_deg[which]
    return Verdict(Code.PARALLAX, value=angle, limit=needed) if angle < needed else None


def _one_view(figures: Figures) -> Verdict | None:
    used, suspect = figures.used, figures.suspect
    if suspect is None:
        odd = min(used) < MIN_USED and sorted(used)[(len(used) - 1) // 2] > USUAL_USED
        return Verdict(Code.MISFIT, used.index(min(used))) if odd else None
    if suspect.reading is not None:
        return Verdict(Code.MISREAD, suspect.view, reading=suspect.reading)
    code = Code.SHIFTED if suspect.lag else Code.MISFIT
    return Verdict(code, suspect.view, lag=suspect.lag)


def _all_keypoints(figures: Figures) -> Verdict | None:
    if figures.noise > MAX_NOISE:
        return Verdict(Code.NOISE, value=figures.noise, limit=MAX_NOISE)
    used = sum(figures.used) / len(figures.used)
    return Verdict(Code.OUTLIERS, value=used, limit=MIN_USED) if used < MIN_USED else None


def _spread(figures: Figures, limit: float) -> Verdict | None:
    worst = max(map(max, figures.doubt_deg))
    if worst <= limit:
        return None
    if figures.several:
        return Verdict(Code.SEVERAL_MODES)
    view = next(i for i, row in enumerate(figures.doubt_deg) if worst in row)
    other = figures.doubt_deg[view].index(worst)
    return Verdict(Code.UNCERTAIN, view, other, value=worst, limit=limit)


def blame(examination: Examination, num_frames: int) -> list[Suspect | None]:
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
        mirrored = [reading is Reading.MIRRORED for reading in examination.readings]
        mirrored = torch.tensor(mirrored, device=gain.device)
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
    suspects: list[Suspect | None] = []
    num_readings = len(examination.readings)
    for rig in range(len(best)):
        view, reading = divmod(int(which[rig]), num_readings + 1)
        if best[rig] <= 0:
            suspects.append(Suspect(int(misfit[rig])) if odd[rig] else None)
        elif reading == num_readings:
            suspects.append(Suspect(view, lag=float(examination.lag[rig, view])))
        else:
            suspects.append(Suspect(view, examination.readings[reading]))
    return suspects
