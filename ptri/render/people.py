"""Puts it together: people, motions, rigs and rooms of a rendered data set, all from seeds.

A subject is a person (or, with ``variety="action"``, a new one for every action) before a rig of
static cameras; an action is a clip of smooth motion in a room of its own. Every random choice comes
from (seed, subject, action), so that any worker can make any part.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ptri.people.bodies import kind_indices, sample_motions
from ptri.people.draws import Draws
from ptri.people.rigs import family_indices, sample_rigs
from ptri.render import backdrops, sensor, truth
from ptri.render import scene as scenes
from ptri.render.body import (
    BodyShape,
    build_shapes,
    grow_down,
    load_body_model,
    sample_phenotypes,
)
from ptri.render.cameras import Camera
from ptri.render.garment_files import open_folder
from ptri.render.gl import Renderer
from ptri.render.posing import RiggedBody, bind, part_rotations, pose, skin
from ptri.render.settings import ACTION_KINDS, RenderSettings
from ptri.render.tailor import dress_in_garments, recolour
from ptri.render.wardrobe import Dressed, dress
from ptri.render_config import RenderConfig
from ptri.skeleton import H36M17

SEATED = ("sit", "sit_crossed")


class RenderRig(NamedTuple):
    """A rig's cameras: x_cam = R x_world + t, world z up."""

    K: np.ndarray  # (V, 3, 3) px
    R: np.ndarray  # (V, 3, 3)
    t: np.ndarray  # (V, 3) mm

    @property
    def centres(self) -> np.ndarray:
        """Camera centres (V, 3) mm, world."""
        return -np.einsum("vji,vj->vi", self.R, self.t)


class Person(NamedTuple):
    """A dressed body."""

    shape: BodyShape
    rig: RiggedBody
    dressed: Dressed

    @property
    def skin_data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, rest vertices and normals, as `ptri.render.posing.skin` takes them."""
        return self.dressed.weights, self.dressed.vertices, self.dressed.normals

    def recoloured(self, rng: np.random.Generator) -> Person:
        """The same body in clothes of the same cut, with other colours, skin and hair."""
        return self._replace(dressed=recolour(self.dressed, rng))


class Clip(NamedTuple):
    """A posed clip; lowest point of the body on the floor in every frame."""

    transforms: np.ndarray  # (T, D, 3, 4) m
    joints: np.ndarray  # (T, 17, 3) m, world
    kind: str


def make_rng(*key: int) -> np.random.Generator:
    """A generator that depends on all the numbers of a key."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(list(key))))


def sample_person(
    rng: np.random.Generator,
    num_faces: int,
    garments: str = "",
    garment_share: float = 1.0,
    clothed: float = 1.0,
) -> Person:
    """Draws an adult and clothes, by the settings of these names.

    Raises:
        UserError: the garment folder is missing or a file of it is damaged.
    """
    phenotypes = {k: v[:1] for k, v in sample_phenotypes(2, rng).items()}
    return _dressed(rng, phenotypes, num_faces, garments, garment_share, clothed)


def sample_anybody(rng: np.random.Generator, config: RenderConfig) -> Person:
    """Draws somebody of any age and clothes.

    Raises:
        UserError: as `sample_person`.
    """
    phenotypes = {k: v[:1] for k, v in sample_phenotypes(2, rng).items()}
    young, age, size = rng.random() < config.children, rng.random(), rng.random()
    if young:
        grow_down(phenotypes, np.array([age]), np.array([size]))
    return _dressed(
        rng, phenotypes, config.faces, config.garments, config.garment_share, config.clothed
    )


def _dressed(
    rng: np.random.Generator,
    phenotypes: dict,
    num_faces: int,
    garments: str,
    share: float,
    clothed: float,
) -> Person:
    model = load_body_model()
    shape = build_shapes(model, phenotypes)[0]
    rig = bind(model, shape)
    if clothed < 1 and rng.random() >= clothed:
        return Person(shape, rig, dress(model, shape, rig, rng, num_faces, tight=True))
    if garments and rng.random() < share:
        folder = open_folder(garments)
        return Person(shape, rig, dress_in_garments(model, shape, rig, rng, folder, num_faces))
    return Person(shape, rig, dress(model, shape, rig, rng, num_faces))


def sample_clip(person: Person, kind: str, num_frames: int, fps: float, seed: int) -> Clip:
    """Draws a motion and poses the body with it; the path is centred above the origin.

    Args:
        kind: one of `ptri.people.motions.KINDS`.
    """
    child, parent = np.array(H36M17.bones).T
    joints = 1000 * person.shape.joints
    lengths = torch.from_numpy(np.linalg.norm(joints[child] - joints[parent], axis=-1)).float()
    draws = Draws.from_torch(torch.Generator().manual_seed(seed))
    motion = sample_motions(draws, kind_indices([kind]), num_frames, fps, lengths.unsqueeze(0))
    parts = part_rotations(motion.rotations[0], motion.root_rotation[0])
    root = motion.root_translation[0].double().numpy() / 1000
    transforms, joints = pose(person.rig, parts, root)
    for frame in range(num_frames):
        points, _ = skin(transforms[frame], *person.skin_data)
        lowest = points[:, 2].min()
        transforms[frame, :, 2, 3] -= lowest
        joints[frame, :, 2] -= lowest
    return Clip(transforms, joints, kind)


