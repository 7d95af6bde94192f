"""Single images, each with a person, pose, clothes, place, light and camera of its own.

An image is a function of (seed, subject, index): any worker may make it, in any order. A subject
here is a crowd of `config.people` dressed bodies that its images draw from; another subject has
other bodies. World: z up, metres, the person above the origin.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptri.data import transforms
from ptri.render import truth
from ptri.render.draw import sensor
from ptri.render.draw.gl import FAR, Renderer
from ptri.render.people.person import Person, make_rng, sample_person
from ptri.render.people.poses import Pose, sample_poses
from ptri.render.people.posing import coco_keypoints, pose
from ptri.render.people.tailor import recolour
from ptri.render.settings import RenderConfig
from ptri.render.stage import backdrops, cameras, occluders
from ptri.render.stage.cameras import Camera
from ptri.render.stage.room import SEATED, Room, sample_place, with_seat

_MIN_VISIBLE = 6  # joints; an image that hides more is made again without what hides them
_POINT_STEP = 16  # every so many vertices frame a person
_PURPOSES = {"pose": 1, "image": 2, "other pose": 3, "person": 4}


class Shot(NamedTuple):
    """An image and what is true of it. Joints in mm, world; K, R, t: x_cam = R x + t, t in mm."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    K: np.ndarray  # (3, 3) px
    R: np.ndarray  # (3, 3)
    t: np.ndarray  # (3,) mm
    joints: np.ndarray  # (17, 3) mm, Human3.6M's
    coco: np.ndarray  # (17, 3) mm, COCO's
    visible: np.ndarray  # (17,) bool
    coco_visible: np.ndarray  # (17,) bool
    boxes: np.ndarray  # (4,) int16 px: top, left, bottom, right
    kind: str  # of the pose
    mask: np.ndarray | None  # (h, w) bool, the person's visible pixels, where asked for
    cropped: bool  # the image is the wanted crop of the person's box


class Crop(NamedTuple):
    """The square about a person's box that an image shows, as a training crop."""

    low: float  # its side over the box's longer side, from ...
    high: float  # ... to
    shift: float  # its middle moves by up to this share of its side


class _Body(NamedTuple):
    """A posed person."""

    person: Person
    points: np.ndarray  # (Q, 3) m
    normals: np.ndarray  # (Q, 3)
    joints: np.ndarray  # (17, 3) m
    coco: np.ndarray  # (17, 3) m
    shift: np.ndarray  # (3,) m, from where `pose` put it


