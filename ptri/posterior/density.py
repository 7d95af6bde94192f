"""Posterior density of the cameras, with joints, body and biases integrated out.

For cameras theta and noise scale s, the keypoints u, the joints X, the log bone lengths l and the
biases b have the joint density

    p(u, X, l, b | theta, s) = prod [c N(u; proj(X) + b, e^2s S) + (1 - c) outlier]
                             * prod N(log |bone|; l, slack^2) / |bone|^3  * scale-free places
                             * N(l; body) * N(b; 0, bias2).

1 / |bone|^3 is the volume element of a direction and a log length. The integral over n = (X, l, b)
is Laplace's: the density at its conditional optimum n*(theta, s), times det(H)^(-1/2) of its
information there. An `Expansion` at one local optimum makes both cheap for any number of
hypotheses:

- n* starts on the tangent plane of the optimum, ``n0 - Hnn^-1 Hnq q``, and goes on
  by Newton steps with the expansion's own Hnn (the chord method): matrix products only.
- det H changes through each joint's information A(theta), a product of ray moments with the
  cameras. The rest of H is kept, per joint, as the matrix D that makes A + D the inverse of the
  joint's marginal covariance at the expansion. So log det H is right to first order, and exactly
  where joints are tied to nothing else.

A frame that is worth less than one independent frame enters with that power.

Coordinates. A rig's size is known far less well than its shape, and shape is what the images see.
So cameras are written as a shape q, displacements in the tangent space of the optimum that leave
the size alone, and a log size x: ``t = exp(x) (t0 turned about the person + d)`` with d orthogonal
to t0. Joints and bones follow x exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.rays import log_mixture, responsibility
from ptri.geometry.rotations import log_haar_density, so3_log
from ptri.geometry.triangulation import camera_matrix, ray_moments, symmetric_inverse
from ptri.posterior import adjust as adjustment
from ptri.posterior.adjust import (
    MIN_SCALE2,
    NOISE_PRIOR_COUNT,
    Bundle,
    Errors,
    Layout,
    System,
    lay_out,
)
from ptri.posterior.body import BodyPrior
from ptri.structures import MANY_FRAMES, Observations, where

STEP_SIGMA = 100.0  # mm; how far a joint without any evidence follows a step
MIN_LENGTH = 1.0  # mm, guards logarithms of lengths
FREE_SIGMA = 1e4  # mm, of a joint that neither keypoints nor bones hold
MAX_SIGMA = 400.0  # mm; no joint is less certain than that, which bounds its volume


class Expansion(NamedTuple):
    """The joint density around local optima; leading (B,) rigs. N = T J joints in all."""

    R: Tensor  # (B, V, 3, 3)
    t: Tensor  # (B, V, 3) mm
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
    information: Tensor  # (B, D, D) of shape and log size, everything else integrated out
    freedom: Tensor  # (B,) degrees of freedom of the noise scale
    scale2: Tensor  # (B,) squared noise scale that the residuals speak for


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
    num_cameras = 6 * (V - 1)
    system = adjustment.normal_equations(bundle, observations, errors, body)
    # Coordinates (J, 3) to (3, J): the layout of the hypotheses.
    order = torch.arange(3 * J, device=bundle.R.device).view(J, 3).T.flatten()
    frames = system.frames[..., order, :][..., order]
    frames.diagonal(dim1=-2, dim2=-1).add_(FREE_SIGMA**-2)
    coupling = system.coupling[..., order]
    prior = adjustment.prior_information(errors, body, num_cameras)
    inverse, gain, shared_inverse, _, information = _eliminate(
        frames, coupling, system.shared, prior, errors, num_cameras
    )
    gain = gain[:, :, num_cameras:]
    spread = inverse + gain.mT @ (shared_inverse.unsqueeze(1) @ gain)
    covariance = _joint_blocks(spread, J)
    # What joints and bones take of the keypoints' degrees of freedom; biases count apart.
    biased = errors.bias.shape[2] > 0
    taking = _joint_blocks(inverse, J) if biased else covariance
    camera = torch.einsum("bvac,btjc->btvja", bundle.R, bundle.joints)
    depth = (camera[..., 2] + bundle.t[:, None, :, None, 2]).clamp_min(MIN_DEPTH)
    factor = system.weight / (errors.scale2[:, None, None, None] * depth.square())
    moments = ray_moments(observations.xy, observations.information * factor[..., None, None])
    moments = moments.permute(0, 2, 4, 1, 3).reshape(B, 6 * V, T * J)
    rays = (camera_matrix(bundle.R) @ moments).transpose(0, 1)
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
    errors: Errors,
    num_cameras: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inverse of the frames, gain, inverse of the shared, their slope, cameras' information."""
    cameras, rest = slice(0, num_cameras), slice(num_cameras, None)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(frames)[0])
    gain = coupling @ inverse  # (B, T, G, 3J)
    worth = errors.frame_weight[:, None, None]
    full = worth * (shared - (gain @ coupling.mT).sum(1)) + prior
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
    num_cameras = 6 * (bundle.R.shape[1] - 1)
    cameras, rest = slice(0, num_cameras), slice(num_cameras, None)
    around = _around(observations, bundle, errors, body)
    system, coupling = around.system, around.coupling
    # A joint that the images hardly hold does not follow a tangent far: its steps are bounded.
    bounded = around.frames + STEP_SIGMA**-2 * torch.eye(around.frames.shape[-1]).to(bundle.R)
    inverse, gain, shared_inverse, towards, _ = _eliminate(
        bounded, coupling, system.shared, around.prior, errors, num_cameras
    )
    # d joints / d theta = -F^-1 (C_theta - C_rest^T towards)
    direct = gain[:, :, cameras] - towards.mT.unsqueeze(1) @ gain[:, :, rest]
    slope = torch.cat([-direct.transpose(1, 2).flatten(2), -towards.mT], dim=-1)
    precision = torch.linalg.inv_ex(around.covariance)[0].flatten(1, 2)
    tied = _positive_part(_entries(precision) - around.rays)
    tied[[0, 3, 5]] += MAX_SIGMA**-2
    by_view = system.weight / system.weight.sum(2, keepdim=True).clamp_min(1e-6)
    size = torch.cat([torch.zeros_like(bundle.t[:, 1:]), bundle.t[:, 1:]], dim=-1).flatten(1)
    basis = _complement(size)
    chart = torch.cat([basis, size.unsqueeze(-1)], dim=-1)
    return Expansion(
        R=bundle.R,
        t=bundle.t,
        centre=adjustment.person_centre(bundle),
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


def cameras_at(shape: Tensor, size: Tensor, at: Expansion) -> tuple[Tensor, Tensor]:
    """Cameras R (..., B, V, 3, 3), t (..., B, V, 3) of coordinates (..., B, D - 1), (..., B)."""
    tangent = (at.basis @ shape.unsqueeze(-1)).squeeze(-1)
    R, t = adjustment.move_cameras(at.R, at.t, at.centre, tangent)
    return R, t * size.exp()[..., None, None]


def coordinates_of(R: Tensor, t: Tensor, at: Expansion) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of cameras (M, B, V, ...): the inverse of ``cameras_at``.

    Returns:
        Shape (M, B, D - 1), log size (M, B), and the log of the volume (M, B) that a unit of
        coordinates has in the measure of the density, Haar and mm.
    """
    turn = R[:, :, 1:] @ at.R[:, 1:].mT  # (M, B, V-1, 3, 3)
    pivot = at.centre[:, 1:]
    turned = pivot + (turn @ (at.t[:, 1:] - pivot).unsqueeze(-1)).squeeze(-1)
    unit = at.t[:, 1:] / at.t[:, 1:].flatten(1).norm(dim=-1)[:, None, None]
    along = (unit * turned).sum((-1, -2)).clamp_min(MIN_LENGTH)
    # A rig that is mirrored through its reference has no size: it is taken as a very small one.
    size = ((unit * t[:, :, 1:]).sum((-1, -2)).clamp_min(MIN_LENGTH) / along).log()
    w = so3_log(turn)
    shift = t[:, :, 1:] * (-size).exp()[..., None, None] - turned
    tangent = torch.cat([w, shift], dim=-1).flatten(-2)
    shape = (at.basis.mT @ tangent.unsqueeze(-1)).squeeze(-1)
    volume = log_haar_density(w.norm(dim=-1)).sum(-1) + shift[0, 0].numel() * size + along.log()
    return shape, size, volume


def log_density(
    shape: Tensor,
    size: Tensor,
    log_scale: Tensor,
    at: Expansion,
    observations: Observations,
    body: BodyPrior,
) -> tuple[Tensor, Tensor]:
    """Posterior density of M hypotheses for each of B rigs.

    Args:
        shape, size: (M, B, D - 1), (M, B) coordinates of the cameras, see ``coordinates_of``.
        log_scale: (M, B) of the noise, over that of the expansion.

    Returns:
        Log density (M, B) up to one constant per rig, over Haar, mm and log scale; and the most
        probable joints (M, B, T, J, 3) mm. Differentiable in observations and hypotheses.
    """
    B, T, _, J, _ = observations.xy.shape
    M = size.shape[0]
    # From one frame the cameras range over many degrees.
    num_steps = 2 if T < MANY_FRAMES else 1
    R, t = cameras_at(shape, size, at)
    moved = shape.transpose(0, 1) @ at.slope
    R, t, log_scale, size = R.transpose(0, 1), t.transpose(0, 1), log_scale.T, size.T
    joints = at.joints.unsqueeze(1) + moved[..., : T * 3 * J].unflatten(-1, (T, 3, J))
    joints = joints * size.exp()[..., None, None, None]
    num_bones = len(body.mean)
    shared = at.shared.unsqueeze(1) + moved[..., T * 3 * J :]
    lengths = shared[..., :num_bones] + size.unsqueeze(-1)
    shared = torch.cat([lengths, shared[..., num_bones:]], dim=-1)
    layout = lay_out(observations, body)
    scaled = layout.information / at.errors.scale2[:, None, None, None, None]
    problem = _Problem(R, t, log_scale, at, layout._replace(information=scaled), body)
    state = problem.evaluate(joints, shared, gradient=True)
    for step in range(num_steps):
        gradient = step + 1 < num_steps
        new, shared = problem.newton(joints, shared, state)
        trial = problem.evaluate(new, shared, gradient=gradient and T == 1)
        if T > 1:  # every frame for itself, then all together
            better = (trial.frames < state.frames)[..., None, None]
            trial = problem.evaluate(torch.where(better, new, joints), shared, gradient=gradient)
        state = trial.keep_better(state)
        joints, shared = state.joints, state.shared
    A = camera_matrix(R).flatten(1, 2) @ at.moments  # (B, M 6, N)
    A = A.unflatten(1, (M, 6)).permute(2, 0, 1, 3)  # (6, B, M, N)
    depth = state.depth.clamp_min(MIN_DEPTH).log()
    growth = (at.share.unsqueeze(1) * (depth - at.log_depth.unsqueeze(1))).sum(2)  # (B, M, N)
    shrink = (-2 * growth).exp()
    entries = (
        A * (-2 * log_scale).exp()[..., None] + at.tied.transpose(0, 1).unsqueeze(2)
    ) * shrink
    log_det = symmetric_inverse(entries)[1]
    length = state.log_length.new_zeros(B, M, T, J)
    length = length.index_copy(-1, body.child, state.log_length)
    distance = joints[..., body.free].square().sum(3).clamp_min(MIN_LENGTH**2).log()
    length = length.index_copy(-1, body.free, 0.5 * distance)  # (B, M, T, J)
    volume = 0.5 * log_det.unflatten(-1, (T, J)) + 3 * length
    volume = (volume * at.observed.unsqueeze(1)).sum((-1, -2))
    person = (R @ joints.mean((2, 4))[:, :, None, :, None]).squeeze(-1) + t  # (B, M, V, 3)
    distance = person[:, :, 1:].norm(dim=-1).clamp_min(MIN_LENGTH).log().sum(-1)
    scale = at.errors.scale2.unsqueeze(1) * (2 * log_scale).exp()
    noise = NOISE_PRIOR_COUNT * (log_scale + 0.5 / scale)
    worth = at.errors.frame_weight.unsqueeze(1)
    log_p = -state.cost - worth * volume - 3 * distance - noise
    return log_p.T, joints.permute(1, 0, 2, 4, 3)


class _State(NamedTuple):
    """Joint density at given joints and shared unknowns, (B, M, ...)."""

    cost: Tensor  # (B, M)
    frames: Tensor  # (B, M, T) cost of each frame, unweighted
    joints: Tensor  # (B, M, T, 3, J)
    shared: Tensor  # (B, M, E)
    depth: Tensor  # (B, M, V, N)
    log_length: Tensor  # (B, M, T, bones)
    joint_gradient: Tensor | None  # (B, M, T, 3, J) of one frame's cost, unweighted
    shared_gradient: Tensor | None  # (B, M, E) of the whole cost

    def keep_better(self, other: _State) -> _State:
        """The state with the smaller cost, for each hypothesis; gradients are this one's."""
        return where(self.cost < other.cost, self, other)


class _Problem(NamedTuple):
    """What stays the same over the Newton steps of (B, M) hypotheses."""

    R: Tensor  # (B, M, V, 3, 3)
    t: Tensor  # (B, M, V, 3)
    log_scale: Tensor  # (B, M)
    at: Expansion
    layout: Layout  # information at the noise's scale of the expansion
    body: BodyPrior

    def evaluate(self, joints: Tensor, shared: Tensor, gradient: bool) -> _State:
        """Cost at joints (B, M, T, 3, J) and shared unknowns (B, M, E), and its gradients."""
        at, layout, body = self.at, self.layout, self.body
        B, M, T, _, J = joints.shape
        V, num_bones = self.R.shape[2], len(body.mean)
        points = joints.transpose(2, 3).reshape(B, M, 3, T * J)
        camera = (self.R.flatten(2, 3) @ points).unflatten(2, (V, 3)) + self.t.unsqueeze(-1)
        depth = camera[..., 2, :]  # (B, M, V, N)
        inverse = 1 / depth.clamp_min(MIN_DEPTH)
        x, y = camera[..., 0, :] * inverse, camera[..., 1, :] * inverse
        xy, information, inlier, unit, held = (value.unsqueeze(1) for value in layout)
        dx, dy = x - xy[..., 0, :], y - xy[..., 1, :]
        lengths, biases = shared[..., :num_bones], shared[..., num_bones:]
        biased = biases.shape[-1] > 0
        if biased:
            b = biases.unflatten(-1, (V, 1, J, 2)).expand(B, M, V, T, J, 2).flatten(3, 4)
            dx, dy = dx + unit * b[..., 0], dy + unit * b[..., 1]
        a, b, c = information[..., 0, 0, :], information[..., 0, 1, :], information[..., 1, 1, :]
        qx, qy = a * dx + b * dy, b * dx + c * dy
        shrink = (-2 * self.log_scale)[..., None, None]
        chi2 = (qx * dx + qy * dy) * shrink.exp()
        data = log_mixture(chi2, inlier, shrink)
        bone = joints[..., body.child] - joints[..., body.parent]  # (B, M, T, 3, bones)
        length = bone.square().sum(3).clamp_min(MIN_LENGTH**2).sqrt()
        log_length = length.log()
        stretch = (log_length - lengths.unsqueeze(2)) * (held / body.slack)
        frames = 0.5 * stretch.square().sum(3) - data.sum(2).unflatten(-1, (T, J)).sum(-1)
        deviation = lengths - body.mean
        pull = deviation @ body.precision
        bias2, worth = at.errors.bias2[:, None], at.errors.frame_weight[:, None]
        cost = worth * frames.sum(2) + 0.5 * (deviation * pull).sum(-1)
        cost = cost + 0.5 * biases.square().sum(-1) / bias2
        if not gradient:
            return _State(cost, frames, joints, shared, depth, log_length, None, None)
        factor = responsibility(chi2, inlier, shrink) * shrink.exp()
        qx, qy = qx * factor, qy * factor
        g = torch.stack([qx, qy, -(x * qx + y * qy)], dim=3) * inverse.unsqueeze(3)
        g = self.R.flatten(2, 3).mT @ g.flatten(2, 3)  # (B, M, 3, N)
        along = bone * (stretch / (length.square() * body.slack)).unsqueeze(3)
        joint_gradient = g.unflatten(-1, (T, J)).transpose(2, 3) + along @ body.incidence
        gradients = [pull - worth.unsqueeze(-1) * stretch.sum(2) / body.slack]
        if biased:
            q = torch.stack([qx * unit, qy * unit], dim=-1).unflatten(3, (T, J)).sum(3)
            gradients.append(worth.unsqueeze(-1) * q.flatten(2) + biases / bias2.unsqueeze(-1))
        shared_gradient = torch.cat(gradients, dim=-1)
        return _State(
            cost, frames, joints, shared, depth, log_length, joint_gradient, shared_gradient
        )

    def newton(self, joints: Tensor, shared: Tensor, state: _State) -> tuple[Tensor, Tensor]:
        """One step with the expansion's Hessian."""
        at = self.at
        J = joints.shape[-1]
        worth = at.errors.frame_weight[:, None, None]
        g = state.joint_gradient.flatten(3).transpose(1, 2)  # (B, T, M, 3J)
        direct = g @ at.inverse
        remainder = state.shared_gradient - worth * (g @ at.gain.mT).sum(1)
        step = -remainder @ at.shared_inverse  # (B, M, E)
        moved = direct + step.unsqueeze(1) @ at.gain
        moved = moved.transpose(1, 2).unflatten(-1, (3, J))
        return joints - moved, shared + step


def _joint_blocks(matrix: Tensor, num_joints: int) -> Tensor:
    """The joints' own blocks (..., J, 3, 3) of matrices (..., 3J, 3J) in coordinates (3, J)."""
    blocks = matrix.unflatten(-1, (3, num_joints)).unflatten(-3, (3, num_joints))
    return blocks.diagonal(dim1=-3, dim2=-1).movedim(-1, -3)


def _trace(a: Tensor, b: Tensor) -> Tensor:
    """Trace (...) of products of symmetric matrices (6, ...)."""
    twice = a.new_tensor([1.0, 2, 2, 1, 2, 1]).reshape(6, *([1] * (a.ndim - 1)))
    return (twice * a * b).sum(0)


def _entries(matrix: Tensor) -> Tensor:
    """The six entries (6, ...) of symmetric matrices (..., 3, 3)."""
    rows, columns = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]
    return matrix[..., rows, columns].movedim(-1, 0)


def _positive_part(entries: Tensor) -> Tensor:
    """Symmetric matrices (6, ...) with their negative eigenvalues set to zero."""
    a, b, c, d, e, f = entries
    matrix = torch.stack([a, b, c, b, d, e, c, e, f], dim=-1).unflatten(-1, (3, 3))
    value, vector = torch.linalg.eigh(matrix)
    return _entries(vector @ (value.clamp_min(0.0).unsqueeze(-1) * vector.mT))
