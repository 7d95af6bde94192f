"""The cameras and joints of a recording: observations, pooled posterior, scale, triangulation."""

from __future__ import annotations

import logging
import math
import time
import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ptri.config import Config
from ptri.data.keypoint_files import Recording
from ptri.errors import UserError
from ptri.evaluate import FUSE_CHUNK, spread
from ptri.geometry.cameras import centres, normalised_to_pixel, to_reference
from ptri.geometry.robust import robust_triangulation
from ptri.posterior import posterior_mean, rotation_covariance
from ptri.skeleton import H36M17, to_h36m17
from ptri.structures import Cameras, Keypoints, Prediction, RigPosterior

log = logging.getLogger(__name__)

MIN_KEYPOINTS = 6  # a view with fewer in the whole recording is left out
# Standing height over the distance from the middle of the shoulders to the middle of the ankles,
# measured along the body: 0.818 - 0.039 of the height (Drillis and Contini 1966).
HEIGHT_OVER_SEGMENTS = 1 / 0.779


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


def observations(recording: Recording, noise: float, native: bool = False) -> Keypoints:
    """A recording's keypoints as observations (T, V, J, ...), float32.

    Args:
        noise: standard deviation of a keypoint over the person's extent in the view.
        native: the detector's own joints instead of Human3.6M's 17.
    """
    if native:
        xy, confidence = recording.xy, recording.confidence
    else:
        xy, confidence = to_h36m17(recording.xy, recording.confidence, recording.skeleton)
    with warnings.catch_warnings():  # a view that saw nobody has no extent
        warnings.simplefilter("ignore", RuntimeWarning)
        usual = np.nanmedian(recording.height, 0)
    height = np.fmax(recording.height, usual)  # half a person seen is no smaller person
    sigma = np.where(np.isfinite(height), noise * height, 1.0)
    covariance = (sigma**2)[..., None, None, None] * np.eye(2)
    shape = (*xy.shape[:-1], 2, 2)
    parts = (xy, np.broadcast_to(covariance, shape), confidence)
    return Keypoints(*(torch.tensor(np.ascontiguousarray(part)).float() for part in parts))


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
        model: with ``solve`` and ``fuse`` of `ptri.models.ptri.PoseModel`.

    Raises:
        UserError: too little was seen.
    """
    settings = config.recording
    views = usable_views(recording)
    device = next(model.parameters()).device
    every = observations(recording, settings.noise)
    every = Keypoints(*(part[:, views].to(device) for part in every))
    T = len(recording.frames)
    K = torch.tensor(recording.K[views]).float().to(device).expand(1, T, -1, -1, -1)
    together = (torch.isfinite(every.xy).all(-1).sum(-1) >= MIN_KEYPOINTS).sum(-1) >= 2  # (T,)
    good = torch.nonzero(together)[:, 0].tolist()
    if not good:
        raise UserError(
            f"recording: no frame in which two cameras see {MIN_KEYPOINTS} joints each; do the "
            "cameras run in step, and do file numbers agree?"
        )
    pooled = [good[i] for i in spread(len(good), settings.pool_frames)]
    keypoints = Keypoints(*(part[None] for part in every))
    chosen = Keypoints(*(part[:, pooled] for part in keypoints))
    with torch.no_grad():
        start = time.perf_counter()
        posterior = model.solve(chosen, K[:, pooled], seed=config.run.seed)
        middle = time.perf_counter()
        parts = []
        for first in range(0, T, FUSE_CHUNK):
            piece = slice(first, first + FUSE_CHUNK)
            part = Keypoints(*(value[:, piece] for value in keypoints))
            parts.append(model.fuse(part, K[:, piece], posterior))
        seconds = {"posterior": middle - start, "fusion": time.perf_counter() - middle}
    joints, covariance = (torch.cat([p[i][0] for p in parts]).cpu() for i in range(2))
    prediction = _hide_unseen(Prediction(joints, covariance), every)
    posterior = RigPosterior(
        *(part.cpu() for part in posterior[:5]), reason=_with_names(posterior, recording, views)
    )
    factor, source = _scale(prediction, posterior, settings)
    prediction = Prediction(prediction.joints3d * factor, prediction.covariance * factor**2)
    posterior = posterior._replace(t=posterior.t * factor)
    R, t = (part[0] for part in posterior_mean(posterior))
    native = triangulate_native(recording, views, R, t, settings.noise)
    return Solution(views, pooled, posterior, R, t, prediction, native, source, seconds)


def triangulate_native(
    recording: Recording, views: list[int], R: Tensor, t: Tensor, noise: float
) -> Prediction:
    """The detector's joints (T, J, 3) with given cameras (V, ...) of the chosen views."""
    keypoints = observations(recording, noise, native=True)
    keypoints = Keypoints(*(part[None, :, views] for part in keypoints))
    K = torch.tensor(recording.K[views]).expand(1, len(recording.frames), -1, -1, -1)
    prediction, _ = robust_triangulation(keypoints, Cameras(K, R[None], t[None]))
    return Prediction(*(part[0] for part in prediction))


