"""Makes Human3.6M labels where the learnable-triangulation file is missing.

Sources, by what is there:
- h36m-fetch's ``processed/<subject>/<action>/annot.h5``: joints in each camera's frame (pose/3d)
  and in its image (pose/2d), from which cameras can be recovered completely;
- the una-dinosauria (3d-pose-baseline) folder ``h36m/``: ``cameras.h5`` and world joints in
  ``<subject>/MyPoses/3D_positions/<sequence>.h5``.
Frames are those that have images. Boxes are squares around the projected joints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
import roma
import torch
from tqdm import tqdm

from ptri.data.labels import NUM_JOINTS, Labels
from ptri.data.transforms import square_boxes
from ptri.errors import UserError

CAMERA_NAMES = ("54138969", "55011271", "58860488", "60457274")
# The 17 joints of ptri.skeleton.H36M17 among the 32 of Human3.6M.
JOINTS_OF_32 = (3, 2, 1, 6, 7, 8, 0, 12, 13, 15, 27, 26, 25, 17, 18, 19, 14)
BOX_MARGIN = 0.2  # the body reaches beyond its joints: share of the longer side, in all

# Human3.6M's sequence names behind <Action>-<1 or 2>: usually "<Action> 1" and "<Action>".
_SHORT = {"TakingPhoto": "Photo", "WalkingDog": "WalkDog", "WalkingTogether": "WalkTogether"}
_EXCEPTIONS = {
    "S1": {"Eating-1": 2, "Sitting-2": 2, "SittingDown-1": 2},
    "S5": {"Directions-2": 2, "Discussion-1": 2, "Discussion-2": 3, "Greeting-2": 2,
           "SittingDown-1": 0, "SittingDown-2": 1, "TakingPhoto-1": 0, "TakingPhoto-2": 2,
           "Waiting-2": 2},
    "S6": {"Eating-2": 2, "Posing-1": 2, "Sitting-2": 2, "TakingPhoto-1": 0, "TakingPhoto-2": 1,
           "Waiting-1": 3},
    "S7": {"Phoning-1": 2, "SittingDown-1": 0, "SittingDown-2": 1, "TakingPhoto-1": 0,
           "TakingPhoto-2": 1, "Waiting-2": 2},
    "S8": {"SittingDown-1": 0, "SittingDown-2": 1, "WalkingTogether-2": 2},
    "S9": {"Discussion-2": 2, "SittingDown-1": 0, "SittingDown-2": 1},
    "S11": {"Discussion-2": 2, "Greeting-1": 2, "Phoning-1": 3, "Phoning-2": 2,
            "SittingDown-1": 0, "SittingDown-2": 1, "Smoking-1": 2},
}  # fmt: skip


class Calibration(NamedTuple):
    """The cameras of one subject, in the order of CAMERA_NAMES."""

    K: np.ndarray  # (4, 3, 3) px
    dist: np.ndarray  # (4, 5) OpenCV's k1 k2 p1 p2 k3
    R: np.ndarray  # (4, 3, 3) world to camera
    t: np.ndarray  # (4, 3) mm


class Annotation(NamedTuple):
    """What h36m-fetch's annot.h5 holds of one camera in one scene."""

    frame: np.ndarray  # (n,) 0-based
    xy: np.ndarray  # (n, 17, 2) px, distorted image
    xyz: np.ndarray  # (n, 17, 3) mm, camera frame


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
    root, una = Path(root), una and Path(una)
    if una and not (una / "cameras.h5").is_file():
        raise UserError(f"{una / 'cameras.h5'}: no such file; expected the una-dinosauria folder")
    scenes = _find_scenes(root)
    subjects = sorted({subject for subject, _ in scenes}, key=lambda name: int(name[1:]))
    actions = sorted({action for _, action in scenes})
    calibrations, parts = [], []
    for s, subject in enumerate(subjects):
        annotations = {
            action: _read_annotations(root / "processed" / subject / action / "annot.h5")
            for name, action in scenes
            if name == subject
        }
        if una:
            calibration = read_una_cameras(una / "cameras.h5", subject)
        else:
            calibration = recover_cameras([a for a in annotations.values() if a], subject)
        calibrations.append(calibration)
        for action, annotation in tqdm(annotations.items(), desc=subject, unit="scene"):
            if annotation is not None:
                world = _annotated_joints(annotation, calibration)
            else:
                world = _una_joints(una, subject, action)
            folder = root / "processed" / subject / action
            frames, joints, boxes = _label_scene(folder, world, calibration)
            numbers = (np.full(len(frames), number) for number in (s, actions.index(action)))
            parts.append((*numbers, frames, joints, boxes))
    subject, action, frame, joints, boxes = map(np.concatenate, zip(*parts))
    cameras = dict(zip(Calibration._fields, map(np.stack, zip(*calibrations))))
    return Labels(
        subject_names=tuple(subjects),
        camera_names=CAMERA_NAMES,
        action_names=tuple(actions),
        **cameras,
        subject=subject.astype(np.int16),
        action=action.astype(np.int16),
        frame=frame.astype(np.int32),
        joints=joints.astype(np.float32),
        boxes=boxes,
    )


