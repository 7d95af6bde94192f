"""Joint sets: names, parents, left/right pairs, root, and linear maps between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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
        return tuple(self.joints.index(_mirror_name(name)) for name in self.joints)


def _mirror_name(name: str) -> str:
    if name.startswith("left_"):
        return "right_" + name[5:]
    if name.startswith("right_"):
        return "left_" + name[6:]
    return name


def _skeleton(name: str, table: list[tuple[str, str | None]], root: str | None) -> Skeleton:
    joints = tuple(joint for joint, _ in table)
    parents = tuple(-1 if parent is None else joints.index(parent) for _, parent in table)
    return Skeleton(name, joints, parents, -1 if root is None else joints.index(root))


# Human3.6M in the order of the learnable-triangulation labels. "foot" is the ankle; "head" the top
# of the head; "nose" sits between neck and nose.
H36M17 = _skeleton(
    "h36m17",
    [
        ("right_foot", "right_knee"),
        ("right_knee", "right_hip"),
        ("right_hip", "hip"),
        ("left_hip", "hip"),
        ("left_knee", "left_hip"),
        ("left_foot", "left_knee"),
        ("hip", None),
        ("spine", "hip"),
        ("thorax", "spine"),
        ("head", "nose"),
        ("right_wrist", "right_elbow"),
        ("right_elbow", "right_shoulder"),
        ("right_shoulder", "thorax"),
        ("left_shoulder", "thorax"),
        ("left_elbow", "left_shoulder"),
        ("left_wrist", "left_elbow"),
        ("nose", "thorax"),
    ],
    "hip",
)
