"""Simulates what a 2D detector would report of people: noise, outliers, swaps, missing joints.

Sizes are relative to the person: the height in px at which a 1.7 m tall object appears at the hip's
depth. Every factor is a field of `ptri.people.error_model.ErrorModel`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import project, transform
from ptri.people.draws import Draws, ar1
from ptri.people.error_model import ErrorModel
from ptri.people.joint_sets import as_given
from ptri.people.trunk import body_fixed, facing, self_occluded
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints

# How much harder than average a joint is to place, relative standard deviation.
_JOINT_NOISE = {"foot": 1.2, "knee": 1.0, "hip": 1.2, "spine": 1.2, "thorax": 0.8, "head": 0.8}
_JOINT_NOISE |= {"wrist": 1.3, "elbow": 1.1, "shoulder": 0.9, "nose": 0.7}
_MIRROR_DOUBT = 0.6  # largest doubt of a joint known to be on the wrong side / its way there
_MOST_COPIES = 0.8  # of the pairs of limbs; bounds the rate in profile
_BOX = 1.5  # side of the gross outliers' box over that of the person
_ARMS = ("shoulder", "elbow", "wrist")
_LEGS = ("hip", "knee", "foot")
_LIMBS = (("elbow", "wrist"), ("knee", "foot"))  # middle and end


class SimulatedDetections(NamedTuple):
    """Keypoints with what a test wants to know about them. Shapes (B, T, V, J, ...)."""

    keypoints: Keypoints
    clean: Tensor  # (..., 2) px, projection of the true joints
    covariance: Tensor  # (..., 2, 2) px^2, of the noise really added
    outlier: Tensor  # bool
    swapped: Tensor  # bool, stands at the place of the joint's mirror image


def simulate_detections(
    draws: Draws,
    errors: ErrorModel,
    joints: Tensor,
    cameras: Cameras,
    size: Tensor | None = None,
    exact: bool = False,
) -> SimulatedDetections:
    """Draws what a detector reports of B people.

    Args:
        draws: B streams.
        errors: how the detector errs.
        joints: (B, T, J, 3) mm, world.
        cameras: (B, V, ...), world, static.
        size: (B, V, 2) px, width and height of the images, outside of which joints are missing;
            None: joints are seen everywhere.
        exact: independent Gaussian noise with exactly the stated covariance and confidence 1, and
            joints missing at random; no other errors.
    """
    T, V, J = joints.shape[1], cameras.t.shape[1], joints.shape[2]
    # 1 What is there to be seen
    framed = Cameras(*(part.unsqueeze(1) for part in cameras))  # (B, 1, V, ...)
    clean = project(joints, framed)
    depth = transform(joints.unsqueeze(2), framed.R, framed.t)[..., 2]
    root = depth[..., H36M17.root].clamp_min(500.0)
    scale = framed.K[..., 0, 0] * 1700.0 / root  # (B, T, V)
    # 2 Where the detector looks for it: its own joints, its bias, the other side
    target, hidden = clean, torch.zeros(clean.shape[:-1], dtype=torch.bool)
    swapped = hidden
    if not exact:
        aimed, systematic = _systematic(draws, errors, joints, framed, clean, scale)
        hidden = self_occluded(joints, cameras)
        target, swapped = _swap(draws, errors, aimed)
        if errors.limb_copy_rate > 0:
            target, swapped = _copy(draws, errors, target, swapped, facing(joints, cameras))
    # 3 Noise
    covariance, log_factor = _noise_covariance(draws, errors, scale, hidden)
    if not exact and errors.bias_follows > 0:
        grown = torch.expm1(errors.bias_follows * log_factor)
        target = target + grown.unsqueeze(-1) * systematic
    white = _coloured(draws, errors, (T, V, J, 2), 0.0 if exact else errors.correlated_share)
    xy = target + (torch.linalg.cholesky(covariance) @ white.unsqueeze(-1)).squeeze(-1)
    # 4 Outliers, and what the detector says of all that
    outlier, reported = torch.zeros_like(hidden), covariance
    confidence = torch.ones(outlier.shape)
    if not exact:
        outlier = _rare(draws, errors, (T, V, J), errors.outlier_rate)
        wrong = _coloured(draws, errors, (T, V, J, 2), 0.8) * errors.outlier_size
        xy = torch.where(outlier.unsqueeze(-1), xy + wrong * scale[..., None, None], xy)
        apart = swapped * (aimed[..., H36M17.flip, :] - aimed).norm(dim=-1)
        error = xy - target
        reported, confidence = _report(draws, errors, covariance, error, scale, outlier, apart)
        if errors.gross_rate > 0:
            gross = _drawn_rate(draws, errors.gross_rate, T, V, J)
            xy = torch.where(gross.unsqueeze(-1), _in_box(draws, clean), xy)
            outlier = outlier | gross
        if errors.flat_views > 0:
            flat = draws.uniform(1, V, 1) < errors.flat_views
            confidence = torch.where(flat, draws.uniform(1, V, 1, low=0.5), confidence)
    # 5 What is missing
    missing = _missing(draws, errors, hidden, exact) | (depth < 1.0)
    if not exact:
        given = as_given(errors.joint_set, xy, reported, confidence, missing)
        xy, reported, confidence, missing = given
    if size is not None:
        inside = (clean >= -0.5) & (clean <= size[:, None, :, None] - 0.5)
        missing = missing | ~inside.all(-1)
    xy = torch.where(missing.unsqueeze(-1), torch.nan, xy)
    vague = (0.5 * scale[..., None]) ** 2 * missing  # finite wherever the joint is missing
    vague = vague[..., None, None] * torch.eye(2)
    reported = torch.where(missing[..., None, None], vague, reported)
    keypoints = Keypoints(xy, reported, confidence * ~missing)
    return SimulatedDetections(keypoints, clean, covariance, outlier & ~missing, swapped)


def frame_correlation(seconds: float, fps: float) -> float:
    """Correlation of an AR(1) process between neighbouring frames, e^(-1 / (fps * seconds))."""
    return math.exp(-1.0 / (fps * seconds)) if seconds > 0 else 0.0


def _systematic(
    draws: Draws, errors: ErrorModel, joints: Tensor, cameras: Cameras, clean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Where a detector aims (B, T, V, J, 2) px, and what of it differs from person to person, px.

    Its joints lie off ours, by a mean of all people and by an offset of this person's that moves
    with the body; each view has a constant bias.
    """
    V, J = clean.shape[2:4]
    along, trunk = draws.normal(1, J, 1), draws.normal(1, J, 3)
    strength = draws.uniform(2, 1, 1, 1)
    offset = math.sqrt(0.5) * errors.definition_mm * strength[:, 0]
    offset = offset * body_fixed(joints, along, trunk)
    common = clean
    if errors.definition_mean:
        mean = torch.tensor(errors.definition_mean).expand(1, 1, J, 4)
        mean = body_fixed(joints, mean[..., :1], mean[..., 1:])
        offset, common = offset + mean, project(joints + mean, cameras)
    target = project(joints + offset, cameras)
    bias = errors.view_bias * strength[:, 1].unsqueeze(1) * draws.normal(1, V, J, 2)
    target = target + bias * scale[..., None, None]
    return target, target - common