def _label_scene(
    folder: Path, world: dict[int, np.ndarray], calibration: Calibration
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (n,) that have joints and an image, joints (n, 17, 3) mm and boxes (n, 4, 4) px."""
    images = _images_by_camera(folder)
    frames = sorted(set().union(*images.values()) & world.keys())
    if not frames:
        raise UserError(f"{folder}: no image has a labelled frame")
    joints = np.stack([world[frame] for frame in frames])
    boxes = joint_boxes(joints, calibration)
    for c, camera in enumerate(CAMERA_NAMES):
        boxes[[frame not in images[camera] for frame in frames], c] = 0  # a missing view
    return np.array(frames), joints, boxes


def _find_scenes(root: Path) -> list[tuple[str, str]]:
    folders = sorted({path.parent for path in root.glob("processed/S[0-9]*/*/imageSequence*")})
    scenes = [(path.parent.name, path.name) for path in folders]
    if not scenes:
        raise UserError(
            f"{root}: no images; expected processed/S*/<Action>/imageSequence/<camera>/img_*.jpg"
        )
    return scenes


def _images_by_camera(scene: Path) -> dict[str, set[int]]:
    """Frames (0-based) that have an image in any of the two folders, by camera."""
    images: dict[str, set[int]] = {camera: set() for camera in CAMERA_NAMES}
    for path in scene.glob("imageSequence*/*/img_*.jpg"):
        if path.parent.name in images and re.fullmatch(r"img_\d{6}", path.stem):
            images[path.parent.name].add(int(path.stem[4:]) - 1)
    return images


def _annotated_joints(
    annotation: dict[str, Annotation], calibration: Calibration
) -> dict[int, np.ndarray]:
    """World joints (17, 3) mm by frame, of the first camera that has the frame."""
    world: dict[int, np.ndarray] = {}
    for camera, seen in annotation.items():
        c = CAMERA_NAMES.index(camera)
        joints = (seen.xyz - calibration.t[c]) @ calibration.R[c]
        world = dict(zip(seen.frame.tolist(), joints)) | world
    return world


def _una_joints(una: Path | None, subject: str, action: str) -> dict[int, np.ndarray]:
    """World joints (17, 3) mm by frame, of the una-dinosauria folder."""
    if una is None:
        raise UserError(
            f"{subject}/{action}: no annot.h5; give the una-dinosauria folder with --una, or run "
            "h36m-fetch's process_all.py"
        )
    path = una / subject / "MyPoses" / "3D_positions" / f"{sequence_name(subject, action)}.h5"
    with _opened(path, f"joints of {subject}/{action}") as file:
        joints = file["3D_positions"][...].T.reshape(-1, 32, 3)[:, JOINTS_OF_32]
    return dict(enumerate(joints.astype(np.float64)))


@contextmanager
def _opened(path: Path, content: str) -> Iterator[h5py.File]:
    """An HDF5 file to read from; what it lacks becomes a UserError that names the content."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path}: {content} cannot be read: {error}") from None


