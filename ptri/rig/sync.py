"""Views that did not start together: by how many frames what each shows comes too late.

1 Posture needs no cameras: the distances between a lifted skeleton's joints change in step in all
  views. Their correlation over shifts has peaks; a beam search over the views joins peaks of all
  pairs to a few candidates. Periodic motion has several.
2 The rig is solved under each candidate, and the candidates are compared by how well keypoints fit.
3 Cameras, joints and lags are adjusted together (`ptri.posterior.clocks`), from smoothed tracks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.errors import UserError
from ptri.geometry.rays import log_mixture
from ptri.models.pose_model import PoseModel
from ptri.posterior.adjust import adjust
from ptri.posterior.clocks import clock_step
from ptri.posterior.equations import Bundle, misfits
from ptri.posterior.prior import Prior, no_poses
from ptri.rig import estimate
from ptri.rig.check import RigInput, for_model
from ptri.rig.detector import NUM_JOINTS, body_prior, observe
from ptri.rig.tracks import REACH, keypoints_at, smooth_tracks
from ptri.structures import Keypoints, cat, constant, take, where

LEAST_SHARE = 1 / 3  # of the frames, shifted, that lie beside another view's
LEAST_OVERLAP = 16  # frames in which two views see the person
STILL2 = 1e-3  # mm^2, of all distances: a posture that changes by less does not change
CHUNK = 512  # frames at once: bounds the memory
PEAKS = 4  # of a pair's correlation
BEAM = 8  # candidates
MOMENTS = 30  # at which lags are adjusted
ROUNDS = 12
STEPS = 3  # Levenberg-Marquardt in each
MAX_STEP = 3.0  # frames
SETTLED = 0.01  # frames
USUAL_TAIL = 0.2  # of the law by which candidates are compared


class Lags(NamedTuple):
    """How late the V views' clocks are against view 0's."""

    frames: Tensor  # (V,) frames by which what a view shows comes too late, in the middle
    drift: Tensor  # (V,) frames a frame by which that grows
    std: Tensor  # (V,) of the frames, standard deviation
    drift_std: Tensor  # (V,)

    def at(self, moments: Tensor) -> Tensor:
        """(n, V) at moments (n,) frames from the middle, by view 0's clock."""
        return self.frames + self.drift * moments.unsqueeze(-1)


