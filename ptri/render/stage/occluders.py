"""Things between camera and person: furniture, rails, posts, plants, and objects held in a hand.

Meshes are those of `ptri.render.stage.room.Room`, (N, 9) float32. World: z up, metres.
"""

from __future__ import annotations

import numpy as np

from ptri.render.stage.cameras import Camera
from ptri.render.stage.room import (
    MAX_MATERIALS,
    Room,
    box_mesh,
    cloth_pair,
    triangles_mesh,
    turned_axes,
)


def add_occluder(rng: np.random.Generator, room: Room, camera: Camera, joints: np.ndarray) -> Room:
    """Puts one thing between a camera and a person, over a part of the person.

    Args:
        joints: (N, 3) m of the person, in all frames that the thing stands there.
    """
    depth = camera.project(joints)[:, 2]
    nearest = depth.min() - 0.3
    if nearest < 0.5 or len(room.colours) >= MAX_MATERIALS:
        return room
    covered = joints[rng.integers(len(joints))] + rng.normal(0, 0.08, 3)
    share = rng.uniform(max(0.3, 0.35 / nearest), 1.0)
    place = camera.centre + (covered - camera.centre) * share * nearest / max(nearest, depth.mean())
    kinds = (_furniture, _furniture, _rail, _post, _plant, _blob, _blob)
    make = kinds[rng.integers(len(kinds))]
    height = float(np.ptp(joints[:, 2])) * np.linalg.norm(place - camera.centre)
    height /= max(depth.mean(), 0.1)  # what the person's height shrinks to at that distance
    material = len(room.colours)
    return _with_mesh(room, make(rng, place, height, material, camera), rng)


def add_held(rng: np.random.Generator, room: Room, joints: np.ndarray) -> Room:
    """Puts something into one of a person's hands: a stick, bag, book, cup or ball.

    Args:
        joints: (17, 3) m in the order of `ptri.skeleton.H36M17`.
    """
    if len(room.colours) >= MAX_MATERIALS:
        return room
    elbow, wrist = (joints[11], joints[10]) if rng.random() < 0.5 else (joints[14], joints[15])
    along = (wrist - elbow) / max(np.linalg.norm(wrist - elbow), 1e-6)  # 1 um: joints coincide
    hand = wrist + 0.1 * along
    kind = rng.random()
    material = len(room.colours)
    if kind < 0.3:  # stick, racket, umbrella: across the hand
        half = np.array([0.012, 0.012, rng.uniform(0.2, 0.6)])
        axes = _random_axes(rng)
        mesh = box_mesh(hand + axes[2] * rng.uniform(0, 0.4) * half[2], half, axes, material)
    elif kind < 0.55:  # bag, hanging
        half = rng.uniform([0.1, 0.03, 0.1], [0.22, 0.1, 0.25])
        axes = turned_axes(rng.uniform(0, 2 * np.pi))
        mesh = box_mesh(hand - _up(half[2] + 0.05), half, axes, material)
    elif kind < 0.8:  # book, phone, cup
        half = rng.uniform([0.03, 0.005, 0.05], [0.14, 0.05, 0.18])
        mesh = box_mesh(hand, half, _random_axes(rng), material)
    else:
        mesh = _ball(hand + 0.1 * along, rng.uniform(0.05, 0.16), material)
    return _with_mesh(room, mesh, rng)


def _with_mesh(room: Room, mesh: np.ndarray, rng: np.random.Generator) -> Room:
    style = [rng.choice([0, 0, 1, 3, 4, 5, 6]), rng.uniform(1.5, 14), rng.uniform(0, 0.3), 0.8]
    return room._replace(
        mesh=np.concatenate([room.mesh, mesh.astype(np.float32)]),
        colours=np.concatenate([room.colours, cloth_pair(rng, 1.0)[None]]),
        styles=np.concatenate([room.styles, [style]]),
    )


