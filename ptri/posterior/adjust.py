"""Robust bundle adjustment of a static rig, moving joints, one body and biased keypoints, batched.

Unknowns of each problem: the cameras of views 1 to V-1, the joints of every frame, and what all
frames share: the log lengths of the body's bones and, where asked for, the bias of each view's
keypoint of each joint. The normal equations have the shape of an arrow: frames couple only through
the cameras and the shared unknowns, so each frame's joints are eliminated by one (3J, 3J) Cholesky
factor (Schur complement; Triggs et al., Bundle Adjustment, 2000, section 6).

A camera moves by ``x_cam -> exp(w) (x_cam - c) + c + d`` about the person's centre c in its frame,
which decouples rotation w (rad) from translation d (mm).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.robust import MEDIAN_CHI2, chi_square, log_mixture
from ptri.geometry.rotations import skew, so3_exp
from ptri.posterior.body import BodyPrior, bone_vectors
from ptri.structures import Observations, where

# Joints are held to where they are by this standard deviation (mm): it keeps joints that nobody
# sees finite, and is wide enough not to hold the scale of the whole.
STRUCTURE_SIGMA = 1e5
STEP_SIGMA = 10.0  # mm, a joint's step at damping one
# The noise scale is estimated with a prior worth this many residuals at scale one.
NOISE_PRIOR_COUNT = 2.0
MIN_SCALE2 = 0.05  # frames that repeat each other leave no residuals, and are no more certain
MEDIAN_MARGIN = 3.0  # over the noise that the median residual speaks for


def held_bones(observations: Observations, body: BodyPrior) -> Tensor:
    """1 (N, T, bones) where both ends of a bone are held, else 0."""
    return observations.held[..., body.child] * observations.held[..., body.parent]


class Bundle(NamedTuple):
    """The state of N problems."""

    R: Tensor  # (N, V, 3, 3)
    t: Tensor  # (N, V, 3) mm
    joints: Tensor  # (N, T, J, 3) mm, reference frame
    log_lengths: Tensor  # (N, bones)


class Errors(NamedTuple):
    """How the keypoints of N problems err, beside their stated covariances."""

    scale2: Tensor  # (N,) factor on the stated covariances
    frame_weight: Tensor  # (N,) independent frames that one frame is worth, in (0, 1]
    bias2: Tensor  # (N,) variance of a bias's coordinate, in units of the view's stated noise
    bias: Tensor  # (N, V, J, 2) biases in these units; J = 0: none are modelled
    num_bias: Tensor  # (N,) effective number of parameters that the biases are


class System(NamedTuple):
    """Normal equations; G unknowns are shared: cameras, bones, biases, in this order."""

    frames: Tensor  # (N, T, 3J, 3J)
    coupling: Tensor  # (N, T, G, 3J)
    shared: Tensor  # (N, G, G) of the keypoints, without priors
    frames_gradient: Tensor  # (N, T, 3J)
    shared_gradient: Tensor  # (N, G)
    chi2: Tensor  # (N, T, V, J) unscaled
    weight: Tensor  # (N, T, V, J) responsibility of the inlier


def plain_errors(observations: Observations) -> Errors:
    """Errors as stated: independent, unbiased, of scale one."""
    N, _, V = observations.inlier.shape[:3]
    one = observations.xy.new_ones(N)
    return Errors(one, one, one, observations.xy.new_zeros(N, V, 0, 2), 0 * one)


def noise_unit(observations: Observations) -> Tensor:
    """Stated noise of a view in a frame, (N, T, V) normalised: geometric mean over directions."""
    L = observations.information
    determinant = (L[..., 0, 0] * L[..., 1, 1] - L[..., 0, 1] ** 2).clamp_min(1e-30)
    seen = observations.inlier > 0
    mean = (determinant.log() * seen).sum(-1) / seen.sum(-1).clamp_min(1)
    return torch.where(seen.any(-1), (-0.25 * mean).exp(), torch.zeros_like(mean))


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


def biased_reprojection(
    bundle: Bundle, observations: Observations, errors: Errors
) -> tuple[Tensor, Tensor]:
    """As ``reprojection``, with the biases added to the projected joints."""
    camera, residual = reprojection(bundle, observations.xy)
    if errors.bias.shape[2]:
        residual = residual + noise_unit(observations)[..., None, None] * errors.bias[:, None]
    return camera, residual


def robust_cost(
    bundle: Bundle, observations: Observations, errors: Errors, body: BodyPrior
) -> Tensor:
    """Negative log density (N,) of keypoints, bones, body and biases at the noise's scale."""
    frames = frame_costs(bundle, observations, errors, body).sum(1)
    deviation = bundle.log_lengths - body.mean
    prior = torch.linalg.solve(body.covariance, deviation.unsqueeze(-1)).squeeze(-1)
    biases = errors.bias.square().sum((1, 2, 3)) / errors.bias2
    return errors.frame_weight * frames + 0.5 * ((deviation * prior).sum(1) + biases)


