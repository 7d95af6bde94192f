"""A static rig, moving joints, one body and biased keypoints: cost and normal equations, batched.

Unknowns of each problem: the cameras of views 1 to V-1, the joints of every frame, and what all
frames share: the log lengths of everybody's bones and, where asked for, the focal length of each
view and the bias of each view's keypoint of each joint. The normal equations have the shape of an
arrow: a frame's joints are tied to the shared unknowns, and not to other frames.
How cameras move: `ptri.posterior.motion`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.rays import chi_square, expected_curvature, log_mixture, responsibility
from ptri.geometry.rotations import skew
from ptri.geometry.triangulation import camera_matrix, ray_moments, reproject, symmetric_to_matrix
from ptri.posterior.body import NUM_BONES, BodyPrior, bone_vectors
from ptri.posterior.motion import by_focal
from ptri.posterior.prior import Prior, difference_slopes, differences, no_poses, pose_cost
from ptri.structures import Observations, Views, constant, take

# Joints are held to where they are by this standard deviation (mm): it keeps joints that nobody
# sees finite, and is wide enough not to hold the scale of the whole.
STRUCTURE_SIGMA = 1e5
USUAL_TAIL = 0.1  # of a detector's errors, until the residuals say more


def held_bones(observations: Observations, body: BodyPrior) -> Tensor:
    """1 (N, T, bones) where both ends of a bone of the person shown are held, else 0."""
    held = observations.held[..., body.child] * observations.held[..., body.parent]
    return held * observations.persons.repeat_interleave(NUM_BONES, dim=2)


class Bundle(NamedTuple):
    """The state of N problems."""

    R: Tensor  # (N, V, 3, 3)
    t: Tensor  # (N, V, 3) mm
    log_focal: Tensor  # (N, F) log of the focal lengths over those of K; F = V, 0: K is exact
    joints: Tensor  # (N, T, J, 3) mm, reference frame
    log_lengths: Tensor  # (N, bones) of all persons, one after the other

    @property
    def views(self) -> Views:
        return Views(*self[:3])

    @property
    def num_cameras(self) -> int:
        """Unknowns of the cameras: F focal lengths, then six of each view but the first."""
        return self.log_focal.shape[-1] + 6 * (self.t.shape[-2] - 1)


class Errors(NamedTuple):
    """How the keypoints of N problems err, beside their stated covariances, and the cameras
    differ from what is known of them."""

    scale2: Tensor  # (N,) factor on the stated covariances
    tail: Tensor  # (N,) of the law around them, see `ptri.posterior.tails`
    bias2: Tensor  # (N,) variance of a bias's coordinate, in units of the view's stated noise
    bias: Tensor  # (N, V, J, 2) biases in these units; J = 0: none are modelled
    num_bias: Tensor  # (N,) effective number of parameters that the biases are
    prior: Prior  # (N, ...) of the cameras

    @property
    def curvature(self) -> Tensor:
        """Expected curvature (N,) of a keypoint's cost, see `expected_curvature`."""
        return expected_curvature(self.tail)


class Layout(NamedTuple):
    """Observations with the views first; P = T J points. Made once, for all steps."""

    xy: Tensor  # (N, V, 2, P)
    information: Tensor  # (N, V, 2, 2, P)
    inlier: Tensor  # (N, V, P)
    unit: Tensor  # (N, V, P) the view's stated noise in the frame, see `noise_unit`
    held: Tensor  # (N, T, bones) 1 where a bone has its say, else 0


class Residuals(NamedTuple):
    """Keypoints and bones at a bundle, before the noise's scale and the inliers' weights."""

    camera: Tensor  # (N, V, 3, P) mm, joints in the camera frames
    pull: Tensor  # (N, V, 2, P) stated information times the residual of the projection
    chi2: Tensor  # (N, V, P)
    length: Tensor  # (N, T, bones) mm
    direction: Tensor  # (N, T, bones, 3)
    stretch: Tensor  # (N, T, bones) of the bones' log lengths, over the slack


class System(NamedTuple):
    """Normal equations; G unknowns are shared: focal lengths, cameras, bones, biases, in this
    order. Joints are counted from where view 0's focal length carries them."""

    frames: Tensor  # (N, T, 3J, 3J)
    coupling: Tensor  # (N, T, G, 3J)
    shared: Tensor  # (N, G, G) of the keypoints, without priors
    frames_gradient: Tensor  # (N, T, 3J)
    shared_gradient: Tensor  # (N, G)
    chi2: Tensor  # (N, T, V, J) unscaled
    weight: Tensor  # (N, T, V, J) in least squares, see `responsibility`


