"""Rooms, furniture, light and camera looks, drawn from a seed. World: z up, metres, floor z = 0."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ptri.errors import UserError

MAX_MATERIALS = 16
_PICTURES = (".jpg", ".jpeg", ".png", ".hdr")
_KEEP_FREE = 1.3  # m around the person without furniture


class Look(NamedTuple):
    """Light and exposure. Directions point towards the light; colours are linear RGB."""

    light_direction: np.ndarray
    light_colour: np.ndarray
    fill_direction: np.ndarray
    fill_colour: np.ndarray
    sky_colour: np.ndarray
    ground_colour: np.ndarray
    exposure: float
    turn: float = 0.0  # of a panorama, share of a whole turn
    brightness: float = 1.0  # of the backdrop
    flat_picture: bool = False  # the backdrop is not a panorama


class Scene(NamedTuple):
    """Triangles of room and furniture with their materials."""

    mesh: np.ndarray  # (N, 9) float32: position 3, normal 3, uv 2 (m), material
    first_caster: int  # vertices from here on cast shadows
    colours: np.ndarray  # (M, 2, 3) linear RGB
    styles: np.ndarray  # (M, 4) pattern, frequency, gloss, contrast
    look: Look


class Sensor(NamedTuple):
    """What one camera does to a picture."""

    gain: np.ndarray  # (3,) factor per channel
    gamma: float
    noise: float  # standard deviation, grey levels
    blur: float  # standard deviation, px; 0 none


def sample_look(rng: np.random.Generator) -> Look:
    """Draws the light of a scene."""
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.4)
    warmth = rng.normal(0, 0.06)
    tint = np.array([1 + warmth, 1, 1 - warmth])
    key, ambient = rng.uniform(0.35, 1.5), rng.uniform(0.25, 0.7)
    fill_azimuth = azimuth + np.pi + rng.normal(0, 0.6)
    return Look(
        light_direction=_direction(azimuth, height),
        light_colour=key * tint,
        fill_direction=_direction(fill_azimuth, rng.uniform(0.1, 0.7)),
        fill_colour=rng.uniform(0.0, 0.4) * np.ones(3),
        sky_colour=ambient * rng.uniform(0.9, 1.1, 3),
        ground_colour=ambient * rng.uniform(0.3, 0.8) * rng.uniform(0.85, 1.1, 3),
        exposure=rng.uniform(0.6, 1.15),
        turn=rng.random(),
        brightness=rng.uniform(0.6, 1.1),
    )


def sample_room(
    rng: np.random.Generator, camera_centres: np.ndarray, clutter: int = 8, bare: bool = False
) -> Scene:
    """Draws a room around cameras and person, with furniture out of their way.

    Args:
        camera_centres: (V, 3) m.
        clutter: most pieces of furniture.
        bare: floor only, for use before a backdrop picture.
    """
    reach = np.abs(camera_centres[:, :2]).max() + rng.uniform(0.4, 2.5)
    width, depth = reach * rng.uniform(1, 1.25, 2)
    height = max(float(camera_centres[:, 2].max()) + 0.3, rng.uniform(2.5, 4.0))
    corners = np.array([[-width, -depth, 0], [width, depth, height]])
    colours, styles = [], []
    parts = [_quad([-width, -depth, 0], [2 * width, 0, 0], [0, 2 * depth, 0], 0)]
    colours.append(_pair(rng, 0.7))
    styles.append([rng.choice([0, 1, 2, 3, 3, 5]), rng.uniform(0.8, 4), rng.uniform(0, 0.2), 0.8])
    if not bare:
        (x0, y0, z0), (x1, y1, z1) = corners
        sides = [
            ([x0, y0, z1], [0, y1 - y0, 0], [x1 - x0, 0, 0]),
            ([x0, y0, z0], [0, y1 - y0, 0], [0, 0, z1 - z0]),
            ([x1, y1, z0], [0, y0 - y1, 0], [0, 0, z1 - z0]),
            ([x1, y0, z0], [x0 - x1, 0, 0], [0, 0, z1 - z0]),
            ([x0, y1, z0], [x1 - x0, 0, 0], [0, 0, z1 - z0]),
        ]
        wall = _pair(rng, 0.5)
        for material, (corner, u, v) in enumerate(sides, start=1):
            parts.append(_quad(corner, u, v, material))
            colours.append(wall if rng.random() < 0.5 and material > 1 else _pair(rng, 0.5))
            pattern = rng.choice([0, 0, 2, 4, 5, 5, 6])
            styles.append([pattern, rng.uniform(0.6, 5), 0, rng.uniform(0.1, 0.9)])
        parts += _pictures(rng, corners, colours, styles)
    first = sum(len(part) for part in parts)
    for _ in range(int(rng.integers(0, clutter + 1))):
        if len(colours) >= MAX_MATERIALS - 1:
            break
        box = _furniture(rng, corners, camera_centres)
        if box is None:
            continue
        parts.append(_box(*box, turn=rng.uniform(0, np.pi), material=len(colours)))
        colours.append(_pair(rng, 0.9))
        styles.append([rng.choice([0, 0, 1, 3, 4, 5, 6]), rng.uniform(1.5, 12), 0.1, 0.7])
    mesh = np.concatenate(parts).astype(np.float32)
    return Scene(mesh, first, np.array(colours), np.array(styles, float), sample_look(rng))


def with_seat(scene: Scene, centre: np.ndarray, height: float, turn: float) -> Scene:
    """Adds a stool of the given height (m) below a sitting person's hips."""
    half = np.array([0.19, 0.19, height / 2])
    middle = np.array([centre[0], centre[1], height / 2])
    material = len(scene.colours) - 1
    box = _box(middle, half, turn, material).astype(np.float32)
    return scene._replace(mesh=np.concatenate([scene.mesh, box]))