def _hide_unseen(prediction: Prediction, keypoints: Keypoints) -> Prediction:
    """NaN in frames in which fewer than two views see the person."""
    seen = (torch.isfinite(keypoints.xy).all(-1).sum(-1) >= 3).sum(-1) >= 2  # (T,)
    lost = ~seen.cpu()[:, None, None]
    return Prediction(
        prediction.joints3d.masked_fill(lost, torch.nan),
        prediction.covariance.masked_fill(lost[..., None], torch.nan),
    )


def _with_names(posterior: RigPosterior, recording: Recording, views: list[int]) -> list[str]:
    """Verdicts that say cameras' names instead of "view 2"."""
    reasons = []
    for reason in posterior.reason:
        for v in reversed(range(len(views))):
            reason = reason.replace(f"view {v}", f"camera {recording.names[views[v]]}")
        reasons.append(reason)
    return reasons


def _scale(prediction: Prediction, posterior: RigPosterior, settings) -> tuple[float, str]:
    """Factor for every length, and where the scale comes from."""
    if settings.subject_height is not None and settings.camera_distance is not None:
        raise UserError(
            "recording: subject_height and camera_distance both fix the scale; give one of them"
        )
    if settings.subject_height is not None:
        measured = body_height(prediction.joints3d)
        return settings.subject_height / measured, (
            f"subject's height of {settings.subject_height:g} mm (before: {measured:.0f} mm)"
        )
    if settings.camera_distance is not None:
        R, t = posterior_mean(posterior)
        measured = float(centres(R, t)[0, 1].norm())
        return settings.camera_distance / measured, (
            f"distance of the first two cameras, {settings.camera_distance:g} mm "
            f"(before: {measured:.0f} mm)"
        )
    return 1.0, "lengths of human bones (give subject_height or camera_distance for better)"


def body_height(joints: Tensor) -> float:
    """Standing height (mm) from the segments of joints (T, 17, 3), median over frames."""
    index = {name: j for j, name in enumerate(H36M17.joints)}

    def length(a: str, b: str) -> Tensor:
        return (joints[:, index[a]] - joints[:, index[b]]).norm(dim=-1)

    legs = sum(
        length(f"{s}_hip", f"{s}_knee") + length(f"{s}_knee", f"{s}_foot")
        for s in ("left", "right")
    )
    shoulders = (joints[:, index["left_shoulder"]] + joints[:, index["right_shoulder"]]) / 2
    trunk = (shoulders - joints[:, index["hip"]]).norm(dim=-1)
    total = (legs / 2 + trunk).nanmedian()
    return float(total) * HEIGHT_OVER_SEGMENTS


def reprojection_error(
    recording: Recording, views: list[int], R: Tensor, t: Tensor, clear: float
) -> Tensor:
    """What cameras leave of the keypoints: distances (T, V, J) px after plain least squares.

    Each joint is triangulated without any robustness or prior from its keypoints of at least
    ``clear`` confidence, all of equal weight, so that different cameras compare fairly. NaN where
    a keypoint is not clear, and at joints that fewer than three views (of two: two) see clearly.
    """
    xy = torch.tensor(recording.xy[:, views])
    used = torch.tensor(recording.confidence[:, views] >= clear)
    used &= used.sum(1, keepdim=True) >= min(3, len(views))
    xy = torch.where(used[..., None], xy, torch.nan)
    covariance = torch.eye(2, dtype=xy.dtype).expand(*xy.shape, 2)
    K = torch.tensor(recording.K[views])
    keypoints = Keypoints(xy[None], covariance[None], used[None].to(xy))
    rig = Cameras(K.expand(1, len(xy), -1, -1, -1), R[None], t[None])
    joints = robust_triangulation(keypoints, rig, cauchy=math.inf)[0].joints3d[0]
    camera = torch.einsum("vik,tjk->tvji", R.double(), joints) + t.double()[:, None]
    projected = normalised_to_pixel(camera[..., :2] / camera[..., 2:], K)
    return (projected - xy).norm(dim=-1)


def reference_cameras(recording: Recording, views: list[int]) -> Cameras | None:
    """The reference calibration of the solved views in the reference view's frame, or None."""
    if recording.R is None:
        return None
    K, R, t = (torch.tensor(part[views]) for part in (recording.K, recording.R, recording.t))
    return to_reference(Cameras(K, R, t))


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
