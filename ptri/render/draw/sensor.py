"""What a camera does to a picture: colour response, white balance, blur, shake, noise, JPEG."""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np

from ptri.render.settings import RenderConfig


class Sensor(NamedTuple):
    """What one camera does to a picture."""

    gain: np.ndarray  # (3,) factor per channel
    gamma: float
    noise: float  # standard deviation, grey levels
    blur: float  # standard deviation, px; 0 none
    shake: np.ndarray | None  # (k, k) kernel
    quality: int  # of visible JPEG compression; 0 none
    meter: float  # how far, 0 to 1, an exposure meter brings the mean to ...
    target: float  # ... this grey level


def sample_sensor(rng: np.random.Generator, config: RenderConfig) -> Sensor:
    """Draws one camera's exposure, colour response, blur, shake, noise and compression."""
    strength = config.sensor
    gain = np.exp(strength * (rng.normal(0, 0.12) + rng.normal(0, 0.05, 3)))
    gamma = float(np.exp(strength * rng.normal(0, 0.12)))
    noise = strength * rng.gamma(1.5, 2.5)
    blur = strength * (rng.uniform(0.3, 1.5) if rng.random() < 0.4 else 0.0)
    if config.samples == 0:  # no picture of a lens has steps at its edges
        blur = float(np.hypot(blur, rng.uniform(0.45, 0.65)))
    shaken, jpeg = rng.random() < config.shake, rng.random() < config.jpeg
    length, angle, quality = rng.uniform(3, 10), rng.uniform(0, np.pi), int(rng.integers(25, 91))
    shake = _line_kernel(length * config.size / 256, angle) if shaken else None
    target = rng.uniform(80, 150)
    return Sensor(gain, gamma, noise, blur, shake, jpeg * quality, config.metering, target)


def expose(image: np.ndarray, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    """Applies a sensor to an (h, w, 3) uint8 image."""
    gain = sensor.gain
    if sensor.meter > 0:
        # Every 8th pixel tells the mean; 1 grey level guards a black picture.
        mean = max(float(image[::8, ::8].mean()), 1.0)
        gain = gain * np.clip((sensor.target / mean) ** sensor.meter, 0.5, 3.0)
    levels = (np.arange(256) / 255)[:, None] ** sensor.gamma * gain * 255
    table = np.clip(levels, 0, 255).astype(np.uint8)[None]  # (1, 256, 3)
    image = cv2.LUT(image, table)
    if sensor.blur > 0:
        image = cv2.GaussianBlur(image, (0, 0), sensor.blur)
    if sensor.shake is not None:
        image = cv2.filter2D(image, -1, sensor.shake, borderType=cv2.BORDER_REPLICATE)
    if sensor.noise > 0:
        # A shifted view of one large noise field is far cheaper than fresh normal numbers.
        height, width = image.shape[:2]
        field = _noise_field(2 * max(height, width, 128))
        top = int(rng.integers(field.shape[0] - height))
        left = int(rng.integers(field.shape[1] - width))
        noise = field[top : top + height, left : left + width]
        image = cv2.addWeighted(image, 1.0, noise, sensor.noise, 0.0, dtype=cv2.CV_8U)
    if sensor.quality:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, sensor.quality])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image


@functools.lru_cache(maxsize=4)
def _noise_field(size: int) -> np.ndarray:
    """(size, size, 3) float32 standard normal, softened as demosaicing does."""
    noise = np.random.default_rng(0).standard_normal((size, size, 3), dtype=np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 0.6)
    return soft / soft.std()


def _line_kernel(length: float, angle: float) -> np.ndarray:
    """(k, k) float32 kernel of a straight motion of the given length, px; sums to 1."""
    side = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((side, side), np.float32)
    half = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    middle = np.array([side // 2, side // 2])
    low, high = (np.rint(16 * (middle + sign * half)).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, low, high, 1.0, 1, cv2.LINE_AA, shift=4)
    return kernel / kernel.sum()
