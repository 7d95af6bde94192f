"""The rig posterior: a weighted distribution over the poses of the cameras.

Target. For cameras theta, the joints are integrated out. With a Gaussian approximation of each
joint's likelihood around its triangulated point X (covariance C_X), a scale-free prior on where
people stand, and Gaussian log bone lengths,

    log p(theta | u) = sum log[c exp(-chi2 / 2) + (1 - c) k]      robust reprojection at X
                     + 1/2 sum log det C_X                        Laplace term of each joint
                     - 3 sum log(bone length or distance)         scale-free structure prior
                     + log N(bone lengths; body prior)            marginal over the body
                     - 3 sum log(distance of each camera)         scale-free camera prior

over the Haar measure of the rotations and the Lebesgue measure of the translations. The powers of
the lengths cancel the growth of the Laplace term with scale, so only the bones decide the scale.

Sampling. Bundle adjustment from several starts gives modes with their Laplace covariance; samples
come from a mixture of heavy-tailed laws around the modes and are weighted by the deterministic
mixture of all proposals so far, as in adaptive multiple importance sampling (Cornuet et al. 2012;
EPro-PnP, Chen et al. 2022, algorithm 1). Samples are detached; weights and joints are
differentiable in the keypoints, their covariances and their confidences.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri import distributions as laws
from ptri.geometry import bundle as adjustment
from ptri.geometry.body import BodyPrior, bone_vectors
from ptri.geometry.bundle import Bundle, Observations
from ptri.geometry.cameras import MIN_DEPTH, pixel_to_normalised
from ptri.geometry.rotations import (
    log_haar_density,
    rotation_angle,
    rotation_mean,
    so3_log,
)
from ptri.geometry.triangulation import ray_moments, symmetric_to_matrix, triangulate
from ptri.structures import Cameras, Keypoints, RigPosterior

MIN_LENGTH = 1.0  # mm, guards logarithms of lengths
# Standard deviation (mm) of a joint around its place at the best mode: keeps joints that fewer than
# two views see finite, and is far wider than the posterior of any other.
ANCHOR_SIGMA = 1000.0
MAX_SIGMA = 400.0  # mm; a joint less certain than this at the best mode takes no part


class Settings(NamedTuple):
    """What an experimenter changes; see ``PosteriorConfig`` for meanings and units."""

    num_samples: int = 512
    num_iterations: int = 4
    num_modes: int = 2
    adjust_iterations: int = 16
    df: float = 8.0
    inflation: float = 1.1
    outlier_chi2: float = 12.0
    frame_correlation: float = -1.0
    max_rotation_std_deg: float = 8.0


class Evidence(NamedTuple):
    """Everything the target needs beside the cameras: observations, one expansion point a rig."""

    observations: Observations  # (B, T, V, J, ...)
    joints: Tensor  # (B, T, J, 3) mm, structure at the best mode
    depth: Tensor  # (B, T, V, J) mm, of the joints at the best mode
    weight: Tensor  # (B, T, V, J) responsibility of the inlier at the best mode
    scale2: Tensor  # (B,) squared noise scale
    observed: Tensor  # (B, T, J) 1 where the views fix the joint, else 0: it takes no part
    frame_weight: Tensor  # (B,) independent frames that one frame is worth
    body: BodyPrior


class Modes(NamedTuple):
    """The K best local optima of each of B rigs, best first."""

    R: Tensor  # (B, K, V, 3, 3)
    t: Tensor  # (B, K, V, 3) mm
    centre: Tensor  # (B, K, V, 3) mm, pivots of the tangent space
    chol: Tensor  # (B, K, D, D) factor of the Laplace covariance
    log_mass: Tensor  # (B, K) log of the Laplace evidence, up to a constant per rig
    failed: Tensor  # (B,) bool, the best mode's information could not be factorised


def normalise(keypoints: Keypoints, K: Tensor, outlier_chi2: float = 12.0) -> Observations:
    """Keypoints in pixels to observations in normalised coordinates.

    Args:
        keypoints: (B, T, V, J, ...) px; NaN xy = not seen.
        K: (B, T, V, 3, 3) px, zero skew.
        outlier_chi2: squared Mahalanobis distance at which an outlier of prior probability one
            half becomes the better explanation.

    Raises:
        ValueError: a covariance or confidence of a seen point is not finite.
    """
    seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)
    xy = torch.where(seen[..., None], keypoints.xy, torch.zeros_like(keypoints.xy))
    a, b, c = (
        keypoints.covariance[..., 0, 0],
        keypoints.covariance[..., 0, 1],
        keypoints.covariance[..., 1, 1],
    )
    determinant = a * c - b * b
    usable = (determinant > 0) & torch.isfinite(determinant) & torch.isfinite(keypoints.confidence)
    if bool((seen & ~usable).any()):
        raise ValueError("keypoints: a covariance is not positive definite or a value not finite")
    one = torch.ones_like(a)
    determinant = torch.where(seen, determinant, one)
    information = torch.stack([c, -b, -b, a], dim=-1) / determinant[..., None]
    focal = K.diagonal(dim1=-2, dim2=-1)[..., None, :2]  # (B, T, V, 1, 2)
    information = information.unflatten(-1, (2, 2)) * (focal.unsqueeze(-1) * focal.unsqueeze(-2))
    information = torch.where(seen[..., None, None], information, torch.zeros_like(information))
    normalised = torch.where(seen[..., None], pixel_to_normalised(xy, K), torch.zeros_like(xy))
    inlier = torch.where(seen, keypoints.confidence, torch.zeros_like(keypoints.confidence))
    return Observations(normalised, information, inlier, -0.5 * outlier_chi2)


def log_target(R: Tensor, t: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor, Tensor]:
    """Log posterior density of M camera hypotheses for each rig, and their joints.

    Args:
        R, t: (M, B, V, 3, 3), (M, B, V, 3) mm.

    Returns:
        (M, B) log density up to a constant per rig; joints (M, B, T, J, 3) mm with their
        covariance entries (6, M, B, T, J) mm^2. Differentiable in the observations and cameras.
    """
    observations = evidence.observations
    B, T, V, J, _ = observations.xy.shape
    noise = evidence.scale2[:, None, None, None]
    information = observations.information / noise[..., None, None]
    weighted = information * (evidence.weight / evidence.depth**2)[..., None, None]
    moments = ray_moments(observations.xy, weighted)  # (B, T, V, J, 6)
    moments = moments.permute(0, 1, 3, 2, 4).reshape(B, T * J, V, 6)
    anchor = evidence.joints.reshape(B, T * J, 3)
    points, covariance, log_det = triangulate(moments, R, t, anchor, ANCHOR_SIGMA**-2)

    # Reprojection at the triangulated points.
    camera = R @ points.transpose(-1, -2).unsqueeze(2) + t.unsqueeze(-1)  # (M, B, V, 3, T J)
    depth = camera[..., 2, :].clamp_min(MIN_DEPTH)
    # The moments hold the mode's depths; the covariance grows with the square of the actual ones.
    share = evidence.weight / evidence.weight.sum(2, keepdim=True).clamp_min(1e-6)
    anchor, share = (
        value.transpose(1, 2).reshape(B, V, T * J) for value in (evidence.depth, share)
    )
    growth = (share * (depth.log() - anchor.log())).sum(2)  # (M, B, T J)
    covariance, log_det = covariance * (2 * growth).exp(), log_det - 6 * growth
    xy = observations.xy.permute(0, 2, 4, 1, 3).reshape(B, V, 2, T * J)
    dx, dy = camera[..., 0, :] / depth - xy[:, :, 0], camera[..., 1, :] / depth - xy[:, :, 1]
    L = information.permute(0, 2, 4, 5, 1, 3).reshape(B, V, 4, T * J)
    chi2 = L[:, :, 0] * dx * dx + 2 * L[:, :, 1] * dx * dy + L[:, :, 3] * dy * dy
    inlier = observations.inlier.transpose(1, 2).reshape(B, V, T * J)
    data = adjustment.log_mixture(chi2, inlier, observations.log_outlier)[0].sum(2)  # (M, B, T J)

    joints = points.unflatten(2, (T, J))
    structure = covariance.unflatten(3, (T, J))
    bones, log_length = _log_bones(joints, structure, evidence)
    per_joint = (data - 0.5 * log_det).unflatten(-1, (T, J)) - 3 * log_length
    per_frame = (per_joint * evidence.observed).sum((-1, -2))
    cameras = _person(R, t, joints).norm(dim=-1).clamp_min(MIN_LENGTH).log().sum(-1)
    total = evidence.frame_weight * per_frame + bones - 3 * cameras
    return total, joints, structure


def _depths(R: Tensor, t: Tensor, joints: Tensor) -> Tensor:
    """Depths (M, B, T, V, J) mm of joints (B, T, J, 3) under cameras (M, B, V, ...)."""
    return torch.einsum("mbvc,btjc->mbtvj", R[..., 2, :], joints) + t[:, :, None, :, None, 2]


def _log_bones(joints: Tensor, structure: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Marginal log density (M, B) of the bones, and the log length (M, B, T, J) of each joint.

    Each frame measures each bone's log length with the variance of the triangulation; frames
    share the bone, bones share the body. With the joints' covariance S along (r) and across (a)
    the bone, to second order E log |d| = log(|d|^2 + a) / 2, Var log |d| = r / |d|^2 +
    (a / 2 |d|^2)^2; both stay finite for a bone much shorter than its uncertainty. A joint's
    length is that of the bone to its parent, or its distance where it has none.
    """
    body, observed = evidence.body, evidence.observed
    length, direction = bone_vectors(joints, body)  # (M, B, T, N), (M, B, T, N, 3)
    S = structure[..., body.child] + structure[..., body.parent]  # (6, M, B, T, N)
    x, y, z = direction.unbind(-1)
    radial = S[0] * x * x + S[3] * y * y + S[5] * z * z
    radial = radial + 2 * (S[1] * x * y + S[2] * x * z + S[4] * y * z)
    across = S[0] + S[3] + S[5] - radial
    squared = length.square() + across
    log_length = 0.5 * squared.log()
    variance = radial / squared + (across / (2 * squared)).square() + body.slack**2
    present = observed[..., body.child] * observed[..., body.parent]  # (B, T, N)
    precision = present / variance
    worth = evidence.frame_weight[:, None]  # (B, 1)
    # 1e-6 stands for a bone that no frame shows: its mean is then the body's.
    total = worth * precision.sum(2) + 1e-6  # (M, B, N)
    mean = (worth * (precision * log_length).sum(2) + 1e-6 * body.mean) / total
    spread = (precision * (log_length - mean.unsqueeze(2)).square()).sum(2)
    within = -0.5 * (worth * (spread + (present * variance.log()).sum(2)) + total.log()).sum(-1)
    chol = torch.linalg.cholesky(body.covariance + torch.diag_embed(1 / total))
    deviation = (mean - body.mean).unsqueeze(-1)
    whitened = torch.linalg.solve_triangular(chol, deviation, upper=False).squeeze(-1)
    log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    between = -0.5 * whitened.square().sum(-1) - log_det

    distance = joints.norm(dim=-1).clamp_min(MIN_LENGTH).log()  # (M, B, T, J)
    child = distance[..., body.child]
    child = torch.where(present > 0, log_length, child)
    return within + between, distance.index_copy(-1, body.child, child)


