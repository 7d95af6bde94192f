"""Cameras and joints from a detector's keypoints, against the truth of rendered people."""

from __future__ import annotations

import numpy as np
import torch
from detector_errors.clips import Detected
from torch import Tensor

from benchmark.detectors.cases import Window
from ptri.config import PosteriorConfig
from ptri.evaluation import metrics
from ptri.evaluation.metrics import LEVELS
from ptri.geometry.triangulation import robust_triangulation
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import posterior_from_cameras
from ptri.rig.check import check_input, known_joints
from ptri.rig.estimate import solve_cameras
from ptri.rig.joints import body_under
from ptri.rig.result import with_joints
from ptri.skeleton import SKELETONS
from ptri.structures import Cameras, take

MAX_FRAMES = 50  # that a rig is solved from; a clip has fewer

Scores = dict[str, np.ndarray]


@torch.no_grad()
def score(
    model: PoseModel, found: Detected, window: Window, options: PosteriorConfig, seed: int
) -> Scores:
    """What comes of some frames by `ptri.rig.estimate`, as a recording takes it.

    Args:
        model: with what is assumed known of the detector.

    Returns:
        ``angle`` (P,) deg of every pair of views; ``rotation50``, ``rotation90`` (V - 1,) whether
        the region holds a view's rotation; (1,) each: ``accepted``; root-relative errors, mm,
        without alignment: ``mpjpe`` of the fused joints, ``answered`` of those that triangulation
        answers too, ``triangulated`` of these by robust triangulation with the true cameras,
        ``calibrated`` by the fusion with the true cameras; ``joints50``, ``joints90`` shares in
        the regions of the fused joints.
    """
    clips, part = found.clips, (window.clip, window.frames)
    keypoints, truth = take((found.keypoints, clips.joints), part)
    cameras = take(clips.cameras, window.clip)
    arrays = (keypoints.xy, cameras.K, keypoints.confidence.clamp(0, 1), keypoints.covariance)
    given = check_input(*arrays, SKELETONS[clips.joint_set])
    solved = solve_cameras(model, given, options, seed, MAX_FRAMES)
    estimate = with_joints(model, solved, given)
    known = take((known_joints(given), given.K), None)
    true_rig = Cameras(known[1], cameras.R[None].double(), cameras.t[None].double())
    plain = robust_triangulation(known[0], true_rig)[0].joints3d[0].to(truth)
    answered = torch.where(torch.isfinite(plain).all(-1, keepdim=True), truth, torch.nan)
    calibrated = body_under(model, *known, posterior_from_cameras(true_rig)).joints3d[0]
    inside = metrics.rotation_coverage(estimate.posterior, cameras.R[None])[0]  # (V - 1, L)
    share = metrics.joint_coverage(*estimate.body, truth).nanmean(0)  # (L,)
    values = {
        "angle": metrics.rotation_error_deg(estimate.R, cameras.R.to(estimate.R)),
        "accepted": torch.tensor([float(estimate.accepted)]),
        "mpjpe": _mean(estimate.body.joints3d, truth),
        "answered": _mean(estimate.body.joints3d, answered),
        "calibrated": _mean(calibrated, answered),
        "triangulated": _mean(plain, answered),
    }
    for number, level in enumerate(LEVELS):
        values[f"rotation{100 * level:.0f}"] = inside[:, number]
        values[f"joints{100 * level:.0f}"] = share[number : number + 1]
    return {name: value.double().numpy() for name, value in values.items()}


def _mean(joints: Tensor, truth: Tensor) -> Tensor:
    """Root-relative error of frames (T, 17, 3), mm, as (1,)."""
    return metrics.mpjpe(joints, truth).double().nanmean()[None]
