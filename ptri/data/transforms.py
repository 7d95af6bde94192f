"""Crops with exact intrinsics, and image reading.

Integer pixel coordinates are pixel centres: an image resized by s maps u to (u + 0.5) s - 0.5, and
a box of columns left..right-1 spans [left - 0.5, right - 0.5]. Images are uint8 (H, W, 3).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from ptri.errors import UserError

# ImageNet statistics, which timm's MobileOne weights were trained with; RGB in [0, 1].
IMAGE_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGE_STD = np.array([0.229, 0.224, 0.225], np.float32)
_NORMALISED = (np.arange(256, dtype=np.float32) / 255 - IMAGE_MEAN[:, None]) / IMAGE_STD[:, None]

# How a whole file begins, and what stands near its end: some writers append a few bytes.
_FORMATS = {b"\xff\xd8": ("JPEG", b"\xff\xd9"), b"\x89PNG\r\n\x1a\n": ("PNG", b"IEND")}
_HEAD_BYTES, _TAIL_BYTES = max(map(len, _FORMATS)), 256
_REDUCED = {1: cv2.IMREAD_COLOR} | {n: getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") for n in (2, 4, 8)}


def read_image(path: str | Path, reduction: int = 1) -> np.ndarray:
    """Reads a JPEG or PNG file as BGR uint8 (H, W, 3), also at 1/2, 1/4 or 1/8 of its size.

    Blocks of pixels are averaged (JPEG: by its decoder), so `resize_intrinsics` with 1/reduction
    is exact.

    Raises:
        UserError: missing, truncated or neither (OpenCV alone fills truncated images with grey).
    """
    return decode_image(_read(path), path, reduction)


def decode_image(data: bytes, path: str | Path, reduction: int = 1) -> np.ndarray:
    """`read_image` of bytes that are at hand; path: what errors name."""
    name = _check_ends(path, data[:_HEAD_BYTES], data[-_TAIL_BYTES:])
    by_decoder = reduction if name == "JPEG" else 1
    flags = _REDUCED[by_decoder] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{path}: damaged {name} image; extract it again")
    return reduce_image(image, reduction // by_decoder)


def reduce_image(image: np.ndarray, reduction: int) -> np.ndarray:
    """An image (H, W, 3) whose pixels are the means of whole blocks of ``reduction`` x itself."""
    if reduction == 1:
        return image
    height, width = (side // reduction for side in image.shape[:2])
    whole = image[: height * reduction, : width * reduction]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def check_image(path: str | Path) -> None:
    """Checks that a JPEG or PNG file starts and ends as it must, reading no more of it.

    Raises:
        UserError: missing, empty, neither or truncated.
    """
    _check_ends(path, _read(path, 0, _HEAD_BYTES), _read(path, -_TAIL_BYTES))


def _read(path: str | Path, start: int = 0, count: int = -1) -> bytes:
    """Bytes of a file from ``start`` on, from its end where that is negative."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(start if start >= 0 else max(0, size + start))
            return file.read(count)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _check_ends(path: str | Path, head: bytes, tail: bytes) -> str:
    """The name of an image's format."""
    for start, (name, end) in _FORMATS.items():
        if head.startswith(start):
            if end not in tail:
                raise UserError(f"{path}: truncated {name} image (no end); extract it again")
            return name
    what = "neither a JPEG nor a PNG image" if head else "empty image file"
    raise UserError(f"{path}: {what}")


# --- geometry --------------------------------------------------------------------------------


def square_crop(box: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, float]:
    """The square around a box: (centre (2,) px as x, y; side px).

    Args:
        box: (4,) px, top, left, bottom, right; bottom and right are exclusive.
        scale: side of the square over the longer side of the box.
    """
    top, left, bottom, right = (float(value) for value in box)
    centre = np.array([(left + right - 1) / 2, (top + bottom - 1) / 2])
    return centre, scale * max(bottom - top, right - left)


