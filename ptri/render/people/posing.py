"""Poses an Anny body by the part rotations of the articulated body in `ptri.people.articulation`.

That body's axes are Anny's (x to the person's left, y backwards, z up); its rest pose is a T with
straight legs, palms down and elbow pits forwards. A part's global rotation takes the T pose to the
posed world. Here each Anny bone follows one part, or a blend of two along the spine and neck; arms
and thighs give up half of their twist in the half next to the trunk, as skin does. Anny's own rest
pose differs (arms half lowered, elbows bent), so each limb bone is first aligned to the T pose.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch

from ptri.people.articulation import PARTS, global_rotations
from ptri.people.retarget import shortest_rotation
from ptri.render.people.body import JOINT_CARRIERS, BodyShape, load_body_model

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
_PART_NAMES = (*PARTS, "root")
_ONE = np.eye(3)
# Unit vectors -> their matrices of the cross product, rows flattened.
_CROSS = np.array([[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0],
                   [0, -1, 0, 1, 0, 0, 0, 0, 0]], float)  # fmt: skip
_TWISTING = {"upperarm01": ("clavicle", 0), "upperleg01": ("root", 2)}  # base part, axis


class RiggedBody(NamedTuple):
    """A body bound to the drivers: D drivers, P vertices."""

    drivers: tuple[str, ...]  # D names; a trailing "+" marks the half of a limb next to the trunk
    weights: np.ndarray  # (P, D) float32
    pivots: np.ndarray  # (D, 3) rest position of each driver's pivot, m
    alignment: np.ndarray  # (D, 3, 3) rest pose -> reference pose, rotation
    joints: np.ndarray  # (17, 3) rest joints, m
    joint_drivers: np.ndarray  # (17,) driver each joint moves with


def bind(shape: BodyShape) -> RiggedBody:
    """Binds a rest shape to the drivers (see the module docstring)."""
    model, drivers = load_body_model(), _driver_names()
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
    groups, weights = _driver_indices(), driver_weights(model.weights)
    carriers = [groups[model.bones.index(bone)] for bone in JOINT_CARRIERS]
    return RiggedBody(drivers, weights, pivots, alignment, shape.joints, np.array(carriers))


def driver_weights(weights: np.ndarray) -> np.ndarray:
    """Weights of bones (P, B) -> of the drivers that move them (P, D) float32."""
    sums = _driver_indices()[:, None] == np.arange(len(_driver_names()))  # (B, D)
    return weights.astype(np.float32) @ sums.astype(np.float32)


def part_rotations(rotations: torch.Tensor, root: torch.Tensor) -> dict[str, np.ndarray]:
    """Local part rotations (T, P, 3, 3) and root (T, 3, 3) -> part name -> (T, 3, 3) global."""
    values = global_rotations(rotations, root).double().numpy()
    return {part: values[:, i] for i, part in enumerate(_PART_NAMES)}


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
    plan = _plan()
    given = np.stack([parts[part] for part in _PART_NAMES], 1)  # (T, P + 1, 3, 3)
    turns = np.empty((len(given), len(plan.parent), 3, 3))
    turns[:, plan.alone] = given[:, plan.part]
    turns[:, plan.blended] = _blend(given[:, plan.below], given[:, plan.above], plan.share)
    turns[:, plan.inner] = _untwist(
        given[:, plan.twist_base], given[:, plan.twist_part], plan.twist_axis, 0.5
    )
    turns = turns @ rig.alignment  # the trunk's are ones
    # A pivot lies at the sum of the turned steps from the root to it.
    step = rig.pivots - rig.pivots[plan.parent]
    steps = (turns[:, plan.parent] @ step[..., None])[..., 0]  # (T, D, 3)
    moved = root[:, None] + plan.chain @ steps
    shift = moved - (turns @ rig.pivots[..., None])[..., 0]
    transforms = np.concatenate([turns, shift[..., None]], -1)
    carried = transforms[:, rig.joint_drivers]  # (T, 17, 3, 4)
    joints = (carried[..., :3] @ rig.joints[..., None])[..., 0] + carried[..., 3]
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
    # Rows of numbers, one for each entry of the matrices: several times as fast as matrices.
    blend = transforms.reshape(len(transforms), 12).T.astype(np.float32) @ weights.T
    blend = blend.reshape(3, 4, -1)  # (3, 4, P)
    place, turned = vertices.T.copy(), normals.T.copy()
    points, outward = np.empty((2, *vertices.shape), np.float32)
    for axis, (x, y, z, shift) in enumerate(blend):
        points[:, axis] = x * place[0] + y * place[1] + z * place[2] + shift
        outward[:, axis] = x * turned[0] + y * turned[1] + z * turned[2]
    return points, outward


class _Plan(NamedTuple):
    """How the D drivers follow the parts, as indices of drivers and of `_PART_NAMES`."""

    parent: np.ndarray  # (D,) driver that carries each driver's pivot; the root's own is the root
    chain: np.ndarray  # (D, D) 1 where a step lies on the way from the root to a pivot
    alone: np.ndarray  # drivers that follow one part, ...
    part: np.ndarray  # ... which
    blended: np.ndarray  # drivers that follow a blend of two, ...
    below: np.ndarray  # the part below, ...
    above: np.ndarray  # the one above ...
    share: np.ndarray  # ... and its share
    inner: np.ndarray  # halves of limbs next to the trunk, ...
    twist_part: np.ndarray  # their part, ...
    twist_base: np.ndarray  # the part that it twists against ...
    twist_axis: np.ndarray  # ... and the axis


@functools.cache
def _plan() -> _Plan:
    names = _driver_names()
    parent = {"root": "root"}
    alone, blended, inner = [], [], []
    previous = "root"
    for name, below, above, share in _TRUNK:
        parent[name], previous = previous, name
        below, above = map(_PART_NAMES.index, (below, above))
        if share in (0, 1):
            alone.append((names.index(name), above if share else below))
        else:
            blended.append((names.index(name), below, above, share))
    for side, long_side in (("L", "left"), ("R", "right")):
        for bone, up, part in _LIMBS:
            name = f"{bone}.{side}"
            parent[name] = up if up in names else f"{up}.{side}"
            index = _PART_NAMES.index(f"{long_side}_{part}")
            alone.append((names.index(name), index))
            if bone in _TWISTING:
                base, axis = _TWISTING[bone]
                base = base if base in _PART_NAMES else f"{long_side}_{base}"
                parent[name + "+"] = parent[name]
                inner.append((names.index(name + "+"), index, _PART_NAMES.index(base), axis))
    chain = np.zeros((len(names), len(names)))
    for row, name in enumerate(names):
        while name != "root":
            chain[row, names.index(name)] = 1
            name = parent[name]
    alone, part = np.array(alone).T
    blended, below, above, share = map(np.array, zip(*blended))
    inner, twist_part, twist_base, twist_axis = np.array(inner).T
    return _Plan(
        parent=np.array([names.index(parent[name]) for name in names]),
        chain=chain,
        alone=alone,
        part=part,
        blended=blended,
        below=below,
        above=above,
        share=share,
        inner=inner,
        twist_part=twist_part,
        twist_base=twist_base,
        twist_axis=twist_axis,
    )


@functools.cache
def _driver_names() -> tuple[str, ...]:
    names = [name for name, *_ in _TRUNK]
    for side in "LR":
        for bone, *_ in _LIMBS:
            names.append(f"{bone}.{side}")
            if bone in ("upperarm01", "upperleg01"):
                names.append(f"{bone}.{side}+")
    return tuple(names)


@functools.cache
def _driver_indices() -> np.ndarray:
    """(B,) the driver each Anny bone moves with: itself, or the nearest ancestor's."""
    special = {"pelvis": "root", "shoulder01": "clavicle", "upperarm02": "upperarm01"}
    special |= {"upperleg02": "upperleg01", "upperarm01": "upperarm01+"}
    special |= {"upperleg01": "upperleg01+", "lowerarm02": "lowerarm01", "lowerleg02": "lowerleg01"}
    names, model = _driver_names(), load_body_model()

    def find(bone: str) -> int:
        stem, dot, side = bone.partition(".")
        target = special.get(stem, stem)
        sided = target.rstrip("+") + dot + side + ("+" if target.endswith("+") else "")
        for name in (target, sided):
            if name in names:
                return names.index(name)
        return find(model.bones[model.parents[model.bones.index(bone)]])

    return np.array([find(bone) for bone in model.bones])


