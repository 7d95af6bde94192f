"""Which view is wrong, and how: each view is resected on what the others say of the joints.

The joints of a few frames are triangulated from all views but one. That view's camera is then
solved anew from its keypoints as they are, with left and right exchanged, with the image mirrored,
and, where no pose suits the keypoints, with its frames shifted. A view that fits much better under
another reading than under its own has been read wrongly. Nothing is trained, and no truth is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.rays import MEDIAN_CHI2, responsibility
from ptri.geometry.resection import Points, Pose, orthographic_starts, resect, square_root
from ptri.geometry.rotations import rotation_angle
from ptri.geometry.triangulation import (
    Reprojection,
    Triangulation,
    reproject,
    weighted_triangulation,
)
from ptri.structures import (
    MANY_FRAMES,
    Observations,
    cat,
    constant,
    evenly_spread,
    put,
    take,
    tree_map,
    where,
)
from ptri.verdict.readings import NUM_JOINTS, Reading

NUM_FRAMES = 12  # frames looked at; labels and mirrors do not need more
SHIFT_FRAMES = 8  # from so many frames on, shifts in time are looked for
MAX_SIGMA = 150.0  # mm; joints that the other views leave less certain take no part
ANCHOR_SIGMA = 1000.0  # mm, keeps joints that no other view sees finite
NEAREST = 500.0  # mm, depth of the nearest joint when a joint's doubt is turned into the image's
MIN_POINTS = 8  # a view with fewer points that the others know as well is not examined
MIN_SHARE = 1 / 3  # of the points that a time shift must leave in the clip
MAX_LAGS = 50  # steps of the frames' usual distance, either way
MAX_GAP = 4.0  # times the usual distance of two frames between which keypoints are interpolated
# Levenberg-Marquardt steps: from the estimate; from each of two starts; from the better one.
OWN_STEPS, FIRST_STEPS, LAST_STEPS = 4, 2, 5
PROMISING = 1.5  # nats a point over the view's own cost at which a reading is given up early
LATE_COST = 1.9  # nats a point; a view that fits better in its own time is not tried in others

# Detectors exchange sides for moments; files and cameras do it for good.
MOMENTARY = (Reading.AS_IS, Reading.EXCHANGED, Reading.ARMS, Reading.LEGS)
LASTING = (Reading.AS_IS, Reading.EXCHANGED, Reading.MIRRORED, Reading.MIRRORED_EXCHANGED)


class Examination(NamedTuple):
    """How well each view fits the others under each of H readings, the first as it is."""

    readings: tuple[Reading, ...]  # H
    cost: Tensor  # (B, V, H) nats a point; inf where a view cannot be examined
    points: Tensor  # (B, V) points compared, in the frames looked at
    turned: Tensor  # (B, V, H) rad, from the estimated camera to the reading's; 0 where blind
    lag_cost: Tensor  # (B, V) nats a point at the best time shift; inf where none was tried
    lag: Tensor  # (B, V) the best shift, in frames; what the view shows comes so much too late
    spacing: float  # frames from one to the next of those pooled


class _Known(NamedTuple):
    """What all views but v know of the joints, and view v's keypoints; (B, V, T, J, ...)."""

    joints: Tensor  # mm
    variance: Tensor  # mm^2, of a coordinate
    xy: Tensor  # normalised
    information: Tensor  # (..., 2, 2) of xy, less where the others show more noise than stated
    inlier: Tensor  # 0 where the view or the others do not know the joint


