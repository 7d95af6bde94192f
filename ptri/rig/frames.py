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
from ptri.structures import Keypoints

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


def coordinates(keypoints: Keypoints, K: Tensor) -> Coordinates:
    """The usual place of the person in each view, and each pair's rough epipolar geometry.

    Args:
        keypoints: (T, V, J, ...) px. K: (V, 3, 3) or (T, V, 3, 3) px.
    """
    T, V = keypoints.xy.shape[:2]
    K = K.expand(T, V, 3, 3)
    if T > ROUGH_FRAMES:
        some = torch.linspace(0, T - 1, ROUGH_FRAMES).round().long()
        keypoints, K = Keypoints(*(value[some] for value in keypoints)), K[some]
    x = _rays(keypoints, K).transpose(0, 1).flatten(1, 2)  # (V, T J, 2)
    middle = x.nanmedian(dim=1).values.nan_to_num(0.0)
    away = (x - middle[:, None]).abs().amax(-1)  # NaN where not seen
    # 1e-3 of the focal length guards a person who is a point.
    spread = 2 * away.nanmedian(dim=1).values.nan_to_num(1.0).clamp_min(1e-3)
    frame = Coordinates(middle, spread, None, None)
    rows, weight = _rows(keypoints, K, frame)
    robust = weight
    for _ in range(ROUNDS):  # iteratively reweighted eight-point method
        system = torch.einsum("tpj,tpja,tpjb->pab", robust, rows, rows)
        essential = torch.linalg.eigh(system)[1][..., 0]  # (P, 9)
        residual = torch.einsum("tpja,pa->tpj", rows, essential).abs()
        seen = torch.where(weight > 0, residual, torch.nan).transpose(0, 1).flatten(1)
        # 1e-6 guards points without noise.
        scale = (1.48 * seen.nanmedian(dim=1).values).nan_to_num(1.0).clamp_min(1e-6)  # (P,)
        robust = weight / (1 + (residual / (CAUCHY * scale[:, None])).square())
    return frame._replace(essential=essential, scale=scale)


def information(keypoints: Keypoints, K: Tensor, frame: Coordinates) -> Tensor:
    """What each frame says about the essential matrix of each pair of views.

    Rows that contradict the pair's rough essential matrix are outliers and count little; without
    that the best frames would be those with the strangest keypoints.

    Args:
        keypoints: (T, V, J, ...) px. K: (V, 3, 3) or (T, V, 3, 3) px.

    Returns:
        (T, P, 9, 9); zero where fewer than ``MIN_JOINTS`` joints are seen by both views.
    """
    K = K.expand(*keypoints.xy.shape[:2], 3, 3)
    parts = zip(*(value.split(CHUNK) for value in (*keypoints, K)))
    return torch.cat([_information(Keypoints(*part[:3]), part[3], frame) for part in parts])


def _information(keypoints: Keypoints, K: Tensor, frame: Coordinates) -> Tensor:
    rows, weight = _rows(keypoints, K, frame)
    residual = torch.einsum("tpja,pa->tpj", rows, frame.essential)
    robust = 1 / (1 + (residual / (CAUCHY * frame.scale[:, None])).square())
    weight = weight * robust
    # Along the essential matrix itself a row holds its error and nothing else.
    rows = rows - residual.unsqueeze(-1) * frame.essential[:, None]
    return torch.einsum("tpj,tpja,tpjb->tpab", weight, rows, rows)


def _rows(keypoints: Keypoints, K: Tensor, frame: Coordinates) -> tuple[Tensor, Tensor]:
    """Rows (T, P, J, 9) of the eight-point system and their information (T, P, J)."""
    x = (_rays(keypoints, K) - frame.middle[:, None]) / frame.spread[:, None, None]
    own = x.nanmedian(dim=2, keepdim=True).values  # the person in this frame and view
    size = (x - own).norm(dim=-1).nanmedian(dim=2, keepdim=True).values
    near = (x - own).norm(dim=-1) <= MAX_SPREADS * size
    seen = near & torch.isfinite(x).all(-1)  # (T, V, J)
    focal = K.double().diagonal(dim1=-2, dim2=-1)[..., :2].mean(-1)  # (T, V)
    variance = 0.5 * keypoints.covariance.double().diagonal(dim1=-2, dim2=-1).sum(-1)
    variance = variance / (focal * frame.spread).unsqueeze(-1).square()
    zero = torch.zeros_like(variance)
    variance = torch.where(seen, variance, zero)
    confidence = torch.where(seen, keypoints.confidence.double(), zero)
    x = torch.where(seen[..., None], x, torch.zeros_like(x))
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)  # (T, V, J, 3)
    first, second = _pairs(x.shape[1])
    rows = (x[:, first].unsqueeze(-1) * x[:, second].unsqueeze(-2)).flatten(-2)  # (T, P, J, 9)
    both = (confidence[:, first] * confidence[:, second]).sqrt()
    both = both * ((both > 0).sum(-1, keepdim=True) >= MIN_JOINTS)
    return rows, both / (NOISE**2 + variance[:, first] + variance[:, second])


