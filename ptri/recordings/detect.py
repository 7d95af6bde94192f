"""A detector on videos: crops of the person, keypoints in full-image pixels with covariance.

Per frame and view the crops come from a given box, or from what moves and from where the person was
in the frame before, and then as `ptri.recordings.crops` says. All views and crops of a frame go
through the detector together (`ptri.recordings.look`). In the end the largest person that can be
followed through the frames is the subject (`ptri.recordings.subject`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from ptri.config import Config
from ptri.detectors.protocol import PoseDetector
from ptri.evaluation.pictures import spread
from ptri.recordings.boxes import Motion, small
from ptri.recordings.crops import Turns, crop_of_box, refine
from ptri.recordings.detections import Detections, gather
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.look import CropKeypoints, look_at
from ptri.recordings.subject import FREE_MOVE, follow_subject
from ptri.recordings.videos import Video, VideoSet, read_in_step

BACKGROUND_FRAMES = 41  # the median of so many is the background
# Side of a moving region's crop over that of a person's box; measured on the sample recording.
MOTION_CROP = 1.1
SPEED = 1.8  # sizes of the person a second that it may move unsuspected, beyond FREE_MOVE
USUAL_FPS = 30.0  # of a video that does not state its own
SAME_CROP = 0.25  # crops whose centres differ by less, in sides, are one person


def detect(detector: PoseDetector, video_set: VideoSet, config: Config) -> Detections:
    """Detects the subject in every frame and view."""
    start = time.perf_counter()
    cameras, videos, frames, boxes = video_set
    turns = Turns(len(cameras), config.recording.max_roll_deg)
    scale = MOTION_CROP * detector.crop_scale
    motion = backgrounds(videos, frames) if boxes is None else None
    previous: list[np.ndarray | None] = [None] * len(cameras)  # crops of the best candidates
    candidates = []  # of each frame, the people who may be the subject, one crop each
    reading = tqdm(read_in_step(videos, frames), "detect", len(frames), False, unit="frame")
    for row, images in enumerate(reading):
        look = functools.partial(look_at, detector, cameras, images)
        if boxes is None:
            squares = [
                _moving_squares(motion[v].boxes(image), scale, cameras[v], previous[v])
                for v, image in enumerate(images)
            ]
        else:
            squares = [
                [crop_of_box(box, detector.crop_scale, camera)] if np.isfinite(box).all() else []
                for box, camera in zip(boxes[row], cameras)
            ]
        views = np.repeat(np.arange(len(cameras)), [len(part) for part in squares])
        crops = np.array([square for part in squares for square in part]).reshape(-1, 3)
        people = turns.best(look, views, crops, row)
        if boxes is None:
            people = refine(look, people, detector)
        candidates.append(people)
        # The best of each view by what `follow_subject` goes by: size times confidence.
        for n in np.argsort(people.crops[:, 2] * people.confidence.mean(1)):
            previous[people.view[n]] = people.crops[n]
    if boxes is None:
        subject = follow(candidates, videos, frames)
    else:  # the one candidate of each box
        seen = [np.isin(np.arange(len(cameras)), people.view) for people in candidates]
        subject = np.where(seen, 0, -1)
    detections = gather(candidates, subject, cameras, frames, detector.skeleton)
    return detections._replace(seconds=(time.perf_counter() - start) / len(frames))


# --- crops -----------------------------------------------------------------------------------


def backgrounds(videos: Sequence[Video], frames: Sequence[int]) -> list[Motion]:
    """What each camera sees when nothing moves."""
    chosen = [frames[row] for row in spread(len(frames), BACKGROUND_FRAMES)]
    reading = read_in_step(videos, chosen)
    reading = tqdm(reading, "background", len(chosen), False, unit="frame")
    small_images = [[small(image) for image in images] for images in reading]
    return [Motion(images) for images in zip(*small_images)]


def _moving_squares(
    boxes: Sequence[np.ndarray], scale: float, camera: CameraEntry, previous: np.ndarray | None
) -> list[np.ndarray]:
    """Squares (3,) around what moves, and where the person was last unless that is among them."""
    squares = [crop_of_box(box, scale, camera) for box in boxes]
    if previous is not None and not any(
        np.linalg.norm(previous[:2] - square[:2]) < SAME_CROP * previous[2]
        and abs(np.log(previous[2] / square[2])) < SAME_CROP
        for square in squares
    ):
        squares.append(previous[:3])
    return squares


# --- candidates ------------------------------------------------------------------------------


def follow(
    candidates: Sequence[CropKeypoints], videos: Sequence[Video], frames: Sequence[int]
) -> np.ndarray:
    """The candidate (T, V) among those of each frame and view that is the subject; -1 = none."""
    step = np.diff(frames).min() if len(frames) > 1 else 0
    free_move = FREE_MOVE + SPEED * step / (videos[0].fps or USUAL_FPS)
    points = [np.dstack([people.xy, people.confidence]) for people in candidates]
    chosen = []
    for v in range(len(videos)):
        of_view = [part[people.view == v] for part, people in zip(points, candidates)]
        chosen.append(follow_subject(of_view, free_move=free_move))
    return np.stack(chosen, 1)