def joint_boxes(joints: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Square boxes (N, 4, 4) px around the joints (N, 17, 3) mm, in the distorted images."""
    boxes = np.zeros((len(joints), len(CAMERA_NAMES), 4), np.int16)
    for c in range(len(CAMERA_NAMES)):
        K, dist, R, t = (value[c] for value in calibration)
        xy, _ = cv2.projectPoints(joints.reshape(-1, 3), cv2.Rodrigues(R)[0], t, K, dist)
        boxes[:, c] = square_boxes(xy.reshape(len(joints), NUM_JOINTS, 2), BOX_MARGIN)
    return boxes


# --- cameras ---------------------------------------------------------------------------------


def read_una_cameras(path: Path, subject: str) -> Calibration:
    """Cameras of a subject from una-dinosauria's cameras.h5, whose convention is R (X - T).

    Raises:
        UserError: unreadable, or other cameras than expected.
    """
    cameras = []
    with _opened(path, f"cameras of {subject}") as file:
        for number, camera in enumerate(CAMERA_NAMES, start=1):
            group = file[f"{subject.replace('S', 'subject')}/camera{number}"]
            value = {key: np.asarray(group[key], np.float64).squeeze() for key in "RTfckp"}
            name = "".join(chr(int(code)) for code in np.ravel(group["Name"]))
            if name != camera:
                raise UserError(f"{path}: camera {number} is {name!r}, expected {camera}")
            K, R = np.diag([*value["f"], 1.0]), value["R"].T  # stored by columns, as MATLAB does
            K[:2, 2] = value["c"]
            dist = [*value["k"][:2], *value["p"], value["k"][2]]
            cameras.append((K, dist, R, -R @ value["T"]))
    return Calibration(*map(np.array, zip(*cameras)))


def _read_annotations(path: Path) -> dict[str, Annotation] | None:
    """The annotations of a scene by camera; None without a file."""
    if not path.is_file():
        return None
    with _opened(path, "frame, camera, pose/2d and pose/3d") as file:
        frame, camera = file["frame"][...] - 1, file["camera"][...]
        xy, xyz = (
            file[name][...].astype(np.float64)[:, JOINTS_OF_32] for name in ("pose/2d", "pose/3d")
        )
    rows = {name: camera == int(name) for name in CAMERA_NAMES}
    return {name: Annotation(frame[r], xy[r], xyz[r]) for name, r in rows.items() if r.any()}


def recover_cameras(annotations: list[dict[str, Annotation]], subject: str) -> Calibration:
    """Cameras of a subject from joints in camera frames and images; world = the first camera.

    Args:
        annotations: of the subject's scenes, by camera.

    Raises:
        UserError: a camera shares no frame with the first one.
    """
    cameras, first = [], CAMERA_NAMES[0]
    for camera in CAMERA_NAMES:
        seen = [scene[camera] for scene in annotations if camera in scene]
        if not seen:
            raise UserError(f"{subject}: no annot.h5 holds camera {camera}; give --una instead")
        intrinsics = fit_intrinsics(
            np.concatenate([part.xy.reshape(-1, 2) for part in seen]),
            np.concatenate([part.xyz.reshape(-1, 3) for part in seen]),
        )
        both = [scene for scene in annotations if {first, camera} <= scene.keys()]
        pairs = [_common_joints(scene[first], scene[camera]) for scene in both]
        if not any(len(source) for source, _ in pairs):
            raise UserError(f"{subject}: camera {camera} shares no frame with {first}")
        source, target = (torch.from_numpy(np.concatenate(points)) for points in zip(*pairs))
        pose = roma.rigid_points_registration(source, target)
        cameras.append((*intrinsics, *(value.numpy() for value in pose)))
    return Calibration(*map(np.array, zip(*cameras)))


def _common_joints(a: Annotation, b: Annotation) -> tuple[np.ndarray, np.ndarray]:
    """Joints (n, 3) mm of two cameras in their common frames."""
    _, rows_a, rows_b = np.intersect1d(a.frame, b.frame, return_indices=True)
    return a.xyz[rows_a].reshape(-1, 3), b.xyz[rows_b].reshape(-1, 3)


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
