"""Typed tuples that cross module borders.

Index letters: B samples, T frames of one static rig, V views, J joints, M posterior samples;
image H x W, heatmap h x w. Lengths in mm, pixels of the network image with integer coordinates at
pixel centres, camera axes x right, y down, z forward. Extrinsics ``x_cam = R x_ref + t``; view 0 is
the reference with R = I, t = 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Cameras(NamedTuple):
    """Pinhole cameras of a rig, any leading batch dimensions."""

    K: Tensor  # (..., V, 3, 3) px
    R: Tensor  # (..., V, 3, 3)
    t: Tensor  # (..., V, 3) mm


class Sample(NamedTuple):
    """One frame seen by V views (or a batch of them with a leading B)."""

    images: Tensor  # (B, V, 3, H, W) RGB, backbone normalisation applied
    cameras: Cameras  # truth; the model is given K only
    joints3d: Tensor  # (B, J, 3) mm, absolute, reference-camera frame
    joints2d: Tensor  # (B, V, J, 2) px of the network image
    visible: Tensor  # (B, V, J) bool, inside the image
    subject: Tensor  # (B,) int64
    action: Tensor  # (B,) int64
    frame: Tensor  # (B,) int64


class Keypoints(NamedTuple):
    """2D keypoints with their uncertainty; NaN xy = not seen."""

    xy: Tensor  # (..., V, J, 2) px
    covariance: Tensor  # (..., V, J, 2, 2) px^2
    confidence: Tensor  # (..., V, J) in [0, 1]


class Observations(NamedTuple):
    """Keypoints in normalised image coordinates (focal length 1)."""

    xy: Tensor  # (N, T, V, J, 2), 0 where not seen
    information: Tensor  # (N, T, V, J, 2, 2) inverse covariance, 0 where not seen
    inlier: Tensor  # (N, T, V, J) prior probability that the point is no outlier, 0 = not seen
    held: Tensor  # (N, T, J) 1 where the joint's bones have their say, else 0
    log_outlier: float  # log density of an outlier over the inlier's peak


class RigPosterior(NamedTuple):
    """Weighted samples of the cameras of B rigs, and the verdict on each."""

    R: Tensor  # (M, B, V, 3, 3)
    t: Tensor  # (M, B, V, 3) mm
    log_weights: Tensor  # (M, B), normalised: logsumexp over M is 0
    ess: Tensor  # (B,) effective sample size, 1 to M
    accepted: Tensor  # (B,) bool
    reason: list[str]  # B verdicts in words


class Prediction(NamedTuple):
    """Metric joints with their covariance, in the reference camera's frame."""

    joints3d: Tensor  # (..., J, 3) mm
    covariance: Tensor  # (..., J, 3, 3) mm^2


def to_device(value, device: torch.device):
    """Moves every tensor inside nested tuples, lists and dicts to a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value