def _limb_alignment(heads: dict[str, np.ndarray], sign: float) -> dict[str, np.ndarray]:
    """Rotations that bring one side's rest limbs to the T pose; sign is 1 for the left side."""
    upper = heads["lowerarm01"] - heads["upperarm01"]
    fore = heads["wrist"] - heads["lowerarm01"]
    hand = heads["finger3-1"] - heads["wrist"]
    # Anny's elbows are a little bent at rest, which shows the axis of the hinge.
    out, hinge, hinge_t = np.array([sign, 0, 0]), np.cross(upper, fore), np.array([0, 0, -sign])
    fore_turn = _frame_rotation(fore, hinge, out, hinge_t)
    down = np.array([0.0, 0, -1])
    thigh = shortest_rotation(heads["lowerleg01"] - heads["upperleg01"], down)
    shank = shortest_rotation(thigh @ (heads["foot"] - heads["lowerleg01"]), down) @ thigh
    return {
        "upperarm01": _frame_rotation(upper, hinge, out, hinge_t),
        "lowerarm01": fore_turn,
        "wrist": shortest_rotation(fore_turn @ hand, out) @ fore_turn,
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


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Geodesics between rotations (T, N, 3, 3); share: (N,) of the second."""
    # Written out: scipy's conversions are dear for one pose. Trunk joints bend less than 180 deg.
    relative = first.swapaxes(-1, -2) @ second
    flat = relative.reshape(*relative.shape[:-2], 9)
    twice = flat[..., [7, 2, 3]] - flat[..., [5, 6, 1]]
    sine = np.sqrt((twice * twice).sum(-1)) / 2
    angle = share * np.arctan2(sine, (flat[..., [0, 4, 8]].sum(-1) - 1) / 2)
    # 1e-12 guards equal rotations, whose axis is of no importance.
    return first @ _turns(twice / np.maximum(2 * sine, 1e-12)[..., None], angle)


def _turns(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotations (..., 3, 3) about unit axes (..., 3), Rodrigues."""
    cross = (axis @ _CROSS).reshape(*axis.shape, 3)
    sine, rest = np.sin(angle)[..., None, None], (1 - np.cos(angle))[..., None, None]
    return _ONE + sine * cross + rest * (cross @ cross)


def _untwist(base: np.ndarray, turn: np.ndarray, axis: np.ndarray, share: float) -> np.ndarray:
    """Removes a share of the twist, from base to turn (T, N, 3, 3), about the limbs' axes (N,)."""
    relative = base.swapaxes(-1, -2) @ turn
    flat = relative.reshape(*relative.shape[:-2], 9)
    number, j, k = np.arange(len(axis)), (axis + 1) % 3, (axis + 2) % 3
    # The twist's half angle is that of the quaternion's part along the axis.
    part = flat[:, number, 3 * k + j] - flat[:, number, 3 * j + k]
    twist = 2 * np.arctan2(part, 1 + flat[..., [0, 4, 8]].sum(-1))
    return turn @ _turns(np.broadcast_to(_ONE[axis], (*twist.shape, 3)), -share * twist)
