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
from ptri.posterior import student_t as laws
from ptri.posterior.adjust import NOISE_PRIOR_COUNT, adjust
from ptri.posterior.body import BodyPrior
from ptri.posterior.density import log_density
from ptri.posterior.equations import Bundle, misfits, plain_errors, priors
from ptri.posterior.expansion import Expansion, cameras_at, coordinates_of, expand, residual_scale2
from ptri.posterior.limbs import turn_limbs
from ptri.posterior.noise import fit_errors
from ptri.posterior.optima import Poses, adjust_starts, distinct_rows, flatten, strangeness
from ptri.posterior.prior import Prior
from ptri.posterior.tails import fit_tail
from ptri.posterior.width import Together, errors_together, joint_weights, widening
from ptri.structures import MANY_FRAMES, Observations, Views, constant, take, tree_map

MAX_POLISH = 8.0  # standard deviations a step
MIN_VIEWS = 1.5  # of a joint that counts, in responsibilities
FEW_VIEWS = 3  # up to so many may leave a limb's turn open
INFLATION = 1.8  # factor on the Laplace covariance, for the proposal
WIDE_ROTATION = 0.5  # rad, WIDE_SHIFT in mm: a camera nothing is known of, for the proposal only
WIDE_SHIFT = 2000.0
WIDE_SIZE = 0.5  # of the log size, and of log focal lengths
# By how much of their length real detectors draw a person's bones wrongly, all together: standard
# deviation that the size has beside what the bones' law says.
SIZE_SIGMA = 0.11


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


class FocalLengths(NamedTuple):
    """What keypoints say of the focal lengths of V views, K's prior aside."""

    log_focal: Tensor  # (..., F) over those of K; F = V, 0: K is exact
    covariance: Tensor  # (..., F, F)


class Modes(NamedTuple):
    """The K best local optima of each of B rigs, best first, and the law around each.

    Coordinates: the shape (D - 1) over the noise scale, which makes the two independent; the log
    size; the log noise scale.
    """

    views: Views  # (B, K, V, ...)
    mean: Tensor  # (B, K, D + 1)
    chol: Tensor  # (B, K, D + 1, D + 1) factor of the Laplace covariance
    log_mass: Tensor  # (B, K) log of the Laplace evidence, up to a constant per rig
    failed: Tensor  # (B,) bool, the best mode's information could not be factorised
    wider: Tensor  # (B, K, D, D) takes deviations of shape and size to those of errors together
    shift: Tensor  # (B, K, D) from their optimum to that with errors together; 0: K is exact
    told: FocalLengths  # (B, K, ...)
    together: Together  # (B * K, ...)