def frame_costs(
    bundle: Bundle, observations: Observations, errors: Errors, body: BodyPrior
) -> Tensor:
    """Negative log density (N, T) of each frame's keypoints and bones, given what is shared."""
    _, residual = biased_reprojection(bundle, observations, errors)
    chi2 = chi_square(residual, observations.information) / errors.scale2[:, None, None, None]
    data, _ = log_mixture(chi2, observations.inlier)
    length, _ = bone_vectors(bundle.joints, body)
    stretch = (length.log() - bundle.log_lengths[:, None]) / body.slack
    stretch = stretch * held_bones(observations, body)
    return 0.5 * stretch.square().sum(2) - data.sum((2, 3))


class Linear(NamedTuple):
    """Keypoints and bone stretches, linearised at a bundle."""

    offset: Tensor  # (N, T, V, J, 3) mm, joints about the person's centre, camera frames
    residual: Tensor  # (N, T, V, J, 2)
    information: Tensor  # (N, T, V, J, 2, 2) at the noise's scale and the inliers' weight
    LP: Tensor  # (N, T, V, J, 2, 3) information @ d(projection) / d(x_cam)
    QR: Tensor  # (N, T, V, J, 3, 3) information of x_cam, times R
    Q: Tensor  # (N, T, V, J, 3, 3)
    q: Tensor  # (N, T, V, J, 3) gradient in x_cam
    stretch: Tensor  # (N, T, bones) over the slack
    bone_rows: Tensor  # (N, T, bones, J, 3) d(stretch) / d(joints)
    frames: Tensor  # (N, T, 3J, 3J)
    frames_gradient: Tensor  # (N, T, 3J)
    chi2: Tensor  # (N, T, V, J) unscaled
    weight: Tensor  # (N, T, V, J)


