"""Puts it together: people, motions, rigs and rooms of a rendered data set, all from seeds.

A subject is a person (or, with ``variety="action"``, a new one for every action) before a rig of
static cameras; an action is a clip of smooth motion in a room of its own. Every random choice comes
from (seed, subject, action), so that any worker can make any part.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from ptri.data.bodies import sample_motion
from ptri.data.draws import Draws
from ptri.data.rigs import family_indices, sample_rigs
from ptri.errors import UserError
from ptri.render import scene as scenes
from ptri.render.body import BodyShape, build_shapes, load_body_model, sample_phenotypes
from ptri.render.garments import open_folder
from ptri.render.gl import Renderer
from ptri.render.posing import RiggedBody, bind, part_rotations, pose, skin
from ptri.render.tailor import dress_in_garments
from ptri.render.wardrobe import Dressed, dress
from ptri.skeleton import H36M17

H36M_CAMERAS = ("54138969", "55011271", "58860488", "60457274")
# What people do in Human3.6M's actions, as motion kinds of ptri.data.motions.
ACTION_KINDS = {
    "Directions": ("reach", "gesture"),
    "Discussion": ("gesture", "stand"),
    "Eating": ("sit", "stand"),
    "Greeting": ("gesture", "reach"),
    "Phoning": ("stand", "walk"),
    "Photo": ("reach", "bend"),
    "Posing": ("stand", "lunge", "gesture"),
    "Purchases": ("bend", "squat", "reach"),
    "Sitting": ("sit", "sit_crossed"),
    "SittingDown": ("sit_floor", "kneel", "kneel_one"),
    "Smoking": ("sit", "stand"),
    "Waiting": ("stand", "gesture"),
    "WalkDog": ("walk", "reach"),
    "WalkTogether": ("walk", "run"),
    "Walking": ("walk",),
    "Exercise": ("dance", "random", "random", "climb", "squat", "crawl"),  # ours
}
_SEATED = ("sit", "sit_crossed")
_SEAT_BELOW_HIPS = 0.1  # m


@dataclass(frozen=True)
class RenderSettings:
    """What to render; every field is a flag of scripts/render_people.py and a key of its YAML."""

    out: str = "data/rendered"  # root of the Human3.6M layout
    subjects: tuple[str, ...] = ("S1", "S5", "S6", "S7", "S8")
    actions: tuple[str, ...] = ("Walking-1", "Posing-1", "Greeting-1")  # Human3.6M names
    frames: int = 10  # per action
    fps: float = 5.0  # of the frames rendered; numbered as at 50 fps
    cameras: int = 4  # views of each subject's rig
    rig: str = "h36m_ring"  # family of ptri.data.rigs; "dome+ring" gives half the views to each
    reach: float = 1.0  # m around the origin that every camera has to see
    tight: bool = False  # zoom in until only that fits (for training on crops)
    size: int = 512  # px, square images
    quality: int = 80  # of the JPEGs
    faces: int = 9000  # triangles of the body
    variety: Literal["subject", "action"] = "subject"  # who changes person, clothes and light
    clutter: int = 6  # most pieces of furniture
    sensor: float = 0.3  # strength of noise, blur and colour casts of the cameras
    backgrounds: str | None = None  # folder of panoramas (2:1) or photographs
    background_share: float = 0.5  # of the actions before a backdrop instead of in a room
    garments: str = ""  # folder of garments bound to MakeHuman's base mesh; "": procedural only
    garment_share: float = 0.7  # of the people who wear them; the others wear procedural clothes
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name, low in (("frames", 1), ("cameras", 1), ("size", 32), ("workers", 1)):
            if getattr(self, name) < low:
                raise UserError(f"--{name} {getattr(self, name)}: expected at least {low}")
        for name in ("fps", "reach"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} {getattr(self, name)}: expected a positive number")
        if not 0 <= self.garment_share <= 1:
            raise UserError(f"--garment-share {self.garment_share}: expected 0 to 1")
        for action in self.actions:
            if action.split("-")[0] not in ACTION_KINDS:
                raise UserError(
                    f"--actions {action}: unknown; expected NAME or NAME-number with NAME among "
                    f"{', '.join(ACTION_KINDS)}"
                )
        parts = family_indices(self.rig.split("+"), "--rig")
        if self.cameras % len(parts):
            raise UserError(f"--cameras {self.cameras}: not a multiple of the parts of {self.rig}")
        if self.variety not in ("subject", "action"):
            raise UserError(f"--variety {self.variety}: expected subject or action")

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Human3.6M's four, then numbers of our own."""
        extra = tuple(str(70000001 + i) for i in range(self.cameras - len(H36M_CAMERAS)))
        return (H36M_CAMERAS + extra)[: self.cameras]


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


class Clip(NamedTuple):
    """A posed clip; lowest point of the body on the floor in every frame."""

    transforms: np.ndarray  # (T, D, 3, 4) m
    joints: np.ndarray  # (T, 17, 3) m, world
    kind: str


