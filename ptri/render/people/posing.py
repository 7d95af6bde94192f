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

from ptri.people.articulation import PARTS_AND_ROOT
from ptri.people.retarget import shortest_rotation
from ptri.render.people.body import JOINT_CARRIERS, BodyShape, coco_weights, load_body_model

# Trunk drivers: (Anny bone, part below, part above, share of the one above), base to top.
_TRUNK = (
    ("root", "root", "root", 0.0),
    ("spine05", "root", "spine", 1 / 3),
    ("spine04", "root", "spine", 2 / 3),
    ("spine03", "spine", "spine", 0.0),
    ("spine02", "spine", "chest", 0.5),
    ("spine01", "chest", "chest", 0.0),
    ("neck01", "chest", "neck", 0.5),
    ("neck02", "neck", "neck", 0.0),
    ("neck03", "neck", "head", 0.5),
    ("head", "head", "head", 0.0),
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
_ONE = np.eye(3)
# Unit vectors -> their matrices of the cross product, rows flattened.
_CROSS = np.array([[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0],
                   [0, -1, 0, 1, 0, 0, 0, 0, 0]], float)  # fmt: skip
_TWISTING = {"upperarm01": ("clavicle", 0), "upperleg01": ("root", 2)}  # base part, axis


class RiggedBody(NamedTuple):
    """A body bound to the D drivers."""

    pivots: np.ndarray  # (D, 3) rest position of each driver's pivot, m
    alignment: np.ndarray  # (D, 3, 3) rest pose -> reference pose, rotation
    joints: np.ndarray  # (17, 3) rest joints of Human3.6M, m
    joint_drivers: np.ndarray  # (17,) driver each of them moves with
    coco: np.ndarray  # (17, D, 4) COCO's are the sums over drivers of the transforms of these


def bind(shape: BodyShape) -> RiggedBody:
    """Binds a rest shape to the drivers (see the module docstring)."""
    model, drivers = load_body_model(), driver_names()
    heads = {bone: shape.bone_heads[i] for i, bone in enumerate(model.bones)}
    pivots = np.stack([heads[name.rstrip("+")] for name in drivers])
    pivots[drivers.index("root")] = shape.joints[6]
    turned = _limb_alignment(heads, "L", 1.0) | _limb_alignment(heads, "R", -1.0)
    alignment = np.stack([turned.get(name.rstrip("+"), _ONE) for name in drivers])
    carriers = _driver_indices()[[model.bones.index(bone) for bone in JOINT_CARRIERS]]
    regressor = coco_weights()  # (17, P)
    near = np.flatnonzero(regressor.any(0))  # a few hundred vertices
    rest = np.concatenate([shape.vertices[near], np.ones((len(near), 1))], 1)
    carried = np.einsum("pd,pa->pda", body_weights()[near], rest).reshape(len(near), -1)
    coco = (regressor[:, near] @ carried).reshape(len(regressor), -1, 4)
    return RiggedBody(pivots, alignment, shape.joints, carriers, coco)


def driver_weights(weights: np.ndarray) -> np.ndarray:
    """Weights of bones (P, B) -> of the drivers that move them (P, D) float32."""
    sums = _driver_indices()[:, None] == np.arange(len(driver_names()))  # (B, D)
    return weights.astype(np.float32) @ sums.astype(np.float32)


@functools.cache
def body_weights() -> np.ndarray:
    """(P, D) float32 of the body's vertices."""
    return driver_weights(load_body_model().weights)


def pose(rig: RiggedBody, parts: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Driver transforms and joints of T poses.

    Args:
        parts: (T, P + 1, 3, 3) world rotations of `PARTS_AND_ROOT`, float64.
        root: (T, 3) m, where the hip (root) joint goes.

    Returns:
        Transforms (T, D, 3, 4), rest -> world, metres; Human3.6M's joints (T, 17, 3) m.
    """
    plan, chain = _plan()
    turns = _blend(parts[:, plan.below], parts[:, plan.above], plan.share)
    turns = _untwist(parts[:, plan.base], turns, plan.axis, plan.untwist)
    turns = turns @ rig.alignment  # the trunk's are ones
    # A pivot lies at the sum of the turned steps from the root to it.
    step = rig.pivots - rig.pivots[plan.parent]
    steps = (turns[:, plan.parent] @ step[..., None])[..., 0]  # (T, D, 3)
    moved = root[:, None] + chain @ steps
    shift = moved - (turns @ rig.pivots[..., None])[..., 0]
    transforms = np.concatenate([turns, shift[..., None]], -1)
    carried = transforms[:, rig.joint_drivers]  # (T, 17, 3, 4)
    joints = (carried[..., :3] @ rig.joints[..., None])[..., 0] + carried[..., 3]
    return transforms, joints


def coco_keypoints(rig: RiggedBody, transforms: np.ndarray) -> np.ndarray:
    """COCO's keypoints (T, 17, 3) m of the transforms (T, D, 3, 4) of T poses."""
    return np.einsum("kdb,tdab->tka", rig.coco, transforms)


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


class _Driver(NamedTuple):
    """How a driver moves, as indices of drivers and of `PARTS_AND_ROOT`; or arrays (D,) of that."""

    parent: int  # driver that carries its pivot; the root's own is the root
    below: int  # it turns between two parts, this one ...
    above: int  # ... and this one, ...
    share: float  # ... by this share
    base: int = 0  # part against which it gives up ...
    axis: int = 0  # ... of its twist about this axis ...
    untwist: float = 0.0  # ... this share


@functools.cache
def driver_names() -> tuple[str, ...]:
    """D names; a trailing "+" marks the half of a limb next to the trunk."""
    names = [name for name, *_ in _TRUNK]
    for side in "LR":
        for bone, *_ in _LIMBS:
            names += [f"{bone}.{side}", f"{bone}.{side}+"][: 1 + (bone in _TWISTING)]
    return tuple(names)


@functools.cache
def _plan() -> tuple[_Driver, np.ndarray]:
    """The drivers, and (D, D) 1 where a step lies on the way from the root to a pivot."""
    names, part, rows = driver_names(), PARTS_AND_ROOT.index, {}
    for (name, below, above, share), (parent, *_) in zip(_TRUNK, (_TRUNK[0], *_TRUNK)):
        rows[name] = _Driver(names.index(parent), part(below), part(above), share)
    for side, word in (("L", "left"), ("R", "right")):
        for bone, parent, name in _LIMBS:
            up, limb = parent if parent in names else f"{parent}.{side}", part(f"{word}_{name}")
            row = rows[f"{bone}.{side}"] = _Driver(names.index(up), limb, limb, 0.0)
            if bone in _TWISTING:
                base, axis = _TWISTING[bone]
                base = part(base if base in PARTS_AND_ROOT else f"{word}_{base}")
                rows[f"{bone}.{side}+"] = row._replace(base=base, axis=axis, untwist=0.5)
    plan = _Driver(*map(np.array, zip(*(rows[name] for name in names))))
    chain = np.zeros((len(names), len(names)))
    for row in range(len(names)):
        step = row
        while names[step] != "root":
            chain[row, step] = 1
            step = plan.parent[step]
    return plan, chain


@functools.cache
def _driver_indices() -> np.ndarray:
    """(B,) the driver each Anny bone moves with: itself, or the nearest ancestor's."""
    special = {"pelvis": "root", "shoulder01": "clavicle{}", "lowerarm02": "lowerarm01{}"}
    special |= {"upperarm01": "upperarm01{}+", "upperarm02": "upperarm01{}"}
    special |= {"upperleg01": "upperleg01{}+", "upperleg02": "upperleg01{}"}
    special |= {"lowerleg02": "lowerleg01{}"}
    names, model = driver_names(), load_body_model()

    def find(bone: str) -> int:
        stem, dot, side = bone.partition(".")
        name = special.get(stem, stem + "{}").format(dot + side)
        if name in names:
            return names.index(name)
        return find(model.bones[model.parents[model.bones.index(bone)]])

    return np.array([find(bone) for bone in model.bones])


def _limb_alignment(heads: dict[str, np.ndarray], side: str, sign: float) -> dict[str, np.ndarray]:
    """Rotations that bring one side's rest limbs to the T pose; sign is 1 for the left side."""

    def bone(start: str, end: str) -> np.ndarray:
        return heads[f"{end}.{side}"] - heads[f"{start}.{side}"]

    upper, fore = bone("upperarm01", "lowerarm01"), bone("lowerarm01", "wrist")
    hand = bone("wrist", "finger3-1")
    # Anny's elbows are a little bent at rest, which shows the axis of the hinge.
    out, hinge, hinge_t = np.array([sign, 0, 0]), np.cross(upper, fore), np.array([0, 0, -sign])
    fore_turn = _frame_rotation(fore, hinge, out, hinge_t)
    down = np.array([0.0, 0, -1])
    thigh = shortest_rotation(bone("upperleg01", "lowerleg01"), down)
    shank = shortest_rotation(thigh @ bone("lowerleg01", "foot"), down) @ thigh
    turns = {
        "upperarm01": _frame_rotation(upper, hinge, out, hinge_t),
        "lowerarm01": fore_turn,
        "wrist": shortest_rotation(fore_turn @ hand, out) @ fore_turn,
        "upperleg01": thigh,
        "lowerleg01": shank,
    }
    return {f"{name}.{side}": turn for name, turn in turns.items()}


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


def _untwist(base: np.ndarray, turn: np.ndarray, axis: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Removes shares (N,) of the twist, from base to turn (T, N, 3, 3), about axes (N,)."""
    relative = base.swapaxes(-1, -2) @ turn
    flat = relative.reshape(*relative.shape[:-2], 9)
    number, j, k = np.arange(len(axis)), (axis + 1) % 3, (axis + 2) % 3
    # The twist's half angle is that of the quaternion's part along the axis.
    part = flat[:, number, 3 * k + j] - flat[:, number, 3 * j + k]
    twist = 2 * np.arctan2(part, 1 + flat[..., [0, 4, 8]].sum(-1))
    return turn @ _turns(np.broadcast_to(_ONE[axis], (*twist.shape, 3)), -share * twist)