def linearise(
    bundle: Bundle, observations: Observations, errors: Errors, body: BodyPrior
) -> Linear:
    N, T, _, J, _ = observations.xy.shape
    scale2 = errors.scale2[:, None, None, None]
    camera, residual = biased_reprojection(bundle, observations, errors)
    unscaled = chi_square(residual, observations.information)
    _, weight = log_mixture(unscaled / scale2, observations.inlier)
    weight = torch.where(camera[..., 2] > MIN_DEPTH, weight, torch.zeros_like(weight))
    information = observations.information * (weight / scale2)[..., None, None]

    x, y, z = camera.unbind(-1)
    inverse = 1 / z.clamp_min(MIN_DEPTH)
    zero = torch.zeros_like(inverse)
    P = torch.stack(  # d(projection) / d(x_cam)
        [inverse, zero, -x * inverse**2, zero, inverse, -y * inverse**2], dim=-1
    ).unflatten(-1, (2, 3))
    LP = information @ P
    Q = P.mT @ LP
    q = (residual.unsqueeze(-2) @ LP).squeeze(-2)

    R = bundle.R[:, None, :, None]
    QR = Q @ R
    joint_blocks = (R.mT @ QR).sum(2)  # (N, T, J, 3, 3)
    frames_gradient = (R.mT @ q.unsqueeze(-1)).squeeze(-1).sum(2)

    # Bones: residual (log |a - b| - l) / slack.
    length, direction = bone_vectors(bundle.joints, body)
    rigidity = held_bones(observations, body) / body.slack
    row = direction * (rigidity / length)[..., None]  # (N, T, bones, 3)
    stretch = (length.log() - bundle.log_lengths[:, None]) * rigidity
    incidence = bone_incidence(body, J).to(x)
    pairs = torch.einsum("bi,bj->bij", incidence, incidence).flatten(1)  # (bones, J * J)
    outer = (row.unsqueeze(-1) * row.unsqueeze(-2)).flatten(-2)  # (N, T, bones, 9)
    frames = (outer.mT @ pairs).unflatten(-1, (J, J)).unflatten(-2 - 1, (3, 3))
    frames = frames.permute(0, 1, 4, 2, 5, 3).contiguous()  # (N, T, J, 3, J, 3)
    joints = torch.arange(J, device=x.device)
    frames[:, :, joints, :, joints, :] += joint_blocks.permute(2, 0, 1, 3, 4)
    frames = frames.reshape(N, T, 3 * J, 3 * J)
    frames.diagonal(dim1=-2, dim2=-1).add_(STRUCTURE_SIGMA**-2)
    bone_rows = incidence[:, :, None] * row[:, :, :, None, :]
    frames_gradient = frames_gradient + (stretch[..., None, None] * bone_rows).sum(2)
    offset = camera - person_centre(bundle)[:, None, :, None]
    return Linear(
        offset, residual, information, LP, QR, Q, q, stretch, bone_rows,
        frames, frames_gradient.flatten(-2), unscaled, weight,
    )  # fmt: skip


def normal_equations(
    bundle: Bundle, observations: Observations, errors: Errors, body: BodyPrior
) -> System:
    """Gauss-Newton normal equations of keypoints and bone stretches at the bundle."""
    N, T, V, J, _ = observations.xy.shape
    at = linearise(bundle, observations, errors, body)
    R, Q = bundle.R[:, None, :, None], at.Q
    eye = torch.eye(3, dtype=Q.dtype, device=Q.device).expand(N, T, V - 1, J, 3, 3)
    G = torch.cat([-skew(at.offset[:, :, 1:]), eye], dim=-1)  # d(x_cam) / d(w, d)
    camera_blocks = (G.mT @ (Q[:, :, 1:] @ G)).sum((1, 3))  # (N, V-1, 6, 6)
    camera_gradient = (G.mT @ at.q[:, :, 1:].unsqueeze(-1)).squeeze(-1).sum((1, 3))
    cross = G.mT @ at.QR[:, :, 1:]  # (N, T, V-1, J, 6, 3)
    joints = torch.arange(J, device=Q.device)
    num_bones = at.stretch.shape[-1]

    num_cameras, num_bias = 6 * (V - 1), errors.bias[0].numel()
    bones = slice(num_cameras, num_cameras + num_bones)
    total = num_cameras + num_bones + num_bias
    coupling = Q.new_zeros(N, T, total, 3 * J)
    # (N, T, V-1, J, 6, 3) -> (N, T, V-1, 6, J, 3)
    coupling[:, :, :num_cameras] = cross.transpose(3, 4).reshape(N, T, num_cameras, 3 * J)
    coupling[:, :, bones] = -at.bone_rows.flatten(-2) / body.slack
    shared = Q.new_zeros(N, total, total)
    views = torch.arange(V - 1, device=Q.device)
    blocks = Q.new_zeros(N, V - 1, 6, V - 1, 6)
    blocks[:, views, :, views, :] = camera_blocks.transpose(0, 1)
    shared[:, :num_cameras, :num_cameras] = blocks.reshape(N, num_cameras, num_cameras)
    count = held_bones(observations, body).sum(1)
    shared[:, bones, bones].diagonal(dim1=-2, dim2=-1).add_(count / body.slack**2)
    gradients = [camera_gradient.reshape(N, num_cameras), -at.stretch.sum(1) / body.slack]
    if num_bias:
        unit = noise_unit(observations)[..., None]  # (N, T, V, 1)
        scaled = at.LP.mT * unit[..., None, None]  # (N, T, V, J, 3, 2)
        onto = Q.new_zeros(N, T, V, J, 2, J, 3)
        onto[:, :, :, joints, :, joints, :] = (R.mT @ scaled).mT.permute(3, 0, 1, 2, 4, 5)
        coupling[:, :, bones.stop :] = onto.reshape(N, T, num_bias, 3 * J)
        own = (at.information * unit[..., None, None] ** 2).sum(1).flatten(1, 2)  # (N, V J, 2, 2)
        count = torch.arange(V * J, device=Q.device)
        blocks = Q.new_zeros(N, V * J, 2, V * J, 2)
        blocks[:, count, :, count, :] = own.transpose(0, 1)
        shared[:, bones.stop :, bones.stop :] = blocks.reshape(N, num_bias, num_bias)
        mixed = (G.mT @ scaled[:, :, 1:]).sum(1)  # (N, V-1, J, 6, 2)
        blocks = Q.new_zeros(N, V - 1, 6, V, J, 2)
        blocks[:, views, :, views + 1] = mixed.permute(1, 0, 3, 2, 4)
        blocks = blocks.reshape(N, num_cameras, num_bias)
        shared[:, :num_cameras, bones.stop :] = blocks
        shared[:, bones.stop :, :num_cameras] = blocks.mT
        pull = (at.information @ at.residual.unsqueeze(-1)).squeeze(-1) * unit[..., None]
        gradients.append(pull.sum(1).flatten(1))
    return System(
        at.frames, coupling, shared, at.frames_gradient, torch.cat(gradients, dim=-1),
        at.chi2, at.weight,
    )  # fmt: skip


