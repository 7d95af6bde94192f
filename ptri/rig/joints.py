"""Joints under a rig posterior: of any skeleton, triangulated; and Human3.6M's 17, fused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptri.geometry.rays import expected_curvature, normalise, responsibility
from ptri.geometry.triangulation import (
    START_DEPTH,
    Triangulation,
    reproject,
    robust_joints,
    weighted_triangulation,
)
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import mean_views, posterior_from_cameras, posterior_mean, resample
from ptri.rig.detector import NUM_JOINTS, observe
from ptri.skeleton import H36M17
from ptri.structures import (
    MANY_FRAMES,
    Cameras,
    Detector,
    Keypoints,
    Prediction,
    RigPosterior,
    Views,
    cat,
    take,
    tree_map,
)
from ptri.verdict.readings import Sides, apply_sides, in_order, read_under

NUM_SAMPLES = 64  # of the posterior that joints are triangulated under
CHUNK = 64  # frames at once: bounds the memory
PILOT = 8  # frames that tell how far fused joints follow triangulated ones
# Variance of a lifted joint over the square of its Laplace scale: 4 by that law, and four times as
# much because the lifter and the fusion see the same keypoints, so that their errors go together.
LIFTED_VARIANCE = 16.0
ROUNDS = 3  # in which the mean cameras decide which keypoints are outliers
# A joint that the views do not fix lies this near the middle of the person (mm, standard deviation
# a coordinate), so that its place stays finite and its covariance says how little is known.
PERSON_SIGMA = 600.0


def joints_under(
    keypoints: Keypoints,
    K: Tensor,
    posterior: RigPosterior,
    noise2: Tensor | float = 1.0,
    tail: Tensor | None = None,
) -> Prediction:
    """Joints of T frames under a rig posterior, of these frames or of others.

    The mean and covariance of the mixture over posterior samples: the joint's own covariance
    given the cameras plus the spread of the joint over the cameras.

    Args:
        keypoints: (T, V, J, ...) px. K: (T, V, 3, 3) px.
        posterior: of one rig (B = 1).
        noise2: () squared factor on the keypoints' stated standard deviations.
        tail: () of their law, see `ptri.posterior.tails`; None: a Gaussian.

    Returns:
        (T, J, 3) mm and (T, J, 3, 3) mm^2 in view 0's frame, float64, always finite: a joint that
        fewer than two views see lies near the person, within a covariance of `PERSON_SIGMA`.
    """
    views = resample(posterior, NUM_SAMPLES).views
    parts = []
    for first in range(0, len(K), CHUNK):
        part, part_K = take((keypoints, K), (None, slice(first, first + CHUNK)))
        given = joints_given(part, part_K, posterior, views, noise2, tail)
        mean, spread = _moments(given.joints)
        parts.append(Prediction(mean[0], (given.covariance.mean(0) + spread)[0]))
    return cat(parts)


def _moments(joints: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, T, J, 3) and covariance (B, T, J, 3, 3) over equally weighted samples (M, ...)."""
    mean = joints.mean(0)
    away = joints - mean
    return mean, torch.einsum("m...i,m...j->...ij", away, away) / len(joints)


