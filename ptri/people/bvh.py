"""BVH motion files: skeleton, offsets and rotations. Biovision's format, as Blender writes it.

Angles of a joint's channels are applied in the order they are listed,
``R = R(first) R(second) R(third)``, and a joint's position is the parent's plus the parent's
rotation times the offset.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from ptri.errors import UserError

_POSITION = ("Xposition", "Yposition", "Zposition")
_ROTATION = ("Xrotation", "Yrotation", "Zrotation")


class SkeletonMotion(NamedTuple):
    """A skeleton that turns: J joints, N frames. Units and axes are the file's."""

    names: tuple[str, ...]  # J; parents come before children
    parents: tuple[int, ...]  # -1 for the root
    offsets: np.ndarray  # (J, 3) in the parent's frame
    rotations: np.ndarray  # (N, J, 3, 3) local
    fps: float


def read_bvh(path: str | Path) -> SkeletonMotion:
    """Reads a BVH file; end sites become joints without rotation named ``<parent>_end``.

    Raises:
        UserError: unreadable, not BVH, or its motion does not fit its skeleton.
    """
    path = Path(path)
    try:
        head, mark, tail = path.read_text(errors="replace").partition("MOTION")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not mark or "HIERARCHY" not in head:
        raise UserError(f"{path}: not a BVH file; expected HIERARCHY and MOTION")
    try:
        names, parents, offsets, channels = _read_hierarchy(head.split())
        frames, fps = _read_frames(tail)
    except (IndexError, StopIteration, ValueError) as error:
        raise UserError(f"{path}: damaged BVH file: {error}") from None
    wanted = sum(len(c) for c in channels)
    if not names or frames.ndim != 2 or frames.shape[1] != wanted:
        raise UserError(
            f"{path}: its frames have {frames.shape[-1]} numbers, its skeleton {wanted} channels; "
            "expected as many"
        )
    rotations = np.tile(np.eye(3), (len(frames), len(names), 1, 1))
    column = 0
    for joint, listed in enumerate(channels):
        turns = [i for i, name in enumerate(listed) if name in _ROTATION]
        if turns:
            axes, angles = "".join(listed[i][0] for i in turns), frames[:, column:][:, turns]
            rotations[:, joint] = Rotation.from_euler(axes, angles, degrees=True).as_matrix()
        column += len(listed)
    return SkeletonMotion(tuple(names), tuple(parents), offsets, rotations, fps)


def _read_hierarchy(words: list[str]) -> tuple[list, list, np.ndarray, list]:
    names, parents, offsets, channels, stack = [], [], [], [], []
    rest = iter(words)
    for word in rest:
        if word in ("ROOT", "JOINT", "End"):
            label = next(rest)
            names.append(f"{names[stack[-1]]}_end" if word == "End" else label)
            parents.append(stack[-1] if stack else -1)
            offsets.append([0.0, 0.0, 0.0])
            channels.append([])
        elif word == "{":
            stack.append(len(names) - 1)
        elif word == "}":
            stack.pop()
        elif word == "OFFSET":
            offsets[stack[-1]] = [float(next(rest)) for _ in range(3)]
        elif word == "CHANNELS":
            channels[stack[-1]] = [next(rest) for _ in range(int(next(rest)))]
            unknown = set(channels[stack[-1]]) - set(_POSITION + _ROTATION)
            if unknown:
                raise ValueError(f"unknown channel {sorted(unknown)[0]}")
        elif word != "HIERARCHY":
            raise ValueError(f"unexpected word {word!r} in the hierarchy")
    return names, parents, np.array(offsets), channels


def _read_frames(text: str) -> tuple[np.ndarray, float]:
    lines = [line for line in text.splitlines() if line.strip()]
    count = int(lines[0].split(":")[1])
    seconds = float(lines[1].split(":")[1])
    frames = np.array([line.split() for line in lines[2 : 2 + count]], float)
    if len(frames) != count or count == 0:
        raise ValueError(f"{len(frames)} of {count} frames")
    if not np.isfinite(frames).all() or not seconds > 0:
        raise ValueError("numbers that are not finite, or a frame time of 0")
    return frames, 1 / seconds
