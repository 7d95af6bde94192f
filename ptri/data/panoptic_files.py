"""CMU Panoptic's files: the HD cameras and the bodies of a sequence, and whether they make sense.

Layout, as the panoptic-toolbox downloads it: ``<sequence>/calibration_<sequence>.json`` and
``<sequence>/hdPose3d_stage1_coco19/body3DScene_%08d.json``. Files are in cm with y down; here all
is mm with z up, as Human3.6M's world.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ptri.data import transforms
from ptri.data.annotations import read_json
from ptri.errors import UserError
from ptri.skeleton import Skeleton

MIN_CONFIDENCE = 0.1  # of a joint; up to it the joint is not known
THIGH_CM = (20.0, 70.0)  # of people, children included, as a median over bodies
MIN_INSIDE = 0.2  # share of the joints in the images, over all cameras
SPREAD_CM = (50.0, 2000.0)  # of the cameras about their middle, median
# World axes of the files (y down) to ours (z up): x, z, -y. And their centimetres.
_TURN = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
_CM = 10.0
_ADVICE = "; download or extract it again with the panoptic-toolbox"
_CAMERA = {"K": (3, 3), "distCoef": (5,), "R": (3, 3), "t": (3,), "resolution": (2,)}

_LIMBS = [
    f"{side}_{part}"
    for side in ("left", "right")
    for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
]


def _joint_set(name: str, joints: list[str]) -> Skeleton:
    return Skeleton(name, tuple(joints), (-1,) * len(joints), joints.index("hip"))


_FACE = ["left_eye", "left_ear", "right_eye", "right_ear"]
COCO19 = _joint_set("coco19", ["neck", "nose", "hip", *_LIMBS, *_FACE])
COCO15 = _joint_set("coco15", ["neck", "nose", "hip", *_LIMBS])
MPI15 = _joint_set("mpi15", ["upper_neck", "head_top", "hip", *_LIMBS])
# Folders of bodies, the first that exists counts: their joints, and the key of them.
_FOLDERS = {
    "hdPose3d_stage1_coco19": (COCO19, "joints19"),
    "hdPose3d_stage1_coco15": (COCO15, "joints15"),
    "hdPose3d_stage1_mpi15": (MPI15, "joints15"),
    "hdPose3d_stage1": (MPI15, "joints15"),
}


class Sequence(NamedTuple):
    """A sequence's C HD cameras, and its N bodies in the order of their frames."""

    name: str
    camera_names: tuple[str, ...]  # C, such as "00_03"
    sizes: np.ndarray  # (C, 2) px, width and height
    K: np.ndarray  # (C, 3, 3) px
    dist: np.ndarray  # (C, 5) OpenCV's
    R: np.ndarray  # (C, 3, 3) world to camera
    t: np.ndarray  # (C, 3) mm
    num_frames: int  # that have a file
    skeleton: Skeleton  # of J joints
    frame: np.ndarray  # (N,)
    person: np.ndarray  # (N,) their ids
    joints: np.ndarray  # (N, J, 3) mm, world; NaN = not known

    def take(self, rows: np.ndarray) -> Sequence:
        """The same with some of the bodies."""
        bodies = {name: getattr(self, name)[rows] for name in ("frame", "person", "joints")}
        return self._replace(**bodies)


def sequence_names(root: Path) -> list[str]:
    """The folders of a root that hold a calibration or bodies.

    Raises:
        UserError: no such folder, or none in it.
    """
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder; expected the one with the sequences")
    marks = ("calibration_*.json", "hdPose3d_stage1*")
    names = [path.name for path in sorted(root.iterdir()) if any(any(path.glob(m)) for m in marks)]
    if not names:
        raise UserError(
            f"data.root: {root} holds no sequence; expected folders such as "
            "171204_pose5/calibration_171204_pose5.json"
        )
    return names


