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
from ptri.geometry.rotations import rotation_mean, so3_log
from ptri.posterior import student_t as laws
from ptri.posterior.agreement import agreement
from ptri.posterior.body import BodyPrior
from ptri.posterior.density import log_density
from ptri.posterior.equations import Bundle
from ptri.posterior.expansion import Expansion, coordinates_of
from ptri.posterior.modes import (
    INFLATION,
    Evidence,
    Modes,
    cameras_of,
    find_modes,
)
from ptri.posterior.optima import Poses
from ptri.structures import (
    MANY_FRAMES,
    Cameras,
    Observations,
    RigPosterior,
    take,
    to_device,
    tree_map,
)

# A mode whose log mass is this far below the best one's holds nothing worth a sample.
NEGLIGIBLE = 12.0
DEGREES_OF_FREEDOM = 20.0  # of the Student-t proposal
ROW = 32  # samples of a mode that are worked out at once
POINTS = 100_000  # keypoints times samples at once: more leave the caches of a CPU
WIDTH_FREEDOM = 3  # degrees of freedom of how much wider errors that go together make regions
# Their variance is this share of what is known before, where the views agree, and so many times
# the square of how far they turn against the others, over what is stated.
WIDTH_SHARE, WIDTH_TURNED = 0.3, 2.5
LEAST_SHARE = 0.5  # of effective samples among all; less is the roughness of the target
NUM_HALVINGS = 10
MIN_SHARE = 0.05  # of the samples, for every other mode: its mass is known roughly only


class _Rows(NamedTuple):
    """Samples of B rigs, packed into N rows of ``ROW`` that share a mode."""

    sample: Tensor  # (ROW, N) numbers of the samples among all M B
    mode: Tensor  # (N,) number of the row's mode among all B K
    place: Tensor  # (M B,) where each sample is in (ROW, N), flat


def _pack(owner: Tensor, num_modes: int) -> _Rows:
    """Packs samples by the mode (M, B) that each belongs to; the last of a mode fill its row."""
    B = owner.shape[1]
    mode = (torch.arange(B, device=owner.device) * num_modes + owner).flatten()  # (M B,)
    order = mode.argsort(stable=True)
    # Not bincount: it asks the GPU for the largest number. How many rows there are must be asked.
    count = torch.zeros(B * num_modes, dtype=torch.int64, device=owner.device)
    count = count.scatter_add(0, mode, torch.ones_like(mode))
    rows = (count + ROW - 1) // ROW
    numbers, num_rows = torch.arange(len(rows), device=owner.device), int(rows.sum())
    row_mode = numbers.repeat_interleave(rows, output_size=num_rows)  # (N,)
    row = torch.arange(len(row_mode), device=owner.device) - (rows.cumsum(0) - rows)[row_mode]
    inside = row * ROW + torch.arange(ROW, device=owner.device)[:, None]  # (ROW, N)
    inside = torch.minimum(inside, count[row_mode] - 1)
    sample = order[(count.cumsum(0) - count)[row_mode] + inside]
    place = torch.empty_like(order)
    place[sample.flatten()] = torch.arange(sample.numel(), device=owner.device)
    return _Rows(sample, row_mode, place)