@torch.no_grad()
def find_modes(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: PosteriorConfig,
    poses: Poses | None = None,
    worth: float | None = None,
    prior: Prior | None = None,
) -> tuple[Modes, Evidence]:
    """Adjusts every start and keeps the best distinct optima.

    Args:
        observations: (B, T, V, J, ...), float64.
        starts: (B, C, ...) candidate cameras, joints and log lengths.
        worth: of an image, see `ptri.structures.Detector`.
        poses: tell modes apart that geometry cannot: people seen from behind, limbs turned over.
        prior: of the cameras of every rig; None: K is exact, and nothing else known.
    """
    T, V = observations.xy.shape[1:3]
    observations = _masked(observations, (observations.inlier > 0).to(observations.xy))
    fixed = tree_map(torch.detach, observations)
    body = body.to(fixed.xy.device, fixed.xy.dtype)
    starts = tree_map(lambda value: value.detach().to(fixed.xy), starts)
    if prior is not None and len(prior.focal) and not starts.log_focal.shape[-1]:
        starts = starts._replace(log_focal=starts.t.new_zeros(*starts.t.shape[:2], V))

    # 1 every start to its optimum, of which the best are kept. Copies of the best one are not
    # worked out again: N of the B K modes are, and every mode takes its rows from `source`.
    optima = adjust_starts(fixed, starts, body, settings, poses, prior)
    K = optima.R.shape[1]
    copy = (optima.R[:, :1] == optima.R).flatten(2).all(-1)
    copy[:, 0] = False
    distinct, source = distinct_rows(copy)
    rig = distinct // K  # (N,)
    best = source[:, 0]
    bundle, seen = take(flatten(optima), distinct), take(fixed, rig)

    # 2 to the end. Of many frames the joints have just been triangulated, without bones.
    steps = (16, 2) if T >= MANY_FRAMES else (1, 0)
    bundle, errors = adjust(seen, bundle, body, *steps, plain_errors(seen, prior))
    tail = fit_tail(misfits(bundle, seen, errors)[1], seen.inlier, errors.scale2)
    errors = errors._replace(tail=tail[best][rig])
    bundle, errors = adjust(seen, bundle, body, 2, 0, errors)
    if V <= FEW_VIEWS:
        bundle = turn_limbs(seen, bundle, body, errors)
        bundle, errors = adjust(seen, bundle, body, 6, 0, errors)

    # 3 without joints that have one view's keypoint left: such a joint is on its ray, anywhere a
    # bone allows, which is no Gaussian. And the bones on both sides of it hold two joints no
    # farther apart than both are long: to a Gaussian a distance, where the limb is straight.
    weight = misfits(bundle, seen, errors)[2][best]  # (B, T, V, J)
    observations = _without(_masked(observations, weight))
    seen = _without(_masked(seen, weight[rig]))
    bundle, errors = adjust(seen, bundle, body, 2, 0, errors)

    # 4 joints that err alike, as the best mode's do, count for less beside those that stand alone.
    weights = None
    if worth != 1:
        top = take((seen, bundle, errors), best)
        share = errors_together(*top, body, worth).joints
        weights = joint_weights(top[0], top[1].joints, share)
        observations, weights = _weighed(observations, weights), weights[rig]
        seen = _weighed(seen, weights)
        bundle, errors = adjust(seen, bundle, body, 4, 0, errors)

    # 5 how the keypoints err. Modes compare only under one noise scale, the least, and under one
    # prior of the biases and one tail, the best one's.
    def least(scale2: Tensor) -> Tensor:
        return scale2[source].amin(1)[rig]

    errors = errors._replace(scale2=least(errors.scale2))
    bundle, errors = fit_errors(seen, bundle, errors, body)
    bias2, tail = (value[best][rig] for value in (errors.bias2, errors.tail))
    errors = errors._replace(bias2=bias2, tail=tail)
    # The adjustment counts three freedoms a joint; with bones it has fewer.
    errors = errors._replace(scale2=least(residual_scale2(seen, bundle, errors, body)))

    # 6 the joint density expanded, and the cameras' Laplace covariance; from the optimum of the
    # joint density to that of the marginal
    expansions = expand(seen, bundle, errors, body)
    chol, failed = _laplace(expansions)
    views, mean, value = _polish(expansions, chol, seen, body)

    # 7 how much wider than their likelihood the cameras are. What Laplace's approximation makes of
    # joints adds up over frames, and where focal lengths are hardly known it moves them by more
    # than that: there the optimum of the joint density is nearer to the truth (rig_posterior.md),
    # and by that step both are doubted.
    together = errors_together(seen, bundle, errors, body, worth, weights)
    shift, told = torch.zeros_like(expansions.information[:, 0]), _nothing(bundle.log_focal)
    if worth == 1:
        like = together.excess
        eye = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        wider = eye.expand_as(like)
    else:
        excess = expansions.chart.mT @ together.excess @ expansions.chart
        size = expansions.information[:, -1] * (SIZE_SIGMA * together.joints.sqrt())[:, None]
        excess = excess + size.unsqueeze(2) * size.unsqueeze(1)
        if bundle.log_focal.shape[1]:
            step = (expansions.information @ mean[:, :-1, None]).squeeze(-1)
            excess = excess + step.unsqueeze(2) * step.unsqueeze(1)
        if prior is not None:
            known = (part[..., : bundle.num_cameras] for part in priors(bundle, errors, body))
            excess, shift, told = _within(excess, expansions, bundle.log_focal, *known)
        if bundle.log_focal.shape[1]:
            shift[:, :-1] -= mean[:, :-2]
        wider = widening(expansions.information, excess, _widest(expansions) ** -2)

    pose = -strangeness(bundle, poses, rig)
    mass = (value + pose + chol.diagonal(dim1=-2, dim2=-1).log().sum(-1))[source]
    mass = mass.masked_fill(copy, -torch.inf)
    modes = Modes(
        take(views, source),
        mean[source],
        chol[source],
        mass,
        failed[best],
        wider[source],
        shift[source],
        take(told, source),
        take(together, source.flatten()),
    )
    return modes, Evidence(observations, body, take(expansions, source.flatten()), pose[source])


def _masked(observations: Observations, weight: Tensor) -> Observations:
    """Observations without the joints that fewer than two views see, by weights (B, T, V, J)."""
    keep = (weight.sum(2, keepdim=True) > MIN_VIEWS).to(weight)
    return observations._replace(
        information=observations.information * keep[..., None, None],
        inlier=observations.inlier * keep,
    )


def _weighed(observations: Observations, weights: Tensor) -> Observations:
    """Observations of N rigs whose joints' information is multiplied by (N, J)."""
    weights = weights[:, None, None, :, None, None]
    return observations._replace(information=observations.information * weights)


def _without(observations: Observations) -> Observations:
    """Observations in which joints without a keypoint have no bones either."""
    return observations._replace(held=(observations.inlier > 0).any(2).to(observations.held))


def _laplace(at: Expansion) -> tuple[Tensor, Tensor]:
    """Factor (N, D + 1, D + 1) of the covariance of the coordinates, and failures (N,)."""
    N, D = at.information.shape[:2]
    eye = torch.eye(D, dtype=at.t.dtype, device=at.t.device)
    # Nothing is less certain than this; where the keypoints say less, that is reported.
    wide = _widest(at)
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