@torch.no_grad()
def find_lags(
    model: PoseModel,
    given: RigInput,
    options: PosteriorConfig,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Lags:
    """How late each view is, from a person who moves.

    Args:
        given: frames at equal distances in time; NaN = not seen.
        names: of the V views, for messages; None: their numbers.

    Raises:
        UserError: too few frames in which two views see the person.
    """
    keypoints, K = for_model(given), given.K[:1]
    posture, seen = _postures(model, keypoints, K)
    candidates = _candidates(_correlations(posture, seen))
    if isinstance(candidates, int):
        name = f"view {candidates}" if names is None else f"camera {names[candidates]}"
        raise UserError(
            f"clocks: {name} shares no {LEAST_OVERLAP} frames, in which the person is seen, with "
            "the others, at any shift; take a longer clip, or leave it out"
        )
    # As they are: of somebody who stands still every shift fits.
    candidates.append((0,) * keypoints.xy.shape[1])
    lags = torch.tensor(candidates, dtype=torch.float64, device=K.device)  # (N, V)
    bundle, K = _solved(model, keypoints, K, lags, options, seed, given.focal_covariance)
    found, cost = _adjusted(model, keypoints, K, lags, bundle, options)
    return take(found, int(cost.argmin()))


def in_step(given: RigInput, lags: Lags | Tensor) -> RigInput:
    """The same with every view at the moments of view 0's frames; lags, or (V,) frames."""
    T = len(given.K)
    moments = torch.arange(T, device=given.K.device).double()
    late = lags.at(moments - middle(T)) if isinstance(lags, Lags) else lags
    return given._replace(keypoints=keypoints_at(given.keypoints, moments[:, None] + late))


def middle(num_frames: int) -> float:
    """The frame in the middle."""
    return 0.5 * (num_frames - 1)


def _postures(model: PoseModel, keypoints: Keypoints, K: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (T, V, P) mm between a lifted skeleton's joints, and whether (T, V) it was seen."""
    first, second = torch.triu_indices(NUM_JOINTS, NUM_JOINTS, 1)
    parts = []
    for start in range(0, len(keypoints.xy), CHUNK):
        rows = slice(None), slice(start, start + CHUNK), slice(None), slice(NUM_JOINTS)
        named = take(take(keypoints, None), rows)
        joints = model.lift(named, K.expand(*named.xy.shape[:2], -1, -1, -1)).joints3d[0].double()
        distances = (joints[..., first, :] - joints[..., second, :]).norm(dim=-1)
        seen = torch.isfinite(named.xy[0]).all(-1).sum(-1) >= NUM_JOINTS // 2
        parts.append((distances.cpu(), seen.cpu()))
    return cat(parts)


def _correlations(posture: Tensor, seen: Tensor) -> np.ndarray:
    """Correlation (V, V, 2 S + 1) of two views' postures if the second is -S to S frames later
    than the first, times the root of the share of frames; -inf where too few frames are shared.

    Sums over the frames that two views share are correlations of what is 0 where nothing was seen,
    and these products of Fourier transforms.
    """
    T, V, _ = posture.shape
    most = max(T - max(LEAST_OVERLAP, math.ceil(LEAST_SHARE * T)), 0)
    mask = seen.double().numpy()[..., None]
    value = np.where(mask > 0, posture.numpy(), 0.0)
    value = mask * (value - value.sum((0, 1)) / max(mask.sum(), 1.0))
    square = np.square(value).sum(-1, keepdims=True)
    there, values, squares = (np.fft.rfft(part, 2 * T, axis=0) for part in (mask, value, square))
    lags = np.arange(-most, most + 1) % (2 * T)

    def shared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.fft.irfft(first.conj() * second, 2 * T, axis=0)[lags]

    result = np.full((V, V, len(lags)), -np.inf)
    for a, b in combinations(range(V), 2):
        count = shared(there[:, a], there[:, b])  # (2 S + 1, 1)
        enough = np.rint(count[:, 0]) >= LEAST_OVERLAP
        count = np.maximum(count, 1.0)
        of_a, of_b = shared(values[:, a], there[:, b]), shared(there[:, a], values[:, b])
        both = (shared(values[:, a], values[:, b]) - of_a * of_b / count).sum(1)
        alone = [
            part[:, 0] - (np.square(of) / count).sum(1)
            for part, of in (
                (shared(squares[:, a], there[:, b]), of_a),
                (shared(there[:, a], squares[:, b]), of_b),
            )
        ]
        norm = np.sqrt(np.maximum(alone[0], 0) * np.maximum(alone[1], 0))
        score = both / np.maximum(norm, STILL2 * count[:, 0]) * np.sqrt(count[:, 0] / T)
        result[a, b] = np.where(enough, score, -np.inf)
        result[b, a] = result[a, b, ::-1]
    return result


def _candidates(correlation: np.ndarray) -> list[tuple[int, ...]] | int:
    """The likeliest lags (V,) of all views, best first; or a view that shares too few frames."""
    V, most = len(correlation), correlation.shape[2] // 2
    beams: list[tuple[float, dict[int, int]]] = [(0.0, {0: 0})]
    while len(beams[0][1]) < V:
        placed = set(beams[0][1])
        rest = [v for v in range(V) if v not in placed]
        view = max(rest, key=lambda v: max(correlation[u, v].max() for u in placed))
        grown: dict[tuple[int, ...], tuple[float, dict[int, int]]] = {}
        for score, lags in beams:
            options = {lags[u] + peak for u in placed for peak in _peaks(correlation[u, view])}
            for lag in options:
                if any(abs(lag - other) > most for other in lags.values()):
                    continue
                pairs = [correlation[u, view, most + lag - lags[u]] for u in placed]
                new = {**lags, view: lag}
                value = score + sum(pair for pair in pairs if np.isfinite(pair))
                grown[tuple(sorted(new.items()))] = (value, new)
        if not grown:
            return view
        beams = _distinct(sorted(grown.values(), key=lambda beam: -beam[0]))
    return [tuple(lags[v] for v in range(V)) for _, lags in beams]


def _distinct(beams: list[tuple[float, dict[int, int]]]) -> list[tuple[float, dict[int, int]]]:
    """The first `BEAM` that differ by more than two frames in some view: nearer ones meet."""
    kept: list[tuple[float, dict[int, int]]] = []
    for score, lags in beams:
        if all(max(abs(lags[v] - other[v]) for v in lags) > 2 for _, other in kept):
            kept.append((score, lags))
    return kept[:BEAM]


def _peaks(values: np.ndarray) -> list[int]:
    """Shifts of the highest local maxima."""
    most = len(values) // 2
    padded = np.concatenate([[-np.inf], values, [-np.inf]])
    top = (values >= padded[:-2]) & (values >= padded[2:]) & np.isfinite(values)
    where = np.flatnonzero(top)
    return (where[np.argsort(-values[where])][:PEAKS] - most).tolist()


def _moments(lags: Tensor, num_frames: int) -> Tensor:
    """Moments (N, M) of view 0's clock that all views, else at least two, have frames around."""
    first, last = -lags, num_frames - 1 - lags
    low, high = first.amax(1), last.amin(1)
    apart = high - low < LEAST_OVERLAP
    second = first.sort(1).values[:, 1], last.sort(1, descending=True).values[:, 1]
    low, high = torch.where(apart, second[0], low), torch.where(apart, second[1], high)
    share = torch.linspace(0, 1, MOMENTS, dtype=lags.dtype, device=lags.device)
    return low[:, None] + REACH / 2 + (high - low - REACH).clamp_min(0.0)[:, None] * share


def _read(keypoints: Keypoints, late: Tensor, moments: Tensor) -> tuple[Keypoints, Tensor]:
    """Smoothed keypoints (N, M, V, J, ...), and velocities px a frame, at moments (N, M) of view
    0's clock, views being late (N, M, V) by then; of a view's usual confidence and covariance."""
    at = moments[:, :, None] + late
    xy, velocity = (
        value.unflatten(0, moments.shape) for value in smooth_tracks(keypoints.xy, at.flatten(0, 1))
    )
    there = torch.isfinite(keypoints.xy).all(-1)
    count = there.sum(0).clamp_min(1)
    confidence = (keypoints.confidence * there).sum(0) / count
    covariance = (keypoints.covariance * there[..., None, None]).sum(0) / count[..., None, None]
    eye = torch.eye(2).to(covariance)
    covariance = torch.where(there.any(0)[..., None, None], covariance, eye)
    seen = torch.isfinite(xy).all(-1)
    confidence = torch.where(seen, confidence.expand(seen.shape), 0.0)
    smoothed = Keypoints(xy, covariance.expand(*seen.shape, 2, 2), confidence)
    return smoothed, velocity.nan_to_num(0.0)


def _solved(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    lags: Tensor,
    options: PosteriorConfig,
    seed: int,
    focal: Tensor,
) -> tuple[Bundle, Tensor]:
    """Rigs (N, ...) under candidate lags (N, V), and their K (N, 1, V, 3, 3), whose focal lengths
    are taken for known then.

    Args:
        focal: covariance (F, F) of the log focal lengths.
    """
    read, _ = _read(keypoints, lags[:, None], _moments(lags, len(keypoints.xy)))
    all_K = K.expand(*read.xy.shape[:2], *K.shape[1:])
    prior = Prior(torch.linalg.inv(focal), no_poses(K)).if_any()
    rig = estimate.solve(model, read, all_K, options, seed, thorough=False, prior=prior).rig
    best = rig.evidence.best
    num_bones = best.shared.shape[1] - best.errors.bias[0].numel()
    nothing = best.views.log_focal[:, :0]
    views = best.views._replace(log_focal=nothing)
    bundle = Bundle(*views, best.joints.mT, best.shared[:, :num_bones])
    K = K.expand(len(lags), *K.shape[1:]).clone()
    if best.views.log_focal.shape[1]:
        K[..., :2, :2] *= best.views.log_focal.exp()[..., None, None]
    return bundle, K[:, None]


def _adjusted(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    lags: Tensor,
    bundle: Bundle,
    options: PosteriorConfig,
) -> tuple[Lags, Tensor]:
    """Lags (N, V) adjusted together with their rigs of K (N, 1, V, 3, 3), and the mean negative log
    density (N,) of the keypoints."""
    T, errors, drift = len(keypoints.xy), None, torch.zeros_like(lags)
    for _ in range(ROUNDS):
        moments = _moments(lags, T)
        since = moments - middle(T)
        late = lags[:, None] + drift[:, None] * since[:, :, None]
        read, velocity = _read(keypoints, late, moments)
        all_K = K.expand(-1, read.xy.shape[1], -1, -1, -1)
        observations = observe(read, all_K, model.detector)
        body = body_prior(options, model.detector, observations)
        bundle, errors = adjust(observations, bundle, body, STEPS, 0, errors)
        focal = all_K.diagonal(dim1=-2, dim2=-1)[..., None, :2]
        rates = velocity / focal
        step = clock_step(bundle, observations, rates, errors, body, since, drift[:, 1:])
        most = constant((MAX_STEP, 2 * MAX_STEP / T), since.device, since.dtype)
        move = torch.nn.functional.pad(step.lags.nan_to_num(0.0).clamp(-most, most), (0, 0, 1, 0))
        lags, drift = lags + move[..., 0], drift + move[..., 1]
        finite = torch.isfinite(step.lags).flatten(1).all(1)
        bundle = where(finite, step.bundle, bundle)
        if bool((move[..., 0].abs() + 0.5 * T * move[..., 1].abs() < SETTLED).all()):
            break
    chi2 = misfits(bundle, observations, errors)[1]
    tail = constant((USUAL_TAIL,), chi2.device, chi2.dtype)
    value = log_mixture(chi2 / errors.scale2.amin(), observations.inlier, tail=tail)
    points = (observations.inlier > 0).sum((1, 2, 3)).clamp_min(1)
    cost = -value.sum((1, 2, 3)) / points
    # Neighbouring moments share frames. By what a shorter part leaves to be explained, and is
    # fitted better for it, candidates are compared as models are (Schwarz 1978).
    spacing = (moments[:, -1] - moments[:, 0]) / (MOMENTS - 1)
    repeated = ((2 * REACH + 1) / spacing.clamp_min(1e-3)).clamp_min(1.0)
    free, count = 8 * (lags.shape[1] - 1) + bundle.log_lengths.shape[1], points / repeated
    cost = cost + 0.5 * free * count.clamp_min(2.0).log() / count
    variance = step.covariance.diagonal(dim1=-2, dim2=-1) * repeated[:, None, None]
    std = torch.nn.functional.pad(variance.clamp_min(0.0).sqrt(), (0, 0, 1, 0))
    return Lags(lags, drift, *std.unbind(-1)), cost.nan_to_num(torch.inf)
