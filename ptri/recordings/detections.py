"""What was detected in videos: everybody in all frames and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptri.config import RecordingConfig
from ptri.errors import UserError
from ptri.recordings.candidates import Candidates
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.keypoint_files import Recording, distort, followed_recording
from ptri.skeleton import Skeleton

# Mean confidence of a person's joints. MoveNet, sample recordings: people 0.65 and more, 20 boxes
# of background 0.2 and less.
SOMEBODY = 0.25


class Detections(NamedTuple):
    """The people in T frames of V views."""

    frames: np.ndarray  # (T,) int64
    fps: float  # that the frames' numbers count; 0 = not stated
    skeleton: Skeleton  # of the J keypoints
    people: Candidates  # all of them
    seconds: float = 0.0  # per frame of all views, reading the video included
    made_from: dict[str, str] | None = None  # see `ptri.recordings.cache`


def inside_pictures(people: Candidates, cameras: Sequence[CameraEntry]) -> Candidates:
    """The same; what lies outside the picture is not seen."""
    inside = np.zeros(people.confidence.shape, bool)
    for v, camera in enumerate(cameras):
        points = distort(people.xy[people.view == v], camera.K, camera.dist)
        within = (points >= -0.5) & (points <= np.array(camera.size) - 0.5)
        inside[people.view == v] = within.all(-1)
    xy = np.where(inside[..., None], people.xy, np.nan)
    return people._replace(xy=xy, confidence=np.where(inside, people.confidence, 0.0))


def detected_recording(
    detections: Detections,
    cameras: Sequence[CameraEntry],
    options: RecordingConfig,
    late: np.ndarray | None = None,
) -> Recording:
    """The recording of the person who is followed.

    Args:
        late: (V,) whole frames by which what a camera shows comes too late; None: none.

    Raises:
        UserError: nobody was found, or nobody in a view with boxes.
    """
    frames, fps, skeleton, people = detections[:4]
    sure = np.isfinite(people.surely(options.min_confidence).xy).any((1, 2))
    if not sure.any():
        raise UserError(
            "recording: nobody was found in any video; is a whole person in the pictures, upright "
            "as players show them? Boxes help where the person is small (recording.boxes)"
        )
    for view, camera in enumerate(cameras):
        given = people.given & (people.view == view)
        if given.any() and people.confidence[given].mean(1).max() < SOMEBODY:
            raise UserError(
                f"recording.boxes: nobody is seen in any box of {camera.name}.csv; boxes are left, "
                "top, right, bottom in px of the video as shown, frames are counted from 0"
            )
    return followed_recording(people, cameras, frames, fps, skeleton, options, late)
