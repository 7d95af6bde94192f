"""Whether an estimated rig can be trusted, and if not, why.

Three kinds of evidence, from the posterior and the keypoints alone:

* too little: a view without keypoints, or a posterior so wide (or of several modes) that some pair
  of cameras may be turned against each other by more than the posterior's mean says;
* one bad view: `ptri.verdict.leave_one_out` resects each view on what the others say of the joints,
  and finds views that fit them better with left and right exchanged, mirrored or shifted in
  time, views that would fit as well from elsewhere, and views that fit nowhere;
* keypoints that disagree as a whole: most are outliers, or many times as far off as they state.

A view that is blamed can be read anew, or left out, and the rig solved again: see `mend`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.geometry.rotations import procrustes_rotation
from ptri.posterior.sampling import RigSolution
from ptri.structures import MANY_FRAMES, RigPosterior
from ptri.verdict import leave_one_out as diagnosis
from ptri.verdict.leave_one_out import Examination, Reading

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
# Share of the angle between a view's camera and the one that the others' joints give it. It is
# added (squared) to the posterior's spread, which cannot know what its model leaves out.
JACKKNIFE = 0.5
MAX_NOISE = 5.0  # residuals over their stated standard deviation
MIN_USED = 0.4  # share of a view's keypoints that are no outliers
USUAL_USED = 0.6  # the same of the views beside one that is odd
# Samples so far from the best, so many of them, few half as far, and many nearer: several modes.
FAR_DEG, FAR_SHARE, BETWEEN_SHARE, NEAR_SHARE = 20.0, 0.05, 0.25, 0.15
NOBODY, SHIFTED, UNREADABLE = -1, -1, -2


class Verdict(NamedTuple):
    """What is thought of B rigs."""

    accepted: Tensor  # (B,) bool
    reason: list[str]
    readings: tuple[Reading, ...]  # that were tried
    view: Tensor  # (B,) int64, the one view to blame, or NOBODY
    reading: Tensor  # (B,) int64, under which of the readings it fits, or SHIFTED, UNREADABLE
    lag: Tensor  # (B,) frames by which what that view shows comes too late


def judge(
    solution: RigSolution,
    settings: PosteriorConfig,
    frames: Tensor | None = None,
    views: bool = True,
) -> RigSolution:
    """The solution with its posterior's ``accepted`` and ``reason`` filled in; see `verdict`."""
    found = verdict(solution, settings, frames, views)
    return with_verdict(solution, found.accepted, found.reason)


def with_verdict(solution: RigSolution, accepted: Tensor, reason: list[str]) -> RigSolution:
    """The solution with another verdict."""
    posterior = solution.posterior._replace(accepted=accepted, reason=reason)
    return solution._replace(posterior=posterior)


@torch.no_grad()
def verdict(
    solution: RigSolution,
    settings: PosteriorConfig,
    frames: Tensor | None = None,
    views: bool = True,
) -> Verdict:
    """Whether each rig can be trusted, and if not, why.

    Args:
        frames: (T,) numbers of the frames, in which time shifts are told; default 0 to T - 1.
        views: also examine the single views, which costs most of the time.
    """
    posterior, finite = _finite(solution.posterior)
    evidence = solution.evidence
    observations = evidence.observations
    seen = (observations.inlier > 0).sum((1, 3))  # (B, V)
    used = evidence.weight.sum((1, 3)) / seen.clamp_min(1)
    spread, several = spread_deg(posterior)
    doubt, suspect, readings = spread, _nobody(seen), ()
    if views:
        t = torch.einsum("mb,mbvi->bvi", posterior.log_weights.exp(), posterior.t)
        R = mean_rotation(posterior)
        found = diagnosis.examine(
            observations, R, t, evidence.joints.nan_to_num(), evidence.weight, frames
        )
        suspect, readings = blame(found, observations.inlier.shape[1]), found.readings
        if seen.shape[1] > 3:  # two other views say too little
            turned = JACKKNIFE * torch.rad2deg(found.turned[..., 0])
            either = torch.maximum(turned[:, :, None], turned[:, None])
            doubt = (spread.square() + either.square()).sqrt()
    unseen = seen.amin(1) < MIN_KEYPOINTS
    odd = (used.amin(1) < MIN_USED) & (used.median(1).values > USUAL_USED)
    odd = odd & (suspect.view == NOBODY)
    view = torch.where(unseen, seen.argmin(1), torch.where(odd, used.argmin(1), suspect.view))
    reading = torch.where(unseen | odd, UNREADABLE, suspect.reading)
    suspect = Suspect(view, reading, suspect.lag)
    limit = settings.max_rotation_std_deg
    columns = seen, used, evidence.scale2.sqrt(), doubt, several, finite, *suspect
    reasons = [
        _reason(readings, limit, *row) for row in zip(*(value.tolist() for value in columns))
    ]
    accepted = torch.tensor([not reason for reason in reasons], device=seen.device)
    return Verdict(accepted, [reason or "accepted" for reason in reasons], readings, *suspect)


