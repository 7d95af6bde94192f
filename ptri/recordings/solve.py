"""The cameras and joints of a recording, by the one pipeline (`ptri.rig.estimate`)."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import numpy as np
import torch

from ptri.config import Config, RecordingConfig
from ptri.errors import UserError
from ptri.geometry.cameras import centres
from ptri.models.pose_model import PoseModel
from ptri.recordings.keypoint_files import Recording
from ptri.rig.check import RigInput, check_input, default_covariance
from ptri.rig.estimate import RigEstimate, Solved, solve_cameras, with_joints
from ptri.rig.frames import MIN_JOINTS, usable_frames
from ptri.rig.scale import known_length
from ptri.structures import Prediction, to_device
from ptri.verdict.judge import MIN_KEYPOINTS

log = logging.getLogger(__name__)


class Solution(NamedTuple):
    """What is known of a recording, in the frame of its first solved view, on the CPU."""

    views: list[int]  # the recording's views that were solved, the reference first
    estimate: RigEstimate  # joints are NaN in frames in which fewer than two views see the person
    seconds: dict[str, float]  # of the posterior and of the joints


def observations(recording: Recording, views: list[int], noise: float) -> RigInput:
    """The keypoints of some of a recording's views, as the rig posterior takes them.

    Args:
        noise: standard deviation of a keypoint over the person's extent in the view, where the
            recording holds no covariances.
    """
    xy = torch.tensor(recording.xy[:, views], dtype=torch.float64)
    confidence = torch.tensor(recording.confidence[:, views], dtype=torch.float64)
    K = torch.tensor(recording.K[views], dtype=torch.float64)
    if recording.covariance is None:
        covariance = default_covariance(xy, noise)
    else:
        covariance = torch.tensor(recording.covariance[:, views], dtype=torch.float64)
    return check_input(xy, K, confidence, covariance, recording.skeleton)


def usable_views(recording: Recording) -> list[int]:
    """Views with enough keypoints.

    Raises:
        UserError: fewer than two.
    """
    counts = np.isfinite(recording.xy).all(-1).sum((0, 2))
    views = [v for v, count in enumerate(counts) if count >= MIN_KEYPOINTS]
    for v, name in enumerate(recording.names):
        if v not in views:
            log.warning("camera %s: %d keypoints in all frames, left out", name, counts[v])
    if len(views) < 2:
        seen = ", ".join(f"{n} {c}" for n, c in zip(recording.names, counts))
        raise UserError(
            f"recording: {len(views)} camera with at least {MIN_KEYPOINTS} keypoints, two are "
            f"needed (keypoints seen: {seen})"
        )
    return views


def solve(model: PoseModel, recording: Recording, config: Config) -> Solution:
    """Cameras and joints of a recording.

    Raises:
        UserError: too little was seen.
    """
    views = usable_views(recording)
    start = time.perf_counter()
    solved, given = cameras_of(model, recording, views, config)
    middle = time.perf_counter()
    estimate = to_device(with_joints(model, solved, given), torch.device("cpu"))
    seconds = {"posterior": middle - start, "joints": time.perf_counter() - middle}
    seen = (torch.isfinite(given.keypoints.xy).all(-1).sum(-1) >= 3).sum(-1) >= 2  # (T,)
    lost = ~seen.cpu()[:, None, None]
    joints, covariance = estimate.joints3d, estimate.joints3d_covariance
    estimate = estimate._replace(
        joints3d=joints.masked_fill(lost, torch.nan),
        joints3d_covariance=covariance.masked_fill(lost[..., None], torch.nan),
        body=Prediction(
            estimate.body.joints3d.masked_fill(lost, torch.nan),
            estimate.body.covariance.masked_fill(lost[..., None], torch.nan),
        ),
    )
    return Solution(views, estimate, seconds)


def cameras_of(
    model: PoseModel, recording: Recording, views: list[int], config: Config
) -> tuple[Solved, RigInput]:
    """The cameras of some of a recording's views, and the keypoints as they were given.

    Raises:
        UserError: too little was seen.
    """
    settings = config.recording
    given = observations(recording, views, settings.noise)
    known = known_length(_scale_option(settings), len(views))
    if not bool(usable_frames(given.keypoints).any()):
        raise UserError(
            f"recording: no frame in which two cameras see {MIN_JOINTS} joints each; do the "
            "cameras run in step, and do file numbers agree?"
        )
    device = next(model.parameters()).device
    given = RigInput(*to_device((given.keypoints, given.K), device), given.skeleton)
    count = settings.pool_frames
    solved = solve_cameras(model, given, config.posterior, config.run.seed, count, known)
    solved.scale.refuse_unmeasured()
    return solved, given


def _scale_option(settings: RecordingConfig) -> dict[str, object] | None:
    """The lengths that a configuration knows, as `estimate_rig` takes them."""
    distance = settings.camera_distance
    both = {
        "subject_height": settings.subject_height,
        "camera_distance": None if distance is None else (0, 1, distance),
    }
    return {name: value for name, value in both.items() if value is not None} or None


def camera_spread(solution: Solution) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of each camera: rotation (V,) deg, all axes together, and centre (V,) mm.

    The scale's own uncertainty is part of the centre's.
    """
    estimate = solution.estimate
    rotation = estimate.rotation_cov.diagonal(dim1=-2, dim2=-1).sum(-1)
    weights = estimate.posterior.log_weights[:, 0].exp()[:, None, None]
    centre = centres(estimate.posterior.R[:, 0], estimate.posterior.t[:, 0])
    mean = (weights * centre).sum(0)
    spread2 = (weights * (centre - mean).square()).sum((0, 2))
    return torch.rad2deg(rotation.sqrt()).numpy(), spread2.sqrt().numpy()
