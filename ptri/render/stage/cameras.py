"""One camera before one person: lens, direction, distance and framing. World: z up, metres."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ptri.render.settings import RenderConfig

_PERSON = 1.7  # m, and the share of the image that it takes at the lens's own distance:
_SHARE = 0.7
_HIGH_SHARE = 0.2  # of the cameras, 30 to 75 degrees above the person
_LOW_SHARE = 0.08  # near the floor
_OFF_AXIS = 0.25  # principal point off the image's middle, share of its side
_LOWEST = 0.12  # m above the floor
_NEAREST = 0.55  # m from the nearest point of the person
_MIN_JOINTS = 5  # in a picture that cuts the person off


class Camera(NamedTuple):
    """x_cam = R x_world + t; pixels K x_cam."""

    K: np.ndarray  # (3, 3) px
    R: np.ndarray  # (3, 3)
    t: np.ndarray  # (3,) m

    @property
    def centre(self) -> np.ndarray:
        """Its place in the world (3,) m."""
        return -self.R.T @ self.t

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) m -> (N, 3): x px, y px, depth m."""
        seen = points @ self.R.T + self.t
        # 1 cm guards points beside or behind the camera, which no picture shows.
        seen[:, :2] *= self.K[[0, 1], [0, 1]] / np.maximum(seen[:, 2:], 0.01)
        seen[:, :2] += self.K[:2, 2]
        return seen


def sample_lens(rng: np.random.Generator, config: RenderConfig) -> np.ndarray:
    """Draws K (3, 3) px of a square crop from some camera's image."""
    size = config.size
    distance = np.exp(rng.uniform(np.log(config.near), np.log(config.far)))
    focal = _SHARE / _PERSON * distance * size
    # Wide lenses keep the person near the middle: beyond, bodies look like no photograph's.
    spread = _OFF_AXIS * size * min(1.0, focal / (1.2 * size))
    shift = np.clip(spread * rng.standard_normal(2), -0.9 * size, 0.9 * size)
    K = np.array([[focal, 0, 0], [0, focal * np.exp(0.004 * rng.standard_normal()), 0], [0, 0, 1]])
    K[:2, 2] = (size - 1) / 2 + shift
    return K


def place_camera(
    rng: np.random.Generator,
    config: RenderConfig,
    K: np.ndarray,
    points: np.ndarray,
    joints: np.ndarray,
) -> Camera:
    """Puts a camera where its image frames a person as the configuration says.

    Args:
        K: (3, 3) px, from `sample_lens`.
        points: (N, 3) m on the person's surface. joints: (17, 3) m.
    """
    azimuth, kind = rng.uniform(0, 2 * np.pi), rng.random()
    elevation = np.radians(rng.normal(6, 9))  # about eye level
    if kind < _HIGH_SHARE:
        elevation = np.radians(rng.triangular(15, 30, 75))
    low = _HIGH_SHARE <= kind < _HIGH_SHARE + _LOW_SHARE
    roll = np.radians(config.roll_deg) * rng.standard_normal()
    if rng.random() < config.on_side:
        roll += rng.choice([-0.5, 0.5]) * np.pi
    fill = rng.uniform(config.fill_low, config.fill_high)
    free = 1 - fill
    wanted = (config.size - 1) * (0.5 + free * rng.uniform(-0.45, 0.45, 2))
    anchor, zoom = None, 1.0
    if rng.random() < config.truncated:
        anchor, zoom = _cut(rng, joints)
        wanted = (config.size - 1) * (0.5 + rng.uniform(-0.2, 0.2, 2))
    height = _LOWEST + rng.uniform(0, 0.3) if low else None
    while True:
        side = fill * zoom * config.size
        camera = _solve(K, points, side, anchor, wanted, azimuth, elevation, roll, height)
        pixels = camera.project(joints)[:, :2]
        inside = ((pixels >= 0) & (pixels <= config.size - 1)).all(1).sum()
        if anchor is None or inside >= _MIN_JOINTS or zoom <= 1:
            return camera
        zoom = max(1.0, 0.8 * zoom)


def _cut(rng: np.random.Generator, joints: np.ndarray) -> tuple[np.ndarray, float]:
    """What a picture that cuts the person off is centred on, and how much it enlarges."""
    kind = rng.random()
    shoulders, hips, feet = (joints[12] + joints[13]) / 2, joints[6], (joints[0] + joints[5]) / 2
    if kind < 0.5:  # half figures and closer
        return shoulders + rng.uniform(-0.3, 0.8) * (hips - shoulders), rng.uniform(1.35, 2.4)
    if kind < 0.65:  # the legs
        return hips + rng.uniform(0, 0.7) * (feet - hips), rng.uniform(1.3, 2.0)
    return joints[rng.integers(17)], rng.uniform(1.15, 1.8)


