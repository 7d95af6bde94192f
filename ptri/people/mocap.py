"""Motion capture as a source of poses (optional).

File: an ``.npz`` without pickles, y up, floor at y = 0, with ``fps`` (number), ``kinds`` (strings)
and for each kind the arrays ``<kind>_positions_h36m17`` (N, 17, 3) in mm, joints in `H36M17` order,
``<kind>_clip_start`` (C + 1) int, so that the frames of clip i are ``start[i]:start[i + 1]``, and
``<kind>_clip_source_subject`` and ``_trial`` (C) int, -1 = unknown. Only bone directions are used:
bones take the lengths of generated bodies, so that performers' sizes do not repeat themselves.
"""

from __future__ import annotations

import contextlib
import functools
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.geometry.rotations import so3_exp
from ptri.people.articulation import chain_matrix
from ptri.people.draws import Draws
from ptri.skeleton import H36M17

_HELD_OUT_SHARE = 5  # one (subject, trial) of so many is held out


class MotionCapture(NamedTuple):
    """Clips of 17-joint skeletons, z up."""

    positions: Tensor  # (N, 17, 3) mm float32, all clips one after the other
    start: Tensor  # (C,) int64 first frame of each clip
    length: Tensor  # (C,) int64 frames
    fps: float


@contextlib.contextmanager
def open_mocap(path: str, key: str) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of a file of motion capture; what is wrong with them becomes a UserError.

    Args:
        path: of the .npz. key: the setting that named it, for the message.

    Raises:
        UserError: no such file, or it is not in the format.
    """
    if not Path(path).is_file():
        raise UserError(f"{key}: no such file: {path}; give another, or none")
    try:
        with np.load(path, allow_pickle=False) as data:
            yield data
    except UserError:  # also a ValueError, but says already what is wrong
        raise
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{key}: {path} is not motion capture in the expected format "
            f"(see ptri/people/mocap.py): {error}"
        ) from None


def kept_clips(data: np.lib.npyio.NpzFile, kind: str, split: str) -> np.ndarray:
    """(C,) bool, which clips of a kind belong to a split; unknown trials are for training.

    Args:
        split: "train", "held_out" or "all".
    """
    subject = data[f"{kind}_clip_source_subject"].astype(np.int64)
    trial = data[f"{kind}_clip_source_trial"].astype(np.int64)
    if split == "all":
        return np.full(len(subject), True)
    known = (subject >= 0) & (trial >= 0)
    held_out = known & ((7 * subject + trial) % _HELD_OUT_SHARE == 0)
    return held_out == (split == "held_out")


@functools.lru_cache(maxsize=4)
def load_mocap(path: str, split: Literal["train", "held_out", "all"]) -> MotionCapture:
    """Reads motion capture (module docstring). Trials are split whole; unknown ones train.

    Raises:
        UserError: no such file; not in the format; no clip in the split.
    """
    positions, starts, lengths, total = [], [], [], 0
    with open_mocap(path, "generated.mocap") as data:
        for kind in data["kinds"].tolist():
            clip_start = data[f"{kind}_clip_start"].astype(np.int64)
            keep = kept_clips(data, kind, split)
            starts.append(total + clip_start[:-1][keep])
            lengths.append(np.diff(clip_start)[keep])
            positions.append(data[f"{kind}_positions_h36m17"].astype(np.float32))
            total += len(positions[-1])
        fps = float(data["fps"])
    start = torch.from_numpy(np.concatenate(starts))
    if len(start) == 0:
        raise UserError(f"generated.mocap: {path} has no clip in the split '{split}'")
    y_up = torch.from_numpy(np.concatenate(positions))
    z_up = torch.stack([y_up[..., 0], -y_up[..., 2], y_up[..., 1]], dim=-1)
    return MotionCapture(z_up, start, torch.from_numpy(np.concatenate(lengths)), fps)


def sample_mocap(
    draws: Draws, mocap: MotionCapture, num_frames: int, fps: float, lengths: Tensor
) -> Tensor:
    """Pieces of clips on other people's bones, turned and mirrored at random.

    Args:
        draws: B streams. num_frames: T. fps: wanted frames per second.
        lengths: (B, 16) mm, in the order of `H36M17.bones`.

    Returns:
        (B, T, 17, 3) mm, world z up, lowest joint 75 mm above the floor, the path centred above
        the origin. A clip that is too short runs to and fro.
    """
    # Clips are chosen by their length, so every frame is about as likely as any other.
    edges = mocap.length.cumsum(0)
    clip = torch.searchsorted(edges, draws.choice(int(edges[-1])), right=True)
    length = mocap.length[clip].unsqueeze(1)
    wanted = torch.arange(num_frames) * (mocap.fps / fps)
    free = (length - 1 - wanted[-1]).clamp_min(0)
    time = draws.uniform(1) * free + wanted  # (B, T) in the clip's frames
    period = 2 * (length - 1).clamp_min(1)
    time = torch.minimum(time % period, period - time % period)
    first = time.floor().long().clamp_max(length - 1)
    second = (first + 1).clamp_max(length - 1)
    base = mocap.start[clip].unsqueeze(1)
    joints = torch.lerp(
        mocap.positions[base + first],
        mocap.positions[base + second],
        (time - first)[..., None, None],
    )
    mirror = joints[..., list(H36M17.flip), :] * torch.tensor([-1.0, 1.0, 1.0])
    joints = torch.where(draws.uniform(1, 1, 1) < 0.5, mirror, joints)
    path = joints[..., H36M17.root, :]
    joints = relength(joints, lengths, draws.uniform(1, low=0.25, high=0.7))
    heading = draws.uniform(1, high=2 * math.pi)
    turn = so3_exp(torch.nn.functional.pad(heading, (2, 0))).transpose(-1, -2)
    joints, path = joints @ turn.unsqueeze(1), path @ turn
    middle = (path[..., :2].amax(1, keepdim=True) + path[..., :2].amin(1, keepdim=True)) / 2
    height = 75.0 - joints[..., 2].amin(-1, keepdim=True)
    shift = torch.cat([path[..., :2] - middle, height], dim=-1)
    return joints + shift.unsqueeze(-2)


def relength(joints: Tensor, lengths: Tensor, nose_angle: Tensor) -> Tensor:
    """Skeletons with the same bone directions and other lengths, hip at the origin.

    Args:
        joints: (B, T, 17, 3) mm. lengths: (B, 16) mm.
        nose_angle: (B, 1) rad by which "nose" lies before the line from thorax to head: motion
            capture puts it on that line.
    """
    child, parent = (list(ends) for ends in zip(*H36M17.bones))
    vectors = joints[..., child, :] - joints[..., parent, :]
    left, right = (H36M17.joints.index(f"{side}_shoulder") for side in ("left", "right"))
    across = torch.nn.functional.normalize(joints[..., left, :] - joints[..., right, :], dim=-1)
    for name, share in (("nose", 1.0), ("head", -0.8)):
        turn = so3_exp(share * across * nose_angle.unsqueeze(-1))
        bone = child.index(H36M17.joints.index(name))
        vectors[..., bone, :] = (turn @ vectors[..., bone, :, None])[..., 0]
    # 1e-6 mm guards joints that coincide.
    directions = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return chain_matrix() @ (directions * lengths[:, None, :, None])