class Studio:
    """Keeps what images share: the OpenGL context, bodies and backdrop pictures.

    Args:
        masks: also find the person's visible pixels.
        crop: makes the images such crops, but for people whom the frame cuts off; None: the
            framing is `config`'s.

    Raises:
        UserError: no pictures in `config.backgrounds`, no motion in `config.mocap`.
        RuntimeError: no OpenGL.
    """

    def __init__(self, config: RenderConfig, masks: bool = False, crop: Crop | None = None):
        self.config, self.masks, self.crop = config, masks, crop
        self._renderer = Renderer(config.size, config.size, config.samples)
        self._people = functools.lru_cache(maxsize=2 * config.people)(self._make_person)
        self._pictures = backdrops.list_pictures(config.backgrounds)

    def shoot(
        self, keys: Sequence[tuple[int, int, int]], lenses: Sequence[np.ndarray] | None = None
    ) -> list[Shot]:
        """Makes the images of some keys (seed, subject, index).

        Args:
            lenses: K (3, 3) px for each key in place of drawn ones.
        """
        seeds = [(*key, _PURPOSES[what]) for what in ("pose", "other pose") for key in keys]
        poses = sample_poses(self.config, seeds)
        lenses = [None] * len(keys) if lenses is None else lenses
        shots = []
        for key, what, other, lens in zip(keys, poses, poses[len(keys) :], lenses):
            shot = self._shoot(key, what, other, lens)
            if shot.visible.sum() < _MIN_VISIBLE:
                shot = self._shoot(key, what, None, lens)
            shots.append(shot)
        return shots

    @property
    def driver(self) -> str:
        """The OpenGL driver's name."""
        return self._renderer.context.info["GL_RENDERER"]

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()

    def _shoot(
        self, key: tuple[int, int, int], what: Pose, other: Pose | None, lens: np.ndarray | None
    ) -> Shot:
        """other: of somebody else; None: nobody and nothing may hide the person."""
        config, renderer = self.config, self._renderer
        rng = make_rng(*key, _PURPOSES["image"])
        body = self._pose(key, rng, what)
        points = body.points[::_POINT_STEP]
        K = cameras.sample_lens(rng, config) if lens is None else lens
        camera = cameras.place_camera(rng, config, K, points, body.joints)
        cropped = False
        if self.crop is not None:
            camera, cropped = self._cropped(rng, camera, body.points)
        room, picture = sample_place(rng, camera.centre[None], config, self._pictures)
        renderer.set_picture(picture)
        if what.kind in SEATED:
            room = with_seat(room, body.joints)
        chances = config.held, config.occluders, config.second_person, config.motion_blur
        held, hidden, accompanied, blurred = rng.random(4) < chances
        side_rng = make_rng(*key, _PURPOSES["other pose"])
        if held:
            room = occluders.add_held(side_rng, room, body.joints)
        if hidden and other is not None:
            for _ in range(int(side_rng.integers(1, 3))):
                room = occluders.add_occluder(side_rng, room, camera, body.joints)
        second = None
        if accompanied and other is not None:
            second = _beside(side_rng, self._pose(key, side_rng, other), camera, body)
        drawn = [body] if second is None else [body, second]
        image, depth = self._draw(drawn, room, camera, what if blurred else None)
        image = sensor.expose(image, sensor.sample_sensor(rng, config), rng)
        mask = None
        if self.masks:
            alone = renderer.person_depth(*camera)
            mask = (alone < 0.99 * FAR) & (alone < depth + 0.02)
        renderer.end_pose()
        label = truth.label(body.points, body.joints, body.coco, camera, depth)
        joints, coco = 1000 * body.joints, 1000 * body.coco
        K, R, t = camera.K, camera.R, 1000 * camera.t
        return Shot(image, K, R, t, joints, coco, *label, what.kind, mask, cropped)

    def _cropped(
        self, rng: np.random.Generator, camera: Camera, points: np.ndarray
    ) -> tuple[Camera, bool]:
        """The camera of the wanted crop, and whether there is one: not of people cut off."""
        size, crop = self.config.size, self.crop
        share, move = rng.uniform(crop.low, crop.high), rng.uniform(-crop.shift, crop.shift, 2)
        pixels = camera.project(points)[:, :2]
        if pixels.min() < 0 or pixels.max() > size - 1:
            return camera, False
        centre, side = transforms.square_crop(truth.find_box(points, camera, size), share)
        K, _ = transforms.crop_camera(camera.K, centre + side * move, side, size)
        return camera._replace(K=K), True

    def _draw(
        self, drawn: list[_Body], room: Room, camera: Camera, moving: Pose | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The picture and its depth; of a moving pose, the mean of its three moments."""
        renderer = self._renderer
        for slot, body in enumerate(drawn):
            renderer.set_person(body.person.dressed, slot)
        posed = {slot: (body.points, body.normals) for slot, body in enumerate(drawn)}
        main, moments = drawn[0], []
        for moment in (0, 2) if moving is not None else ():
            transforms, _ = pose(main.person.rig, moving.rotations[[moment]], np.zeros((1, 3)))
            points, normals = main.person.skin(transforms[0])
            renderer.pose({**posed, 0: (points + main.shift, normals)}, room)
            moments.append(renderer.draw(*camera).astype(np.float32))
            renderer.end_pose()
        renderer.pose(posed, room)
        image, depth = renderer.draw(*camera), renderer.depth()
        if moments:
            image = ((moments[0] + image + moments[1]) / 3).astype(np.uint8)
        return image, depth

    def _pose(self, key: tuple[int, ...], rng: np.random.Generator, what: Pose) -> _Body:
        """A person of the subject's crowd in new colours, on the floor above the origin."""
        person = self._people(key[0], key[1], int(rng.integers(self.config.people)))
        person = person._replace(dressed=recolour(person.dressed, rng))
        transforms, joints = pose(person.rig, what.rotations[[1]], np.zeros((1, 3)))
        points, normals = person.skin(transforms[0])
        low, high = points.min(0), points.max(0)
        shift = -np.append((low + high)[:2] / 2, low[2])
        coco = coco_keypoints(person.rig, transforms)[0]
        return _Body(person, points + shift, normals, joints[0] + shift, coco + shift, shift)

    def _make_person(self, *key: int) -> Person:
        person = sample_person(make_rng(*key, _PURPOSES["person"]), self.config, any_age=True)
        # The naked body's vertices, a third of the memory, are of no more use.
        return person._replace(shape=person.shape._replace(vertices=np.zeros((0, 3), np.float32)))


def _beside(rng: np.random.Generator, other: _Body, camera: Camera, body: _Body) -> _Body | None:
    """Somebody else beside, behind or in front; None where there is no room."""
    depth = float(camera.project(body.joints)[:, 2].mean())
    kind = rng.random()
    if kind < 0.5:  # beside
        away, aside = rng.uniform(-0.4, 0.6), rng.uniform(0.45, 1.3)
    elif kind < 0.85:  # behind
        away, aside = rng.uniform(0.5, 4.0), rng.uniform(0.0, 1.5)
    else:  # in front
        away, aside = -rng.uniform(0.3, 0.5) * depth, rng.uniform(0.25, 0.8)
    if depth + away < 0.9:
        return None
    forward = camera.R[2] * [1, 1, 0]
    forward /= max(np.linalg.norm(forward), 1e-6)  # a camera that looks straight down
    across = np.array([-forward[1], forward[0], 0]) * rng.choice([-1, 1])
    middle = body.joints.mean(0) * [1, 1, 0]
    move = middle + away * forward + aside * across
    return other._replace(points=other.points + move, shift=other.shift + move)
