"""The articulated body: named joint angles, their limits, rotations and forward kinematics.

Axes of the body, of every part at rest and of the world: x to the person's left, y backwards (the
person faces -y), z up; Anny's and Blender's. At rest the body stands in a T: legs straight down,
arms straight out to the sides, palms down, elbow pits forwards. A part's local rotation is relative
to its parent part, ``R_global(part) = R_global(parent) @ R_local(part)``, and a bone of rest
direction d points along ``R_global(part) d``. All lengths in mm, angles in rad inside the code and
in degrees in the tables.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.geometry.rotations import so3_exp
from ptri.skeleton import H36M17, mirror_name

# Of one side: each part and the part that carries it.
_SIDE_PARTS = {
    "thigh": "root",
    "shank": "thigh",
    "clavicle": "chest",
    "foot": "shank",
    "upper_arm": "clavicle",
    "forearm": "upper_arm",
    "hand": "forearm",
}
# Every part in the order of `Motion.rotations`, with the part that carries it.
_PARENTS = {"spine": "root", "chest": "spine", "neck": "chest", "head": "neck"} | {
    f"{side}_{part}": f"{side}_{parent}" if parent in _SIDE_PARTS else parent
    for part, parent in _SIDE_PARTS.items()
    for side in ("left", "right")
}
PARTS = tuple(_PARENTS)
PARTS_AND_ROOT = (*PARTS, "root")  # the root is the pelvis

# Angles and their limits (deg). Trunk: flex = bending forwards, side = to the left, twist = to the
# left. Arms hang at flex = abd = 0; flex raises them forwards, abd sideways (the pair is a rotation
# vector, so it has no singular direction below 180 deg); twist is inward rotation. Hips alike, with
# outward twist. Elbows and knees only bend one way.
TRUNK_LIMITS = {
    "root_pitch": (-180, 180), "root_roll": (-180, 180),  # the whole body leans forwards, left
    "spine_flex": (-20, 45), "spine_side": (-25, 25), "spine_twist": (-15, 15),
    "chest_flex": (-20, 35), "chest_side": (-20, 20), "chest_twist": (-30, 30),
    "neck_flex": (-40, 45), "neck_side": (-25, 25), "neck_twist": (-40, 40),
    "head_flex": (-25, 25), "head_side": (-15, 15), "head_twist": (-35, 35),
}  # fmt: skip
_TRUNK_AXES = {"pitch": 0, "flex": 0, "roll": 1, "side": 1, "twist": 2}  # x, y or z
# Limits, the part that turns, and the left side's axis; the right side's is its mirror image.
LIMBS = {
    "clavicle_up": (-8.0, 35.0, "clavicle", (0, -1, 0)),
    "clavicle_forward": (-20.0, 25.0, "clavicle", (0, 0, -1)),
    "arm_flex": (-55.0, 170.0, "upper_arm", (-1, 0, 0)),
    "arm_abd": (-45.0, 165.0, "upper_arm", (0, -1, 0)),
    "arm_twist": (-60.0, 80.0, "upper_arm", (1, 0, 0)),
    "elbow_flex": (0.0, 148.0, "forearm", (0, 0, -1)),
    "pronation": (-80.0, 80.0, "forearm", (1, 0, 0)),
    "wrist_flex": (-60.0, 70.0, "hand", (0, 1, 0)),
    "hip_flex": (-25.0, 125.0, "thigh", (-1, 0, 0)),
    "hip_abd": (-20.0, 55.0, "thigh", (0, -1, 0)),
    "hip_twist": (-35.0, 50.0, "thigh", (0, 0, 1)),
    "knee_flex": (0.0, 148.0, "shank", (1, 0, 0)),
    "ankle_flex": (-45.0, 25.0, "foot", (-1, 0, 0)),  # toes up
}
_TWISTS = ("arm_twist", "pronation", "hip_twist")  # turn a part before its other angles do
MAX_ELEVATION_DEG = 170.0  # of the upper arm away from hanging

LIMITS = TRUNK_LIMITS | {
    f"{side}_{name}": row[:2] for side in ("left", "right") for name, row in LIMBS.items()
}
ANGLES = tuple(LIMITS)
INDEX = {name: index for index, name in enumerate(ANGLES)}

# Bones by child: the part that carries it, its rest direction (trunk, shoulders and head: the mean
# over adult Anny bodies), and how far (rad) people's vary about that.
_BONES = {
    "right_foot": ("right_shank", (0, 0, -1), 0.0),
    "right_knee": ("right_thigh", (0, 0, -1), 0.0),
    "right_hip": ("root", (-1, 0, 0), 0.0),
    "left_hip": ("root", (1, 0, 0), 0.0),
    "left_knee": ("left_thigh", (0, 0, -1), 0.0),
    "left_foot": ("left_shank", (0, 0, -1), 0.0),
    "spine": ("spine", (0, 0.074, 0.997), 0.05),
    "thorax": ("chest", (0, -0.087, 0.996), 0.06),
    "head": ("head", (0, 0.361, 0.932), 0.1),
    "right_wrist": ("right_forearm", (-1, 0, 0), 0.0),
    "right_elbow": ("right_upper_arm", (-1, 0, 0), 0.0),
    "right_shoulder": ("right_clavicle", (-0.887, -0.04, -0.46), 0.09),
    "left_shoulder": ("left_clavicle", (0.887, -0.04, -0.46), 0.09),
    "left_elbow": ("left_upper_arm", (1, 0, 0), 0.0),
    "left_wrist": ("left_forearm", (1, 0, 0), 0.0),
    "nose": ("neck", (0, -0.68, 0.733), 0.12),
}


class Bones(NamedTuple):
    """The 16 bones in the order of `H36M17.bones`."""

    part: Tensor  # (16,) index into `PARTS_AND_ROOT` of the part that carries it
    direction: Tensor  # (16, 3) unit, at rest
    spread: Tensor  # (16,) rad, standard deviation of people's directions about that


@functools.cache
def load_bones() -> Bones:
    """What is known of the bones at rest."""
    rows = [_BONES[H36M17.joints[child]] for child, _ in H36M17.bones]
    part, direction, spread = zip(*rows)
    direction = torch.nn.functional.normalize(torch.tensor(direction), dim=-1)
    part = torch.tensor([PARTS_AND_ROOT.index(name) for name in part])
    return Bones(part, direction, torch.tensor(spread))


@functools.cache
def limits() -> tuple[Tensor, Tensor]:
    """Lower and upper limits (D,) rad, in the order of `ANGLES`."""
    low, high = zip(*LIMITS.values())
    return torch.tensor(low) * (math.pi / 180), torch.tensor(high) * (math.pi / 180)


@functools.cache
def _mirror() -> tuple[Tensor, Tensor]:
    """The angle (D,) that each becomes in the mirror, and the sign (D,) that it takes."""
    turned = [name in TRUNK_LIMITS and name.endswith(("side", "twist", "roll")) for name in ANGLES]
    order = torch.tensor([INDEX[mirror_name(name)] for name in ANGLES])
    return order, 1.0 - 2.0 * torch.tensor(turned)


def mirror_angles(angles: Tensor) -> Tensor:
    """Angles (..., D) of the body's mirror image, left and right exchanged."""
    order, sign = _mirror()
    return angles[..., order] * sign


