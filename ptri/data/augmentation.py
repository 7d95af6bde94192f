"""What training does to crops and images; all chances and sizes are `AugmentConfig`'s.

Everything is drawn from the sample's own generator. Images are uint8 RGB (H, W, 3).
"""

from __future__ import annotations

import cv2
import numpy as np

from ptri.config import AugmentConfig
from ptri.skeleton import H36M17

HUE = 0.05  # largest turn of it, 1 is the whole circle
MIN_PART = 3  # known joints that a part of the body needs for a crop around it
_LUMA = np.array([0.299, 0.587, 0.114])  # of R, G, B (ITU-R BT.601)
_LEGS = [i for i, name in enumerate(H36M17.joints) if name.endswith(("knee", "foot"))]
_HIPS = [i for i, name in enumerate(H36M17.joints) if "hip" in name]
_UPPER = [i for i in range(len(H36M17.joints)) if i not in _LEGS + _HIPS]


def augment_crop(
    centre: np.ndarray,
    side: float,
    joints: np.ndarray,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float, float]:
    """Another square crop near a given one: a part of the body, another size, place and roll.

    Args:
        centre: (2,) px, x and y. side: px. joints: (J, 2) px of the whole image, NaN =
            not known.

    Returns:
        Centre (2,) px, side px and roll, radians.
    """
    if augment.half_body and rng.random() < augment.half_body:
        # Around the upper body (two times in three) or the legs, with some margin.
        part = _UPPER if rng.random() < 2 / 3 else _LEGS
        chosen = joints[part + (_HIPS if rng.random() < 0.5 else [])]
        chosen = chosen[np.isfinite(chosen).all(1)]
        margin = rng.uniform(1.15, 1.5)
        if len(chosen) >= MIN_PART:
            low, high = chosen.min(0), chosen.max(0)
            extent = margin * float((high - low).max())
            # A third of the person at least: legs seen from above would fill the image otherwise.
            centre, side = (low + high) / 2, float(np.clip(extent, side / 3, side))
    side = side * rng.uniform(1 - augment.scale, 1 + augment.scale)
    centre = centre + side * rng.uniform(-augment.shift, augment.shift, 2)
    roll = np.deg2rad(rng.uniform(-augment.rotation_deg, augment.rotation_deg))
    return centre, side, roll


def augment_image(
    image: np.ndarray, augment: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """Resolution, occluders, border, blur, colours, noise and compression.

    Args:
        image: (H, W, 3) uint8 RGB, not changed.
    """
    if rng.random() < augment.low_resolution:
        image = _lower_resolution(image, rng)
    if rng.random() < augment.occluder:
        image = image.copy()
        for _ in range(rng.integers(1, 4)):
            _occlude(image, rng)
    if rng.random() < augment.border:  # one side black up to 40 %: the photograph ended there
        image = image.copy()
        turned = np.rot90(image, rng.integers(4))  # a view
        turned[: int(rng.uniform(0.05, 0.4) * len(turned))] = 0
    if rng.random() < augment.blur:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.8))
    if augment.gamma:
        exponent = np.exp(rng.uniform(-augment.gamma, augment.gamma))
        curve = 255 * (np.arange(256) / 255) ** exponent
        image = cv2.LUT(image, curve.round().astype(np.uint8))
    if max(augment.color, augment.grey) > 0:
        image = cv2.transform(image, color_matrix(augment, np.array(cv2.mean(image)[:3]), rng))
    if rng.random() < augment.noise:
        noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2.0, 12.0)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < augment.jpeg:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 70))]
        _, data = cv2.imencode(".jpg", image, quality)  # the channel order does not matter here
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image


def color_matrix(augment: AugmentConfig, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An affine change of RGB values 0 to 255 as a matrix (3, 4).

    Gains per channel (white balance), hue, saturation, contrast and brightness, now and then grey;
    one matrix, because six passes over the image cost six times more.

    Args:
        mean: (3,) of the image, about which contrast turns.
    """
    strength = augment.color
    hue = HUE if strength else 0.0

    def factor(amount: float) -> float:
        return rng.uniform(1 - amount, 1 + amount)

    grey = np.outer(np.ones(3), _LUMA)
    matrix = np.diag(rng.uniform(1 - strength / 3, 1 + strength / 3, 3))
    matrix = hue_rotation(2 * np.pi * rng.uniform(-hue, hue)) @ matrix
    matrix = (grey + factor(strength) * (np.eye(3) - grey)) @ matrix
    matrix = factor(strength) * matrix
    if rng.random() < augment.grey:
        matrix = grey @ matrix
    contrast = factor(strength)
    offset = (1 - contrast) * float(_LUMA @ matrix @ mean)
    return np.concatenate([contrast * matrix, np.full((3, 1), offset)], 1)


def hue_rotation(angle: float) -> np.ndarray:
    """Rotation (3, 3) of RGB about the grey axis."""
    axis = np.full(3, 3**-0.5)
    cross = np.cross(np.eye(3), axis)
    outer = np.outer(axis, axis)
    return outer + np.cos(angle) * (np.eye(3) - outer) + np.sin(angle) * cross


def _lower_resolution(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sampled down by a factor of 1.3 to 5 and up again: a person far away."""
    height, width = image.shape[:2]
    factor = np.exp(rng.uniform(np.log(1.3), np.log(5.0)))
    small = (max(8, round(width / factor)), max(8, round(height / factor)))
    up = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(3)]
    image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), interpolation=up)


def _occlude(image: np.ndarray, rng: np.random.Generator) -> None:
    """Covers a rectangle or ellipse with one colour, noise or another part of the image."""
    size = np.array(image.shape[:2])
    extent = (size * rng.uniform(0.06, 0.35, 2)).astype(int) + 1
    corner = (rng.uniform(0, 1, 2) * (size - extent)).astype(int)
    region = tuple(slice(low, low + length) for low, length in zip(corner, extent))
    kind = rng.integers(3)
    if kind == 0:
        patch = np.broadcast_to(rng.integers(0, 256, 3), (*extent, 3)).astype(np.uint8)
    elif kind == 1:
        patch = rng.integers(0, 256, (*extent, 3), np.uint8)
    else:
        y, x = (rng.uniform(0, 1, 2) * (size - extent)).astype(int)
        patch = image[y : y + extent[0], x : x + extent[1]].copy()
    if rng.integers(2):
        rows, columns = np.ogrid[-1 : 1 : extent[0] * 1j, -1 : 1 : extent[1] * 1j]
        inside = rows**2 + columns**2 <= 1
        patch = np.where(inside[..., None], patch, image[region])
    image[region] = patch
