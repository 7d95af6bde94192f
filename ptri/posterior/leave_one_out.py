"""How far each view's camera turns when it is fitted to what the other views say of the joints.

The joints are triangulated from all views but one, under the rig's mean cameras; that view's
camera is then resected on them. Where errors are what the posterior takes them for, it turns a
fraction of what is stated; where they are not, by as much or more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.rays import MEDIAN_CHI2, responsibility
from ptri.geometry.resection import Points, Pose, resect, square_root
from ptri.geometry.rotations import rotation_angle
from ptri.geometry.triangulation import (
    Reprojection,
    Triangulation,
    reproject,
    weighted_triangulation,
)
from ptri.posterior.optima import Poses
from ptri.skeleton import H36M17
from ptri.structures import Observations, tree_map

NUM_JOINTS = len(H36M17.joints)  # the first ones, which lifted skeletons and readings have
MAX_SIGMA = 150.0  # mm; joints that the other views leave less certain take no part
ANCHOR_SIGMA = 1000.0  # mm, keeps joints that no other view sees finite
NEAREST = 500.0  # mm, depth of the nearest joint when a joint's doubt is turned into the image's
MIN_POINTS = 8  # a view with fewer points that the others know as well is not examined
STEPS = 4  # of Levenberg-Marquardt, from the estimate


class Known(NamedTuple):
    """What all views but v know of the joints, and view v's keypoints; (B, V, T, J, ...)."""

    joints: Tensor  # mm
    variance: Tensor  # mm^2, of a coordinate
    xy: Tensor  # normalised
    information: Tensor  # (..., 2, 2) of xy, less where the others show more noise than stated
    inlier: Tensor  # 0 where the view or the others do not know the joint


class LeftOut(NamedTuple):
    """Each of B V views fitted to the others."""

    known: Known  # (B, V, T, J, ...), float32
    fit: Pose  # (B V, ...)
    count: Tensor  # (B, V) points
    turned: Tensor  # (B, V) rad, from the estimated camera to the fitted one; NaN = too few points


@torch.no_grad()
def fit_each_view(
    observations: Observations,
    R: Tensor,
    t: Tensor,
    joints: Tensor,
    weight: Tensor,
    poses: Poses | None = None,
    scale2: Tensor | None = None,
) -> LeftOut | None:
    """Fits each view of B rigs to what the others know.

    One view alone fixes no joint. So each of two is held against the skeleton that the lifter sees
    in the other one, put where both say that the person is.

    Args:
        observations: (B, T, V, J, ...). R, t: (B, V, 3, 3), (B, V, 3) mm, the estimated cameras.
        joints: (B, T, J, 3) mm. weight: (B, T, V, J) responsibility of the inlier under them.
        poses: skeletons of the single views; None: of two views nothing is said.
        scale2: (B,) squared factor on the stated noise, where poses are given.

    Returns:
        Every view's fit; None of two views without poses.
    """
    (B, _, V), J = observations.xy.shape[:3], NUM_JOINTS
    if V < 3 and poses is None:
        return None
    observations, joints, weight = first_joints(observations), joints[:, :, :J], weight[..., :J]
    if V < 3:
        known = _as_the_other_sees(observations, R, t, joints, poses, scale2)
    else:
        known = _from_the_others(observations, R, t, joints, weight)
    # Normalised coordinates and millimetres keep their digits in float32.
    known = tree_map(Tensor.float, known)
    R, t = R.float(), t.float()
    fit = resect(view_points(known, R, t), R.flatten(0, 1), t.flatten(0, 1), STEPS)
    count = (known.inlier > 0).sum((2, 3))
    turned = rotation_angle(fit.R @ R.flatten(0, 1).mT).view(B, V)
    turned = torch.where(count >= MIN_POINTS, turned, torch.nan)
    return LeftOut(known, fit, count, turned)


def _from_the_others(
    observations: Observations, R: Tensor, t: Tensor, joints: Tensor, weight: Tensor
) -> Known:
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
    return Known(points, variance, xy, information, inlier * (variance < MAX_SIGMA**2))


def _as_the_other_sees(
    observations: Observations,
    R: Tensor,
    t: Tensor,
    joints: Tensor,
    poses: Poses,
    scale2: Tensor,
) -> Known:
    """Of two views the joints that the other one's lifted skeleton has, about the same middle."""
    xy, information, inlier = (value.transpose(1, 2) for value in observations[:3])
    lifted = poses.joints.transpose(1, 2) - t[:, :, None, None]  # (B, V, T, J, 3)
    lifted = torch.einsum("bvca,bvtjc->bvtja", R, lifted).flip(1)  # in view 0's frame
    variance = poses.sigma.transpose(1, 2).square().flip(1)
    seen = (inlier > 0).flip(1) & (variance < MAX_SIGMA**2)
    share = seen.to(xy) / seen.sum(-1, keepdim=True).clamp_min(1)
    middle = torch.einsum("bvtj,bvtjc->bvtc", share, joints[:, None] - lifted)
    information = information / scale2.clamp_min(1.0)[:, None, None, None, None, None]
    return Known(lifted + middle.unsqueeze(-2), variance, xy, information, inlier * seen)


def _noise(chi2: Tensor, seen: Tensor) -> Tensor:
    """Squared noise scale (E, B), at least one, of the median residual (E, B, T, V, J)."""
    views = (seen > 0).sum(-2, keepdim=True)
    # A joint takes three of its 2 V coordinates; of two views, one coordinate in four is left.
    left = (2 * views - 3).clamp_min(1) / (2 * views).clamp_min(4)
    each = torch.where(seen > 0, chi2 / left, torch.nan).flatten(2)
    return (each.nanmedian(-1).values.nan_to_num(MEDIAN_CHI2) / MEDIAN_CHI2).clamp_min(1.0)


def first_joints(observations: Observations) -> Observations:
    """Observations (B, T, V, J, ...) of Human3.6M's joints alone."""
    J = NUM_JOINTS
    xy, information, inlier, held, persons = observations
    few = xy[..., :J, :], information[..., :J, :, :], inlier[..., :J], held[..., :J]
    return Observations(*few, persons)


def view_points(known: Known, R: Tensor, t: Tensor) -> Points:
    """The resection of every view (B V problems), each joint's own doubt added to the keypoint's.

    Args:
        R, t: (B, V, 3, 3), (B, V, 3) mm, which tell the joints' depths.
    """
    depth = torch.einsum("bvc,bvtjc->bvtj", R[:, :, 2], known.joints) + t[:, :, None, None, 2]
    # (S + s I)^-1 = (I + s L)^-1 L for the joint's own doubt s, in closed form:
    # (L + s det(L) I) / (1 + s tr(L) + s^2 det(L)).
    s = known.variance / depth.clamp_min(NEAREST).square()
    a, b, c = (known.information[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
    det = a * c - b * b
    total = 1 + s * (a + c) + s * s * det
    a, b, c = (a + s * det) / total, b / total, (c + s * det) / total
    information = torch.stack([a, b, b, c], -1).unflatten(-1, (2, 2))
    root = square_root(torch.where((known.inlier > 0)[..., None, None], information, 0.0))
    parts = (known.joints, known.xy, root, known.inlier)
    return Points(*(part.flatten(0, 1).flatten(1, 2) for part in parts))
