"""The joint density of cameras, structure and errors, expanded around local optima.

Coordinates. A rig's size is known far less well than its shape, and shape is what the images see.
So cameras are written as a shape q, displacements in the tangent space of the optimum that leave
the size alone, and a log size x: ``t = exp(x) (t0 turned about the person + d)`` with d orthogonal
to t0. Joints and bones follow x exactly. Unknown focal lengths are part of the shape.

An `Expansion` holds what `ptri.posterior.density` needs of an optimum for any number of hypotheses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.rotations import log_haar_density, so3_log
from ptri.geometry.triangulation import SYMMETRIC, camera_matrix, ray_moments
from ptri.posterior.adjust import MIN_SCALE2, NOISE_PRIOR_COUNT
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import (
    Bundle,
    Errors,
    System,
    normal_equations,
    person_centre,
    priors,
)
from ptri.posterior.motion import carried, dolly, move_cameras
from ptri.structures import Observations, Views, constant

STEP_SIGMA = 100.0  # mm; how far a joint without any evidence follows a step
MIN_LENGTH = 1.0  # mm, guards logarithms of lengths
FREE_SIGMA = 1e4  # mm, of a joint that neither keypoints nor bones hold
MAX_SIGMA = 400.0  # mm; no joint is less certain than that, which bounds its volume


class Expansion(NamedTuple):
    """The joint density around local optima; leading (B,) rigs. N = T J joints in all."""

    R: Tensor  # (B, V, 3, 3)
    t: Tensor  # (B, V, 3) mm
    log_focal: Tensor  # (B, F) over the focal lengths of K
    centre: Tensor  # (B, V, 3) mm, pivots of the tangent space
    basis: Tensor  # (B, D, D - 1) of the displacements that leave the size alone
    joints: Tensor  # (B, T, 3, J) mm
    shared: Tensor  # (B, E) log lengths and biases
    slope: Tensor  # (B, D - 1, T 3 J + E) change of joints and shared unknowns with the shape
    inverse: Tensor  # (B, T, 3J, 3J) inverse information of each frame's joints, bounded, mm^2
    gain: Tensor  # (B, T, E, 3J) coupling of the shared unknowns @ inverse
    shared_inverse: Tensor  # (B, E, E)
    moments: Tensor  # (B, 6 V, N) ray moments over the squared depth
    share: Tensor  # (B, V, N) each view's part in a joint's information, sums to one
    log_depth: Tensor  # (B, V, N)
    tied: Tensor  # (B, 6, N) what ties a joint besides its own rays (D), 1/mm^2
    covariance: Tensor  # (B, T, J, 3, 3) mm^2, marginal of each joint given the cameras
    weight: Tensor  # (B, T, V, J) responsibility of the inlier
    observed: Tensor  # (B, T, J) 1 where the joint has keypoints, else 0: no part in the volume
    errors: Errors
    chart: Tensor  # (B, D, D) displacements of a unit of each coordinate: the basis, and the size
    information: Tensor  # (B, D, D) of shape and log size, everything else integrated out
    freedom: Tensor  # (B,) degrees of freedom of the noise scale
    scale2: Tensor  # (B,) squared noise scale that the residuals speak for

    @property
    def views(self) -> Views:
        return Views(*self[:3])


class _Around(NamedTuple):
    """The joint density around bundles (B, ...), coordinates of joints in the order (3, J)."""

    system: System
    frames: Tensor  # (B, T, 3J, 3J)
    coupling: Tensor  # (B, T, G, 3J)
    prior: Tensor  # (B, G, G)
    covariance: Tensor  # (B, T, J, 3, 3) mm^2, marginal of each joint given the cameras
    information: Tensor  # (B, D, D) of the cameras, everything else integrated out
    depth: Tensor  # (B, T, V, J) mm
    moments: Tensor  # (B, 6 V, N) ray moments over the squared depth
    rays: Tensor  # (6, B, N) each joint's information by its own rays, 1/mm^2
    freedom: Tensor  # (B,) degrees of freedom of the noise scale
    scale2: Tensor  # (B,) squared noise scale that the residuals speak for


def _around(observations: Observations, bundle: Bundle, errors: Errors, body: BodyPrior) -> _Around:
    B, T, V, J, _ = observations.xy.shape
    num_cameras = bundle.num_cameras
    system = normal_equations(bundle, observations, errors, body)
    # Coordinates (J, 3) to (3, J): the layout of the hypotheses.
    order = torch.arange(3 * J, device=bundle.R.device).view(J, 3).T.flatten()
    frames = system.frames[..., order, :][..., order]
    frames.diagonal(dim1=-2, dim2=-1).add_(FREE_SIGMA**-2)
    coupling = system.coupling[..., order]
    prior, _ = priors(bundle, errors, body)
    inverse, gain, shared_inverse, _, information = _eliminate(
        frames, coupling, system.shared, prior, num_cameras
    )
    gain = gain[:, :, num_cameras:]
    spread = inverse + gain.mT @ (shared_inverse.unsqueeze(1) @ gain)
    covariance = _joint_blocks(spread, J)
    # What joints and bones take of the keypoints' degrees of freedom; biases count apart.
    biased = errors.bias.shape[2] > 0
    taking = _joint_blocks(inverse, J) if biased else covariance
    camera = torch.einsum("bvac,btjc->btvja", bundle.R, bundle.joints)
    depth = (camera[..., 2] + bundle.t[:, None, :, None, 2]).clamp_min(MIN_DEPTH)
    curved = (errors.curvature / errors.scale2)[:, None, None, None]
    factor = system.weight * curved / depth.square()
    moments = ray_moments(observations.xy, observations.information * factor[..., None, None])
    moments = moments.permute(0, 2, 4, 1, 3).reshape(B, 6 * V, T * J)
    rays = (camera_matrix(bundle.views.projection[0]) @ moments).transpose(0, 1)
    taken = _trace(rays, _entries(taking.flatten(1, 2))).sum(-1)
    freedom = 2 * system.weight.sum((1, 2, 3)) - taken - num_cameras - errors.num_bias
    freedom = freedom.clamp_min(0.0)
    energy = (system.weight * system.chi2).sum((1, 2, 3))
    scale2 = (energy + NOISE_PRIOR_COUNT) / (freedom + NOISE_PRIOR_COUNT)
    return _Around(
        system,
        frames,
        coupling,
        prior,
        covariance,
        information,
        depth,
        moments,
        rays,
        freedom,
        scale2.clamp_min(MIN_SCALE2),
    )


def _eliminate(
    frames: Tensor,
    coupling: Tensor,
    shared: Tensor,
    prior: Tensor,
    num_cameras: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inverse of the frames, gain, inverse of the shared, their slope, cameras' information."""
    cameras, rest = slice(0, num_cameras), slice(num_cameras, None)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(frames)[0])
    gain = coupling @ inverse  # (B, T, G, 3J)
    full = shared - (gain @ coupling.mT).sum(1) + prior
    shared_inverse = torch.linalg.inv_ex(full[:, rest, rest])[0]
    towards = shared_inverse @ full[:, rest, cameras]  # (B, E, D)
    information = full[:, cameras, cameras] - full[:, cameras, rest] @ towards
    return inverse, gain, shared_inverse, towards, information


