"""Local optima of a rig's posterior, from candidate cameras.

Every candidate is adjusted, the best distinct optima are kept; each gets its error model, an
expansion of the joint density (`ptri.posterior.density`), the step from the joint optimum to that
of the target, and the Laplace covariance around it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.geometry.rotations import rotation_angle
from ptri.geometry.triangulation import reproject, robust_joints
from ptri.posterior import adjust as adjustment
from ptri.posterior import student_t as laws
from ptri.posterior.adjust import NOISE_PRIOR_COUNT, Bundle
from ptri.posterior.body import BodyPrior
from ptri.posterior.density import (
    Expansion,
    cameras_at,
    coordinates_of,
    expand,
    log_density,
    residual_scale2,
)
from ptri.posterior.limbs import turn_limbs
from ptri.posterior.noise import fit_errors
from ptri.structures import MANY_FRAMES, Observations, take, tree_map

# A pose that is off by its stated error costs about one nat, one far off this many times a log.
POSE_TAIL = 2.0
MAX_POLISH = 8.0  # standard deviations a step
MIN_VIEWS = 1.5  # of a joint that counts, in responsibilities
FEW_VIEWS = 3  # up to so many may leave a limb's turn open
MAX_SHIFT = 700.0  # mm between where the images have a joint and where the start has it
ADJUST_ITERATIONS = 12  # Levenberg-Marquardt steps from each start
KEPT_STARTS = 3  # of them are followed to the end
FIRST_FRAMES = 12  # in which the starts are told apart
INFLATION = 1.8  # factor on the Laplace covariance, for the proposal
HOPELESS = 100.0  # nats over the best start; limbs that are turned over cost less
WIDE_ROTATION = 0.5  # rad, WIDE_SHIFT in mm: a camera nothing is known of, for the proposal only
WIDE_SHIFT = 2000.0
WIDE_SIZE = 0.5  # of the log size


class Poses(NamedTuple):
    """What a lifter makes of each view alone: the posture, which geometry knows nothing of."""

    joints: Tensor  # (B, T, V, J', 3) mm, camera frames; the first J' joints
    sigma: Tensor  # (B, T, V, J') mm, standard deviation a coordinate; infinite = not seen


class Evidence(NamedTuple):
    """What the target needs beside the cameras: observations, and expansions at the modes."""

    observations: Observations  # (B, T, V, J, ...)
    body: BodyPrior
    expansions: Expansion  # (B * K, ...) of K modes of each rig, best first
    log_pose: Tensor  # (B, K) log density of the single views' poses at the modes

    @property
    def best(self) -> Expansion:
        """The expansions (B, ...) at the best modes."""
        return take(self.expansions, slice(None, None, self.log_pose.shape[1]))

    @property
    def joints(self) -> Tensor:
        """Joints (B, T, J, 3) mm at the best mode."""
        return self.best.joints.mT

    @property
    def weight(self) -> Tensor:
        """Responsibility (B, T, V, J) of the inlier at the best mode."""
        return self.best.weight

    @property
    def scale2(self) -> Tensor:
        """Squared noise scale (B,) over the stated covariances, at the best mode."""
        return self.best.errors.scale2


class Modes(NamedTuple):
    """The K best local optima of each of B rigs, best first, and the law around each.

    Coordinates: the shape (D - 1) over the noise scale, which makes the two independent; the log
    size; the log noise scale.
    """

    R: Tensor  # (B, K, V, 3, 3)
    t: Tensor  # (B, K, V, 3) mm
    mean: Tensor  # (B, K, D + 1)
    chol: Tensor  # (B, K, D + 1, D + 1) factor of the Laplace covariance
    log_mass: Tensor  # (B, K) log of the Laplace evidence, up to a constant per rig
    failed: Tensor  # (B,) bool, the best mode's information could not be factorised


@torch.no_grad()
def find_modes(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: PosteriorConfig,
    poses: Poses | None = None,
    correlated: bool = True,
    frame_worth: float = 1.0,
) -> tuple[Modes, Evidence]:
    """Adjusts every start and keeps the best distinct optima.

    Args:
        observations: (B, T, V, J, ...), float64.
        starts: (B, C, ...) candidate cameras, joints and log lengths.
        poses: tell modes apart that geometry cannot: people seen from behind, limbs turned over.
        correlated, frame_worth: as in `fit_errors`.
    """
    observations = _masked(observations, (observations.inlier > 0).to(observations.xy))
    fixed = tree_map(torch.detach, observations)
    body = body.to(fixed.xy.device, fixed.xy.dtype)
    starts = tree_map(lambda value: value.detach().to(fixed.xy), starts)
    found = adjust_starts(fixed, starts, body, settings, poses)
    K = found.R.shape[1]
    # Copies of the best mode are not worked out again: every mode takes its rows from `source`.
    copy = (found.R[:, :1] == found.R).flatten(2).all(-1)
    copy[:, 0] = False
    own, source = _distinct(copy)
    flat = take(_flat(found), own)
    repeated = take(fixed, own // K)
    errors = adjustment.plain_errors(repeated)
    # Of many frames the joints have just been triangulated, without bones.
    steps = (16, 2) if observations.xy.shape[1] >= MANY_FRAMES else (1, 0)
    flat, errors = adjustment.adjust(repeated, flat, body, *steps, errors)
    if observations.xy.shape[2] <= FEW_VIEWS:
        flat = turn_limbs(repeated, flat, body, errors)
        flat, errors = adjustment.adjust(repeated, flat, body, 6, 0, errors)

    # A joint with one view's keypoint left is on its ray, anywhere a bone allows: no Gaussian. And
    # the bones on both sides of it hold two joints no farther apart than both are long, which a
    # Gaussian takes for a distance where the limb is straight.
    _, weight = adjustment.misfits(flat, repeated, errors)
    observations = _without(_masked(observations, weight[source[:, 0]]))
    repeated = _without(_masked(repeated, weight[source[:, 0]][own // K]))
    flat, errors = adjustment.adjust(repeated, flat, body, 2, 0, errors)

    def common(scale2: Tensor) -> Tensor:
        """The least noise scale of a rig's modes, for all of them."""
        return scale2[source].amin(1)[own // K]

    errors = errors._replace(scale2=common(errors.scale2))
    flat, errors = fit_errors(repeated, flat, errors, body, frame_worth, correlated)
    # Modes compare only under one tempering and one prior of the biases: the best one's.
    first = source[:, 0][own // K]
    errors = errors._replace(frame_weight=errors.frame_weight[first], bias2=errors.bias2[first])
    # The adjustment counts three freedoms a joint; with bones it has fewer.
    errors = errors._replace(scale2=common(residual_scale2(repeated, flat, errors, body)))
    every = expand(repeated, flat, errors, body)
    chol, failed = _laplace(every)
    R, t, mean, value = _polish(every, chol, repeated, body)
    pose = -_strangeness(flat, poses, own // K)
    mass = (value + pose + chol.diagonal(dim1=-2, dim2=-1).log().sum(-1))[source]
    mass = mass.masked_fill(copy, -torch.inf)
    modes = Modes(R[source], t[source], mean[source], chol[source], mass, failed[source[:, 0]])
    return modes, Evidence(observations, body, take(every, source.flatten()), pose[source])


def adjust_starts(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: PosteriorConfig,
    poses: Poses | None = None,
) -> Bundle:
    """The best distinct optima (B, K, ...) that candidates (B, C, ...) lead to.

    A third of the iterations for every candidate, in a few of many frames; the rest for the best.
    """
    T = observations.xy.shape[1]
    few = torch.linspace(0, T - 1, min(T, FIRST_FRAMES)).round().long()
    bundle, first = starts, ADJUST_ITERATIONS // 3
    copy = torch.zeros(bundle.t.shape[:2], dtype=torch.bool, device=bundle.t.device)
    for count, iterations, wide, frames in (
        (max(KEPT_STARTS, settings.num_modes), first, first, few),
        (settings.num_modes, ADJUST_ITERATIONS - first, 2, torch.arange(T)),
    ):
        B, C = bundle.R.shape[:2]
        distinct, source = _distinct(copy)
        rig = distinct // C
        repeated = take(take(observations, rig), (slice(None), frames))
        flat = take(_flat(bundle), distinct)
        flat = flat._replace(joints=flat.joints[:, frames])
        flat, errors = adjustment.adjust(repeated, flat, body, iterations, wide)
        # All candidates of a rig are judged by the noise that the best of them leaves.
        at = reproject(flat.joints[None], repeated, flat.R[None], flat.t[None])
        scale2 = adjustment.median_scale2(at.chi2[0], repeated.inlier).clamp_min(1.0)
        errors = errors._replace(scale2=scale2[source].amin(1)[rig])
        cost = adjustment.robust_cost(flat, repeated, errors, body)
        seen = repeated.inlier > 0
        behind = (seen & (at.front[0] == 0)).sum((1, 2, 3)) / seen.sum((1, 2, 3)).clamp_min(1)
        cost = cost + 1e3 * behind + _strangeness(flat, poses, rig, frames)
        keep = _distinct_best(flat.R[source], cost[source], count)  # (B, K)
        rows = torch.arange(B, device=keep.device)[:, None]
        before = bundle.joints[rows, keep]  # (B, K, T, J, 3)
        bundle, copy = take(flat, source[rows, keep]), keep == keep[:, :1]
        copy[:, 0] = False
        # By now the cameras know more of each frame than the limbs that a start had turned over,
        # which bones hold where they are.
        if len(frames) < T or (T >= MANY_FRAMES and frames is not few):
            bundle = bundle._replace(joints=_triangulated(observations, bundle, before))
    return bundle


def _distinct(copy: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the candidates that are no copies of their rig's first, to be worked out once.

    Args:
        copy: (B, C) bool, False in the first column.

    Returns:
        Numbers (N,) of the distinct ones among all B C, and where each candidate's result is
        found among the N, (B, C).
    """
    own = (~copy).flatten().nonzero()[:, 0]  # (N,)
    source = (~copy).flatten().cumsum(0).view_as(copy) - 1
    return own, torch.where(copy, source[:, :1], source)


def _triangulated(observations: Observations, bundle: Bundle, before: Tensor) -> Tensor:
    """Joints (B, K, T, J, 3) mm from the images alone, under the cameras of bundles (B, K, ...);
    those that two views do not see lie about the person as they did before."""
    K = bundle.R.shape[1]
    cameras = _flat(bundle)[:2]
    joints = robust_joints(_repeat(observations, K), *cameras, iterations=4)[0].joints[0]
    middle = joints.nanmedian(2, keepdim=True).values  # NaN in a frame that nobody sees
    usual = middle.nanmedian(1, keepdim=True).values.nan_to_num(0.0)
    before = before.flatten(0, 1)
    before = torch.where(torch.isnan(middle), usual, middle) + before - before.mean(2, keepdim=True)
    # Rays that hardly cross put a joint anywhere.
    near = (joints - before).norm(dim=-1, keepdim=True) < MAX_SHIFT
    return torch.where(near, joints, before).unflatten(0, (-1, K))


def _strangeness(
    bundle: Bundle, poses: Poses | None, rows: Tensor, frames: Tensor | slice = slice(None)
) -> Tensor:
    """Negative log density (N,) of what the lifter saw, given the joints of bundles.

    A view of a frame has one say, heavy-tailed, however many joints it has: their errors go
    together. The distance to the camera is left out, which geometry knows better.
    """
    N = len(bundle.R)
    if poses is None:
        return bundle.t.new_zeros(N)
    J = poses.joints.shape[3]
    lifted, sigma = (value.to(bundle.t)[rows][:, frames] for value in poses)
    precision = sigma**-2
    total = precision.sum(-1, keepdim=True).clamp_min(1e-12)  # (N, T, V, 1), 0 = nothing seen
    camera = torch.einsum("nvac,ntjc->ntvja", bundle.R, bundle.joints[:, :, :J])
    share = (precision / total).unsqueeze(-1)
    away = camera - lifted
    away = away - (share * away).sum(-2, keepdim=True)
    chi2 = (precision * away.square().sum(-1)).sum(-1) / (3 * (precision > 0).sum(-1)).clamp_min(1)
    return POSE_TAIL * torch.log1p(chi2 / POSE_TAIL).sum((1, 2))


def _flat(bundle: Bundle) -> Bundle:
    return tree_map(lambda value: value.flatten(0, 1), bundle)


def _masked(observations: Observations, weight: Tensor) -> Observations:
    """Observations without the joints that fewer than two views see, by weights (B, T, V, J)."""
    keep = (weight.sum(2, keepdim=True) > MIN_VIEWS).to(weight)
    return observations._replace(
        information=observations.information * keep[..., None, None],
        inlier=observations.inlier * keep,
    )


def _without(observations: Observations) -> Observations:
    """Observations in which joints without a keypoint have no bones either."""
    return observations._replace(held=(observations.inlier > 0).any(2).to(observations.held))


def _laplace(at: Expansion) -> tuple[Tensor, Tensor]:
    """Factor (N, D + 1, D + 1) of the covariance of the coordinates, and failures (N,)."""
    N, D = at.information.shape[:2]
    eye = torch.eye(D, dtype=at.t.dtype, device=at.t.device)
    # Nothing is less certain than this; where the keypoints say less, that is reported.
    wide = torch.tensor([WIDE_ROTATION] * 3 + [WIDE_SHIFT] * 3, dtype=eye.dtype, device=eye.device)
    wide = torch.cat([wide.repeat(D // 6)[:-1], wide.new_tensor([WIDE_SIZE])])
    told = at.information * wide * wide[:, None]
    told = told.nan_to_num(0.0, 0.0, 0.0)
    failed = torch.linalg.eigvalsh(told)[:, 0] < 1.0
    covariance = torch.linalg.inv_ex(told + eye)[0] * wide * wide[:, None]
    chol, broken = laws.safe_cholesky(0.5 * (covariance + covariance.mT), torch.diag(wide))
    failed = failed | broken
    full = eye.new_zeros(N, D + 1, D + 1)
    full[:, :D, :D] = chol
    full[:, D, D] = noise_scale_sigma(at)
    return full * math.sqrt(INFLATION), failed


def noise_scale_sigma(at: Expansion) -> Tensor:
    """Standard deviation (B,) of the log noise scale, given the cameras."""
    return (2 * (at.errors.frame_weight * at.freedom + NOISE_PRIOR_COUNT)).rsqrt()


def _polish(
    at: Expansion, chol: Tensor, observations: Observations, body: BodyPrior, num_steps: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moves a mode from the optimum of the joint density to that of the marginal.

    Newton steps whose Hessian is the Laplace information; a step that does not raise the target is
    quartered. Over many frames the two optima differ by a few standard deviations.

    Returns:
        Cameras R (B, V, 3, 3) and t (B, V, 3), coordinates (B, D + 1), log density (B,) of them.
    """
    position = chol.new_zeros(chol.shape[:-1])
    length, value, slope = torch.ones_like(position[:, 0]), None, None
    for _ in range(num_steps + 1):
        trial = position if value is None else position + _newton(chol, slope) * length[:, None]
        with torch.enable_grad():
            trial = trial.detach().requires_grad_()
            R, t = cameras_of(trial, at)
            shape, size, volume = coordinates_of(R[None], t[None], at)
            new = log_density(shape, size, trial[None, :, -1], at, observations, body)[0]
            new = (new + volume)[0]
            new = new + (trial.shape[-1] - 2) * trial[:, -1]
            (gradient,) = torch.autograd.grad(new.sum(), trial)
        trial, new = trial.detach(), new.detach()
        if value is None:
            value, slope = new, gradient
            continue
        better = new > value
        position = torch.where(better[:, None], trial, position)
        slope = torch.where(better[:, None], gradient, slope)
        value = torch.where(better, new, value)
        length = torch.where(better, length, length / 4)
    return *cameras_of(position, at), position, value


def cameras_of(coordinates: Tensor, at: Expansion) -> tuple[Tensor, Tensor]:
    """Cameras of coordinates (..., B, D + 1)."""
    shape = coordinates[..., :-2] * coordinates[..., -1:].exp()
    return cameras_at(shape, coordinates[..., -2], at)


def _newton(chol: Tensor, slope: Tensor) -> Tensor:
    """Newton step (B, D + 1), at most ``MAX_POLISH`` standard deviations long."""
    whitened = (chol.mT @ slope.unsqueeze(-1)).squeeze(-1)
    whitened = whitened * (MAX_POLISH / whitened.norm(dim=-1, keepdim=True).clamp_min(MAX_POLISH))
    return (chol @ whitened.unsqueeze(-1)).squeeze(-1)


def _repeat(observations: Observations, count: int) -> Observations:
    """(B, ...) to (B * count, ...), each rig's copies side by side."""
    return tree_map(lambda value: value.repeat_interleave(count, dim=0), observations)


def _distinct_best(R: Tensor, cost: Tensor, count: int) -> Tensor:
    """Indices (B, K) of the cheapest candidates that are 3 deg or more apart from cheaper ones.

    Where fewer are distinct and worth a thought, the best repeats; copies have no mass.
    """
    cost = cost.nan_to_num(torch.inf)
    cost = torch.where(cost > cost.amin(1, keepdim=True) + HOPELESS, torch.inf, cost)
    chosen = [cost.argmin(1)]
    rows = torch.arange(R.shape[0], device=R.device)
    remaining = cost.clone()
    for _ in range(min(count, R.shape[1]) - 1):
        last = R[rows, chosen[-1]]  # (B, V, 3, 3)
        apart = rotation_angle(R @ last[:, None].transpose(-1, -2)).amax(-1)  # (B, C)
        remaining = torch.where(apart < math.radians(3.0), torch.inf, remaining)
        best = remaining.argmin(1)
        none_left = torch.isinf(remaining.amin(1))
        chosen.append(torch.where(none_left, chosen[0], best))
    return torch.stack(chosen, dim=1)