@torch.no_grad()
def find_modes(
    observations: Observations, starts: Bundle, body: BodyPrior, settings: Settings
) -> tuple[Modes, Evidence]:
    """Adjusts every start and keeps the best distinct optima.

    Args:
        observations: (B, T, V, J, ...).
        starts: (B, C, ...) candidate cameras, joints and log lengths.
    """
    (B, C), T = starts.R.shape[:2], observations.xy.shape[1]
    double = Observations(
        *(value.detach().double() for value in observations[:3]), observations.log_outlier
    )
    body64 = body.to(observations.xy.device, torch.float64)
    repeated = _repeat(double, C)
    flat = Bundle(*(value.detach().double().flatten(0, 1) for value in starts))
    bundle, scale2, _ = adjustment.adjust(repeated, flat, body64, settings.adjust_iterations)
    # All candidates of a rig are judged by the noise that the best of them leaves.
    scale2 = scale2.unflatten(0, (B, C)).amin(1)
    cost = adjustment.robust_cost(bundle, repeated, scale2.repeat_interleave(C), body64)
    behind = _share_behind(bundle, repeated.inlier).unflatten(0, (B, C))
    cost = cost.unflatten(0, (B, C)) + 1e3 * behind
    keep = _distinct_best(bundle.R.unflatten(0, (B, C)), cost, settings.num_modes)  # (B, K)
    K = keep.shape[1]
    rows = torch.arange(B, device=keep.device)[:, None]
    kept = Bundle(*(value.unflatten(0, (B, C))[rows, keep] for value in bundle))
    flat = Bundle(*(value.flatten(0, 1) for value in kept))
    repeated = _repeat(double, K)
    scale_k = scale2.repeat_interleave(K)
    one = torch.ones_like(scale_k)
    _, weight = adjustment.camera_information(repeated, flat, scale_k, body64, one)
    if settings.frame_correlation >= 0:
        worth = (1 - settings.frame_correlation) / (1 + settings.frame_correlation)
        worth = torch.full_like(scale_k, max(worth, 1.0 / T))
    else:
        worth = adjustment.frame_worth(repeated, flat, weight, scale_k)
    frame_weight = worth.unflatten(0, (B, K))[:, 0]
    information, weight = adjustment.camera_information(
        repeated, flat, scale_k, body64, frame_weight.repeat_interleave(K)
    )
    D = information.shape[-1]
    eye = torch.eye(D, dtype=information.dtype, device=information.device)
    # 10 deg and 300 mm a coordinate: taken where the information is singular, and reported.
    wide = torch.diag(
        torch.tensor([math.radians(10.0)] * 3 + [300.0] * 3, dtype=eye.dtype).repeat(D // 6)
    ).to(eye)
    covariance = torch.linalg.inv(information + 1e-12 * eye)
    chol, failed = laws.safe_cholesky(0.5 * (covariance + covariance.mT), wide)
    log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1).unflatten(0, (B, K))
    log_mass = log_det - frame_weight[:, None] * cost.gather(1, keep)
    dtype = observations.xy.dtype
    centre = adjustment.person_centre(flat)
    modes = Modes(
        *(
            value.unflatten(0, (B, K)).to(dtype)
            for value in (flat.R, flat.t, centre, chol * math.sqrt(settings.inflation))
        ),
        log_mass.to(dtype),
        failed.unflatten(0, (B, K))[:, 0],
    )
    evidence = Evidence(
        observations,
        kept.joints[:, 0].to(dtype),
        _depths(kept.R[None, :, 0], kept.t[None, :, 0], kept.joints[:, 0])[0]
        .clamp_min(MIN_DEPTH)
        .to(dtype),
        weight.unflatten(0, (B, K))[:, 0].to(dtype),
        scale2.to(dtype),
        observations.xy.new_ones(B, T, observations.xy.shape[3]),
        frame_weight.to(dtype),
        body.to(observations.xy.device, dtype),
    )
    structure = log_target(modes.R[None, :, 0], modes.t[None, :, 0], evidence)[2]
    variance = (structure[0] + structure[3] + structure[5])[0]  # (B, T, J)
    evidence = evidence._replace(observed=(variance < MAX_SIGMA**2).to(dtype))
    return _polish(modes, evidence), evidence