def _reason(
    readings: tuple[Reading, ...],
    limit: float,
    seen: list[int],
    used: list[float],
    noise: float,
    doubt: list[list[float]],
    several: bool,
    finite: bool,
    view: int,
    reading: int,
    lag: float,
) -> str:
    """Why one rig is not accepted; empty where it is. Numbers as in `verdict`."""
    if min(seen) < MIN_KEYPOINTS:
        return f"too little evidence: view {view} has {seen[view]} keypoints"
    if not finite:
        return "no sample explains the keypoints"
    if reading == SHIFTED:
        return f"bad camera: view {view} seems shifted by {lag:+.0f} frames"
    if reading == UNREADABLE:
        return f"bad camera: view {view} disagrees with the others"
    if view != NOBODY:
        return "bad camera: " + readings[reading].words.format(view=f"view {view}")
    if noise > MAX_NOISE:
        return f"the keypoints disagree: residuals are {noise:.1f} times their stated uncertainty"
    if sum(used) / len(used) < MIN_USED:
        return "the keypoints disagree: most of them are outliers"
    worst = max(map(max, doubt))
    if worst > limit:
        if several:
            return "several modes explain the keypoints"
        first = next(i for i, row in enumerate(doubt) if worst in row)
        second = max(range(len(doubt)), key=lambda j: (doubt[first][j], j != first))
        return (
            f"too little evidence: rotation between view {first} and view {second} uncertain by "
            f"{worst:.1f} deg"
        )
    return ""


def _finite(posterior: RigPosterior) -> tuple[RigPosterior, Tensor]:
    """The posterior with something finite where it is not, and whether it is, (B,) bool."""
    R, t, log_weights = posterior[:3]
    finite = torch.isfinite(R).all(-1).all(-1).all(-1) & torch.isfinite(t).all(-1).all(-1)
    finite = finite.all(0) & torch.isfinite(log_weights).any(0) & ~log_weights.isnan().any(0)
    if bool(finite.all()):
        return posterior, finite
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    R = torch.where(finite[:, None, None, None], R, eye)
    t = torch.where(finite[:, None, None], t, 0.0)
    log_weights = torch.where(finite, log_weights, -math.log(len(log_weights)))
    return posterior._replace(R=R, t=t, log_weights=log_weights), finite


