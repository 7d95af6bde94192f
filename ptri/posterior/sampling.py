"""The rig posterior: a weighted distribution over the poses of the cameras.

The target is `ptri.posterior.density`'s: the cameras' posterior with joints, body and biases
integrated out, jointly with the scale of the noise. Bundle adjustment from several starts gives
modes with their Laplace covariance; samples come from a mixture of heavy-tailed laws around the
modes and are weighted by the deterministic mixture of all proposals so far, as in adaptive multiple
importance sampling (Cornuet et al. 2012; EPro-PnP, Chen et al. 2022, algorithm 1). Samples are
detached; weights and joints are differentiable in the keypoints, their covariances and their
confidences.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.posterior import student_t as laws
from ptri.posterior.body import BodyPrior
from ptri.posterior.density import log_density
from ptri.posterior.equations import Bundle
from ptri.posterior.expansion import coordinates_of
from ptri.posterior.modes import (
    INFLATION,
    Evidence,
    Modes,
    cameras_of,
    coordinates_around,
    find_modes,
)
from ptri.posterior.optima import Poses
from ptri.posterior.prior import Prior
from ptri.posterior.rows import ROW, pack
from ptri.posterior.widened import widened
from ptri.structures import (
    MANY_FRAMES,
    Observations,
    RigPosterior,
    Views,
    cat,
    take,
    to_device,
    tree_map,
)

# A mode whose log mass is this far below the best one's holds nothing worth a sample.
NEGLIGIBLE = 12.0
DEGREES_OF_FREEDOM = 20.0  # of the Student-t proposal
POINTS = 100_000  # keypoints times samples at once: more leave the caches of a CPU
LEAST_SHARE = 0.5  # of effective samples among all; less is the roughness of the target
NUM_HALVINGS = 10
MIN_SHARE = 0.05  # of the samples, for every other mode: its mass is known roughly only


def log_target(
    views: Views,
    evidence: Evidence,
    log_scale: Tensor | None = None,
    owner: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log posterior density of M camera hypotheses for each rig, and their joints.

    Args:
        views: (M, B, V, ...).
        log_scale: (M, B) log of the noise over that of the best mode; None: equal to it.
        owner: (M, B) the mode whose expansion serves each hypothesis; None: the one that says
            most, since the structure given the cameras is the most probable one.

    Returns:
        (M, B) log density up to a constant per rig, of keypoints, bones and the single views' poses
        (these as at the mode); joints (M, B, T, J, 3) mm. Differentiable in the observations.
    """
    (M, B), K = views.R.shape[:2], evidence.log_pose.shape[1]
    log_scale = views.R.new_zeros(M, B) if log_scale is None else log_scale
    hypotheses, device = (views, log_scale), log_scale.device
    if owner is None:  # every hypothesis under every mode
        at, rig = evidence.expansions, torch.arange(B, device=device).repeat_interleave(K)
        hypotheses = tree_map(lambda value: value[:, rig], hypotheses)
    else:
        rows = pack(owner, K)
        at, rig = take(evidence.expansions, rows.mode), rows.mode // K
        hypotheses = tree_map(lambda value: value.flatten(0, 1)[rows.sample], hypotheses)
    shape, size, _ = coordinates_of(hypotheses[0], at)
    observations = take(evidence.observations, rig)
    value, joints = log_density(shape, size, hypotheses[1], at, observations, evidence.body)
    if owner is not None:
        value, joints = (part.flatten(0, 1)[rows.place] for part in (value, joints))
        value, joints = value.view(M, B), joints.unflatten(0, (M, B))
        return value + evidence.log_pose.T.gather(0, owner), joints
    value, best = (value.unflatten(1, (B, K)) + evidence.log_pose).max(-1)
    mode = torch.arange(B, device=device) * K + best  # (M, B)
    return value, joints[torch.arange(M, device=device)[:, None], mode]


