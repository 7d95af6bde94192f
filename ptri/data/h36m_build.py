"""Makes Human3.6M labels where the learnable-triangulation file is missing.

Sources, by what is there:
- h36m-fetch's ``processed/<subject>/<action>/annot.h5``: joints in each camera's frame (pose/3d)
  and in its image (pose/2d), from which cameras can be recovered completely;
- the una-dinosauria (3d-pose-baseline) folder ``h36m/``: ``cameras.h5`` and world joints in
  ``<subject>/MyPoses/3D_positions/<sequence>.h5``.
Frames are those that have images. Boxes are squares around the projected joints.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
from tqdm import tqdm

from ptri.data.labels import NUM_JOINTS, Labels
from ptri.errors import UserError

CAMERA_NAMES = ("54138969", "55011271", "58860488", "60457274")
# The 17 joints of ptri.skeleton.H36M17 among the 32 of Human3.6M.
JOINTS_OF_32 = (3, 2, 1, 6, 7, 8, 0, 12, 13, 15, 27, 26, 25, 17, 18, 19, 14)
BOX_MARGIN = 0.2  # the body reaches beyond its joints: share of the longer side, in all

# Human3.6M's sequence names behind <Action>-<1 or 2>: usually "<Action> 1" and "<Action>".
_SHORT = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog", "WalkingTogether": "WalkTogether"}
_EXCEPTIONS = {
    "S1": {"Eating-1": 2, "Sitting-2": 2, "SittingDown-1": 2},
    "S5": {
        "Directions-2": 2,
        "Discussion-1": 2,
        "Discussion-2": 3,
        "Greeting-2": 2,
        "SittingDown-1": 0,
        "SittingDown-2": 1,
        "TakingPhoto-1": 0,
        "TakingPhoto-2": 2,
        "Waiting-2": 2,
    },
    "S6": {
        "Eating-2": 2,
        "Posing-1": 2,
        "Sitting-2": 2,
        "TakingPhoto-1": 0,
        "TakingPhoto-2": 1,
        "Waiting-1": 3,
    },
    "S7": {
        "Phoning-1": 2,
        "SittingDown-1": 0,
        "SittingDown-2": 1,
        "TakingPhoto-1": 0,
        "TakingPhoto-2": 1,
        "Waiting-2": 2,
    },
    "S8": {"SittingDown-1": 0, "SittingDown-2": 1, "WalkingTogether-2": 2},
    "S9": {"Discussion-2": 2, "SittingDown-1": 0, "SittingDown-2": 1},
    "S11": {
        "Discussion-2": 2,
        "Greeting-1": 2,
        "Phoning-1": 3,
        "Phoning-2": 2,
        "SittingDown-1": 0,
        "SittingDown-2": 1,
        "Smoking-1": 2,
    },
}


class Calibration(NamedTuple):
    """The cameras of one subject, in the order of CAMERA_NAMES."""

    K: np.ndarray  # (4, 3, 3) px
    dist: np.ndarray  # (4, 5) OpenCV's k1 k2 p1 p2 k3
    R: np.ndarray  # (4, 3, 3) world to camera
    t: np.ndarray  # (4, 3) mm


class Annotation(NamedTuple):
    """One scene of h36m-fetch: per camera, frames and their joints."""

    frame: dict[str, np.ndarray]  # (n,) 0-based
    xy: dict[str, np.ndarray]  # (n, 17, 2) px, distorted image
    xyz: dict[str, np.ndarray]  # (n, 17, 3) mm, camera frame


def sequence_name(subject: str, action: str) -> str:
    """Human3.6M's name of a scene: ("S11", "Greeting-1") is "Greeting 2"."""
    name, _, trial = action.partition("-")
    number = _EXCEPTIONS.get(subject, {}).get(action, 1 if trial == "1" else 0)
    return _SHORT.get(name, name) + (f" {number}" if number else "")


