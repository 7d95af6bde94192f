"""Pictures of garments, hair and eyes, made ready for the renderer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ptri.errors import UserError

_SIZE = {"outfits": 512, "shoes": 256, "hair": 256, "hats": 64, "eyebrows": 64}  # px
_ALPHA = ("hair", "eyebrows")  # categories whose alpha is a cut, not ambient occlusion
_DARKEST_AO = 0.55  # pockets and insides are black in some maps


class Texture(NamedTuple):
    """A picture the renderer keeps; row 0 is the lower edge, as texture coordinates count."""

    key: str  # the renderer uploads each key once
    pixels: np.ndarray  # (h, w, 4) uint8 sRGB; alpha is the cut of hair, else ambient occlusion


def read_texture(
    path: Path, category: str, uv: np.ndarray, faces: np.ndarray
) -> tuple[Texture, bool]:
    """A garment's picture, and whether its colours are more than white.

    Args:
        path: of the garment's .npz; the pictures lie beside it.
        uv: (m, 2) texture coordinates. faces: (t, 3) of them.

    Raises:
        UserError: not a readable picture.
    """
    size = _SIZE.get(category, 256)
    pictures = [path.with_name(f"{path.stem}_diffuse{end}") for end in (".jpg", ".png")]
    pictures = [picture for picture in pictures if picture.exists()]
    pixels = np.full((size, size, 4), 255, np.uint8)
    if pictures:
        pixels = cv2.resize(_read_picture(pictures[0]), (size, size), interpolation=cv2.INTER_AREA)
    inside = np.zeros((size, size), np.uint8)
    corner = uv * [size, -size] + [0, size] - 0.5
    for triangle in np.round(corner[faces]).astype(np.int32):
        cv2.fillConvexPoly(inside, triangle, 1)
    occlusion = path.with_name(f"{path.stem}_ao.jpg")
    if category in _ALPHA:
        inside &= (pixels[..., 3] > 60).astype(np.uint8)
        pixels[..., :3] = _spread(pixels[..., :3], inside)
    else:
        pixels[..., 3] = 255
        if occlusion.exists():
            dark = cv2.resize(_read_picture(occlusion), (size, size), interpolation=cv2.INTER_AREA)
            pixels[..., 3] = np.maximum(dark[..., 0], round(255 * _DARKEST_AO))
        pixels = _spread(pixels, inside)
    return Texture(f"{path}", _flipped(pixels)), bool(pictures)


@functools.cache
def read_eye(path: Path) -> Texture:
    """The picture of a pair of eyes.

    Raises:
        UserError: not a readable picture.
    """
    return Texture(str(path), _flipped(cv2.resize(_read_picture(path), (64, 64))))


def sample_texels(pixels: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Texels (m, 4) at texture coordinates (m, 2)."""
    height, width = pixels.shape[:2]
    x, y = np.floor(uv * [width, height]).astype(int).T
    return pixels[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]


def _spread(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Fills what lies outside of the mask from the nearest inside (mipmaps mix both)."""
    levels = [(pixels.astype(np.float32) * inside[..., None], inside.astype(np.float32))]
    while levels[-1][1].shape[0] > 1:
        colour, weight = levels[-1]
        half = (weight.shape[1] // 2, weight.shape[0] // 2)
        levels.append(
            (
                cv2.resize(colour, half, interpolation=cv2.INTER_AREA).reshape(*half, -1),
                cv2.resize(weight, half, interpolation=cv2.INTER_AREA).reshape(half),
            )
        )
    filled = levels[-1][0] / np.maximum(levels[-1][1], 1e-6)[..., None]  # guards an empty mask
    for colour, weight in reversed(levels[:-1]):
        size = weight.shape[::-1]
        coarse = cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR).reshape(*size, -1)
        filled = np.where(
            weight[..., None] > 0, colour / np.maximum(weight, 1e-6)[..., None], coarse
        )
    return np.clip(filled + 0.5, 0, 255).astype(np.uint8)


def _read_picture(path: Path) -> np.ndarray:
    """(h, w, 4) uint8 RGBA."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint8:
        raise UserError(f"{path}: not a readable picture; fetch it again or remove it")
    code = {2: cv2.COLOR_GRAY2RGBA, 3: cv2.COLOR_BGR2RGBA, 4: cv2.COLOR_BGRA2RGBA}
    return cv2.cvtColor(image, code[2 if image.ndim == 2 else image.shape[2]])


def _flipped(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[::-1])
