"""Which frames of a long sequence say most about the cameras, before the cameras are known.

Every pair of views (a, b) that sees a joint constrains the pair's essential matrix E by
``x_a^T E x_b = 0``, one row ``vec(x_a x_b^T)`` of a system of nine columns (the eight-point method;
Hartley and Zisserman, Multiple View Geometry, 2004, section 11.2). A frame's rows give its
information ``A = sum w r r^T / sigma^2`` for each pair, and a set of frames is as good as

    sum over pairs  log det (I + sum over its frames A)                    (D-optimality).

The sum is submodular, so taking the best frame again and again is near the optimum (Nemhauser et
al. 1978). A frame close in time to one already taken brings less, because detectors err together.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.cameras import pixel_to_normalised
from ptri.rig.check import RigInput
from ptri.structures import Keypoints, constant, evenly_spread, take

MIN_JOINTS = 6  # that two views see together in a frame that may be chosen
NOISE = 0.02  # of an epipolar residual, in spreads of the joints, beside the stated covariance
CAUCHY = 1.0  # robust standard deviations at which an epipolar residual's weight is halved
ROUNDS = 10  # of reweighting
# Of a frame's information, what the next one repeats: detectors err alike in neighbouring frames.
# Median rotation error of 24 generated scenes with errors correlated by 0.9 a frame, 10 frames of
# 150: chosen 2.6 deg, evenly spread 3.3 where the person mostly stands still; 0.85 and 0.92 where
# it moves. 0.2 gives 2.6 and 0.84.
CORRELATION = 0.5
# A point further than this from the person's middle, in median distances, is no evidence.
MAX_SPREADS = 4.0
EXACT = 16  # candidates whose gain is computed exactly in each step
CHUNK = 256  # frames at once: bounds the memory
ROUGH_FRAMES = 1000  # frames, evenly spread, that the rough essential matrices come from


class Coordinates(NamedTuple):
    """Of the normalised image planes of V views, for information that can be compared."""

    middle: Tensor  # (V, 2) the person's usual place
    spread: Tensor  # (V,) of the joints around it
    essential: Tensor  # (P, 9) rough essential matrices, for the outliers' sake; P pairs
    scale: Tensor  # (P,) robust standard deviation of their residuals


def coordinates(given: RigInput) -> Coordinates:
    """The usual place of the person in each view, and each pair's rough epipolar geometry."""
    T = len(given.K)
    if T > ROUGH_FRAMES:
        given = take(given, evenly_spread(T, ROUGH_FRAMES, given.K.device))
    x = _rays(given).transpose(0, 1).flatten(1, 2)  # (V, T J, 2)
    middle = x.nanmedian(dim=1).values.nan_to_num(0.0)
    away = (x - middle[:, None]).abs().amax(-1)  # NaN where not seen
    # 1e-3 of the focal length guards a person who is a point.
    spread = 2 * away.nanmedian(dim=1).values.nan_to_num(1.0).clamp_min(1e-3)
    rows, weight = _rows(given, middle, spread)
    robust = weight
    for _ in range(ROUNDS):  # iteratively reweighted eight-point method
        system = torch.einsum("tpj,tpja,tpjb->pab", robust, rows, rows)
        essential = torch.linalg.eigh(system)[1][..., 0]  # (P, 9)
        residual = torch.einsum("tpja,pa->tpj", rows, essential).abs()
        seen = torch.where(weight > 0, residual, torch.nan).transpose(0, 1).flatten(1)
        # 1e-6 guards points without noise.
        scale = (1.48 * seen.nanmedian(dim=1).values).nan_to_num(1.0).clamp_min(1e-6)  # (P,)
        robust = weight / (1 + (residual / (CAUCHY * scale[:, None])).square())
    return Coordinates(middle, spread, essential, scale)


def information(given: RigInput, frame: Coordinates | None = None) -> Tensor:
    """What each frame says about the essential matrix of each pair of views.

    Rows that contradict the pair's rough essential matrix are outliers and count little; without
    that the best frames would be those with the strangest keypoints.

    Args:
        frame: None: that of the same frames.

    Returns:
        (T, P, 9, 9); zero where fewer than ``MIN_JOINTS`` joints are seen by both views.
    """
    frame = frame or coordinates(given)
    parts = []
    for first in range(0, len(given.K), CHUNK):
        part = take(given, slice(first, first + CHUNK))
        rows, weight = _rows(part, frame.middle, frame.spread)
        residual = torch.einsum("tpja,pa->tpj", rows, frame.essential)
        weight = weight / (1 + (residual / (CAUCHY * frame.scale[:, None])).square())
        # Along the essential matrix itself a row holds its error and nothing else.
        rows = rows - residual.unsqueeze(-1) * frame.essential[:, None]
        parts.append(torch.einsum("tpj,tpja,tpjb->tpab", weight, rows, rows))
    return torch.cat(parts)