def spread_deg(posterior: RigPosterior) -> tuple[Tensor, Tensor]:
    """How far the cameras of each pair may be turned against each other.

    Returns:
        (B, V, V) deg, root mean square of the angle between the samples' relative rotation and
        the mean's; and whether samples of some pair lie far from the best with few between, (B,).
    """
    weights = posterior.log_weights.exp().float()
    R = posterior.R.float()
    mean = mean_rotation(posterior).float()
    # 2 sin(angle) axis of mean^T R is the sum of the rows' cross products; its trace is <mean, R>.
    axis = torch.linalg.cross(R, mean.expand_as(R), dim=-1).sum(-2)  # (M, B, V, 3)
    sine = axis.norm(dim=-1)
    angle = torch.atan2(sine, (R * mean).sum((-1, -2)) - 1)
    # 1e-12 guards samples that are the mean.
    w = torch.rad2deg(angle / sine.clamp_min(1e-12)).unsqueeze(-1) * axis
    # exp(w_i) exp(-w_j) turns by |w_i - w_j|, to first order.
    pair = w.unsqueeze(3) - w.unsqueeze(2)  # (M, B, V, V, 3)
    spread = torch.einsum("mb,mbij->bij", weights, pair.square().sum(-1)).sqrt()
    # Modes are told apart from the best sample: the mean of two may belong to neither.
    best = weights.argmax(0)
    rig = torch.arange(len(best), device=best.device)
    away = (pair - pair[best, rig]).square().sum(-1)
    far, off = (
        torch.einsum("mb,mbij->bij", weights, (away > limit**2).to(weights))
        for limit in (FAR_DEG, FAR_DEG / 2)
    )
    several = (far > FAR_SHARE) & (off - far < BETWEEN_SHARE * far) & (off < 1 - NEAR_SHARE)
    return spread, several.flatten(1).any(1)


def mean_rotation(posterior: RigPosterior) -> Tensor:
    """The samples' mean rotation (B, V, 3, 3); that of `posterior_mean`, faster.

    The mean of Markley et al. maximises sum w trace(R^T R_m), so it is the rotation nearest to
    the mean matrix.
    """
    weights = posterior.log_weights.exp()
    return procrustes_rotation(torch.einsum("mb,mbvij->bvij", weights, posterior.R))


class Suspect(NamedTuple):
    """The one view that is to blame, of each of B rigs."""

    view: Tensor  # (B,) int64; NOBODY
    reading: Tensor  # (B,) int64, of the examination's readings; or SHIFTED, UNREADABLE
    lag: Tensor  # (B,) frames by which what that view shows comes too late


def _nobody(seen: Tensor) -> Suspect:
    none = torch.zeros_like(seen[:, 0])
    return Suspect(none + NOBODY, none, none.to(torch.float32))


def blame(found: Examination, num_frames: int) -> Suspect:
    """The view that fits the others best under another reading, or worst under all."""
    own = found.cost[..., 0]
    gain = own[..., None] - found.cost  # (B, V, H) nats a point
    turned = torch.rad2deg(found.turned) > MOVED_DEG
    count = found.points[..., None].clamp_min(1)
    if num_frames >= MANY_FRAMES:
        turned = turned | (gain > PLAIN_NATS)
        plain = gain.new_tensor([one.words == diagnosis.MIRRORED.words for one in found.readings])
        least = torch.where(plain > 0, MIRRORED_NATS / count, EXCHANGED_NATS)
    else:
        least = MOMENTARY_NATS / count
    gain = torch.where(turned & (found.cost < FITS_NATS) & (gain > least), gain, 0.0)
    shift = own - found.lag_cost
    fits = (found.lag_cost < FITS_NATS) & (found.lag.abs() > found.spacing * SHIFT_LEAST)
    fits = fits & (found.lag_cost < found.cost.amin(-1)) & (shift > SHIFT_NATS)
    shift = torch.where(fits, shift, 0.0)
    # Costs of views that cannot be examined are infinite, their gains NaN.
    gain = torch.cat([gain, shift[..., None]], -1).nan_to_num(0.0)  # (B, V, H + 1)
    best, which = gain.flatten(1).max(1)
    H = gain.shape[-1]
    view, reading = which // H, which % H
    reading = torch.where(reading == H - 1, SHIFTED, reading)
    lag = found.lag.gather(1, view[:, None]).squeeze(1)
    # A view that fits nowhere, next to others that fit each other.
    least = torch.where(torch.isfinite(own), found.cost.amin(-1), torch.nan)
    worst, odd = least.nan_to_num(0.0).max(1)
    usual = least.nanmedian(1).values
    misfit = (worst > MISFIT_NATS) & (worst > MISFIT_RATIO * usual)
    view = torch.where(best > 0, view, torch.where(misfit, odd, NOBODY))
    reading = torch.where(best > 0, reading, torch.where(misfit, UNREADABLE, 0))
    return Suspect(view, reading, torch.where(reading == SHIFTED, lag, 0.0))
