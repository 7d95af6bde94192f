"""Robust bundle adjustment of a static rig, moving joints and one body, batched.

Unknowns of each problem: the cameras of views 1 to V-1, the joints of every frame, and the log
lengths of the body's bones, which all frames share. The normal equations have the shape of an
arrow: frames couple only through the cameras and the bones, so each frame's joints are eliminated
by one (3J, 3J) Cholesky factor (Schur complement; Triggs et al., Bundle Adjustment, 2000,
section 6). The complement at the optimum is the information of the rig with the structure
marginalised, which the posterior takes as its first proposal.

A camera moves by ``x_cam -> exp(w) (x_cam - c) + c + d`` about the person's centre c in its frame,
which decouples rotation w (rad) from translation d (mm).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.body import BodyPrior, bone_vectors
from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.rotations import skew, so3_exp

# Joints are held to their starting point by this standard deviation (mm): it keeps joints that
# nobody sees finite and is far wider than anything the images say.
STRUCTURE_SIGMA = 1000.0
# The noise scale is estimated with a prior worth this many residuals at scale one.
NOISE_PRIOR_COUNT = 20.0
MEDIAN_CHI2 = 1.386  # median of a chi-square with two degrees of freedom


class Observations(NamedTuple):
    """Keypoints in normalised image coordinates (focal length 1)."""

    xy: Tensor  # (N, T, V, J, 2), 0 where not seen
    information: Tensor  # (N, T, V, J, 2, 2) inverse covariance, 0 where not seen
    inlier: Tensor  # (N, T, V, J) prior probability that the point is no outlier, 0 = not seen
    log_outlier: float  # log density of an outlier over the inlier's peak


class Bundle(NamedTuple):
    """The state of N problems."""

    R: Tensor  # (N, V, 3, 3)
    t: Tensor  # (N, V, 3) mm
    joints: Tensor  # (N, T, J, 3) mm, reference frame
    log_lengths: Tensor  # (N, bones)


class _System(NamedTuple):
    frames: Tensor  # (N, T, 3J, 3J)
    coupling: Tensor  # (N, T, G, 3J)
    shared: Tensor  # (N, G, G)
    frames_gradient: Tensor  # (N, T, 3J)
    shared_gradient: Tensor  # (N, G)


def person_centre(bundle: Bundle) -> Tensor:
    """Mean joint in every camera's frame, (N, V, 3) mm: the pivot of camera moves."""
    centre = bundle.joints.mean((1, 2))  # (N, 3)
    return (bundle.R @ centre[:, None, :, None]).squeeze(-1) + bundle.t