def _widest(at: Expansion) -> Tensor:
    """Standard deviations (D,) of shape and log size beyond which nothing is uncertain."""
    focal = (WIDE_SIZE,) * at.log_focal.shape[1]
    wide = ((WIDE_ROTATION,) * 3 + (WIDE_SHIFT,) * 3) * (at.t.shape[1] - 1)
    return constant((*focal, *wide[:-1], WIDE_SIZE), at.t.device, at.t.dtype)


def _within(
    excess: Tensor, at: Expansion, log_focal: Tensor, prior: Tensor, pull: Tensor
) -> tuple[Tensor, Tensor, FocalLengths]:
    """Excess variance (N, D, D) of the score with which the cameras' prior counts in full, the
    shift (N, D) of the most probable cameras that this makes, and what the keypoints say of focal
    lengths without that prior.

    Keypoints that err together tell ``G = A (A + E)^-1 A`` (Godambe), with A without the prior P;
    the cameras' covariance is ``(G + P)^-1``. Their optimum z is that of A and P: without P it is
    ``A^-1 P z`` away, and from there G and P lead back by more.

    Args:
        prior, pull: information (N, ..., D) and gradient (N, D) of the prior at the optimum.
    """
    F, wide = at.log_focal.shape[1], _widest(at)
    scale = wide * wide[:, None]
    prior = at.chart.mT @ prior[:, : len(wide)] @ at.chart
    whole, prior, excess = (value * scale for value in (at.information, prior, excess))
    pull = at.chart.mT @ pull.unsqueeze(-1) * wide.unsqueeze(-1)
    eye = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    data = whole - prior
    told = data @ torch.linalg.inv_ex(data + excess + eye)[0] @ data
    covariance = torch.linalg.inv_ex(told + prior + eye)[0]
    beside = excess @ torch.linalg.solve_ex(data + excess + eye, pull)[0]
    shift = -(covariance @ beside).squeeze(-1) * wide
    away = torch.linalg.solve_ex(data + eye, pull)[0].squeeze(-1) * wide
    alone = torch.linalg.inv_ex(told + eye)[0] * scale
    focal = FocalLengths(log_focal + away[:, :F], alone[:, :F, :F])
    return (whole @ covariance @ whole - whole) / scale, shift, focal


def _nothing(log_focal: Tensor) -> FocalLengths:
    """Where nothing is said of focal lengths (N, F): the covariance is infinite."""
    infinite = torch.full_like(log_focal, torch.inf)
    return FocalLengths(log_focal, torch.diag_embed(infinite))


def noise_scale_sigma(at: Expansion) -> Tensor:
    """Standard deviation (B,) of the log noise scale, given the cameras."""
    return (2 * (at.freedom + NOISE_PRIOR_COUNT)).rsqrt()


def _polish(
    at: Expansion, chol: Tensor, observations: Observations, body: BodyPrior, num_steps: int = 10
) -> tuple[Views, Tensor, Tensor]:
    """Moves a mode from the optimum of the joint density to that of the marginal.

    Newton steps whose Hessian is the Laplace information; a step that does not raise the target is
    quartered. Over many frames the two optima differ by a few standard deviations.

    Returns:
        Cameras (B, V, ...), coordinates (B, D + 1), log density (B,) of them.
    """
    position = chol.new_zeros(chol.shape[:-1])
    length, value, slope = torch.ones_like(position[:, 0]), None, None
    for _ in range(num_steps + 1):
        trial = position if value is None else position + _newton(chol, slope) * length[:, None]
        with torch.enable_grad():
            trial = trial.detach().requires_grad_()
            views = cameras_of(trial, at)
            shape, size, volume = coordinates_of(take(views, None), at)
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
    return cameras_of(position, at), position, value


def cameras_of(coordinates: Tensor, at: Expansion) -> Views:
    """Cameras of coordinates (..., B, D + 1)."""
    shape = coordinates[..., :-2] * coordinates[..., -1:].exp()
    return cameras_at(shape, coordinates[..., -2], at)


def coordinates_around(
    views: Views, log_scale: Tensor, expansions: Expansion
) -> tuple[Tensor, Tensor]:
    """Coordinates (m, B, K, D + 1) around every mode, and the log of their volume (m, B, K)."""
    B = log_scale.shape[1]
    K = len(expansions.t) // B
    views, scale = tree_map(lambda v: v.repeat_interleave(K, dim=1), (views, log_scale))
    shape, size, volume = coordinates_of(views, expansions)
    x = torch.cat([shape * (-scale).exp().unsqueeze(-1), torch.stack([size, scale], -1)], dim=-1)
    volume = volume + shape.shape[-1] * scale
    return x.unflatten(1, (B, K)), volume.unflatten(1, (B, K))


def _newton(chol: Tensor, slope: Tensor) -> Tensor:
    """Newton step (B, D + 1), at most ``MAX_POLISH`` standard deviations long."""
    whitened = (chol.mT @ slope.unsqueeze(-1)).squeeze(-1)
    whitened = whitened * (MAX_POLISH / whitened.norm(dim=-1, keepdim=True).clamp_min(MAX_POLISH))
    return (chol @ whitened.unsqueeze(-1)).squeeze(-1)
