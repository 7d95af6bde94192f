"""Where the person is in videos of static cameras: box files, keypoint files, or what moves.

Boxes are (4,) px of the video's own picture: left, top, right, bottom; right and bottom exclusive.

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

from ptri.errors import UserError
from ptri.recordings.keypoint_files import Recording, distort

COLUMNS = ("frame", "left", "top", "right", "bottom")
# What moves is looked for in pictures of this longer side, px.
SMALL_SIDE = 320
# A pixel moves where a colour differs from the background by so many of 255 levels: the noise of
# the sample videos reaches 11 (90th percentile), soft shadows 20 to 60.
THRESHOLD = 25
# A person whose pose partly equals the background's falls to pieces. Pieces closer than CLOSE are
# one; others join where their gap is below JOIN of the box so far and they weigh SHARE of the
# first one.
CLOSE, JOIN, SHARE = 13 / 320, 0.12, 0.08
# Another moving thing of this share of the first one's weight is proposed too.
RIVAL = 0.3
LEAST_SIDE = 0.04  # of the picture's longer side; smaller things are no person to measure


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
    missing = [name for name in names if not (folder / f"{name}.csv").is_file()]
    if missing:
        raise UserError(
            f"{folder}: no {missing[0]}.csv; boxes need one file per camera "
            f"({', '.join(f'{name}.csv' for name in names)})"
        )
    return np.stack([_read_box_file(folder / f"{name}.csv", frames) for name in names], 1)


def _read_box_file(path: Path, frames: Sequence[int]) -> np.ndarray:
    rows: dict[int, list[float]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [word.strip().lower() for word in next(reader, [])]
        if tuple(header[:5]) != COLUMNS:
            raise UserError(f"{path}: the first line must be {','.join(COLUMNS)}")
        for line in reader:
            if not line:
                continue
            where = f"{path}, line {reader.line_num}"
            try:
                frame = int(line[0])
                box = [float(word) if word.strip() else math.nan for word in line[1:5]]
            except ValueError:
                raise UserError(f"{where}: {','.join(line)!r} is not {','.join(COLUMNS)}") from None
            there = [math.isfinite(value) for value in box]
            if len(box) != 4 or (any(there) and not all(there)):
                raise UserError(f"{where}: expected four numbers, or none where nobody is in view")
            if all(there) and not (box[0] < box[2] and box[1] < box[3]):
                raise UserError(f"{where}: left < right and top < bottom must hold, found {box}")
            if rows and frame <= max(rows):
                raise UserError(f"{where}: frame {frame} again or out of order; expected rising")
            rows[frame] = box
    if not rows:
        raise UserError(f"{path}: no boxes")
    known = np.array(list(rows))
    boxes = np.array(list(rows.values()))
    result = np.full((len(frames), 4), np.nan)
    for i, frame in enumerate(frames):
        after = int(np.searchsorted(known, frame))
        if after < len(known) and known[after] == frame:
            result[i] = boxes[after]
        elif 0 < after < len(known):  # NaN of either row stays NaN
            share = (frame - known[after - 1]) / (known[after] - known[after - 1])
            result[i] = (1 - share) * boxes[after - 1] + share * boxes[after]
    return result


def keypoint_boxes(recording: Recording, frames: Sequence[int]) -> np.ndarray:
    """Boxes (T, V, 4) px around the keypoints of a recording, NaN where there are fewer than 4."""
    result = np.full((len(frames), len(recording.names), 4), np.nan)
    row = {int(frame): i for i, frame in enumerate(recording.frames)}
    for i, frame in enumerate(frames):
        for v in range(len(recording.names)):
            if frame not in row:
                continue
            xy = distort(recording.xy[row[frame], v], recording.K[v], recording.dist[v])
            xy = xy[np.isfinite(xy).all(1)]
            if len(xy) >= 4:
                result[i, v] = [*xy.min(0), *(xy.max(0) + 1)]
    return result


class Motion:
    """What moves before one static camera's median background."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        """
        Args:
            images: `small` ones (h, w, 3) uint8, a few dozen spread over the whole video.
        """
        self.background = np.median(np.stack(images), 0).astype(np.uint8)

    def boxes(self, image: np.ndarray) -> list[np.ndarray]:
        """Boxes (4,) px of at most two moving things in an image (H, W, 3), the largest first."""
        difference = small(image).astype(np.int16) - self.background
        # Automatic exposure changes every pixel: the usual change is none.
        difference -= np.median(difference, (0, 1)).astype(np.int16)
        difference = np.abs(difference).max(-1)
        scale = image.shape[0] / difference.shape[0]
        moving = cv2.morphologyEx(
            (difference > THRESHOLD).astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)
        )
        size = max(moving.shape)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(CLOSE * size),) * 2)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            cv2.morphologyEx(moving, cv2.MORPH_CLOSE, kernel)
        )
        # Capped, so that a bright corner does not outweigh a whole person.
        weight = np.bincount(labels.ravel(), (np.minimum(difference, 100) * moving).ravel(), count)
        corners = stats[:, :4].astype(float)
        corners[:, 2:] += corners[:, :2]
        weight[0] = 0
        found, first = [], weight.max()
        while len(found) < 2 and weight.max() > max(0, RIVAL * first if found else 0):
            members = _join(corners, weight)
            ys, xs = np.nonzero(np.isin(labels, members) & (moving > 0))
            weight[members] = 0
            left, right = np.quantile(xs, [0.005, 0.995])
            top, bottom = np.quantile(ys, [0.005, 0.995])
            if max(right - left, bottom - top) + 1 >= LEAST_SIDE * size:
                found.append(scale * np.array([left, top, right + 1, bottom + 1]))
        return found


def small(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) shrunk to `SMALL_SIDE`."""
    scale = min(1.0, SMALL_SIDE / max(image.shape[:2]))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _join(corners: np.ndarray, weight: np.ndarray) -> list[int]:
    """The heaviest region and those that join it, as indices."""
    first = int(weight.argmax())
    members, box = [first], corners[first].copy()
    candidates = set(np.flatnonzero(weight >= SHARE * weight[first])) - {first}
    grown = True
    while grown:
        grown = False
        for other in sorted(candidates):
            part = corners[other]
            gap = np.maximum(part[:2] - box[2:], box[:2] - part[2:]).max()
            if gap <= JOIN * max(box[2:] - box[:2]):
                box = np.append(np.minimum(box[:2], part[:2]), np.maximum(box[2:], part[2:]))
                members.append(int(other))
                candidates.remove(other)
                grown = True
                break
    return members
