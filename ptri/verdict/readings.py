"""Ways to read a view's keypoints, and which of them the keypoints ask for.

A 2D network errs in whole limbs: it exchanges the sides of a body, of both arms or of both legs,
or puts the end of an arm or leg onto the other one's. A likelihood of single joints pays for each
of them, and sooner turns a camera to the far side of the person, from where sides look exchanged.
Here the arms and the legs of every view have a reading, with a prior, and take the most probable
one under given cameras and joints. Cameras that are still unknown are tried from several starts.

A whole view may be read wrongly too: its file mirrored, its labels exchanged. That is for the
verdict to say (`ptri.verdict.examination`), by the `Reading` under which the view fits.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.geometry.alignment import align_views
from ptri.geometry.rays import log_mixture
from ptri.geometry.triangulation import reproject, robust_joints
from ptri.posterior.adjust import adjust, median_scale2
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import USUAL_TAIL, Bundle, robust_cost
from ptri.skeleton import H36M17
from ptri.structures import (
    MANY_FRAMES,
    Keypoints,
    Observations,
    constant,
    evenly_spread,
    take,
    tree_map,
)

NUM_JOINTS = len(H36M17.joints)  # only these have names, and so a left and a right
NUM_FRAMES = 8  # that cameras are looked for in
ROUNDS = 2  # adjusting and reading, from every start
LEAST_CHECKS = 4  # other frames, by which cameras found by reading are checked
STEPS = 3  # Levenberg-Marquardt in each
_GROUPS = (("shoulder", "elbow", "wrist"), ("hip", "knee", "foot"))  # base, middle, end
_EXCHANGED = 1  # number of that reading; 0 is as it is, 2 to 5 are the copies


class Reading(Enum):
    """A way to read all keypoints of a view, and what is said of a view that asks for it."""

    AS_IS = "{view} is as it seems"
    EXCHANGED = "left and right of {view} seem exchanged"
    ARMS = "left and right arm of {view} seem exchanged"
    LEGS = "left and right leg of {view} seem exchanged"
    MIRRORED = "{view} seems mirrored"
    MIRRORED_EXCHANGED = "{view} seems mirrored, its labels with it"

    @property
    def mirrored(self) -> bool:
        """Whether the image is."""
        return self in (Reading.MIRRORED, Reading.MIRRORED_EXCHANGED)

    @property
    def order(self) -> tuple[int, ...]:
        """Of 17 joints: joint j's keypoint is the one labelled order[j]."""
        if self in (Reading.EXCHANGED, Reading.MIRRORED_EXCHANGED):
            return H36M17.flip
        if self in (Reading.ARMS, Reading.LEGS):
            limbs = _LIMBS[0 if self is Reading.ARMS else 1][_EXCHANGED]
            return tuple(H36M17.flip[j] if limbs[j] else j for j in range(NUM_JOINTS))
        return tuple(range(NUM_JOINTS))


class Sides(NamedTuple):
    """How the keypoints of B rigs are read."""

    order: Tensor  # (B, T, V, 17) int64; joint j's keypoint is the one labelled order[j]
    keep: Tensor  # (B, T, V, 17) bool; False: the other side's, put there twice

    def changed(self) -> Tensor:
        """Views (B, T, V) bool that are not read as they are labelled."""
        joints = torch.arange(NUM_JOINTS, device=self.order.device)
        return ((self.order != joints) | ~self.keep).any(-1)


def _readings() -> tuple[tuple, tuple]:
    """Of arms and legs (2, 6 readings, 17): joints exchanged, and joints that are copies; bool."""
    exchanged = np.zeros((2, 6, NUM_JOINTS), bool)
    copied = exchanged.copy()
    for group, parts in enumerate(_GROUPS):
        for number, side in enumerate(("left", "right")):
            base, middle, end = (H36M17.joints.index(f"{side}_{part}") for part in parts)
            exchanged[group, _EXCHANGED, [base, middle, end]] = True
            copied[group, 2 + 2 * number : 4 + 2 * number, end] = True
            copied[group, 3 + 2 * number, middle] = True
    return tuple(
        tuple(tuple(map(tuple, group)) for group in part.tolist()) for part in (exchanged, copied)
    )


_LIMBS, _COPIES = _readings()


@torch.no_grad()
def read_under(observations: Observations, R: Tensor, t: Tensor, rate: float) -> Sides:
    """The most probable readings under given cameras R (B, V, 3, 3), t (B, V, 3) mm.

    Joints are triangulated robustly: three views hold where a fourth one's keypoint belongs.

    Args:
        observations: (B, T, V, J, ...); joints beyond the first 17 take no part.
        rate: of what is exchanged, see `ptri.structures.Detector`; above 0.
    """
    sure, chi2 = _under(_named(observations), R, t)
    scale2 = median_scale2(chi2[0], sure.inlier).clamp_min(1.0)
    return _sides(_momentary(_gains(chi2, sure, scale2, rate).argmax(-1)))


