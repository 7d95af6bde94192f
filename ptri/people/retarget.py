"""Motion capture on the articulated body: the rotations of its parts from another skeleton's.

The other skeleton's rest pose (all rotations zero) has to stand or nearly so, arms anywhere from
hanging to a T, as those of BVH and of CMU's ASF files do. A bone's direction at rest is compared
with that of `ptri.people.articulation`'s T pose; the shortest rotation between the two is what the
part is turned by beforehand, so limbs point where the performer's point, and the twist is the
performer's relative to that rest pose. Bone lengths play no role.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from ptri.errors import UserError
from ptri.people.articulation import PARTS_AND_ROOT
from ptri.people.bvh import SkeletonMotion, read_bvh
from ptri.people.mocap import kept_clips, open_mocap

# Names a joint may have, lower case without separators and side; the first that exists is used.
_TRUNK = {
    "root": ("hips", "hip", "root", "pelvis", "reference"),
    "spine": ("lowerback", "spine", "spine1", "abdomen", "chest", "upperback"),
    "chest": ("spine3", "spine2", "spine1", "thorax", "upperchest", "chest2", "chest"),
    "neck": ("neck1", "neck", "lowerneck", "necktwist01"),
    "head": ("head",),
}
_SIDE = {
    "clavicle": ("shoulder", "clavicle", "collar", "shldr"),
    "upper_arm": ("arm", "upperarm", "humerus", "uparm"),
    "forearm": ("forearm", "lowerarm", "radius", "lowarm", "elbow"),
    "hand": ("hand", "wrist"),
    "thigh": ("upleg", "thigh", "femur", "upperleg", "hip"),
    "shank": ("leg", "shin", "tibia", "calf", "lowleg", "lowerleg", "knee"),
    "foot": ("foot", "ankle"),
}
# Limbs: the part that follows, the left side's rest direction in the T pose (x to the left, y
# backwards, z up), and how many degrees off it a rest pose may be.
_LIMBS = {
    "upper_arm": ("forearm", (1.0, 0.0, 0.0), 100),
    "forearm": ("hand", (1.0, 0.0, 0.0), 100),
    "hand": ("", (1.0, 0.0, 0.0), 100),
    "thigh": ("shank", (0.0, 0.0, -1.0), 45),
    "shank": ("foot", (0.0, 0.0, -1.0), 45),
}
# Parts without a joint of their own move with another part.
_MOVE_WITH = {"spine": "root", "chest": "spine", "neck": "chest", "head": "neck"}
_MOVE_WITH |= {f"{side}_clavicle": "chest" for side in ("left", "right")}
_MOVE_WITH |= {f"{side}_hand": f"{side}_forearm" for side in ("left", "right")}
_MOVE_WITH |= {f"{side}_foot": f"{side}_shank" for side in ("left", "right")}
FPS = 30.0  # of what is kept
_Y_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


class PartMotion(NamedTuple):
    """World rotations of the body's parts, clip after clip, `FPS` frames a second."""

    rotations: np.ndarray  # (N, P + 1, 3, 3) float32, of `PARTS_AND_ROOT`; z up
    following: np.ndarray  # (N,) int64, a frame's successor in its clip (the last one: itself)


def retarget(motion: SkeletonMotion, where: str) -> np.ndarray:
    """Part rotations (N, P + 1, 3, 3) of a moving skeleton with y up, about `FPS` a second.

    Args:
        where: names the source in errors.

    Raises:
        UserError: a joint that is needed is not found, or the rest pose does not stand.
    """
    joint = _find_joints(motion.names, where)
    turn, parents = _Y_TO_Z_UP, motion.parents
    rest = np.zeros((len(parents), 3))
    frames = motion.rotations[:: max(1, round(motion.fps / FPS))]
    world = np.empty_like(frames)
    for i, parent in enumerate(parents):
        local = frames[:, i]
        world[:, i] = local if parent < 0 else world[:, parent] @ local
        if parent >= 0:
            rest[i] = rest[parent] + motion.offsets[i]
    world, rest = turn @ world @ turn.T, rest @ turn.T
    across = rest[joint["left_thigh"]] - rest[joint["right_thigh"]]
    heading = Rotation.from_euler("z", -np.arctan2(across[1], across[0])).as_matrix()
    rest = rest @ heading.T  # in the body's axes
    result = np.empty((len(world), len(PARTS_AND_ROOT), 3, 3), np.float32)
    for index, part in enumerate(PARTS_AND_ROOT):
        bone = joint[part]
        align = np.eye(3)
        side, _, name = part.partition("_")
        if name in _LIMBS:
            following, (x, y, z), most = _LIMBS[name]
            child = parents.index(bone) if bone in parents else bone
            along = rest[joint.get(f"{side}_{following}", child)] - rest[bone]
            if along.any():
                align = shortest_rotation(np.array([x if side == "left" else -x, y, z]), along)
                angle = np.degrees(np.arccos(np.clip((np.trace(align) - 1) / 2, -1, 1)))
                if angle > most:
                    raise UserError(
                        f"{where}: at rest (all rotations zero) its {name} is {angle:.0f} degrees "
                        "off a T pose; expected a skeleton that stands at rest"
                    )
        result[:, index] = world[:, bone] @ (heading.T @ align)
    return result


