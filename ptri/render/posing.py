"""Poses an Anny body by the part rotations of the articulated body in `ptri.data.articulation`.

That body's axes are Anny's (x to the person's left, y backwards, z up); its rest pose is a T with
straight legs, palms down and elbow pits forwards. A part's global rotation takes the T pose to the
posed world. Here each Anny bone follows one part, or a blend of two along the spine and neck; arms
and thighs give up half of their twist in the half next to the trunk, as skin does. Anny's own rest
pose differs (arms half lowered, elbows bent), so each limb bone is first aligned to the T pose.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ptri.data.articulation import PARTS, global_rotations
from ptri.render.body import JOINT_CARRIERS, BodyModel, BodyShape

# Trunk drivers: (Anny bone, part below, part above, share of the one above), base to top.
_TRUNK = (
    ("root", "root", "root", 0.0),
    ("spine05", "root", "spine", 1 / 3),
    ("spine04", "root", "spine", 2 / 3),
    ("spine03", "root", "spine", 1.0),
    ("spine02", "spine", "chest", 0.5),
    ("spine01", "spine", "chest", 1.0),
    ("neck01", "chest", "neck", 0.5),
    ("neck02", "chest", "neck", 1.0),
    ("neck03", "neck", "head", 0.5),
    ("head", "neck", "head", 1.0),
)
# Limb drivers of one side: (bone whose head is the pivot, parent driver, part)
_LIMBS = (
    ("clavicle", "spine01", "clavicle"),
    ("upperarm01", "clavicle", "upper_arm"),
    ("lowerarm01", "upperarm01", "forearm"),
    ("wrist", "lowerarm01", "hand"),
    ("upperleg01", "root", "thigh"),
    ("lowerleg01", "upperleg01", "shank"),
    ("foot", "lowerleg01", "foot"),
)
_TWISTING = {"upperarm01": ("clavicle", 0), "upperleg01": ("root", 2)}  # base part, axis


class RiggedBody(NamedTuple):
    """A body bound to the drivers: D drivers, P vertices."""

    drivers: tuple[str, ...]  # D names; a trailing "+" marks the half of a limb next to the trunk
    weights: np.ndarray  # (P, D) float32
    pivots: np.ndarray  # (D, 3) rest position of each driver's pivot, m
    alignment: np.ndarray  # (D, 3, 3) rest pose -> reference pose, rotation
    joints: np.ndarray  # (17, 3) rest joints, m
    joint_drivers: np.ndarray  # (17,) driver each joint moves with


def bind(model: BodyModel, shape: BodyShape) -> RiggedBody:
    """Binds a rest shape to the drivers (see the module docstring)."""
    drivers = _driver_names()
    heads = {bone: shape.bone_heads[i] for i, bone in enumerate(model.bones)}
    pivots = np.stack([heads[name.rstrip("+")] for name in drivers])
    pivots[drivers.index("root")] = shape.joints[6]
    alignment = np.tile(np.eye(3), (len(drivers), 1, 1))
    for side, sign in (("L", 1.0), ("R", -1.0)):
        bones = {bone[:-2]: head for bone, head in heads.items() if bone.endswith("." + side)}
        align = _limb_alignment(bones, sign)
        for name, rotation in align.items():
            for driver in (f"{name}.{side}", f"{name}.{side}+"):
                if driver in drivers:
                    alignment[drivers.index(driver)] = rotation
    groups = np.array([drivers.index(_driver_of(model, bone)) for bone in model.bones])
    weights = driver_weights(model, model.weights)
    carriers = [groups[model.bones.index(bone)] for bone in JOINT_CARRIERS]
    return RiggedBody(drivers, weights, pivots, alignment, shape.joints, np.array(carriers))


def driver_weights(model: BodyModel, weights: np.ndarray) -> np.ndarray:
    """Weights of bones (P, B) -> of the drivers that move them (P, D) float32."""
    drivers = _driver_names()
    of_drivers = np.zeros((len(weights), len(drivers)), np.float32)
    for bone, name in enumerate(model.bones):
        of_drivers[:, drivers.index(_driver_of(model, name))] += weights[:, bone]
    return of_drivers


def part_rotations(rotations: torch.Tensor, root: torch.Tensor) -> dict[str, np.ndarray]:
    """Local part rotations (T, P, 3, 3) and root (T, 3, 3) -> part name -> (T, 3, 3) global."""
    values = global_rotations(rotations, root).double().numpy()
    return {part: values[:, i] for i, part in enumerate((*PARTS, "root"))}


def pose(
    rig: RiggedBody, parts: dict[str, np.ndarray], root: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Driver transforms and joints of T poses.

    Args:
        rig: from `bind`.
        parts: part -> (T, 3, 3) global rotation, from `part_rotations`.
        root: (T, 3) m, where the hip (root) joint goes.

    Returns:
        Transforms (T, D, 3, 4), rest -> world, metres; joints (T, 17, 3) m.
    """
    rotation: dict[str, np.ndarray] = {}
    pivot: dict[str, np.ndarray] = {"root": root}
    rest = dict(zip(rig.drivers, rig.pivots))
    align = dict(zip(rig.drivers, rig.alignment))

    def place(name: str, parent: str) -> None:
        pivot[name] = pivot[parent] + rotation[parent] @ (rest[name] - rest[parent])

    previous = "root"
    for name, below, above, share in _TRUNK:
        rotation[name] = _blend(parts[below], parts[above], share)
        if name != "root":
            place(name, previous)
        previous = name
    for side, long_side in (("L", "left"), ("R", "right")):
        for bone, parent, part in _LIMBS:
            name, up = f"{bone}.{side}", parent if parent in rest else f"{parent}.{side}"
            place(name, up)
            turn = parts[f"{long_side}_{part}"]
            rotation[name] = turn @ align[name]
            if bone in _TWISTING:
                base, axis = _TWISTING[bone]
                base = base if base in parts else f"{long_side}_{base}"
                inner = _untwist(parts[base], turn, axis, 0.5)
                rotation[name + "+"], pivot[name + "+"] = inner @ align[name], pivot[name]
    turns = np.stack([rotation[name] for name in rig.drivers], 1)  # (T, D, 3, 3)
    moved = np.stack([pivot[name] for name in rig.drivers], 1)  # (T, D, 3)
    shift = moved - np.einsum("tdij,dj->tdi", turns, rig.pivots)
    transforms = np.concatenate([turns, shift[..., None]], -1)
    carried = transforms[:, rig.joint_drivers]  # (T, 17, 3, 4)
    joints = np.einsum("tjab,jb->tja", carried[..., :3], rig.joints) + carried[..., 3]
    return transforms, joints


