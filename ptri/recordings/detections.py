"""What was detected in videos, as arrays: of one person, in all frames and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptri.errors import UserError
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.keypoint_files import Recording, distort
from ptri.recordings.look import CropKeypoints
from ptri.skeleton import H36M17, Skeleton


class Detections(NamedTuple):
    """Keypoints of one person in T frames of V views; NaN xy = nobody, or not in the picture."""

    frames: np.ndarray  # (T,) int64
    xy: np.ndarray  # (T, V, J, 2) px, undistorted to the same K
    covariance: np.ndarray  # (T, V, J, 2, 2) px^2
    confidence: np.ndarray  # (T, V, J)
    crops: np.ndarray  # (T, V, 4) centre x, y and side px, turn rad; NaN = nobody
    seconds: float = 0.0  # per frame of all views, reading the video included
    made_from: dict[str, str] | None = None  # see `ptri.recordings.cache`
    skeleton: Skeleton = H36M17  # of the J joints


def gather(
    candidates: Sequence[CropKeypoints],
    subject: np.ndarray,
    cameras: Sequence[CameraEntry],
    frames: Sequence[int],
    skeleton: Skeleton,
) -> Detections:
    """The chosen candidates (T, V) as arrays; what lies outside the picture is not seen."""
    T, V = subject.shape
    J = len(skeleton.joints)
    xy, covariance = np.full((T, V, J, 2), np.nan), np.full((T, V, J, 2, 2), np.nan)
    confidence, crops = np.zeros((T, V, J)), np.full((T, V, 4), np.nan)
    for row, v in np.argwhere(subject >= 0):
        people = candidates[row]
        person = np.flatnonzero(people.view == v)[subject[row, v]]
        xy[row, v], covariance[row, v] = people.xy[person], people.covariance[person]
        confidence[row, v], crops[row, v] = people.confidence[person], people.crops[person]
    for v, camera in enumerate(cameras):
        points = distort(xy[:, v], camera.K, camera.dist)
        inside = ((points >= -0.5) & (points <= np.array(camera.size) - 0.5)).all(-1)
        for part, unseen in ((xy, np.nan), (covariance, np.nan), (confidence, 0.0)):
            part[:, v][~inside] = unseen
    frames = np.array(frames, np.int64)
    return Detections(frames, xy, covariance, confidence, crops, skeleton=skeleton)


def detected_recording(
    detections: Detections, cameras: Sequence[CameraEntry], min_confidence: float
) -> Recording:
    """The recording that was detected; keypoints below a confidence are not seen.

    Raises:
        UserError: nobody was found.
    """
    unsure = ~(detections.confidence >= min_confidence)
    xy = np.where(unsure[..., None], np.nan, detections.xy)
    if not np.isfinite(xy).any():
        raise UserError(
            "recording: nobody was found in any video; the person has to move before a still "
            "background, or give boxes (recording.boxes)"
        )
    confidence = np.where(unsure, 0.0, detections.confidence)
    return Recording(
        tuple(cameras),
        detections.frames,
        xy,
        confidence,
        detections.skeleton,
        detections.covariance,
    )
