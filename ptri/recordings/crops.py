"""Which crops to look at: squares around boxes, turned upright, fitted to keypoints.

Each is seen upright and turned, since cameras are held askew and detectors know upright people
best; the turn with the highest mean confidence over the last frames counts. A crop fitted to the
keypoints is then detected again and kept where the detector is surer of it.
"""

from __future__ import annotations

import numpy as np

from ptri.data import transforms
from ptri.detectors.protocol import PoseDetector
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.keypoint_files import undistort
from ptri.recordings.look import CropKeypoints, Look

ROLL_STEP = 20.0  # deg between the turns that are tried
ROLL_EVERY = 3  # frames between two looks at every turn
ROLL_MEMORY = 0.7  # of the mean confidence of each turn, from one look to the next
# Longer side of a person's box over that of the confident keypoints: with the top of the head among
# them (of the demo's boxes 1.07 to 1.13), and without (COCO's joints; 1.19, photographs 1.21).
KEYPOINT_CROP, KEYPOINT_CROP_NO_CROWN = 1.15, 1.2
SURE = 0.25  # confidence of keypoints that a crop is fitted to
FEWEST = 6  # such keypoints that it takes
LARGEST_STEP = 1.33  # factor between the sides of one crop and the next


class Turns:
    """Which turn of its crops suits each of V views: the one that the detector is surest of."""

    def __init__(self, num_views: int, max_roll_deg: float) -> None:
        count = int(max_roll_deg / ROLL_STEP)
        self.rolls = np.deg2rad(ROLL_STEP * np.arange(-count, count + 1))  # rad, 0 among them
        self.trust = np.zeros((num_views, len(self.rolls)))  # running mean confidence

    def best(self, look: Look, views: np.ndarray, squares: np.ndarray, row: int) -> CropKeypoints:
        """The keypoints of N squares (N, 3) at their views' best turns; row: of the frame."""
        N, count = len(squares), len(self.rolls)
        if row % ROLL_EVERY and self.trust[views].any(1).all():
            roll = self.rolls[self.trust[views].argmax(1)]
            return look(views, np.column_stack([squares, roll]))
        crops = np.column_stack([np.repeat(squares, count, 0), np.tile(self.rolls, N)])
        keypoints = look(np.repeat(views, count), crops)
        confidence = keypoints.confidence.mean(1).reshape(N, count)
        for v in set(views):
            self.trust[v] = ROLL_MEMORY * self.trust[v] + confidence[views == v].max(0)
        return keypoints.rows(np.arange(N) * count + self.trust[views].argmax(1))


def crop_of_box(box: np.ndarray, scale: float, camera: CameraEntry) -> np.ndarray:
    """Centre x, y and side (3,) undistorted px of the square around a box of the picture."""
    left, top, right, bottom = box
    centre, side = transforms.square_crop(np.array([top, left, bottom, right]), scale)
    return np.append(undistort(centre[None], camera.K, camera.dist)[0], side)


def refine(look: Look, first: CropKeypoints, detector: PoseDetector) -> CropKeypoints:
    """Detects again in crops fitted to confident keypoints; keeps what the detector is surer of."""
    size, crown = detector.image_size, {"head", "head_top"} & set(detector.skeleton.joints)
    margin = detector.crop_scale * (KEYPOINT_CROP if crown else KEYPOINT_CROP_NO_CROWN)
    sure = first.confidence >= SURE  # (N, J)
    low = np.where(sure[..., None], first.local, np.inf).min(1)
    high = np.where(sure[..., None], first.local, -np.inf).max(1)
    enough = sure.sum(1) >= FEWEST
    low[~enough], high[~enough] = 0, size - 1  # the crop as it is
    x, y, side, roll = first.crops.T
    scale = side / size  # full-image px per network px
    across, down = scale * ((low + high) / 2 - (size - 1) / 2).T
    cos, sin = np.cos(roll), np.sin(roll)  # the crop shows the picture turned by +roll
    fitted = margin * scale * (high - low).max(1)
    fitted = np.clip(fitted, side / LARGEST_STEP, side * LARGEST_STEP)
    fitted = np.where(enough, fitted, side)
    place = x + cos * across + sin * down, y - sin * across + cos * down
    second = look(first.view, np.column_stack([*place, fitted, roll]))
    better = second.confidence.mean(1) > first.confidence.mean(1)
    both = CropKeypoints(*map(np.concatenate, zip(first, second)))
    return both.rows(np.arange(len(better)) + len(better) * better)