@torch.no_grad()
def examine(
    observations: Observations,
    R: Tensor,
    t: Tensor,
    joints: Tensor,
    weight: Tensor,
    frames: Tensor | None = None,
) -> Examination:
    """Examines the views of B rigs; of two views nothing can be said.

    Args:
        observations: (B, T, V, J, ...). R, t: (B, V, 3, 3), (B, V, 3) mm, the estimated cameras.
        joints: (B, T, J, 3) mm. weight: (B, T, V, J) responsibility of the inlier under them.
        frames: (T,) times of the frames, in units of the frames that lags are wanted in; default
            0 to T - 1.
    """
    B, T, V = observations.xy.shape[:3]
    readings = LASTING if T >= MANY_FRAMES else MOMENTARY
    if V < 3:
        blank = R.new_full((B, V, len(readings)), torch.inf)
        none, first = torch.zeros_like(blank), blank[..., 0]
        return Examination(readings, blank, none[..., 0].long(), none, first, none[..., 0], 1.0)
    observations = Observations(
        observations.xy[..., :NUM_JOINTS, :], observations.information[..., :NUM_JOINTS, :, :],
        observations.inlier[..., :NUM_JOINTS], observations.held[..., :NUM_JOINTS],
    )  # fmt: skip
    chosen = evenly_spread(T, NUM_FRAMES, R.device)
    few = take(observations, (slice(None), chosen))
    known = _leave_one_out(
        few, R, t, joints[:, chosen, :NUM_JOINTS], weight[:, chosen, :, :NUM_JOINTS]
    )
    # Normalised coordinates and millimetres keep their digits in float32.
    known = tree_map(Tensor.float, known)
    R, t = R.float(), t.float()
    points = (known.inlier > 0).sum((2, 3))
    count = points.flatten().clamp_min(1)
    start = R.flatten(0, 1), t.flatten(0, 1)
    own = resect(_points(known, Reading.AS_IS, R, t), *start, OWN_STEPS)
    problems = cat([_points(known, reading, R, t) for reading in readings[1:]])
    best = _both_starts(problems, *orthographic_starts(problems))
    promising = best.cost < (own.cost + PROMISING * count).repeat(len(readings) - 1)
    # The CPU waits for the GPU here: few readings are promising, and steps are most of the work.
    best = _continue(problems, best, promising.nonzero()[:, 0])
    poses = [torch.stack([a, *b.chunk(len(readings) - 1)], 1) for a, b in zip(own, best)]
    cost = (poses[2] / count[:, None]).unflatten(0, (B, V))
    turned = rotation_angle(poses[0].unflatten(0, (B, V)) @ R.unsqueeze(2).mT)
    blind = (points < MIN_POINTS)[..., None]
    cost, turned = torch.where(blind, torch.inf, cost), torch.where(blind, 0.0, turned)
    lag, lag_cost = torch.zeros_like(cost[..., 0]), torch.full_like(cost[..., 0], torch.inf)
    late = torch.isfinite(cost[..., 0]) & (cost.amin(-1) > LATE_COST)
    spacing = 1.0 if frames is None or T == 1 else float(frames.diff().median())
    if T >= SHIFT_FRAMES and spacing > 0 and bool(late.any()):
        time = torch.arange(T, device=R.device) if frames is None else frames
        poses = (torch.stack([a, b.unflatten(0, (B, V))]) for a, b in ((R, own.R), (t, own.t)))
        lag, lag_cost = _shifts(known, observations, late, chosen, *poses, time.to(R))
    return Examination(readings, cost, points, turned, lag_cost, lag, spacing)