def joints_given(
    keypoints: Keypoints,
    K: Tensor,
    posterior: RigPosterior,
    views: Views,
    noise2: Tensor | float = 1.0,
    tail: Tensor | None = None,
) -> Triangulation:
    """Joints (M, B, T, J, 3) mm under each of M cameras, and their covariances, float64.

    Args:
        keypoints: (B, T, V, J, ...) px. K: (B, T, V, 3, 3) px.
        posterior: its mean decides which keypoints are outliers.
        views: (M, B, V, ...).
        noise2: squared factor on the keypoints' stated standard deviations; one, or broadcast
            against (B, T, V, J, 2, 2).
        tail: of their law, one or broadcast against (B, T, V, J); None: a Gaussian.

    Raises:
        ValueError: see `normalise`.
    """
    keypoints, K, views, posterior = tree_map(Tensor.double, (keypoints, K, views, posterior))
    mean = mean_views(posterior.views, posterior.log_weights.exp()).projection
    observations = normalise(keypoints, K)
    points = robust_joints(observations, *mean, iterations=2)[0].joints[0]  # (B, T, J, 3)
    observations = observations._replace(information=observations.information / noise2)
    middle, precision = _person(points)  # (B, T, 1, 3), (B, T)
    points = torch.where(torch.isfinite(points), points, middle)
    prior = middle, precision.repeat_interleave(points.shape[2], 1)
    mean = take(mean, None)

    def weigh(joints: Tensor) -> tuple[Tensor, Tensor]:
        at = reproject(joints, observations, *mean)
        weight = responsibility(at.chi2, observations.inlier, tail=tail)
        return weight * at.front, at.depth

    weights = weigh(points[None])
    for _ in range(ROUNDS - 1):  # expectation maximisation
        weights = weigh(weighted_triangulation(observations, *mean, *weights, *prior).joints)
    if tail is not None:
        weights = weights[0] * expected_curvature(tail), weights[1]
    return weighted_triangulation(observations, *views.projection, *weights, *prior)


def _person(points: Tensor) -> tuple[Tensor, Tensor]:
    """Middle of the person (B, T, 1, 3) in each frame, and its precision (B, T) 1/mm^2.

    In a frame in which nothing is triangulated the person is where it usually is, give or take
    how much it moves.
    """
    middle = points.nanmedian(dim=2).values  # (B, T, 3), NaN where nothing is
    nowhere = points.new_tensor([0.0, 0.0, START_DEPTH])
    usual = middle.nanmedian(dim=1, keepdim=True).values
    lost = torch.isnan(usual)
    usual = torch.where(lost, nowhere, usual)
    moves = (middle - usual).square().nanmean(1, keepdim=True).nan_to_num(0.0).amax(-1)  # (B, 1)
    moves = torch.where(lost.any(-1), START_DEPTH**2, moves)
    missing = torch.isnan(middle)
    variance = PERSON_SIGMA**2 + torch.where(missing.any(-1), moves, 0.0)
    return torch.where(missing, usual, middle).unsqueeze(2), 1 / variance


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
    if not detector.exchanged:
        return keypoints, features
    with torch.no_grad():
        R, t = (value.double() for value in posterior_mean(posterior))
        under = read_under(observe(keypoints, K, detector), R, t, detector.exchanged)
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
    them, and then once more under the cameras (see `ptri.verdict.readings`). The mixture over a few
    samples is differentiable; `body_under` is nearer to the whole posterior.

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


@torch.no_grad()
def body_under(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    posterior: RigPosterior,
    sides: Sides | None = None,
    features: Tensor | None = None,
    frames: Sequence[int] | None = None,
) -> Prediction:
    """`fuse_body` without gradients, nearer to all that is known of cameras and body.

    The fused joints are drawn to those that the lifter sees from view 0, which need no cameras, as
    far as both covariances say.

    Few frames know their cameras badly: far from the mean ones the network bends a body, so it runs
    under the mean, and the mixture over a few samples gives the place and the covariances. Many
    frames know them well, and how joints move with these little is known from triangulation alone.
    So the network runs under the sample whose triangulated joints are nearest to their mean, and
    joints and covariances are carried to the posterior by the mean and the spread of the
    triangulated ones: a control variate, whose coefficient a few frames under a second sample tell.

    Args:
        frames: those of the T that ``sides`` (B, len(frames), V, 17) are of; None: all.
    """
    B, T = K.shape[:2]
    if sides is not None and frames is not None:
        labelled = torch.arange(NUM_JOINTS, device=K.device).expand(B, T, K.shape[2], -1)
        given, sides = sides, Sides(labelled.clone(), torch.ones_like(labelled, dtype=torch.bool))
        for value, part in zip(sides, given):
            value[:, list(frames)] = part
    unsure = model.fusion.uses_cameras and len(posterior.R) > 1
    fuse = _carried_body if unsure and T >= MANY_FRAMES else fuse_body
    central = None
    if unsure and T < MANY_FRAMES:
        central = posterior_from_cameras(Cameras(K, *posterior_mean(posterior)))
    parts = []
    for first in range(0, T, CHUNK):
        rows = slice(None), slice(first, first + CHUNK)
        few, few_K, few_sides, few_features = take((keypoints, K, sides, features), rows)
        mixture = fuse(model, few, few_K, posterior, few_sides, few_features)
        fused = mixture
        if central is not None:
            fused = fuse(model, few, few_K, central, few_sides, few_features)
        if model.fusion.uses_cameras:  # others answer as they are
            fused = _lean_on_lifted(model, few, few_K, few_sides, fused)
        if central is not None:
            place = (mixture.joints3d - fused.joints3d)[..., H36M17.root, None, :]
            fused = Prediction(fused.joints3d + place, mixture.covariance)
        parts.append(fused)
    return cat(parts, 1)


