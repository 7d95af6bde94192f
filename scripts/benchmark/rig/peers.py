"""Other methods on the same cases, one case at a time.

Each peer takes one case and returns cameras, or None where it finds no answer; joints are then
triangulated robustly with its cameras, for all peers alike. Libraries are imported when a peer is
made; one that is not installed raises `NotInstalledError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple

import numpy as np
import torch

from benchmark.rig.cases import Cases
from benchmark.rig.scores import Answer
from ptri.geometry.epipolar import five_point_rigs
from ptri.geometry.triangulation import robust_triangulation
from ptri.structures import Cameras, Keypoints, take

# Reprojection error of an inlier over the focal length: four standard deviations of the true noise,
# but no less than this (of 0.004, 0.007, 0.01, 0.015 at 3 px the one that served both peers best).
THRESHOLD = 0.01


class PeerRig(NamedTuple):
    """One case's rig, any scale, with joints or without: they are then triangulated robustly."""

    R: np.ndarray  # (V, 3, 3)
    t: np.ndarray  # (V, 3)
    joints: np.ndarray | None = None  # (T, J, 3)


class NotInstalledError(Exception):
    """A peer's library is missing or does not work; the message says what and why."""


Peer = Callable[[Cases, int], "PeerRig | None"]


def library(name: str):
    """A peer's module.

    Raises:
        NotInstalledError: it cannot be imported.
    """
    try:
        return import_module(name)
    except Exception as error:  # a broken wheel fails in its own ways
        raise NotInstalledError(f"{name}: {type(error).__name__}: {error}") from None


def run_peer(peer: Peer, cases: Cases, seed: int = 0) -> Answer:
    """A peer's answers to B cases; NaN cameras where it has none."""
    truth = cases.cameras
    R, t = torch.full_like(truth.R, torch.nan), torch.full_like(truth.t, torch.nan)
    joints = torch.full_like(cases.joints3d, torch.nan)
    seconds = 0.0
    for index in range(len(R)):
        case = take(cases, slice(index, index + 1))
        start = time.perf_counter()
        solution = peer(case, seed)
        seconds += time.perf_counter() - start
        if solution is None:
            continue
        R[index], t[index] = torch.from_numpy(solution.R), torch.from_numpy(solution.t)
        if solution.joints is None:
            cameras = Cameras(case.K, R[index : index + 1], t[index : index + 1])
            joints[index] = triangulated(case.keypoints, cameras)[0]
        else:
            joints[index] = torch.from_numpy(solution.joints)
    return Answer(R, t, joints, seconds=seconds)


def noise(case: Cases) -> float:
    """The true standard deviation of a case's keypoints over the focal length; median of views."""
    return float((case.sigma[0] / case.K[0, 0, :, 0, 0]).median())


def relative_rig(R: np.ndarray, t: np.ndarray) -> PeerRig | None:
    """World cameras (V, 3, 3), (V, 3), relative to view 0; None where one is not finite."""
    if not (np.isfinite(R).all() and np.isfinite(t).all()):
        return None
    relative = R @ R[0].T
    return PeerRig(relative, t - relative @ t[0])


def triangulated(keypoints: Keypoints, cameras: Cameras) -> torch.Tensor:
    """Robust triangulation (B, T, J, 3) at any scale of the translations."""
    # The triangulation starts from depths of people in rooms, so it is given such a scale.
    size = cameras.t.norm(dim=-1).amax(-1).clamp_min(1e-9)[:, None, None]
    scaled = Cameras(cameras.K, cameras.R, cameras.t * (4000.0 / size))
    joints = robust_triangulation(keypoints, scaled)[0].joints3d
    return joints * (size / 4000.0).unsqueeze(-1)


# --- the peers -------------------------------------------------------------------------------


def calibrated(case: Cases, seed: int) -> PeerRig:
    """The ceiling: robust triangulation with the true cameras."""
    cameras = Cameras(case.K, case.cameras.R, case.cameras.t)
    joints = robust_triangulation(case.keypoints, cameras)[0].joints3d
    return PeerRig(case.cameras.R[0].numpy(), case.cameras.t[0].numpy(), joints[0].numpy())


def five_point(case: Cases, seed: int, relative=None, resect=None) -> PeerRig | None:
    """Five-point relative pose of pooled frames, then resection; the best of several seed pairs.

    By default OpenCV's: USAC five-point, SQPNP RANSAC and Levenberg-Marquardt.
    """
    xy, K = case.keypoints.xy[0].numpy(), case.K[0].numpy()
    threshold = max(THRESHOLD, 4 * noise(case))
    rigs = five_point_rigs(xy, K, None, seed, threshold, relative=relative, resect=resect)
    return PeerRig(rigs[0].R, rigs[0].t) if rigs else None


def poselib() -> Peer:
    """PoseLib: LO-RANSAC relative and absolute pose with non-linear refinement."""
    lib = library("poselib")
    camera = {"model": "PINHOLE", "width": 1, "height": 1, "params": [1.0, 1.0, 0.0, 0.0]}

    def options(name: str, threshold: float, seed: int) -> dict:
        return {name: threshold, "seed": seed, "success_prob": 0.9999, "max_iterations": 2000}

    def enough(pose, info, least):
        inliers = np.asarray(info["inliers"], bool)
        good = inliers.sum() >= least and np.isfinite(pose.t).all()
        return (np.asarray(pose.R), np.asarray(pose.t), inliers) if good else None

    def relative(a, b, threshold, seed):
        choice = options("max_epipolar_error", threshold, seed)
        return enough(*lib.estimate_relative_pose(a, b, camera, camera, choice, {}), 5)

    def resect(points, rays, threshold, seed):
        choice = options("max_reproj_error", threshold, seed)
        pose = enough(*lib.estimate_absolute_pose(rays, points, camera, choice, {}), 4)
        return pose and (*pose[:2], np.flatnonzero(pose[2]))

    return partial(five_point, relative=relative, resect=resect)
