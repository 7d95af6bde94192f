"""What the rules of the verdict look at, measured on a rig's posterior and keypoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.rays import refocused
from ptri.posterior.moments import mean_views, posterior_mean
from ptri.posterior.optima import Poses
from ptri.posterior.sampling import RigSolution
from ptri.structures import Observations, RigPosterior, constant
from ptri.verdict.examination import Examination, examine

# Samples so far from the best, so many of them, few half as far, and many nearer: several modes.
FAR_DEG, FAR_SHARE, BETWEEN_SHARE, NEAR_SHARE = 20.0, 0.05, 0.25, 0.15
THIN = 0.05  # keypoints whose spread across is less than this share of that along are on a line
LINE_NOISE = 2.0  # as are those that leave it by less than so many stated standard deviations
# Rays that meet at less than this angle, or than so many standard deviations of a keypoint
# (a depth's relative error is the inverse of that), fix no depth.
MIN_PARALLAX_DEG, PARALLAX_NOISE, MAX_PARALLAX_DEG = 3.0, 10.0, 30.0
FOCAL_KNOWN = 0.05  # relative standard deviation of a focal length that is known


class Figures(NamedTuple):
    """Of one rig of V views, in plain numbers."""

    seen: list[int]  # (V,) keypoints of each view, over all frames
    used: list[float]  # (V,) share of them that are no outliers
    noise: float  # residuals over their stated standard deviation
    finite: bool  # whether any sample explains the keypoints
    doubt_deg: list[list[float]]  # (V, V) how far each pair may be turned against each other
    several: bool  # whether samples form modes far apart
    # At the stated noise, and at the noise that the residuals show:
    on_a_line: Sequence[bool]  # (2,) whether the keypoints of every view lie on one line
    parallax_needed_deg: Sequence[float]  # (2,) at which rays must meet to fix depths
    parallax_deg: float  # at which the views' rays meet, median over joints
    focal_unknown: bool  # whether what is known of focal lengths before is next to nothing


@torch.no_grad()
def measure(
    solution: RigSolution, times: Tensor | None = None, poses: Poses | None = None
) -> tuple[list[Figures], Examination]:
    """The figures of B rigs, and the examination of their views.

    Args:
        times: (T,) numbers of the frames, in which shifts in time are told; default 0 to T - 1.
        poses: the skeletons of the single views, (B, T, V, ...).
    """
    posterior, known = finite(solution.posterior)
    evidence = solution.evidence
    observations = evidence.observations
    seen = (observations.inlier > 0).sum((1, 3))  # (B, V)
    used = evidence.weight.sum((1, 3)) / seen.clamp_min(1)
    spread, several = spread_deg(posterior)
    R, t, log_focal = mean_views(posterior.views, posterior.log_weights.exp())
    observations = refocused(observations, log_focal)
    joints = evidence.joints.nan_to_num()
    given = observations, R, t, joints, evidence.weight, times
    examination = examine(*given, poses, evidence.scale2)
    minor, major, parallax, sigma = shape_of_views(observations, R)
    noise = evidence.scale2.sqrt()
    factor = torch.stack([torch.ones_like(noise), noise.clamp_min(1.0)], 1)  # (B, 2)
    least = LINE_NOISE * factor[..., None] * sigma[:, None]  # (B, 2, V)
    lines = (minor[:, None] <= torch.maximum(least, THIN * major[:, None])).all(2)
    needed = torch.rad2deg(PARALLAX_NOISE * factor * sigma.mean(1, keepdim=True))
    needed = needed.clamp(MIN_PARALLAX_DEG, MAX_PARALLAX_DEG)
    unknown = focal_unknown(evidence.best.errors.prior.focal)
    columns = seen, used, noise, known, spread, several, lines, needed, parallax
    rows = zip(*(column.tolist() for column in columns), unknown)
    return [Figures(*row) for row in rows], examination


def focal_unknown(information: Tensor) -> list[bool]:
    """Whether focal lengths of B rigs are known badly, by their prior's information (B, F, F)."""
    if not information.shape[1]:
        return [False] * len(information)
    variance = torch.linalg.inv(information).diagonal(dim1=1, dim2=2)
    return (variance.amax(1) > FOCAL_KNOWN**2).tolist()