def _leave_one_out(
    observations: Observations, R: Tensor, t: Tensor, joints: Tensor, weight: Tensor
) -> _Known:
    """Joints from all views but one, for each view; reweighted once, by the mixture.

    Index letters: e is the view left out, the camera hypothesis here; v one of the others.
    """
    V = R.shape[1]
    others = 1 - torch.eye(V, dtype=R.dtype, device=R.device)[:, None, None, :, None]
    seen = observations.inlier * others  # (E, B, T, V, J)
    hypotheses = R.expand(V, *R.shape), t.expand(V, *t.shape)

    def solve(weight: Tensor, at: Reprojection) -> Triangulation:
        return weighted_triangulation(
            observations, *hypotheses, weight, at.depth, joints, ANCHOR_SIGMA**-2
        )

    first = solve(weight * others, reproject(joints[None], observations, R[None], t[None]))
    at = reproject(first.joints, observations, *hypotheses)
    noise = _noise(at.chi2, seen)[..., None, None, None]  # (E, B, 1, 1, 1)
    share = responsibility(at.chi2 / noise, seen) * at.front
    points, covariance = (value.transpose(0, 1) for value in solve(share / noise, at))
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)  # (B, V, T, J)
    xy, information, inlier = (value.transpose(1, 2) for value in observations[:3])
    information = information / noise.transpose(0, 1).unsqueeze(-1)
    return _Known(points, variance, xy, information, inlier * (variance < MAX_SIGMA**2))


def _noise(chi2: Tensor, seen: Tensor) -> Tensor:
    """Squared noise scale (E, B), at least one, of the median residual (E, B, T, V, J)."""
    views = (seen > 0).sum(-2, keepdim=True)
    # A joint takes three of its 2 V coordinates; of two views, one coordinate in four is left.
    left = (2 * views - 3).clamp_min(1) / (2 * views).clamp_min(4)
    each = torch.where(seen > 0, chi2 / left, torch.nan).flatten(2)
    return (each.nanmedian(-1).values.nan_to_num(MEDIAN_CHI2) / MEDIAN_CHI2).clamp_min(1.0)


def _points(known: _Known, reading: Reading, R: Tensor, t: Tensor) -> Points:
    """The resection of every view (B V problems) with its keypoints read in a certain way."""
    order = constant(reading.order, R.device)
    xy, information = known.xy[..., order, :], known.information[..., order, :, :]
    inlier = torch.where(known.inlier > 0, known.inlier[..., order], 0.0)
    if reading.mirrored:
        side = constant((-1, 1), xy.device, xy.dtype)
        xy, information = xy * side, information * side * side[:, None]
    depth = torch.einsum("bvc,bvtjc->bvtj", R[:, :, 2], known.joints) + t[:, :, None, None, 2]
    # (S + s I)^-1 = (I + s L)^-1 L for the joint's own doubt s, in closed form:
    # (L + s det(L) I) / (1 + s tr(L) + s^2 det(L)).
    s = known.variance / depth.clamp_min(NEAREST).square()
    a, b, c = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
    det = a * c - b * b
    total = 1 + s * (a + c) + s * s * det
    a, b, c = (a + s * det) / total, b / total, (c + s * det) / total
    information = torch.stack([a, b, b, c], -1).unflatten(-1, (2, 2))
    root = square_root(torch.where((inlier > 0)[..., None, None], information, 0.0))
    parts = (known.joints, xy, root, inlier)
    return Points(*(part.flatten(0, 1).flatten(1, 2) for part in parts))


def _both_starts(points: Points, R: Tensor, t: Tensor) -> Pose:
    """A few steps from each of two starts (2, N, ...); the one that leads to less."""
    pose = resect(cat([points, points]), R.flatten(0, 1), t.flatten(0, 1), FIRST_STEPS)
    first, second = (Pose(*part) for part in zip(*(value.chunk(2) for value in pose)))
    less = second.cost < first.cost
    return where(less, second, first)


def _continue(points: Points, pose: Pose, rows: Tensor) -> Pose:
    """More steps for some of the problems."""
    more = resect(take(points, rows), pose.R[rows], pose.t[rows], LAST_STEPS)
    return put(pose, rows, more)


