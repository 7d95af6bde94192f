"""Single poses: from the joint-limit generator (`ptri.people.motions`) and from motion capture."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ptri.people.articulation import PARTS_AND_ROOT, global_rotations
from ptri.people.bodies import kind_indices, sample_motions
from ptri.people.draws import Draws
from ptri.people.motions import KINDS
from ptri.people.retarget import FPS, load_part_motion
from ptri.render.settings import RenderConfig
from ptri.skeleton import mirror_name

MOCAP = "mocap"  # the kind of a captured pose
# How often each kind is drawn where none is named: what people in photographs do.
PROPORTIONS = {
    "stand": 2.0, "gesture": 2.5, "reach": 2.0, "walk": 1.5, "run": 1.5, "climb": 1.0,
    "sit": 2.5, "sit_floor": 0.8, "sit_crossed": 0.6, "squat": 1.2, "bend": 1.2, "lunge": 1.2,
    "kneel_one": 0.6, "kneel": 0.4, "crawl": 0.4, "lie_back": 0.3, "lie_front": 0.3,
    "lie_side": 0.3, "dance": 2.0, "random": 1.5,
}  # fmt: skip
KIND_NAMES = (*KINDS, MOCAP)
SHUTTER = 1 / 25  # s between the first and the last step of a moving pose
_STEPS = 3


class Pose(NamedTuple):
    """A pose in motion: three moments, the middle one is the pose."""

    rotations: np.ndarray  # (3, P + 1, 3, 3) world rotations of `PARTS_AND_ROOT`
    kind: str


def sample_poses(config: RenderConfig, seeds: Sequence[tuple[int, ...]]) -> list[Pose]:
    """One pose for each seed; a pose depends on its own seed only.

    Args:
        seeds: tuples of non-negative integers.

    Raises:
        UserError: an unknown motion, or unusable motion capture.
    """
    draws = Draws.from_seeds(list(seeds))
    captured = torch.zeros(len(seeds), dtype=torch.bool)
    source = None
    if config.mocap and config.mocap_share > 0:
        source = load_part_motion(config.mocap, config.mocap_split)
        captured = draws.uniform() < config.mocap_share
    pick, shift = draws.uniform(), draws.uniform()
    turn, mirror = draws.uniform(high=2 * np.pi), draws.uniform() < 0.5
    index, edges = _kinds(config.motions)
    kind = index[torch.searchsorted(edges, pick, right=True).clamp_max(len(index) - 1)]
    motion = sample_motions(draws, kind, _STEPS, (_STEPS - 1) / SHUTTER)
    generated = global_rotations(motion.rotations, motion.root_rotation)
    generated = generated.double().numpy()  # (B, 3, P + 1, 3, 3)
    poses = [Pose(generated[i], KINDS[int(kind[i])]) for i in range(len(seeds))]
    rows = torch.nonzero(captured)[:, 0].tolist()
    if rows:
        place = [int(float(shift[i]) * len(source.rotations)) for i in rows]
        pairs = source.rotations[np.stack([place, source.following[place]], 1)].astype(float)
        moving = _between(pairs, min(SHUTTER * FPS, 1.0))  # (N, 3, P + 1, 3, 3)
        heading = Rotation.from_euler("z", turn[rows, None].numpy()).as_matrix()[:, None, None]
        for i, moments, about in zip(rows, moving, heading):
            poses[i] = Pose(about @ (_mirrored(moments) if mirror[i] else moments), MOCAP)
    return poses


@functools.cache
def _kinds(motions: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the kinds in use, and the upper edges of their shares."""
    names = motions or tuple(PROPORTIONS)
    index = kind_indices(names, "render.motions")
    weight = torch.tensor([PROPORTIONS.get(name, 1.0) if not motions else 1.0 for name in names])
    return index, (weight / weight.sum()).cumsum(0)


def _between(pairs: np.ndarray, span: float) -> np.ndarray:
    """Three moments (N, 3, Q, 3, 3) between two frames (N, 2, Q, 3, 3), for a share of it."""
    first, second = pairs[:, 0], pairs[:, 1]
    step = Rotation.from_matrix((first.swapaxes(-1, -2) @ second).reshape(-1, 3, 3)).as_rotvec()
    half = Rotation.from_rotvec(0.5 * span * step).as_matrix().reshape(first.shape)
    middle = first @ half
    return np.stack([first, middle, middle @ half], 1)


def _mirrored(rotations: np.ndarray) -> np.ndarray:
    """The pose in a mirror, left and right exchanged. (..., Q, 3, 3)."""
    flip = np.diag([-1.0, 1.0, 1.0])
    order = [PARTS_AND_ROOT.index(mirror_name(part)) for part in PARTS_AND_ROOT]
    return flip @ rotations[..., order, :, :] @ flip