def residual_scale2(
    observations: Observations, bundle: Bundle, errors: Errors, body: BodyPrior
) -> Tensor:
    """Squared noise scale (B,) that the residuals of adjusted bundles (B, ...) speak for."""
    return _around(observations, bundle, errors, body).scale2


def expand(
    observations: Observations, bundle: Bundle, errors: Errors, body: BodyPrior
) -> Expansion:
    """Expands the joint density around adjusted bundles (B, ...)."""
    F, num_cameras = bundle.log_focal.shape[1], bundle.num_cameras
    cameras, rest = slice(0, num_cameras), slice(num_cameras, None)
    around = _around(observations, bundle, errors, body)
    system, coupling = around.system, around.coupling
    # A joint that the images hardly hold does not follow a tangent far: its steps are bounded.
    eye = torch.eye(around.frames.shape[-1], dtype=bundle.R.dtype, device=bundle.R.device)
    bounded = around.frames + STEP_SIGMA**-2 * eye
    inverse, gain, shared_inverse, towards, _ = _eliminate(
        bounded, coupling, system.shared, around.prior, num_cameras
    )
    # d joints / d theta = -F^-1 (C_theta - C_rest^T towards)
    direct = gain[:, :, cameras] - towards.mT.unsqueeze(1) @ gain[:, :, rest]
    centre = person_centre(bundle)
    eye = torch.eye(num_cameras, dtype=centre.dtype, device=centre.device)
    along = carried(centre.unsqueeze(1), eye, F)  # (B, D, 3)
    direct = direct - along.repeat_interleave(bundle.joints.shape[2], dim=-1).unsqueeze(1)
    slope = torch.cat([-direct.transpose(1, 2).flatten(2), -towards.mT], dim=-1)
    precision = torch.linalg.inv_ex(around.covariance)[0].flatten(1, 2)
    tied = _positive_part(_entries(precision) - around.rays)
    diagonal = constant((1, 0, 0, 1, 0, 1), tied.device, tied.dtype)[:, None, None]
    tied = tied + MAX_SIGMA**-2 * diagonal
    by_view = system.weight / system.weight.sum(2, keepdim=True).clamp_min(1e-6)
    size = torch.nn.functional.pad(bundle.t[:, 1:], (3, 0)).flatten(1)
    size = torch.nn.functional.pad(size, (F, 0))
    basis = _complement(size)
    chart = torch.cat([basis, size.unsqueeze(-1)], dim=-1)
    return Expansion(
        R=bundle.R,
        t=bundle.t,
        log_focal=bundle.log_focal,
        centre=centre,
        basis=basis,
        joints=bundle.joints.mT.contiguous(),
        shared=torch.cat([bundle.log_lengths, errors.bias.flatten(1)], dim=-1),
        slope=basis.mT @ slope,
        inverse=inverse,
        gain=gain[:, :, rest].contiguous(),
        shared_inverse=shared_inverse,
        moments=around.moments,
        share=by_view.transpose(1, 2).flatten(2),
        log_depth=around.depth.log().transpose(1, 2).flatten(2),
        tied=tied.transpose(0, 1),
        covariance=around.covariance,
        weight=system.weight,
        observed=(observations.inlier > 0).any(2).to(around.depth),
        errors=errors,
        chart=chart,
        information=chart.mT @ around.information @ chart,
        freedom=around.freedom,
        scale2=around.scale2,
    )


