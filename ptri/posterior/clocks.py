"""Views whose clocks are shifted against each other: one Gauss-Newton step of all unknowns.

A view that shows everything ``lag`` frames late sees at its frame i what happened at i - lag. So
the residual of a keypoint, read at the moment tau + lag of its view, changes with the lag by minus
the velocity of the keypoint in the image. A clock that runs slower falls behind by more and more,
so a lag is a line over the frames. Cameras, joints and bones follow (Schur complement, as in
`ptri.posterior.adjust`); view 0's clock is the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import project_normalised
from ptri.posterior.adjust import damped
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import (
    Bundle,
    Errors,
    normal_equations,
    person_centre,
    priors,
    projected_slopes,
    with_poses,
)
from ptri.posterior.motion import move_cameras
from ptri.structures import Observations

LAG_SIGMA = 1000.0  # frames, of a lag nothing else is known of
# Frames a frame by which a clock gains or loses: crystals by 1e-5 to 1e-4, rates that are rounded
# (29.97 and 30 a second) by 1e-3, which long recordings tell.
DRIFT_SIGMA = 3e-4
DAMPING = 1e-3  # of joints that the images hardly hold


class ClockStep(NamedTuple):
    """What a step makes of N rigs."""

    bundle: Bundle
    lags: Tensor  # (N, V - 1, 2) to add: frames in the middle, and frames a frame
    covariance: Tensor  # (N, V - 1, 2, 2) of each, at the noise's scale


@torch.no_grad()
def clock_step(
    bundle: Bundle,
    observations: Observations,
    velocity: Tensor,
    errors: Errors,
    body: BodyPrior,
    moments: Tensor,
    drift: Tensor,
) -> ClockStep:
    """One Gauss-Newton step of cameras, joints, bones and lags from adjusted bundles.

    Args:
        bundle: of K that are exact.
        observations: (N, T, V, J, ...) at the moments that the present lags give.
        velocity: (N, T, V, J, 2) of the keypoints, normalised coordinates a frame; 0 = not known.
        moments: (N, T) frames from the middle of the recording, by view 0's clock.
        drift: (N, V - 1) frames a frame, at present; it is held near 0.
    """
    N = len(bundle.t)
    num_cameras = bundle.num_cameras
    system = normal_equations(bundle, observations, errors, body)
    camera, projection = projected_slopes(bundle)
    residual = project_normalised(camera) - observations.xy
    weight = system.weight / errors.scale2[:, None, None, None]
    curved = weight * errors.curvature[:, None, None, None]
    # Rows of the lags: minus the velocity times the information, (N, T, V, J, 2).
    row = -(observations.information @ velocity.unsqueeze(-1)).squeeze(-1)
    by_point = (curved.unsqueeze(-1) * row).unsqueeze(-2) @ projection  # (N, T, V, J, 1, 3)
    by_joint = (by_point @ bundle.R[:, None, :, None])[:, :, 1:, :, 0].flatten(3)
    by_camera = with_poses(by_point, camera, bundle).sum(3).squeeze(-2)  # (N, T, V - 1, 6)
    # A lag is a sum of two lines over the frames, with the span as the unit of time.
    span = (moments.amax(1) - moments.amin(1)).clamp_min(1.0)
    lines = torch.stack([torch.ones_like(moments), moments / span[:, None]], -1)  # (N, T, 2)
    by_joint = torch.einsum("ntl,ntvj->ntvlj", lines, by_joint).flatten(2, 3)
    by_camera = torch.einsum("ntl,ntvc->nvlc", lines, by_camera)
    own = -(curved * (row * velocity).sum(-1))[:, :, 1:].sum(3)  # (N, T, V - 1)
    own = torch.einsum("ntl,ntm,ntv->nvlm", lines, lines, own)
    slope = (weight * (row * residual).sum(-1))[:, :, 1:].sum(3)
    slope = torch.einsum("ntl,ntv->nvl", lines, slope)
    known = torch.stack([torch.full_like(span, LAG_SIGMA), DRIFT_SIGMA * span], -1) ** -2  # (N, 2)
    own = own + torch.diag_embed(known)[:, None]
    slope = torch.stack([slope[..., 0], slope[..., 1] + (known[:, 1] * span)[:, None] * drift], -1)

    chol, _ = torch.linalg.cholesky_ex(
        damped(system.frames, torch.full_like(errors.scale2, DAMPING))
    )
    rows = torch.cat([system.coupling, by_joint], 2)  # (N, T, G + 2 (V - 1), 3J)
    total = rows.shape[2]
    shared = system.shared.new_zeros(N, total, total)
    G = system.coupling.shape[2]
    prior, pull = priors(bundle, errors, body)
    shared[:, :G, :G] = system.shared + prior
    # Blocks (N, V - 1, 6, 2) and (N, V - 1, 2, 2) of a view's camera with its lag, and of its lag.
    cross, block = (block_diagonal(value) for value in (by_camera.mT, own))
    shared[:, :num_cameras, G:] = cross
    shared[:, G:, :num_cameras] = cross.mT
    shared[:, G:, G:] = block
    gradient = torch.cat([system.shared_gradient + pull, slope.flatten(1)], 1)
    right = torch.cat([rows, system.frames_gradient.unsqueeze(2)], 2)
    half = torch.linalg.solve_triangular(chol, right.mT, upper=False)
    reduced = (half[..., :-1].mT @ half).sum(1)
    inverse = torch.linalg.inv_ex(shared - reduced[..., :-1])[0]
    step = -inverse @ (gradient - reduced[..., -1]).unsqueeze(-1)  # (N, total, 1)
    rest = half[..., -1:] + half[..., :-1] @ step.unsqueeze(1)
    joints = -torch.linalg.solve_triangular(chol.mT, rest, upper=True).squeeze(-1)
    step = step.squeeze(-1)
    views = move_cameras(bundle.views, person_centre(bundle), step[:, :num_cameras])
    lengths = bundle.log_lengths + step[:, num_cameras : num_cameras + bundle.log_lengths.shape[1]]
    moved = Bundle(*views, bundle.joints + joints.view_as(bundle.joints), lengths)
    unit = torch.stack([torch.ones_like(span), 1 / span], -1)[:, None]  # (N, 1, 2)
    lags = step[:, G:].unflatten(1, own.shape[1:3])
    covariance = inverse[:, G:, G:].unflatten(2, lags.shape[1:]).unflatten(1, lags.shape[1:])
    covariance = covariance.diagonal(dim1=1, dim2=3).movedim(-1, 1)  # (N, V - 1, 2, 2)
    return ClockStep(moved, lags * unit, covariance * unit.unsqueeze(-1) * unit.unsqueeze(-2))


def block_diagonal(blocks: Tensor) -> Tensor:
    """Matrices (N, V a, V b) that have blocks (N, V, a, b) on their diagonal."""
    N, V, a, b = blocks.shape
    return torch.diag_embed(blocks.movedim(1, -1)).permute(0, 3, 1, 4, 2).reshape(N, V * a, V * b)
