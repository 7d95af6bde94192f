"""One camera before one person: lens, direction, distance and framing. World: z up, metres."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ptri.render_config import RenderConfig

_PERSON = 1.7  # m, and the share of the image that it takes at the lens's own distance:
_SHARE = 0.7
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
    spread = config.off_axis * size * min(1.0, focal / (1.2 * size))
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
    if kind < config.high_share:
        elevation = np.radians(rng.triangular(15, 30, 75))
    low = config.high_share <= kind < config.high_share + config.low_share
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
    middle = (points.min(0) + points.max(0)) / 2
    target = middle if anchor is None else anchor
    distance = K[0, 0] * np.ptp(points, axis=0).max() / side
    for _ in range(4):
        rise = distance * np.sin(elevation) if height is None else height - target[2]
        rise = max(rise, _LOWEST - target[2])
        flat = np.sqrt(max(distance**2 - rise**2, (0.1 * distance) ** 2))
        centre = target + np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), rise])
        R = _look_at(centre, target, roll)
        R = _turn(K, K[:2, 2], wanted) @ R
        camera = Camera(K, R, -R @ centre)
        pixels = camera.project(points)
        low, high = pixels[:, :2].min(0), pixels[:, :2].max(0)
        if anchor is None:
            R = _turn(K, (low + high) / 2, wanted) @ R
            camera = Camera(K, R, -R @ centre)
        reach = np.linalg.norm(centre - target)
        # Half of the step is the person's own depth; near people grow faster than 1 / distance.
        distance = reach * np.clip((high - low).max() / side, 0.5, 2.0)
        distance = max(distance, reach + _NEAREST - pixels[:, 2].min())
    return camera


def _look_at(centre: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    """World to camera (3, 3), the target on the optical axis, turned about it by roll (rad)."""
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.array([forward[1], -forward[0], 0.0])
    if np.linalg.norm(right) < 0.01:  # straight down: "up" says nothing
        right = np.array([1.0, 0, 0])
    right -= (right @ forward) * forward
    right /= np.linalg.norm(right)
    down = _cross(forward, right)
    upright = np.stack([right, down, forward])
    c, s = np.cos(roll), np.sin(roll)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ upright


def _turn(K: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Smallest rotation (3, 3) of the scene that takes what is at one pixel to another."""
    a, b = (np.append((pixel - K[:2, 2]) / K[[0, 1], [0, 1]], 1.0) for pixel in (source, target))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    x, y, z = _cross(a, b)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    # Rodrigues with sin = |axis|, cos = a.b; both pixels are before the camera, so cos > -1.
    return np.eye(3) + cross + cross @ cross / (1 + a @ b)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """np.cross of two vectors, ten times as fast."""
    return np.array(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )
