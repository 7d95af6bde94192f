"""What tells one detector's errors from another's, in units of the person.

The same code measures a 2D network and the error model, so a statistic need not be an unbiased
estimate of anything: it has to answer to its parameter (`ptri.detector.fit`). Errors are resolved:
a keypoint far nearer to the mirror joint counts as exchanged, and its error is the one to there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.data.observations import body_fixed, facing, self_occluded
from ptri.detector.clips import FOCAL, Clips
from ptri.skeleton import H36M17
from ptri.structures import Keypoints

APART = 0.08  # of the person: pairs nearer than this cannot be told to be exchanged
LARGE = 0.1  # of the person: a resolved error beyond this is an outlier
SURE = 4.0  # reported standard deviations
TRIM = 3.0  # the same: errors beyond it take no part in systematic parts and correlations
FEW = 30  # a statistic of fewer keypoints is NaN
NAMES, FLIP, ROOT = H36M17.joints, list(H36M17.flip), H36M17.root
_GROUPS = {"trunk": ("hip", "shoulder"), "arms": ("elbow", "wrist"), "legs": ("knee", "foot")}
_ENDS = ("wrist", "foot")


class Scene(NamedTuple):
    """What does not depend on the keypoints; units of the person where a length is 2D."""

    scale: Tensor  # (B, T, V) px, apparent size of the person
    truth: Tensor  # (B, T, V, J, 2)
    apart: Tensor  # (B, T, V, J), distance to the mirror joint
    hidden: Tensor  # (B, T, V, J) bool, behind the trunk
    facing: Tensor  # (B, T, V), see `ptri.data.observations.facing`
    slope: Tensor  # (B, T, V, J, 2, 4) per mm along the bone, left, up, forwards
    inside: Tensor  # (B, T, V, J) bool


class Statistics(NamedTuple):
    """See `LABELS` for the numbers."""

    values: dict[str, float]  # by the parameter that they answer to
    joint: Tensor  # (17,) median error of each joint, sides shared
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


def describe(clips: Clips) -> Scene:
    """The part of the statistics that clips and their simulations share."""
    joints, cameras = clips.joints, clips.cameras
    view = joints.unsqueeze(2) @ cameras.R.transpose(-1, -2).unsqueeze(1)
    view = view + cameras.t[:, None, :, None]  # (B, T, V, J, 3)
    depth = view[..., 2:]
    ray = view[..., :2] / depth
    scale = FOCAL * 1700.0 / view[..., ROOT, 2]
    truth = FOCAL * ray / scale[..., None, None]
    R = cameras.R[:, None, :, None]  # (B, 1, V, 1, 3, 3)
    move = (R[..., :2, :] - ray.unsqueeze(-1) * R[..., 2:, :]) / depth.unsqueeze(-1)
    move = move * (FOCAL / scale)[..., None, None, None]  # (B, T, V, J, 2, 3)
    unit = torch.eye(4)
    axes = [
        body_fixed(joints, row[:1].expand(1, len(NAMES), 1), row[1:].expand(1, len(NAMES), 3))
        for row in unit
    ]
    slope = move @ torch.stack(axes, -1).unsqueeze(2)  # (B, T, V, J, 2, 4)
    return Scene(
        scale, truth, (truth[..., FLIP, :] - truth).norm(dim=-1), self_occluded(joints, cameras),
        facing(joints, cameras), slope, clips.inside,
    )  # fmt: skip


def resolved(scene: Scene, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Errors (..., J, 2) to the joint or, where far nearer, its mirror joint; and which were."""
    own, other = xy - scene.truth, xy - scene.truth[..., FLIP, :]
    mirrored = (other.norm(dim=-1) < 0.5 * own.norm(dim=-1)) & (scene.apart > APART)
    return torch.where(mirrored.unsqueeze(-1), other, own), mirrored


def measure(scene: Scene, keypoints: Keypoints) -> Statistics:
    """Every statistic of keypoints (B, T, V, J, ...) px. NaN where there is too little to say."""
    xy = keypoints.xy / scene.scale[..., None, None]
    used = scene.inside & ~xy.isnan().any(-1)
    xy = torch.where(used.unsqueeze(-1), xy, scene.truth)
    covariance = keypoints.covariance / scene.scale[..., None, None, None] ** 2
    sigma = torch.linalg.det(covariance.double()).clamp_min(1e-20).pow(0.25).float()
    error, mirrored = resolved(scene, xy)
    size = error.norm(dim=-1)
    middle = _joint_median(size, used)
    values = {"noise": float(middle.log().mean().exp())}
    values |= _stated(sigma, used)
    values |= _ellipses(covariance, error, used & (size < TRIM * sigma))
    values |= _sizes(error, sigma, used, scene.hidden, middle)
    systematic, definition = _systematic(scene, error, sigma, used & (size < TRIM * sigma))
    values |= systematic | _exchanges(scene, xy, used)
    ratio = (sigma / _joint_median(sigma, used)).log()
    values["confident_swaps"] = _mean(ratio[mirrored & used]) - _mean(ratio[~mirrored & used])
    values |= _confidence(keypoints.confidence, ratio, used)
    return Statistics(values, middle, definition)