def sample_rig(settings: RenderSettings, subject: int) -> RenderRig:
    """The rig of a subject: every camera sees `settings.reach` around the origin."""
    families = family_indices(settings.rig.split("+"), "--rig")
    draws = Draws.from_seeds([(settings.seed, subject, i, 77) for i in range(len(families))])
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = 1000 * settings.reach * np.stack([np.cos(turn), np.sin(turn)], 1)
    points = [np.column_stack([ring, np.full(12, z)]) for z in (0.0, 1000.0, 2100.0)]
    points = torch.from_numpy(np.concatenate(points)).float()
    sampled = sample_rigs(
        draws,
        families,
        points.expand(len(families), 1, -1, -1),
        settings.cameras // len(families),
        max_truncated=0.0,
    )
    K, R, t = (value.double().flatten(0, 1).numpy() for value in sampled.cameras)
    size = sampled.size.double().flatten(0, 1).numpy()
    # A square from the middle of each image, at our resolution.
    side = size.min(1)
    scale = settings.size / side
    middle = (K[:, :2, 2] - (size - side[:, None]) / 2 + 0.5) * scale[:, None] - 0.5
    square = np.zeros_like(K)
    square[:, 0, 0], square[:, 1, 1] = K[:, 0, 0] * scale, K[:, 1, 1] * scale
    square[:, :2, 2], square[:, 2, 2] = middle, 1
    seen = points.double().numpy() @ R.transpose(0, 2, 1) + t[:, None]
    slope = np.abs(seen[..., :2] / seen[..., 2:])
    edge = np.minimum(middle, settings.size - 1 - middle)[:, None]
    focal = square[:, [0, 1], [0, 1]]
    reach = (slope * focal[:, None] / edge).max((1, 2))
    zoom = 1 / reach if settings.tight else np.minimum(1, 1 / reach)
    square[:, [0, 1], [0, 1]] = focal * zoom[:, None]
    order = make_rng(settings.seed, subject, 78).permutation(settings.cameras)
    return RenderRig(square[order], R[order], t[order])


class Action(NamedTuple):
    """The labels of a rendered action."""

    joints: np.ndarray  # (T, 17, 3) float32 mm, world, Human3.6M's
    coco: np.ndarray  # (T, 17, 3) float32 mm, world, COCO's
    visible: np.ndarray  # (T, V, 17) bool
    coco_visible: np.ndarray  # (T, V, 17) bool
    boxes: np.ndarray  # (T, V, 4) int16 px: top, left, bottom, right
    frames: np.ndarray  # (T,) int32, 0-based at 50 fps
    kind: str
    stature: float  # m


def render_action(settings: RenderSettings, renderer: Renderer, subject: int, action: int, write):
    """Renders one action of one subject.

    Args:
        renderer: of images `settings.size` square.
        subject, action: indices into the settings' lists.
        write: called with (camera, 0-based frame number, (h, w, 3) uint8 RGB) for each image.

    Returns:
        The `Action`.
    """
    rng = make_rng(settings.seed, subject, action, 1)
    whose = rng if settings.variety == "action" else make_rng(settings.seed, subject, 0, 2)
    person = sample_person(
        whose, settings.faces, settings.garments, settings.garment_share, settings.clothed
    )
    kinds = ACTION_KINDS[settings.actions[action].split("-")[0]]
    kind = kinds[rng.integers(len(kinds))]
    clip = sample_clip(person, kind, settings.frames, settings.fps, int(rng.integers(2**31)))
    rig = sample_rig(settings, subject)
    room_rng = rng if settings.variety == "action" else make_rng(settings.seed, subject, 0, 3)
    pictures = backdrops.list_pictures(settings.backgrounds) if settings.backgrounds else []
    outside = bool(pictures) and rng.random() < settings.background_share
    room = scenes.sample_room(room_rng, rig.centres / 1000, settings, bare=outside)
    renderer.set_picture(None)
    if outside:
        picture, is_flat = backdrops.read_picture(pictures[rng.integers(len(pictures))])
        renderer.set_picture(picture)
        room = room._replace(look=room.look._replace(flat_picture=is_flat))
    views = range(settings.cameras)
    sensors = [sensor.sample_sensor(rng, settings) for _ in views]
    cameras = [Camera(rig.K[i], rig.R[i], rig.t[i] / 1000) for i in views]
    renderer.set_person(person.dressed)
    surface = truth.Surface(person.shape, person.rig)
    step = max(1, round(50 / settings.fps))
    coco = np.stack([surface.coco(transforms) for transforms in clip.transforms])
    boxes = np.zeros((settings.frames, settings.cameras, 4), np.int16)
    visible = np.zeros((settings.frames, settings.cameras, 17), bool)
    coco_visible = visible.copy()
    for frame in range(settings.frames):
        points, normals = skin(clip.transforms[frame], *person.skin_data)
        current = scenes.with_seat(room, clip.joints[frame]) if kind in SEATED else room
        renderer.pose({0: (points, normals)}, current)
        for i, camera in enumerate(cameras):
            image = sensor.expose(renderer.draw(*camera), sensors[i], rng)
            depth = renderer.depth()
            boxes[frame, i] = truth.find_box(points, camera, settings.size)
            visible[frame, i] = truth.find_visible(
                clip.joints[frame], truth.radii("h36m17"), camera, depth
            )
            coco_visible[frame, i] = truth.find_visible(
                coco[frame], truth.radii("coco17"), camera, depth
            )
            write(i, frame * step, image)
        renderer.end_pose()
    return Action(
        joints=(1000 * clip.joints).astype(np.float32),
        coco=(1000 * coco).astype(np.float32),
        visible=visible,
        coco_visible=coco_visible,
        boxes=boxes,
        frames=np.arange(settings.frames, dtype=np.int32) * step,
        kind=kind,
        stature=person.shape.stature,
    )


def image_path(root: Path, subject: str, action: str, camera: str, frame: int) -> Path:
    """Where Human3.6M's layout has an image; frame is 0-based."""
    folder = root / "processed" / subject / action / "imageSequence-undistorted" / camera
    return folder / f"img_{frame + 1:06d}.jpg"
