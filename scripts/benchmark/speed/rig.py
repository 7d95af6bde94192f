"""Calls of our own estimator to be timed, on generated cases of given sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from benchmark.rig.cases import Cases, Cell, make_cases
from ptri.config import PosteriorConfig
from ptri.geometry.cameras import project
from ptri.models.pose_model import PoseModel
from ptri.rig.estimate import solve
from ptri.structures import Cameras, Keypoints


class Size(NamedTuple):
    """What is timed."""

    batch: int = 1  # rigs at once
    num_frames: int = 1
    num_views: int = 4
    num_joints: int = 17
    num_samples: int = 512  # over all iterations
    num_iterations: int = 4


def make_call(
    model: PoseModel, options: PosteriorConfig, size: Size, seed: int = 0
) -> Callable[[], object]:
    """A call of the estimator on rigs of a size."""
    cell = Cell("ring", size.num_frames, views=size.num_views)
    cases = with_joints(make_cases(cell, size.batch, seed), size.num_joints, seed)
    options = dataclasses.replace(
        options, num_samples=size.num_samples, num_iterations=size.num_iterations
    )
    return lambda: solve(model, cases.keypoints, cases.K, options, seed)


def with_joints(cases: Cases, num_joints: int, seed: int = 0) -> Cases:
    """Cases with more joints than 17: points between two of these, fixed to the body."""
    extra = num_joints - cases.joints3d.shape[-2]
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(cases.joints3d.shape[-2], (extra, 2), generator=generator)
    share = torch.rand(extra, 1, generator=generator, dtype=torch.float64)
    first, second = (cases.joints3d[..., ends[:, i], :] for i in range(2))
    joints = torch.lerp(first, second, share)
    cameras = Cameras(cases.K, cases.cameras.R.unsqueeze(1), cases.cameras.t.unsqueeze(1))
    xy = project(joints, cameras)  # (B, T, V, extra, 2)
    noise = torch.randn(xy.shape, generator=generator, dtype=torch.float64)
    xy = xy + cases.sigma[:, None, :, None, None] * noise
    given = cases.keypoints
    keypoints = Keypoints(
        torch.cat([given.xy, xy], dim=-2),
        torch.cat([given.covariance, given.covariance[..., :1, :, :].expand(*xy.shape, 2)], dim=-3),
        torch.cat([given.confidence, torch.full_like(xy[..., 0], 0.9)], dim=-1),
    )
    clean = torch.cat([cases.clean, torch.ones_like(xy[..., 0], dtype=torch.bool)], dim=-1)
    return cases._replace(
        keypoints=keypoints, joints3d=torch.cat([cases.joints3d, joints], dim=-2), clean=clean
    )


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of log time over log size, least squares over the upper half of the sizes.

    1 is linear growth; below 1, fixed costs still count.
    """
    half = len(sizes) // 2 if len(sizes) > 3 else 0
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])