def make_rng(*key: int) -> np.random.Generator:
    """A generator that depends on all the numbers of a key."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(list(key))))


def sample_person(
    rng: np.random.Generator, num_faces: int, garments: str = "", garment_share: float = 1.0
) -> Person:
    """Draws an adult and clothes, by the settings of these names.

    Raises:
        UserError: the garment folder is missing or a file of it is damaged.
    """
    model = load_body_model()
    phenotypes = {k: v[:1] for k, v in sample_phenotypes(2, rng).items()}
    shape = build_shapes(model, phenotypes)[0]
    rig = bind(model, shape)
    if garments and rng.random() < garment_share:
        folder = open_folder(garments)
        return Person(shape, rig, dress_in_garments(model, shape, rig, rng, folder, num_faces))
    return Person(shape, rig, dress(model, shape, rig, rng, num_faces))


def sample_clip(person: Person, kind: str, num_frames: int, fps: float, seed: int) -> Clip:
    """Draws a motion and poses the body with it; the path is centred above the origin.

    Args:
        kind: one of `ptri.data.motions.KINDS`.
    """
    child, parent = np.array(H36M17.bones).T
    joints = 1000 * person.shape.joints
    lengths = torch.from_numpy(np.linalg.norm(joints[child] - joints[parent], axis=-1)).float()
    generator = torch.Generator().manual_seed(seed)
    motion = sample_motion(generator, num_frames, fps, kind, lengths)
    parts = part_rotations(motion.rotations, motion.root_rotation)
    root = motion.root_translation.double().numpy() / 1000
    transforms, joints = pose(person.rig, parts, root)
    for frame in range(num_frames):
        points, _ = skin(transforms[frame], *_skin_data(person))
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

    joints: np.ndarray  # (T, 17, 3) float32 mm, world
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
    person = sample_person(whose, settings.faces, settings.garments, settings.garment_share)
    kinds = ACTION_KINDS[settings.actions[action].split("-")[0]]
    kind = kinds[rng.integers(len(kinds))]
    clip = sample_clip(person, kind, settings.frames, settings.fps, int(rng.integers(2**31)))
    rig = sample_rig(settings, subject)
    room_rng = rng if settings.variety == "action" else make_rng(settings.seed, subject, 0, 3)
    backdrops = scenes.list_pictures(settings.backgrounds) if settings.backgrounds else []
    outside = bool(backdrops) and rng.random() < settings.background_share
    room = scenes.sample_room(room_rng, rig.centres / 1000, settings.clutter, bare=outside)
    renderer.set_picture(None)
    if outside:
        picture, is_flat = scenes.read_picture(backdrops[rng.integers(len(backdrops))])
        renderer.set_picture(picture)
        room = room._replace(look=room.look._replace(flat_picture=is_flat))
    sensors = [scenes.sample_sensor(rng, settings.sensor) for _ in range(settings.cameras)]
    renderer.set_person(person.dressed)
    step = max(1, round(50 / settings.fps))
    boxes = np.zeros((settings.frames, settings.cameras, 4), np.int16)
    for frame in range(settings.frames):
        points, normals = skin(clip.transforms[frame], *_skin_data(person))
        current = _seated(room, clip, frame) if kind in _SEATED else room
        renderer.pose({0: (points, normals)}, current)
        for camera in range(settings.cameras):
            K, R, t = rig.K[camera], rig.R[camera], rig.t[camera] / 1000
            image = scenes.expose(renderer.draw(K, R, t), sensors[camera], rng)
            boxes[frame, camera] = _box(points, K, R, t, settings.size)
            write(camera, frame * step, image)
        renderer.end_pose()
    return Action(
        joints=(1000 * clip.joints).astype(np.float32),
        boxes=boxes,
        frames=np.arange(settings.frames, dtype=np.int32) * step,
        kind=kind,
        stature=person.shape.stature,
    )


def settings_from(values: dict, base: RenderSettings | None = None) -> RenderSettings:
    """Settings from a dict of fields.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    base = base or RenderSettings()
    known = {field.name: field for field in dataclasses.fields(RenderSettings)}
    changes = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{key}: unknown key; expected one of {', '.join(known)}")
        kind = type(getattr(base, key))
        try:
            if kind is bool and isinstance(value, str):
                value = {"true": True, "false": False}[value.lower()]
            elif kind is tuple:
                value = tuple(value.split(",") if isinstance(value, str) else map(str, value))
            elif value is not None and kind in (int, float, str):
                value = kind(value)
        except (TypeError, ValueError, KeyError):
            raise UserError(f"{key}: {value!r} is not of type {kind.__name__}") from None
        changes[key] = value
    return dataclasses.replace(base, **changes)


def image_path(root: Path, subject: str, action: str, camera: str, frame: int) -> Path:
    """Where Human3.6M's layout has an image; frame is 0-based."""
    folder = root / "processed" / subject / action / "imageSequence-undistorted" / camera
    return folder / f"img_{frame + 1:06d}.jpg"


def _skin_data(person: Person) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return person.dressed.weights, person.dressed.vertices, person.dressed.normals


def _seated(room: scenes.Scene, clip: Clip, frame: int) -> scenes.Scene:
    """Puts a stool below the hips, turned as the hips are."""
    hips = clip.joints[frame, [2, 3]]
    centre = hips.mean(0)
    height = centre[2] - _SEAT_BELOW_HIPS
    if not 0.15 < height < 0.8:
        return room
    across = hips[1] - hips[0]
    back = np.array([-across[1], across[0]]) / max(np.linalg.norm(across[:2]), 1e-6)
    turn = float(np.arctan2(across[1], across[0]))
    return scenes.with_seat(room, centre[:2] + 0.06 * back, height, turn)


def _box(points: np.ndarray, K: np.ndarray, R: np.ndarray, t: np.ndarray, size: int) -> np.ndarray:
    """Box (top, left, bottom, right) px around the projected body, inside the image."""
    camera = points @ R.T + t
    pixels = camera @ K.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    left, top = np.clip(np.floor(pixels.min(0)), 0, size - 1)
    right, bottom = np.clip(np.ceil(pixels.max(0)) + 1, 1, size)
    return np.array([top, left, bottom, right], np.int16)
