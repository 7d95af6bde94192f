"""Resection: the pose of one camera from joints that are known in 3D, robust and batched.

Closed-form starts from scaled orthographic projection (both members of the planar pair of poses:
Oberkampf, DeMenthon and Davis 1996), then Levenberg-Marquardt on the inlier/outlier mixture that
`ptri.posterior.adjust` uses.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.alignment import look_at, place_on_rays
from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.damping import next_damping, start_damping
from ptri.geometry.rays import MEDIAN_CHI2, log_mixture, responsibility
from ptri.geometry.rotations import so3_exp
from ptri.structures import where


class Points(NamedTuple):
    """N problems: P joints of known place, and where the camera saw them."""

    joints: Tensor  # (N, P, 3) mm
    xy: Tensor  # (N, P, 2) normalised image coordinates
    root_information: Tensor  # (N, P, 2, 2), W with W^T W the information of xy; 0 = not seen
    inlier: Tensor  # (N, P) prior probability of an inlier, 0 = not seen


class Pose(NamedTuple):
    """Cameras of N problems, ``x_cam = R x + t``."""

    R: Tensor  # (N, 3, 3)
    t: Tensor  # (N, 3) mm
    cost: Tensor  # (N,) negative log mixture, summed over the points


def square_root(information: Tensor) -> Tensor:
    """W (..., 2, 2) with W^T W = information, upper triangular; zero where that is zero."""
    a, b, c = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
    # 1e-30 guards points that were not seen.
    first = a.clamp_min(1e-30).sqrt()
    cross = b / first
    last = (c - cross.square()).clamp_min(0).sqrt()
    zero = torch.zeros_like(a)
    return torch.stack([torch.where(a > 0, first, zero), cross, zero, last], -1).unflatten(
        -1, (2, 2)
    )


def orthographic_starts(points: Points) -> tuple[Tensor, Tensor]:
    """Two poses (2, N, 3, 3), (2, N, 3) from scaled orthographic projection.

    Seen from a camera turned to the points' centre, the image is nearly a scaled projection of the
    joints along its axis. Their principal plane, in which they are known best, fixes two poses
    that mirror its depth.
    """
    weight = points.inlier + 1e-9
    share = weight / weight.sum(-1, keepdim=True)
    turn = look_at((share[..., None] * points.xy).sum(-2))  # (N, 3, 3), camera to facing camera
    ray = torch.cat([points.xy, torch.ones_like(points.xy[..., :1])], -1) @ turn.mT
    # 0.1 guards outliers at right angles to the person.
    plane = ray[..., :2] / ray[..., 2:].clamp_min(0.1)
    plane = plane - (share[..., None] * plane).sum(-2, keepdim=True)
    middle = (share[..., None] * points.joints).sum(-2, keepdim=True)
    relative = points.joints - middle
    # Outliers are far from the middle: a soft limit at three times the usual distance.
    size = plane.norm(dim=-1)
    usual = (share * size).sum(-1, keepdim=True)
    w = share * torch.where(points.inlier > 0, 1 / (1 + (size / (3 * usual + 1e-9)) ** 4), 0.0)
    spread = (w[..., None] * relative).mT @ relative  # (N, 3, 3)
    values, axes = torch.linalg.eigh(spread)
    normal, flat = axes[..., 0], axes[..., 1:]  # (N, 3), (N, 3, 2)
    # 1e-3 of the largest extent stands for the width of joints on a line.
    extent = torch.maximum(values[..., 1:], 1e-3 * values[..., -1:] + 1e-9)
    inside = (w[..., None] * plane).mT @ (relative @ flat) / extent[..., None, :]  # (N, 2, 2)
    # The rows' parts in the plane; those across it, a and b, make them orthogonal and equally
    # long: (s^2 - p)(s^2 - r) = q^2.
    p, r = inside.square().sum(-1).unbind(-1)
    q = inside.prod(-2).sum(-1)
    length2 = 0.5 * (p + r + ((p - r).square() + 4 * q.square()).sqrt())
    a, b = (length2 - p).clamp_min(0).sqrt(), -q.sign() * (length2 - r).clamp_min(0).sqrt()
    across = torch.stack([a, b], -1).unsqueeze(-1) * normal.unsqueeze(-2)  # (N, 2, 3)
    within = inside @ flat.mT
    # 1e-30 guards joints that all coincide.
    rows = (
        torch.stack([within + across, within - across]) / (length2 + 1e-30).sqrt()[..., None, None]
    )
    third = torch.linalg.cross(rows[..., 0, :], rows[..., 1, :])
    R = turn.mT @ torch.cat([rows, third.unsqueeze(-2)], -2)  # (2, N, 3, 3)
    moved = relative @ R.mT
    t = place_on_rays(moved, points.xy.expand(2, *points.xy.shape), w.expand(2, *w.shape))
    return R, t - (R @ middle.mT).squeeze(-1)


def resect(points: Points, R: Tensor, t: Tensor, num_iterations: int = 8) -> Pose:
    """Levenberg-Marquardt on the robust cost from given starts.

    The first half of the iterations widen the noise to the median residual, as in
    `ptri.posterior.adjust.adjust`.

    Args:
        points: N problems. R, t: (N, 3, 3), (N, 3) mm.
    """
    seen = points.inlier > 0
    pivot = points.joints.mean(-2)
    damping = start_damping(t[:, 0])
    state = _residuals(points, R, t)
    for iteration in range(num_iterations):
        camera, residual, chi2 = state
        scale2 = torch.ones_like(damping)
        if iteration < num_iterations // 2:
            median = torch.where(seen, chi2, torch.nan).nanmedian(-1).values
            scale2 = (median.nan_to_num(MEDIAN_CHI2) / MEDIAN_CHI2).clamp_min(1.0)
        noise = scale2[:, None]
        value = log_mixture(chi2 / noise, points.inlier)
        weight = responsibility(chi2 / noise, points.inlier)
        centre = (R @ pivot.unsqueeze(-1)).squeeze(-1) + t
        weight = (weight * (camera[:, 2] > MIN_DEPTH) / noise).sqrt()
        design = _design(camera, centre, points.root_information, weight)  # (N, 6, 2 P)
        rhs = (residual * weight[:, None]).flatten(1).unsqueeze(-1)
        normal = design @ design.mT
        # 1e-9 keeps a camera that sees nothing where it is.
        damped = damping[:, None] * normal.diagonal(dim1=-2, dim2=-1) + 1e-9
        chol, _ = torch.linalg.cholesky_ex(normal + torch.diag_embed(damped))
        step = -torch.cholesky_solve(design @ rhs, chol).squeeze(-1)
        step = torch.where(torch.isfinite(step).all(-1, keepdim=True), step, 0.0)
        turn = so3_exp(step[:, :3])
        trial_R = turn @ R
        trial_t = (turn @ (t - centre).unsqueeze(-1)).squeeze(-1) + centre + step[:, 3:]
        trial = _residuals(points, trial_R, trial_t)
        after = log_mixture(trial[2] / noise, points.inlier)
        better = after.sum(-1) > value.sum(-1)
        R, t, state = where(better, (trial_R, trial_t, trial), (R, t, state))
        damping = next_damping(damping, better)
    value = log_mixture(state[2], points.inlier)
    return Pose(R, t, -value.sum(-1))


def nearby_poses(points: Points, pose: Pose, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Poses (M, N, 3, 3), (M, N, 3) mm drawn from the Gaussian around optima of the robust cost.

    Args:
        noise: (M, N, 6) standard normal numbers.
    """
    camera, _, chi2 = _residuals(points, pose.R, pose.t)
    pivot = points.joints.mean(-2)
    centre = (pose.R @ pivot.unsqueeze(-1)).squeeze(-1) + pose.t
    weight = (responsibility(chi2, points.inlier) * (camera[:, 2] > MIN_DEPTH)).sqrt()
    design = _design(camera, centre, points.root_information, weight)
    # 1e-6 (mm^-2, rad^-2) keeps a camera that sees nothing within a kilometre.
    eye = 1e-6 * torch.eye(6, dtype=design.dtype, device=design.device)
    chol = torch.linalg.cholesky(design @ design.mT + eye)
    step = torch.linalg.solve_triangular(chol.mT, noise.unsqueeze(-1), upper=True).squeeze(-1)
    turn = so3_exp(step[..., :3])
    t = (turn @ (pose.t - centre).unsqueeze(-1)).squeeze(-1) + centre + step[..., 3:]
    return turn @ pose.R, t