def build_labels(root: str | Path, una: str | Path | None = None) -> Labels:
    """Builds the labels of a tree of images.

    Args:
        root: the data set's folder, with ``processed/``.
        una: the una-dinosauria ``h36m/`` folder, or None: everything from annot.h5.

    Raises:
        UserError: no scenes; a scene has neither annot.h5 nor una-dinosauria joints; a camera
            cannot be recovered.
    """
    root = Path(root)
    una = None if una is None else Path(una)
    if una is not None and not (una / "cameras.h5").is_file():
        raise UserError(f"{una / 'cameras.h5'}: no such file; expected the una-dinosauria folder")
    scenes = _find_scenes(root)
    subjects = sorted({subject for subject, _ in scenes}, key=lambda name: int(name[1:]))
    actions = sorted({action for _, action in scenes})
    calibrations, parts = [], []
    for s, subject in enumerate(subjects):
        mine = [action for name, action in scenes if name == subject]
        annotations = {action: _read_annotation(root, subject, action) for action in mine}
        if una is not None:
            calibration = read_una_cameras(una / "cameras.h5", subject)
        else:
            calibration = recover_cameras([a for a in annotations.values() if a], subject)
        calibrations.append(calibration)
        for action in tqdm(mine, desc=subject, unit="scene"):
            images = _images_by_camera(root / "processed" / subject / action)
            world = _world_joints(subject, action, annotations[action], calibration, una)
            frames = sorted(set().union(*images.values()) & world.keys())
            if not frames:
                raise UserError(
                    f"{root / 'processed' / subject / action}: no image has a labelled frame"
                )
            joints = np.stack([world[frame] for frame in frames])
            boxes = joint_boxes(joints, calibration)
            for c, camera in enumerate(CAMERA_NAMES):
                absent = [frame not in images[camera] for frame in frames]
                boxes[absent, c] = 0  # the sign of a missing view
            parts.append((s, actions.index(action), np.array(frames), joints, boxes))
    return Labels(
        subject_names=tuple(subjects),
        camera_names=CAMERA_NAMES,
        action_names=tuple(actions),
        **{name: np.stack(values) for name, values in zip(Calibration._fields, zip(*calibrations))},
        subject=np.concatenate([np.full(len(f), s, np.int16) for s, _, f, _, _ in parts]),
        action=np.concatenate([np.full(len(f), a, np.int16) for _, a, f, _, _ in parts]),
        frame=np.concatenate([f.astype(np.int32) for _, _, f, _, _ in parts]),
        joints=np.concatenate([j.astype(np.float32) for _, _, _, j, _ in parts]),
        boxes=np.concatenate([b for _, _, _, _, b in parts]),
    )


def _find_scenes(root: Path) -> list[tuple[str, str]]:
    scenes = [
        (subject.name, action.name)
        for subject in sorted(root.glob("processed/S*"))
        if re.fullmatch(r"S\d+", subject.name)
        for action in sorted(subject.iterdir())
        if any((action / name).is_dir() for name in ("imageSequence", "imageSequence-undistorted"))
    ]
    if not scenes:
        raise UserError(
            f"{root}: no images; expected processed/S*/<Action>/imageSequence/<camera>/img_*.jpg"
        )
    return scenes


def _images_by_camera(scene: Path) -> dict[str, set[int]]:
    """Frames (0-based) that have an image in any of the two folders, by camera."""
    images: dict[str, set[int]] = {camera: set() for camera in CAMERA_NAMES}
    for camera in CAMERA_NAMES:
        for name in ("imageSequence", "imageSequence-undistorted"):
            folder = scene / name / camera
            for file in os.listdir(folder) if folder.is_dir() else ():
                match = re.fullmatch(r"img_(\d{6})\.jpg", file)
                if match:
                    images[camera].add(int(match[1]) - 1)
    return images


def _world_joints(
    subject: str,
    action: str,
    annotation: Annotation | None,
    calibration: Calibration,
    una: Path | None,
) -> dict[int, np.ndarray]:
    """World joints (17, 3) mm by frame; annot.h5 first, then the una-dinosauria file."""
    world: dict[int, np.ndarray] = {}
    if annotation is not None:
        for camera, frames in annotation.frame.items():
            c = CAMERA_NAMES.index(camera)
            joints = (annotation.xyz[camera] - calibration.t[c]) @ calibration.R[c]
            for frame, values in zip(frames.tolist(), joints):
                world.setdefault(frame, values)
        return world
    if una is None:
        raise UserError(
            f"{subject}/{action}: no annot.h5; give the una-dinosauria folder with --una, or run "
            "h36m-fetch's process_all.py"
        )
    name = sequence_name(subject, action)
    path = una / subject / "MyPoses" / "3D_positions" / f"{name}.h5"
    try:
        with h5py.File(path, "r") as file:
            joints = file["3D_positions"][...].T.reshape(-1, 32, 3)[:, JOINTS_OF_32]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: joints of {subject}/{action} cannot be read: {error}") from None
    return dict(enumerate(joints.astype(np.float64)))