def shape_of_views(observations: Observations, R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How far each view's keypoints spread, and how the views' rays cross.

    Args:
        observations: (B, T, V, J, ...). R: (B, V, 3, 3), the estimated rotations.

    Returns:
        Spread of the keypoints (B, V), normalised, across and along the line that fits them best
        over all frames, outliers counting little; median over joints of the widest angle at which
        two views' rays meet (B,), deg; median of the stated noise (B, V), normalised.
    """
    V = observations.xy.shape[2]
    x = observations.xy.transpose(1, 2).flatten(2, 3)  # (B, V, T J, 2)
    weight = observations.inlier.transpose(1, 2).flatten(2)  # (B, V, T J)
    robust = weight
    for _ in range(4):
        # 1e-12 guards a view without any keypoint.
        share = robust / robust.sum(2, keepdim=True).clamp_min(1e-12)
        away = x - (share[..., None] * x).sum(2, keepdim=True)
        moment = torch.einsum("bvn,bvni,bvnj->bvij", share, away, away)
        variance, axes = torch.linalg.eigh(moment)
        across = (away @ axes[..., :1]).squeeze(-1).abs()  # (B, V, T J)
        typical = _median(across, weight)
        robust = weight / (1 + (across / (3 * typical[..., None] + 1e-9)).square())
    information = observations.information
    determinant = (information[..., 0, 0] * information[..., 1, 1]) - information[..., 0, 1] ** 2
    trace = information.diagonal(dim1=-2, dim2=-1).sum(-1)
    # Half the trace of the covariance; 1e-30 guards points that were not seen.
    sigma = (0.5 * trace / determinant.clamp_min(1e-30)).sqrt().transpose(1, 2).flatten(2)
    ray = torch.cat([observations.xy, torch.ones_like(observations.xy[..., :1])], dim=-1)
    ray = torch.nn.functional.normalize(ray, dim=-1) @ R[:, None].to(ray)  # in view 0's frame
    first, second = (constant(part, R.device) for part in zip(*combinations(range(V), 2)))
    # The rays' lines: from opposite sides they are as parallel as from one.
    sine = torch.linalg.cross(ray[:, :, first], ray[:, :, second]).norm(dim=-1)  # (B, T, P, J)
    both = (observations.inlier[:, :, first] > 0) & (observations.inlier[:, :, second] > 0)
    widest = torch.where(both, sine, 0.0).amax(2).flatten(1)  # (B, T J)
    angle = _median(widest, both.any(2).flatten(1)).clamp_max(1.0).asin()
    spread = 1.48 * typical, variance[..., 1].clamp_min(0).sqrt()
    return *spread, torch.rad2deg(angle), _median(sigma, weight)


def _median(value: Tensor, weight: Tensor) -> Tensor:
    """Median (...) of values (..., N) where the weight is not zero; 0 where it is everywhere."""
    return torch.where(weight > 0, value, torch.nan).nanmedian(-1).values.nan_to_num(0.0)


def finite(posterior: RigPosterior) -> tuple[RigPosterior, Tensor]:
    """The posterior with something finite where it is not, and whether it is, (B,) bool."""
    R, t, log_weights = posterior[:3]
    finite = torch.isfinite(R).flatten(2).all(-1) & torch.isfinite(t).flatten(2).all(-1)
    finite = finite.all(0) & torch.isfinite(log_weights).any(0) & ~log_weights.isnan().any(0)
    eye = torch.eye(3, dtype=R.dtype, device=R.device)
    R = torch.where(finite[:, None, None, None], R, eye)
    t = torch.where(finite[:, None, None], t, 0.0)
    log_focal = torch.where(finite[:, None], posterior.log_focal, 0.0)
    log_weights = torch.where(finite, log_weights, -math.log(len(log_weights)))
    posterior = posterior._replace(R=R, t=t, log_weights=log_weights, log_focal=log_focal)
    return posterior, finite


def spread_deg(posterior: RigPosterior) -> tuple[Tensor, Tensor]:
    """How far the cameras of each pair may be turned against each other.

    Returns:
        (B, V, V) deg, root mean square of the angle between the samples' relative rotation and
        the mean's; and whether samples of some pair lie far from the best with few between, (B,).
    """
    weights = posterior.log_weights.exp().float()
    R = posterior.R.float()
    mean = posterior_mean(posterior)[0].float()
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