def sample_sensor(rng: np.random.Generator, strength: float = 1.0) -> Sensor:
    """Draws one camera's colour response, noise and blur; strength 0 is a perfect camera."""
    return Sensor(
        gain=np.exp(strength * (rng.normal(0, 0.12) + rng.normal(0, 0.05, 3))),
        gamma=float(np.exp(strength * rng.normal(0, 0.12))),
        noise=strength * rng.uniform(0.5, 5),
        blur=strength * (rng.uniform(0.3, 0.9) if rng.random() < 0.4 else 0.0),
    )


def expose(image: np.ndarray, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    """Applies a sensor to an (h, w, 3) uint8 image."""
    levels = (np.arange(256) / 255)[:, None] ** sensor.gamma * sensor.gain * 255
    table = np.clip(levels, 0, 255).astype(np.uint8)[None]  # (1, 256, 3)
    image = cv2.LUT(image, table)
    if sensor.blur > 0:
        image = cv2.GaussianBlur(image, (0, 0), sensor.blur)
    if sensor.noise > 0:
        # A shifted view of one large noise field is far cheaper than fresh normal numbers.
        field = _noise_field()
        top, left = rng.integers(field.shape[0] // 2, size=2)
        height, width = image.shape[:2]
        rows = np.arange(top, top + height) % field.shape[0]
        columns = np.arange(left, left + width) % field.shape[1]
        noise = field[np.ix_(rows, columns)] * np.float32(sensor.noise)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def list_pictures(folder: str | Path) -> list[Path]:
    """Pictures of a folder, sorted.

    Raises:
        UserError: the folder is missing or holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--backgrounds {folder}: not a folder")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES)
    if not paths:
        raise UserError(f"--backgrounds {folder}: no {', '.join(_PICTURES)} in it")
    return paths


def read_picture(path: Path) -> tuple[np.ndarray, bool]:
    """Reads a backdrop: (h, w, 3) uint8 RGB, and whether it is no panorama (not 2:1).

    Raises:
        UserError: the file is not a readable picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path}: not a readable picture")
    height, width = image.shape[:2]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), abs(width / height - 2) > 0.05


_NOISE: list[np.ndarray] = []


def _noise_field() -> np.ndarray:
    if not _NOISE:
        noise = np.random.default_rng(0).standard_normal((512, 512, 3), dtype=np.float32)
        _NOISE.append(noise)
    return _NOISE[0]


