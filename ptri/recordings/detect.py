"""The one pass over a video set's frames: people, and the keypoints of each.

Of each view the largest people are looked at (`ptri.recordings.look`), in crops around the boxes
that the person detector or the user gives (`ptri.recordings.crops`). All crops of a frame go
through the network together. No image is kept. Who of all these people is the same one in all
frames and views is told afterwards (`ptri.recordings.subject`).
"""

from __future__ import annotations

import time

import numpy as np
from tqdm import tqdm

from ptri.detectors.people import People, PersonDetector
from ptri.detectors.protocol import PoseDetector
from ptri.recordings.candidates import Candidates, join
from ptri.recordings.crops import crop_of_box, upright_turn
from ptri.recordings.detections import Detections, inside_pictures
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.look import look_at
from ptri.recordings.videos import VideoSet, read_in_step

MOST_PEOPLE = 3  # of a view and frame that are looked at, the largest
# The overlap (intersection over union) of a person found and the user's box that is the same one.
SAME_BOX = 0.3


def detect(detector: PoseDetector, finder: PersonDetector, video_set: VideoSet) -> Detections:
    """Detects the people in every frame and view.

    Raises:
        UserError: a video ends early.
    """
    start = time.perf_counter()
    cameras, videos, frames, fps, boxes = video_set
    parts = []
    reading = tqdm(read_in_step(videos, frames), "detect", len(frames), False, unit="frame")
    for row, images in enumerate(reading):
        crops, view, given = [], [], []
        for v, image in enumerate(images):
            if image is not None:
                squares, by_user = _squares(finder(image), boxes[row, v], detector, cameras[v])
                crops += squares
                given += by_user
                view += [v] * len(squares)
        seen = look_at(detector, cameras, images, np.array(view, int), np.reshape(crops, (-1, 4)))
        rest = seen.xy, seen.covariance, seen.confidence, seen.crops, seen.colours
        parts.append(Candidates(np.full(len(view), row), seen.view, *rest, np.array(given, bool)))
    people = inside_pictures(join(parts), cameras)
    seconds = (time.perf_counter() - start) / len(parts)
    frames = np.array(frames[: len(parts)], np.int64)
    return Detections(frames, fps, detector.skeleton, people, seconds)


def _squares(
    found: People, box: np.ndarray, detector: PoseDetector, camera: CameraEntry
) -> tuple[list[np.ndarray], list[bool]]:
    """Crops (4,) of the user's box, where there is one, and of the largest people beside it.

    Args:
        box: (4,) px, NaN = none.

    Returns:
        The crops, and which of them are the user's.
    """
    size = (found.boxes[:, 2:] - found.boxes[:, :2]).max(1)
    people = [(found.boxes[n], upright_turn(found.keypoints[n])) for n in np.argsort(-size)]
    by_user = bool(np.isfinite(box).all())
    if by_user:
        same = [overlap(other, box) for other, _ in people]
        turn = people[int(np.argmax(same))][1] if max(same, default=0) > SAME_BOX else 0.0
        people = [person for person, share in zip(people, same) if share <= SAME_BOX]
        people.insert(0, (box, turn))
    people = people[:MOST_PEOPLE]
    crops = [crop_of_box(box, detector.crop_scale, camera, turn) for box, turn in people]
    return crops, [by_user, *[False] * len(people)][: len(people)]


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes (4,)."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    both = np.prod(np.maximum(sides, 0))
    return float(both / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - both))