def _lean_on_lifted(model, keypoints, K, sides, fused) -> Prediction:
    """Kalman's update of each fused joint by the lifted one.

    The covariance stays, since it is too small already: both see the same keypoints.
    """
    if sides is not None:
        keypoints = apply_sides(keypoints, sides)
    lifted = model.lift(*take((keypoints, K), (slice(None), slice(None), 0)))
    relative = fused.joints3d - fused.joints3d[..., H36M17.root, None, :]
    away = (lifted.relative - relative).unsqueeze(-1)  # (B, T, 17, 3, 1)
    variance = LIFTED_VARIANCE * lifted.sigma.square()  # (B, T, 17) mm^2
    both = fused.covariance + torch.diag_embed(variance.unsqueeze(-1).expand(*variance.shape, 3))
    gain = torch.linalg.solve(both, fused.covariance).mT
    gain[..., H36M17.root, :, :] = 0.0  # of the root's place it says nothing
    return fused._replace(joints3d=fused.joints3d + (gain @ away)[..., 0])


def _carried_body(model, keypoints, K, posterior, sides, features) -> Prediction:
    keypoints, features = read_again(keypoints, K, posterior, model.detector, sides, features)
    views = resample(posterior, NUM_SAMPLES).views
    named = Keypoints(*(value[:, :, :, :NUM_JOINTS] for value in keypoints))
    joints = joints_given(named, K, posterior, views).joints  # (M, B, T, 17, 3)
    relative = joints - joints[..., H36M17.root, None, :]
    mean, spread = _moments(relative)
    nearest = (relative - mean).square().sum((2, 3, 4)).argsort(0)  # (M, B)
    rigs = torch.arange(len(K), device=K.device)
    central, other = ((rows, rigs) for rows in (nearest[0], nearest[len(nearest) // 2]))

    def fuse(sample: tuple[Tensor, Tensor], keypoints, K, features) -> Prediction:
        cameras = posterior_from_cameras(Cameras(K, *take(views, sample)[:2]))
        return model.fuse(keypoints, K, cameras, features)

    fused = fuse(central, keypoints, K, features)
    # The coefficient: how far the fused joints follow from the central sample to another one.
    some = slice(None), slice(0, PILOT)
    few = take((keypoints, K, features), some)
    follows = fuse(other, *few).joints3d - fused.joints3d[some]
    follows = follows - follows[..., H36M17.root, None, :]
    moves = take(relative[other] - relative[central], some)
    share = (follows * moves).sum((1, 2, 3)) / moves.square().sum((1, 2, 3)).clamp_min(1e-6)  # mm^2
    share = share.clamp(0.0, 1.0)[:, None, None, None]  # (B, 1, 1, 1)
    moved = fused.joints3d + share * (joints.mean(0) - joints[central])
    covariance = fused.covariance + share.square().unsqueeze(-1) * spread
    return Prediction(moved.float(), covariance.float())
