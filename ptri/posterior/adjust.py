"""Robust bundle adjustment of a static rig, by the Levenberg-Marquardt method, batched.

What is adjusted and its normal equations: `ptri.posterior.equations`. Frames couple only through
the cameras and the shared unknowns, so each frame's joints are eliminated by one (3J, 3J) Cholesky
factor (Schur complement; Triggs et al., Bundle Adjustment, 2000, section 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.damping import next_damping, start_damping
from ptri.geometry.rays import MEDIAN_CHI2
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import (
    Bundle,
    Errors,
    System,
    frame_costs,
    lay_out,
    person_centre,
    plain_errors,
    priors,
    residuals,
    system_at,
    total_cost,
)
from ptri.posterior.motion import carried, move_cameras
from ptri.structures import Observations, where

STEP_SIGMA = 10.0  # mm, a joint's step at damping one
# The noise scale is estimated with a prior worth this many residuals at scale one.
NOISE_PRIOR_COUNT = 2.0
MIN_SCALE2 = 0.05  # frames that repeat each other leave no residuals, and are no more certain
MEDIAN_MARGIN = 3.0  # over the noise that the median residual speaks for


def adjust(
    observations: Observations,
    start: Bundle,
    body: BodyPrior,
    num_iterations: int = 12,
    num_wide: int = 6,
    errors: Errors | None = None,
) -> tuple[Bundle, Errors]:
    """Levenberg-Marquardt on the robust cost.

    Args:
        num_wide: first iterations in which the noise is widened to the median residual, so that
            a start many degrees off still feels every point.
        errors: the errors to start from; their biases are adjusted too, the scale is estimated,
            the rest stays.

    Returns:
        The bundle and the errors at the end.
    """
    F, num_cameras, num_bones = start.log_focal.shape[1], start.num_cameras, len(body.mean)
    layout = lay_out(observations, body)
    bundle, errors = start, plain_errors(observations) if errors is None else errors
    at = residuals(bundle, layout, errors, body)
    damping = start_damping(errors.scale2)
    for iteration in range(num_iterations):
        wide = iteration < num_wide
        current = errors
        if wide:
            scale2 = median_scale2(at.chi2, layout.inlier)
            current = errors._replace(scale2=torch.maximum(errors.scale2, scale2))
        system = system_at(at, bundle, layout, current, body)
        step, structure = _solve(system, bundle, current, body, damping)
        centre, tangent = person_centre(bundle), step[:, :num_cameras]
        views = move_cameras(bundle.views, centre, tangent)
        structure = structure + carried(centre, tangent, F)[:, None, None]
        lengths, bias = step[:, num_cameras:].tensor_split([num_bones], dim=1)
        trial = Bundle(*views, bundle.joints + structure, bundle.log_lengths + lengths)
        biased = current._replace(bias=errors.bias + bias.view_as(errors.bias))
        there = residuals(trial, layout, biased, body)
        before = total_cost(frame_costs(at, layout, current), bundle, current, body)
        after = total_cost(frame_costs(there, layout, biased), trial, biased, body)
        better = after < before  # not where it is not finite
        bundle, bias, at = where(better, (trial, biased.bias, there), (bundle, errors.bias, at))
        errors = errors._replace(bias=bias)
        damping = next_damping(damping, better)
        if not wide:
            scale2 = noise_scale(system, errors, num_cameras, observations.inlier)
            errors = errors._replace(scale2=scale2)
    return bundle, errors


def damped(frames: Tensor, damping: Tensor) -> Tensor:
    """Frames' information (N, T, 3J, 3J) with damping (N or N, T) of their own scale."""
    frames = frames.clone()
    diagonal = frames.diagonal(dim1=-2, dim2=-1)
    # The second term bounds the steps of joints that the images hardly hold.
    damping = damping[..., None] if damping.ndim == 2 else damping[:, None, None]
    diagonal.mul_(1 + damping).add_(damping * STEP_SIGMA**-2)
    return frames


def median_scale2(chi2: Tensor, inlier: Tensor) -> Tensor:
    """Squared noise scale (N,) at which the median of chi2 (N, ...) is what it should be."""
    chi2 = torch.where(inlier > 0, chi2, torch.nan).flatten(1)
    return chi2.nanmedian(dim=1).values.nan_to_num(MEDIAN_CHI2) / MEDIAN_CHI2


def degrees_of_freedom(weight: Tensor, errors: Errors, num_cameras: int) -> Tensor:
    """Residual coordinates (N,) beyond those that joints, cameras and biases take up."""
    seen = 2 * weight.sum(2)  # (N, T, J) effective coordinates of each joint
    freedom = 2 * weight.sum((1, 2, 3)) - seen.clamp_max(3.0).sum((1, 2))
    return (freedom - num_cameras - errors.num_bias).clamp_min(0.0)


def noise_scale(system: System, errors: Errors, num_cameras: int, inlier: Tensor) -> Tensor:
    """Squared noise scale (N,) of the stated covariances, shrunk to one.

    At most what the median residual allows: else the scale could grow until outliers look normal.
    """
    freedom = degrees_of_freedom(system.weight, errors, num_cameras)
    energy = (system.weight * system.chi2).sum((1, 2, 3)) + NOISE_PRIOR_COUNT
    share = freedom / (2 * system.weight.sum((1, 2, 3))).clamp_min(1.0)
    limit = MEDIAN_MARGIN * median_scale2(system.chi2, inlier) / share.clamp_min(0.05)
    scale2 = torch.minimum(energy / (freedom + NOISE_PRIOR_COUNT), limit.clamp_min(1.0))
    return scale2.clamp_min(MIN_SCALE2)


def _solve(
    system: System, bundle: Bundle, errors: Errors, body: BodyPrior, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """Damped step of the shared unknowns (N, G) and of the joints (N, T, J, 3)."""
    chol, _ = torch.linalg.cholesky_ex(damped(system.frames, damping))
    right = torch.cat([system.coupling, system.frames_gradient.unsqueeze(2)], dim=2)
    # The Schur complement from half of the frames' solves, chol^-1 (coupling^T, gradient).
    half = torch.linalg.solve_triangular(chol, right.mT, upper=False)  # (N, T, 3J, G + 1)
    reduced = (half[..., :-1].mT @ half).sum(1)  # (N, G, G + 1)
    prior, pull = priors(bundle, errors, body)
    full = system.shared + prior
    full = full + torch.diag_embed(full.diagonal(dim1=-2, dim2=-1) * damping[:, None])
    complement = full - reduced[..., :-1]
    remainder = system.shared_gradient - reduced[..., -1] + pull
    outer, _ = torch.linalg.cholesky_ex(complement)
    step = -torch.cholesky_solve(remainder.unsqueeze(-1), outer)  # (N, G, 1)
    rest = half[..., -1:] + half[..., :-1] @ step.unsqueeze(1)
    joints = -torch.linalg.solve_triangular(chol.mT, rest, upper=True).squeeze(-1)
    return step.squeeze(-1), joints.unflatten(-1, (-1, 3))