def _under(named: Observations, R: Tensor, t: Tensor) -> tuple[Observations, Tensor]:
    """Observations (B, T, V, 17, ...) of the joints that two views hold, and `_chi2` under cameras
    R (B, V, 3, 3), t (B, V, 3) mm."""
    joints = robust_joints(named, R, t, iterations=4)[0].joints[0]
    known = torch.isfinite(joints).all(-1)
    known = known & known[..., constant(H36M17.flip, known.device)]
    sure = named._replace(inlier=named.inlier * known.unsqueeze(2))
    return sure, _chi2(joints.nan_to_num(0.0), sure, R, t)


def _explained(named: Observations, R: Tensor, t: Tensor, rate: float) -> Tensor:
    """Log probability (B, K) of keypoints under each of K cameras R (B, K, V, 3, 3), however left
    and right are read."""
    parts = [_under(named, *cameras) for cameras in zip(R.unbind(1), t.unbind(1))]
    scales = [median_scale2(chi2[0], sure.inlier).clamp_min(1.0) for sure, chi2 in parts]
    scale2 = torch.stack(scales).amin(0)  # (B,)
    value = []
    for sure, chi2 in parts:
        plain = _log_density(chi2[0], sure, scale2).sum((1, 2, 3))
        read = torch.logsumexp(_gains(chi2, sure, scale2, rate), -1).sum((1, 2, 3))
        value.append(plain + read)
    return torch.stack(value, 1)


def frames_to_read(num_frames: int, device: torch.device) -> Tensor:
    """Numbers of the frames, evenly spread, that cameras are looked for in by `read_rigs`."""
    return evenly_spread(num_frames, NUM_FRAMES, device)


