"""Joint sets: names, parents, left/right pairs, root, and linear maps between them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ptri.errors import UserError


class Skeleton(NamedTuple):
    """A joint set. ``parents[root] == -1``; a joint without a bone also has parent -1."""

    name: str
    joints: tuple[str, ...]
    parents: tuple[int, ...]
    root: int  # index of the root joint, or -1 where the set has none

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) of every joint that has a parent, in joint order."""
        return tuple((child, parent) for child, parent in enumerate(self.parents) if parent >= 0)

    @property
    def flip(self) -> tuple[int, ...]:
        """Permutation that swaps left and right joints."""
        return tuple(self.joints.index(mirror_name(name)) for name in self.joints)

    @property
    def flip_bones(self) -> tuple[int, ...]:
        """Permutation that swaps the bones of left and right."""
        flip = self.flip
        return tuple(self.bones.index((flip[a], flip[b])) for a, b in self.bones)


def mirror_name(name: str) -> str:
    """The name of the same thing on the other side."""
    side, _, part = name.partition("_")
    return {"left": f"right_{part}", "right": f"left_{part}"}.get(side, name)


def _skeleton(name: str, parents: dict[str, str | None], root: str | None) -> Skeleton:
    """A joint set from each joint's parent by name."""
    joints = tuple(parents)
    numbers = tuple(-1 if parent is None else joints.index(parent) for parent in parents.values())
    return Skeleton(name, joints, numbers, -1 if root is None else joints.index(root))


# By name; the joints' order is that of the keypoints.
# h36m17: Human3.6M in the order of the learnable-triangulation labels. "foot" is the ankle; "head"
# the top of the head; "nose" sits between neck and nose.
# coco18: OpenPose's COCO model. body25: OpenPose BODY_25; its neck is the middle of the shoulders.
# body25b: BODY_25B: COCO's 17, MPII's upper neck and head top, six points of the feet.
# halpe26: RTMPose's, the default of recent Pose2Sim versions; its "head" is the top of the head.
# mpii16: its "thorax" lies between the shoulders, its upper neck at the skull's base.
_TABLES = json.loads(Path(__file__).with_name("skeletons.json").read_text(encoding="utf-8"))
SKELETONS = {name: _skeleton(name, t["parents"], t["root"]) for name, t in _TABLES.items()}
H36M17, COCO17, COCO18 = (SKELETONS[name] for name in ("h36m17", "coco17", "coco18"))
BODY25, BODY25B, HALPE26 = (SKELETONS[name] for name in ("body25", "body25b", "halpe26"))
_ALIASES = {"pelvis": "hip", "mid_hip": "hip", "root": "hip", "crown": "head_top"}
# Joints of a set from which fewer of the 17 can be made are no body for the lifter.
MIN_KNOWN_JOINTS = 6

# How a joint is made from those of another set: the first recipe whose joints all exist.
_MIDDLE_OF_SHOULDERS = {"left_shoulder": 0.5, "right_shoulder": 0.5}
_SAME_NAME_FIRST: dict[str, tuple[dict[str, float], ...]] = {
    "left_foot": ({"left_ankle": 1.0},),
    "right_foot": ({"right_ankle": 1.0},),
    "left_ankle": ({"left_foot": 1.0},),
    "right_ankle": ({"right_foot": 1.0},),
    "hip": ({"left_hip": 0.5, "right_hip": 0.5},),
    "neck": (_MIDDLE_OF_SHOULDERS,),
    "head": ({"head_top": 1.0},),
    "head_top": ({"head": 1.0},),
}
# From a detector's points to Human3.6M's joints. "nose" there is Human3.6M's Neck/Nose, inside the
# head: the middle between the base of the skull and the tip of the nose. The thorax is the base of
# the neck, where BODY_25B has its "upper neck" (measured on a real person: 60 mm above the middle
# of the shoulders, 300 mm below the head's top; the body statistics say 296), a third of the way
# from the shoulders to the ears. The spine has no counterpart on the surface and stays open.
_FROM_DETECTOR: dict[str, tuple[dict[str, float], ...]] = {
    "thorax": (
        {"upper_neck": 1.0},
        {"left_shoulder": 1 / 3, "right_shoulder": 1 / 3, "left_ear": 1 / 6, "right_ear": 1 / 6},
    ),
    "nose": (
        {"upper_neck": 0.55, "head_top": 0.45},
        {"nose": 0.5, "left_ear": 0.25, "right_ear": 0.25},
    ),
}


