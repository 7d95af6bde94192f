"""What the renderer's tests share: an OpenGL context, a dressed person, cameras about them.

A module that imports this is skipped without the `render` extra; a test that draws, without EGL.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("anny")
pytest.importorskip("moderngl")

from ptri.people.articulation import ANGLES, INDEX, angles_to_rotations, global_rotations
from ptri.render.draw.gl import FAR, Renderer
from ptri.render.people.person import Dressed, Person, make_rng, sample_person
from ptri.render.people.posing import pose
from ptri.render.settings import RenderConfig
from ptri.render.stage.cameras import Camera
from ptri.render.stage.room import Room, sample_room

SIZE, FACES = 160, 2000
LOOKS = RenderConfig(clutter=0, faces=FACES, lamps=0)
GARMENTS = Path(__file__).resolve().parents[1] / "../shared/data/makehuman_cc0"


@functools.cache
def renderer() -> Renderer:
    try:
        return Renderer(SIZE, SIZE, samples=0)
    except RuntimeError as error:
        pytest.skip(str(error))


@functools.cache
def person(seed: int = 11, **changes) -> Person:
    return sample_person(make_rng(seed), RenderConfig(**{"faces": FACES, **changes}))


def pose_of(person: Person, **degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Driver transforms and joints of a standing body that faces -y, some joint angles set."""
    angles = torch.zeros(1, len(ANGLES))
    for name, value in degrees.items():
        angles[0, INDEX[name]] = np.radians(value)
    parts = global_rotations(*angles_to_rotations(angles)).double().numpy()
    transforms, joints = pose(person.rig, parts, np.array([[0, 0, person.rig.joints[6, 2]]]))
    return transforms[0], joints[0]


class Picture(NamedTuple):
    image: np.ndarray  # (SIZE, SIZE, 3) uint8
    depth: np.ndarray  # (SIZE, SIZE) m
    masks: list[np.ndarray]  # (SIZE, SIZE) bool, each person alone


def take(camera: Camera, room: Room, *people: tuple[Dressed, np.ndarray, np.ndarray]) -> Picture:
    """A picture of people, each drawn at its own points and normals."""
    for slot, (dressed, *_) in enumerate(people):
        renderer().set_person(dressed, slot)
    renderer().pose({slot: posed for slot, (_, *posed) in enumerate(people)}, room)
    image, depth = renderer().draw(*camera), renderer().depth()
    masks = [renderer().person_depth(*camera, slot) < 0.99 * FAR for slot in range(len(people))]
    renderer().end_pose()
    return Picture(image, depth, masks)


def empty_room(bare: bool = False) -> Room:
    return sample_room(make_rng(0), np.array([[4.0, 0, 1]]), LOOKS, bare=bare)


def level_camera(azimuth: float) -> Camera:
    """A level camera 4 m away that sees a standing person."""
    centre = np.array([4 * np.cos(azimuth), 4 * np.sin(azimuth), 1.0])
    forward = -np.array([np.cos(azimuth), np.sin(azimuth), 0])
    right = np.cross(forward, [0, 0, 1])
    R = np.stack([right, np.cross(forward, right), forward])
    K = np.array([[1.4 * SIZE, 0, SIZE / 2], [0, 1.4 * SIZE, SIZE / 2], [0, 0, 1]])
    return Camera(K, R, -R @ centre)