def log_target(
    R: Tensor,
    t: Tensor,
    evidence: Evidence,
    log_scale: Tensor | None = None,
    owner: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log posterior density of M camera hypotheses for each rig, and their joints.

    Args:
        R, t: (M, B, V, 3, 3), (M, B, V, 3) mm.
        log_scale: (M, B) log of the noise over that of the best mode; None: equal to it.
        owner: (M, B) the mode whose expansion serves each hypothesis; None: the one that says
            most, since the structure given the cameras is the most probable one.

    Returns:
        (M, B) log density up to a constant per rig, of keypoints, bones and the single views' poses
        (these as at the mode); joints (M, B, T, J, 3) mm. Differentiable in the observations.
    """
    (M, B), K = R.shape[:2], evidence.log_pose.shape[1]
    log_scale = R.new_zeros(M, B) if log_scale is None else log_scale
    hypotheses = (R, t, log_scale)
    if owner is None:  # every hypothesis under every mode
        at, rig = evidence.expansions, torch.arange(B, device=R.device).repeat_interleave(K)
        hypotheses = tree_map(lambda value: value[:, rig], hypotheses)
    else:
        rows = _pack(owner, K)
        at, rig = take(evidence.expansions, rows.mode), rows.mode // K
        hypotheses = tree_map(lambda value: value.flatten(0, 1)[rows.sample], hypotheses)
    shape, size, _ = coordinates_of(*hypotheses[:2], at)
    observations = take(evidence.observations, rig)
    value, joints = log_density(shape, size, hypotheses[2], at, observations, evidence.body)
    if owner is not None:
        value, joints = (part.flatten(0, 1)[rows.place] for part in (value, joints))
        value, joints = value.view(M, B), joints.unflatten(0, (M, B))
        return value + evidence.log_pose.T.gather(0, owner), joints
    value, best = (value.unflatten(1, (B, K)) + evidence.log_pose).max(-1)
    mode = torch.arange(B, device=R.device) * K + best  # (M, B)
    return value, joints[torch.arange(M, device=R.device)[:, None], mode]


@torch.no_grad()
def sample(
    modes: Modes, evidence: Evidence, settings: PosteriorConfig, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Adaptive multiple importance sampling.

    Returns:
        R (M, B, V, 3, 3), t (M, B, V, 3), log noise scale (M, B), the mode (M, B) each was drawn
        around; and three log densities (M, B) at the samples, over one measure: the target, the
        deterministic mixture of all proposals, and Laplace's approximation to the target.
    """
    D = modes.mean.shape[-1]
    dtype, device = modes.R.dtype, modes.R.device
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
        R, t, target = _evaluate(step, owner, evidence, rough)
        x, volume = _coordinates(R, t, step[..., -1], evidence.expansions)
        rounds.append((R, t, step[..., -1], owner, target, x, volume))
        proposals.append((proposal, shares))
        # 3 weights of all samples so far under the mixture of all proposals so far
        *drawn, x, volume = (torch.cat(parts) for parts in zip(*rounds))
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


def _coordinates(
    R: Tensor, t: Tensor, log_scale: Tensor, expansions: Expansion
) -> tuple[Tensor, Tensor]:
    """Coordinates (m, B, K, D + 1) around every mode, and the log of their volume (m, B, K)."""
    B = log_scale.shape[1]
    K = len(expansions.t) // B
    R, t, scale = (value.repeat_interleave(K, dim=1) for value in (R, t, log_scale))
    shape, size, volume = coordinates_of(R, t, expansions)
    x = torch.cat([shape * (-scale).exp().unsqueeze(-1), torch.stack([size, scale], -1)], dim=-1)
    volume = volume + shape.shape[-1] * scale
    return x.unflatten(1, (B, K)), volume.unflatten(1, (B, K))


def _rough(evidence: Evidence) -> Evidence:
    """The evidence in single precision: enough for weights, and half the memory to move."""
    body = evidence.body.to(evidence.body.mean.device, torch.float32)
    observations, expansions = tree_map(
        lambda value: value.detach().float(), (evidence.observations, evidence.expansions)
    )
    return Evidence(observations, body, expansions, evidence.log_pose)


def _evaluate(
    step: Tensor, owner: Tensor, evidence: Evidence, rough: Evidence
) -> tuple[Tensor, Tensor, Tensor]:
    """Cameras and target of coordinates (m, B, D + 1) around their modes (m, B)."""
    K, num_points = evidence.log_pose.shape[1], evidence.observations.inlier[0].numel()
    rows = _pack(owner, K)
    packed = step.flatten(0, 1)[rows.sample]  # (ROW, N, D + 1)
    R, t = cameras_of(packed, take(evidence.expansions, rows.mode))
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
    R, t, value = (
        part.flatten(0, 1)[rows.place].unflatten(0, owner.shape)
        for part in (R, t, torch.cat(values, dim=1))
    )
    # Cameras so far off that single precision overflows are impossible, not unknown.
    value = value.nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    return R, t, value.to(step) + evidence.log_pose.T.gather(0, owner)


class RigSolution(NamedTuple):
    """The posterior of B rigs and what it was computed from."""

    posterior: RigPosterior
    modes: Modes
    evidence: Evidence
    log_evidence: Tensor  # (B,) log normaliser of ``log_target``, differentiable
    spread2: Tensor  # (B,) factor on the variance of errors that go together, as views disagree
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
) -> RigSolution:
    """Posterior of B rigs from T frames each.

    Args:
        observations: (B, T, V, J, ...), see `ptri.geometry.rays.normalise`.
        starts: (B, C, ...) candidate rigs with their joints, any scale within a few tenths.
        seed: of the Monte-Carlo noise, which all rigs of the batch share.
        poses: of single views; they weigh the modes against each other.
        worth: of an image, see `ptri.structures.Detector`.

    Returns:
        The posterior, whose log-weights are differentiable in the observations, with the evidence
        that ``log_target`` takes.
    """
    modes, evidence = find_modes(observations, starts, body, settings, poses, worth)
    R, t, log_scale, owner, target, log_mixture, laplace = sample(modes, evidence, settings, seed)
    if torch.is_grad_enabled() and any(value.requires_grad for value in observations[:3]):
        target = log_target(R, t, evidence, log_scale, owner)[0]
    ratio = target - log_mixture
    log_evidence = torch.logsumexp(ratio, dim=0) - math.log(len(ratio))
    log_weights = _weights(target, laplace, log_mixture, evidence)
    spread2 = torch.ones_like(log_evidence)
    if worth != 1:
        given = R, t, log_scale, owner, log_weights, modes, evidence
        R, t, spread2 = widened(*given, poses, seed)
    posterior = RigPosterior(R, t, log_weights, _effective(log_weights.detach()))
    return RigSolution(posterior, modes, evidence, log_evidence, spread2, log_scale.T, owner.T)


