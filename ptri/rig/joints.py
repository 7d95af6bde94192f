"""Joints under a rig posterior: of any skeleton, triangulated; and Human3.6M's 17, fused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.robust import START_DEPTH, chi_square, responsibility, robust_triangulation
from ptri.geometry.triangulation import ray_moments, symmetric_to_matrix, triangulate
from ptri.models.pose_model import PoseModel
from ptri.posterior.sampling import normalise, posterior_mean, resample
from ptri.rig.detector import observe
from ptri.structures import Cameras, Detector, Keypoints, Prediction, RigPosterior
from ptri.verdict.readings import Sides, apply_sides, in_order, read_under

NUM_SAMPLES = 64  # of the posterior that joints are triangulated under
CHUNK = 128  # frames at once: bounds the memory
FUSE_CHUNK = 64  # frames fused at once
# A joint that the views do not fix lies this near the middle of the person (mm, standard deviation
# a coordinate), so that its place stays finite and its covariance says how little is known.
PERSON_SIGMA = 600.0


def joints_under(
    keypoints: Keypoints,
    K: Tensor,
    posterior: RigPosterior,
    noise2: Tensor | float = 1.0,
    num_samples: int = NUM_SAMPLES,
) -> Prediction:
    """Joints of T frames under a rig posterior, of these frames or of others.

    The mean and covariance of the mixture over posterior samples: the joint's own covariance
    given the cameras plus the spread of the joint over the cameras.

    Args:
        keypoints: (T, V, J, ...) px. K: (V, 3, 3) or (T, V, 3, 3) px.
        posterior: of one rig (B = 1).
        noise2: () squared factor on the keypoints' stated standard deviations.

    Returns:
        (T, J, 3) mm and (T, J, 3, 3) mm^2 in view 0's frame, float64, always finite: a joint that
        fewer than two views see lies near the person, within a covariance of `PERSON_SIGMA`.
    """
    R, t, log_weights = resample(posterior, num_samples)
    weights = log_weights[:, 0].exp()
    parts = []
    for points, spread in _given_cameras(keypoints, K, posterior, R, t, noise2):
        mean = torch.einsum("m,mtja->tja", weights, points)
        away = points - mean
        between = torch.einsum("m,mtja,mtjb->tjab", weights, away, away)
        parts.append((mean, between + torch.einsum("m,mtjab->tjab", weights, spread)))
    return Prediction(*(torch.cat(values) for values in zip(*parts)))


def joint_samples(keypoints: Keypoints, K: Tensor, posterior: RigPosterior) -> Tensor:
    """Joints (M, T, J, 3) mm under each of the posterior's M samples, in their order."""
    return joints_given(keypoints, K, posterior, posterior.R, posterior.t)[0]