def interpolation(time: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where times (..., N) lie between increasing times (T,).

    Returns:
        The frame before (..., N), the share of the next one, and whether there are both, close
        enough together to draw a line between them.
    """
    T = len(time)
    low = (torch.searchsorted(time.contiguous(), at.contiguous(), right=True) - 1).clamp(0, T - 2)
    gap = time[low + 1] - time[low]
    share = (at - time[low]) / gap
    near = gap <= MAX_GAP * (time[1:] - time[:-1]).median()
    exact = (share <= 0) | (share >= 1)
    inside = (share >= 0) & (share <= 1) & (near | exact)
    return low, share.clamp(0, 1), inside


def _shifts(
    known: _Known,
    observations: Observations,
    late: Tensor,
    chosen: Tensor,
    R: Tensor,
    t: Tensor,
    time: Tensor,
) -> tuple[Tensor, Tensor]:
    """The best time shift (B, V) of each late view, in units of time, and its cost a point.

    R, t (2, B, V, ...) are two cameras to start from.
    Shifts by the frames' usual distance are tried, as many as leave a third of the points; a
    parabola through the least cost and its neighbours refines the best.
    """
    rig, view = late.nonzero(as_tuple=True)  # (S,)
    step = (time[1:] - time[:-1]).median()
    half = min(int((1 - MIN_SHARE) * (time[-1] - time[0]) / step), MAX_LAGS)
    lags = torch.arange(-half, half + 1, device=R.device)  # (L,)
    low, share, inside = interpolation(time, time[chosen] + step * lags[:, None])  # (L, T')

    def frame(value: Tensor, index: Tensor) -> Tensor:  # (B, T, V, ...) to (S, L, T', ...)
        return value[rig[:, None, None], index, view[:, None, None]].to(R)

    own = take(known, (rig, view))  # (S, T', J, ...)
    L = len(lags)
    # Both frames must have seen the joint, unless only one counts.
    before, after = frame(observations.inlier, low), frame(observations.inlier, low + 1)
    part = share[..., None]
    inlier = torch.where(part <= 0, before, torch.where(part >= 1, after, before.minimum(after)))
    inlier = inlier * (own.inlier > 0)[:, None] * inside[..., None]
    nearest = low + (share > 0.5)
    # The noise that the others show scales the stated information as before.
    scale = _ratio(own.information, observations.information[rig[:, None], chosen, view[:, None]])
    moved = _Known(
        own.joints[:, None].expand(-1, L, -1, -1, -1),
        own.variance[:, None].expand(-1, L, -1, -1),
        torch.lerp(frame(observations.xy, low), frame(observations.xy, low + 1), part[..., None]),
        frame(observations.information, nearest) * scale[:, None, None, None, None, None],
        inlier,
    )
    poses = [value[:, rig, view, None].expand(-1, -1, L, *value.shape[3:]) for value in (R, t)]
    points = _points(moved, Reading.AS_IS, *(value[0] for value in poses))
    first = _both_starts(points, *(value.flatten(1, 2) for value in poses))
    result = resect(points, first.R, first.t, LAST_STEPS)
    count = (inlier > 0).sum((2, 3))
    usual = (own.inlier > 0).sum((1, 2))[:, None]
    cost = result.cost.view(-1, L) / count.clamp_min(1)
    cost = torch.where(count >= MIN_SHARE * usual, cost, torch.inf)
    value, best = cost.min(1)
    around = (best[:, None] + constant((-1, 0, 1), lags.device)).clamp(0, L - 1)
    below, middle, above = cost.gather(1, around).unbind(1)
    bend = below - 2 * middle + above
    offset = torch.where(torch.isfinite(bend) & (bend > 0), 0.5 * (below - above) / bend, 0.0)
    lag, lag_cost = late.to(R) * 0, torch.full_like(R[0, ..., 0, 0], torch.inf)
    lag[rig, view] = (lags[best] + offset.clamp(-0.5, 0.5)) * step
    lag_cost[rig, view] = value
    return lag, lag_cost


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Factor (S,) by which information (S, ...) was scaled; one where nothing was seen."""
    total = whole.flatten(1).abs().sum(1).to(part)
    return torch.where(total > 0, part.flatten(1).abs().sum(1) / total.clamp_min(1e-30), 1.0)
