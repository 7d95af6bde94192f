"""Checks around the posterior: arguments before it; and what it cannot mend, keypoints on a line
and cameras that stand at one place."""

from __future__ import annotations

import math
from itertools import combinations
from numbers import Integral

import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.geometry.cameras import pixel_to_normalised
from ptri.structures import Keypoints

THIN = 0.05  # keypoints whose spread across is less than this share of that along are on a line
LINE_NOISE = 2.0  # as are those that leave it by less than so many stated standard deviations
# Rays that meet at less than this angle, or than so many standard deviations of a keypoint
# (a depth's relative error is the inverse of that), fix no depth.
MIN_PARALLAX_DEG, PARALLAX_NOISE = 3.0, 10.0


def check_numbers(
    num_samples: int, num_iterations: int, max_frames: int, seed: int
) -> tuple[int, int, int, int]:
    """The same as Python's own integers.

    Raises:
        UserError: one of them is out of range.
    """
    for name, value, least in (
        ("num_samples", num_samples, 8),
        ("num_iterations", num_iterations, 1),
        ("max_frames", max_frames, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise UserError(f"{name}: {value!r}; expected a whole number >= {least}")
    if num_iterations > num_samples:
        raise UserError(
            f"num_iterations: {num_iterations} for {num_samples} samples; expected no more than "
            "num_samples, which is the number of samples of all iterations together"
        )
    return int(num_samples), int(num_iterations), int(max_frames), int(seed)


def objection(keypoints: Keypoints, K: Tensor, R: Tensor, noise2: float = 1.0) -> str | None:
    """Why cameras must not be trusted, whatever the posterior says; None where there is nothing.

    Args:
        keypoints: (T, V, J, ...) px, of the frames that the rig was solved from.
        K, R: (V, 3, 3) px and posterior mean.
        noise2: squared factor on the stated standard deviations, as the residuals say.
    """
    keypoints = keypoints._replace(covariance=keypoints.covariance * max(noise2, 1.0))
    thin = views_on_a_line(keypoints, K)
    if bool(thin.all()):  # one view that looks along a flat person is no objection
        return (
            "too little evidence: in every view all keypoints lie on one line or point, so that "
            "nothing fixes the rotation about it"
        )
    angle, needed = parallax_deg(keypoints, K, R)
    if angle < needed:
        return (
            f"too little evidence: the views' rays meet at {angle:.1f} deg (median), "
            f"{needed:.1f} deg are needed to fix depths; do the cameras stand at one place?"
        )
    return None


def views_on_a_line(keypoints: Keypoints, K: Tensor) -> Tensor:
    """Views (V,) bool whose keypoints of all frames lie on one line, up to noise and outliers."""
    rays, weight, sigma = _rays(keypoints, K)
    x, w = (part.transpose(0, 1).flatten(1, 2) for part in (rays, weight))  # (V, T J, ...)
    robust = w
    for _ in range(4):
        # 1e-12 guards a view without any keypoint.
        share = robust / robust.sum(1, keepdim=True).clamp_min(1e-12)
        away = x - (share[..., None] * x).sum(1, keepdim=True)
        moment = torch.einsum("vn,vna,vnb->vab", share, away, away)
        variance, axes = torch.linalg.eigh(moment)
        across = (away @ axes[..., :1]).squeeze(-1).abs()  # (V, T J)
        typical = torch.where(w > 0, across, torch.nan).nanmedian(dim=1).values.nan_to_num(0.0)
        robust = w / (1 + (across / (3 * typical[:, None] + 1e-9)).square())
    minor, major = 1.48 * typical, variance[:, 1].clamp_min(0).sqrt()
    noise = torch.where(w > 0, sigma.transpose(0, 1).flatten(1, 2), torch.nan)
    noise = noise.nanmedian(dim=1).values.nan_to_num(0.0)
    return minor <= torch.maximum(LINE_NOISE * noise, THIN * major)


def parallax_deg(keypoints: Keypoints, K: Tensor, R: Tensor) -> tuple[float, float]:
    """Median over joints of the widest angle at which two views' rays meet, and what is needed."""
    rays, weight, sigma = _rays(keypoints, K)
    ray = torch.cat([rays, torch.ones_like(rays[..., :1])], dim=-1)
    ray = (ray / ray.norm(dim=-1, keepdim=True)) @ R  # R^T r, in the reference frame
    first, second = (list(part) for part in zip(*combinations(range(len(K)), 2)))
    # The rays' lines: from opposite sides they are as parallel as from one.
    sine = torch.linalg.cross(ray[:, first], ray[:, second]).norm(dim=-1)  # (T, P, J)
    both = (weight[:, first] > 0) & (weight[:, second] > 0)
    sine = torch.where(both, sine, torch.zeros_like(sine)).amax(1)
    seen = both.any(1)
    if not bool(seen.any()):
        return 0.0, MIN_PARALLAX_DEG
    noise = float(sigma[weight > 0].median())
    needed = max(math.radians(MIN_PARALLAX_DEG), PARALLAX_NOISE * noise)
    angle = float(sine[seen].median().clamp_max(1.0).asin())
    return math.degrees(angle), math.degrees(min(needed, math.radians(30.0)))


def _rays(keypoints: Keypoints, K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised coordinates (T, V, J, 2), confidences and standard deviations (T, V, J); 0 where
    not seen."""
    seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)
    rays = pixel_to_normalised(keypoints.xy, K)
    variance = 0.5 * keypoints.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    sigma = variance.sqrt() / K.diagonal(dim1=-2, dim2=-1)[:, :2].mean(-1)[:, None]
    zero = torch.zeros_like(sigma)
    rays = torch.where(seen[..., None], rays, zero[..., None])
    return rays, torch.where(seen, keypoints.confidence, zero), torch.where(seen, sigma, zero)
