"""Left and right read anew, in rigs of a few frames, before their cameras are looked for.

A 2D network errs in whole limbs: it exchanges the sides of a body, of both arms or both legs, or
puts an arm's or a leg's end onto the other one's. A likelihood of single joints pays for each of
them and sooner turns a camera to the far side of the person, from where sides look exchanged. Here
every limb of every view has a reading of its own. Rigs are tried that start from the views as they
are and with one of them exchanged; each is adjusted a little, every limb takes its most probable
reading under it, and the most probable rig's readings are kept. Four or more frames hold the
cameras without it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry import bundle as adjustment
from ptri.geometry.alignment import align_views
from ptri.geometry.body import BodyPrior
from ptri.geometry.bundle import Bundle, Errors, Observations
from ptri.skeleton import H36M17
from ptri.structures import Keypoints

NUM_JOINTS = len(H36M17.joints)  # only these have names, and so a left and a right
FEW_FRAMES = 3  # up to so many
ROUNDS = 2  # adjusting and reading, from every start
STEPS = 4  # Levenberg-Marquardt in each
# Prior probability of a reading of a view's arms, or of its legs. The shipped network's are 0.06
# and 0.17 (configs/detector_s0.yaml); a better one's are less.
SWAPPED, COPIED = 0.02, 0.02  # each of the four ways to copy

_FLIP = torch.tensor(H36M17.flip)


class Sides(NamedTuple):
    """How the keypoints of B rigs are read."""

    order: Tensor  # (B, T, V, 17) int64; joint j's keypoint is the one labelled order[j]
    keep: Tensor  # (B, T, V, 17) bool; False: the other side's, put there twice


class _Limbs(NamedTuple):
    """Readings of two groups, arms and legs: which joints take the other side's place."""

    swapped: Tensor  # (2, 6, 17) float; readings: as is, exchanged, four copies
    copied: Tensor  # (2, 6, 17) bool, of them those to leave out
    member: Tensor  # (2, 17) float
    log_prior: Tensor  # (6,)


def _limbs() -> _Limbs:
    names = H36M17.joints
    swapped = torch.zeros(2, 6, NUM_JOINTS)
    copied = torch.zeros(2, 6, NUM_JOINTS, dtype=torch.bool)
    for group, parts in enumerate((("shoulder", "elbow", "wrist"), ("hip", "knee", "foot"))):
        for side in ("left", "right"):
            base, middle, end = (names.index(f"{side}_{part}") for part in parts)
            swapped[group, 1, [base, middle, end]] = 1.0
            first = 2 if side == "left" else 4
            copied[group, first : first + 2, end] = True
            copied[group, first + 1, middle] = True
    member = swapped[:, 1].clone()
    swapped[copied] = 1.0
    some = [1 - SWAPPED - 4 * COPIED, SWAPPED, *[COPIED] * 4]
    return _Limbs(swapped, copied, member, torch.tensor(some).log())


LIMBS = _limbs()


@torch.no_grad()
def read_sides(
    observations: Observations,
    lifted: Tensor,
    exchanged: Tensor,
    trust: Tensor,
    body: BodyPrior,
) -> Sides:
    """The readings of B rigs' keypoints.

    Args:
        observations: (B, T, V, J, ...); joints beyond the first 17 take no part.
        lifted: (B, T, V, 17, 3) mm, each view's skeleton in its camera's frame.
        exchanged: the same of the views with left and right exchanged.
        trust: (B, T, V, 17) in the lifted joints, 1/mm^2; 0 = not seen.
        body: prior of the 17 joints' bones.
    """
    B, T, V = observations.xy.shape[:3]
    views = torch.arange(V, device=lifted.device)
    swapped = torch.cat([torch.zeros_like(views.diag()), torch.ones_like(views).diag()]) > 0
    named = Observations(
        observations.xy[..., :NUM_JOINTS, :], observations.information[..., :NUM_JOINTS, :, :],
        observations.inlier[..., :NUM_JOINTS], observations.held[..., :NUM_JOINTS],
        observations.log_outlier,
    )  # fmt: skip
    weight = trust + 1e-6  # a view without any joint still aligns to something
    found = []
    for start, which in enumerate(swapped):
        skeletons = torch.where(which[:, None, None], exchanged, lifted)
        weights = torch.where(which[:, None], weight[..., _FLIP], weight)
        hub = start if start < V else (start + 1) % V
        found.append(align_views(skeletons, weights, hub))
    R, t, joints = (torch.stack(parts, 1).flatten(0, 1) for parts in zip(*found))  # (B C, ...)
    C = len(swapped)
    same = Observations(*(v.repeat_interleave(C, 0) for v in named[:4]), named.log_outlier)
    lengths = body.mean.to(R).expand(len(R), -1)
    bundle = Bundle(R, t, joints, lengths)
    reading = swapped.repeat(B, 1)[:, None, :, None].expand(-1, T, -1, 2).long()
    for _ in range(ROUNDS):
        own = _read(same, _sides(reading))
        bundle, errors, _ = adjustment.adjust(own, bundle, body, STEPS, STEPS)
        # All starts of a rig are judged by the noise that the best of them leaves.
        scale2 = adjustment.median_scale2(bundle, own, errors).clamp_min(1.0)
        scale2 = scale2.unflatten(0, (B, C)).amin(1).repeat_interleave(C)
        errors = errors._replace(scale2=scale2)
        as_is, flipped = _log_likelihoods(bundle, same, errors)  # (B C, T, V, 17)
        score, reading = _best_readings(as_is, flipped)
    cost = adjustment.robust_cost(bundle, same, errors, body) + as_is.sum((1, 2, 3))
    cost = (cost - score.sum((1, 2))).unflatten(0, (B, C)).nan_to_num(torch.inf)
    best = cost.argmin(1)
    rows = torch.arange(B, device=best.device)
    return _sides(reading.unflatten(0, (B, C))[rows, best])


