"""Joints of any skeleton under a rig posterior: triangulated, with the cameras' uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH
from ptri.geometry.robust import START_DEPTH, chi_square, log_mixture, robust_triangulation
from ptri.geometry.triangulation import ray_moments, symmetric_to_matrix, triangulate
from ptri.posterior.sampling import normalise, posterior_mean, resample
from ptri.structures import Cameras, Keypoints, Prediction, RigPosterior

NUM_SAMPLES = 64  # of the posterior that joints are triangulated under
CHUNK = 128  # frames at once: bounds the memory
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
        keypoints: (T, V, J, ...) px. K: (V, 3, 3) px.
        posterior: of one rig (B = 1).
        noise2: () squared factor on the keypoints' stated standard deviations.

    Returns:
        (T, J, 3) mm and (T, J, 3, 3) mm^2 in view 0's frame, float64, always finite: a joint that
        fewer than two views see lies near the person, within a covariance of `PERSON_SIGMA`.
    """
    R, t, log_weights = resample(posterior, num_samples)
    weights = log_weights[:, 0].exp()
    given = _given_cameras(keypoints, Cameras(K, *posterior_mean(posterior)), R, t, noise2)
    means, covariances = [], []
    for points, spread in given:
        mean = torch.einsum("m,mtja->tja", weights, points)
        away = points - mean
        between = torch.einsum("m,mtja,mtjb->tjab", weights, away, away)
        within = torch.einsum("m,mtjab->tjab", weights, spread)
        means.append(mean)
        covariances.append(between + within)
    return Prediction(torch.cat(means), torch.cat(covariances))


def joint_samples(keypoints: Keypoints, K: Tensor, posterior: RigPosterior) -> Tensor:
    """Joints (M, T, J, 3) mm under each of the posterior's M samples, in their order."""
    mean = Cameras(K, *posterior_mean(posterior))
    given = _given_cameras(keypoints, mean, posterior.R, posterior.t, 1.0)
    return torch.cat([points for points, _ in given], dim=1)


def _given_cameras(keypoints, mean, R, t, noise2):
    """Yields, a chunk of frames at a time, joints (M, T, J, 3) mm under M cameras and their
    covariances (M, T, J, 3, 3) mm^2; `mean` decides which keypoints are outliers."""
    mean = mean._replace(K=mean.K.double())
    noise2 = torch.as_tensor(noise2).to(mean.R)
    for first in range(0, keypoints.xy.shape[0], CHUNK):
        part = Keypoints(*(value[first : first + CHUNK][None].double() for value in keypoints))
        yield _triangulate(part, mean, R, t, noise2)


def _triangulate(
    keypoints: Keypoints, mean: Cameras, R: Tensor, t: Tensor, noise2: Tensor
) -> tuple[Tensor, Tensor]:
    """Joints (M, T, J, 3) and covariances (M, T, J, 3, 3) of keypoints (1, T, V, J, ...)."""
    _, T, V, J, _ = keypoints.xy.shape
    K = mean.K.expand(1, T, V, 3, 3)
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
        _, weight = log_mixture(chi2, observations.inlier)
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