@functools.lru_cache(maxsize=4)
def load_part_motion(paths: tuple[str, ...], split: str) -> PartMotion:
    """Part rotations of motion-capture files.

    Args:
        paths: .npz files (`ptri.people.mocap`, with skeletons), .bvh files, folders of .bvh files.
        split: "train", "held_out" or "all" of the .npz's trials; .bvh files count as "train".

    Raises:
        UserError: a missing or unusable file, or nothing left.
    """
    parts: list[np.ndarray] = []
    for name in paths:
        path = Path(name)
        if path.suffix == ".npz":
            parts += _read_npz(path, split)
            continue
        files = sorted(path.rglob("*.bvh")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"render.mocap: {path}: no .bvh file in it")
        for file in files if split != "held_out" else []:
            motion = read_bvh(file)
            parts.append(retarget(motion, f"render.mocap: {file}"))
    if not parts:
        raise UserError(f"render.mocap: no motion in the split '{split}' of {', '.join(paths)}")
    count = sum(map(len, parts))
    following = np.arange(1, count + 1)
    last = np.cumsum([len(part) for part in parts]) - 1
    following[last] = last
    return PartMotion(np.concatenate(parts), following)


def _read_npz(path: Path, split: str) -> list[np.ndarray]:
    rotations, refused = [], []
    with open_mocap(str(path), "render.mocap") as data:
        fps = float(data["fps"])
        for kind in data["kinds"].tolist():
            start = data[f"{kind}_clip_start"].astype(int)
            quat = data[f"{kind}_quat"].astype(np.float64)
            quat /= np.linalg.norm(quat, axis=-1, keepdims=True)
            local = Rotation.from_quat(quat[..., [1, 2, 3, 0]].reshape(-1, 4)).as_matrix()
            local = local.reshape(*quat.shape[:2], 3, 3)
            for clip in np.flatnonzero(kept_clips(data, kind, split)):
                motion = SkeletonMotion(
                    names=tuple(map(str, data[f"{kind}_joint_names"])),
                    parents=tuple(data[f"{kind}_parents"].tolist()),
                    offsets=data[f"{kind}_offsets"][data[f"{kind}_clip_skeleton"][clip]],
                    rotations=local[start[clip] : start[clip + 1]],
                    fps=fps,
                )
                try:
                    rotations.append(retarget(motion, f"render.mocap: {path}, {kind}"))
                except UserError as error:  # a rest pose that tells nothing: another kind
                    refused.append(error)
                    break
    if refused and not rotations:
        raise refused[0]
    return rotations


def _find_joints(names: tuple[str, ...], where: str) -> dict[str, int]:
    """Part -> index of the joint that moves it.

    Raises:
        UserError: a part has none.
    """
    plain = [_plain(name) for name in names]
    joint: dict[str, int] = {}
    for side, parts in (("", _TRUNK), ("left", _SIDE), ("right", _SIDE)):
        for part, candidates in parts.items():
            places = [plain.index((side, c)) for c in candidates if (side, c) in plain]
            if places:
                joint[f"{side}_{part}" if side else part] = places[0]
        # "LeftShoulder" is the upper arm where there is no arm.
        if side and f"{side}_upper_arm" not in joint and (side, "shoulder") in plain:
            joint[f"{side}_upper_arm"] = plain.index((side, "shoulder"))
            joint.pop(f"{side}_clavicle", None)
    for part, other in _MOVE_WITH.items():
        if other in joint:
            joint.setdefault(part, joint[other])
    missing = [part for part in PARTS_AND_ROOT if part not in joint]
    if missing:
        raise UserError(
            f"{where}: no joint that could be {', '.join(missing)} among {', '.join(names[:40])}; "
            "rename the file's joints to common names such as Hips, LeftArm, LeftUpLeg"
        )
    return joint


def _plain(name: str) -> tuple[str, str]:
    """Side and bare name: "mixamorig:LeftUpLeg" -> ("left", "upleg"); "lfemur" -> ("left", ...)."""
    text = name.split(":")[-1].lower().replace("cc_base_", "").replace("bip01", "").strip(" _-.")
    side = ""
    for letter, word in (("l", "left"), ("r", "right")):
        bare = re.sub(rf"^({word}|{letter}[_.])|[_.]{letter}$", "", text)
        if bare != text:
            side, text = word, bare
    text = re.sub(r"[_ .-]", "", text)
    known = {name for names in _SIDE.values() for name in names} | {"hipjoint", "toes"}
    if not side and text[:1] in ("l", "r") and text[1:] in known:
        side, text = {"l": "left", "r": "right"}[text[0]], text[1:]
    return side, text


def shortest_rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Smallest rotation (3, 3) that takes one direction (3,) to another."""
    source, target = source / np.linalg.norm(source), target / np.linalg.norm(target)
    axis = np.cross(source, target)
    sine, cosine = np.linalg.norm(axis), float(source @ target)
    if sine < 1e-9:  # parallel: the axis is undefined
        return np.eye(3) if cosine > 0 else np.diag([-1.0, -1.0, 1.0])
    return Rotation.from_rotvec(axis / sine * np.arctan2(sine, cosine)).as_matrix()
