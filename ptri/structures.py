"""Typed tuples that cross module borders.

Index letters: B samples, T frames of one static rig, V views, J joints, M posterior samples;
image H x W, heatmap h x w. Lengths in mm, pixels of the network image with integer coordinates at
pixel centres, camera axes x right, y down, z forward. Extrinsics ``x_cam = R x_ref + t``; view 0 is
the reference with R = I, t = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# From so many frames of a rig on: a detector's bias can be told from its noise, the cameras are
# known better than the lifter knows a limb, and whole views are doubted instead of detections.
MANY_FRAMES = 4


class Detector(NamedTuple):
    """What is known of how a 2D detector errs; by default nothing.

    It is measured on people whom the detector was not trained on (`scripts/fit_errors.py`) and
    kept in the ``meta`` of its weights.
    """

    bone_ratio: tuple[float, ...] = ()  # drawn over true length of each of `H36M17.bones`
    overstated: tuple[float, ...] = ()  # stated over true standard deviation of each joint; used
    # where there are four frames or more
    frame_worth: float | None = None  # how many images of independent errors one image is worth, 0
    # to 1; None: not known, what residuals are smaller than stated must do
    # How often a view's arms, or its legs, are exchanged or put on each other; 0: never.
    exchanged: float = 0.01


UNKNOWN_DETECTOR = Detector()


class Cameras(NamedTuple):
    """Pinhole cameras of a rig, any leading batch dimensions."""

    K: Tensor  # (..., V, 3, 3) px
    R: Tensor  # (..., V, 3, 3)
    t: Tensor  # (..., V, 3) mm


class Sample(NamedTuple):
    """One frame seen by V views (or a batch of them with a leading B).

    A joint whose truth is not known (a data set without it, a marker that was lost) is NaN in
    ``joints3d`` and ``joints2d``; losses and metrics leave it out.
    """

    images: Tensor  # (B, V, 3, H, W) RGB, backbone normalisation applied
    cameras: Cameras  # truth; the model is given K only
    joints3d: Tensor  # (B, J, 3) mm, absolute, reference-camera frame
    joints2d: Tensor  # (B, V, J, 2) px of the network image
    visible: Tensor  # (B, V, J) bool, known and inside the image
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
    persons: Tensor  # (N, T, P) 1 for the person that the frame shows, 0 for others


class Views(NamedTuple):
    """What is sought of the cameras of rigs; any leading dimensions."""

    R: Tensor  # (..., V, 3, 3)
    t: Tensor  # (..., V, 3) mm
    log_focal: Tensor  # (..., F) log of the focal lengths over those of K; F = V, 0: K is exact

    @property
    def projection(self) -> tuple[Tensor, Tensor]:
        """A (..., V, 3, 3) and b (..., V, 3): what stands for R and t where points are projected to
        coordinates that are normalised by K, ``diag(e^f, e^f, 1) (R, t)``."""
        if not self.log_focal.shape[-1]:
            return self.R, self.t
        one = torch.zeros_like(self.log_focal)
        factor = torch.stack([self.log_focal, self.log_focal, one], dim=-1).exp()
        return factor.unsqueeze(-1) * self.R, factor * self.t


class RigPosterior(NamedTuple):
    """Weighted samples of the cameras of B rigs."""

    R: Tensor  # (M, B, V, 3, 3)
    t: Tensor  # (M, B, V, 3) mm
    log_weights: Tensor  # (M, B), normalised: logsumexp over M is 0
    ess: Tensor  # (B,) effective sample size, 1 to M
    log_focal: Tensor  # (M, B, F) log of the focal lengths over those of K; F = V, 0: K is exact

    @property
    def views(self) -> Views:
        """The samples (M, B, ...)."""
        return Views(self.R, self.t, self.log_focal)

    def rigs(self, rows: Tensor | slice) -> RigPosterior:
        """The posteriors of some of the rigs."""
        R, t, log_weights, log_focal = (
            value[:, rows] for value in (self.R, self.t, self.log_weights, self.log_focal)
        )
        return RigPosterior(R, t, log_weights, self.ess[rows], log_focal)

    def with_rigs(self, rows: Tensor, other: RigPosterior) -> RigPosterior:
        """The same with some rigs' posteriors from another."""
        return RigPosterior(
            *(
                old.index_copy(min(old.ndim - 1, 1), rows, new.to(old))
                for old, new in zip(self, other)
            )
        )


class Prediction(NamedTuple):
    """Metric joints with their covariance, in the reference camera's frame."""

    joints3d: Tensor  # (..., J, 3) mm
    covariance: Tensor  # (..., J, 3, 3) mm^2


def tree_map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """A tree with ``function(tensor, *others)`` in place of every tensor.

    Args:
        tree: nested tuples, named tuples, lists and dicts; what is no tensor stays as it is.
        rest: trees of the same shape, whose tensors at the same place are the others.
    """
    if isinstance(tree, Tensor):
        return function(tree, *rest)
    if isinstance(tree, dict):
        return {
            key: tree_map(function, value, *(other[key] for other in rest))
            for key, value in tree.items()
        }
    if isinstance(tree, (list, tuple)):
        parts = [tree_map(function, *values) for values in zip(tree, *rest, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def take(tree: Any, rows: Any) -> Any:
    """Rows of the leading dimension of every tensor; ``rows`` is anything that indexes one."""
    return tree_map(lambda value: value[rows], tree)


def put(tree: Any, rows: Tensor, part: Any) -> Any:
    """The tree with some rows (int64) of every tensor's leading dimension from another tree."""
    return tree_map(lambda old, new: old.index_copy(0, rows, new.to(old)), tree, part)


def cat(trees: Sequence[Any], dim: int = 0) -> Any:
    """Trees of one shape, joined along a dimension of every tensor."""
    return tree_map(lambda *values: torch.cat(values, dim), *trees)


def where(condition: Tensor, yes: Any, no: Any) -> Any:
    """Of every tensor, ``yes`` where the condition holds; it has their leading dimensions."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        trailing = [1] * (a.ndim - condition.ndim)
        return torch.where(condition.reshape(*condition.shape, *trailing), a, b)

    return tree_map(choose, yes, no)


def to_device(tree: Any, device: torch.device) -> Any:
    """Moves every tensor of a tree to a device; what arrives on the CPU can be read at once."""
    later = device.type != "cpu"
    return tree_map(lambda value: value.to(device, non_blocking=later), tree)


@functools.lru_cache(maxsize=512)
def constant(
    values: tuple, device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:  # not to be changed: all callers share it
    """A tensor of (nested) tuples of numbers, made once for each device.

    A list as an index, or a new tensor of numbers, makes the CPU wait for the GPU each time.
    """
    with torch.inference_mode(False):  # else autograd could not keep it
        return torch.tensor(values, dtype=dtype).to(device)


def evenly_spread(total: int, count: int, device: torch.device) -> Tensor:
    """At most ``count`` of ``total`` numbers, int64, the first and the last included."""
    count = min(count, total)
    if count < 2:
        return constant((0,) * count, device)
    step = (total - 1) / (count - 1)
    return constant(tuple(round(number * step) for number in range(count)), device)