def _furniture(rng, place, height, material, camera) -> np.ndarray:
    """A block that stands on the floor and reaches up to the place: table, sofa, counter, crate."""
    top = float(np.clip(place[2], 0.1, 1.3))
    half = np.array([rng.uniform(0.15, 0.6) * height, rng.uniform(0.05, 0.25) * height, top / 2])
    axes = _facing(camera, place, rng)
    middle = np.array([place[0], place[1], top / 2])
    if rng.random() < 0.4:  # a table: a board on legs
        thick = rng.uniform(0.02, 0.05)
        board = box_mesh(middle + _up(top / 2 - thick), [*half[:2], thick], axes, material)
        out = half[:2] - 0.03
        legs = [
            box_mesh(middle + x * axes[0] + y * axes[1], [0.02, 0.02, top / 2], axes, material)
            for x in (-out[0], out[0])
            for y in (-out[1], out[1])
        ]
        return np.concatenate([board, *legs])
    return box_mesh(middle, half, axes, material)


def _rail(rng, place, height, material, camera) -> np.ndarray:
    """Bars, level or upright, and their posts: a fence, banister or window frame."""
    axes = _facing(camera, place, rng)
    width, thick = rng.uniform(0.5, 1.2) * height, rng.uniform(0.006, 0.022) * height
    count = int(rng.integers(1, 6))
    level = rng.random() < 0.5
    parts = []
    for offset in np.linspace(-0.5, 0.5, count) if count > 1 else [0.0]:
        if level:
            middle = place + _up(offset * 0.5 * height)
            parts.append(box_mesh(middle, [width / 2, thick, thick], axes, material))
        else:
            middle = place + offset * width * axes[0]
            parts.append(box_mesh(middle, [thick, thick, 0.35 * height], axes, material))
    return np.concatenate(parts)


def _post(rng, place, height, material, camera) -> np.ndarray:
    """A trunk, column or door frame, from the floor up."""
    half = np.array([rng.uniform(0.02, 0.1) * height, 0.05 * height, rng.uniform(0.8, 1.6)])
    middle = np.array([place[0], place[1], half[2]])
    return box_mesh(middle, half, _facing(camera, place, rng), material)


def _plant(rng, place, height, material, camera) -> np.ndarray:
    """Leaves about a place, more to the bottom."""
    count = int(rng.integers(15, 60))
    spread = np.array([0.18, 0.18, 0.25]) * height
    middle = place + rng.normal(0, 1, (count, 3)) * spread - _up(0.1 * height)
    along = rng.normal(0, 1, (count, 3)) + _up(0.8)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    across = np.cross(along, rng.normal(0, 1, (count, 3)))
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)  # parallel draws
    length = rng.uniform(0.04, 0.13, (count, 1)) * height
    width = length * rng.uniform(0.15, 0.5)
    tip, left, right = middle + length * along, middle + width * across, middle - width * across
    corners = np.stack([middle - length * along, left, right, right, left, tip], 1)  # (N, 6, 3)
    return triangles_mesh(corners.reshape(-1, 3, 3), material)


def _blob(rng, place, height, material, camera) -> np.ndarray:
    """Something out of focus near the camera: a box in any attitude."""
    half = rng.uniform(0.04, 0.22, 3) * height
    return box_mesh(place, half, _random_axes(rng), material)


def _ball(middle: np.ndarray, radius: float, material: int) -> np.ndarray:
    """A coarse sphere of 8 x 5 faces."""
    polar, turn = np.meshgrid(np.linspace(0, np.pi, 6), np.linspace(0, 2 * np.pi, 9), indexing="ij")
    level = [np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn)]
    grid = np.stack([*level, np.cos(polar)], -1)
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    corners = np.stack([a, d, c, a, c, b], -2).reshape(-1, 3, 3)
    mesh = triangles_mesh(middle + radius * corners, material)
    mesh[:, 3:6] = corners.reshape(-1, 3)  # smooth normals
    return mesh


def _facing(camera: Camera, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Upright axes (3, 3, rows) whose first runs across the camera's view, give or take."""
    toward = place - camera.centre
    return turned_axes(np.arctan2(toward[1], toward[0]) - np.pi / 2 + rng.normal(0, 0.4))


def _up(height: float) -> np.ndarray:
    return np.array([0.0, 0.0, height])


def _random_axes(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(0, 1, (3, 3)))
    return q * np.sign(np.linalg.det(q))
