"""Rooms, furniture, light and camera looks, drawn from a seed. World: z up, metres, floor z = 0."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ptri.render.settings import RenderConfig
from ptri.render.stage import backdrops

MAX_MATERIALS = 16
SEATED = ("sit", "sit_crossed")  # motions that want a seat
WHOLE_PICTURE = np.array([0.0, 0.0, 1.0, 1.0])
_SHADOWS = 0.8  # chance that the main light casts them
_WHITE_BALANCE = 0.06  # log of red over blue, standard deviation
_KEEP_FREE = 1.3  # m around the person without furniture
_SEAT_BELOW_HIPS = 0.1  # m


class Light(NamedTuple):
    """Directions point towards the light; colours are linear RGB. The names are the shaders'."""

    light_direction: np.ndarray
    light_colour: np.ndarray
    fill_direction: np.ndarray
    fill_colour: np.ndarray
    sky_colour: np.ndarray
    ground_colour: np.ndarray
    exposure: float
    shadow_strength: float  # 0: the main light casts no shadow
    lamp_position: np.ndarray  # m; a near light without shadow
    lamp_colour: np.ndarray  # at 1 m; falls with the distance squared


class Look(NamedTuple):
    """Light, and how a backdrop picture is shown."""

    light: Light
    turn: float  # of a panorama, share of a whole turn
    tint: np.ndarray  # (3,) factor on the picture
    flat_picture: bool = False  # it is not a panorama
    window: np.ndarray = WHOLE_PICTURE  # part of a flat picture: left, top, size


class Room(NamedTuple):
    """Triangles of room and furniture with their materials."""

    mesh: np.ndarray  # (N, 9) float32: position 3, normal 3, uv 2 (m), material
    first_caster: int  # vertices from here on cast shadows
    colours: np.ndarray  # (M, 2, 3) linear RGB
    styles: np.ndarray  # (M, 4) pattern, frequency, gloss, contrast
    look: Look


def sample_look(rng: np.random.Generator, config: RenderConfig) -> Look:
    """Draws the light of a scene."""
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.45)
    warmth = rng.normal(0, _WHITE_BALANCE)
    tint = np.array([1 + warmth, 1, 1 - warmth])
    key, ambient = rng.uniform(0.35, 1.5), rng.uniform(0.25, 0.7)
    lamp = rng.uniform(0.5, 3.0) if rng.random() < config.lamps else 0.0
    fill_azimuth = azimuth + np.pi + rng.normal(0, 0.6)
    light = Light(
        light_direction=_direction(azimuth, height),
        light_colour=key * tint,
        fill_direction=_direction(fill_azimuth, rng.uniform(0.1, 0.7)),
        fill_colour=rng.uniform(0.0, 0.4) * np.ones(3),
        sky_colour=ambient * rng.uniform(0.9, 1.1, 3),
        ground_colour=ambient * rng.uniform(0.3, 0.8) * rng.uniform(0.85, 1.1, 3),
        exposure=0.85 * np.exp(config.exposure * rng.standard_normal()),
        shadow_strength=rng.uniform(0.5, 1.0) if rng.random() < _SHADOWS else 0.0,
        lamp_position=rng.uniform([-3, -3, 0.3], [3, 3, 2.8]),
        lamp_colour=lamp * np.exp(rng.normal(0, 0.15, 3)),
    )
    turn, tint = rng.random(), rng.uniform(0.6, 1.1) * np.exp(rng.normal(0, 0.08, 3))
    return Look(light, turn, tint)


def sample_place(
    rng: np.random.Generator,
    camera_centres: np.ndarray,
    config: RenderConfig,
    pictures: list[Path],
    room_rng: np.random.Generator | None = None,
) -> tuple[Room, np.ndarray | None]:
    """Draws a room, or a floor before a backdrop picture (h, w, 3) uint8 RGB.

    Args:
        camera_centres: (V, 3) m.
        pictures: of `config.backgrounds`.
        room_rng: draws the room of a rig, whose views all see one picture as it is. None: of a
            single image, whose picture may also be a collage, or a part of a photograph.

    Raises:
        UserError: a picture cannot be read.
    """
    outside = bool(pictures) and rng.random() < config.background_share
    collage = room_rng is None and not outside and rng.random() < config.collages
    room = sample_room(room_rng or rng, camera_centres, config, bare=outside or collage)
    picture, is_flat, window = None, True, WHOLE_PICTURE
    if outside:
        picture, is_flat = backdrops.read_picture(pictures[rng.integers(len(pictures))])
        if is_flat and room_rng is None:
            window = backdrops.sample_window(rng, picture)
    elif collage:
        picture = backdrops.sample_collage(rng)
    look = room.look._replace(flat_picture=is_flat, window=window)
    return room._replace(look=look), picture