def plain_errors(observations: Observations, prior: Prior | None = None) -> Errors:
    """Errors as stated: independent, unbiased, of scale one.

    Args:
        prior: of one rig's cameras; None: K is exact, and nothing else known.
    """
    N, _, V = observations.inlier.shape[:3]
    one, bias = observations.xy.new_ones(N), observations.xy.new_zeros(N, V, 0, 2)
    prior = Prior(one.new_zeros(0, 0), no_poses(one)) if prior is None else prior
    return Errors(one, USUAL_TAIL * one, one, bias, 0 * one, prior.expand(N, one))


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


def projected_slopes(bundle: Bundle) -> tuple[Tensor, Tensor]:
    """Joints (N, T, V, J, 3) mm in the cameras' frames, and the slopes (N, T, V, J, 2, 3) of their
    normalised places with these."""
    camera = torch.einsum("nvac,ntjc->ntvja", bundle.R, bundle.joints)
    camera = camera + bundle.t[:, None, :, None]
    x, y, z = camera.unbind(-1)
    inverse = 1 / z.clamp_min(MIN_DEPTH)
    zero = torch.zeros_like(x)
    columns = [inverse, zero, -x * inverse.square(), zero, inverse, -y * inverse.square()]
    slopes = torch.stack(columns, -1).unflatten(-1, (2, 3))
    if bundle.log_focal.shape[1]:
        slopes = slopes * bundle.log_focal.exp()[:, None, :, None, None, None]
    return camera, slopes


def with_poses(rows: Tensor, camera: Tensor, bundle: Bundle) -> Tensor:
    """Slopes (N, T, V - 1, J, r, 6) with the cameras' moves of what has slopes ``rows`` (N, T, V,
    J, r, 3) with joints in the cameras' frames."""
    offset = camera - person_centre(bundle)[:, None, :, None]
    return torch.cat([rows @ -skew(offset), rows], -1)[:, :, 1:]


def misfits(
    bundle: Bundle, observations: Observations, errors: Errors
) -> tuple[Tensor, Tensor, Tensor]:
    """How keypoints miss the bundle's joints, the biases added.

    Returns:
        Residuals (N, T, V, J, 2) over the view's stated noise; their squares (N, T, V, J) over the
        stated covariance; and their weight (N, T, V, J) in least squares.
    """
    at = reproject(bundle.joints[None], observations, *take(bundle.views.projection, None))
    unit = noise_unit(observations)[..., None, None]
    bias = errors.bias[:, None] if errors.bias.shape[2] else 0.0
    residual = at.error[0] + unit * bias
    chi2 = chi_square(residual, observations.information)
    scale2, tail = (value[:, None, None, None] for value in (errors.scale2, errors.tail))
    weight = responsibility(chi2 / scale2, observations.inlier, tail=tail) * at.front[0]
    # Views that see nothing have no noise.
    return residual / unit.clamp_min(1e-12), chi2, weight


def lay_out(observations: Observations, body: BodyPrior) -> Layout:
    """Observations (N, T, V, J, ...) with the views first, and what follows from them alone."""
    J = observations.inlier.shape[-1]
    xy = observations.xy.permute(0, 2, 4, 1, 3).flatten(3)
    information = observations.information.permute(0, 2, 4, 5, 1, 3).flatten(4)
    inlier = observations.inlier.transpose(1, 2).flatten(2)
    unit = noise_unit(observations).transpose(1, 2).repeat_interleave(J, dim=2)
    return Layout(xy, information, inlier, unit, held_bones(observations, body))


def residuals(bundle: Bundle, layout: Layout, errors: Errors, body: BodyPrior) -> Residuals:
    """Residuals at a bundle, with the biases added to the projected joints."""
    N, T, J, _ = bundle.joints.shape
    V = bundle.R.shape[1]
    camera = bundle.R.flatten(1, 2) @ bundle.joints.flatten(1, 2).mT  # (N, 3 V, P)
    camera = camera.unflatten(1, (V, 3)) + bundle.t.unsqueeze(-1)
    projected = camera[:, :, :2] / camera[:, :, 2:].clamp_min(MIN_DEPTH)
    if bundle.log_focal.shape[1]:
        projected = projected * bundle.log_focal.exp()[..., None, None]
    residual = projected - layout.xy
    if errors.bias.shape[2]:
        bias = errors.bias.mT.unsqueeze(-2).expand(N, V, 2, T, J).flatten(3)
        residual = residual + layout.unit.unsqueeze(2) * bias
    pull = (layout.information * residual.unsqueeze(2)).sum(3)  # (N, V, 2, P)
    chi2 = (pull * residual).sum(2)
    length, direction = bone_vectors(bundle.joints, body)
    stretch = (length.log() - bundle.log_lengths[:, None]) * (layout.held / body.slack)
    return Residuals(camera, pull, chi2, length, direction, stretch)