def _residuals(points: Points, R: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Camera-frame joints (N, 3, P), whitened residuals (N, 2, P) and their squares (N, P)."""
    camera = R @ points.joints.mT + t.unsqueeze(-1)
    x, y, z = camera.unbind(1)
    inverse = 1 / z.clamp_min(MIN_DEPTH)
    front = z > MIN_DEPTH
    # A joint behind the camera is as far off as one at the image's edge.
    dx = torch.where(front, x * inverse - points.xy[..., 0], 1.0)
    dy = torch.where(front, y * inverse - points.xy[..., 1], 1.0)
    W = points.root_information
    white = torch.stack([W[..., 0, 0] * dx + W[..., 0, 1] * dy, W[..., 1, 1] * dy], 1)
    return camera, white, white.square().sum(1)


def _design(camera: Tensor, centre: Tensor, root: Tensor, weight: Tensor) -> Tensor:
    """Derivatives (N, 6, 2 P) of the weighted whitened residuals in rotation (rad) and
    translation (mm), written out: a camera-frame point p moves by w x (p - centre) + d."""
    x, y, z = camera.unbind(1)
    inverse = 1 / z.clamp_min(MIN_DEPTH)
    scaled = inverse * weight
    across, mixed, down = (
        scaled * root[..., 0, 0], scaled * root[..., 0, 1], scaled * root[..., 1, 1]
    )  # fmt: skip
    u, v = x * inverse, y * inverse
    zero = torch.zeros_like(across)
    # Rows of the derivative in p: (a, b, c) for the first residual, then for the second.
    a, b = torch.cat([across, zero], 1), torch.cat([mixed, down], 1)
    c = torch.cat([-u * across - v * mixed, -v * down], 1)
    px, py, pz = (camera - centre.unsqueeze(-1)).repeat(1, 1, 2).unbind(1)
    return torch.stack([py * c - pz * b, pz * a - px * c, px * b - py * a, a, b, c], 1)