def _stated(sigma: Tensor, used: Tensor) -> dict[str, float]:
    """Components of the variance of the stated sigma's logarithm: clip, view, joint, frame."""
    z = torch.where(used, (sigma / _joint_median(sigma, used)).log(), torch.nan)
    clip = z.nanmean((1, 2, 3))
    view = z.nanmean((1, 3)) - clip[:, None]  # (B, V)
    own = z.nanmean(1) - z.nanmean((1, 3)).unsqueeze(-1)  # (B, V, J)
    rest = z - z.nanmean(1, keepdim=True)
    steady, quick = float(own.square().nanmean()), float(rest.square().nanmean())
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
    behind, before = _median(relative[used & hidden]), _median(relative[used & ~hidden])
    return {
        "misreport": within,
        "bias_follows": between,
        "overstate": float((size / sigma)[used].median()),
        "hidden_noise": float(behind / before),
        "outlier_rate": float(large.sum() / used.sum()),
        "outlier_size": _quantile(size[large], 0.9),
        "confident_outliers": _mean((size > SURE * sigma)[large].float()),
    }


def _systematic(
    scene: Scene, error: Tensor, sigma: Tensor, used: Tensor
) -> tuple[dict[str, float], Tensor]:
    """Errors fixed to the body, of all people and of each clip, and correlation of the rest."""
    weight = used / sigma.square()
    slope, weighted = scene.slope, scene.slope * weight[..., None, None]
    left = torch.einsum("btvjik,btvjil->bvjkl", weighted, slope)
    mean = _solve(left.sum((0, 1)), torch.einsum("btvjik,btvji->jk", weighted, error))
    mean = 0.5 * (mean + mean[FLIP] * torch.tensor([1.0, -1.0, 1.0, 1.0]))
    error = error - (slope @ mean.unsqueeze(-1)).squeeze(-1)
    right = torch.einsum("btvjik,btvji->bvjk", weighted, error)
    halves = [_solve(left[:, v].sum(1), right[:, v].sum(1)) for v in (slice(0, None, 2),
                                                                      slice(1, None, 2))]  # fmt: skip
    common = (halves[0] * halves[1]).mean()
    each = _solve(left.sum(1), right.sum(1))  # (B, J, 4)
    error = error - (slope @ each[:, None, None, ..., None]).squeeze(-1)
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
    ridge = 5e-2 * left.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(4)
    # 1e-12 guards a joint that no view has.
    return torch.linalg.solve(left + ridge + 1e-12 * torch.eye(4), right)


def _exchanges(scene: Scene, xy: Tensor, used: Tensor) -> dict[str, float]:
    """Shares of exchanged trunks and limbs, of ends in one place, and how long that lasts."""
    known, votes = {}, {}
    for name, parts in _GROUPS.items():
        known[name], votes[name] = _vote(scene, xy, used, parts)
    found = [(known["trunk"], votes["trunk"])]
    for limb in ("arms", "legs"):
        found.append((known["trunk"] & known[limb], votes["trunk"] ^ votes[limb]))
    ends = []
    for name in _ENDS:
        left, right = (NAMES.index(f"{side}_{name}") for side in ("left", "right"))
        apart = scene.apart[..., left]
        known_end = (apart > 1.5 * APART) & used[..., left] & used[..., right]
        ends.append((known_end, (xy[..., left, :] - xy[..., right, :]).norm(dim=-1) < 0.35 * apart))
    known_end, one_place = (torch.stack(part, -1) for part in zip(*ends))
    profile = known_end & (scene.facing.abs() < 0.4).unsqueeze(-1)
    facing_ = known_end & (scene.facing.abs() > 0.8).unsqueeze(-1)
    shares = [_mean(one_place[chosen].float()) for chosen in (profile, facing_)]
    lasting = [_autocorrelation(*event) for event in (*found, *ends)]
    lasting = [value for value in lasting if not math.isnan(value)]
    limbs = [_mean(event[chosen].float()) for chosen, event in found[1:]]
    return {
        "body_swap_rate": _mean(found[0][1][found[0][0]].float()),
        "limb_swap_rate": sum(limbs) / 2,
        "limb_copy_rate": _mean(one_place[known_end].float()),
        # 1e-3 guards a detector that never copies a limb.
        "profile_copies": math.log((shares[0] + 1e-3) / (shares[1] + 1e-3)),
        "fault_s": sum(lasting) / len(lasting) if lasting else math.nan,
    }


def _vote(scene: Scene, xy: Tensor, used: Tensor, parts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(B, T, V) bool: whether a group's sides can be told, and whether they are exchanged."""
    group = [i for i, name in enumerate(NAMES) if "_" in name and name.split("_")[1] in parts]
    told = (scene.apart > APART)[..., group] & used[..., group]
    own = (xy - scene.truth).norm(dim=-1)[..., group].clamp_max(0.3) * told
    other = (xy - scene.truth[..., FLIP, :]).norm(dim=-1)[..., group].clamp_max(0.3) * told
    return told.any(-1), other.sum(-1) < own.sum(-1)


def _autocorrelation(known: Tensor, event: Tensor) -> float:
    """Correlation of a bool event (B, T, V) between neighbouring frames."""
    both = known[:, 1:] & known[:, :-1]
    pair = torch.stack([event[:, 1:][both], event[:, :-1][both]]).float()
    if min(int(pair[0].sum()), int(pair[1].sum())) < FEW:
        return math.nan
    return float(torch.corrcoef(pair)[0, 1])


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
    return _paired(torch.stack([_median(value[..., j][used[..., j]]) for j in range(len(NAMES))]))


def _paired(value: Tensor) -> Tensor:
    return 0.5 * (value + value[FLIP])


def _median(value: Tensor) -> Tensor:
    return value.median() if len(value) >= FEW else torch.tensor(math.nan)


def _quantile(value: Tensor, level: float) -> float:
    return float(np.quantile(value.numpy(), level)) if len(value) >= FEW else math.nan


def _mean(value: Tensor) -> float:
    return float(value.mean()) if len(value) >= FEW else math.nan
