"""The cameras and joints of a recording: observations, pooled posterior, scale, triangulation."""

from __future__ import annotations

import logging
import math
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ptri.config import Config, RecordingConfig
from ptri.errors import UserError
from ptri.evaluation.evaluate import FUSE_CHUNK
from ptri.geometry.cameras import centres
from ptri.posterior.sampling import rotation_covariance
from ptri.recordings.keypoint_files import Recording
from ptri.rig.check import RigInput, check_input, default_covariance, known_joints
from ptri.rig.estimate import MIN_KEYPOINTS, solve_rig, summarise
from ptri.rig.frames import MIN_JOINTS, usable_frames
from ptri.rig.scale import known_length, refuse_unmeasured
from ptri.structures import Keypoints, Prediction, RigPosterior, to_device

log = logging.getLogger(__name__)


class Solution(NamedTuple):
    """What is known of a recording's V solved views and T frames, in view 0's frame, mm."""

    views: list[int]  # the recording's views that were solved, the reference first
    pooled: list[int]  # frames that the rig posterior used
    posterior: RigPosterior  # B = 1
    R: Tensor  # (V, 3, 3) posterior mean
    t: Tensor  # (V, 3)
    prediction: Prediction  # (T, 17, 3), (T, 17, 3, 3): fused Human3.6M joints
    native: Prediction  # (T, J, 3), ...: the detector's own joints, triangulated
    scale_source: str  # in words
    seconds: dict[str, float]  # of the posterior and the fusion


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


def solve(model: nn.Module, recording: Recording, config: Config) -> Solution:
    """Cameras and joints of a recording.

    Args:
        model: with ``settings``, ``solve_full`` and ``fuse`` of `ptri.models.pose_model.PoseModel`.

    Raises:
        UserError: too little was seen.
    """
    settings = config.recording
    views = usable_views(recording)
    device = next(model.parameters()).device
    given = observations(recording, views, settings.noise)
    known = known_length(_scale_option(settings), len(views))
    if not bool(usable_frames(given.keypoints).any()):
        raise UserError(
            f"recording: no frame in which two cameras see {MIN_JOINTS} joints each; do the "
            "cameras run in step, and do file numbers agree?"
        )
    given = RigInput(*to_device((given.keypoints, given.K), device), given.skeleton)
    names = [recording.names[v] for v in views]
    seed, count = config.run.seed, settings.pool_frames
    start = time.perf_counter()
    solved = solve_rig(model, given, model.settings, seed, count, known, names=names)
    if math.isnan(solved.scale):
        refuse_unmeasured()
    middle = time.perf_counter()
    prediction = _fuse(model, known_joints(given), given.K, solved.posterior)
    seconds = {"posterior": middle - start, "fusion": time.perf_counter() - middle}
    estimate = summarise(solved, given)
    posterior = RigPosterior(*(part.cpu() for part in solved.posterior[:5]), [estimate.reason])
    native = Prediction(estimate.joints3d, estimate.joints3d_covariance)
    prediction, native = (
        _hide_unseen(Prediction(*(part.cpu() for part in one)), points)
        for one, points in ((prediction, known_joints(given)), (native, given.keypoints))
    )
    R, t = estimate.R.cpu(), estimate.t.cpu()
    return Solution(
        views, solved.frames, posterior, R, t, prediction, native, solved.scale_source, seconds
    )


def _fuse(model, keypoints: Keypoints, K: Tensor, posterior: RigPosterior) -> Prediction:
    """The 17 joints of every frame by the fusion network."""
    parts = []
    with torch.no_grad():
        for first in range(0, len(keypoints.xy), FUSE_CHUNK):
            part = Keypoints(*(value[None, first : first + FUSE_CHUNK] for value in keypoints))
            parts.append(model.fuse(part, K.expand(1, part.xy.shape[1], -1, -1, -1), posterior))
    return Prediction(*(torch.cat([part[i][0] for part in parts]) for i in range(2)))


def _scale_option(settings: RecordingConfig) -> dict[str, object] | None:
    """The lengths that a configuration knows, as `estimate_rig` takes them."""
    distance = settings.camera_distance
    both = {
        "subject_height": settings.subject_height,
        "camera_distance": None if distance is None else (0, 1, distance),
    }
    return {name: value for name, value in both.items() if value is not None} or None


def _hide_unseen(prediction: Prediction, keypoints: Keypoints) -> Prediction:
    """NaN in frames in which fewer than two views see the person."""
    seen = (torch.isfinite(keypoints.xy).all(-1).sum(-1) >= 3).sum(-1) >= 2  # (T,)
    lost = ~seen.cpu()[:, None, None]
    return Prediction(
        prediction.joints3d.masked_fill(lost, torch.nan),
        prediction.covariance.masked_fill(lost[..., None], torch.nan),
    )


def camera_spread(solution: Solution) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of each camera: rotation (V,) deg, all axes together, and centre (V,) mm.

    The scale's own uncertainty is part of the centre's.
    """
    rotation = rotation_covariance(solution.posterior)[0].diagonal(dim1=-2, dim2=-1).sum(-1)
    weights = solution.posterior.log_weights[:, 0].exp()[:, None, None]
    centre = centres(solution.posterior.R[:, 0], solution.posterior.t[:, 0])
    mean = (weights * centre).sum(0)
    spread2 = (weights * (centre - mean).square()).sum((0, 2))
    return torch.rad2deg(rotation.sqrt()).numpy(), spread2.sqrt().numpy()