def read_sequence(root: Path, name: str, step: int = 1) -> Sequence:
    """Reads the HD cameras of a sequence, and the bodies of every ``step``-th frame.

    Raises:
        UserError: a file that is missing, damaged or holds something else.
    """
    path = root / name / f"calibration_{name}.json"
    tree = read_json(path, advice=_ADVICE)
    try:
        cameras = [camera for camera in tree["cameras"] if camera["type"] == "hd"]
        cameras.sort(key=lambda camera: camera["name"])
        K, dist, R, t, sizes = (
            np.array([camera[key] for camera in cameras], np.float64).reshape(len(cameras), *shape)
            for key, shape in _CAMERA.items()
        )
        names = tuple(str(camera["name"]) for camera in cameras)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a Panoptic calibration: {type(error).__name__}: {error}; expected "
            "cameras with type, name, resolution, K, distCoef, R and t"
        ) from None
    if not names:
        raise UserError(f"{path}: no camera of type hd; expected the HD cameras 00_00 to 00_30")
    folder = next((part for part in _FOLDERS if (root / name / part).is_dir()), None)
    if folder is None:
        raise UserError(
            f"{root / name}: no bodies; expected the folder {', '.join(_FOLDERS)}, extracted from "
            "the .tar file of that name"
        )
    R_world, t_mm = R @ _TURN.T, _CM * t
    bodies = _read_bodies(root / name / folder, step)
    return Sequence(name, names, sizes, K, dist, R_world, t_mm, *bodies)


def _read_bodies(
    folder: Path, step: int
) -> tuple[int, Skeleton, np.ndarray, np.ndarray, np.ndarray]:
    """Number of frames, joint set, and frame, id and joints of all bodies in them."""
    files = []
    for entry in os.scandir(folder):
        match = re.fullmatch(r"body3DScene_(\d+)\.json", entry.name)
        if match:
            state = entry.stat()
            files.append((int(match[1]), entry.name, state.st_size, state.st_mtime_ns))
    if not files:
        raise UserError(f"{folder}: no file body3DScene_%08d.json; extract the .tar file there")
    return _parse_bodies(folder, tuple(sorted(files)[::step]))


@functools.lru_cache(maxsize=32)  # the sequences of a run, which sets of cameras share
def _parse_bodies(
    folder: Path, files: tuple[tuple[int, str, int, int], ...]
) -> tuple[int, Skeleton, np.ndarray, np.ndarray, np.ndarray]:
    """`_read_bodies` of some files: number, name, size and time of each."""
    skeleton, key = _FOLDERS[folder.name]
    frames, persons, joints = [], [], []
    for number, name, _, _ in files:
        tree = read_json(folder / name, advice=_ADVICE)
        try:
            for body in tree["bodies"]:
                frames.append(number)
                persons.append(int(body["id"]))
                joints.append(np.array(body[key], np.float64).reshape(len(skeleton.joints), 4))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / name}: not a file of bodies: {type(error).__name__}: {error}; expected "
                f"bodies with id and {key}, {4 * len(skeleton.joints)} numbers"
            ) from None
    table = np.array(joints).reshape(-1, len(skeleton.joints), 4)
    points, confidence = table[..., :3], table[..., 3]
    known = (confidence > MIN_CONFIDENCE) & points.any(-1) & np.isfinite(points).all(-1)
    points = np.where(known[..., None], _CM * points @ _TURN.T, np.nan)
    tables = np.array(frames, int), np.array(persons, int), points
    for part in tables:  # they are shared
        part.flags.writeable = False
    return len(files), skeleton, *tables


# --- geometry ---------------------------------------------------------------------------------


