"""From candidate rigs to the best distinct optima of the joint density.

Beside the cost of keypoints and bones, what a lifter sees in each view tells candidates apart.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.geometry.rotations import rotation_angle
from ptri.geometry.triangulation import reproject, robust_joints
from ptri.posterior.adjust import adjust, median_scale2
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import Bundle, plain_errors, robust_cost
from ptri.posterior.prior import Prior
from ptri.structures import MANY_FRAMES, Observations, evenly_spread, take, tree_map

# A pose that is off by its stated error costs about one nat, one far off this many times a log.
POSE_TAIL = 2.0
MAX_SHIFT = 700.0  # mm between where the images have a joint and where the start has it
ADJUST_ITERATIONS = 12  # Levenberg-Marquardt steps from each start
KEPT_STARTS = 3  # of them are followed to the end
FIRST_FRAMES = 12  # in which the starts are told apart
HOPELESS = 100.0  # nats over the best start; limbs that are turned over cost less


class Poses(NamedTuple):
    """What a lifter makes of each view alone: the posture, which geometry knows nothing of."""

    joints: Tensor  # (B, T, V, J', 3) mm, camera frames; the first J' joints
    sigma: Tensor  # (B, T, V, J') mm, standard deviation a coordinate; infinite = not seen


def adjust_starts(
    observations: Observations,
    starts: Bundle,
    body: BodyPrior,
    settings: PosteriorConfig,
    poses: Poses | None = None,
    prior: Prior | None = None,
) -> Bundle:
    """The best distinct optima (B, K, ...) that candidates (B, C, ...) lead to.

    A third of the iterations for every candidate, in a few of many frames; the rest for the best.

    Args:
        prior: of the cameras of every rig; None: K is exact, and nothing else known.
    """
    T = observations.xy.shape[1]
    few = evenly_spread(T, FIRST_FRAMES, observations.xy.device)
    bundle, first = starts, ADJUST_ITERATIONS // 3
    copy = torch.zeros(bundle.t.shape[:2], dtype=torch.bool, device=bundle.t.device)
    for last, count, iterations, wide, frames in (
        (False, max(KEPT_STARTS, settings.num_modes), first, first, few),
        (True, settings.num_modes, ADJUST_ITERATIONS - first, 2, evenly_spread(T, T, few.device)),
    ):
        B, C = bundle.R.shape[:2]
        distinct, source = distinct_rows(copy)
        rig = distinct // C
        repeated = take(take(observations, rig), (slice(None), frames))
        flat = take(flatten(bundle), distinct)
        flat = flat._replace(joints=flat.joints[:, frames])
        flat, errors = adjust(repeated, flat, body, iterations, wide, plain_errors(repeated, prior))
        # All candidates of a rig are judged by the noise that the best of them leaves.
        at = reproject(flat.joints[None], repeated, *take(flat.views.projection, None))
        scale2 = median_scale2(at.chi2[0], repeated.inlier).clamp_min(1.0)
        errors = errors._replace(scale2=scale2[source].amin(1)[rig])
        cost = robust_cost(flat, repeated, errors, body)
        seen = repeated.inlier > 0
        behind = (seen & (at.front[0] == 0)).sum((1, 2, 3)) / seen.sum((1, 2, 3)).clamp_min(1)
        cost = cost + 1e3 * behind + strangeness(flat, poses, rig, frames)
        keep = _distinct_best(flat.R[source], cost[source], count)  # (B, K)
        rows = torch.arange(B, device=keep.device)[:, None]
        joints = bundle.joints[rows, keep]  # (B, K, T, J, 3)
        bundle, copy = take(flat, source[rows, keep]), keep == keep[:, :1]
        copy[:, 0] = False
        joints[:, :, frames] = bundle.joints
        # By now the cameras know more of each frame than the limbs that a start had turned over,
        # which bones hold where they are.
        if len(frames) < T or (T >= MANY_FRAMES and last):
            bundle = bundle._replace(joints=_triangulated(observations, bundle, joints))
    return bundle


def distinct_rows(copy: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the candidates that are no copies of their rig's first, to be worked out once.

    Args:
        copy: (B, C) bool, False in the first column.

    Returns:
        Numbers (N,) of the distinct ones among all B C, and where each candidate's result is
        found among the N, (B, C).
    """
    # The CPU waits for the GPU here, since later steps depend on the number N; it is worth it:
    # copies are up to half of the work.
    own = (~copy).flatten().nonzero()[:, 0]  # (N,)
    source = (~copy).flatten().cumsum(0).view_as(copy) - 1
    return own, torch.where(copy, source[:, :1], source)


def _triangulated(observations: Observations, bundle: Bundle, before: Tensor) -> Tensor:
    """Joints (B, K, T, J, 3) mm from the images alone, under the cameras of bundles (B, K, ...);
    those that two views do not see move with the person."""
    K = bundle.R.shape[1]
    cameras = flatten(bundle).views.projection
    joints = robust_joints(_repeat(observations, K), *cameras, iterations=4)[0].joints[0]
    before = before.flatten(0, 1)
    moved = (joints - before).nanmedian(2, keepdim=True).values  # NaN in a frame that nobody sees
    before = before + moved.nan_to_num(0.0)
    # Rays that hardly cross put a joint anywhere.
    near = (joints - before).norm(dim=-1, keepdim=True) < MAX_SHIFT
    return torch.where(near, joints, before).unflatten(0, (-1, K))


def strangeness(
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


def flatten(bundle: Bundle) -> Bundle:
    return tree_map(lambda value: value.flatten(0, 1), bundle)


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