def _rays(keypoints: Keypoints, K: Tensor) -> Tensor:
    """Normalised coordinates (T, V, J, 2), float64, NaN where not seen."""
    seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)
    xy = torch.where(seen[..., None], keypoints.xy, torch.nan).double()
    return pixel_to_normalised(xy, K.double())


def _pairs(num_views: int) -> tuple[list[int], list[int]]:
    first, second = zip(*combinations(range(num_views), 2))
    return list(first), list(second)


def usable_frames(keypoints: Keypoints) -> Tensor:
    """Frames (T,) bool in which two views see ``MIN_JOINTS`` joints each."""
    seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)  # (T, V, J)
    return (seen.sum(-1) >= MIN_JOINTS).sum(-1) >= 2


def choose_frames(keypoints: Keypoints, K: Tensor, count: int) -> list[int]:
    """At most ``count`` frames that say most about the cameras, in order of time.

    Args:
        keypoints: (T, V, J, ...) px, frames in order of time. K: (V, 3, 3) or (T, V, 3, 3)
            px.

    Returns:
        Indices of frames in which two views see at least ``MIN_JOINTS`` joints each; all of them
        where there are no more than ``count``.
    """
    good = torch.nonzero(usable_frames(keypoints))[:, 0]
    if len(good) <= count:
        return good.tolist()
    part = Keypoints(*(value[good] for value in keypoints))
    K = K.expand(*keypoints.xy.shape[:2], 3, 3)[good]
    each = information(part, K, coordinates(part, K))  # (N, P, 9, 9)
    return sorted(good[greedy(each, good, count)].tolist())


def greedy(each: Tensor, when: Tensor, count: int) -> Tensor:
    """Indices (count,) of the frames that raise the log determinant most, in order of choice.

    Args:
        each: (N, P, 9, 9) information of the frames. when: (N,) their places in time, frames.
    """
    total = start_information(each)
    flat = each.flatten(1)
    fresh = torch.ones(len(each), dtype=each.dtype, device=each.device)
    free = torch.ones(len(each), dtype=torch.bool, device=each.device)
    chosen = []
    for _ in range(min(count, len(each))):
        # d log det = trace(S^-1 A) bounds the gain; the best by it are computed exactly.
        bound = flat @ torch.linalg.inv(total).mT.flatten()
        bound = torch.where(free, bound * fresh, -torch.inf)
        best = bound.topk(min(EXACT, int(free.sum()))).indices
        gain = log_det(total + fresh[best, None, None, None] * each[best]) - log_det(total)
        pick = best[gain.argmax()]
        total = total + fresh[pick] * each[pick]
        free[pick] = False
        fresh = torch.minimum(fresh, freshness(when, when[pick]))
        chosen.append(pick)
    return torch.stack(chosen)


def weighted_information(each: Tensor, when: Tensor) -> Tensor:
    """Information (N, P, 9, 9), each frame's by what the nearest other in time does not hold."""
    if len(when) < 2:
        return each
    apart = (when[:, None] - when[None]).abs().double()
    apart.fill_diagonal_(torch.inf)
    return each * (1 - CORRELATION ** apart.amin(1))[:, None, None, None]


def least_informative(each: Tensor, when: Tensor) -> int:
    """The frame without which the others say most. Arguments as in `greedy`."""
    weighted = weighted_information(each, when)
    total = start_information(each) + weighted.sum(0)
    return int(log_det(total - weighted).argmax())


def total_log_det(each: Tensor, when: Tensor) -> float:
    """How much all frames together say: log determinant of their information."""
    return float(log_det(start_information(each) + weighted_information(each, when).sum(0)))


def start_information(each: Tensor) -> Tensor:
    """Information (P, 9, 9) before the first frame: essential matrices have unit norm."""
    return torch.eye(9, dtype=each.dtype, device=each.device).expand(each.shape[1:])


def freshness(when: Tensor, other: Tensor) -> Tensor:
    """Share (...,) of a frame's information that a frame at another time does not hold."""
    return 1 - CORRELATION ** (when - other).abs().double()


def log_det(information: Tensor) -> Tensor:
    """Sum over pairs of the log determinants (...,) of (..., P, 9, 9)."""
    return torch.linalg.slogdet(information).logabsdet.sum(-1)