def _complement(direction: Tensor) -> Tensor:
    """Orthonormal bases (B, D, D - 1) of what is orthogonal to directions (B, D) (Householder)."""
    unit = direction / direction.norm(dim=-1, keepdim=True)
    last = torch.zeros_like(unit)
    last[:, -1] = torch.where(unit[:, -1] > 0, -1.0, 1.0)
    u = unit - last
    u = u / u.norm(dim=-1, keepdim=True)
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    return (eye - 2 * u.unsqueeze(-1) * u.unsqueeze(-2))[..., :-1]


def cameras_at(shape: Tensor, size: Tensor, at: Expansion) -> Views:
    """Cameras (..., B, V, ...) of coordinates (..., B, D - 1), (..., B)."""
    tangent = (at.basis @ shape.unsqueeze(-1)).squeeze(-1)
    views = move_cameras(at.views, at.centre, tangent)
    return views._replace(t=views.t * size.exp()[..., None, None])


def coordinates_of(views: Views, at: Expansion) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of cameras (M, B, V, ...): the inverse of ``cameras_at``.

    Returns:
        Shape (M, B, D - 1), log size (M, B), and the log of the volume (M, B) that a unit of
        coordinates has in the measure of the density, Haar, mm and log focal length.
    """
    R, t, log_focal = views
    turn = R[:, :, 1:] @ at.R[:, 1:].mT  # (M, B, V-1, 3, 3)
    pivot = at.centre[:, 1:]
    turned = pivot + (turn @ (at.t[:, 1:] - pivot).unsqueeze(-1)).squeeze(-1)
    growth = torch.expm1(log_focal - at.log_focal)
    if growth.shape[-1]:
        turned = turned + dolly(growth, at.centre, R[:, :, 1:])
    unit = at.t[:, 1:] / at.t[:, 1:].flatten(1).norm(dim=-1)[:, None, None]
    along = (unit * turned).sum((-1, -2)).clamp_min(MIN_LENGTH)
    # A rig that is mirrored through its reference has no size: it is taken as a very small one.
    size = ((unit * t[:, :, 1:]).sum((-1, -2)).clamp_min(MIN_LENGTH) / along).log()
    w = so3_log(turn)
    shift = t[:, :, 1:] * (-size).exp()[..., None, None] - turned
    tangent = torch.cat([growth, torch.cat([w, shift], dim=-1).flatten(-2)], dim=-1)
    shape = (at.basis.mT @ tangent.unsqueeze(-1)).squeeze(-1)
    volume = log_haar_density(w.norm(dim=-1)).sum(-1) + shift[0, 0].numel() * size + along.log()
    return shape, size, volume - (log_focal - at.log_focal).sum(-1)


def _joint_blocks(matrix: Tensor, num_joints: int) -> Tensor:
    """The joints' own blocks (..., J, 3, 3) of matrices (..., 3J, 3J) in coordinates (3, J)."""
    blocks = matrix.unflatten(-1, (3, num_joints)).unflatten(-3, (3, num_joints))
    return blocks.diagonal(dim1=-3, dim2=-1).movedim(-1, -3)


def _trace(a: Tensor, b: Tensor) -> Tensor:
    """Trace (...) of products of symmetric matrices (6, ...)."""
    twice = constant((1, 2, 2, 1, 2, 1), a.device, a.dtype).reshape(6, *([1] * (a.ndim - 1)))
    return (twice * a * b).sum(0)


def _entries(matrix: Tensor) -> Tensor:
    """The six entries (6, ...) of symmetric matrices (..., 3, 3)."""
    rows, columns = (constant(part, matrix.device) for part in zip(*SYMMETRIC))
    return matrix[..., rows, columns].movedim(-1, 0)


def _positive_part(entries: Tensor) -> Tensor:
    """Symmetric matrices (6, ...) with their negative eigenvalues set to zero."""
    a, b, c, d, e, f = entries
    matrix = torch.stack([a, b, c, b, d, e, c, e, f], dim=-1).unflatten(-1, (3, 3))
    value, vector = torch.linalg.eigh(matrix)
    return _entries(vector @ (value.clamp_min(0.0).unsqueeze(-1) * vector.mT))