def linear_map(source: Skeleton, target: Skeleton) -> np.ndarray:
    """Matrix that turns a set's joints into another's, each a weighted mean of source joints.

    Returns:
        (target J, source J) float64; rows sum to one, and the row of a joint that has no source is
        NaN. Missing joints need care (0 * NaN): use `map_joints`.
    """
    # Only Human3.6M has a spine: a set with one means its definitions.
    foreign = target is H36M17 and "spine" not in source.joints
    special = _FROM_DETECTOR if foreign else {}
    matrix = np.full((len(target.joints), len(source.joints)), np.nan)
    for row, name in enumerate(target.joints):
        recipes = special.get(name) or ({name: 1.0}, *_SAME_NAME_FIRST.get(name, ()))
        recipe = next((r for r in recipes if set(r) <= set(source.joints)), None)
        if recipe is not None:
            matrix[row] = [recipe.get(joint, 0.0) for joint in source.joints]
    return matrix


def map_joints(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Applies a `linear_map` to points (..., source J, D): (..., target J, D).

    A target joint is NaN where it has no source or one of its sources is NaN.
    """
    open_rows = np.isnan(matrix).any(1)
    weights = np.where(open_rows[:, None], 0.0, matrix)
    missing = np.isnan(points).any(-1)  # (..., source J)
    result = np.einsum("ij,...jd->...id", weights, np.where(missing[..., None], 0.0, points))
    lost = (missing[..., None, :] & (weights > 0)).any(-1) | open_rows
    return np.where(lost[..., None], np.nan, result)


def find_skeleton(skeleton: str | Sequence[str] | Skeleton) -> Skeleton:
    """A joint set from its name, or from the names of its joints in the order of the keypoints.

    Joints are known by name (`SKELETONS` holds the names in use; upper case, spaces, hyphens and
    a few synonyms do not matter); others take part in the geometry only. A set with a "spine" is
    taken to mean Human3.6M's joints, any other a detector's: its "nose" is the tip of the nose.

    Raises:
        UserError: an unknown set, names that repeat, or too few that a person has.
    """
    if isinstance(skeleton, Skeleton):
        return skeleton
    if isinstance(skeleton, str) and skeleton in SKELETONS:
        return SKELETONS[skeleton]
    names = list(skeleton)
    if isinstance(skeleton, str) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"skeleton: no joint set {skeleton!r:.80}; expected one of {', '.join(SKELETONS)}, or "
            "a list of joint names"
        )
    joints = [name.strip().lower().replace("-", "_").replace(" ", "_") for name in names]
    joints = [_ALIASES.get(name, name) for name in joints]
    twice = sorted({name for name in joints if joints.count(name) > 1})
    if twice:
        raise UserError(
            f"skeleton: {', '.join(twice)} occurs more than once; give every joint its own name"
        )
    result = _skeleton("custom", dict.fromkeys(joints), "hip" if "hip" in joints else None)
    known = H36M17.joints if "spine" in joints else COCO17.joints
    count = int((~np.isnan(linear_map(result, H36M17)).any(1)).sum())
    if count < MIN_KNOWN_JOINTS:
        raise UserError(
            f"skeleton: only {count} of Human3.6M's 17 joints can be made from the {len(joints)} "
            f"names given, at least {MIN_KNOWN_JOINTS} are needed; use names such as "
            f"{', '.join(known[-12:])}"
        )
    return result