def _polish(modes: Modes, evidence: Evidence, num_steps: int = 4) -> Modes:
    """Moves each mode from the optimum of the joint density to that of the marginal.

    Newton steps whose Hessian is the Laplace information; a step that does not raise the target is
    quartered. Over many frames the two optima differ by a few standard deviations.
    """
    R, t = modes.R.transpose(0, 1), modes.t.transpose(0, 1)  # (K, B, ...)
    centre, chol = modes.centre.transpose(0, 1), modes.chol.transpose(0, 1)
    value, joints, _ = log_target(R, t, evidence)
    offset = centre - _person(R, t, joints)
    length = torch.ones_like(value)
    for _ in range(num_steps):
        tangent = t.new_zeros(*R.shape[:2], chol.shape[-1], requires_grad=True)
        with torch.enable_grad():
            target = log_target(*adjustment.move_cameras(R, t, centre, tangent), evidence)[0]
            (slope,) = torch.autograd.grad(target.sum(), tangent)
        whitened = (chol.mT @ slope.unsqueeze(-1)).squeeze(-1)
        # At most three standard deviations a step.
        whitened = whitened * (3.0 / whitened.norm(dim=-1, keepdim=True).clamp_min(3.0))
        step = (chol @ whitened.unsqueeze(-1)).squeeze(-1) * length[..., None]
        trial = adjustment.move_cameras(R, t, centre, step)
        new = log_target(*trial, evidence)[0]
        better = new > value
        R = torch.where(better[..., None, None, None], trial[0], R)
        t = torch.where(better[..., None, None], trial[1], t)
        value = torch.where(better, new, value)
        length = torch.where(better, length, length / 4)
    centre = offset + _person(R, t, log_target(R, t, evidence)[1])
    return modes._replace(R=R.transpose(0, 1), t=t.transpose(0, 1), centre=centre.transpose(0, 1))