def inside_image(sequence: Sequence, camera: int) -> np.ndarray:
    """Which joints (N, J) are known and project into a camera's image, lens distortion included."""
    points, size = pinhole(sequence, camera), sequence.sizes[camera]
    # The distortion's polynomial holds near the image only, and may fold points back into it.
    near = (abs(points[..., :2] - size / 2) < size).all(-1) & (points[..., 2] > 0)
    xy = np.full((*points.shape[:2], 2), np.nan)
    if near.any():
        distorted, _ = cv2.projectPoints(
            sequence.joints[near],
            cv2.Rodrigues(sequence.R[camera])[0],
            sequence.t[camera],
            sequence.K[camera],
            sequence.dist[camera],
        )
        xy[near] = distorted[:, 0]
    return ((xy >= -0.5) & (xy <= size - 0.5)).all(-1)


def pinhole(sequence: Sequence, camera: int) -> np.ndarray:
    """Joints (N, J, 3): x and y px of the undistorted image, depth mm."""
    flat = sequence.joints.reshape(-1, 3)
    pose = sequence.K[camera], sequence.R[camera], sequence.t[camera]
    return transforms.project(flat, *pose).reshape(sequence.joints.shape)


# --- checks ----------------------------------------------------------------------------------


def bone_lengths(sequence: Sequence) -> dict[str, float]:
    """Median lengths over bodies and sides, mm; NaN where none is known."""
    place = sequence.skeleton.joints.index
    ends = {
        "thigh": ("hip", "knee"),
        "shank": ("knee", "ankle"),
        "upper arm": ("shoulder", "elbow"),
        "forearm": ("elbow", "wrist"),
    }
    result = {}
    for bone, (a, b) in ends.items():
        pairs = [(place(f"{side}_{a}"), place(f"{side}_{b}")) for side in ("left", "right")]
        vectors = [sequence.joints[:, i] - sequence.joints[:, j] for i, j in pairs]
        known = np.linalg.norm(np.concatenate(vectors), axis=1)
        known = known[np.isfinite(known)]
        result[bone] = float(np.median(known)) if len(known) else float("nan")
    return result


def upright(sequence: Sequence) -> float:
    """Share of the bodies whose shoulders are above their hips, of those where both are known."""
    place = sequence.skeleton.joints.index
    height = sequence.joints[..., 2]
    shoulders, hips = (
        height[:, [place(f"{side}_{part}") for side in ("left", "right")]].mean(1)
        for part in ("shoulder", "hip")
    )
    rise = (shoulders - hips)[np.isfinite(shoulders - hips)]
    return float((rise > 0).mean()) if len(rise) else float("nan")


def inside_shares(sequence: Sequence, num_bodies: int = 300) -> np.ndarray:
    """(C,) share of the known joints, of some of the bodies, that project into each image."""
    rows = np.linspace(0, len(sequence.frame) - 1, min(len(sequence.frame), num_bodies)).astype(int)
    part = sequence.take(rows)
    known = np.isfinite(part.joints).all(-1).sum()
    inside = [inside_image(part, camera).sum() for camera in range(len(part.camera_names))]
    return np.array(inside) / max(known, 1)


def check_units(sequence: Sequence) -> None:
    """Checks that bodies and cameras are in the files' units, and belong together.

    Raises:
        UserError: bones or distances between cameras of other sizes; joints that no camera sees.
    """
    thigh = bone_lengths(sequence)["thigh"] / _CM
    centres = -np.einsum("cji,cj->ci", sequence.R, sequence.t) / _CM
    spread = np.median(np.linalg.norm(centres - centres.mean(0), axis=1))
    for size, (low, high), what, key in (
        (thigh, THIGH_CM, "thighs", "joints"),
        (spread, SPREAD_CM, "distances of cameras from their middle", "t of the cameras"),
    ):
        if not low <= size <= high and np.isfinite(size):
            raise UserError(
                f"{sequence.name}: {what} of {size:.2g} cm (median), expected {low:.0f} to "
                f"{high:.0f}; {key} must be in cm"
            )
    share = inside_shares(sequence).mean() if len(sequence.frame) else 1.0
    if share < MIN_INSIDE:
        raise UserError(
            f"{sequence.name}: only {100 * share:.0f} % of the joints project into the images; "
            "bodies and calibration are not of the same sequence"
        )