def sample_room(
    rng: np.random.Generator, camera_centres: np.ndarray, config: RenderConfig, bare: bool = False
) -> Room:
    """Draws a room around cameras and person, with furniture out of their way.

    Args:
        camera_centres: (V, 3) m.
        bare: floor only, for use before a backdrop picture.
    """
    reach = np.abs(camera_centres[:, :2]).max() + rng.uniform(0.4, 2.5)
    width, depth = (reach * rng.uniform(1, 1.25, 2)).tolist()
    height = max(float(camera_centres[:, 2].max()) + 0.3, rng.uniform(2.5, 4.0))
    along, across, up = [2 * width, 0, 0], [0, 2 * depth, 0], [0, 0, height]
    parts, colours = [_quad([-width, -depth, 0], along, across, 0)], [cloth_pair(rng, 0.7)]
    styles = [[_pick(rng, (0, 1, 2, 3, 3, 5)), rng.uniform(0.8, 4), rng.uniform(0, 0.2), 0.8]]
    if not bare:
        sides = [
            ([-width, -depth, height], across, along),
            ([-width, -depth, 0], across, up),
            ([width, depth, 0], [0, -2 * depth, 0], up),
            ([width, -depth, 0], [-2 * width, 0, 0], up),
            ([-width, depth, 0], along, up),
        ]
        wall = cloth_pair(rng, 0.5)
        for material, (corner, u, v) in enumerate(sides, start=1):
            parts.append(_quad(corner, u, v, material))
            colours.append(wall if rng.random() < 0.5 and material > 1 else cloth_pair(rng, 0.5))
            pattern = _pick(rng, (0, 0, 2, 4, 5, 5, 6))
            styles.append([pattern, rng.uniform(0.6, 5), 0, rng.uniform(0.1, 0.9)])
        parts += _pictures(rng, (width, depth, height), colours, styles)
    first = sum(len(part) for part in parts)
    for _ in range(int(rng.integers(0, config.clutter + 1))):
        if len(colours) >= MAX_MATERIALS - 1:
            break
        box = _furniture(rng, np.array([width, depth]), camera_centres)
        if box is None:
            continue
        axes = turned_axes(rng.uniform(0, np.pi))
        parts.append(box_mesh(*box, axes, len(colours)))
        colours.append(cloth_pair(rng, 0.9))
        styles.append([_pick(rng, (0, 0, 1, 3, 4, 5, 6)), rng.uniform(1.5, 12), 0.1, 0.7])
    mesh = np.concatenate(parts).astype(np.float32)
    return Room(mesh, first, np.array(colours), np.array(styles, float), sample_look(rng, config))


def with_seat(room: Room, joints: np.ndarray) -> Room:
    """Puts a stool below a sitting person's hips, turned as they are; none where they are too low.

    Args:
        joints: (17, 3) m, in the order of `ptri.skeleton.H36M17`.
    """
    hips = joints[[2, 3]]
    height = hips[:, 2].mean() - _SEAT_BELOW_HIPS
    if not 0.15 < height < 0.8:
        return room
    across = hips[1] - hips[0]
    # 1 um guards hips above one another.
    back = np.array([-across[1], across[0]]) / max(np.linalg.norm(across[:2]), 1e-6)
    centre = hips.mean(0)[:2] + 0.06 * back
    axes = turned_axes(float(np.arctan2(across[1], across[0])))
    half = np.array([0.19, 0.19, height / 2])
    box = box_mesh(np.append(centre, height / 2), half, axes, len(room.colours) - 1)
    return room._replace(mesh=np.concatenate([room.mesh, box.astype(np.float32)]))


def turned_axes(turn: float) -> np.ndarray:
    """Axes (3, 3), one per row, turned about the vertical (rad)."""
    c, s = np.cos(turn), np.sin(turn)
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def _direction(azimuth: float, height: float) -> np.ndarray:
    level = np.cos(height)
    return np.array([np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(height)])


def _pick(rng: np.random.Generator, values: tuple[int, ...]) -> int:
    return values[rng.integers(len(values))]  # rng.choice takes ten times as long


def cloth_pair(rng: np.random.Generator, saturation: float) -> np.ndarray:
    """Two related colours, linear RGB (2, 3)."""
    grey = rng.uniform(0.15, 0.95)
    saturation *= rng.random() ** 1.5  # most walls are nearly grey
    pair = np.empty((2, 3))
    pair[0] = grey + saturation * rng.uniform(-0.45, 0.45, 3)
    if rng.random() < 0.4:
        pair[1] = rng.uniform(0.1, 0.95) + saturation * rng.uniform(-0.45, 0.45, 3)
    else:
        pair[1] = pair[0] * rng.uniform(0.5, 1.4)
    return np.minimum(np.maximum(pair, 0.02), 1) ** 2.2