def bone_incidence(body: BodyPrior, num_joints: int) -> Tensor:
    """(bones, J) matrix that takes joints to bone vectors, child minus parent."""
    bones = torch.arange(len(body.child), device=body.child.device)
    incidence = torch.zeros(len(bones), num_joints, dtype=body.mean.dtype, device=bones.device)
    incidence[bones, body.child] = 1.0
    incidence[bones, body.parent] = -1.0
    return incidence


def prior_information(errors: Errors, body: BodyPrior, num_cameras: int) -> Tensor:
    """Information (N, G, G) of the priors on the shared unknowns: none on cameras."""
    N, num_bones, num_bias = len(errors.scale2), len(body.mean), errors.bias[0].numel()
    total = num_cameras + num_bones + num_bias
    information = errors.scale2.new_zeros(N, total, total)
    bones = slice(num_cameras, num_cameras + num_bones)
    information[:, bones, bones] = torch.linalg.inv(body.covariance)
    biases = information[:, bones.stop :, bones.stop :]
    biases.diagonal(dim1=-2, dim2=-1).add_(1 / errors.bias2[:, None])
    return information


def prior_deviation(bundle: Bundle, errors: Errors, body: BodyPrior) -> Tensor:
    """How far the shared unknowns are from their priors' means, (N, G)."""
    cameras = bundle.t.new_zeros(len(bundle.t), 6 * (bundle.t.shape[1] - 1))
    return torch.cat([cameras, bundle.log_lengths - body.mean, errors.bias.flatten(1)], dim=-1)