def skin(
    transforms: np.ndarray, weights: np.ndarray, vertices: np.ndarray, normals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Linear blend skinning of one pose.

    Args:
        transforms: (D, 3, 4) of one frame.
        weights: (P, D); vertices, normals: (P, 3) at rest.

    Returns:
        Posed vertices (P, 3) and normals (P, 3, not normalised), float32.
    """
    blend = weights @ transforms.reshape(len(transforms), 12).astype(np.float32)
    columns = blend.reshape(-1, 3, 4)
    turned = columns[:, :, :3]
    points = np.einsum("qab,qb->qa", turned, vertices) + columns[:, :, 3]
    return points, np.einsum("qab,qb->qa", turned, normals)


def _driver_names() -> tuple[str, ...]:
    names = [name for name, *_ in _TRUNK]
    for side in "LR":
        for bone, *_ in _LIMBS:
            names.append(f"{bone}.{side}")
            if bone in ("upperarm01", "upperleg01"):
                names.append(f"{bone}.{side}+")
    return tuple(names)


def _driver_of(model: BodyModel, bone: str) -> str:
    """The driver an Anny bone moves with: itself, or the nearest ancestor's."""
    special = {"pelvis": "root", "shoulder01": "clavicle", "upperarm02": "upperarm01"}
    special |= {"upperleg02": "upperleg01", "upperarm01": "upperarm01+"}
    special |= {"upperleg01": "upperleg01+", "lowerarm02": "lowerarm01", "lowerleg02": "lowerleg01"}
    names = _driver_names()
    while True:
        stem, dot, side = bone.partition(".")
        target = special.get(stem, stem)
        if target in names:
            return target
        sided = target.rstrip("+") + dot + side + ("+" if target.endswith("+") else "")
        if sided in names:
            return sided
        bone = model.bones[model.parents[model.bones.index(bone)]]


def _limb_alignment(heads: dict[str, np.ndarray], sign: float) -> dict[str, np.ndarray]:
    """Rotations that bring one side's rest limbs to the T pose; sign is 1 for the left side."""
    upper = heads["lowerarm01"] - heads["upperarm01"]
    fore = heads["wrist"] - heads["lowerarm01"]
    hand = heads["finger3-1"] - heads["wrist"]
    # Anny's elbows are a little bent at rest, which shows the axis of the hinge.
    out, hinge, hinge_t = np.array([sign, 0, 0]), np.cross(upper, fore), np.array([0, 0, -sign])
    fore_turn = _frame_rotation(fore, hinge, out, hinge_t)
    down = np.array([0.0, 0, -1])
    thigh = _shortest(heads["lowerleg01"] - heads["upperleg01"], down)
    shank = _shortest(thigh @ (heads["foot"] - heads["lowerleg01"]), down) @ thigh
    return {
        "upperarm01": _frame_rotation(upper, hinge, out, hinge_t),
        "lowerarm01": fore_turn,
        "wrist": _shortest(fore_turn @ hand, out) @ fore_turn,
        "upperleg01": thigh,
        "lowerleg01": shank,
    }


def _frame_rotation(
    direction: np.ndarray, hinge: np.ndarray, to_direction: np.ndarray, to_hinge: np.ndarray
) -> np.ndarray:
    """Rotation taking one pair of perpendicular axes to another."""

    def frame(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
        return np.stack([a, b, np.cross(a, b)], 1)

    return frame(to_direction, to_hinge) @ frame(direction, hinge).T


def _shortest(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Smallest rotation taking one direction to another."""
    source = source / np.linalg.norm(source)
    axis = np.cross(source, target)
    sine, cosine = np.linalg.norm(axis), float(source @ target)
    if sine < 1e-9:  # parallel: the axis is undefined, and limbs never point the opposite way
        return np.eye(3)
    return Rotation.from_rotvec(axis / sine * np.arctan2(sine, cosine)).as_matrix()


def _blend(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Geodesic between (T, 3, 3) rotations."""
    if share == 0:
        return first
    if share == 1:
        return second
    # Written out: scipy's conversions are dear for one pose. Trunk joints bend less than 180 deg.
    relative = first.transpose(0, 2, 1) @ second
    twice = np.stack(
        [
            relative[:, 2, 1] - relative[:, 1, 2],
            relative[:, 0, 2] - relative[:, 2, 0],
            relative[:, 1, 0] - relative[:, 0, 1],
        ],
        -1,
    )
    sine = np.sqrt((twice**2).sum(-1)) / 2
    angle = share * np.arctan2(sine, (np.trace(relative, axis1=1, axis2=2) - 1) / 2)
    # 1e-12 guards equal rotations, whose axis is of no importance.
    return first @ _turns(twice / np.maximum(2 * sine, 1e-12)[:, None], angle)


def _turns(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotations (T, 3, 3) about unit axes (T, 3), Rodrigues."""
    x, y, z = axis.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    sine, rest = np.sin(angle)[:, None, None], (1 - np.cos(angle))[:, None, None]
    return np.eye(3) + sine * cross + rest * (cross @ cross)


def _untwist(base: np.ndarray, turn: np.ndarray, axis: int, share: float) -> np.ndarray:
    """Removes a share of the twist, from base to turn, about the limb's own axis (x or z)."""
    relative = base.transpose(0, 2, 1) @ turn
    j, k = (axis + 1) % 3, (axis + 2) % 3
    # The twist's half angle is that of the quaternion's part along the axis.
    part = relative[:, k, j] - relative[:, j, k]
    twist = 2 * np.arctan2(part, 1 + np.trace(relative, axis1=1, axis2=2))
    return turn @ _turns(np.tile(np.eye(3)[axis], (len(turn), 1)), -share * twist)
