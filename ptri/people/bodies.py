"""Kinematic people: bone lengths, smooth motions on a floor, and their 17 Human3.6M joints.

World: z up, mm, floor at z = 0. See `ptri.people.articulation` for the body's axes and parts and
`ptri.people.motions` for what people do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.geometry.rotations import so3_exp
from ptri.people.articulation import angles_to_rotations, forward_kinematics, load_bones
from ptri.people.draws import Draws
from ptri.people.motions import KINDS, sample_angles
from ptri.posterior.body import load_body_prior
from ptri.skeleton import H36M17

# Height (mm) at which a joint's centre rests on the floor.
_CLEARANCE = {"foot": 75.0, "knee": 60.0, "hip": 95.0, "wrist": 30.0, "elbow": 40.0}
_CLEARANCE |= {"shoulder": 80.0, "head": 20.0, "nose": 100.0, "spine": 110.0, "thorax": 100.0}
# Share of the body's mass lumped at joints, for balance (de Leva 1996, rounded).
_MASS = {"head": 0.07, "thorax": 0.22, "spine": 0.24, "hip": 0.12, "elbow": 0.03, "wrist": 0.02}
_MASS |= {"knee": 0.10, "foot": 0.05, "shoulder": 0.01}


class Motion(NamedTuple):
    """Moving bodies of B people; the parts are those of `ptri.people.articulation`."""

    rotations: Tensor  # (B, T, P, 3, 3) local, relative to the parent part
    root_rotation: Tensor  # (B, T, 3, 3) body (x left, y back, z up) to world (z up)
    root_translation: Tensor  # (B, T, 3) mm, world position of the joint "hip"
    joints3d: Tensor  # (B, T, 17, 3) mm, world


class Clip(NamedTuple):
    """Clips of B people, world frame."""

    joints3d: Tensor  # (B, T, 17, 3) mm
    bone_lengths: Tensor  # (B, 16) mm, in the order of H36M17.bones


@functools.cache
def _log_length_law(children: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean (16,) log mm and a square root (16, 16) of the covariance of the log bone lengths."""
    prior = load_body_prior(children=children)
    return prior.mean.float(), torch.linalg.cholesky(prior.covariance).float()


def sample_bone_lengths(draws: Draws, spread: float = 0.0, children: float = 0.0) -> Tensor:
    """Bone lengths (B, 16) mm, in the order of `H36M17.bones`.

    Args:
        spread: further relative standard deviation of each bone, the same left and right, because
            data sets put their joints elsewhere.
        children: share of people who are 4 to 14 years old.
    """
    mean, factor = _log_length_law()
    white = draws.normal(len(mean))
    logs = mean + white @ factor.T
    if children > 0:
        mean, factor = _log_length_law(1.0)
        logs = torch.where(draws.uniform(1) < children, mean + white @ factor.T, logs)
    flip = H36M17.flip
    pair = [min(child, flip[child]) for child, _ in H36M17.bones]
    return torch.exp(logs + spread * draws.normal(len(H36M17.joints))[:, pair])


def sample_directions(draws: Draws) -> Tensor:
    """Unit rest directions (B, 16, 3) of the bones of B people, symmetric left and right."""
    child = torch.tensor([child for child, _ in H36M17.bones])
    mirror = torch.tensor(H36M17.flip)[child]
    noise = draws.normal(len(H36M17.joints), 3)[:, torch.minimum(child, mirror)]
    noise[..., 0] *= torch.sign(mirror - child)  # one of a pair mirrors the other; the middle stays
    bones = load_bones()
    return torch.nn.functional.normalize(bones.direction + bones.spread[:, None] * noise, dim=-1)


