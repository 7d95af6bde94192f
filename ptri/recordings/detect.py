"""The 2D network on videos: crops of the person, keypoints in full-image pixels with covariance.

Per frame and view the crops come from a given box, or from what moves and from where the person was
in the frame before. Each is seen upright and turned, since cameras are held askew and the network
knows upright people best; the turn with the highest mean confidence over the last frames counts.
A crop fitted to the keypoints is then detected again and kept where the network is surer of it.
All views and crops of a frame go through the network together. In the end the largest person
that can be followed through the frames is the subject (see `subject_of`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ptri.data import transforms
from ptri.recordings.boxes import Motion, small
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.keypoint_files import distort, subject_of, undistort
from ptri.recordings.video_files import Video, read_in_step
from ptri.skeleton import H36M17

log = logging.getLogger(__name__)

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
FREE_MOVE, SPEED = 0.15, 1.8  # body heights, and a second, that a person may move unsuspected
USUAL_FPS = 30.0  # of a video that does not state its own
SAME_CROP = 0.25  # crops whose centres differ by less, in sides, are one person


class Found(NamedTuple):
    """Keypoints of N crops, in undistorted full-image px unless stated otherwise."""

    xy: np.ndarray  # (N, J, 2)
    covariance: np.ndarray  # (N, J, 2, 2) px^2
    confidence: np.ndarray  # (N, J)
    local: np.ndarray  # (N, J, 2) px of the network image
    crops: np.ndarray  # (N, 4) centre x, y and side px, turn rad


class Detections(NamedTuple):
    """Keypoints of one person in T frames of V views; NaN xy = nobody, or not in the picture."""

    frames: np.ndarray  # (T,) int64
    xy: np.ndarray  # (T, V, J, 2) px, undistorted to the same K
    covariance: np.ndarray  # (T, V, J, 2, 2) px^2
    confidence: np.ndarray  # (T, V, J)
    crops: np.ndarray  # (T, V, 4) centre x, y and side px, turn rad; NaN = nobody found
    seconds: float  # per frame of all views, reading the video included


class Cropper:
    """Cuts crops out of the images of V views and detects keypoints in them."""

    def __init__(self, model: nn.Module, cameras: Sequence[CameraEntry], size: int) -> None:
        """
        Args:
            model: with ``detect`` of `ptri.models.pose_model.PoseModel`. size: px of its images.
        """
        self.model, self.cameras, self.size = model, cameras, size
        self.device = next(model.parameters()).device

    def __call__(
        self, images: Sequence[np.ndarray], views: Sequence[int], crops: np.ndarray
    ) -> Found:
        """
        Args:
            images: V of (H, W, 3) uint8 BGR, as recorded.
            views: N places in images. crops: (N, 4).
        """
        shrunk: dict[tuple[int, int], np.ndarray] = {}
        inputs, back = [], []
        for view, (x, y, side, roll) in zip(views, crops):
            camera = self.cameras[view]
            K, turn = transforms.crop_camera(camera.K, np.array([x, y]), side, self.size, roll)
            # Sampling alone would skip pixels of a large crop: average them first.
            factor = transforms.reduction_for(side, self.size)
            if (view, factor) not in shrunk:
                shrunk[view, factor] = _shrink(images[view], factor)
            source = transforms.resize_intrinsics(camera.K, 1 / factor)
            dist = camera.dist if camera.dist.any() else None
            image = transforms.warp(shrunk[view, factor], source, K, turn, self.size, dist)
            inputs.append(transforms.normalise(image[:, :, ::-1]))
            back.append((camera.K @ turn.T @ np.linalg.inv(K))[:2])
        with torch.no_grad():
            keypoints = self.model.detect(torch.stack(inputs).to(self.device)).keypoints
        local, covariance, confidence = (part.double().cpu().numpy() for part in keypoints)
        A = np.array(back)  # (N, 2, 3) network image to full image
        xy = np.einsum("nab,njb->nja", A[:, :, :2], local) + A[:, None, :, 2]
        covariance = np.einsum("nab,njbc,ndc->njad", A[:, :, :2], covariance, A[:, :, :2])
        return Found(xy, covariance, confidence, local, np.asarray(crops, np.float64))


def detect_videos(
    model: nn.Module,
    videos: Sequence[Video],
    cameras: Sequence[CameraEntry],
    numbers: Sequence[int],
    size: int,
    boxes: np.ndarray | None = None,
    box_scale: float = 1.0,
    max_roll_deg: float = 40.0,
) -> Detections:
    """Detects the subject in every frame and view.

    Args:
        numbers: frames, rising.
        size: px of the network's images.
        boxes: (T, V, 4) px of the videos' pictures, NaN = not in view; None: found by motion.
        box_scale: side of the crop over the longer side of a given box.
    """
    start = time.perf_counter()
    cropper = Cropper(model, cameras, size)
    V = len(cameras)
    motion = backgrounds(videos, numbers) if boxes is None else None
    rolls = roll_steps(max_roll_deg)
    trust = np.zeros((V, len(rolls)))  # running mean confidence of each turn
    before: list[np.ndarray | None] = [None] * V  # crops to look at again
    found: list[list[list[Found]]] = []  # [frame][view] the candidates, N = 1 each
    reading = read_in_step(videos, numbers)
    for row, (_, images) in enumerate(tqdm(reading, "detect", len(numbers), False, unit="frame")):
        places, squares = [], []  # of the candidates: view, centre and side
        for v, image in enumerate(images):
            if boxes is None:
                proposals = [
                    crop_of_box(b, MOTION_CROP, cameras[v]) for b in motion[v].boxes(image)
                ]
                if before[v] is not None and not _near(before[v], proposals):
                    proposals.append(before[v][:3])
            else:
                proposals = [
                    crop_of_box(b, box_scale, cameras[v]) for b in boxes[row, v : v + 1]
                    if np.isfinite(b).all()
                ]  # fmt: skip
            places += [v] * len(proposals)
            squares += proposals
        found.append([[] for _ in range(V)])
        if not squares:
            continue
        best = _turned(cropper, images, places, np.array(squares), rolls, trust, row)
        if boxes is None:
            best = refine(cropper, images, places, best)
        for n, v in enumerate(places):
            found[-1][v].append(Found(*(part[n : n + 1] for part in best)))
        for v in range(V):
            before[v] = max(found[-1][v], key=_worth).crops[0] if found[-1][v] else before[v]
    chosen = _followed(found, videos, numbers) if boxes is None else _only(found)
    detections = _gather(found, chosen, cameras, numbers)
    return detections._replace(seconds=(time.perf_counter() - start) / len(numbers))


def backgrounds(videos: Sequence[Video], numbers: Sequence[int]) -> list[Motion]:
    """What each camera sees when nothing moves."""
    chosen = np.unique(np.linspace(0, len(numbers) - 1, BACKGROUND_FRAMES).round().astype(int))
    images: list[list[np.ndarray]] = [[] for _ in videos]
    reading = read_in_step(videos, [numbers[i] for i in chosen])
    for _, now in tqdm(reading, "background", len(chosen), False, unit="frame"):
        for seen, image in zip(images, now):
            seen.append(small(image))
    return [Motion(seen) for seen in images]


def roll_steps(max_roll_deg: float) -> np.ndarray:
    """Turns to try, rad: multiples of `ROLL_STEP` up to a largest one; 0 is among them."""
    count = int(max_roll_deg / ROLL_STEP)
    return np.deg2rad(ROLL_STEP * np.arange(-count, count + 1))


def crop_of_box(box: np.ndarray, scale: float, camera: CameraEntry) -> np.ndarray:
    """Centre x, y and side (3,) undistorted px of the square around a box of the picture."""
    left, top, right, bottom = box
    centre, side = transforms.square_crop(np.array([top, left, bottom, right]), scale)
    return np.append(undistort(centre[None], camera.K, camera.dist)[0], side)


def refine(
    cropper: Cropper, images: Sequence[np.ndarray], places: Sequence[int], found: Found
) -> Found:
    """Detects again in crops fitted to the keypoints; keeps what the network is surer of."""
    crops = np.array([fitted_crop(found, n, cropper.size) for n in range(len(places))])
    again = cropper(images, places, crops)
    better = again.confidence.mean(1) > found.confidence.mean(1)
    return Found(*(np.where(_over(better, a), b, a) for a, b in zip(found, again)))


def fitted_crop(found: Found, n: int, size: int) -> np.ndarray:
    """The crop (4,) around the confident keypoints of crop n, turned as it is; or crop n itself."""
    sure = found.confidence[n] >= SURE
    x, y, side, roll = found.crops[n]
    if sure.sum() < FEWEST:
        return found.crops[n]
    low, high = found.local[n][sure].min(0), found.local[n][sure].max(0)
    scale = side / size  # full-image px per network px
    away = scale * ((low + high) / 2 - (size - 1) / 2)
    cos, sin = np.cos(roll), np.sin(roll)  # the crop shows the picture turned by +roll
    length = KEYPOINT_CROP * scale * (high - low).max()
    return np.array(
        [
            x + cos * away[0] + sin * away[1],
            y - sin * away[0] + cos * away[1],
            np.clip(length, side / LARGEST_STEP, side * LARGEST_STEP),
            roll,
        ]
    )


def _turned(cropper, images, places, squares, rolls, trust, row) -> Found:
    """The keypoints of each candidate at its view's best turn; updates ``trust`` (V, rolls)."""
    places = np.asarray(places)
    if row % ROLL_EVERY and all(trust[v].any() for v in set(places)):
        turn = rolls[trust[places].argmax(1)]
        return cropper(images, places, np.column_stack([squares, turn]))
    N, count = len(places), len(rolls)
    crops = np.column_stack([np.repeat(squares, count, 0), np.tile(rolls, N)])
    found = cropper(images, np.repeat(places, count), crops)
    mean = found.confidence.mean(1).reshape(N, count)
    for v in set(places):
        trust[v] = ROLL_MEMORY * trust[v] + mean[places == v].max(0)
    chosen = np.arange(N) * count + trust[places].argmax(1)
    return Found(*(part[chosen] for part in found))