@torch.no_grad()
def sample(
    modes: Modes, evidence: Evidence, settings: PosteriorConfig, seed: int
) -> tuple[Views, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Adaptive multiple importance sampling.

    Returns:
        Cameras (M, B, V, ...), log noise scale (M, B), the mode (M, B) each was drawn around; and
        three log densities (M, B) at the samples, over one measure: the target, the deterministic
        mixture of all proposals, and Laplace's approximation to the target.
    """
    D = modes.mean.shape[-1]
    dtype, device = modes.mean.dtype, modes.mean.device
    generator = torch.Generator().manual_seed(seed)
    relative = modes.log_mass - modes.log_mass.amax(1, keepdim=True)
    alive = relative > -NEGLIGIBLE
    rough = _rough(evidence)
    shares = _normalised(torch.where(alive, relative.exp().clamp_min(MIN_SHARE), 0.0))  # (B, K)
    prior = proposal = laws.StudentT(modes.mean, modes.chol, DEGREES_OF_FREEDOM)
    laplace = prior._replace(chol=modes.chol / math.sqrt(INFLATION))
    mass = torch.log_softmax(modes.log_mass, dim=1)
    per_round = max(settings.num_samples // settings.num_iterations, 1)
    level = (torch.arange(per_round, dtype=dtype, device=device) + 0.5) / per_round
    rounds, proposals = [], []
    for iteration in range(settings.num_iterations):
        # 1 draw, the same noise for every rig; stratified in the mode of each sample
        noise = laws.standard_noise(per_round, D, DEGREES_OF_FREEDOM, generator, dtype)
        offsets = laws.student_t_sample(proposal, to_device(noise, device))  # (m, B, K, D)
        owner = (level[:, None, None] > shares.cumsum(1)[None, :, :-1]).sum(-1)  # (m, B)
        step = offsets.gather(2, owner[..., None, None].expand(-1, -1, 1, D)).squeeze(2)
        # 2 cameras, target, and coordinates around every mode
        views, target = _evaluate(step, owner, evidence, rough)
        x, volume = coordinates_around(views, step[..., -1], evidence.expansions)
        rounds.append((views, step[..., -1], owner, target, x, volume))
        proposals.append((proposal, shares))
        # 3 weights of all samples so far under the mixture of all proposals so far
        *drawn, x, volume = cat(rounds)
        mixture = torch.stack(
            [
                torch.logsumexp(laws.student_t_log_prob(law, x) - volume + part.log(), dim=-1)
                for law, part in proposals
            ]
        )
        log_mixture = torch.logsumexp(mixture, dim=0) - math.log(len(proposals))
        around = laws.student_t_log_prob(laplace, x) - volume + mass
        laplace_density = torch.logsumexp(around, dim=-1)
        log_weights = _weights(drawn[-1], laplace_density, log_mixture, evidence)
        # 4 the next proposal, by each mode's responsibility for each sample
        if iteration + 1 < settings.num_iterations:
            density = laws.student_t_log_prob(proposal, x) - volume + shares.log()
            owned = (log_weights[..., None] + torch.log_softmax(density, dim=-1)).exp()
            proposal = laws.student_t_fit(x, owned, prior, prior_samples=2.0 * D)
            shares = _normalised(torch.where(alive, owned.sum(0).clamp_min(MIN_SHARE / 2), 0.0))
    return *drawn, log_mixture, laplace_density


def _weights(target: Tensor, laplace: Tensor, mixture: Tensor, evidence: Evidence) -> Tensor:
    """Log-weights (M, B) of samples by log densities; one frame's target is smooth enough."""
    if evidence.observations.xy.shape[1] < MANY_FRAMES:
        return torch.log_softmax(target - mixture, dim=0)
    return tempered(target - mixture, laplace - mixture)


def tempered(exact: Tensor, laplace: Tensor) -> Tensor:
    """Log-weights (M, B) between those of the target and those of Laplace's approximation to it.

    ``laplace^(1 - beta) exact^beta``, beta as near to one as `LEAST_SHARE` of effective samples
    allows. Far from a mode the target is known roughly only, and over many frames that adds up to
    many nats: then a single sample would be the posterior.

    Args:
        exact, laplace: (M, B) log ratios of the densities to the proposals'.
    """
    possible = torch.isfinite(exact)
    laplace = laplace.masked_fill(~possible, -torch.inf)
    apart = torch.where(possible, exact - laplace, 0.0)  # not where both are infinite
    low, high = torch.zeros_like(apart[0]).detach(), torch.ones_like(apart[0]).detach()
    beta = high
    for _ in range(NUM_HALVINGS):
        few = _effective((laplace + beta * apart).detach()) < LEAST_SHARE * len(exact)
        low, high = torch.where(few, low, beta), torch.where(few, beta, high)
        beta = torch.where(low >= 1, low, 0.5 * (low + high))
    return torch.log_softmax(laplace + low * apart, dim=0)


def _effective(log_weights: Tensor) -> Tensor:
    return 1 / torch.softmax(log_weights, dim=0).square().sum(0)


def _normalised(shares: Tensor) -> Tensor:
    return shares / shares.sum(1, keepdim=True)


def _rough(evidence: Evidence) -> Evidence:
    """The evidence in single precision: enough for weights, and half the memory to move."""
    body = evidence.body.to(evidence.body.mean.device, torch.float32)
    observations, expansions = tree_map(
        lambda value: value.detach().float(), (evidence.observations, evidence.expansions)
    )
    return Evidence(observations, body, expansions, evidence.log_pose)


def _evaluate(
    step: Tensor, owner: Tensor, evidence: Evidence, rough: Evidence
) -> tuple[Views, Tensor]:
    """Cameras and target of coordinates (m, B, D + 1) around their modes (m, B)."""
    K, num_points = evidence.log_pose.shape[1], evidence.observations.inlier[0].numel()
    rows = pack(owner, K)
    packed = step.flatten(0, 1)[rows.sample]  # (ROW, N, D + 1)
    views = cameras_of(packed, take(evidence.expansions, rows.mode))
    shape, size = packed[..., :-2] * packed[..., -1:].exp(), packed[..., -2]
    coordinates = [part.float() for part in (shape, size, packed[..., -1])]
    values = []
    count = max(POINTS // (ROW * num_points), 1)
    for first in range(0, len(rows.mode), count):
        some = slice(first, first + count)
        mode = rows.mode[some]
        at, observations = take(rough.expansions, mode), take(rough.observations, mode // K)
        part = (value[:, some] for value in coordinates)
        values.append(log_density(*part, at, observations, rough.body)[0])
    views, value = tree_map(
        lambda part: part.flatten(0, 1)[rows.place].unflatten(0, owner.shape),
        (views, torch.cat(values, dim=1)),
    )
    # Cameras so far off that single precision overflows are impossible, not unknown.
    value = value.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return views, value.to(step) + evidence.log_pose.T.gather(0, owner)


class RigSolution(NamedTuple):
    """The posterior of B rigs and what it was computed from."""

    posterior: RigPosterior
    usual: Tensor  # (M, B, V, 3, 3) its rotations as they would be whatever the views disagree
    modes: Modes
    evidence: Evidence
    log_evidence: Tensor  # (B,) log normaliser of ``log_target``, differentiable
    log_scale: Tensor  # (B, M) log noise scale of the samples, over the best mode's
    owner: Tensor  # (B, M) mode of each sample


def rig_posterior(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: PosteriorConfig,
    seed: int = 0,
    poses: Poses | None = None,
    worth: float | None = None,
    prior: Prior | None = None,
) -> RigSolution:
    """Posterior of B rigs from T frames each.

    Args:
        observations: (B, T, V, J, ...), see `ptri.geometry.rays.normalise`.
        starts: (B, C, ...) candidate rigs with their joints, any scale within a few tenths.
        seed: of the Monte-Carlo noise, which all rigs of the batch share.
        poses: of single views; they weigh the modes against each other.
        worth: of an image, see `ptri.structures.Detector`.
        prior: of the cameras of every rig; None: K is exact, and nothing else known.

    Returns:
        The posterior, whose log-weights are differentiable in the observations, with the evidence
        that ``log_target`` takes.
    """
    modes, evidence = find_modes(observations, starts, body, settings, poses, worth, prior)
    views, log_scale, owner, target, log_mixture, laplace = sample(modes, evidence, settings, seed)
    if torch.is_grad_enabled() and any(value.requires_grad for value in observations[:3]):
        target = log_target(views, evidence, log_scale, owner)[0]
    ratio = target - log_mixture
    log_evidence = torch.logsumexp(ratio, dim=0) - math.log(len(ratio))
    log_weights = _weights(target, laplace, log_mixture, evidence)
    usual = views.R
    if worth != 1:
        given = views, log_scale, owner, log_weights, modes, evidence
        views, usual = widened(*given, poses, seed)
    R, t, log_focal = views
    posterior = RigPosterior(R, t, log_weights, _effective(log_weights.detach()), log_focal)
    return RigSolution(posterior, usual, modes, evidence, log_evidence, log_scale.T, owner.T)
