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

Coordinates of the cameras: see `ptri.posterior.expansion`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.rays import log_mixture, responsibility
from ptri.geometry.triangulation import camera_matrix, symmetric_inverse
from ptri.posterior.adjust import MIN_SCALE2, NOISE_PRIOR_COUNT
from ptri.posterior.body import NUM_BONES, BodyPrior
from ptri.posterior.equations import (
    Layout,
    focal_cost,
    lay_out,
)
from ptri.posterior.expansion import MIN_LENGTH, Expansion, cameras_at
from ptri.posterior.prior import pose_cost
from ptri.structures import MANY_FRAMES, Observations, Views, tree_map, where


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
    views = cameras_at(shape, size, at)
    moved = shape.transpose(0, 1) @ at.slope
    views, log_scale, size = tree_map(lambda v: v.transpose(0, 1), (views, log_scale, size))
    joints = at.joints.unsqueeze(1) + moved[..., : T * 3 * J].unflatten(-1, (T, 3, J))
    joints = joints * size.exp()[..., None, None, None]
    num_bones = len(body.mean)
    shared = at.shared.unsqueeze(1) + moved[..., T * 3 * J :]
    lengths = shared[..., :num_bones] + size.unsqueeze(-1)
    shared = torch.cat([lengths, shared[..., num_bones:]], dim=-1)
    layout = lay_out(observations, body)
    scaled = layout.information / at.errors.scale2[:, None, None, None, None]
    problem = _Problem(views, log_scale, at, layout._replace(information=scaled), body)
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
    R, t, log_focal = views
    A = camera_matrix(views.projection[0]).flatten(1, 2) @ at.moments  # (B, M 6, N)
    A = A.unflatten(1, (M, 6)).permute(2, 0, 1, 3)  # (6, B, M, N)
    depth = state.depth.clamp_min(MIN_DEPTH).log()
    growth = (at.share.unsqueeze(1) * (depth - at.log_depth.unsqueeze(1))).sum(2)  # (B, M, N)
    shrink = (-2 * growth).exp()
    entries = (
        A * (-2 * log_scale).exp()[..., None] + at.tied.transpose(0, 1).unsqueeze(2)
    ) * shrink
    log_det = symmetric_inverse(entries)[1]
    length = state.log_length.new_zeros(B, M, T, J)
    one = slice(NUM_BONES)  # every person's bones are between the same joints
    length = length.index_copy(-1, body.child[one], state.log_length[..., one])
    if log_focal.shape[-1]:  # else the pictures fix the distance over the body's size
        place = state.shared[..., :num_bones].mean(-1)[..., None, None]
        place = place.expand(B, M, T, len(body.free))
    else:
        place = joints[..., body.free].square().sum(3).clamp_min(MIN_LENGTH**2).log() / 2
    length = length.index_copy(-1, body.free, place)  # (B, M, T, J)
    volume = 0.5 * log_det.unflatten(-1, (T, J)) + 3 * length
    volume = (volume * at.observed.unsqueeze(1)).sum((-1, -2))
    person = (R @ joints.mean((2, 4))[:, :, None, :, None]).squeeze(-1) + t  # (B, M, V, 3)
    distance = person[:, :, 1:].norm(dim=-1).clamp_min(MIN_LENGTH).log().sum(-1)
    scale = at.errors.scale2.unsqueeze(1) * (2 * log_scale).exp()
    # Frames that repeat each other leave no residuals, and are no more certain.
    floor = MIN_SCALE2 * at.freedom.unsqueeze(1)
    noise = NOISE_PRIOR_COUNT * (log_scale + 0.5 / scale) + 0.5 * floor / scale
    log_p = -state.cost - volume - 3 * distance - noise
    if log_focal.shape[-1]:
        log_p = log_p - focal_cost(log_focal.transpose(0, 1), at.errors.prior.focal).T
    if at.errors.prior.poses.information.shape[-1]:
        log_p = log_p - pose_cost(views, tree_map(lambda v: v.unsqueeze(1), at.errors.prior.poses))
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

    views: Views  # (B, M, V, ...)
    log_scale: Tensor  # (B, M)
    at: Expansion
    layout: Layout  # information at the noise's scale of the expansion
    body: BodyPrior

    def evaluate(self, joints: Tensor, shared: Tensor, gradient: bool) -> _State:
        """Cost at joints (B, M, T, 3, J) and shared unknowns (B, M, E), and its gradients."""
        at, layout, body = self.at, self.layout, self.body
        B, M, T, _, J = joints.shape
        A, b = self.views.projection
        V, num_bones = A.shape[2], len(body.mean)
        points = joints.transpose(2, 3).reshape(B, M, 3, T * J)
        camera = (A.flatten(2, 3) @ points).unflatten(2, (V, 3)) + b.unsqueeze(-1)
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
        tail = at.errors.tail[:, None, None, None]
        data = log_mixture(chi2, inlier, shrink, tail)
        bone = joints[..., body.child] - joints[..., body.parent]  # (B, M, T, 3, bones)
        length = bone.square().sum(3).clamp_min(MIN_LENGTH**2).sqrt()
        log_length = length.log()
        stretch = (log_length - lengths.unsqueeze(2)) * (held / body.slack)
        frames = 0.5 * stretch.square().sum(3) - data.sum(2).unflatten(-1, (T, J)).sum(-1)
        deviation = lengths - body.mean
        pull = deviation @ body.precision
        bias2 = at.errors.bias2[:, None]
        cost = frames.sum(2) + 0.5 * (deviation * pull).sum(-1)
        cost = cost + 0.5 * biases.square().sum(-1) / bias2
        if not gradient:
            return _State(cost, frames, joints, shared, depth, log_length, None, None)
        factor = responsibility(chi2, inlier, shrink, tail) * shrink.exp()
        qx, qy = qx * factor, qy * factor
        g = torch.stack([qx, qy, -(x * qx + y * qy)], dim=3) * inverse.unsqueeze(3)
        g = A.flatten(2, 3).mT @ g.flatten(2, 3)  # (B, M, 3, N)
        along = bone * (stretch / (length.square() * body.slack)).unsqueeze(3)
        joint_gradient = g.unflatten(-1, (T, J)).transpose(2, 3) + along @ body.incidence
        gradients = [pull - stretch.sum(2) / body.slack]
        if biased:
            q = torch.stack([qx * unit, qy * unit], dim=-1).unflatten(3, (T, J)).sum(3)
            gradients.append(q.flatten(2) + biases / bias2.unsqueeze(-1))
        shared_gradient = torch.cat(gradients, dim=-1)
        return _State(
            cost, frames, joints, shared, depth, log_length, joint_gradient, shared_gradient
        )

    def newton(self, joints: Tensor, shared: Tensor, state: _State) -> tuple[Tensor, Tensor]:
        """One step with the expansion's Hessian."""
        at = self.at
        J = joints.shape[-1]
        g = state.joint_gradient.flatten(3).transpose(1, 2)  # (B, T, M, 3J)
        direct = g @ at.inverse
        remainder = state.shared_gradient - (g @ at.gain.mT).sum(1)
        step = -remainder @ at.shared_inverse  # (B, M, E)
        moved = direct + step.unsqueeze(1) @ at.gain
        moved = moved.transpose(1, 2).unflatten(-1, (3, J))
        return joints - moved, shared + step