@torch.no_grad()
def read_rigs(
    observations: Observations,
    lifted: Tensor,
    exchanged: Tensor,
    trust: Tensor,
    body: BodyPrior,
    rate: float,
) -> Sides:
    """The readings of rigs whose cameras are not known yet.

    Rigs start from every view's skeleton with all views as they are, and with each of the views
    exchanged; they are adjusted and read in turn, and the most probable rig's readings are taken.
    Of many frames a few serve for that, and all are read under the cameras found, unless cameras
    that were found without any reading explain the other frames better.

    Args:
        observations: (B, T, V, J, ...); joints beyond the first 17 take no part.
        lifted: (B, T, V, 17, 3) mm, each view's skeleton in its camera's frame.
        exchanged: (B, T', V, 17, 3) the same of the views with left and right exchanged, in the
            frames of `frames_to_read`.
        trust: (B, T, V, 17) in the lifted joints, 1/mm^2; 0 = not seen.
        body: prior of the 17 joints' bones.
        rate: as in `read_under`.
    """
    all_frames = _named(observations)
    chosen = frames_to_read(lifted.shape[1], lifted.device)
    named, lifted, trust = take((all_frames, lifted, trust), (slice(None), chosen))
    B, T, V = lifted.shape[:3]
    eye = torch.eye(V, dtype=torch.bool, device=lifted.device)
    checked = all_frames.xy.shape[1] >= T + LEAST_CHECKS
    parts = [torch.zeros_like(eye), eye] + [torch.zeros_like(eye)] * checked
    swapped = torch.cat(parts)  # (C, V); the last V are never read
    C = len(swapped)
    flip = constant(H36M17.flip, lifted.device)
    weight = trust + 1e-6  # a view without any joint still aligns to something
    starts = []
    for number, which in enumerate(swapped):
        skeletons = torch.where(which[:, None, None], exchanged, lifted)
        weights = torch.where(which[:, None], weight[..., flip], weight)
        starts.append(align_views(skeletons, weights, hub=(number + number // V) % V))
    R, t, joints = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*starts))  # (B C, ...)
    bundle = Bundle(R, t, t.new_zeros(B * C, 0), joints, body.mean.to(R).expand(B * C, -1))
    stated = tree_map(lambda value: value.repeat_interleave(C, 0), named)
    reading = swapped.long().repeat(B, 1)[:, None, :, None].expand(-1, T, -1, 2)
    labelled = (torch.arange(C, device=eye.device) >= 2 * V).repeat(B)[:, None, None, None]
    for _ in range(ROUNDS):
        read = _read(stated, _sides(reading))
        bundle, errors = adjust(read, bundle, body, STEPS, num_wide=STEPS)
        # All starts of a rig are judged by the noise that the best of them leaves.
        chi2 = _chi2(bundle.joints, read, bundle.R, bundle.t)[0]
        scale2 = median_scale2(chi2, read.inlier).clamp_min(1.0)
        scale2 = scale2.unflatten(0, (B, C)).amin(1).repeat_interleave(C)
        chi2 = _chi2(bundle.joints, stated, bundle.R, bundle.t)
        gains = _gains(chi2, stated, scale2, rate)
        gain, reading = gains.max(-1)
        gain = torch.where(labelled, gains[..., 0], gain)
        reading = torch.where(labelled, 0, reading)
    errors = errors._replace(scale2=scale2)
    cost = robust_cost(bundle, stated, errors, body) - gain.sum((1, 2, 3))
    cost = cost.unflatten(0, (B, C)).nan_to_num(torch.inf)
    first = C * torch.arange(B, device=cost.device)
    best = first + cost[:, : 2 * V].argmin(1)  # of the B C
    if all_frames.xy.shape[1] == T:
        return _sides(_momentary(reading[best]))
    sides = read_under(all_frames, bundle.R[best], bundle.t[best], rate)
    if not checked:
        return sides
    both = torch.stack([best, first + 2 * V + cost[:, 2 * V :].argmin(1)], 1)  # (B, 2)
    rest = evenly_spread(all_frames.xy.shape[1], 2 * NUM_FRAMES, R.device)
    rest = rest[~torch.isin(rest, chosen)]
    other = take(all_frames, (slice(None), rest))
    explained = _explained(other, bundle.R[both], bundle.t[both], rate)
    wins = (explained[:, 0] >= explained[:, 1])[:, None, None, None]
    keep = torch.arange(NUM_JOINTS, device=R.device)
    return Sides(torch.where(wins, sides.order, keep), sides.keep | ~wins)


def _momentary(reading: Tensor) -> Tensor:
    """Readings (B, T, V, 2) without the views that are exchanged in most of many frames.

    They are left alone: a verdict on the whole view says more.
    """
    if reading.shape[1] < MANY_FRAMES:
        return reading
    exchanged = (reading == _EXCHANGED).all(-1)  # (B, T, V)
    lasting = exchanged.double().mean(1, keepdim=True) > 0.5
    return torch.where((exchanged & lasting)[..., None], 0, reading)


def apply_sides(keypoints: Keypoints, sides: Sides) -> Keypoints:
    """Keypoints (B, T, V, J, ...) as read, J at least 17; copies are missing."""
    xy, covariance, confidence = (in_order(value, sides.order) for value in keypoints)
    keep = torch.ones_like(confidence, dtype=torch.bool)
    keep[..., :NUM_JOINTS] = sides.keep
    return Keypoints(
        torch.where(keep[..., None], xy, torch.nan), covariance, torch.where(keep, confidence, 0.0)
    )


def in_order(value: Tensor, order: Tensor) -> Tensor:
    """Values (B, T, V, J, ...) of joints, the first 17 by ``Sides.order``."""
    first = value.narrow(3, 0, NUM_JOINTS)
    index = order.reshape(*order.shape, *([1] * (value.ndim - 4))).expand_as(first)
    rest = value.narrow(3, NUM_JOINTS, value.shape[3] - NUM_JOINTS)
    return torch.cat([first.gather(3, index), rest], dim=3)


def _named(observations: Observations) -> Observations:
    """Those of the joints that have a left and a right."""
    parts = (value[:, :, :, :NUM_JOINTS] for value in observations[:3])
    return Observations(*parts, observations.held[..., :NUM_JOINTS], observations.persons)


def _read(observations: Observations, sides: Sides) -> Observations:
    """Observations (N, T, V, 17, ...) as read; copies are missing."""
    xy, information, inlier = (in_order(value, sides.order) for value in observations[:3])
    keep = sides.keep.to(inlier)
    return observations._replace(
        xy=xy, information=information * keep[..., None, None], inlier=inlier * keep
    )


def _chi2(joints: Tensor, observations: Observations, R: Tensor, t: Tensor) -> Tensor:
    """Squared residuals (2, N, T, V, J) of the keypoints to their own joints (N, T, J, 3), and to
    those of the other side."""
    both = torch.stack([joints, joints[..., constant(H36M17.flip, joints.device), :]])
    return reproject(both, observations, R.expand(2, *R.shape), t.expand(2, *t.shape)).chi2


def _log_density(chi2: Tensor, observations: Observations, scale2: Tensor) -> Tensor:
    """Log density (..., N, T, V, J) of keypoints by the law that `adjust` starts with."""
    tail = constant((USUAL_TAIL,), chi2.device, chi2.dtype)
    return log_mixture(chi2 / scale2[:, None, None, None], observations.inlier, tail=tail)


def _gains(chi2: Tensor, observations: Observations, scale2: Tensor, rate: float) -> Tensor:
    """Log probability (N, T, V, 2, 6) of the readings of arms and legs, over that of none."""
    log_density = _log_density(chi2, observations, scale2)
    labelled, exchanged = log_density
    limbs, copies = (constant(v, chi2.device, torch.bool) for v in (_LIMBS, _COPIES))
    gain = torch.einsum("gaj,ntvj->ntvga", (limbs | copies).to(labelled), exchanged - labelled)
    prior = (1 - rate, *[rate / 5] * 5)  # as labelled; exchanged, and four copies
    return gain + constant(prior, chi2.device, torch.float32).log().to(gain)


def _sides(reading: Tensor) -> Sides:
    """What readings (B, T, V, 2) of arms and legs make of each joint."""
    device = reading.device
    group, joints = torch.arange(2, device=device), torch.arange(NUM_JOINTS, device=device)
    limbs, copies = (constant(v, device, torch.bool) for v in (_LIMBS, _COPIES))
    exchanged = limbs[group, reading].any(-2)  # (B, T, V, 17)
    flip, copied = constant(H36M17.flip, device), copies[group, reading].any(-2)
    return Sides(torch.where(exchanged, flip, joints), ~copied)