def frame_costs(at: Residuals, layout: Layout, errors: Errors) -> Tensor:
    """Negative log density (N, T) of each frame's keypoints and bones, given what is shared."""
    scale2, tail = (value[:, None, None] for value in (errors.scale2, errors.tail))
    data = log_mixture(at.chi2 / scale2, layout.inlier, tail=tail)
    T = at.stretch.shape[1]
    return 0.5 * at.stretch.square().sum(2) - data.sum(1).unflatten(-1, (T, -1)).sum(-1)


def total_cost(frames: Tensor, bundle: Bundle, errors: Errors, body: BodyPrior) -> Tensor:
    """Negative log density (N,) from the frames' (N, T): with body, biases and cameras."""
    deviation = bundle.log_lengths - body.mean
    lengths = ((deviation @ body.precision) * deviation).sum(1)
    biases = errors.bias.square().sum((1, 2, 3)) / errors.bias2
    cameras = focal_cost(bundle.log_focal, errors.prior.focal)
    cameras = cameras + pose_cost(bundle.views, errors.prior.poses)
    return frames.sum(1) + 0.5 * (lengths + biases) + cameras


def focal_cost(log_focal: Tensor, information: Tensor) -> Tensor:
    """Negative log density (..., N) of log focal lengths (..., N, F), by information (N, F, F)."""
    return 0.5 * torch.einsum("...ni,nij,...nj->...n", log_focal, information, log_focal)


def robust_cost(
    bundle: Bundle, observations: Observations, errors: Errors, body: BodyPrior
) -> Tensor:
    """`total_cost` (N,) of bundles."""
    layout = lay_out(observations, body)
    at = residuals(bundle, layout, errors, body)
    return total_cost(frame_costs(at, layout, errors), bundle, errors, body)


class Linear(NamedTuple):
    """Keypoints and bones, linearised in the joints of a bundle."""

    weight: Tensor  # (N, V, P) responsibility of the inlier
    moments: Tensor  # (N, V, P, 6) information of the camera-frame joints, symmetric entries
    gradient: Tensor  # (N, V, 3, P) of the keypoints' cost in the camera-frame joints
    bone_rows: Tensor  # (N, T, bones, 3J) d(stretch) / d(joints)
    frames: Tensor  # (N, T, 3J, 3J)
    frames_gradient: Tensor  # (N, T, 3J)


def linearise(
    at: Residuals, bundle: Bundle, layout: Layout, errors: Errors, body: BodyPrior
) -> Linear:
    """Gauss-Newton equations of every frame's joints, all else held."""
    N, T, J, _ = bundle.joints.shape
    scale2 = errors.scale2[:, None, None]
    tail = errors.tail[:, None, None]
    weight = responsibility(at.chi2 / scale2, layout.inlier, tail=tail)
    x, y, z = at.camera.unbind(2)  # (N, V, P) each
    weight = weight * (z > MIN_DEPTH)
    inverse = 1 / z.clamp_min(MIN_DEPTH)
    u, v = x * inverse, y * inverse
    factor = weight / scale2
    curved = factor * errors.curvature[:, None, None]
    scale = inverse
    if bundle.log_focal.shape[1]:
        scale = inverse * bundle.log_focal.exp().unsqueeze(-1)
    information = layout.information * (curved * scale.square())[:, :, None, None]
    moments = ray_moments(torch.stack([u, v], dim=-1), information.movedim(-1, 2))
    px, py = (at.pull * (factor * scale).unsqueeze(2)).unbind(2)
    gradient = torch.stack([px, py, -(u * px + v * py)], dim=2)  # (N, V, 3, P)
    stacked = moments.transpose(2, 3).flatten(1, 2)  # (N, 6 V, P)
    blocks = symmetric_to_matrix((camera_matrix(bundle.R) @ stacked).movedim(1, 0))
    joint_gradient = (bundle.R.flatten(1, 2).mT @ gradient.flatten(1, 2)).mT  # (N, P, 3)

    # Bones: residual (log |a - b| - l) / slack, its derivative along the bone.
    row = at.direction * (layout.held / (body.slack * at.length)).unsqueeze(-1)
    rows = (body.incidence[:, :, None] * row.unsqueeze(-2)).flatten(-2)  # (N, T, bones, 3J)
    frames = rows.mT @ rows
    diagonal = frames.view(N, T, J, 3, J, 3).diagonal(dim1=2, dim2=4)  # (N, T, 3, 3, J)
    diagonal += blocks.unflatten(1, (T, J)).movedim(2, -1)
    frames.diagonal(dim1=-2, dim2=-1).add_(STRUCTURE_SIGMA**-2)
    pulled = (at.stretch.unsqueeze(-2) @ rows).squeeze(-2)
    frames_gradient = joint_gradient.reshape(N, T, 3 * J) + pulled
    return Linear(weight, moments, gradient, rows, frames, frames_gradient)


