"""Frames after the 2D network, a scene at a time: batches joined, rows of predictions.h5."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.data.h36m import H36M
from ptri.evaluation.outputs import PredictionFile
from ptri.posterior.sampling import posterior_mean, resample
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints, Prediction, RigPosterior, cat

SAVED_SAMPLES = 32  # posterior samples per rig in predictions.h5, of equal weight


class SceneEstimate(NamedTuple):
    """Joints of T frames and the rig posterior they came from (B = T, or 1 when pooled)."""

    prediction: Prediction  # (T, J, 3) mm, (T, J, 3, 3) mm^2
    posterior: RigPosterior
    accepted: Tensor  # (B,) bool, the verdicts


class SceneFrames(NamedTuple):
    """One batch, or one scene, after the 2D network; tensors have T frames first."""

    keypoints: Keypoints  # (T, V, J, ...)
    features: Tensor  # (T, V, J, C) of the 2D network at the keypoints
    cameras: Cameras  # true; K (T, V, 3, 3), R (T, V, 3, 3), t (T, V, 3)
    joints3d: Tensor  # (T, J, 3) mm, true
    joints2d: Tensor  # (T, V, J, 2) px, true
    visible: Tensor  # (T, V, J)
    subject: Tensor  # (T,)
    action: Tensor  # (T,)
    frame: Tensor  # (T,)
    item: Tensor  # (T,) place in the data set


def with_time(detected: SceneFrames) -> tuple[Keypoints, Tensor]:
    """Keypoints (B, 1, V, J, ...) and K (B, 1, V, 3, 3): frames as rigs of one frame each."""
    return Keypoints(*(part[:, None] for part in detected.keypoints)), detected.cameras.K[:, None]


def views(dataset: H36M, detected: SceneFrames) -> np.ndarray:
    """(T, V) places of each frame's views among the data set's chosen cameras."""
    seen = dataset.index.seen[detected.item.numpy()]
    return np.stack([np.flatnonzero(row) for row in seen])


def thin(estimate: SceneEstimate) -> SceneEstimate:
    """Keeps `SAVED_SAMPLES` samples of equal weight of each rig: a scene may be long."""
    R, t, log_weights = resample(estimate.posterior, SAVED_SAMPLES)
    posterior = RigPosterior(R, t, log_weights, estimate.posterior.ess)
    return estimate._replace(posterior=posterior)


def join(
    parts: list[tuple[SceneFrames, SceneEstimate]],
) -> tuple[SceneFrames, SceneEstimate]:
    """One scene of the batches it was read in."""
    frames, estimates = (list(values) for values in zip(*parts))
    posteriors = [estimate.posterior for estimate in estimates]
    samples = (torch.cat(values, 1) for values in zip(*(part[:3] for part in posteriors)))
    posterior = RigPosterior(*samples, torch.cat([part.ess for part in posteriors]))
    prediction = cat([estimate.prediction for estimate in estimates])
    accepted = torch.cat([estimate.accepted for estimate in estimates])
    return cat(frames), SceneEstimate(prediction, posterior, accepted)


def rows(
    scene: SceneFrames, single: SceneEstimate, pooled: SceneEstimate | None, views, dataset
) -> dict:
    """A scene's rows of predictions.h5; views stand at their camera's place, NaN if absent."""
    place, C = views[0], len(dataset.index.cameras)

    def spread_views(value: Tensor, axis: int) -> np.ndarray:
        array = value.float().cpu().numpy()
        shape = list(array.shape)
        shape[axis] = C
        result = np.full(shape, np.nan, np.float32)
        result[(slice(None),) * axis + (place,)] = array
        return result

    rows = {
        "subject": scene.subject.cpu().numpy(),
        "action": scene.action.cpu().numpy(),
        "frame": scene.frame.cpu().numpy(),
        "keypoints/xy": spread_views(scene.keypoints.xy, 1),
        "keypoints/covariance": spread_views(scene.keypoints.covariance, 1),
        "keypoints/confidence": spread_views(scene.keypoints.confidence, 1),
        "cameras/K": spread_views(scene.cameras.K, 1),
        "cameras/R": spread_views(scene.cameras.R, 1),
        "cameras/t": spread_views(scene.cameras.t, 1),
        "joints3d_true": scene.joints3d.float().cpu().numpy(),
    }
    for method, estimate in (("single", single), ("pooled", pooled)):
        if estimate is None:
            continue
        T, posterior = len(scene.frame), estimate.posterior
        R, t = posterior_mean(posterior)
        sample_R, sample_t, _ = resample(posterior, SAVED_SAMPLES)
        values = {
            "R": spread_views(R, 1),
            "t": spread_views(t, 1),
            "samples_R": spread_views(sample_R.transpose(0, 1), 2),
            "samples_t": spread_views(sample_t.transpose(0, 1), 2),
            "accepted": estimate.accepted.cpu().numpy(),
            "ess": posterior.ess.float().cpu().numpy(),
        }
        for name, value in values.items():  # one rig of a scene stands at each of its frames
            rows[f"{method}/{name}"] = np.repeat(value, T, 0) if len(value) == 1 else value
        rows[f"{method}/joints3d"] = estimate.prediction.joints3d.float().cpu().numpy()
        rows[f"{method}/covariance"] = estimate.prediction.covariance.float().cpu().numpy()
    return rows


def write_names(predictions: PredictionFile, dataset: H36M) -> None:
    labels = dataset.index.labels
    predictions.names("subject_names", list(labels.subject_names))
    predictions.names("action_names", list(labels.action_names))
    predictions.names(
        "camera_names", [labels.camera_names[camera] for camera in dataset.index.cameras]
    )
    predictions.names("joint_names", list(H36M17.joints))