def _quad(corner, u, v, material: int) -> np.ndarray:
    """Two triangles (6, 9) of a parallelogram; the normal is u x v."""
    (ux, uy, uz), (vx, vy, vz) = u, v
    normal = (uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx)
    area = math.sqrt(sum(x * x for x in normal))
    mesh = np.empty((6, 9))
    mesh[:, :3] = _SQUARE @ np.array([u, v]) + corner
    mesh[:, 3:6] = [x / max(area, 1e-9) for x in normal]  # 1e-9 m^2: as in `triangles_mesh`
    mesh[:, 6:8] = _SQUARE * [math.hypot(*u), math.hypot(*v)]
    mesh[:, 8] = material
    return mesh


def triangles_mesh(corners: np.ndarray, material: int) -> np.ndarray:
    """A scene mesh (3 N, 9) of triangles (N, 3, 3) m, counter-clockwise seen from outside."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    # 1e-9 m^2 guards triangles without an area.
    normal /= np.maximum(np.sqrt((normal**2).sum(1, keepdims=True)), 1e-9)
    points = corners.reshape(-1, 3)
    mesh = np.empty((len(points), 9))
    mesh[:, :3], mesh[:, 3:6] = points, np.repeat(normal, 3, 0)
    mesh[:, 6:8], mesh[:, 8] = points[:, :2] + points[:, 2:], material
    return mesh


def box_mesh(centre: np.ndarray, half: np.ndarray, axes: np.ndarray, material: int) -> np.ndarray:
    """A box as a scene mesh (36, 9). half: (3,) m; axes: (3, 3), one per row."""
    centre, half = np.asarray(centre, float), np.asarray(half, float)
    mesh = np.empty((36, 9))
    mesh[:, :3] = centre + (_CUBE[:, :3] * half) @ axes
    mesh[:, 3:6] = _CUBE[:, 3:6] @ axes
    mesh[:, 6:8], mesh[:, 8] = _CUBE_UV @ (2 * half), material
    return mesh


def _cube() -> tuple[np.ndarray, np.ndarray]:
    """Corners and normals (36, 6) of the cube +-1, and maps (36, 2, 3) from sizes to uv."""
    rows, maps = [], []
    for axis in range(3):
        for sign in (1.0, -1.0):
            n, u, v = np.zeros((3, 3))
            n[axis], u[(axis + 1) % 3], v[(axis + 2) % 3] = sign, 1, sign
            for a, b in _SQUARE:
                rows.append([*(n + (2 * a - 1) * u + (2 * b - 1) * v), *n])
                maps.append([a * np.abs(u), b * np.abs(v)])
    return np.array(rows), np.array(maps)


_SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]], float)
_CUBE, _CUBE_UV = _cube()


def _pictures(rng, size, colours: list, styles: list) -> list[np.ndarray]:
    """Posters, windows and doors: rectangles a centimetre before the walls."""
    parts = []
    x1, y1, z1 = size  # half of the width, half of the depth, height
    for _ in range(int(rng.integers(0, 5))):
        width, height = rng.uniform(0.4, 2.2), rng.uniform(0.4, 1.8)
        low = rng.uniform(0, max(z1 - height, 0.1))
        along = rng.uniform(-0.8, 0.8)
        gap = 0.015
        wall = rng.integers(4)
        if wall < 2:
            x, sign = (gap - x1, 1) if wall == 0 else (x1 - gap, -1)
            corner, across = [x, along * y1 - sign * width / 2, low], [0, sign * width, 0]
        else:
            y, sign = (gap - y1, -1) if wall == 2 else (y1 - gap, 1)
            corner, across = [along * x1 - sign * width / 2, y, low], [sign * width, 0, 0]
        quad = _quad(corner, across, [0, 0, height], len(colours))
        if wall >= 2:  # u x v points outwards there
            quad[:, 3:6] *= -1
        parts.append(quad)
        colours.append(cloth_pair(rng, 1.2))
        styles.append([_pick(rng, (0, 1, 2, 4, 5, 6)), rng.uniform(1, 10), 0.1, 1.0])
    return parts


def _furniture(
    rng: np.random.Generator, extent: np.ndarray, cameras: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre and half size of a box, or None where the draw stands in the way."""
    half = [rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.6), rng.uniform(0.15, 0.6)]
    if rng.random() < 0.25:
        half[2] = rng.uniform(0.6, 1.1)
    x, y = (rng.uniform(-0.92, 0.92, 2) * extent).tolist()
    radius = math.hypot(*half[:2])
    if math.hypot(x, y) < _KEEP_FREE + radius:
        return None
    for cx, cy in cameras[:, :2].tolist():
        share = min(max((x * cx + y * cy) / (cx * cx + cy * cy), 0), 1.1)
        if math.hypot(x - share * cx, y - share * cy) < radius + 0.45:
            return None
    return np.array([x, y, half[2]]), np.array(half)
