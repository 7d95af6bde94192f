"""The rig posterior: a weighted distribution over the poses of the cameras.

The target is `ptri.density`'s: the cameras' posterior with joints, body and biases integrated out,
jointly with the scale of the noise. Bundle adjustment from several starts gives modes with their
Laplace covariance; samples come from a mixture of heavy-tailed laws around the modes and are
weighted by the deterministic mixture of all proposals so far, as in adaptive multiple importance
sampling (Cornuet et al. 2012; EPro-PnP, Chen et al. 2022, algorithm 1). Samples are detached;
weights and joints are differentiable in the keypoints, their covariances and their confidences.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri import distributions as laws
from ptri.density import Expansion, cameras_at, cast, coordinates_of, expand, log_density
from ptri.geometry import bundle as adjustment
from ptri.geometry.body import BodyPrior
from ptri.geometry.bundle import NOISE_PRIOR_COUNT, Bundle, Errors, Observations
from ptri.geometry.cameras import MIN_DEPTH, pixel_to_normalised
from ptri.geometry.noise import fit_errors
from ptri.geometry.rotations import rotation_angle, rotation_mean, so3_log
from ptri.structures import Cameras, Keypoints, RigPosterior

# A pose that is off by its stated error costs about one nat, one far off this many times a log.
POSE_TAIL = 2.0
MAX_POLISH = 8.0  # standard deviations a step
MIN_VIEWS = 1.5  # of a joint that counts, in responsibilities
START_FRAMES = 8  # of the frames lead the starts to their optima
KEPT_STARTS = 6  # of them are followed to the end
# A mode whose log mass is this far below the best one's holds nothing worth a sample.
NEGLIGIBLE = 12.0
WIDE_ROTATION = 0.5  # rad, WIDE_SHIFT in mm: a camera nothing is known of, for the proposal only
WIDE_SHIFT = 2000.0
WIDE_SIZE = 0.5
MIN_SHARE = 0.05  # of the samples, for every other mode: its mass is known roughly only


class Settings(NamedTuple):
    """What an experimenter changes; see ``PosteriorConfig`` for meanings and units."""

    num_samples: int = 512
    num_iterations: int = 4
    num_modes: int = 3
    adjust_iterations: int = 16
    df: float = 20.0
    inflation: float = 1.1
    outlier_chi2: float = 12.0
    frame_correlation: float = -1.0
    max_rotation_std_deg: float = 8.0


class Evidence(NamedTuple):
    """What the target needs beside the cameras: observations, and expansions at the modes."""

    observations: Observations  # (B, T, V, J, ...)
    body: BodyPrior
    expansions: tuple[Expansion, ...]  # K, best first

    @property
    def errors(self) -> Errors:
        """How the keypoints err, as found at the best mode."""
        return self.expansions[0].errors

    @property
    def joints(self) -> Tensor:
        """Joints (B, T, J, 3) mm at the best mode."""
        return self.expansions[0].joints.mT

    @property
    def weight(self) -> Tensor:
        """Responsibility (B, T, V, J) of the inlier at the best mode."""
        return self.expansions[0].weight

    @property
    def scale2(self) -> Tensor:
        """Squared noise scale (B,) over the stated covariances."""
        return self.errors.scale2


class Poses(NamedTuple):
    """What a lifter makes of each view alone: the posture, which geometry knows nothing of."""

    joints: Tensor  # (B, T, V, J', 3) mm, camera frames; the first J' joints
    sigma: Tensor  # (B, T, V, J') mm, standard deviation a coordinate; infinite = not seen


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
    log_pose: Tensor  # (B, K) log density of the single views' poses at the mode
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


def num_newton_steps(num_frames: int) -> int:
    """Steps to the conditional optimum: from one frame the cameras range over many degrees."""
    return 2 if num_frames < 4 else 1


def log_target(
    R: Tensor,
    t: Tensor,
    evidence: Evidence,
    log_scale: Tensor | None = None,
    owner: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log posterior density of M camera hypotheses for each rig, and their joints.

    Args:
        R, t: (M, B, V, 3, 3), (M, B, V, 3) mm.
        log_scale: (M, B) log of the noise over that of the best mode; None: equal to it.
        owner: (M, B) the mode whose expansion serves each hypothesis; None: the one that says
            most, since the structure given the cameras is the most probable one.

    Returns:
        (M, B) log density up to a constant per rig; joints (M, B, T, J, 3) mm with their
        covariance (M, B, T, J, 3, 3) mm^2 given the cameras. Differentiable in the observations.
    """
    log_scale = R.new_zeros(R.shape[:2]) if log_scale is None else log_scale
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for k, at in enumerate(evidence.expansions):
        found = _under(R, t, log_scale, at, evidence)
        if best is None:
            best = found
            continue
        better = found[0] > best[0] if owner is None else owner == k
        best = tuple(_select(better, new, old) for new, old in zip(found, best))
    return best