def move_cameras(R: Tensor, t: Tensor, centre: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the cameras of views 1.. by tangent vectors; view 0 stays.

    Args:
        R, t: (..., V, 3, 3), (..., V, 3). centre: (..., V, 3), pivots in the camera frames.
        tangent: (..., 6 (V - 1)): for each view rotation (rad) and translation (mm).
    """
    step = tangent.unflatten(-1, (-1, 6))
    turn = so3_exp(step[..., :3])
    pivot = centre[..., 1:, :]
    moved_R = turn @ R[..., 1:, :, :]
    moved_t = (turn @ (t[..., 1:, :] - pivot).unsqueeze(-1)).squeeze(-1) + pivot + step[..., 3:]
    first_R = R[..., :1, :, :].expand(*moved_R.shape[:-3], 1, 3, 3)
    first_t = t[..., :1, :].expand(*moved_t.shape[:-2], 1, 3)
    return torch.cat([first_R, moved_R], dim=-3), torch.cat([first_t, moved_t], dim=-2)


def reprojection(bundle: Bundle, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Camera-frame joints (N, T, V, J, 3) mm and residuals (N, T, V, J, 2), normalised."""
    camera = torch.einsum("nvab,ntjb->ntvja", bundle.R, bundle.joints)
    camera = camera + bundle.t[:, None, :, None]
    depth = camera[..., 2:].clamp_min(MIN_DEPTH)
    return camera, camera[..., :2] / depth - xy


def chi_square(residual: Tensor, information: Tensor) -> Tensor:
    """Squared Mahalanobis length (...) of residuals (..., 2)."""
    return torch.einsum("...a,...ab,...b->...", residual, information, residual)


def log_mixture(chi2: Tensor, inlier: Tensor, log_outlier: float) -> tuple[Tensor, Tensor]:
    """Log of the inlier/outlier mixture, and the responsibility of the inlier.

    ``log[c exp(-chi2 / 2) + (1 - c) exp(log_outlier)]``; zero where a point was not seen (c = 0).
    """
    seen = inlier > 0
    c = inlier.clamp(0.02, 0.98)  # no detector is certain, nor useless
    good = c.log() - 0.5 * chi2
    bad = torch.log1p(-c) + log_outlier
    total = torch.logaddexp(good, bad)
    zero = torch.zeros((), dtype=chi2.dtype, device=chi2.device)
    return torch.where(seen, total, zero), torch.where(seen, (good - total).exp(), zero)


def robust_cost(
    bundle: Bundle, observations: Observations, scale2: Tensor, body: BodyPrior
) -> Tensor:
    """Negative log density (N,) of keypoints, bones and body; scale2 (N,) on the covariances."""
    _, residual = reprojection(bundle, observations.xy)
    chi2 = chi_square(residual, observations.information) / scale2[:, None, None, None]
    data, _ = log_mixture(chi2, observations.inlier, observations.log_outlier)
    length, _ = bone_vectors(bundle.joints, body)
    stretch = (length.log() - bundle.log_lengths[:, None]) / body.slack
    deviation = bundle.log_lengths - body.mean
    prior = torch.linalg.solve(body.covariance, deviation.unsqueeze(-1)).squeeze(-1)
    return (
        -data.sum((1, 2, 3)) + 0.5 * stretch.square().sum((1, 2)) + 0.5 * (deviation * prior).sum(1)
    )


def _system(
    bundle: Bundle, observations: Observations, scale2: Tensor, body: BodyPrior
) -> tuple[_System, Tensor, Tensor]:
    """Normal equations at the bundle, the chi-squares (unscaled) and the responsibilities."""
    N, T, V, J, _ = observations.xy.shape
    camera, residual = reprojection(bundle, observations.xy)
    unscaled = chi_square(residual, observations.information)
    chi2 = unscaled / scale2[:, None, None, None]
    _, weight = log_mixture(chi2, observations.inlier, observations.log_outlier)
    weight = torch.where(camera[..., 2] > MIN_DEPTH, weight, torch.zeros_like(weight))
    information = observations.information * (weight / scale2[:, None, None, None])[..., None, None]

    x, y, z = camera.unbind(-1)
    inverse = 1 / z.clamp_min(MIN_DEPTH)
    zero = torch.zeros_like(inverse)
    P = torch.stack(  # d(projection) / d(x_cam)
        [inverse, zero, -x * inverse**2, zero, inverse, -y * inverse**2], dim=-1
    ).unflatten(-1, (2, 3))
    LP = information @ P
    Q = P.transpose(-1, -2) @ LP  # (N, T, V, J, 3, 3)
    q = (residual.unsqueeze(-2) @ LP).squeeze(-2)  # (N, T, V, J, 3)

    R = bundle.R[:, None, :, None]
    QR = Q @ R
    joint_blocks = (R.transpose(-1, -2) @ QR).sum(2)  # (N, T, J, 3, 3)
    frames_gradient = (R.transpose(-1, -2) @ q.unsqueeze(-1)).squeeze(-1).sum(2)
    offset = camera - person_centre(bundle)[:, None, :, None]
    eye = torch.eye(3, dtype=x.dtype, device=x.device).expand(N, T, V - 1, J, 3, 3)
    G = torch.cat([-skew(offset[:, :, 1:]), eye], dim=-1)  # d(x_cam) / d(w, d)
    Gt = G.transpose(-1, -2)
    camera_blocks = (Gt @ (Q[:, :, 1:] @ G)).sum((1, 3))  # (N, V-1, 6, 6)
    camera_gradient = (Gt @ q[:, :, 1:].unsqueeze(-1)).squeeze(-1).sum((1, 3))
    cross = Gt @ QR[:, :, 1:]  # (N, T, V-1, J, 6, 3)

    # Bones: residual (log |a - b| - l) / slack.
    length, direction = bone_vectors(bundle.joints, body)
    num_bones = length.shape[-1]
    row = direction / (length * body.slack)[..., None]  # (N, T, bones, 3)
    stretch = (length.log() - bundle.log_lengths[:, None]) / body.slack
    incidence = torch.zeros(num_bones, J, dtype=x.dtype, device=x.device)
    bones = torch.arange(num_bones, device=x.device)
    incidence[bones, body.child] = 1.0
    incidence[bones, body.parent] = -1.0
    pairs = torch.einsum("bi,bj->bij", incidence, incidence).flatten(1)  # (bones, J * J)
    outer = (row.unsqueeze(-1) * row.unsqueeze(-2)).flatten(-2)  # (N, T, bones, 9)
    frames = (outer.transpose(-1, -2) @ pairs).unflatten(-1, (J, J)).unflatten(-2 - 1, (3, 3))
    frames = frames.permute(0, 1, 4, 2, 5, 3).contiguous()  # (N, T, J, 3, J, 3)
    joints = torch.arange(J, device=x.device)
    frames[:, :, joints, :, joints, :] += joint_blocks.permute(2, 0, 1, 3, 4)
    frames = frames.reshape(N, T, 3 * J, 3 * J)
    frames.diagonal(dim1=-2, dim2=-1).add_(STRUCTURE_SIGMA**-2)
    bone_rows = incidence[:, :, None] * row[:, :, :, None, :]  # (N, T, bones, J, 3)
    frames_gradient = frames_gradient + (stretch[..., None, None] * bone_rows).sum(2)

    num_cameras = 6 * (V - 1)
    total = num_cameras + num_bones
    coupling = x.new_zeros(N, T, total, 3 * J)
    # (N, T, V-1, J, 6, 3) -> (N, T, V-1, 6, J, 3)
    coupling[:, :, :num_cameras] = cross.transpose(3, 4).reshape(N, T, num_cameras, 3 * J)
    coupling[:, :, num_cameras:] = -bone_rows.flatten(-2) / body.slack
    shared = x.new_zeros(N, total, total)
    views = torch.arange(V - 1, device=x.device)
    blocks = x.new_zeros(N, V - 1, 6, V - 1, 6)
    blocks[:, views, :, views, :] = camera_blocks.transpose(0, 1)
    shared[:, :num_cameras, :num_cameras] = blocks.reshape(N, num_cameras, num_cameras)
    shared[:, num_cameras:, num_cameras:].diagonal(dim1=-2, dim2=-1).add_(T / body.slack**2)
    shared_gradient = torch.cat(
        [camera_gradient.reshape(N, num_cameras), -stretch.sum(1) / body.slack], dim=-1
    )
    system = _System(frames, coupling, shared, frames_gradient.flatten(-2), shared_gradient)
    return system, unscaled, weight


def _noise_scale(unscaled: Tensor, weight: Tensor, num_parameters: int) -> Tensor:
    """Squared noise scale (N,) of the stated covariances, shrunk to one."""
    seen = 2 * weight.sum(2)  # (N, T, J) effective coordinates of each joint
    freedom = 2 * weight.sum((1, 2, 3)) - seen.clamp_max(3.0).sum((1, 2)) - num_parameters
    energy = (weight * unscaled).sum((1, 2, 3)) + NOISE_PRIOR_COUNT
    return energy / (freedom.clamp_min(0.0) + NOISE_PRIOR_COUNT)


def adjust(
    observations: Observations,
    start: Bundle,
    body: BodyPrior,
    num_iterations: int = 12,
    anneal: bool = True,
) -> tuple[Bundle, Tensor, Tensor]:
    """Levenberg-Marquardt on the robust cost.

    Args:
        anneal: widen the noise in the first half of the iterations to the median residual, so
            that a start many degrees off still feels every point.

    Returns:
        The bundle, the squared noise scale (N,) and the cost (N,), both at the end.
    """
    V = observations.xy.shape[2]
    num_cameras = 6 * (V - 1)
    prior_information = torch.linalg.inv(body.covariance)
    N = start.R.shape[0]
    damping = observations.xy.new_full((N,), 1e-3)
    scale2 = observations.xy.new_ones(N)
    bundle = start
    half = max(num_iterations // 2, 1)
    for iteration in range(num_iterations):
        wide = anneal and iteration < half
        if wide:
            _, residual = reprojection(bundle, observations.xy)
            chi2 = chi_square(residual, observations.information)
            chi2 = torch.where(observations.inlier > 0, chi2, torch.nan).flatten(1)
            median = chi2.nanmedian(dim=1).values.nan_to_num(MEDIAN_CHI2) / MEDIAN_CHI2
            current = torch.maximum(scale2, median)
        else:
            current = scale2
        system, unscaled, weight = _system(bundle, observations, current, body)
        shared = system.shared.clone()
        shared[:, num_cameras:, num_cameras:] += prior_information
        deviation = bundle.log_lengths - body.mean
        gradient = system.shared_gradient.clone()
        gradient[:, num_cameras:] += deviation @ prior_information
        step, structure_step = _solve(system, shared, gradient, damping)
        R, t = move_cameras(bundle.R, bundle.t, person_centre(bundle), step[:, :num_cameras])
        trial = Bundle(
            R, t, bundle.joints + structure_step, bundle.log_lengths + step[:, num_cameras:]
        )
        before = robust_cost(bundle, observations, current, body)
        after = robust_cost(trial, observations, current, body)
        better = torch.isfinite(after) & (after < before)
        bundle = Bundle(*(_select(better, new, old) for new, old in zip(trial, bundle)))
        damping = torch.where(better, damping * 0.2, damping * 8).clamp(1e-9, 1e6)
        if not wide:
            scale2 = _noise_scale(unscaled, weight, num_cameras)
    return bundle, scale2, robust_cost(bundle, observations, scale2, body)


def _select(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.reshape(-1, *([1] * (yes.ndim - 1))), yes, no)


def _solve(
    system: _System, shared: Tensor, gradient: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """Damped step of the shared unknowns (N, G) and of the joints (N, T, J, 3)."""
    frames = system.frames.clone()
    diagonal = frames.diagonal(dim1=-2, dim2=-1)
    diagonal.mul_(1 + damping[:, None, None])
    shared = shared + torch.diag_embed(shared.diagonal(dim1=-2, dim2=-1) * damping[:, None])
    chol, _ = torch.linalg.cholesky_ex(frames)
    right = torch.cat([system.coupling, system.frames_gradient.unsqueeze(2)], dim=2)
    solved = torch.cholesky_solve(right.transpose(-1, -2), chol)  # (N, T, 3J, G + 1)
    reduced = (system.coupling @ solved).sum(1)  # (N, G, G + 1)
    complement, remainder = shared - reduced[..., :-1], gradient - reduced[..., -1]
    outer, _ = torch.linalg.cholesky_ex(complement)
    step = -torch.cholesky_solve(remainder.unsqueeze(-1), outer).squeeze(-1)
    joints = -solved[..., -1] - (solved[..., :-1] @ step[:, None, :, None]).squeeze(-1)
    return step, joints.unflatten(-1, (-1, 3))


def camera_information(
    observations: Observations,
    bundle: Bundle,
    scale2: Tensor,
    body: BodyPrior,
    frame_weight: Tensor,
) -> tuple[Tensor, Tensor]:
    """Information of the cameras with joints and bones marginalised, and the responsibilities.

    Args:
        frame_weight: (N,) in (0, 1], how many independent frames one frame is worth.

    Returns:
        (N, 6 (V-1), 6 (V-1)) in the tangent space of ``move_cameras``; (N, T, V, J).
    """
    num_cameras = 6 * (observations.xy.shape[2] - 1)
    system, _, weight = _system(bundle, observations, scale2, body)
    chol, _ = torch.linalg.cholesky_ex(system.frames)
    solved = torch.cholesky_solve(system.coupling.transpose(-1, -2), chol)
    complement = system.shared - (system.coupling @ solved).sum(1)
    complement = complement * frame_weight[:, None, None]
    bones = complement[:, num_cameras:, num_cameras:] + torch.linalg.inv(body.covariance)
    cross = complement[:, num_cameras:, :num_cameras]
    cameras = complement[:, :num_cameras, :num_cameras]
    return cameras - cross.transpose(-1, -2) @ torch.linalg.solve(bones, cross), weight


def frame_worth(
    observations: Observations, bundle: Bundle, weight: Tensor, scale2: Tensor
) -> Tensor:
    """How many independent frames one frame is worth, (N,) in [1 / T, 1]; 1 if T < 4.

    Detectors err together: over neighbouring frames, and by a fixed offset per joint and view.
    From the residuals' lag-one autocorrelation r, T frames are worth T (1 - r) / (1 + r); from the
    share s of their variance that a view and joint has in common over all frames, T / (1 + (T - 1)
    s) (Kish's design effect). The smaller counts.
    """
    T = observations.xy.shape[1]
    if T < 4:
        return torch.ones_like(scale2)
    _, residual = reprojection(bundle, observations.xy)
    focal = observations.information.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    w = weight.clamp_min(0)[..., None]  # (N, T, V, J, 1)
    error = residual * focal
    product = (w[:, 1:] * w[:, :-1]).sqrt() * error[:, 1:] * error[:, :-1]
    energy = 0.5 * (w[:, 1:] * error[:, 1:].square() + w[:, :-1] * error[:, :-1].square())
    # 1e-12 guards points that fit exactly.
    lag = product.sum((1, 2, 3, 4)) / energy.sum((1, 2, 3, 4)).clamp_min(1e-12)
    lag = lag.clamp(0.0, 0.999)
    count = w.sum(1)  # (N, V, J, 1)
    mean = (w * error).sum(1) / count.clamp_min(1e-3)
    enough = (count > 2).to(w)
    within = (w * (error - mean.unsqueeze(1)).square()).sum(1) / (count - 1).clamp_min(1.0)
    within = (enough * within).sum((1, 2, 3)) / enough.sum((1, 2, 3)).clamp_min(1.0)
    between = (enough * mean.square()).sum((1, 2, 3)) / enough.sum((1, 2, 3)).clamp_min(1.0)
    between = (between - within / T).clamp_min(0.0)
    # Of what is common to all frames, the cameras have explained their number of parameters away.
    freedom = (2 * enough.sum((1, 2, 3)) - 3 * enough.amax(1).sum((1, 2))).clamp_min(1.0)
    num_cameras = 6 * (weight.shape[2] - 1)
    between = between * freedom / (freedom - num_cameras).clamp_min(0.25 * freedom)
    share = between / (between + within).clamp_min(1e-12)
    worth = torch.minimum((1 - lag) / (1 + lag), 1 / (1 + (T - 1) * share))
    return worth.clamp_min(1.0 / T)
