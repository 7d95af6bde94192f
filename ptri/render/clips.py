"""Clips of moving people before rigs of static cameras, all from seeds.

A subject is a person (or, with ``variety="action"``, a new one for every action) before a rig; an
action is a clip of smooth motion in a room of its own. Every random choice comes from (seed,
subject, action), so that any worker can make any part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from ptri.people.articulation import global_rotations
from ptri.people.bodies import kind_indices, sample_motions
from ptri.people.draws import Draws
from ptri.people.rigs import family_indices, sample_rigs
from ptri.render import truth
from ptri.render.draw import sensor
from ptri.render.draw.gl import Renderer
from ptri.render.people.person import Person, make_rng, sample_person
from ptri.render.people.posing import coco_keypoints, pose
from ptri.render.settings import ACTION_KINDS, RenderSettings
from ptri.render.stage import backdrops, occluders
from ptri.render.stage.cameras import Camera
from ptri.render.stage.room import SEATED, sample_place, with_seat
from ptri.skeleton import H36M17


class PosedClip(NamedTuple):
    """A posed clip; lowest point of the body on the floor in every frame."""

    transforms: np.ndarray  # (T, D, 3, 4) m
    joints: np.ndarray  # (T, 17, 3) m, world, Human3.6M's
    coco: np.ndarray  # (T, 17, 3) m, world, COCO's


def sample_clip(person: Person, kind: str, num_frames: int, fps: float, seed: int) -> PosedClip:
    """Draws a motion and poses the body with it; the path is centred above the origin.

    Args:
        kind: one of `ptri.people.motions.KINDS`.
    """
    child, parent = np.array(H36M17.bones).T
    joints = 1000 * person.shape.joints
    lengths = torch.from_numpy(np.linalg.norm(joints[child] - joints[parent], axis=-1)).float()
    seeds = torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(seed))
    draws = Draws.from_seeds([tuple(seeds.tolist())])
    motion = sample_motions(draws, kind_indices([kind]), num_frames, fps, lengths.unsqueeze(0))
    parts = global_rotations(motion.rotations[0], motion.root_rotation[0]).double().numpy()
    root = motion.root_translation[0].double().numpy() / 1000
    transforms, joints = pose(person.rig, parts, root)
    for frame in range(num_frames):
        lowest = person.skin(transforms[frame])[0][:, 2].min()
        transforms[frame, :, 2, 3] -= lowest
        joints[frame, :, 2] -= lowest
    return PosedClip(transforms, joints, coco_keypoints(person.rig, transforms))


def sample_rig(settings: RenderSettings, subject: int) -> Camera:
    """The rig of a subject, K (V, 3, 3) px, R (V, 3, 3), t (V, 3) mm.

    Every camera sees `settings.reach` around the origin.
    """
    families = family_indices(settings.rig.split("+"), "--rig")
    draws = Draws.from_seeds([(settings.seed, subject, i, 77) for i in range(len(families))])
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = 1000 * settings.reach * np.stack([np.cos(turn), np.sin(turn)], 1)
    points = [np.column_stack([ring, np.full(12, z)]) for z in (0.0, 1000.0, 2100.0)]
    points = torch.from_numpy(np.concatenate(points)).float()
    num_views = settings.cameras // len(families)
    rigs = sample_rigs(draws, families, points.expand(len(families), 1, -1, -1), num_views, 0.0)
    K, R, t, size = (value.double().flatten(0, 1).numpy() for value in (*rigs.cameras, rigs.size))
    # A square from the middle of each image, at our resolution.
    side = size.min(1, keepdims=True)
    scale = settings.size / side
    middle = (K[:, :2, 2] - (size - side) / 2 + 0.5) * scale - 0.5
    focal = K[:, [0, 1], [0, 1]] * scale
    seen = points.double().numpy() @ R.transpose(0, 2, 1) + t[:, None]
    slope = np.abs(seen[..., :2] / seen[..., 2:])
    edge = np.minimum(middle, settings.size - 1 - middle)[:, None]
    reach = (slope * focal[:, None] / edge).max((1, 2))
    zoom = 1 / reach if settings.tight else np.minimum(1, 1 / reach)
    square = np.tile(np.eye(3), (len(K), 1, 1))
    square[:, [0, 1], [0, 1]], square[:, :2, 2] = focal * zoom[:, None], middle
    order = make_rng(settings.seed, subject, 78).permutation(settings.cameras)
    return Camera(square[order], R[order], t[order])


def render_action(
    settings: RenderSettings,
    renderer: Renderer,
    subject: int,
    action: int,
    write: Callable[[int, int, np.ndarray], None],
) -> dict[str, np.ndarray]:
    """Renders one action of one subject.

    Args:
        renderer: of images `settings.size` square.
        subject, action: indices into the settings' lists.
        write: called with (camera, 0-based frame number, (h, w, 3) uint8 RGB) for each image.

    Returns:
        Rows of the labels' table: "frame" (T,) int32, 0-based at 50 fps; "joints" and "coco"
        (T, 17, 3) float32 mm, world; "visible", "coco_visible" (T, V, 17) and "boxes" (T, V, 4) as
        in `truth.Label`.
    """
    rng = make_rng(settings.seed, subject, action, 1)
    person_rng, room_rng = rng, rng
    if settings.variety == "subject":
        person_rng, room_rng = (make_rng(settings.seed, subject, 0, what) for what in (2, 3))
    person = sample_person(person_rng, settings)
    kinds = ACTION_KINDS[settings.actions[action].split("-")[0]]
    kind = kinds[rng.integers(len(kinds))]
    clip = sample_clip(person, kind, settings.frames, settings.fps, int(rng.integers(2**31)))
    rig = sample_rig(settings, subject)
    centres = -np.einsum("vji,vj->vi", rig.R, rig.t)
    pictures = backdrops.list_pictures(settings.backgrounds)
    room, picture = sample_place(rng, centres / 1000, settings, pictures, room_rng)
    renderer.set_picture(picture)
    renderer.set_person(person.dressed)
    sensors = [sensor.sample_sensor(rng, settings) for _ in range(settings.cameras)]
    cameras = [Camera(K, R, t / 1000) for K, R, t in zip(rig.K, rig.R, rig.t)]
    side_rng = make_rng(settings.seed, subject, action, 4)
    for camera in cameras:
        if side_rng.random() < settings.occluders:  # nearer than the person ever comes
            room = occluders.add_occluder(side_rng, room, camera, clip.joints.reshape(-1, 3))
    frames = np.arange(settings.frames, dtype=np.int32) * max(1, round(50 / settings.fps))
    labels = []
    for t, frame in enumerate(frames.tolist()):
        points, normals = person.skin(clip.transforms[t])
        seated = with_seat(room, clip.joints[t]) if kind in SEATED else room
        renderer.pose({0: (points, normals)}, seated)
        for i, camera in enumerate(cameras):
            write(i, frame, sensor.expose(renderer.draw(*camera), sensors[i], rng))
            depth = renderer.depth()
            labels.append(truth.label(points, clip.joints[t], clip.coco[t], camera, depth))
        renderer.end_pose()
    rows = {
        name: np.stack(values).reshape(settings.frames, settings.cameras, -1)
        for name, values in zip(truth.Label._fields, zip(*labels))
    }
    joints, coco = ((1000 * places).astype(np.float32) for places in (clip.joints, clip.coco))
    return rows | {"frame": frames, "joints": joints, "coco": coco}
