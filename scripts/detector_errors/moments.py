"""What tells one detector's errors from another's, in units of the person.

The same code measures a 2D network and the error model, so a statistic need not be an unbiased
estimate of anything: it has to answer to its parameter (`detector_errors.fit`). Errors are
resolved: a keypoint far nearer to the mirror joint counts as exchanged, and its error is the one
to there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detector_errors.exchanges import exchanges
from detector_errors.truth import APART, FEW, FLIP, NAMES, Truth, mean_of, median_of
from ptri.structures import Keypoints

LARGE = 0.1  # of the person: a resolved error beyond this is an outlier
SURE = 4.0  # reported standard deviations
TRIM = 3.0  # the same: errors beyond it take no part in systematic parts and correlations
_RIDGE = 1e-2  # of the mean information, where directions can hardly be told apart


class Statistics(NamedTuple):
    """See `LABELS` for the numbers."""

    values: dict[str, float]  # by the parameter that they answer to
    joint: Tensor  # (17,) median error of each joint, sides shared
    stated: Tensor  # (17,) median stated sigma of each joint, sides shared
    definition: Tensor  # (17, 4) mm along the bone, left, up, forwards, sides mirrored


LABELS = {
    "noise": "median error, geometric mean over joints",
    "clip_spread": "stated sigma: log SD over clips",
    "view_spread": "stated sigma: log SD over a clip's views",
    "noise_spread": "stated sigma: log SD within a view",
    "steady_spread": "share of that variance kept over the clip",
    "anisotropy": "stated ellipses: mean |log axis / radius|",
    "rounding": "log error along the major over the minor axis",
    "misreport": "slope of log error over log sigma, over frames",
    "bias_follows": "slope of a clip's log mean error over its log sigma",
    "overstate": "median error / stated sigma",
    "hidden_noise": "error behind the trunk over elsewhere",
    "definition_mm": "per clip, fixed to the body, SD, mm",
    "view_bias": "correlation of errors, later frames",
    "correlated_share": "correlation of errors, next frame",
    "correlation_s": "correlation of errors, second next frame",
    "outlier_rate": "share of errors > 0.1",
    "outlier_size": "90 % quantile of those",
    "confident_outliers": "share of those > 4 stated sigma",
    "body_swap_rate": "trunks exchanged",
    "limb_swap_rate": "arms or legs exchanged against the trunk",
    "limb_copy_rate": "both wrists or feet in one place",
    "profile_copies": "log of that in profile over front and back",
    "fault_s": "correlation of exchanges, next frame",
    "confident_swaps": "log stated sigma, exchanged over right joints",
    "confidence_logit": "logit of the confidence at the median sigma",
    "confidence_slope": "its fall by log sigma",
    "confidence_noise": "its SD about that line",
}


def resolved(truth: Truth, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Errors (..., J, 2) to the joint or, where far nearer, its mirror joint; and which were."""
    error, other = xy - truth.xy, xy - truth.xy[..., FLIP, :]
    mirrored = (other.norm(dim=-1) < 0.5 * error.norm(dim=-1)) & (truth.apart > APART)
    return torch.where(mirrored.unsqueeze(-1), other, error), mirrored


def measure(truth: Truth, keypoints: Keypoints) -> Statistics:
    """Every statistic of keypoints (B, T, V, J, ...) px. NaN where there is too little to say, and
    of joints that the detector does not give."""
    xy = keypoints.xy / truth.scale[..., None, None]
    used = truth.inside & ~xy.isnan().any(-1)
    xy = torch.where(used.unsqueeze(-1), xy, truth.xy)
    covariance = keypoints.covariance / truth.scale[..., None, None, None] ** 2
    sigma = torch.linalg.det(covariance.double()).clamp_min(1e-20).pow(0.25).float()
    error, mirrored = resolved(truth, xy)
    size = error.norm(dim=-1)
    middle = _joint_median(size, used)
    values = {"noise": float(middle.log().nanmean().exp())}
    values |= _stated(sigma, used)
    values |= _ellipses(covariance, error, used & (size < TRIM * sigma))
    values |= _sizes(error, sigma, used, truth.hidden, middle)
    systematic, definition = _systematic(truth, error, sigma, used & (size < TRIM * sigma))
    values |= systematic | exchanges(truth, xy, used)
    ratio = (sigma / _joint_median(sigma, used)).log()
    values["confident_swaps"] = mean_of(ratio[mirrored & used]) - mean_of(ratio[~mirrored & used])
    values |= _confidence(keypoints.confidence, ratio, used)
    return Statistics(values, middle, _joint_median(sigma, used), definition)


def _stated(sigma: Tensor, used: Tensor) -> dict[str, float]:
    """Components of the variance of the stated sigma's logarithm: clip, view, joint, frame."""
    z = torch.where(used, (sigma / _joint_median(sigma, used)).log(), torch.nan)
    clip = z.nanmean((1, 2, 3))
    view = z.nanmean((1, 3)) - clip[:, None]  # (B, V)
    joint = z.nanmean(1) - z.nanmean((1, 3)).unsqueeze(-1)  # (B, V, J)
    frame = z - z.nanmean(1, keepdim=True)
    steady, quick = float(joint.square().nanmean()), float(frame.square().nanmean())
    return {
        "clip_spread": float(clip.std()),
        "view_spread": float(view.square().nanmean().sqrt()),
        "noise_spread": math.sqrt(steady + quick),
        "steady_spread": steady / max(steady + quick, 1e-12),
    }