def _person(R: Tensor, t: Tensor, joints: Tensor) -> Tensor:
    """Mean joint in the camera frames (M, B, V, 3) mm of joints (M, B, T, J, 3)."""
    return (R @ joints.mean((2, 3))[:, :, None, :, None]).squeeze(-1) + t


def _repeat(observations: Observations, count: int) -> Observations:
    """(B, ...) to (B * count, ...), each rig's copies side by side."""
    tensors = (value.repeat_interleave(count, dim=0) for value in observations[:3])
    return Observations(*tensors, observations.log_outlier)


def _share_behind(bundle: Bundle, inlier: Tensor) -> Tensor:
    """Share (N,) of seen points that lie behind the camera that saw them."""
    depth = _depths(bundle.R[None], bundle.t[None], bundle.joints)[0]
    seen = inlier > 0
    return ((depth <= MIN_DEPTH) & seen).sum((1, 2, 3)) / seen.sum((1, 2, 3)).clamp_min(1)


def _distinct_best(R: Tensor, cost: Tensor, count: int) -> Tensor:
    """Indices (B, K) of the cheapest candidates that are 3 deg or more apart from cheaper ones.

    Where fewer are distinct, the best repeats; its copies share one mode's mass.
    """
    cost = cost.nan_to_num(torch.inf)
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