def both_sides(name: str) -> list[int]:
    """Places of a limb's angle in `ANGLES`: left, right."""
    return [INDEX[f"left_{name}"], INDEX[f"right_{name}"]]


def limit_angles(angles: Tensor) -> Tensor:
    """Presses angles (..., D) rad smoothly into their limits; the inner 80 % is left as it is.

    Arms that hang low may not cross the trunk: adduction is freed as the arm comes forwards.
    """
    low, high = limits()
    middle, half = (low + high) / 2, (high - low) / 2
    share = (angles - middle) / half
    excess = (share.abs() - 0.8).clamp_min(0)
    share = share.clamp(-0.8, 0.8) + share.sign() * 0.2 * torch.tanh(excess / 0.2)
    angles = middle + half * share
    arm_flex, arm_abd = both_sides("arm_flex"), both_sides("arm_abd")
    flex, abd = angles[..., arm_flex], angles[..., arm_abd]  # (..., 2)
    abd = torch.maximum(abd, 0.07 - 0.7 * (flex / 1.3).clamp(0, 1))
    elevation = torch.hypot(flex, abd)
    scale = (math.radians(MAX_ELEVATION_DEG) / elevation.clamp_min(1e-6)).clamp_max(1)
    angles[..., arm_flex], angles[..., arm_abd] = flex * scale, abd * scale
    return angles