def _rows(given: RigInput, middle: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (T, P, J, 9) of the eight-point system and their information (T, P, J)."""
    x = (_rays(given) - middle[:, None]) / spread[:, None, None]
    person = x.nanmedian(dim=2, keepdim=True).values  # in this frame and view
    away = (x - person).norm(dim=-1)
    near = away <= MAX_SPREADS * away.nanmedian(dim=2, keepdim=True).values
    seen = near & torch.isfinite(x).all(-1)  # (T, V, J)
    focal = given.K.diagonal(dim1=-2, dim2=-1)[..., :2].mean(-1)  # (T, V)
    variance = 0.5 * given.keypoints.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    variance = torch.where(seen, variance / (focal * spread).unsqueeze(-1).square(), 0.0)
    confidence = torch.where(seen, given.keypoints.confidence, 0.0)
    x = torch.where(seen[..., None], x, 0.0)
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)  # (T, V, J, 3)
    first, second = (constant(part, x.device) for part in zip(*combinations(range(x.shape[1]), 2)))
    rows = (x[:, first].unsqueeze(-1) * x[:, second].unsqueeze(-2)).flatten(-2)  # (T, P, J, 9)
    both = (confidence[:, first] * confidence[:, second]).sqrt()
    both = both * ((both > 0).sum(-1, keepdim=True) >= MIN_JOINTS)
    return rows, both / (NOISE**2 + variance[:, first] + variance[:, second])


def _rays(given: RigInput) -> Tensor:
    """Normalised coordinates (T, V, J, 2), NaN where not seen."""
    rays = pixel_to_normalised(given.keypoints.xy, given.K)
    return torch.where((given.keypoints.confidence > 0)[..., None], rays, torch.nan)


def usable_frames(keypoints: Keypoints) -> Tensor:
    """Frames (T,) bool in which two views see ``MIN_JOINTS`` joints each."""
    seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)  # (T, V, J)
    return (seen.sum(-1) >= MIN_JOINTS).sum(-1) >= 2


def choose_frames(given: RigInput, count: int) -> list[int]:
    """At most ``count`` frames that say most about the cameras, in order of time.

    Returns:
        Indices of frames in which two views see at least ``MIN_JOINTS`` joints each; all of them
        where there are no more than ``count``. A frame that repeats another one says nothing.
    """
    good = torch.nonzero(usable_frames(given.keypoints))[:, 0]
    good = good[_first_of_each(given.keypoints.xy[good])]
    if len(good) > count:
        good = good[greedy(information(take(given, good)), good, count)]
    return sorted(good.tolist())


def _first_of_each(xy: Tensor) -> Tensor:
    """Indices of keypoints (T, V, J, 2) without those that are equal to earlier ones."""
    rows = xy.flatten(1).nan_to_num(torch.inf)
    kinds, kind = torch.unique(rows, dim=0, return_inverse=True)
    places = torch.arange(len(rows), device=xy.device)
    first = places.new_full((len(kinds),), len(rows))
    return first.scatter_reduce(0, kind, places, "amin").sort().values


def greedy(each: Tensor, when: Tensor, count: int) -> Tensor:
    """Indices (count,) of the frames that raise the log determinant most, in order of choice.

    Args:
        each: (N, P, 9, 9) information of the frames. when: (N,) their places in time, frames.
    """
    total = torch.zeros_like(each[0])
    eye = torch.eye(9, dtype=each.dtype, device=each.device)
    fresh = torch.ones(len(each), dtype=each.dtype, device=each.device)
    free = torch.ones(len(each), dtype=torch.bool, device=each.device)
    chosen = []
    for _ in range(min(count, len(each))):
        # d log det = trace(S^-1 A) bounds the gain; the best by it are computed exactly.
        bound = each.flatten(1) @ torch.linalg.inv(total + eye).mT.flatten()
        bound = torch.where(free, bound * fresh, -torch.inf)
        best = bound.topk(min(EXACT, len(each) - len(chosen))).indices
        gain = log_det(total + fresh[best, None, None, None] * each[best])
        # Of one place (1,), not a number, for which the CPU would wait for the GPU.
        pick = best[gain.argmax(0, keepdim=True)]
        total = total + (fresh[pick, None, None, None] * each[pick])[0]
        free[pick] = False
        fresh = torch.minimum(fresh, 1 - CORRELATION ** (when - when[pick]).abs().double())
        chosen.append(pick)
    return torch.cat(chosen)


def weighted_information(each: Tensor, when: Tensor) -> Tensor:
    """Information (N, P, 9, 9), each frame's by what the nearest other in time does not hold."""
    if len(when) < 2:
        return each
    apart = (when[:, None] - when[None]).abs().double()
    apart.fill_diagonal_(torch.inf)
    return each * (1 - CORRELATION ** apart.amin(1))[:, None, None, None]


def log_det(information: Tensor) -> Tensor:
    """Sum over pairs of the log determinants (...,) of (..., P, 9, 9), beside what is known before.

    That is a unit matrix, since essential matrices have unit norm.
    """
    eye = torch.eye(9, dtype=information.dtype, device=information.device)
    return torch.linalg.slogdet(information + eye).logabsdet.sum(-1)