def adjust(
    observations: Observations,
    start: Bundle,
    body: BodyPrior,
    num_iterations: int = 12,
    num_wide: int = 6,
    errors: Errors | None = None,
) -> tuple[Bundle, Errors, Tensor]:
    """Levenberg-Marquardt on the robust cost.

    Args:
        num_wide: first iterations in which the noise is widened to the median residual, so that
            a start many degrees off still feels every point.
        errors: the errors to start from; their biases are adjusted too, the scale is estimated,
            the rest stays.

    Returns:
        The bundle, the errors and the cost (N,), all at the end.
    """
    num_cameras, num_bones = 6 * (start.t.shape[1] - 1), len(body.mean)
    N = start.R.shape[0]
    damping = observations.xy.new_full((N,), 1e-3)
    bundle, errors = start, plain_errors(observations) if errors is None else errors
    for iteration in range(num_iterations):
        wide = iteration < num_wide
        current = errors
        if wide:
            scale2 = median_scale2(bundle, observations, errors)
            current = errors._replace(scale2=torch.maximum(errors.scale2, scale2))
        system = normal_equations(bundle, observations, current, body)
        step, structure = _solve(system, bundle, current, body, damping)
        R, t = move_cameras(bundle.R, bundle.t, person_centre(bundle), step[:, :num_cameras])
        lengths, bias = step[:, num_cameras:].split(
            [num_bones, step.shape[1] - num_cameras - num_bones], dim=1
        )
        trial = Bundle(R, t, bundle.joints + structure, bundle.log_lengths + lengths)
        biased = current._replace(bias=errors.bias + bias.view_as(errors.bias))
        before = robust_cost(bundle, observations, current, body)
        after = robust_cost(trial, observations, biased, body)
        better = torch.isfinite(after) & (after < before)
        bundle = where(better, trial, bundle)
        errors = errors._replace(bias=where(better, biased.bias, errors.bias))
        damping = torch.where(better, damping * 0.2, damping * 8).clamp(1e-9, 1e6)
        if not wide:
            scale2 = noise_scale(system, errors, num_cameras, observations.inlier)
            errors = errors._replace(scale2=scale2)
    return bundle, errors, robust_cost(bundle, observations, errors, body)


def damped(frames: Tensor, damping: Tensor) -> Tensor:
    """Frames' information (N, T, 3J, 3J) with damping (N or N, T) of their own scale."""
    frames = frames.clone()
    diagonal = frames.diagonal(dim1=-2, dim2=-1)
    # The second term bounds the steps of joints that the images hardly hold.
    damping = damping[..., None] if damping.ndim == 2 else damping[:, None, None]
    diagonal.mul_(1 + damping).add_(damping * STEP_SIGMA**-2)
    return frames


def median_scale2(bundle: Bundle, observations: Observations, errors: Errors) -> Tensor:
    """Squared noise scale (N,) at which the median residual is what it should be."""
    _, residual = biased_reprojection(bundle, observations, errors)
    return _median_scale2(chi_square(residual, observations.information), observations.inlier)


def _median_scale2(chi2: Tensor, inlier: Tensor) -> Tensor:
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
    limit = MEDIAN_MARGIN * _median_scale2(system.chi2, inlier) / share.clamp_min(0.05)
    scale2 = torch.minimum(energy / (freedom + NOISE_PRIOR_COUNT), limit.clamp_min(1.0))
    return scale2.clamp_min(MIN_SCALE2)


def _solve(
    system: System, bundle: Bundle, errors: Errors, body: BodyPrior, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """Damped step of the shared unknowns (N, G) and of the joints (N, T, J, 3)."""
    chol, _ = torch.linalg.cholesky_ex(damped(system.frames, damping))
    right = torch.cat([system.coupling, system.frames_gradient.unsqueeze(2)], dim=2)
    solved = torch.cholesky_solve(right.mT, chol)  # (N, T, 3J, G + 1)
    reduced = (system.coupling @ solved).sum(1)  # (N, G, G + 1)
    prior = prior_information(errors, body, 6 * (bundle.t.shape[1] - 1))
    pull = (prior @ prior_deviation(bundle, errors, body).unsqueeze(-1)).squeeze(-1)
    worth = errors.frame_weight[:, None]
    full = worth[..., None] * system.shared + prior
    full = full + torch.diag_embed(full.diagonal(dim1=-2, dim2=-1) * damping[:, None])
    complement = full - worth[..., None] * reduced[..., :-1]
    remainder = worth * (system.shared_gradient - reduced[..., -1]) + pull
    outer, _ = torch.linalg.cholesky_ex(complement)
    step = -torch.cholesky_solve(remainder.unsqueeze(-1), outer).squeeze(-1)
    joints = -solved[..., -1] - (solved[..., :-1] @ step[:, None, :, None]).squeeze(-1)
    return step, joints.unflatten(-1, (-1, 3))