@torch.no_grad()
def widened(
    R: Tensor,
    t: Tensor,
    log_scale: Tensor,
    owner: Tensor,
    log_weights: Tensor,
    modes: Modes,
    evidence: Evidence,
    poses: Poses | None,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples (M, B, ...) moved away from their mode's mean as errors that go together ask for.

    How much wider is known roughly: what the moves add is scaled by the square root of an inverse
    chi-square, one for each sample, about what the views' disagreement says (`disagreement2`).
    The mean stays.

    Returns:
        R, t, and the square (B,) of what the moves were scaled by.
    """
    (M, B), K = log_scale.shape, modes.log_mass.shape[1]
    rig = torch.arange(B, device=owner.device)
    x, _ = _coordinates(R, t, log_scale, evidence.expansions)  # (M, B, K, D + 1)
    x = x.gather(2, owner[..., None, None].expand(-1, -1, 1, x.shape[-1])).squeeze(2)
    own = torch.nn.functional.one_hot(owner, K) * log_weights.exp().unsqueeze(-1)  # (M, B, K)
    own = own / own.sum(0).clamp_min(1e-30)  # guards a mode without samples
    mode = (rig, owner)  # (M, B)

    def middle(value: Tensor) -> Tensor:
        return torch.einsum("mbk,mbd->bkd", own, value)[mode]

    shape = x[..., :-1]
    away = shape - middle(shape)
    further = (modes.wider[mode] @ away.unsqueeze(-1)).squeeze(-1) - away
    rows = _pack(owner, K)
    expansions = take(evidence.expansions, rows.mode)

    def cameras(further: Tensor) -> tuple[Tensor, Tensor]:
        moved = shape + further - middle(further)
        # In its log the size's mean stays; of the size itself it would grow with the width.
        grown = middle(moved[..., -1:].exp()) / middle(shape[..., -1:].exp()).clamp_min(1e-30)
        size = moved[..., -1:] - grown.clamp_min(1e-30).log()
        packed = torch.cat([moved[..., :-1], size, x[..., -1:]], dim=-1)
        found = cameras_of(packed.flatten(0, 1)[rows.sample], expansions)
        return tuple(part.flatten(0, 1)[rows.place].unflatten(0, (M, B)) for part in found)

    spread2 = disagreement2(*cameras(further), log_weights, evidence, poses)
    generator = torch.Generator().manual_seed(seed + 1)  # not the numbers the samples have
    chi2 = torch.randn(M, WIDTH_FREEDOM, generator=generator, dtype=x.dtype).square().sum(1)
    factor = to_device((WIDTH_FREEDOM / chi2).sqrt(), x.device)[:, None, None]
    scale = spread2.sqrt()[:, None].expand(-1, further.shape[-1]).clone()
    scale[:, -1] = 1.0  # of the size views cannot disagree
    return *cameras(factor * scale * further), spread2


def disagreement2(
    R: Tensor, t: Tensor, log_weights: Tensor, evidence: Evidence, poses: Poses | None
) -> Tensor:
    """Factor (B,) on the variance that was added to cameras (M, B, V, ...), by how views disagree.

    A view that is fitted to what the others know turns (`ptri.posterior.agreement`) by a part of
    what it may be turned against them.
    """
    posterior = RigPosterior(R, t, log_weights, log_weights[0])
    mean, place = posterior_mean(posterior)
    at = evidence.observations, mean, place, evidence.joints.nan_to_num(), evidence.weight
    agreed = agreement(*at, poses, evidence.scale2)
    if agreed is None:
        return torch.ones_like(place[:, 0, 0])
    w = so3_log(mean.mT @ R)
    V = w.shape[2]
    w = (w - w.mean(2, keepdim=True)) * (V / (V - 1))  # against the mean of the others
    stated2 = torch.einsum("mb,mbvi->bv", log_weights.exp(), w.square())
    # (1e-6 rad)^2 guards samples that all agree to rounding.
    ratio2 = agreed.turned.square() / stated2.clamp_min(1e-12)
    return WIDTH_SHARE + WIDTH_TURNED * ratio2.nanmean(1).nan_to_num(1.0)


def posterior_mean(posterior: RigPosterior) -> tuple[Tensor, Tensor]:
    """Mean rotation (B, V, 3, 3) and translation (B, V, 3) mm of the cameras."""
    weights = posterior.log_weights.exp()
    R = rotation_mean(posterior.R, weights[..., None].expand(posterior.R.shape[:-2]))
    return R, torch.einsum("mb,mbvc->bvc", weights, posterior.t)


def rotation_covariance(posterior: RigPosterior) -> Tensor:
    """Covariance (B, V, 3, 3) rad^2 in the tangent space at the mean, ``R = mean exp(w)``."""
    R, _ = posterior_mean(posterior)
    w = so3_log(R.transpose(-1, -2) @ posterior.R)  # (M, B, V, 3)
    return torch.einsum("mb,mbvi,mbvj->bvij", posterior.log_weights.exp(), w, w)


def posterior_from_cameras(cameras: Cameras) -> RigPosterior:
    """The posterior of known cameras: one sample of weight one. Extrinsics (B, V, ...)."""
    B = cameras.R.shape[0]
    one = cameras.R.new_ones(B)
    return RigPosterior(cameras.R[None], cameras.t[None], one[None] * 0, one)


def resample(posterior: RigPosterior, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic resampling to ``count`` samples, and their differentiable log-weights.

    Samples are drawn in order of the rig's size, its widest direction: few then have the
    posterior's mean size, within its spread over ``count`` and not over the square root.

    Returns:
        R (count, B, V, 3, 3), t (count, B, V, 3), log-weights (count, B): equal in value, with the
        gradient of the weights of the samples they stand for.
    """
    M, B = posterior.log_weights.shape
    count = min(count, M)
    with torch.no_grad():
        order = posterior.t.norm(dim=-1).sum(-1).argsort(0)  # (M, B)
        weights = posterior.log_weights.gather(0, order).exp()
        cumulative = weights.cumsum(0).T.contiguous()  # (B, M)
        level = (torch.arange(count, device=cumulative.device) + 0.5) / count
        level = level.to(cumulative).expand(B, count).contiguous()
        index = torch.searchsorted(cumulative, level).clamp_max(M - 1).T  # (count, B)
        index = order.gather(0, index)
    rows = torch.arange(B, device=index.device).expand(count, B)
    chosen = posterior.log_weights[index, rows]
    log_weights = torch.log_softmax(chosen - chosen.detach(), dim=0)
    return posterior.R[index, rows], posterior.t[index, rows], log_weights