def _followed(
    found: list[list[list[Found]]], videos: Sequence[Video], numbers: Sequence[int]
) -> np.ndarray:
    """The candidate (T, V) that is the subject; -1 = none."""
    step = np.diff(numbers).min() if len(numbers) > 1 else 0
    seconds = step / (videos[0].fps or USUAL_FPS)
    chosen = []
    for v in range(len(videos)):
        people = [
            np.concatenate([np.append(c.xy, c.confidence[..., None], -1) for c in frame[v]])
            if frame[v] else np.zeros((0, len(H36M17.joints), 3))
            for frame in found
        ]  # fmt: skip
        chosen.append(subject_of(people, free_move=FREE_MOVE + SPEED * seconds))
    return np.stack(chosen, 1)


def _only(found: list[list[list[Found]]]) -> np.ndarray:
    """The one candidate (T, V) of each given box; -1 = no box."""
    return np.array([[len(candidates) - 1 for candidates in frame] for frame in found])


def _gather(
    found: list[list[list[Found]]],
    chosen: np.ndarray,
    cameras: Sequence[CameraEntry],
    numbers: Sequence[int],
) -> Detections:
    """The chosen candidates (T, V) as arrays; what lies outside the picture is not seen."""
    T, V = chosen.shape
    J = len(H36M17.joints)
    xy, covariance = np.full((T, V, J, 2), np.nan), np.full((T, V, J, 2, 2), np.nan)
    confidence, crops = np.zeros((T, V, J)), np.full((T, V, 4), np.nan)
    for row, v in np.argwhere(chosen >= 0):
        one = found[row][v][chosen[row, v]]
        xy[row, v], covariance[row, v] = one.xy[0], one.covariance[0]
        confidence[row, v], crops[row, v] = one.confidence[0], one.crops[0]
    for v, camera in enumerate(cameras):
        unseen = ~_in_picture(xy[:, v], camera)
        xy[:, v][unseen], covariance[:, v][unseen], confidence[:, v][unseen] = np.nan, np.nan, 0
    return Detections(np.array(numbers, np.int64), xy, covariance, confidence, crops, 0.0)


def _in_picture(xy: np.ndarray, camera: CameraEntry) -> np.ndarray:
    """Whether points (..., 2), undistorted px, lie in the picture as recorded."""
    points = distort(xy, camera.K, camera.dist)
    return ((points >= -0.5) & (points <= np.array(camera.size) - 0.5)).all(-1)


def _near(crop: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    """Whether one of other crops is about the same square."""
    return any(
        np.linalg.norm(crop[:2] - other[:2]) < SAME_CROP * crop[2]
        and abs(np.log(crop[2] / other[2])) < SAME_CROP
        for other in others
    )


def _worth(found: Found) -> float:
    """Of a candidate: what `subject_of` follows, size times confidence."""
    return float(found.crops[0, 2] * found.confidence.mean())


def _over(flags: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Flags (N,) that broadcast over an array (N, ...)."""
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Means of blocks of factor x factor pixels."""
    if factor == 1:
        return image
    height, width = (side // factor for side in image.shape[:2])
    whole = image[: height * factor, : width * factor]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