def joints_given(
    keypoints: Keypoints,
    K: Tensor,
    posterior: RigPosterior,
    R: Tensor,
    t: Tensor,
    noise2: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Joints (M, T, J, 3) mm under each of M cameras, and their covariances (M, T, J, 3, 3) mm^2.

    Args:
        keypoints, K, posterior, noise2: as in `joints_under`; the posterior's mean decides which
            keypoints are outliers.
        R, t: (M, 1, V, 3, 3), (M, 1, V, 3) mm.
    """
    parts = zip(*_given_cameras(keypoints, K, posterior, R, t, noise2))
    points, spread = (torch.cat(values, dim=1) for values in parts)
    return points, spread


def _given_cameras(keypoints, K, posterior, R, t, noise2) -> Iterator[tuple[Tensor, Tensor]]:
    """`joints_given`, a chunk of frames at a time."""
    mean_R, mean_t = posterior_mean(posterior)
    K = K.double().expand(*keypoints.xy.shape[:2], 3, 3)
    noise2 = torch.as_tensor(noise2).to(mean_R)
    for first in range(0, keypoints.xy.shape[0], CHUNK):
        some = slice(first, first + CHUNK)
        part = Keypoints(*(value[some][None].double() for value in keypoints))
        yield _triangulate(part, Cameras(K[None, some], mean_R, mean_t), R, t, noise2)


def _triangulate(
    keypoints: Keypoints, mean: Cameras, R: Tensor, t: Tensor, noise2: Tensor
) -> tuple[Tensor, Tensor]:
    """Joints (M, T, J, 3) and covariances (M, T, J, 3, 3) of keypoints (1, T, V, J, ...)."""
    _, T, V, J, _ = keypoints.xy.shape
    K = mean.K
    observations = normalise(keypoints, K)
    information = observations.information / noise2
    points = robust_triangulation(keypoints, Cameras(K, mean.R, mean.t))[0].joints3d  # (1, T, J, 3)
    middle, precision = _person(points)
    points = torch.where(torch.isfinite(points), points, middle.unsqueeze(-2))
    anchor = middle.unsqueeze(-2).expand(1, T, J, 3).reshape(1, T * J, 3)
    precision = precision[..., None].expand(1, T, J).reshape(T * J)
    for _ in range(3):  # expectation maximisation: which keypoints are outliers
        camera = torch.einsum("bvac,btjc->btvja", mean.R, points) + mean.t[:, None, :, None]
        depth = camera[..., 2].clamp_min(MIN_DEPTH)
        residual = camera[..., :2] / depth[..., None] - observations.xy
        chi2 = chi_square(residual, information)
        weight = responsibility(chi2, observations.inlier)
        weight = weight * (camera[..., 2] > MIN_DEPTH)
        moments = ray_moments(
            observations.xy, information * (weight / depth.square())[..., None, None]
        )
        moments = moments.permute(0, 1, 3, 2, 4).reshape(1, T * J, V, 6)
        points, _, _ = triangulate(moments, mean.R[None], mean.t[None], anchor, precision)
        points = points[0].unflatten(1, (T, J))
    points, entries, _ = triangulate(moments, R, t, anchor, precision)
    spread = symmetric_to_matrix(entries[:, :, 0])  # (M, T J, 3, 3)
    return points[:, 0].unflatten(1, (T, J)), spread.unflatten(1, (T, J))


def _person(points: Tensor) -> tuple[Tensor, Tensor]:
    """Middle of the person (1, T, 3) in each frame, and its precision (1, T) 1/mm^2.

    In a frame in which nothing is triangulated the person is where it usually is, give or take
    how much it moves.
    """
    middle = points.nanmedian(dim=2).values  # (1, T, 3), NaN where nothing is
    nowhere = points.new_tensor([0.0, 0.0, START_DEPTH])
    usual = middle.nanmedian(dim=1, keepdim=True).values
    lost = torch.isnan(usual)
    usual = torch.where(lost, nowhere, usual)
    moves = (middle - usual).square().nanmean(1, keepdim=True).nan_to_num(0.0).amax(-1)  # (1, 1)
    moves = torch.where(lost.any(-1), START_DEPTH**2, moves)
    missing = torch.isnan(middle).any(-1)
    variance = PERSON_SIGMA**2 + torch.where(missing, moves, torch.zeros_like(moves))
    return torch.where(torch.isnan(middle), usual, middle), 1 / variance


def read_again(
    keypoints: Keypoints,
    K: Tensor,
    posterior: RigPosterior,
    detector: Detector,
    sides: Sides | None = None,
    features: Tensor | None = None,
) -> tuple[Keypoints, Tensor | None]:
    """Keypoints with left and right read under the posterior's mean cameras, and their features.

    Args:
        keypoints: (B, T, V, J, ...) px; K: (B, T, V, 3, 3) px.
        sides: how they were read before the cameras were known; None: as labelled.
        features: (B, T, V, 17, C).

    Returns:
        Both differentiable in what was given; the reading itself is a decision.
    """
    if sides is not None:
        keypoints = apply_sides(keypoints, sides)
        features = None if features is None else in_order(features, sides.order)
    with torch.no_grad():
        R, t = (value.double() for value in posterior_mean(posterior))
        under = read_under(observe(keypoints, K, detector), R, t)
    features = None if features is None else in_order(features, under.order)
    return apply_sides(keypoints, under), features


def fuse_body(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    posterior: RigPosterior,
    sides: Sides | None = None,
    features: Tensor | None = None,
) -> Prediction:
    """Human3.6M's 17 joints of T successive frames of B rigs, by the fusion network.

    Heads that look at cameras are given the keypoints with left and right read: as the solver read
    them, and then once more under the cameras (see `ptri.verdict.readings`).

    Args:
        keypoints: (B, T, V, J, ...) px; K: (B, T, V, 3, 3) px.
        posterior: of the B rigs, from these frames or from others; true cameras are one, too.
        sides: (B, T, V, 17) of the solver; None: it read nothing in these frames.
        features: (B, T, V, 17, C) of the 2D network at the keypoints.

    Returns:
        (B, T, 17, 3) mm in view 0's frame and (B, T, 17, 3, 3) mm^2, root-relative; float32.
    """
    if model.fusion.uses_cameras:
        keypoints, features = read_again(keypoints, K, posterior, model.detector, sides, features)
    return model.fuse(keypoints, K, posterior, features)


def fuse_rig(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    posterior: RigPosterior,
    sides: Sides | None = None,
    frames: Sequence[int] = (),
    features: Tensor | None = None,
) -> Prediction:
    """`fuse_body` of the T frames of one rig, a chunk at a time: (T, 17, 3) and (T, 17, 3, 3).

    Args:
        keypoints: (T, V, J, ...) px. K: (V, 3, 3) or (T, V, 3, 3) px.
        sides: (1, frames, V, 17) of the solver in ``frames``.
    """
    T, V = keypoints.xy.shape[:2]
    K = K.expand(T, V, 3, 3)
    if sides is not None:
        joints = torch.arange(sides.order.shape[-1], device=sides.order.device)
        order = joints.repeat(1, T, V, 1)
        keep = torch.ones_like(order, dtype=torch.bool)
        order[:, frames], keep[:, frames] = sides
        sides = Sides(order, keep)
    parts = []
    for first in range(0, T, FUSE_CHUNK):
        some = slice(first, first + FUSE_CHUNK)
        part = Keypoints(*(value[None, some] for value in keypoints))
        read = None if sides is None else Sides(*(value[:, some] for value in sides))
        feature = None if features is None else features[None, some]
        parts.append(fuse_body(model, part, K[None, some], posterior, read, feature))
    return Prediction(*(torch.cat(values, dim=1)[0] for values in zip(*parts)))
