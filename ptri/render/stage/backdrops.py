"""Pictures behind people: panoramas and photographs of a folder, and random collages."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np

from ptri.errors import UserError

_PICTURES = (".jpg", ".jpeg", ".png", ".hdr")
_LARGEST = 1024  # px, longer side that is kept
_COLLAGE = 160  # px


def list_pictures(folder: str | Path | None) -> list[Path]:
    """Pictures of a folder, sorted; none of no folder.

    Raises:
        UserError: the folder is missing or holds no picture.
    """
    if not folder:
        return []
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"render.backgrounds: {folder}: not a folder of pictures")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES)
    if not paths:
        raise UserError(f"render.backgrounds: {folder}: no {', '.join(_PICTURES)} in it")
    return paths


@functools.lru_cache(maxsize=64)
def read_picture(path: Path) -> tuple[np.ndarray, bool]:
    """Reads a backdrop: (h, w, 3) uint8 RGB, and whether it is no panorama (not 2:1).

    Raises:
        UserError: the file is not a readable picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path}: not a readable picture")
    height, width = image.shape[:2]
    scale = _LARGEST / max(height, width)
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), abs(width / height - 2) > 0.05


def sample_window(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """The part of a photograph to show: left, top, width, height as shares of it (4,).

    A square part, at times mirrored (negative width).
    """
    height, width = picture.shape[:2]
    side = min(height, width) * rng.uniform(0.35, 1.0)
    share = np.array([side / width, side / height])
    left, top = rng.random(2) * (1 - share)
    if rng.random() < 0.5:
        return np.array([left + share[0], top, -share[0], share[1]])
    return np.array([left, top, *share])


def sample_collage(rng: np.random.Generator) -> np.ndarray:
    """A picture (h, w, 3) uint8 of clouds, stripes and shapes that are nowhere in particular."""
    size = _COLLAGE
    image = _clouds(rng, size)
    for _ in range(int(rng.integers(4, 30))):
        colour = tuple(rng.integers(0, 256, 3).tolist())
        x, y = rng.integers(-20, size + 20, 2).tolist()
        a, b = (rng.gamma(2.0, 0.09, 2) * size).astype(int).tolist()
        kind = rng.integers(5)
        if kind == 0:
            cv2.rectangle(image, (x, y), (x + a, y + 2 * b), colour, -1)
        elif kind == 1:
            cv2.ellipse(image, (x, y), (a, b), rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        elif kind == 2:
            points = np.array([x, y]) + rng.normal(0, 0.12 * size, (int(rng.integers(3, 7)), 2))
            cv2.fillPoly(image, [points.astype(np.int32)], colour, cv2.LINE_AA)
        elif kind == 3:
            far = rng.integers(-20, size + 20, 2).tolist()
            cv2.line(image, (x, y), far, colour, int(rng.integers(1, 9)), cv2.LINE_AA)
        else:  # a piece of another texture
            patch = _clouds(rng, 64)
            x, y = max(x, 0), max(y, 0)
            part = image[y : y + 64, x : x + 64]
            part[...] = patch[: part.shape[0], : part.shape[1]]
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.7, 4.0))
    return image


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise of a few scales between two colours, at times in stripes."""
    field = np.zeros((size, size), np.float32)
    for cells in (3, 9, 40):
        shape = (cells, cells) if rng.random() < 0.7 else (cells, max(1, cells // 8))
        grid = rng.random(shape, dtype=np.float32) - 0.5
        field += rng.random() * cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)
    field = np.clip(0.5 + 1.2 * field, 0, 1)[..., None]
    low, high = rng.integers(0, 256, (2, 3)).astype(np.float32)
    return (low + field * (high - low)).astype(np.uint8)