def _under(
    R: Tensor, t: Tensor, log_scale: Tensor, at: Expansion, evidence: Evidence
) -> tuple[Tensor, Tensor, Tensor]:
    """Density, joints and their covariance under one expansion."""
    steps = num_newton_steps(evidence.observations.xy.shape[1])
    shape, size, _ = coordinates_of(R, t, at)
    found = log_density(shape, size, log_scale, at, evidence.observations, evidence.body, steps)
    factor = 2 * (found.growth + log_scale[..., None, None])
    return found.log_density, found.joints, at.covariance * factor.exp()[..., None, None]


def _select(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(condition.reshape(*condition.shape, *([1] * (yes.ndim - 2))), yes, no)


@torch.no_grad()
def find_modes(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: Settings,
    poses: Poses | None = None,
) -> tuple[Modes, Evidence]:
    """Adjusts every start and keeps the best distinct optima.

    Args:
        observations: (B, T, V, J, ...), float64.
        starts: (B, C, ...) candidate cameras, joints and log lengths.
        poses: tell modes apart that geometry cannot: people seen from behind, limbs turned over.
    """
    observations = _masked(observations, (observations.inlier > 0).to(observations.xy))
    fixed = Observations(*(value.detach() for value in observations[:3]), observations.log_outlier)
    body = body.to(fixed.xy.device, fixed.xy.dtype)
    starts = Bundle(*(value.detach().to(fixed.xy) for value in starts))
    found = adjust_starts(fixed, starts, body, settings, poses)
    B, K = found.R.shape[:2]
    # Copies of the best mode are not worked out again: every mode takes its rows from `source`.
    copy = (found.R[:, :1] == found.R).flatten(2).all(-1)
    copy[:, 0] = False
    own = (~copy).flatten().nonzero()[:, 0]  # (N,)
    source = torch.zeros(B * K, dtype=torch.long, device=own.device)
    source[own] = torch.arange(len(own), device=own.device)
    source = source.unflatten(0, (B, K))
    source = torch.where(copy, source[:, :1], source)  # (B, K)
    flat = Bundle(*(value.flatten(0, 1)[own] for value in found))
    repeated = _rows(fixed, own // K)
    errors = adjustment.plain_errors(repeated)
    # Joints of frames that took no part in the start are where the start has them.
    steps = (8, 4) if observations.xy.shape[1] > START_FRAMES else (1, 0)
    flat, errors, _ = adjustment.adjust(repeated, flat, body, *steps, errors)

    # A joint with one view's keypoint left is on its ray, anywhere a bone allows: no Gaussian.
    weight = adjustment.normal_equations(flat, repeated, errors, body).weight
    observations = _masked(observations, weight[source[:, 0]])
    repeated = _masked(repeated, weight[source[:, 0]][own // K])
    flat, errors, _ = adjustment.adjust(repeated, flat, body, 2, 0, errors)

    def common(scale2: Tensor) -> Tensor:
        """The least noise scale of a rig's modes, for all of them."""
        return scale2[source].amin(1)[own // K]

    errors = errors._replace(scale2=common(errors.scale2))
    correlation = settings.frame_correlation if settings.frame_correlation >= 0 else None
    flat, errors = fit_errors(repeated, flat, errors, body, correlation)
    # Modes compare only under one tempering and one prior of the biases: the best one's.
    first = source[:, 0][own // K]
    errors = errors._replace(frame_weight=errors.frame_weight[first], bias2=errors.bias2[first])
    # The adjustment counts three freedoms a joint; with bones it has fewer.
    errors = errors._replace(scale2=common(expand(repeated, flat, errors, body).scale2))
    every = expand(repeated, flat, errors, body)
    chol, failed = _laplace(every, settings.inflation)
    R, t, mean, value = _polish(every, chol, Evidence(repeated, body, (every,)))
    pose = -_strangeness(flat, poses, own // K)
    mass = (value + pose + chol.diagonal(dim1=-2, dim2=-1).log().sum(-1))[source]
    mass = mass.masked_fill(copy, -torch.inf)
    modes = Modes(
        R[source], t[source], mean[source], chol[source], mass, pose[source], failed[source[:, 0]]
    )
    expansions = tuple(_pick(every, source[:, k]) for k in range(K))
    return modes, Evidence(observations, body, expansions)


def adjust_starts(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: Settings,
    poses: Poses | None = None,
) -> Bundle:
    """The best distinct optima (B, K, ...) that candidates (B, C, ...) lead to.

    A third of the iterations for every candidate, the rest for the best few; on some of the frames
    where there are many; the joints of the others are then where their start has them.
    """
    T = observations.xy.shape[1]
    frames = torch.linspace(0, T - 1, min(T, START_FRAMES)).round().long()
    few = Observations(*(value[:, frames] for value in observations[:3]), observations.log_outlier)
    bundle = starts._replace(joints=starts.joints[:, :, frames])
    if poses is not None:
        poses = Poses(*(value[:, frames] for value in poses))
    num_modes, num_iterations = settings.num_modes, settings.adjust_iterations
    first = max(num_iterations // 3, 1)
    for count, iterations, wide in (
        (max(KEPT_STARTS, num_modes), first, first),
        (num_modes, num_iterations - first, 2),
    ):
        B, C = bundle.R.shape[:2]
        repeated = _repeat(few, C)
        flat, errors, _ = adjustment.adjust(repeated, _flat(bundle), body, iterations, wide)
        # All candidates of a rig are judged by the noise that the best of them leaves.
        scale2 = adjustment.median_scale2(flat, repeated, errors).clamp_min(1.0)
        scale2 = scale2.unflatten(0, (B, C)).amin(1).repeat_interleave(C)
        cost = adjustment.robust_cost(flat, repeated, errors._replace(scale2=scale2), body)
        cost = cost + 1e3 * _share_behind(flat, repeated.inlier) + _strangeness(flat, poses)
        bundle = Bundle(*(value.unflatten(0, (B, C)) for value in flat))
        keep = _distinct_best(bundle.R, cost.unflatten(0, (B, C)), count)  # (B, K)
        rows = torch.arange(B, device=keep.device)[:, None]
        bundle = Bundle(*(value[rows, keep] for value in bundle))
        starts = Bundle(*(value[rows, keep] for value in starts))
    if T > START_FRAMES:
        joints = _carried(starts, bundle.R, bundle.t)
        joints[:, :, frames] = bundle.joints
        bundle = bundle._replace(joints=joints)
    return bundle


def _strangeness(bundle: Bundle, poses: Poses | None, rows: Tensor | None = None) -> Tensor:
    """Negative log density (N,) of what the lifter saw, given the joints of bundles.

    A view of a frame has one say, heavy-tailed, however many joints it has: their errors go
    together. The distance to the camera is left out, which geometry knows better.
    """
    N = len(bundle.R)
    if poses is None:
        return bundle.t.new_zeros(N)
    B, J = poses.joints.shape[0], poses.joints.shape[3]
    if rows is None:
        rows = torch.arange(B, device=bundle.t.device).repeat_interleave(N // B)
    lifted, precision = poses.joints.to(bundle.t)[rows], poses.sigma.to(bundle.t)[rows] ** -2
    total = precision.sum(-1, keepdim=True).clamp_min(1e-12)  # (N, T, V, 1), 0 = nothing seen
    camera = torch.einsum("nvac,ntjc->ntvja", bundle.R, bundle.joints[:, :, :J])
    share = (precision / total).unsqueeze(-1)
    away = camera - lifted
    away = away - (share * away).sum(-2, keepdim=True)
    chi2 = (precision * away.square().sum(-1)).sum(-1) / (3 * (precision > 0).sum(-1)).clamp_min(1)
    return POSE_TAIL * torch.log1p(chi2 / POSE_TAIL).sum((1, 2))


def _flat(bundle: Bundle) -> Bundle:
    return Bundle(*(value.flatten(0, 1) for value in bundle))


def _carried(start: Bundle, R: Tensor, t: Tensor) -> Tensor:
    """Joints (B, K, T, J, 3) of starts under other cameras: their places before each view kept."""
    before = torch.einsum("bkvac,bktjc->bktvja", start.R, start.joints)
    before = before + (start.t - t)[:, :, None, :, None]
    return torch.einsum("bkvca,bktvjc->bktja", R, before) / R.shape[2]


def evidence_at(
    observations: Observations, bundle: Bundle, errors: Errors, body: BodyPrior, count: int = 1
) -> Evidence:
    """The evidence of rigs (B, ...) with known cameras and joints, as ``count`` equal modes."""
    return Evidence(observations, body, (expand(observations, bundle, errors, body),) * count)


def _pick(every: Expansion, rows: Tensor) -> Expansion:
    errors = Errors(*(value[rows] for value in every.errors))
    rest = {name: value[rows] for name, value in every._asdict().items() if name != "errors"}
    return Expansion(errors=errors, **rest)


def _masked(observations: Observations, weight: Tensor) -> Observations:
    """Observations without the joints that fewer than two views see, by weights (B, T, V, J)."""
    keep = (weight.sum(2, keepdim=True) > MIN_VIEWS).to(weight)
    return observations._replace(
        information=observations.information * keep[..., None, None],
        inlier=observations.inlier * keep,
    )


def _rows(observations: Observations, rows: Tensor) -> Observations:
    return Observations(*(value[rows] for value in observations[:3]), observations.log_outlier)


def _laplace(at: Expansion, inflation: float) -> tuple[Tensor, Tensor]:
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
    count = at.errors.frame_weight * at.freedom + NOISE_PRIOR_COUNT
    full[:, D, D] = (2 * count).rsqrt()
    return full * math.sqrt(inflation), failed


def _polish(
    at: Expansion, chol: Tensor, evidence: Evidence, num_steps: int = 5
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
            R, t = _cameras(trial, at)
            new = _under(R[None], t[None], trial[None, :, -1], at, evidence)[0][0]
            new = new + coordinates_of(R[None], t[None], at)[2][0]
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
    return *_cameras(position, at), position, value


def _cameras(coordinates: Tensor, at: Expansion) -> tuple[Tensor, Tensor]:
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
    tensors = (value.repeat_interleave(count, dim=0) for value in observations[:3])
    return Observations(*tensors, observations.log_outlier)


def _share_behind(bundle: Bundle, inlier: Tensor) -> Tensor:
    """Share (N,) of seen points that lie behind the camera that saw them."""
    depth = torch.einsum("nvc,ntjc->ntvj", bundle.R[..., 2, :], bundle.joints)
    depth = depth + bundle.t[:, None, :, None, 2]
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


@torch.no_grad()
def sample(
    modes: Modes, evidence: Evidence, settings: Settings, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Adaptive multiple importance sampling.

    Returns:
        R (M, B, V, 3, 3), t (M, B, V, 3), log noise scale (M, B), the mode (M, B) each was drawn
        around, the log target (M, B), and the log density (M, B) of the deterministic mixture of
        all proposals at the samples, over the same measure.
    """
    D = modes.mean.shape[-1]
    dtype, device = modes.R.dtype, modes.R.device
    generator = torch.Generator().manual_seed(seed)
    relative = modes.log_mass - modes.log_mass.amax(1, keepdim=True)
    alive = relative > -NEGLIGIBLE
    rough = _rough(evidence)
    shares = _normalised(torch.where(alive, relative.exp().clamp_min(MIN_SHARE), 0.0))
    prior = laws.StudentT(modes.mean, modes.chol, settings.df)
    proposal = prior
    per_round = max(settings.num_samples // settings.num_iterations, 1)
    drawn: list[tuple[Tensor, ...]] = []
    proposals: list[tuple[laws.StudentT, Tensor]] = []
    places = []
    for iteration in range(settings.num_iterations):
        noise = laws.standard_noise(per_round, D, settings.df, generator, dtype)
        noise = laws.StandardNoise(*(value.to(device) for value in noise))
        offsets = laws.student_t_sample(proposal, noise)  # (m, B, K, D)
        # Stratified choice of the mode of each sample.
        level = (torch.arange(per_round, dtype=dtype, device=device) + 0.5) / per_round
        owner = (level[:, None, None] > shares.cumsum(1)[None, :, :-1]).sum(-1)  # (m, B)
        step = offsets.gather(2, owner[..., None, None].expand(-1, -1, 1, D)).squeeze(2)
        R, t, target = _evaluate(step, owner, evidence, rough)
        target = target + modes.log_pose.T.gather(0, owner)
        proposals.append((proposal, shares))
        drawn.append((R, t, step[..., -1], owner, target))
        places.append(_coordinates(R, t, step[..., -1], evidence))
        x, volume = (torch.cat(parts) for parts in zip(*places))
        mixture = torch.stack(
            [
                torch.logsumexp(laws.student_t_log_prob(law, x) - volume + part.log(), dim=-1)
                for law, part in proposals
            ]
        )
        log_mixture = torch.logsumexp(mixture, dim=0) - math.log(len(proposals))
        targets = torch.cat([part[-1] for part in drawn])
        log_weights = torch.log_softmax(targets - log_mixture, dim=0)
        if iteration + 1 < settings.num_iterations:
            # Responsibility of each mode for each sample under the current mixture.
            each = laws.student_t_log_prob(proposal, x) - volume + shares.log()
            owned = (log_weights[..., None] + torch.log_softmax(each, dim=-1)).exp()
            proposal = laws.student_t_fit(x, owned, prior, prior_samples=2.0 * D)
            shares = _normalised(torch.where(alive, owned.sum(0).clamp_min(MIN_SHARE / 2), 0.0))
    return *(torch.cat(parts) for parts in zip(*drawn)), log_mixture


def _normalised(shares: Tensor) -> Tensor:
    return shares / shares.sum(1, keepdim=True)


def _coordinates(
    R: Tensor, t: Tensor, log_scale: Tensor, evidence: Evidence
) -> tuple[Tensor, Tensor]:
    """Coordinates (m, B, K, D + 1) around every mode, and the log of their volume (m, B, K)."""
    found = [coordinates_of(R, t, at) for at in evidence.expansions]
    shape, size, volume = (torch.stack(parts, dim=2) for parts in zip(*found))
    scale = log_scale.unsqueeze(-1).expand_as(size)
    x = torch.cat([shape * (-scale).exp().unsqueeze(-1), torch.stack([size, scale], -1)], dim=-1)
    return x, volume + shape.shape[-1] * scale


def _rough(evidence: Evidence) -> Evidence:
    """The evidence in single precision: enough for weights, and half the memory to move."""
    body = evidence.body.to(evidence.body.mean.device, torch.float32)
    parts = (value.detach().float() for value in evidence.observations[:3])
    observations = Observations(*parts, evidence.observations.log_outlier)
    expansions = tuple(cast(at, torch.float32) for at in evidence.expansions)
    return Evidence(observations, body, expansions)


def _evaluate(
    step: Tensor, owner: Tensor, evidence: Evidence, rough: Evidence
) -> tuple[Tensor, Tensor, Tensor]:
    """Cameras and target of coordinates (m, B, D + 1) around their modes.

    Samples are in the order of their modes, so a further mode's are the last ones.
    """
    steps = num_newton_steps(evidence.observations.xy.shape[1])
    R = t = target = None
    for k, at in enumerate(evidence.expansions):
        first = 0 if k == 0 else int((owner < k).sum(0).amin())
        if first == len(owner):
            break
        part = step[first:]
        moved = _cameras(part, at)
        shape, size = part[..., :-2] * part[..., -1:].exp(), part[..., -2]
        numbers = (value.float() for value in (shape, size, part[..., -1]))
        value = log_density(*numbers, rough.expansions[k], rough.observations, rough.body, steps)
        value = value.log_density.to(step)
        if k == 0:
            (R, t), target = moved, value
            continue
        mine = owner[first:] == k
        for whole, new in ((R, moved[0]), (t, moved[1]), (target, value)):
            whole[first:] = _select(mine, new, whole[first:])
    return R, t, target


class RigSolution(NamedTuple):
    """The posterior of B rigs and what it was computed from."""

    posterior: RigPosterior  # not judged yet: see `ptri.verdict`
    modes: Modes
    evidence: Evidence
    log_evidence: Tensor  # (B,) log normaliser of ``log_target``, differentiable
    log_scale: Tensor  # (B, M) log noise scale of the samples, over the best mode's
    owner: Tensor  # (B, M) mode of each sample


def rig_posterior(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: Settings,
    seed: int = 0,
    poses: Poses | None = None,
) -> RigSolution:
    """Posterior of B rigs from T frames each.

    Args:
        observations: (B, T, V, J, ...), see ``normalise``.
        starts: (B, C, ...) candidate rigs with their joints, any scale within a few tenths.
        seed: of the Monte-Carlo noise, which all rigs of the batch share.
        poses: of single views; they weigh the modes against each other.

    Returns:
        The posterior, whose log-weights are differentiable in the observations, with the evidence
        that ``log_target`` takes.
    """
    modes, evidence = find_modes(observations, starts, body, settings, poses)
    R, t, log_scale, owner, target, log_mixture = sample(modes, evidence, settings, seed)
    if torch.is_grad_enabled() and any(value.requires_grad for value in observations[:3]):
        target = log_target(R, t, evidence, log_scale, owner)[0]
        target = target + modes.log_pose.T.gather(0, owner)
    ratio = target - log_mixture
    log_evidence = torch.logsumexp(ratio, dim=0) - math.log(len(ratio))
    log_weights = torch.log_softmax(ratio, dim=0)
    with torch.no_grad():
        ess = 1 / log_weights.exp().square().sum(0)
        posterior = RigPosterior(R, t, log_weights, ess, ess > 0, ["not judged"] * len(ess))
    return RigSolution(posterior, modes, evidence, log_evidence, log_scale.T, owner.T)


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
    _, joints, covariance = log_target(R, t, evidence)
    return joints, covariance


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
    "Poses",
    "RigSolution",
    "Settings",
    "evidence_at",
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