def _tangent(R: Tensor, t: Tensor, modes: Modes) -> tuple[Tensor, Tensor]:
    """Coordinates (M, B, K, D) of cameras (M, B, V, ...) around each mode, and log d Haar / d w."""
    base_R, base_t, pivot = modes.R[:, :, 1:], modes.t[:, :, 1:], modes.centre[:, :, 1:]
    turn = R[:, :, None, 1:] @ base_R.transpose(-1, -2)  # (M, B, K, V-1, 3, 3)
    shift = t[:, :, None, 1:] - pivot - (turn @ (base_t - pivot).unsqueeze(-1)).squeeze(-1)
    w = so3_log(turn)
    haar = log_haar_density(w.norm(dim=-1)).sum(-1)
    return torch.cat([w, shift], dim=-1).flatten(-2), haar


@torch.no_grad()
def sample(
    modes: Modes, evidence: Evidence, settings: Settings, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Adaptive multiple importance sampling.

    Returns:
        R (M, B, V, 3, 3), t (M, B, V, 3), and the log density (M, B) of the deterministic mixture
        of all proposals at the samples, over the same measure as ``log_target``.
    """
    B, K, V = modes.R.shape[:3]
    D = 6 * (V - 1)
    dtype, device = modes.R.dtype, modes.R.device
    generator = torch.Generator().manual_seed(seed)
    share = torch.softmax(modes.log_mass, dim=1).clamp_min(0.05)
    share = share / share.sum(1, keepdim=True)  # (B, K)
    prior = laws.StudentT(torch.zeros(B, K, D, dtype=dtype, device=device), modes.chol, settings.df)
    proposal, shares = prior, share
    per_round = max(settings.num_samples // settings.num_iterations, 1)
    R_all, t_all, coordinates, haar_all, targets = [], [], [], [], []
    proposals: list[tuple[laws.StudentT, Tensor]] = []
    for iteration in range(settings.num_iterations):
        noise = laws.standard_noise(per_round, D, settings.df, generator, dtype)
        noise = laws.StandardNoise(*(value.to(device) for value in noise))
        drawn = laws.student_t_sample(proposal, noise)  # (m, B, K, D)
        # Stratified choice of the mode of each sample.
        level = (torch.arange(per_round, dtype=dtype, device=device) + 0.5) / per_round
        chosen = (level[:, None, None] > shares.cumsum(1)[None, :, :-1]).sum(-1)  # (m, B)
        rows = torch.arange(B, device=device).expand(per_round, B)
        step = drawn.gather(2, chosen[..., None, None].expand(-1, -1, 1, D)).squeeze(2)
        R, t = adjustment.move_cameras(
            modes.R[rows, chosen], modes.t[rows, chosen], modes.centre[rows, chosen], step
        )
        proposals.append((proposal, shares))
        R_all.append(R)
        t_all.append(t)
        targets.append(log_target(R, t, evidence)[0])
        position, haar = _tangent(R, t, modes)
        coordinates.append(position)
        haar_all.append(haar)
        x, h = torch.cat(coordinates), torch.cat(haar_all)
        mixture = torch.stack(
            [
                torch.logsumexp(laws.student_t_log_prob(law, x) - h + part.log(), dim=-1)
                for law, part in proposals
            ]
        )
        log_mixture = torch.logsumexp(mixture, dim=0) - math.log(len(proposals))
        log_weights = torch.log_softmax(torch.cat(targets) - log_mixture, dim=0)
        if iteration + 1 < settings.num_iterations:
            # Responsibility of each mode for each sample under the current mixture.
            each = laws.student_t_log_prob(proposal, x) - h + shares.log()
            owned = (log_weights[..., None] + torch.log_softmax(each, dim=-1)).exp()
            proposal = laws.student_t_fit(x, owned, prior, prior_samples=2.0 * D)
            shares = owned.sum(0).clamp_min(0.02)
            shares = shares / shares.sum(1, keepdim=True)
    return torch.cat(R_all), torch.cat(t_all), log_mixture


class RigSolution(NamedTuple):
    """The posterior of B rigs and what it was computed from."""

    posterior: RigPosterior  # not judged yet: see `ptri.verdict`
    modes: Modes
    evidence: Evidence
    log_evidence: Tensor  # (B,) log normaliser of ``log_target``, differentiable


def rig_posterior(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: Settings,
    seed: int = 0,
) -> RigSolution:
    """Posterior of B rigs from T frames each.

    Args:
        observations: (B, T, V, J, ...), see ``normalise``.
        starts: (B, C, ...) candidate rigs with their joints, any scale within a few tenths.
        seed: of the Monte-Carlo noise, which all rigs of the batch share.

    Returns:
        The posterior, whose log-weights are differentiable in the observations, with the evidence
        that ``log_target`` takes.
    """
    modes, evidence = find_modes(observations, starts, body, settings)
    R, t, log_mixture = sample(modes, evidence, settings, seed)
    ratio = log_target(R, t, evidence)[0] - log_mixture
    log_evidence = torch.logsumexp(ratio, dim=0) - math.log(len(ratio))
    log_weights = torch.log_softmax(ratio, dim=0)
    with torch.no_grad():
        ess = 1 / log_weights.exp().square().sum(0)
        posterior = RigPosterior(R, t, log_weights, ess, ess > 0, ["not judged"] * len(ess))
    return RigSolution(posterior, modes, evidence, log_evidence)


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
    return RigPosterior(
        cameras.R[None], cameras.t[None], one[None] * 0, one, one > 0, ["calibrated"] * B
    )


def resample(posterior: RigPosterior, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic resampling to ``count`` samples, and their differentiable log-weights.

    Returns:
        R (count, B, V, 3, 3), t (count, B, V, 3), log-weights (count, B): equal in value, with the
        gradient of the weights of the samples they stand for.
    """
    M, B = posterior.log_weights.shape
    count = min(count, M)
    with torch.no_grad():
        cumulative = posterior.log_weights.exp().cumsum(0).T.contiguous()  # (B, M)
        level = (torch.arange(count, device=cumulative.device) + 0.5) / count
        level = level.to(cumulative).expand(B, count).contiguous()
        index = torch.searchsorted(cumulative, level).clamp_max(M - 1).T  # (count, B)
    rows = torch.arange(B, device=index.device).expand(count, B)
    chosen = posterior.log_weights[index, rows]
    log_weights = torch.log_softmax(chosen - chosen.detach(), dim=0)
    return posterior.R[index, rows], posterior.t[index, rows], log_weights


def triangulate_posterior(R: Tensor, t: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Joints (M, B, T, J, 3) mm and covariances (M, B, T, J, 3, 3) mm^2 under camera samples."""
    _, joints, entries = log_target(R, t, evidence)
    return joints, symmetric_to_matrix(entries)


def pose_loss(cameras: Cameras, solution: RigSolution) -> Tensor:
    """Monte-Carlo pose loss (B,): negative log posterior density at the true cameras.

    ``-log p(theta*) + log (1/M) sum p(theta_m) / q(theta_m)`` (EPro-PnP, eq. 7).
    """
    R, t = (value[None].to(solution.log_evidence) for value in (cameras.R, cameras.t))
    truth, _, _ = log_target(R, t, solution.evidence)
    return solution.log_evidence - truth[0]


__all__ = [
    "Evidence",
    "Modes",
    "RigSolution",
    "Settings",
    "find_modes",
    "log_target",
    "normalise",
    "pose_loss",
    "posterior_from_cameras",
    "posterior_mean",
    "resample",
    "rig_posterior",
    "rotation_covariance",
    "sample",
    "triangulate_posterior",
]