def joint_boxes(joints: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Square boxes (N, 4, 4) px around the joints (N, 17, 3) mm, in the distorted images."""
    boxes = np.zeros((len(joints), len(CAMERA_NAMES), 4), np.int16)
    for c in range(len(CAMERA_NAMES)):
        K, dist, R, t = (value[c] for value in calibration)
        xy, _ = cv2.projectPoints(joints.reshape(-1, 3), cv2.Rodrigues(R)[0], t, K, dist)
        xy = xy.reshape(len(joints), NUM_JOINTS, 2)
        low, high = xy.min(1), xy.max(1)
        centre = (low + high) / 2
        half = (high - low).max(1) * (1 + BOX_MARGIN) / 2
        corner = np.rint(centre - half[:, None])
        box = np.concatenate([corner, corner + np.rint(2 * half)[:, None]], 1)  # l t r b
        boxes[:, c] = np.clip(box[:, [1, 0, 3, 2]], -32000, 32000)
    return boxes


# --- cameras ---------------------------------------------------------------------------------


def read_una_cameras(path: Path, subject: str) -> Calibration:
    """Cameras of a subject from una-dinosauria's cameras.h5, whose convention is R (X - T).

    Raises:
        UserError: unreadable, or other cameras than expected.
    """
    K, dist, R, t = [], [], [], []
    try:
        with h5py.File(path, "r") as file:
            for number, camera in enumerate(CAMERA_NAMES, start=1):
                group = file[f"{subject.replace('S', 'subject')}/camera{number}"]
                value = {key: np.asarray(group[key], np.float64).squeeze() for key in "RTfckp"}
                name = "".join(chr(int(code)) for code in np.ravel(group["Name"]))
                if name != camera:
                    raise UserError(f"{path}: camera {number} is {name!r}, expected {camera}")
                k, p = value["k"], value["p"]
                K.append(np.diag([*value["f"], 1.0]))
                K[-1][:2, 2] = value["c"]
                dist.append([k[0], k[1], p[0], p[1], k[2]])
                R.append(value["R"].T)  # stored column by column, as MATLAB does
                t.append(-R[-1] @ value["T"])
    except (OSError, KeyError, ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cameras of {subject} cannot be read: {error}") from None
    return Calibration(*(np.array(values) for values in (K, dist, R, t)))


def _read_annotation(root: Path, subject: str, action: str) -> Annotation | None:
    path = root / "processed" / subject / action / "annot.h5"
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            frame, camera = file["frame"][...] - 1, file["camera"][...]
            xy = file["pose/2d"][...].astype(np.float64)[:, JOINTS_OF_32]
            xyz = file["pose/3d"][...].astype(np.float64)[:, JOINTS_OF_32]
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{path}: cannot be read: {error}; expected frame, camera, pose/2d and pose/3d"
        ) from None
    names = [name for name in CAMERA_NAMES if (camera == int(name)).any()]
    chosen = {name: camera == int(name) for name in names}
    return Annotation(
        {name: frame[mask] for name, mask in chosen.items()},
        {name: xy[mask] for name, mask in chosen.items()},
        {name: xyz[mask] for name, mask in chosen.items()},
    )


def recover_cameras(annotations: list[Annotation], subject: str) -> Calibration:
    """Cameras of a subject from joints in camera frames and images; world = the first camera.

    Raises:
        UserError: a camera shares no frame with the first one.
    """
    K, dist, R, t = [], [], [], []
    for camera in CAMERA_NAMES:
        seen = [a for a in annotations if camera in a.xyz]
        if not seen:
            raise UserError(f"{subject}: no annot.h5 holds camera {camera}; give --una instead")
        xy = np.concatenate([a.xy[camera].reshape(-1, 2) for a in seen])
        xyz = np.concatenate([a.xyz[camera].reshape(-1, 3) for a in seen])
        intrinsics = fit_intrinsics(xy, xyz)
        K.append(intrinsics[0])
        dist.append(intrinsics[1])
        pairs = [_common(a, CAMERA_NAMES[0], camera) for a in seen if CAMERA_NAMES[0] in a.xyz]
        if not sum(len(first) for first, _ in pairs):
            raise UserError(f"{subject}: camera {camera} shares no frame with {CAMERA_NAMES[0]}")
        rotation, translation = align(*(np.concatenate(points) for points in zip(*pairs)))
        R.append(rotation)
        t.append(translation)
    return Calibration(*(np.array(values) for values in (K, dist, R, t)))


def _common(annotation: Annotation, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Joints (n, 3) of two cameras in their common frames."""
    _, a, b = np.intersect1d(annotation.frame[first], annotation.frame[second], return_indices=True)
    return annotation.xyz[first][a].reshape(-1, 3), annotation.xyz[second][b].reshape(-1, 3)


def align(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rigid motion R (3, 3), t (3,) with target = R source + t, least squares (Kabsch)."""
    a, b = source.mean(0), target.mean(0)
    U, _, Vt = np.linalg.svd((target - b).T @ (source - a))
    R = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
    return R, b - R @ a


def fit_intrinsics(xy: np.ndarray, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K (3, 3) px and distortion (5,) from points in the camera frame and their pixels.

    Each pixel coordinate of OpenCV's model is linear in f, f k1, f k2, f k3, f p1, f p2 and c.

    Args:
        xy: (n, 2) px. xyz: (n, 3) mm.
    """
    x, y = (xyz[:, :2] / xyz[:, 2:]).T
    r2 = x**2 + y**2
    focal, centre, rest = [], [], []
    for pixel, axis, tangent in (
        (xy[:, 0], x, (2 * x * y, r2 + 2 * x**2)),
        (xy[:, 1], y, (r2 + 2 * y**2, 2 * x * y)),
    ):
        columns = [axis, axis * r2, axis * r2**2, *tangent, axis * r2**3, np.ones_like(axis)]
        solution, *_ = np.linalg.lstsq(np.stack(columns, 1), pixel, rcond=None)
        focal.append(solution[0])
        centre.append(solution[-1])
        rest.append(solution[1:-1] / solution[0])  # k1 k2 p1 p2 k3
    K = np.diag([*focal, 1.0])
    K[:2, 2] = centre
    return K, np.mean(rest, axis=0)