def _direction(azimuth: float, height: float) -> np.ndarray:
    return np.array(
        [np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)]
    )


def _pair(rng: np.random.Generator, saturation: float) -> np.ndarray:
    """Two related colours, linear RGB (2, 3)."""
    grey = rng.uniform(0.15, 0.95)
    first = np.clip(grey + saturation * rng.uniform(-0.3, 0.3, 3), 0.02, 1)
    if rng.random() < 0.4:
        second = np.clip(rng.uniform(0.1, 0.95) + saturation * rng.uniform(-0.3, 0.3, 3), 0.02, 1)
    else:
        second = np.clip(first * rng.uniform(0.5, 1.4), 0.02, 1)
    return np.stack([first, second]) ** 2.2


def _quad(corner, u, v, material: int) -> np.ndarray:
    """Two triangles (6, 9) of a parallelogram; the normal is u x v."""
    corner, u, v = (np.asarray(x, float) for x in (corner, u, v))
    normal = np.cross(u, v)
    normal /= np.linalg.norm(normal)
    share = np.array([[0, 0], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]], float)
    points = corner + share[:, :1] * u + share[:, 1:] * v
    uv = share * [np.linalg.norm(u), np.linalg.norm(v)]
    return np.hstack([points, np.tile(normal, (6, 1)), uv, np.full((6, 1), float(material))])


def _box(centre: np.ndarray, half: np.ndarray, turn: float, material: int) -> np.ndarray:
    """A box (36, 9) turned about the vertical."""
    c, s = np.cos(turn), np.sin(turn)
    axes = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) * half[:, None]
    faces = []
    for i in range(3):
        for sign in (1, -1):
            u, v = axes[(i + 1) % 3], axes[(i + 2) % 3] * sign
            faces.append(_quad(centre + sign * axes[i] - u - v, 2 * u, 2 * v, material))
    return np.concatenate(faces)


def _pictures(rng, corners, colours: list, styles: list) -> list[np.ndarray]:
    """Posters, windows and doors: rectangles a centimetre before the walls."""
    parts = []
    (x0, y0, _), (x1, y1, z1) = corners
    for _ in range(int(rng.integers(0, 5))):
        width, height = rng.uniform(0.4, 2.2), rng.uniform(0.4, 1.8)
        low = rng.uniform(0, max(z1 - height, 0.1))
        along = rng.uniform(-0.8, 0.8)
        gap = 0.015
        wall = rng.integers(4)
        if wall < 2:
            x = x0 + gap if wall == 0 else x1 - gap
            sign = 1 if wall == 0 else -1
            quad = _quad([x, along * y1 - sign * width / 2, low], [0, sign * width, 0],
                         [0, 0, height], len(colours))  # fmt: skip
        else:
            y = y0 + gap if wall == 2 else y1 - gap
            sign = -1 if wall == 2 else 1
            quad = _quad([along * x1 - sign * width / 2, y, low], [sign * width, 0, 0],
                         [0, 0, height], len(colours))  # fmt: skip
        if wall >= 2:  # u x v points outwards there
            quad[:, 3:6] *= -1
        parts.append(quad)
        colours.append(_pair(rng, 1.2))
        styles.append([rng.choice([0, 1, 2, 4, 5, 6]), rng.uniform(1, 10), 0.1, 1.0])
    return parts


def _furniture(
    rng: np.random.Generator, corners: np.ndarray, cameras: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre and half size of a box, or None where the draw stands in the way."""
    half = np.array([rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.6), rng.uniform(0.15, 0.6)])
    if rng.random() < 0.25:
        half[2] = rng.uniform(0.6, 1.1)
    place = rng.uniform(-0.92, 0.92, 2) * corners[1, :2]
    radius = np.hypot(half[0], half[1])
    if np.linalg.norm(place) < _KEEP_FREE + radius:
        return None
    for camera in cameras[:, :2]:
        share = np.clip(place @ camera / (camera @ camera), 0, 1.1)
        if np.linalg.norm(place - share * camera) < radius + 0.45:
            return None
    return np.array([place[0], place[1], half[2]]), half
