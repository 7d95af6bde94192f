"""The rules of the verdict: from what was measured to whether a rig can be trusted.

Four kinds of evidence, from the posterior and the keypoints alone:

* too little: a view without keypoints, keypoints on a line, rays that hardly cross, or a posterior
  so wide (or of several modes) that some pair of cameras may be turned against each other by more
  than the limit;
* one bad view: each view is held against what the others say of the joints
  (`ptri.verdict.examination`); it may fit them better with left and right exchanged, mirrored or
  at another time, or fit nowhere;
* keypoints that disagree as a whole: most are outliers, or many times as far off as they state;
* of a recording, two halves that give other cameras (`ptri.recordings.solve`).

The verdict reports. It does not repair: solving again with a view read anew did more harm than good
on detectors that nobody had tuned to (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ptri.posterior.optima import Poses
from ptri.posterior.sampling import RigSolution
from ptri.posterior.width import num_alike
from ptri.structures import evenly_spread, take
from ptri.verdict.examination import NUM_FRAMES, Examination
from ptri.verdict.figures import Figures, finite, measure, spread_deg
from ptri.verdict.verdict import Code, Verdict

MIN_KEYPOINTS = 6  # of a view, over all frames: a camera pose has six unknowns
# A view is blamed where another way to take it saves so many nats against taking it as it is: what
# it takes to believe in a mistake that one view in fifty has. See `independent`.
BLAME_NATS = 4.0
EXPLAINED = 0.7  # of what a view fits worse than the usual one: less is another fault
MISFIT_NATS = 2.6  # a point, so much worse than the usual view
FITS_NATS = 3.0  # a point, at most, of the others: where two views fit badly, none is blamed alone
MAX_NOISE = 5.0  # residuals over their stated standard deviation
MIN_USED = 0.4  # share of a view's keypoints that are no outliers
# Two views that meet at less do not tell focal lengths that are known worse than `FOCAL_KNOWN`: at
# 20 deg regions are too small, at 60 they hold (docs/rig_posterior.md).
MIN_FOCAL_PARALLAX_DEG = 40.0
USUAL_USED = 0.6  # the same of the views beside one that is odd


def judge(
    solution: RigSolution,
    max_rotation_std_deg: float,
    times: Tensor | None = None,
    poses: Poses | None = None,
) -> list[Verdict]:
    """Whether each of B rigs can be trusted, and if not, why.

    Args:
        max_rotation_std_deg: a pair of cameras that may be turned against each other by more
            (root mean square of the angle) is too uncertain.
        times: (T,) numbers of the frames, in which shifts in time are told; default 0 to T - 1.
        poses: the skeletons of the single views, by which two views are examined.
    """
    figures, examination = measure(solution, times, poses)
    # The views' disagreement widens a rig as a whole: of the others it says too much.
    spread, _ = spread_deg(finite(solution.posterior._replace(R=solution.usual))[0])
    suspects = blame(examination, independent(solution, spread, max_rotation_std_deg))
    return [decide(*rig, max_rotation_std_deg) for rig in zip(figures, suspects)]


def decide(figures: Figures, suspect: Verdict | None, limit: float) -> Verdict:
    """The verdict on one rig: the first objection.

    Args:
        suspect: on a view that does not fit the others as it is, see `blame`.
        limit: deg, as in `judge`.
    """
    objections = _objections(figures, suspect, limit)
    return next(objections, Verdict(Code.ACCEPTED))._replace(figures=figures)


def _objections(figures: Figures, suspect: Verdict | None, limit: float) -> Iterator[Verdict]:
    """All that speaks against a rig, in the order in which it counts."""
    least = min(figures.seen)
    if least < MIN_KEYPOINTS:
        view = figures.seen.index(least)
        yield Verdict(Code.FEW_KEYPOINTS, view, value=least, limit=MIN_KEYPOINTS)
    if not figures.finite:
        yield Verdict(Code.NO_SAMPLE)
    yield from _shape(figures, 0)
    if suspect is not None:
        yield suspect
    told = figures.parallax_deg if len(figures.seen) == 2 else MIN_FOCAL_PARALLAX_DEG
    if figures.focal_unknown and told < MIN_FOCAL_PARALLAX_DEG:
        yield Verdict(Code.FOCAL_UNKNOWN, value=told, limit=MIN_FOCAL_PARALLAX_DEG)
    used = figures.used
    if min(used) < MIN_USED and sorted(used)[(len(used) - 1) // 2] > USUAL_USED:
        yield Verdict(Code.MISFIT, used.index(min(used)))
    if figures.noise > MAX_NOISE:
        yield Verdict(Code.NOISE, value=figures.noise, limit=MAX_NOISE)
    share = sum(used) / len(used)
    if share < MIN_USED:
        yield Verdict(Code.OUTLIERS, value=share, limit=MIN_USED)
    worst = max(map(max, figures.doubt_deg))
    if worst > limit and figures.several:
        yield Verdict(Code.SEVERAL_MODES)
    if worst > limit:
        view = next(i for i, row in enumerate(figures.doubt_deg) if worst in row)
        other = figures.doubt_deg[view].index(worst)
        yield Verdict(Code.UNCERTAIN, view, other, value=worst, limit=limit)
    yield from _shape(figures, 1)


def _shape(figures: Figures, which: int) -> Iterator[Verdict]:
    """Keypoints on a line and rays that hardly cross, at the stated noise (0) or the residuals'."""
    if figures.on_a_line[which]:
        yield Verdict(Code.ON_A_LINE)
    angle, needed = figures.parallax_deg, figures.parallax_needed_deg[which]
    if angle < needed:
        yield Verdict(Code.PARALLAX, value=angle, limit=needed)


def independent(solution: RigSolution, spread: Tensor, limit: float) -> Tensor:
    """Share (B, V) of each view's keypoints that count where it is held against the others.

    Keypoints that err together count as one, by the rig's own law (`ptri.posterior.width`), and
    all count less where the others' cameras are uncertain: half, at the limit.

    Args:
        spread: (B, V, V) deg, as of `ptri.verdict.figures.spread_deg`. limit: deg, as in `judge`.
    """
    modes, joints = solution.modes, solution.evidence.joints.nan_to_num()
    joints = joints[:, evenly_spread(joints.shape[1], NUM_FRAMES, joints.device)]
    best = take(modes.together, slice(None, None, modes.mean.shape[1]))
    V, others = spread.shape[1], torch.ones_like(spread[0])
    if V > 2:
        others.fill_diagonal_(0.0)
    else:  # held against lifted skeletons, which err as one, under cameras of each other
        best = best._replace(joints=torch.ones_like(best.joints))
    frames, near = num_alike(joints, best)
    frames = torch.full_like(frames, joints.shape[1]) if V == 2 else frames
    others = (spread[:, None] * others[:, :, None] * others[:, None]).amax((2, 3))  # (B, V)
    return 1 / (frames * near)[:, None] / (1 + (others / limit).square())


def blame(examination: Examination, worth: Tensor) -> list[Verdict | None]:
    """Of each rig the view that fits the others better in another way, or worst in all.

    Args:
        worth: (B, V) of a point of each view, see `independent`.
    """
    own, gain = examination.own, examination.gain
    count = worth[..., None] * examination.points  # (B, V, A)
    usual = torch.where(torch.isfinite(own), own, torch.nan).nanmedian(1, keepdim=True).values
    excess = torch.where(torch.isfinite(own), own - usual, 0.0).nan_to_num(0.0)  # (B, V)
    alone = torch.ones_like(own, dtype=torch.bool)
    if own.shape[1] > 3:  # a bad view spoils what two others say of each other
        odd = own.nan_to_num(posinf=0.0) > FITS_NATS
        alone = odd.sum(1, keepdim=True) - odd.to(torch.int64) == 0
    nats = count * gain
    # A second pose has six unknowns, each worth half the logarithm of the points (Schwarz 1978).
    nats[..., -2] -= 3 * count[..., -2].clamp_min(1.0).log()
    explains = (nats > BLAME_NATS) & (gain > EXPLAINED * excess[..., None]) & alone[..., None]
    nats = torch.where(explains, nats, 0.0)  # (B, V, A)
    best, which = nats.flatten(1).max(1)
    # A view that fits nowhere, next to others that fit each other.
    misfits = alone & (count[..., 0] * excess > BLAME_NATS)
    misfit = torch.where(misfits, excess, 0.0)
    worst, place = misfit.max(1)
    num_ways = gain.shape[2]
    suspects: list[Verdict | None] = []
    columns = best, which, worst, place, examination.lag, examination.rate
    for saved, number, odd, odd_view, lag, rate in zip(*(value.tolist() for value in columns)):
        view, way = divmod(number, num_ways)
        if saved <= 0:
            suspects.append(Verdict(Code.MISFIT, odd_view) if odd > MISFIT_NATS else None)
        elif way == num_ways - 1 and rate[view] == 1:
            suspects.append(Verdict(Code.SHIFTED, view, lag=lag[view], value=saved))
        elif way == num_ways - 1:
            suspects.append(Verdict(Code.CLOCK, view, rate=rate[view], value=saved))
        elif way == num_ways - 2:
            suspects.append(Verdict(Code.MOVED, view, value=saved))
        else:
            reading = examination.readings[way + 1]
            suspects.append(Verdict(Code.MISREAD, view, reading=reading, value=saved))
    return suspects
