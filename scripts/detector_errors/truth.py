"""What is true of the people in each view, in units of their apparent size."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from detector_errors.clips import FOCAL, Clips
from ptri.geometry.cameras import transform
from ptri.people.trunk import body_fixed, facing, self_occluded
from ptri.skeleton import H36M17

APART = 0.08  # of the person: pairs nearer than this cannot be told to be exchanged
FEW = 30  # a statistic of fewer keypoints is NaN
NAMES, FLIP, ROOT = H36M17.joints, list(H36M17.flip), H36M17.root


class Truth(NamedTuple):
    """What does not depend on the keypoints; units of the person where a length is 2D."""

    scale: Tensor  # (B, T, V) px, apparent size of the person
    xy: Tensor  # (B, T, V, J, 2)
    apart: Tensor  # (B, T, V, J), distance to the mirror joint
    hidden: Tensor  # (B, T, V, J) bool, behind the trunk
    facing: Tensor  # (B, T, V), see `ptri.people.trunk.facing`
    slope: Tensor  # (B, T, V, J, 2, 4) per mm along the bone, left, up, forwards
    inside: Tensor  # (B, T, V, J) bool


def true_views(clips: Clips) -> Truth:
    """The part of the statistics that clips and their simulations share."""
    joints, cameras = clips.joints, clips.cameras
    # (B, T, V, J, 3) mm
    view = transform(joints.unsqueeze(2), cameras.R.unsqueeze(1), cameras.t.unsqueeze(1))
    depth = view[..., 2:]
    ray = view[..., :2] / depth
    scale = FOCAL * 1700.0 / view[..., ROOT, 2]
    xy = FOCAL * ray / scale[..., None, None]
    R = cameras.R[:, None, :, None]  # (B, 1, V, 1, 3, 3)
    move = (R[..., :2, :] - ray.unsqueeze(-1) * R[..., 2:, :]) / depth.unsqueeze(-1)
    move = move * (FOCAL / scale)[..., None, None, None]  # (B, T, V, J, 2, 3)
    unit = torch.eye(4)
    axes = [
        body_fixed(joints, row[:1].expand(1, len(NAMES), 1), row[1:].expand(1, len(NAMES), 3))
        for row in unit
    ]
    slope = move @ torch.stack(axes, -1).unsqueeze(2)  # (B, T, V, J, 2, 4)
    apart = (xy[..., FLIP, :] - xy).norm(dim=-1)
    hidden, front = self_occluded(joints, cameras), facing(joints, cameras)
    return Truth(scale, xy, apart, hidden, front, slope, clips.inside)


def median_of(value: Tensor) -> Tensor:
    """The median (), NaN of few values."""
    return value.median() if len(value) >= FEW else torch.tensor(math.nan)


def mean_of(value: Tensor) -> float:
    """The mean, NaN of few values."""
    return float(value.mean()) if len(value) >= FEW else math.nan