@functools.cache
def _generators() -> tuple[Tensor, Tensor, Tensor]:
    """Maps from angles to rotation vectors: first, fixed and last rotation of each part.

    Returns (D, P+1, 3), (P+1, 3, 3), (D, P+1, 3); row P is the root's (pitch and roll).
    """
    first = torch.zeros(len(ANGLES), len(PARTS) + 1, 3)
    last, middle = torch.zeros_like(first), torch.eye(3).repeat(len(PARTS) + 1, 1, 1)
    for name in ANGLES:
        side, _, limb = name.partition("_")
        if limb in LIMBS:
            part, axis = f"{side}_{LIMBS[limb][2]}", torch.tensor(LIMBS[limb][3])
            if side == "right":
                axis = axis * torch.tensor([1, -1, -1])
        else:
            part, axis = side, torch.eye(3)[_TRUNK_AXES[limb]]
        table = last if limb in _TWISTS else first
        table[INDEX[name], PARTS_AND_ROOT.index(part)] = axis.float()
    for side, s in (("left", 1.0), ("right", -1.0)):  # the T's arms brought to hanging
        hang = so3_exp(torch.tensor([0.0, s * math.pi / 2, 0.0]))
        middle[PARTS.index(f"{side}_upper_arm")] = hang
    return first, middle, last


def angles_to_rotations(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Local rotations from joint angles.

    Args:
        angles: (..., D) rad, in the order of `ANGLES`.

    Returns:
        (..., P, 3, 3) of `PARTS`, relative to the parent part; (..., 3, 3) of the root without
        its heading.
    """
    first, middle, last = _generators()
    shape = (*angles.shape[:-1], len(PARTS) + 1, 3)
    before = so3_exp((angles @ first.flatten(1)).reshape(shape))
    after = so3_exp((angles @ last.flatten(1)).reshape(shape))
    rotations = before @ middle @ after
    return rotations[..., :-1, :, :], rotations[..., -1, :, :]


def global_rotations(rotations: Tensor, root: Tensor) -> Tensor:
    """Local part rotations (..., P, 3, 3) and root (..., 3, 3) to world ones (..., P+1, 3, 3).

    The last one is the root's.
    """
    world = {"root": root}
    for i, (part, parent) in enumerate(_PARENTS.items()):
        world[part] = world[parent] @ rotations[..., i, :, :]
    return torch.stack([world[part] for part in PARTS_AND_ROOT], dim=-3)


@functools.cache
def chain_matrix() -> Tensor:
    """(17, 16) matrix of 0 and 1: a joint is the sum of the bones between it and the hip."""
    bones = {child: i for i, (child, _) in enumerate(H36M17.bones)}
    chain = torch.zeros(len(H36M17.joints), len(bones))
    for joint in range(len(H36M17.joints)):
        step = joint
        while step in bones:
            chain[joint, bones[step]] = 1.0
            step = H36M17.parents[step]
    return chain


def forward_kinematics(
    rotations: Tensor,
    root_rotation: Tensor,
    root_translation: Tensor,
    bone_lengths: Tensor,
    directions: Tensor | None = None,
) -> Tensor:
    """The 17 Human3.6M joints of a posed body.

    Args:
        rotations: (..., T, P, 3, 3) local rotations of `PARTS`.
        root_rotation: (..., T, 3, 3) body to world.
        root_translation: (..., T, 3) mm, position of the joint "hip".
        bone_lengths: (..., 16) mm, in the order of `H36M17.bones`, the same for all T frames.
        directions: (..., 16, 3) unit rest directions of this body; the mean by default.

    Returns:
        (..., T, 17, 3) mm, world.
    """
    rest = load_bones()
    directions = rest.direction if directions is None else directions
    R = global_rotations(rotations, root_rotation)[..., rest.part, :, :]  # (..., T, 16, 3, 3)
    bones = (directions * bone_lengths.unsqueeze(-1)).unsqueeze(-3)  # (..., 1, 16, 3)
    vectors = (R @ bones.unsqueeze(-1)).squeeze(-1)
    return chain_matrix() @ vectors + root_translation.unsqueeze(-2)
