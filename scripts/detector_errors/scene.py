"""What the statistics share: people before cameras, in units of the person's apparent size."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from detector_errors.clips import FOCAL, Clips
from ptri.people.detections import body_fixed, facing, self_occluded
from ptri.skeleton import H36M17

APART = 0.08  # of the person: pairs nearer than this cannot be told to be exchanged
FEW = 30  # a statistic of fewer keypoints is NaN
NAMES, FLIP, ROOT = H36M17.joints, list(H36M17.flip), H36M17.root


class Scene(NamedTuple):
    """What does not depend on the keypoints; units of the person where a length is 2D."""

    scale: Tensor  # (B, T, V) px, apparent size of the person
    truth: Tensor  # (B, T, V, J, 2)
    apart: Tensor  # (B, T, V, J), distance to the mirror joint
    hidden: Tensor  # (B, T, V, J) bool, behind the trunk
    facing: Tensor  # (B, T, V), see `ptri.people.detections.facing`
    slope: Tensor  # (B, T, V, J, 2, 4) per mm along the bone, left, up, forwards
    inside: Tensor  # (B, T, V, J) bool


def describe(clips: Clips) -> Scene:
    """The part of the statistics that clips and their simulations share."""
    joints, cameras = clips.joints, clips.cameras
    view = joints.unsqueeze(2) @ cameras.R.transpose(-1, -2).unsqueeze(1)
    view = view + cameras.t[:, None, :, None]  # (B, T, V, J, 3)
    depth = view[..., 2:]
    ray = view[..., :2] / depth
    scale = FOCAL * 1700.0 / view[..., ROOT, 2]
    truth = FOCAL * ray / scale[..., None, None]
    R = cameras.R[:, None, :, None]  # (B, 1, V, 1, 3, 3)
    move = (R[..., :2, :] - ray.unsqueeze(-1) * R[..., 2:, :]) / depth.unsqueeze(-1)
    move = move * (FOCAL / scale)[..., None, None, None]  # (B, T, V, J, 2, 3)
    unit = torch.eye(4)
    axes = [
        body_fixed(joints, row[:1].expand(1, len(NAMES), 1), row[1:].expand(1, len(NAMES), 3))
        for row in unit
    ]
    slope = move @ torch.stack(axes, -1).unsqueeze(2)  # (B, T, V, J, 2, 4)
    return Scene(
        scale,
        truth,
        (truth[..., FLIP, :] - truth).norm(dim=-1),
        self_occluded(joints, cameras),
        facing(joints, cameras),
        slope,
        clips.inside,
    )


def median_of(value: Tensor) -> Tensor:
    """The median (), NaN of few values."""
    return value.median() if len(value) >= FEW else torch.tensor(math.nan)


def mean_of(value: Tensor) -> float:
    """The mean, NaN of few values."""
    return float(value.mean()) if len(value) >= FEW else math.nan
