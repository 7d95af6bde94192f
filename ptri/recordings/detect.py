"""The 2D network on videos: crops of the person, keypoints in full-image pixels with covariance.

Per frame and view the crops come from a given box, or from what moves and from where the person was
in the frame before. Each is seen upright and turned, since cameras are held askew and the network
knows upright people best; the turn with the highest mean confidence over the last frames counts.
A crop fitted to the keypoints is then detected again and kept where the network is surer of it.
All views and crops of a frame go through the network together. In the end the largest person
that can be followed through the frames is the subject (`ptri.recordings.subject`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ptri.config import Config
from ptri.data import transforms
from ptri.errors import UserError
from ptri.evaluation.pictures import spread
from ptri.recordings.boxes import Motion, small
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.keypoint_files import Recording, distort, undistort
from ptri.recordings.subject import FREE_MOVE, follow_subject
from ptri.recordings.videos import Video, VideoSet, read_in_step
from ptri.skeleton import H36M17

ROLL_STEP = 20.0  # deg between the turns that are tried
ROLL_EVERY = 3  # frames between two looks at every turn
ROLL_MEMORY = 0.7  # of the mean confidence of each turn, from one look to the next
BACKGROUND_FRAMES = 41  # the median of so many is the background
# Side of a crop over the longer side of: a moving region, the confident keypoints. Measured on the
# sample recording and, for keypoints, on the demo's boxes (1.07 to 1.13).
MOTION_CROP, KEYPOINT_CROP = 1.1, 1.15
SURE = 0.25  # confidence of keypoints that a crop is fitted to
FEWEST = 6  # such keypoints that it takes
LARGEST_STEP = 1.33  # factor between the sides of one crop and the next
SPEED = 1.8  # sizes of the person a second that it may move unsuspected, beyond FREE_MOVE
USUAL_FPS = 30.0  # of a video that does not state its own
SAME_CROP = 0.25  # crops whose centres differ by less, in sides, are one person


class CropKeypoints(NamedTuple):
    """Keypoints of N crops of one frame, in undistorted full-image px unless stated otherwise."""

    view: np.ndarray  # (N,) that the crop is of
    xy: np.ndarray  # (N, J, 2)
    covariance: np.ndarray  # (N, J, 2, 2) px^2
    confidence: np.ndarray  # (N, J)
    local: np.ndarray  # (N, J, 2) px of the network image
    crops: np.ndarray  # (N, 4) centre x, y and side px, turn rad

    def rows(self, index) -> CropKeypoints:
        """Some of the crops."""
        return CropKeypoints(*(part[index] for part in self))


Look = Callable[[np.ndarray, np.ndarray], CropKeypoints]  # `look_at` a frame: views, crops


class Detections(NamedTuple):
    """Keypoints of one person in T frames of V views; NaN xy = nobody, or not in the picture."""

    frames: np.ndarray  # (T,) int64
    xy: np.ndarray  # (T, V, J, 2) px, undistorted to the same K
    covariance: np.ndarray  # (T, V, J, 2, 2) px^2
    confidence: np.ndarray  # (T, V, J)
    crops: np.ndarray  # (T, V, 4) centre x, y and side px, turn rad; NaN = nobody
    seconds: float = 0.0  # per frame of all views, reading the video included
    made_from: dict[str, str] | None = None  # see `ptri.recordings.cache`


def detect(model: nn.Module, video_set: VideoSet, config: Config) -> Detections:
    """Detects the subject in every frame and view.

    Args:
        model: with ``detect`` of `ptri.models.pose_model.PoseModel`.
    """
    start = time.perf_counter()
    cameras, videos, frames, boxes = video_set
    size = config.data.image_size
    turns = Turns(len(cameras), config.recording.max_roll_deg)
    motion = backgrounds(videos, frames) if boxes is None else None
    previous: list[np.ndarray | None] = [None] * len(cameras)  # crops of the best candidates
    candidates = []  # of each frame, the people who may be the subject, one crop each
    reading = tqdm(read_in_step(videos, frames), "detect", len(frames), False, unit="frame")
    for row, images in enumerate(reading):
        look = functools.partial(look_at, model, cameras, size, images)
        if boxes is None:
            squares = [
                _moving_squares(motion[v].boxes(image), cameras[v], previous[v])
                for v, image in enumerate(images)
            ]
        else:
            squares = [
                [crop_of_box(box, config.data.crop_scale, camera)] if np.isfinite(box).all() else []
                for box, camera in zip(boxes[row], cameras)
            ]
        views = np.repeat(np.arange(len(cameras)), [len(part) for part in squares])
        crops = np.array([square for part in squares for square in part]).reshape(-1, 3)
        people = turns.best(look, views, crops, row)
        if boxes is None:
            people = refine(look, people, size)
        candidates.append(people)
        # The best of each view by what `follow_subject` goes by: size times confidence.
        for n in np.argsort(people.crops[:, 2] * people.confidence.mean(1)):
            previous[people.view[n]] = people.crops[n]
    if boxes is None:
        subject = follow(candidates, videos, frames)
    else:  # the one candidate of each box
        seen = [np.isin(np.arange(len(cameras)), people.view) for people in candidates]
        subject = np.where(seen, 0, -1)
    detections = _gather(candidates, subject, cameras, frames)
    return detections._replace(seconds=(time.perf_counter() - start) / len(frames))


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
        tuple(cameras), detections.frames, xy, confidence, H36M17, detections.covariance
    )


# --- crops -----------------------------------------------------------------------------------


def look_at(
    model: nn.Module,
    cameras: Sequence[CameraEntry],
    size: int,
    images: Sequence[np.ndarray],
    views: np.ndarray,
    crops: np.ndarray,
) -> CropKeypoints:
    """Cuts crops out of the images of V views and detects keypoints in them.

    Args:
        model: with ``detect`` of `ptri.models.pose_model.PoseModel`. size: px of its images.
        images: V of (H, W, 3) uint8 BGR, as recorded.
        views: (N,) of the crops, places in images. crops: (N, 4).
    """
    if not len(views):
        J = len(H36M17.joints)
        shapes = ((J, 2), (J, 2, 2), (J,), (J, 2), (4,))
        return CropKeypoints(views, *(np.zeros((0, *shape)) for shape in shapes))
    shrink = functools.cache(lambda view, factor: _shrink(images[view], factor))
    inputs, to_full = [], []
    for view, (x, y, side, roll) in zip(views, crops):
        camera = cameras[view]
        K, turn = transforms.crop_camera(camera.K, np.array([x, y]), side, size, roll)
        # Sampling alone would skip pixels of a large crop: average them first.
        factor = transforms.reduction_for(side, size)
        source = transforms.resize_intrinsics(camera.K, 1 / factor)
        dist = camera.dist if camera.dist.any() else None
        image = transforms.warp(shrink(view, factor), source, K, turn, size, dist)
        inputs.append(transforms.normalise(image[:, :, ::-1]))
        to_full.append((camera.K @ turn.T @ np.linalg.inv(K))[:2])
    with torch.no_grad():
        batch = torch.stack(inputs).to(next(model.parameters()).device)
        keypoints = model.detect(batch).keypoints
    local, covariance, confidence = (part.double().cpu().numpy() for part in keypoints)
    A, offset = np.split(np.array(to_full), [2], axis=2)  # (N, 2, 2), (N, 2, 1)
    xy = np.einsum("nab,njb->nja", A, local) + offset.transpose(0, 2, 1)
    covariance = np.einsum("nab,njbc,ndc->njad", A, covariance, A)
    return CropKeypoints(views, xy, covariance, confidence, local, crops)


class Turns:
    """Which turn of its crops suits each of V views: the one that the network is surest of."""

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


def backgrounds(videos: Sequence[Video], frames: Sequence[int]) -> list[Motion]:
    """What each camera sees when nothing moves."""
    chosen = [frames[row] for row in spread(len(frames), BACKGROUND_FRAMES)]
    reading = read_in_step(videos, chosen)
    reading = tqdm(reading, "background", len(chosen), False, unit="frame")
    small_images = [[small(image) for image in images] for images in reading]
    return [Motion(images) for images in zip(*small_images)]


def _moving_squares(
    boxes: Sequence[np.ndarray], camera: CameraEntry, previous: np.ndarray | None
) -> list[np.ndarray]:
    """Squares (3,) around what moves, and where the person was last unless that is among them."""
    squares = [crop_of_box(box, MOTION_CROP, camera) for box in boxes]
    if previous is not None and not any(
        np.linalg.norm(previous[:2] - square[:2]) < SAME_CROP * previous[2]
        and abs(np.log(previous[2] / square[2])) < SAME_CROP
        for square in squares
    ):
        squares.append(previous[:3])
    return squares


def refine(look: Look, first: CropKeypoints, size: int) -> CropKeypoints:
    """Detects again in crops fitted to confident keypoints; keeps what the network is surer of."""
    sure = first.confidence >= SURE  # (N, J)
    low = np.where(sure[..., None], first.local, np.inf).min(1)
    high = np.where(sure[..., None], first.local, -np.inf).max(1)
    enough = sure.sum(1) >= FEWEST
    low[~enough], high[~enough] = 0, size - 1  # the crop as it is
    x, y, side, roll = first.crops.T
    scale = side / size  # full-image px per network px
    across, down = scale * ((low + high) / 2 - (size - 1) / 2).T
    cos, sin = np.cos(roll), np.sin(roll)  # the crop shows the picture turned by +roll
    fitted = KEYPOINT_CROP * scale * (high - low).max(1)
    fitted = np.clip(fitted, side / LARGEST_STEP, side * LARGEST_STEP)
    fitted = np.where(enough, fitted, side)
    place = x + cos * across + sin * down, y - sin * across + cos * down
    second = look(first.view, np.column_stack([*place, fitted, roll]))
    better = second.confidence.mean(1) > first.confidence.mean(1)
    both = CropKeypoints(*map(np.concatenate, zip(first, second)))
    return both.rows(np.arange(len(better)) + len(better) * better)


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of factor x factor pixels."""
    if factor == 1:
        return image
    height, width = (side // factor for side in image.shape[:2])
    blocks = image[: height * factor, : width * factor]
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_AREA)


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


def _gather(
    candidates: Sequence[CropKeypoints],
    subject: np.ndarray,
    cameras: Sequence[CameraEntry],
    frames: Sequence[int],
) -> Detections:
    """The chosen candidates (T, V) as arrays; what lies outside the picture is not seen."""
    T, V = subject.shape
    J = len(H36M17.joints)
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
    return Detections(np.array(frames, np.int64), xy, covariance, confidence, crops)
