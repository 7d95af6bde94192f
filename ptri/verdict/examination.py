"""Which view is wrong, and how: each view is resected on what the others say of the joints.

The joints of a few frames are triangulated from all views but one (`ptri.posterior.leave_one_out`).
That view's camera is then solved anew from its keypoints with left and right exchanged, with the
image mirrored, with one pose before and another after the middle, and, where no pose suits the
keypoints, by another clock. A view that fits much better under another reading than under its own
has been read wrongly. Nothing is trained, and no truth is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.resection import Points, Pose, orthographic_starts, resect
from ptri.posterior.leave_one_out import (
    MIN_POINTS,
    STEPS,
    Known,
    first_joints,
    fit_each_view,
    view_points,
)
from ptri.posterior.optima import Poses
from ptri.structures import (
    MANY_FRAMES,
    Observations,
    cat,
    constant,
    evenly_spread,
    put,
    take,
    where,
)
from ptri.verdict.readings import Reading

NUM_FRAMES = 12  # frames looked at; labels and mirrors do not need more
SHIFT_FRAMES = 8  # from so many frames on, other clocks and moves are looked for
RATES = (1.0, 0.5, 2.0, -1.0)  # frames a frame that a view's clock may run at
MIN_SHARE = 1 / 3  # of the points that a time shift must leave in the clip
MAX_LAGS = 50  # steps of the frames' usual distance, either way
MAX_GAP = 4.0  # times the usual distance of two frames between which keypoints are interpolated
FIRST_STEPS, LAST_STEPS = 2, 5  # from each of two starts; from the better one
PROMISING = 1.5  # nats a point over the view's own cost at which a reading is given up early
LATE_COST = 1.9  # nats a point; a view that fits better in its own time is not tried in others

# Detectors exchange sides for moments; files and cameras do it for good.
MOMENTARY = (Reading.AS_IS, Reading.EXCHANGED, Reading.ARMS, Reading.LEGS)
LASTING = (Reading.AS_IS, Reading.EXCHANGED, Reading.MIRRORED, Reading.MIRRORED_EXCHANGED)


class Examination(NamedTuple):
    """How well each of B V views fits the others as it is, and how much better in A other ways.

    The ways are the readings after the first, two poses, and another clock.
    """

    readings: tuple[Reading, ...]  # the first as it is
    own: Tensor  # (B, V) nats a point as it is; inf where a view cannot be examined
    gain: Tensor  # (B, V, A) nats a point that another way saves; -inf where it was not tried
    points: Tensor  # (B, V, A) points compared
    lag: Tensor  # (B, V) the best clock's shift, in frames: the view shows so much too late
    rate: Tensor  # (B, V) and its rate: frames of the others for one of the view


@torch.no_grad()
def examine(
    observations: Observations,
    R: Tensor,
    t: Tensor,
    joints: Tensor,
    weight: Tensor,
    frames: Tensor | None = None,
    poses: Poses | None = None,
    scale2: Tensor | None = None,
) -> Examination:
    """Examines the views of B rigs.

    Args:
        observations: (B, T, V, J, ...). The rest, but for the frames: see
            `ptri.posterior.leave_one_out.fit_each_view`.
        frames: (T,) times of the frames, in units of the frames that lags are wanted in; default
            0 to T - 1.
    """
    B, T, V = observations.xy.shape[:3]
    readings = LASTING if T >= MANY_FRAMES else MOMENTARY
    blank = R.new_zeros(B, V, len(readings) + 1, dtype=torch.float32)
    own_cost, nothing = torch.full_like(blank[..., 0], torch.inf), torch.zeros_like(blank[..., 0])
    unknown = Examination(readings, own_cost, blank - torch.inf, blank, nothing, nothing + 1)
    # A lifted skeleton of few frames says too little of how the other view was read.
    if V < 3 and T < MANY_FRAMES:
        return unknown
    chosen = evenly_spread(T, NUM_FRAMES, R.device)
    few, joints, weight, poses = (
        None if part is None else take(part, (slice(None), chosen))
        for part in (observations, joints, weight, poses)
    )
    left_out = fit_each_view(few, R, t, joints, weight, poses, scale2)
    if left_out is None:
        return unknown
    known, own = left_out.known, left_out.fit
    R, t = R.float(), t.float()
    enough, each = left_out.count.flatten() >= MIN_POINTS, left_out.count.flatten().clamp_min(1)
    problems = cat([view_points(_read(known, reading), R, t) for reading in readings[1:]])
    best = _both_starts(problems, *orthographic_starts(problems))
    promising = best.cost < (own.cost + PROMISING * each).repeat(len(readings) - 1)
    # The CPU waits for the GPU here: few readings are promising, and steps are most of the work.
    best = _continue(problems, best, promising.nonzero()[:, 0])
    costs = list(best.cost.chunk(len(readings) - 1))
    moving = T >= SHIFT_FRAMES
    costs.append(_two_poses(known, own) if moving else torch.full_like(own.cost, torch.inf))
    gain = (own.cost[:, None] - torch.stack(costs, 1)) / each[:, None]  # (B V, H)
    gain = torch.where(enough[:, None], gain, -torch.inf).unflatten(0, (B, V))
    own_cost = torch.where(enough, own.cost / each, torch.inf).view(B, V)
    count = left_out.count[..., None].expand_as(gain).to(gain)
    clock = unknown.gain[..., 0], unknown.points[..., 0], unknown.lag, unknown.rate
    time = torch.arange(T, device=R.device) if frames is None else frames
    late = torch.isfinite(own_cost) & (own_cost > LATE_COST)
    if moving and float(time.diff().median()) > 0 and bool(late.any()):
        starts = (torch.stack([a, b]) for a, b in zip((R, t), _poses(known, own)))
        own_times = chosen, *starts, time.to(R)
        clock = _clocks(known, first_joints(observations), late, *own_times, own_cost)
    gain, count = (torch.cat([a, b[..., None]], -1) for a, b in zip((gain, count), clock))
    return Examination(readings, own_cost, gain, count, *clock[2:])


def _read(known: Known, reading: Reading) -> Known:
    """With the keypoints read in a certain way."""
    order = constant(reading.order, known.xy.device)
    xy, information = known.xy[..., order, :], known.information[..., order, :, :]
    inlier = torch.where(known.inlier > 0, known.inlier[..., order], 0.0)
    if reading.mirrored:
        side = constant((-1, 1), xy.device, xy.dtype)
        xy, information = xy * side, information * side * side[:, None]
    return known._replace(xy=xy, information=information, inlier=inlier)


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


def _two_poses(known: Known, own: Pose) -> Tensor:
    """Cost (B V,) of every view with one pose in the first half of the frames, another after."""
    half = known.inlier.shape[2] // 2
    cost = torch.zeros_like(own.cost)
    for part in (slice(0, half), slice(half, None)):
        some = take(known, (slice(None), slice(None), part))
        points = view_points(some, *_poses(known, own))
        cost = cost + resect(points, own.R, own.t, STEPS + LAST_STEPS).cost
    return cost


def _poses(known: Known, own: Pose) -> tuple[Tensor, Tensor]:
    """Cameras (B, V, ...) of poses (B V, ...)."""
    shape = known.joints.shape[:2]
    return own.R.unflatten(0, shape), own.t.unflatten(0, shape)


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


def _clocks(
    known: Known,
    observations: Observations,
    late: Tensor,
    chosen: Tensor,
    R: Tensor,
    t: Tensor,
    time: Tensor,
    own_cost: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best clock of each late view.

    Shifts by the frames' usual distance are tried at each rate, as many as leave a third of the
    points; a parabola through the best and its neighbours refines it.

    Args:
        R, t: (2, B, V, ...) two cameras to start from, the second the view's own.
        own_cost: (B, V) nats a point of the view by its own clock.

    Returns:
        Nats a point (B, V) saved against the view's own clock on the same frames, the number of
        points, the shift in units of time, and the rate.
    """
    rig, view = late.nonzero(as_tuple=True)  # (S,)
    step = (time[1:] - time[:-1]).median()
    half = min(int((1 - MIN_SHARE) * (time[-1] - time[0]) / step), MAX_LAGS)
    lags = torch.arange(-half, half + 1, device=R.device)
    rates = constant(RATES, R.device, R.dtype)
    middle = (time[0] + time[-1]) / 2
    # When the view shows what the others show at a time.
    at = middle + (time[chosen] - middle) / rates[:, None, None] + step * lags[:, None]
    at = at.flatten(0, 1)  # (L, T'), L clocks
    low, share, inside = interpolation(time, at)

    def frame(value: Tensor, index: Tensor) -> Tensor:  # (B, T, V, ...) to (S, L, T', ...)
        return value[rig[:, None, None], index, view[:, None, None]].to(R)

    own = take(known, (rig, view))  # (S, T', J, ...)
    L = len(low)
    # Both frames must have seen the joint, unless only one counts.
    before, after = frame(observations.inlier, low), frame(observations.inlier, low + 1)
    part = share[..., None]
    inlier = torch.where(part <= 0, before, torch.where(part >= 1, after, before.minimum(after)))
    inlier = inlier * (own.inlier > 0)[:, None] * inside[..., None]
    nearest = low + (share > 0.5)
    # The noise that the others show scales the stated information as before.
    scale = _ratio(own.information, observations.information[rig[:, None], chosen, view[:, None]])
    # The same keypoints as they are: by the joints of the moment at which the view shows them.
    early, late_share, known_then = interpolation(time[chosen], at)
    then = late_share[..., None]
    seen_then = (own.inlier[:, early] > 0) & (own.inlier[:, early + 1] > 0) & known_then[..., None]
    inlier = inlier * seen_then
    variance = torch.lerp(own.variance[:, early], own.variance[:, early + 1], then)
    then = torch.lerp(own.joints[:, early], own.joints[:, early + 1], then[..., None])
    moved = Known(
        own.joints[:, None].expand(-1, L, -1, -1, -1),
        own.variance[:, None].expand(-1, L, -1, -1),
        torch.lerp(frame(observations.xy, low), frame(observations.xy, low + 1), part[..., None]),
        frame(observations.information, nearest) * scale[:, None, None, None, None, None],
        inlier,
    )
    plain = moved._replace(joints=then, variance=variance)
    poses = [value[:, rig, view, None].expand(-1, -1, L, *value.shape[3:]) for value in (R, t)]
    points = view_points(moved, *(value[0] for value in poses))
    first = _both_starts(points, *(value.flatten(1, 2) for value in poses))
    result = resect(points, first.R, first.t, LAST_STEPS)
    own_pose = [value[1].flatten(0, 1) for value in poses]
    as_is = view_points(plain, *(value[1] for value in poses))
    as_is = resect(as_is, *own_pose, STEPS + LAST_STEPS)
    count = (inlier > 0).sum((2, 3))
    usual = (own.inlier > 0).sum((1, 2))[:, None]
    # Between frames of unlike postures the joints are not known: there its own clock cannot be
    # judged, but by what it leaves in the frames looked at.
    own_clock = torch.minimum(
        as_is.cost.view(-1, L), own_cost[rig, view][:, None] * count.view(-1, L)
    )
    # A point, since clocks leave unlike numbers of them: more of them would outweigh a better fit.
    gain = (own_clock - result.cost.view(-1, L)) / count.clamp_min(1)
    other = (rates[:, None] != 1) | (lags != 0)
    allowed = (count >= MIN_SHARE * usual) & other.flatten()
    value, best = torch.where(allowed, gain, -torch.inf).max(1)
    clock, place = best // len(lags), best % len(lags)
    around = (place[:, None] + constant((-1, 0, 1), lags.device)).clamp(0, len(lags) - 1)
    below, peak, above = gain.gather(1, clock[:, None] * len(lags) + around).unbind(1)
    bend = 2 * peak - below - above
    offset = torch.where(bend > 0, 0.5 * (above - below) / bend, 0.0).clamp(-0.5, 0.5)
    number = count.gather(1, best[:, None])[:, 0].to(R)
    results = value, number, (lags[place] + offset) * step, rates[clock]
    blank = torch.full_like(R[0, ..., 0, 0], -torch.inf), *[late.to(R) * 0] * 2, late.to(R) * 0 + 1
    return tuple(all_.index_put((rig, view), new) for all_, new in zip(blank, results))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Factor (S,) by which information (S, ...) was scaled; one where nothing was seen."""
    total = whole.flatten(1).abs().sum(1).to(part)
    return torch.where(total > 0, part.flatten(1).abs().sum(1) / total.clamp_min(1e-30), 1.0)