def kind_indices(kinds: Sequence[str], key: str = "motions") -> Tensor:
    """Indices (K,) int64 of motion kinds.

    Raises:
        UserError: an unknown kind; the message names ``key``.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"{key}: unknown motion '{kind}'; expected one of {', '.join(KINDS)}")
    return torch.tensor([KINDS.index(kind) for kind in kinds])


def sample_clips(
    draws: Draws,
    num_frames: int,
    fps: float,
    kinds: Sequence[str] = KINDS,
    bone_spread: float = 0.0,
    children: float = 0.0,
) -> Clip:
    """B people, each with a body and a motion of its own, centred above the world's origin.

    Args:
        draws: B streams.
        num_frames: T. fps: frames per second.
        kinds: motions drawn with equal chance.
        bone_spread, children: see `sample_bone_lengths`.
    """
    lengths = sample_bone_lengths(draws, bone_spread, children)
    directions = sample_directions(draws)
    kind = kind_indices(kinds)[draws.choice(len(kinds))]
    motion = sample_motions(draws, kind, num_frames, fps, lengths, directions)
    return Clip(motion.joints3d, lengths)


def sample_motions(
    draws: Draws,
    kind: Tensor,
    num_frames: int,
    fps: float,
    lengths: Tensor | None = None,
    directions: Tensor | None = None,
) -> Motion:
    """Smooth motions of T frames, feet on the floor, centred above the world's origin.

    Args:
        draws: B streams.
        kind: (B,) from `kind_indices`.
        lengths: (B, 16) mm, which decide height and stride; the mean adult's by default.
        directions: (B, 16, 3) unit rest directions of the bones; the mean by default.
    """
    if lengths is None:
        lengths = _log_length_law()[0].exp().expand(draws.batch, -1)
    times = torch.arange(num_frames) / fps
    angles, heading, balance = sample_angles(draws, kind, times)
    rotations, lean = angles_to_rotations(angles)
    turn = torch.nn.functional.pad(heading.unsqueeze(-1), (2, 0))  # (B, T, 3) about z
    root, origin = so3_exp(turn) @ lean, torch.zeros_like(turn)
    at_hip = forward_kinematics(rotations, root, origin, lengths, directions)
    tilt = _balance(at_hip, balance)
    at_hip = at_hip @ tilt.transpose(-1, -2)
    translation = _stand_on_floor(at_hip)
    return Motion(rotations, tilt @ root, translation, at_hip + translation.unsqueeze(-2))


def _per_joint(table: dict[str, float], default: float) -> Tensor:
    return torch.tensor([table.get(name.split("_")[-1], default) for name in H36M17.joints])


def _balance(joints: Tensor, share: Tensor) -> Tensor:
    """Rotations (B, T, 3, 3) that lean the body until its mass is above the feet.

    Args:
        joints: (B, T, 17, 3) mm, any origin. share: (B, T) of the lean to carry out.
    """
    mass = _per_joint(_MASS, 0.0)
    centre = (joints * (mass / mass.sum()).unsqueeze(-1)).sum(-2)
    feet = joints[..., [0, 5], :]
    weight = torch.softmax(-feet[..., 2] / 60.0, dim=-1)  # a lifted foot bears little
    upright = centre - (feet * weight.unsqueeze(-1)).sum(-2)
    # The axis that turns `upright` to the vertical, with the angle between them.
    axis = torch.stack([upright[..., 1], -upright[..., 0], torch.zeros_like(share)], dim=-1)
    length = axis.norm(dim=-1, keepdim=True)
    angle = torch.atan2(length[..., 0], upright[..., 2]).clamp_max(math.radians(50))
    # 1e-6 mm guards a body that is exactly balanced.
    return so3_exp(axis / length.clamp_min(1e-6) * (share * angle).unsqueeze(-1))


def _stand_on_floor(joints: Tensor) -> Tensor:
    """Root translations (B, T, 3) mm: lowest joint on the floor, the bearing foot does not slide.

    The clip's path is centred above the origin.

    Args:
        joints: (B, T, 17, 3) mm relative to the hip.
    """
    height = -(joints[..., 2] - _per_joint(_CLEARANCE, 50.0)).amin(-1)
    feet = joints[..., [0, 5], :]  # (B, T, 2, 3)
    bearing = torch.softmax(-feet[..., 2] / 15.0, dim=-1)
    bearing = (bearing[:, 1:] + bearing[:, :-1]) / 2
    step = -((feet[:, 1:, :, :2] - feet[:, :-1, :, :2]) * bearing.unsqueeze(-1)).sum(2)
    path = torch.nn.functional.pad(step.cumsum(1), (0, 0, 1, 0))  # (B, T, 2)
    path = path - (path.amax(1, keepdim=True) + path.amin(1, keepdim=True)) / 2
    return torch.cat([path, height.unsqueeze(-1)], dim=-1)