def _read(observations: Observations, sides: Sides) -> Observations:
    """Observations (N, T, V, 17, ...) as read; copies are missing."""

    def take(value: Tensor) -> Tensor:
        order = sides.order.reshape(*sides.order.shape, *([1] * (value.ndim - 4)))
        return value.gather(3, order.expand_as(value))

    keep = sides.keep.to(observations.inlier)
    return observations._replace(
        xy=take(observations.xy),
        information=take(observations.information) * keep[..., None, None],
        inlier=take(observations.inlier) * keep,
    )


def _log_likelihoods(
    bundle: Bundle, observations: Observations, errors: Errors
) -> tuple[Tensor, Tensor]:
    """Of each keypoint (N, T, V, 17) as its own joint's, and as that of the other side."""
    found = []
    for order in (slice(None), _FLIP.to(bundle.R.device)):
        turned = bundle._replace(joints=bundle.joints[..., order, :])
        _, residual = adjustment.reprojection(turned, observations.xy)
        chi2 = adjustment.chi_square(residual, observations.information)
        chi2 = chi2 / errors.scale2[:, None, None, None]
        found.append(
            adjustment.log_mixture(chi2, observations.inlier, observations.log_outlier)[0]
        )
    return tuple(found)


def _best_readings(as_is: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
    """The best reading's log probability (N, T, V), and its number for arms and legs (..., 2)."""
    limbs = _Limbs(*(value.to(as_is.device) for value in LIMBS))
    gain = torch.einsum("gaj,ntvj->ntvga", limbs.swapped.to(as_is), flipped - as_is)
    gain = gain + limbs.log_prior
    value, reading = gain.max(-1)  # (N, T, V, 2)
    return as_is.sum(-1) + value.sum(-1), reading


def _sides(reading: Tensor) -> Sides:
    """What readings (B, T, V, 2) of arms and legs make of each joint."""
    group = torch.arange(2, device=reading.device)
    limbs = _Limbs(*(value.to(reading.device) for value in LIMBS))
    exchanged = ((reading == 1).to(limbs.member) @ limbs.member) > 0  # (B, T, V, 17)
    joints = torch.arange(NUM_JOINTS, device=reading.device)
    order = torch.where(exchanged, _FLIP.to(reading.device), joints)
    return Sides(order, ~limbs.copied[group, reading].any(-2))


def apply_sides(keypoints: Keypoints, sides: Sides) -> Keypoints:
    """Keypoints (B, T, V, J, ...) as read; copies are missing."""
    J = keypoints.xy.shape[-2]
    order = torch.arange(J, device=sides.order.device).expand(*sides.order.shape[:-1], J).clone()
    order[..., :NUM_JOINTS] = sides.order
    keep = torch.ones_like(order, dtype=torch.bool)
    keep[..., :NUM_JOINTS] = sides.keep
    xy = keypoints.xy.gather(3, order[..., None].expand_as(keypoints.xy))
    covariance = keypoints.covariance.gather(
        3, order[..., None, None].expand_as(keypoints.covariance)
    )
    confidence = keypoints.confidence.gather(3, order)
    xy = torch.where(keep[..., None], xy, torch.nan)
    return Keypoints(xy, covariance, torch.where(keep, confidence, 0.0))