def _ellipses(covariance: Tensor, error: Tensor, used: Tensor) -> dict[str, float]:
    axis, basis = torch.linalg.eigh(covariance[used].double())
    along = (basis.mT @ error[used].double().unsqueeze(-1)).squeeze(-1).abs()
    return {
        "anisotropy": float(0.25 * (axis[:, 1] / axis[:, 0]).log().mean()),
        "rounding": float((along[:, 1].median() / along[:, 0].median()).log()),
    }


def _sizes(
    error: Tensor, sigma: Tensor, used: Tensor, hidden: Tensor, middle: Tensor
) -> dict[str, float]:
    """Errors against the stated sigma: body and tail."""
    size = error.norm(dim=-1)
    good = used & (size < TRIM * sigma)
    y, x = (size / middle).clamp_min(1e-3).log(), (sigma / _joint_median(sigma, used)).log()
    y, x = (torch.where(good, value, torch.nan) for value in (y, x))
    within = _slope(*(value - value.nanmean(1, keepdim=True) for value in (x, y)))
    still = torch.where(good.unsqueeze(-1), error, torch.nan).nanmean(1).norm(dim=-1)
    between = _slope(x.nanmean(1), (still / middle).clamp_min(1e-3).log())
    large = used & (size > LARGE)
    relative = size / middle
    behind, before = median_of(relative[used & hidden]), median_of(relative[used & ~hidden])
    return {
        "misreport": within,
        "bias_follows": between,
        "overstate": float((size / sigma)[used].median()),
        "hidden_noise": float(behind / before),
        "outlier_rate": float(large.sum() / used.sum()),
        "outlier_size": _quantile(size[large], 0.9),
        "confident_outliers": mean_of((size > SURE * sigma)[large].float()),
    }


def _systematic(
    truth: Truth, error: Tensor, sigma: Tensor, used: Tensor
) -> tuple[dict[str, float], Tensor]:
    """Errors fixed to the body, of all people and of each clip, and correlation of the rest."""
    weight = used / sigma.square()
    slope, weighted = truth.slope, truth.slope * weight[..., None, None]
    left = torch.einsum("btvjik,btvjil->bvjkl", weighted, slope)
    # 1 / sigma, not its square: uncertain keypoints lie farther off, and draw the bones too.
    plain = truth.slope * (used / sigma)[..., None, None]
    mean = _solve(
        torch.einsum("btvjik,btvjil->jkl", plain, truth.slope),
        torch.einsum("btvjik,btvji->jk", plain, error),
    )
    mean = 0.5 * (mean + mean[FLIP] * torch.tensor([1.0, -1.0, 1.0, 1.0]))
    error = error - (slope @ mean.unsqueeze(-1)).squeeze(-1)
    right = torch.einsum("btvjik,btvji->bvjk", weighted, error)
    odd, even = (
        _solve(left[:, first::2].sum(1), right[:, first::2].sum(1)) for first in (1, 0)
    )  # of the views
    common = (odd * even).mean()
    of_clip = _solve(left.sum(1), right.sum(1))  # (B, J, 4)
    error = error - (slope @ of_clip[:, None, None, ..., None]).squeeze(-1)
    z = torch.where(used.unsqueeze(-1), error / sigma.unsqueeze(-1), torch.nan)
    energy, T = z.square().nanmean(), z.shape[1]
    lag = {step: float((z[:, step:] * z[:, :-step]).nanmean() / energy) for step in range(1, T)}
    later = [value for step, value in lag.items() if step >= T // 2]
    return {
        "definition_mm": math.copysign(math.sqrt(abs(float(common))), float(common)),
        "correlated_share": lag[1],
        "correlation_s": lag[2],
        "view_bias": sum(later) / len(later),
    }, mean


def _solve(left: Tensor, right: Tensor) -> Tensor:
    """Least squares of displacements (..., 4) mm; a ridge decides between collinear directions."""
    ridge = _RIDGE * left.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(4)
    # 1e-12 guards a joint that no view has.
    return torch.linalg.solve(left + ridge + 1e-12 * torch.eye(4), right)


def _confidence(confidence: Tensor, ratio: Tensor, used: Tensor) -> dict[str, float]:
    y, x = torch.logit(confidence[used].clamp(2e-3, 1 - 2e-3)), ratio[used]
    slope = _slope(x, y)
    middle = y.mean() - slope * x.mean()
    return {
        "confidence_logit": float(middle),
        "confidence_slope": -slope,
        "confidence_noise": float((y - middle - slope * x).std()),
    }


def _slope(x: Tensor, y: Tensor) -> float:
    """Of the regression of y on x; NaN in either is left out."""
    known = x.isfinite() & y.isfinite()
    x, y = x[known] - x[known].mean(), y[known] - y[known].mean()
    return float((x * y).sum() / x.square().sum().clamp_min(1e-12))


def _joint_median(value: Tensor, used: Tensor) -> Tensor:
    """(J,) medians of (..., J), the same for both sides."""
    middle = torch.stack([median_of(value[..., j][used[..., j]]) for j in range(len(NAMES))])
    return 0.5 * (middle + middle[FLIP])


def _quantile(value: Tensor, level: float) -> float:
    return float(np.quantile(value.numpy(), level)) if len(value) >= FEW else math.nan
