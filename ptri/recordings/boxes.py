"""Where the person is in videos of static cameras: box files, keypoint files, or what moves.

Boxes are (4,) px of the picture as recorded: left, top, right, bottom; right and bottom exclusive.

A box file ``<camera>.csv`` has a header and one row per frame::

    frame,left,top,right,bottom
    0,321,200,654,1010
    10,330,,,

Frames between two rows are interpolated. A row without numbers says that the person is not in
view, until the next row with some. Beyond the first and the last row there is no box.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ptri.config import Config
from ptri.errors import UserError
from ptri.recordings.intrinsics import named_path
from ptri.recordings.keypoint_files import Recording, distort, read_recording
from ptri.recordings.subject import FEWEST_POINTS

COLUMNS = ("frame", "left", "top", "right", "bottom")
# What moves is looked for in pictures of this longer side, px.
SMALL_SIDE = 320
# A pixel moves where a colour differs from the background by so many of 255 levels: the noise of
# the sample videos reaches 11 (90th percentile), soft shadows 20 to 60.
THRESHOLD = 25
# A person whose pose partly equals the background's falls to pieces. Pieces closer than CLOSE (of
# the picture's longer side) are one; others join where their gap is below JOIN of the box so far
# and they weigh SHARE of the first one.
CLOSE, JOIN, SHARE = 13 / 320, 0.12, 0.08
# Another moving thing of this share of the first one's weight is proposed too.
RIVAL = 0.3
LEAST_SIDE = 0.04  # of the picture's longer side; smaller things are no person to measure


def box_source(config: Config) -> str | Path:
    """Where boxes come from: "motion", "keypoints" (files), or a folder of box files."""
    setting, root = config.recording.boxes, Path(config.data.root)
    if setting == "auto":
        return root / "boxes" if (root / "boxes").is_dir() else "motion"
    return setting if setting in ("motion", "keypoints") else named_path(setting, root)


def read_boxes(config: Config, names: Sequence[str], frames: Sequence[int]) -> np.ndarray | None:
    """Boxes (T, V, 4) px as ``recording.boxes`` says, NaN = not in view; None: look for motion.

    Args:
        names: of the V cameras. frames: T numbers.

    Raises:
        UserError: missing or malformed files, or no box in any frame.
    """
    source = box_source(config)
    if source == "motion":
        return None
    if source == "keypoints":
        boxes = keypoint_boxes(read_recording(config.data.root, config.recording), frames)
        what = f"{config.data.root}: keypoint files have no frame number of the videos'"
    else:
        boxes = read_box_files(source, names, frames)
        what = f"{source}: no box in any frame"
    if not np.isfinite(boxes).any():
        raise UserError(f"{what} from {frames[0]} to {frames[-1]}; number frames from 0")
    return boxes


def read_box_files(folder: Path, names: Sequence[str], frames: Sequence[int]) -> np.ndarray:
    """Boxes (T, V, 4) px of the cameras' files, NaN = not in view.

    Raises:
        UserError: a missing or malformed file; the message names the line.
    """
    if not folder.is_dir():
        raise UserError(
            f"recording.boxes: {folder} is no folder; expected 'auto', 'motion', 'keypoints' or a "
            "folder of one <camera>.csv per camera"
        )
    result = np.full((len(frames), len(names), 4), np.nan)
    for v, name in enumerate(names):
        path = folder / f"{name}.csv"
        if not path.is_file():
            raise UserError(
                f"{folder}: no {path.name}; boxes need one file per camera "
                f"({', '.join(f'{name}.csv' for name in names)})"
            )
        given, *sides = np.array(_read_box_file(path)).T
        for side, values in enumerate(sides):
            # A frame between two rows, of which one has no box, has none.
            result[:, v, side] = np.interp(frames, given, values, np.nan, np.nan)
    return result


def _read_box_file(path: Path) -> list[list[float]]:
    """Rows of frame number and box, NaN = not in view."""
    rows: list[list[float]] = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [word.strip().lower() for word in next(reader, [])]
        if tuple(header[:5]) != COLUMNS:
            raise UserError(f"{path}: the first line must be {','.join(COLUMNS)}")
        for line in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            try:
                frame = int(line[0])
                box = [float(word) if word.strip() else math.nan for word in line[1:5]]
            except ValueError:
                raise UserError(f"{where}: {','.join(line)!r} is not {','.join(COLUMNS)}") from None
            num_sides = sum(math.isfinite(side) for side in box)
            if len(box) != 4 or num_sides not in (0, 4):
                raise UserError(f"{where}: expected four numbers, or none where nobody is in view")
            if num_sides and not (box[0] < box[2] and box[1] < box[3]):
                raise UserError(f"{where}: left < right and top < bottom must hold, found {box}")
            if rows and frame <= rows[-1][0]:
                raise UserError(f"{where}: frame {frame} again or out of order; expected rising")
            rows.append([frame, *box])
    if not rows:
        raise UserError(f"{path}: no boxes")
    return rows


def keypoint_boxes(recording: Recording, frames: Sequence[int]) -> np.ndarray:
    """Boxes (T, V, 4) px around the keypoints of a recording, NaN where there are few."""
    boxes = np.full((len(recording.frames), len(recording.cameras), 4), np.nan)
    for v, camera in enumerate(recording.cameras):
        xy = distort(recording.xy[:, v], camera.K, camera.dist)  # (frames, J, 2)
        enough = np.isfinite(xy).all(-1).sum(-1) >= FEWEST_POINTS
        corners = np.nanmin(xy[enough], 1), np.nanmax(xy[enough], 1) + 1
        boxes[enough, v] = np.concatenate(corners, -1)
    by_frame = dict(zip(recording.frames.tolist(), boxes))
    return np.stack([by_frame.get(frame, np.full_like(boxes[0], np.nan)) for frame in frames])


class Motion:
    """What moves before one static camera's median background.

    Args:
        images: `small` ones (h, w, 3) uint8, a few dozen spread over the whole video.
    """

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.background = np.median(np.stack(images), 0).astype(np.uint8)

    def boxes(self, image: np.ndarray) -> list[np.ndarray]:
        """Boxes (4,) px of at most two moving things in an image (H, W, 3), the largest first."""
        difference = small(image).astype(np.int16) - self.background
        # Automatic exposure changes every pixel: the usual change is none.
        difference -= np.median(difference, (0, 1)).astype(np.int16)
        difference = np.abs(difference).max(-1)
        scale = image.shape[0] / difference.shape[0]
        side = max(difference.shape)
        moving = cv2.morphologyEx(
            (difference > THRESHOLD).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)
        )
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(CLOSE * side),) * 2)
        closed = cv2.morphologyEx(moving, cv2.MORPH_CLOSE, kernel)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(closed)
        # Capped, so that a bright corner does not outweigh a whole person.
        weight = np.bincount(labels.ravel(), (np.minimum(difference, 100) * moving).ravel(), count)
        weight[0] = 0  # the background
        corners = stats[:, :4].astype(float)  # left, top, width, height
        corners[:, 2:] += corners[:, :2]
        boxes, heaviest = [], weight.max()
        while len(boxes) < 2 and weight.max() > max(0, RIVAL * heaviest if boxes else 0):
            members = _join(corners, weight)
            ys, xs = np.nonzero(np.isin(labels, members) & (moving > 0))
            weight[members] = 0
            left, right = np.quantile(xs, [0.005, 0.995])
            top, bottom = np.quantile(ys, [0.005, 0.995])
            if max(right - left, bottom - top) + 1 >= LEAST_SIDE * side:
                boxes.append(scale * np.array([left, top, right + 1, bottom + 1]))
        return boxes


def small(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) shrunk to `SMALL_SIDE`."""
    scale = min(1.0, SMALL_SIDE / max(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _join(corners: np.ndarray, weight: np.ndarray) -> list[int]:
    """The heaviest of regions (N, 4), left, top, right, bottom, and those that join it: indices."""
    members = [int(weight.argmax())]
    low, high = corners[members[0], :2], corners[members[0], 2:]
    while True:
        gap = np.maximum(corners[:, :2] - high, low - corners[:, 2:]).max(1)
        near = (gap <= JOIN * max(high - low)) & (weight >= SHARE * weight[members[0]])
        near[members] = False
        if not near.any():
            return members
        members.append(int(near.argmax()))
        low = np.minimum(low, corners[members[-1], :2])
        high = np.maximum(high, corners[members[-1], 2:])