def square_boxes(xy: np.ndarray, margin: float) -> np.ndarray:
    """Square boxes (N, 4) int16 px around points (N, J, 2) px; 0 where none is known (not NaN).

    Args:
        margin: what is added to the side, as a share of the points' longer extent.
    """
    known = np.isfinite(xy)
    low = np.where(known, xy, np.inf).min(1)
    high = np.where(known, xy, -np.inf).max(1)
    seen = known.any((1, 2))
    low, high = np.where(seen[:, None], low, 0.0), np.where(seen[:, None], high, 0.0)
    half = (high - low).max(1) * (1 + margin) / 2
    corner = np.rint((low + high) / 2 - half[:, None])
    box = np.concatenate([corner, corner + np.rint(2 * half)[:, None]], 1)  # l t r b
    return np.clip(box[:, [1, 0, 3, 2]], -32000, 32000).astype(np.int16)


def crop_camera(
    K: np.ndarray, centre: np.ndarray, side: float, size: int, roll: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The pinhole camera that sees a square crop, resized, and turned about the optical axis.

    Turning the picture about the crop's centre turns the camera about its optical axis and moves
    the principal point, so that K keeps zero skew.

    Args:
        K: (3, 3) px of the whole image. centre: (2,) px. side: px. size: px of the network image.
        roll: radians, the picture turns clockwise (x towards y).

    Returns:
        K (3, 3) of the network image, and the rotation (3, 3) to put before R and t.
    """
    scale = size / side
    cos, sin = np.cos(roll), np.sin(roll)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    cropped = K.astype(np.float64).copy()
    cropped[:2, :2] *= scale
    ray = turn @ np.linalg.solve(K, np.append(centre, 1.0))  # the crop's centre, z stays 1
    cropped[:2, 2] = (size - 1) / 2 - cropped[:2, :2] @ ray[:2]
    return cropped, turn


def resize_intrinsics(K: np.ndarray, scale: float) -> np.ndarray:
    """K (3, 3) of an image resized by ``scale``."""
    resized = K.astype(np.float64).copy()
    resized[:2] *= scale
    resized[:2, 2] += 0.5 * scale - 0.5
    return resized


def reduction_for(side: float, size: int) -> int:
    """The strongest reduction (1, 2, 4 or 8) that leaves a crop of ``side`` px ``size`` px."""
    return max(n for n in _REDUCED if n == 1 or n * size <= side)


def warp(
    image: np.ndarray,
    K: np.ndarray,
    cropped_K: np.ndarray,
    turn: np.ndarray,
    size: int,
    dist: np.ndarray | None = None,
) -> np.ndarray:
    """Resamples an image as the camera of `crop_camera` sees it, in one step.

    Args:
        image: (H, W, 3) uint8. K: (3, 3) px of ``image``. cropped_K, turn: of `crop_camera`.
        dist: (5,) OpenCV distortion of ``image``, removed on the way; None: a pinhole image.

    Returns:
        (size, size, 3) uint8, black outside the image.
    """
    if dist is None:
        matrix = cropped_K @ turn @ np.linalg.inv(K)
        return cv2.warpAffine(image, matrix[:2], (size, size), flags=cv2.INTER_LINEAR)
    maps = cv2.initUndistortRectifyMap(K, dist, turn, cropped_K, (size, size), cv2.CV_32FC1)
    return cv2.remap(image, *maps, cv2.INTER_LINEAR)


def project(joints: np.ndarray, K: np.ndarray, R: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Joints (J, 3) mm to pixels and depth (J, 3): x px, y px, z mm."""
    camera = joints @ R.T + t
    depth = np.where(abs(camera[:, 2]) < 1.0, 1.0, camera[:, 2])  # 1 mm: guards the division
    xy = camera[:, :2] / depth[:, None] @ K[:2, :2].T + K[:2, 2]
    return np.concatenate([xy, camera[:, 2:]], axis=1)


def normalise(image: np.ndarray) -> Tensor:
    """RGB uint8 (H, W, 3) to the backbone's input: float32 (3, H, W)."""
    scaled = np.empty((3, *image.shape[:2]), np.float32)
    for channel, plane in enumerate(cv2.split(image)):  # a table: 15 times faster than arithmetic
        cv2.LUT(plane, _NORMALISED[channel], scaled[channel])
    return torch.from_numpy(scaled)


def denormalise(image: np.ndarray) -> np.ndarray:
    """The backbone's input (3, H, W) to RGB uint8 (H, W, 3)."""
    pixels = np.asarray(image, np.float32).transpose(1, 2, 0) * IMAGE_STD + IMAGE_MEAN
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)