def _solve(
    K: np.ndarray,
    points: np.ndarray,
    side: float,
    anchor: np.ndarray | None,
    wanted: np.ndarray,
    azimuth: float,
    elevation: float,
    roll: float,
    height: float | None,
) -> Camera:
    """The camera that sees the points `side` px large, their middle (or the anchor) at a pixel.

    A few steps of a fixed-point iteration; height: of the camera, m, in place of the elevation.
    """
    rows = np.ascontiguousarray(points.T, float)  # several times as fast as columns
    low, high = rows.min(1), rows.max(1)
    target = (low + high) / 2 if anchor is None else anchor
    distance = float(K[0, 0] * (high - low).max() / side)
    around = np.array([np.cos(azimuth), np.sin(azimuth), 1.0])
    for _ in range(4):
        rise = distance * np.sin(elevation) if height is None else height - target[2]
        rise = max(float(rise), _LOWEST - float(target[2]))
        flat = math.sqrt(max(distance**2 - rise**2, (0.1 * distance) ** 2))
        centre = target + around * [flat, flat, rise]
        R = _turn(K, K[:2, 2], wanted) @ _look_at(centre, target, roll)
        low, high, nearest = _extent(K, R, rows - centre[:, None])
        if anchor is None:
            R = _turn(K, (low + high) / 2, wanted) @ R
        camera = Camera(K, R, -R @ centre)
        reach = math.dist(centre, target)
        # Half of the step is the person's own depth; near people grow faster than 1 / distance.
        distance = reach * min(max(float((high - low).max()) / side, 0.5), 2.0)
        distance = max(distance, reach + _NEAREST - nearest)
    return camera


def _extent(K: np.ndarray, R: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Least and largest pixel (2,), and least depth m, of points (3, N) m from the camera."""
    x, y, depth = R @ rows
    safe = np.maximum(depth, 0.01)  # m, as in Camera.project
    x, y = x / safe, y / safe
    focal, middle = K[[0, 1], [0, 1]], K[:2, 2]
    low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()])
    return focal * low + middle, focal * high + middle, float(depth.min())


def _look_at(centre: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """World to camera (3, 3), the target on the optical axis, turned about it by roll (rad)."""
    # In plain numbers: ten times as fast as arrays of three.
    x, y, z = (target - centre).tolist()
    length = math.sqrt(x * x + y * y + z * z)
    x, y, z = x / length, y / length, z / length
    flat = math.hypot(x, y)
    if flat < 0.01:  # straight down: "up" says nothing
        a, b, c = 1 - x * x, -x * y, -x * z
        flat = math.sqrt(a * a + b * b + c * c)
    else:
        a, b, c = y, -x, 0.0
    a, b, c = a / flat, b / flat, c / flat
    down = (y * c - z * b, z * a - x * c, x * b - y * a)
    cosine, sine = math.cos(roll), math.sin(roll)
    upright = np.array([(a, b, c), down, (x, y, z)])
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ upright


def _turn(K: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Smallest rotation (3, 3) of the scene that takes what is at one pixel to another."""
    (fx, _, cx), (_, fy, cy), _ = K.tolist()
    a, b = (
        ((u - cx) / fx, (v - cy) / fy)
        for u, v in (np.asarray(source).tolist(), np.asarray(target).tolist())
    )
    length = math.sqrt((1 + a[0] ** 2 + a[1] ** 2) * (1 + b[0] ** 2 + b[1] ** 2))
    x, y, z = (a[1] - b[1]) / length, (b[0] - a[0]) / length, (a[0] * b[1] - a[1] * b[0]) / length
    cosine = (a[0] * b[0] + a[1] * b[1] + 1) / length
    # Rodrigues with sin = |axis|, cos = a.b; both pixels are before the camera, so cos > -1.
    share = 1 / (1 + cosine)
    return np.array(
        [
            [cosine + x * x * share, x * y * share - z, x * z * share + y],
            [x * y * share + z, cosine + y * y * share, y * z * share - x],
            [x * z * share - y, y * z * share + x, cosine + z * z * share],
        ]
    )