def system_at(
    at: Residuals, bundle: Bundle, layout: Layout, errors: Errors, body: BodyPrior
) -> System:
    """Gauss-Newton normal equations of keypoints and bone stretches at residuals."""
    N, T, J, _ = bundle.joints.shape
    V, num_bones, num_bias = bundle.R.shape[1], len(body.mean), errors.bias[0].numel()
    F, num_cameras = bundle.log_focal.shape[1], bundle.num_cameras
    poses, bones = slice(F, num_cameras), slice(num_cameras, num_cameras + num_bones)
    linear = linearise(at, bundle, layout, errors, body)
    total = bones.stop + num_bias
    coupling = linear.frames.new_zeros(N, T, total, 3 * J)
    shared = linear.frames.new_zeros(N, total, total)

    # A camera moves a point by d + w x offset, so its rows are the point's, and offset x them.
    offset = (at.camera - person_centre(bundle).unsqueeze(-1))[:, 1:].mT.unsqueeze(-2)
    Q = symmetric_to_matrix(linear.moments[:, 1:].movedim(-1, 0))  # (N, V-1, P, 3, 3)
    turned = torch.linalg.cross(offset.expand_as(Q), Q, dim=-1)  # Q is symmetric
    eye = torch.eye(3, dtype=Q.dtype, device=Q.device)
    by_point = torch.cat([turned.mT, Q], dim=-2)  # (N, V-1, P, 6, 3)
    motion = torch.cat([-skew(offset.squeeze(-2)), eye.expand_as(Q)], dim=-1)
    camera_blocks = by_point.transpose(2, 3).flatten(3) @ motion.flatten(2, 3)  # (N, V-1, 6, 6)
    by_joint = (by_point.flatten(2, 3) @ bundle.R[:, 1:]).view(N, V - 1, T, J, 6, 3)
    views = coupling[:, :, poses].view(N, T, V - 1, 6, J, 3)
    views.copy_(by_joint.permute(0, 2, 1, 4, 3, 5))
    blocks = shared[:, poses, poses].unflatten(2, (V - 1, 6)).unflatten(1, (V - 1, 6))
    blocks.diagonal(dim1=1, dim2=3).copy_(camera_blocks.permute(0, 2, 3, 1))
    gradient = linear.gradient[:, 1:].mT  # (N, V-1, P, 3)
    torque = torch.linalg.cross(offset.squeeze(-2), gradient, dim=-1)
    gradients = [torch.cat([torque, gradient], dim=-1).sum(2).flatten(1)]

    coupling[:, :, bones] = -linear.bone_rows / body.slack
    count = layout.held.sum(1) / body.slack**2
    shared[:, bones, bones].diagonal(dim1=-2, dim2=-1).copy_(count)
    gradients.append(-at.stretch.sum(1) / body.slack)
    if num_bias:
        # Columns of P^T L: the information's part of the moments, times the depth.
        factor = layout.unit * at.camera[:, :, 2].clamp_min(MIN_DEPTH)
        if F:
            factor = factor * (-bundle.log_focal).exp().unsqueeze(-1)
        m = linear.moments * factor.unsqueeze(-1)  # (N, V, P, 6)
        # (N, V, P, 2, 3) of both coordinates
        onto_camera = m[..., constant(((0, 1, 2), (1, 3, 4)), m.device)]
        onto = onto_camera.flatten(2, 3) @ bundle.R  # (N, V, 2 P, 3)
        place = coupling[:, :, bones.stop :].view(N, T, V, J, 2, J, 3).diagonal(dim1=3, dim2=5)
        place.copy_(onto.view(N, V, T, J, 2, 3).permute(0, 2, 1, 4, 5, 3))
        curved = errors.curvature / errors.scale2
        weight = linear.weight * (layout.unit.square() * curved[:, None, None])
        own = (layout.information * weight[:, :, None, None]).unflatten(-1, (T, J)).sum(4)
        corner = shared[:, bones.stop :, bones.stop :].unflatten(2, (V, J, 2))
        corner = corner.unflatten(1, (V, J, 2)).diagonal(dim1=1, dim2=4).diagonal(dim1=1, dim2=3)
        corner.copy_(own.permute(0, 2, 3, 1, 4))  # (N, 2, 2, V, J)
        rows = onto_camera[:, 1:].transpose(-1, -2)  # (N, V-1, P, 3, 2)
        arm = torch.linalg.cross(offset.mT.expand_as(rows), rows, dim=-2)
        mixed = torch.cat([arm, rows], dim=-2).unflatten(2, (T, J)).sum(2)  # (N, V-1, J, 6, 2)
        cross = shared[:, poses, bones.stop :].unflatten(2, (V, J, 2))
        cross = cross.unflatten(1, (V - 1, 6))[:, :, :, 1:].diagonal(dim1=1, dim2=3)
        cross.copy_(mixed.permute(0, 3, 2, 4, 1))  # (N, 6, J, 2, V-1)
        transposed = shared[:, bones.stop :, poses]
        transposed.copy_(shared[:, poses, bones.stop :].mT)
        weight = linear.weight * (layout.unit / errors.scale2[:, None, None])
        pull = (at.pull * weight.unsqueeze(2)).unflatten(-1, (T, J)).sum(3)  # (N, V, 2, J)
        gradients.append(pull.mT.flatten(1))
    if F:
        own = by_focal(at.camera.mT, person_centre(bundle).unsqueeze(2))  # (N, V, P, 3)
        by_point = symmetric_to_matrix(linear.moments.movedim(-1, 0)) @ own.unsqueeze(-1)
        by_joint = (by_point.squeeze(-1) @ bundle.R).view(N, V, T, J * 3)
        coupling[:, :, :F] = by_joint.transpose(1, 2)
        shared[:, :F, :F] = torch.diag_embed((by_point.squeeze(-1) * own).sum((2, 3)))
        cross = shared[:, :F, poses].unflatten(2, (V - 1, 6))[:, 1:].diagonal(dim1=1, dim2=2)
        cross.copy_((motion.mT @ by_point[:, 1:]).sum((2, 4)).mT)
        if num_bias:
            mixed = (onto_camera @ own.unsqueeze(-1)).view(N, V, T, J * 2).sum(2)
            cross = shared[:, :F, bones.stop :].unflatten(2, (V, J * 2)).diagonal(dim1=1, dim2=2)
            cross.copy_(mixed.mT)
        shared[:, F:, :F] = shared[:, :F, F:].mT
        gradients.insert(0, (own * linear.gradient.mT).sum((2, 3)))
    gradient = torch.cat(gradients, dim=-1)
    chi2, weight = (
        value.unflatten(-1, (T, J)).transpose(1, 2) for value in (at.chi2, linear.weight)
    )
    return System(linear.frames, coupling, shared, linear.frames_gradient, gradient, chi2, weight)