def _coloured(draws: Draws, errors: ErrorModel, shape: tuple[int, ...], share: float) -> Tensor:
    """(B, *shape) unit-variance noise of which a share of the variance is AR(1) over T."""
    white = draws.normal(*shape)
    if share == 0:
        return white
    slow = ar1(draws.normal(*shape), frame_correlation(errors.correlation_s, errors.fps))
    return math.sqrt(share) * slow + math.sqrt(1 - share) * white


def _rare(draws: Draws, errors: ErrorModel, shape: tuple[int, ...], rate: float | Tensor) -> Tensor:
    """(B, *shape) bool events of a given rate, or rates, that last some of the T frames."""
    latent = ar1(draws.normal(*shape), frame_correlation(errors.fault_s, errors.fps))
    rate = torch.as_tensor(rate, dtype=torch.float64).clamp_max(1.0)
    return latent > math.sqrt(2) * torch.erfinv((1 - 2 * rate).float())  # infinite for a rate of 0


def _swap(draws: Draws, errors: ErrorModel, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Exchanges left and right of whole bodies, arms or legs; returns xy and which joints."""
    _, T, V, _, _ = xy.shape
    flip = torch.tensor(H36M17.flip)
    swap = torch.zeros(xy.shape[:-1], dtype=torch.bool)
    limbs = errors.limb_swap_rate
    for ends, rate in (("",), errors.body_swap_rate), (_ARMS, limbs), (_LEGS, limbs):
        exchanged = torch.tensor([name.endswith(ends) for name in H36M17.joints])
        swap = swap ^ (_rare(draws, errors, (T, V), rate).unsqueeze(-1) & exchanged)
    swap = swap & (flip != torch.arange(len(flip)))
    return torch.where(swap.unsqueeze(-1), xy[..., flip, :], xy), swap


def _copy(
    draws: Draws, errors: ErrorModel, xy: Tensor, swapped: Tensor, front: Tensor
) -> tuple[Tensor, Tensor]:
    """Puts the end of an arm or leg, half the time with its middle, onto the other side's.

    Args:
        xy: (B, T, V, J, 2) px. swapped: (B, T, V, J) bool. front: (B, T, V), see `facing`.
    """
    names, flip = H36M17.joints, list(H36M17.flip)
    T, V = xy.shape[1:3]
    rate = errors.limb_copy_rate * errors.profile_copies ** (1 - front.abs())
    happens = _rare(draws, errors, (T, V, 2), rate.unsqueeze(-1).clamp_max(_MOST_COPIES))
    left, both = draws.uniform(1, V, 2) < 0.5, draws.uniform(1, V, 2) < 0.5
    moved = torch.zeros_like(swapped)
    for limb, (middle, end) in enumerate(_LIMBS):
        for side, chosen in (("left", left[..., limb]), ("right", ~left[..., limb])):
            event = happens[..., limb] & chosen
            moved[..., names.index(f"{side}_{end}")] = event
            moved[..., names.index(f"{side}_{middle}")] = event & both[..., limb]
    return torch.where(moved.unsqueeze(-1), xy[..., flip, :], xy), swapped ^ moved


def _noise_covariance(
    draws: Draws, errors: ErrorModel, scale: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Covariances (B, T, V, J, 2, 2) px^2 of the noise, and the logarithm of its spreads' factor.

    Args:
        scale: (B, T, V) px, apparent size. hidden: (B, T, V, J) bool.
    """
    _, T, V, J = hidden.shape
    joint = [_JOINT_NOISE[name.split("_")[-1]] for name in H36M17.joints]
    joint = torch.tensor(errors.joint_noise or joint)
    log_sigma = errors.clip_spread * draws.normal(1, 1, 1)
    log_sigma = log_sigma + errors.view_spread * draws.normal(1, V, 1)
    spread, steady = draws.normal(T, V, J), errors.steady_spread
    if steady > 0:
        spread = math.sqrt(1 - steady) * spread + math.sqrt(steady) * draws.normal(1, V, J)
    log_sigma = log_sigma + errors.noise_spread * spread
    sigma = errors.noise * joint * torch.exp(log_sigma) * scale.unsqueeze(-1)
    sigma = torch.where(hidden, errors.hidden_noise * sigma, sigma)
    # The axes' ratio e^(2a) with the area sigma^2 kept, in any direction.
    stretch = torch.exp(errors.anisotropy * draws.normal(T, V, J))
    angle = draws.uniform(T, V, J, high=math.pi)
    cos, sin = angle.cos(), angle.sin()
    axes = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    size = torch.stack([sigma * stretch, sigma / stretch], dim=-1) ** 2
    # (1e-3 px)^2 guards the factorisation where the noise is configured away.
    covariance = axes * size.unsqueeze(-2) @ axes.transpose(-1, -2) + 1e-6 * torch.eye(2)
    return covariance, log_sigma


def _report(
    draws: Draws,
    errors: ErrorModel,
    covariance: Tensor,
    error: Tensor,
    scale: Tensor,
    outlier: Tensor,
    apart: Tensor,
) -> tuple[Tensor, Tensor]:
    """The covariance (..., 2, 2) px^2 and the confidence (...) that the detector reports.

    The covariance is the true one, partly rounded and mis-scaled. The confidence falls with the
    noise and half-knowingly with the error itself; some outliers are made with full confidence, and
    some of the exchanged joints, which stand ``apart`` px (B, T, V, J) from their place.
    """
    _, T, V, J = outlier.shape
    noticed = outlier & (draws.uniform(T, V, J) >= errors.confident_outliers)
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    isotropic = mean[..., None, None] * torch.eye(2)
    stated = errors.overstate * torch.tensor(errors.joint_stated or [1.0] * J)
    factor = stated**2 * torch.exp(2 * errors.misreport * draws.normal(T, V, J))
    # A noticed outlier shows as a wide or double-peaked heatmap.
    doubt = (0.3 * errors.outlier_size * scale.unsqueeze(-1)) ** 2 * draws.uniform(T, V, J)
    reported = factor[..., None, None] * torch.lerp(covariance, isotropic, errors.rounding)
    reported = reported + torch.where(noticed, doubt, 0.0)[..., None, None] * torch.eye(2)

    sensed = torch.where(outlier & ~noticed, 0.0, error.square().mean(-1))
    unit = errors.noise * scale.unsqueeze(-1)
    # 1e-3 px guards the logarithm where the noise is configured away.
    spread = torch.sqrt((mean + 0.5 * sensed) / 1.5) / unit.clamp_min(1e-3)
    logit = errors.confidence_logit - errors.confidence_slope * torch.log(spread.clamp_min(1e-3))
    confidence = torch.sigmoid(logit + errors.confidence_noise * draws.normal(T, V, J))
    if errors.confident_swaps < 1:
        noticed = draws.uniform(T, V, J) >= errors.confident_swaps
        doubt = noticed * draws.uniform(T, V, J) * (_MIRROR_DOUBT * apart) ** 2
        reported = reported + doubt[..., None, None] * torch.eye(2)
        # The same loss as of a wider noise; 1e-6 px^2 guards no noise at all.
        loss = 0.5 * errors.confidence_slope * torch.log1p(doubt / mean.clamp_min(1e-6))
        confidence = torch.sigmoid(torch.logit(confidence, 1e-6) - loss)
    return reported, confidence


def _drawn_rate(draws: Draws, most: float, T: int, V: int, J: int) -> Tensor:
    """(B, T, V, J) bool events at a rate (B, 1, V, 1) that is uniform between 0 and ``most``."""
    return draws.uniform(T, V, J) < draws.uniform(1, V, 1, high=most)


def _in_box(draws: Draws, xy: Tensor) -> Tensor:
    """Points uniform in the box around each person's joints (B, T, V, J, 2), enlarged by half."""
    low, high = xy.amin(-2, keepdim=True), xy.amax(-2, keepdim=True)
    place = draws.uniform(*xy.shape[1:], low=-0.5, high=0.5)
    return (low + high) / 2 + _BOX * (high - low) * place


def _missing(draws: Draws, errors: ErrorModel, hidden: Tensor, exact: bool) -> Tensor:
    """(B, T, V, J) bool: joints, hidden joints and whole views that are not detected."""
    T, V, J = hidden.shape[1:]
    joints = _rare(draws, errors, (T, V, J), errors.missing_rate)
    # Two views of a scene always keep the person; nothing could be learnt from one.
    sparable = draws.uniform(V).argsort(dim=1).argsort(dim=1) >= 2
    view = _rare(draws, errors, (T, V), errors.missing_view_rate) & sparable.unsqueeze(1)
    behind = hidden & _rare(draws, errors, (T, V, J), errors.missing_hidden_rate)
    if errors.drop_rate > 0:
        joints = joints | _drawn_rate(draws, errors.drop_rate, T, V, J)
    return joints if exact else joints | view.unsqueeze(-1) | behind