def normal_equations(
    bundle: Bundle, observations: Observations, errors: Errors, body: BodyPrior
) -> System:
    """Gauss-Newton normal equations of keypoints and bone stretches at the bundle."""
    layout = lay_out(observations, body)
    return system_at(residuals(bundle, layout, errors, body), bundle, layout, errors, body)


def priors(bundle: Bundle, errors: Errors, body: BodyPrior) -> tuple[Tensor, Tensor]:
    """Information (N, G, G) and gradient (N, G) of the priors on the shared unknowns."""
    N, num_bones = len(errors.scale2), len(body.mean)
    F, num_cameras = bundle.log_focal.shape[1], bundle.num_cameras
    bones = slice(num_cameras, num_cameras + num_bones)
    total = bones.stop + errors.bias[0].numel()
    information = errors.scale2.new_zeros(N, total, total)
    information[:, :F, :F] = errors.prior.focal
    information[:, bones, bones] = body.precision
    biases = information[:, bones.stop :, bones.stop :]
    biases.diagonal(dim1=-2, dim2=-1).add_(1 / errors.bias2[:, None])
    still = bundle.t.new_zeros(N, num_cameras - F)
    lengths = bundle.log_lengths - body.mean
    away = torch.cat([bundle.log_focal, still, lengths, errors.bias.flatten(1)], dim=-1)
    gradient = (information @ away.unsqueeze(-1)).squeeze(-1)
    poses = errors.prior.poses
    if poses.information.shape[-1]:
        slopes = difference_slopes(bundle.views, person_centre(bundle), poses)
        pull = slopes.mT @ poses.information  # (N, F + P, P)
        information[:, :num_cameras, :num_cameras] += pull @ slopes
        away = differences(bundle.views, poses).unsqueeze(-1)
        gradient[:, :num_cameras] += (pull @ away).squeeze(-1)
    return information, gradient
