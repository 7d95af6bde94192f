"""Recordings as folders of 2D keypoint files: one subfolder per camera, one JSON per frame.

The files are OpenPose's (``people[].pose_keypoints_2d`` = x, y, confidence per joint), which
RTMPose / Pose2Sim and others write too. The file number is the frame number. Several persons in a
frame: the subject is the largest one that is followed through the frames.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ptri.errors import UserError
from ptri.recordings.intrinsics import CameraEntry, find_file, read_cameras
from ptri.skeleton import (
    BODY25,
    BODY25B,
    COCO17,
    COCO18,
    HALPE26,
    SKELETONS,
    Skeleton,
)

log = logging.getLogger(__name__)

# Sets told apart by their number of points; 25 points need a look at them (`_guess_body25`).
_BY_LENGTH = {17: COCO17, 18: COCO18, 26: HALPE26}
# Following the subject: the move in body heights between two detections that costs nothing (jitter
# included), the cost of one body height more, in frames of a full-size detection, and the most that
# a jump can cost.
_FREE_MOVE = 0.15
_MOVE_COST = 20.0
_JUMP_COST = 15.0
_LOOK_BACK = 60  # detections


class Recording(NamedTuple):
    """2D keypoints of one person in T frames of V static cameras; NaN xy = not seen."""

    names: tuple[str, ...]  # V
    frames: np.ndarray  # (T,) int64, file numbers
    xy: np.ndarray  # (T, V, J, 2) px, undistorted to the same K
    confidence: np.ndarray  # (T, V, J) in [0, 1]
    height: np.ndarray  # (T, V) px, extent of the person in the view; NaN = not seen
    skeleton: Skeleton  # of the J points
    size: np.ndarray  # (V, 2) width, height, px
    K: np.ndarray  # (V, 3, 3) px
    dist: np.ndarray  # (V, 5)
    R: np.ndarray | None  # (V, 3, 3) reference calibration, x_cam = R x_world + t
    t: np.ndarray | None  # (V, 3) mm
    covariance: np.ndarray | None = None  # (T, V, J, 2, 2) px^2, where the detector states it


def read_recording(
    root: str | Path,
    keypoints: str = "auto",
    intrinsics: str = "auto",
    joint_set: str = "auto",
    views: Sequence[str | int] | None = None,
    first_frame: int = 0,
    last_frame: int | None = None,
    min_confidence: float = 0.1,
) -> Recording:
    """Reads a recording.

    Args:
        root: folder with the keypoint folder and the camera file.
        keypoints, intrinsics: where they are ("auto": the usual names below root).
        joint_set: a name of `SKELETONS`, or "auto".
        views: camera names or indices in the wanted order; None: all in the camera file's order.
        first_frame, last_frame: file numbers, inclusive.
        min_confidence: points below it are not seen.

    Raises:
        UserError: a missing or unreadable file, a camera without intrinsics or keypoints, fewer
            than two views, no frame. The message names it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    folders = camera_folders(_keypoint_root(root, keypoints))
    camera_file = find_file(root, intrinsics)
    cameras = select_views(read_cameras(camera_file), views)
    if len(cameras) < 2:
        raise UserError(
            f"{camera_file}: {len(cameras)} view chosen ({', '.join(c.name for c in cameras)}); "
            "at least two cameras are needed"
        )
    by_camera = [
        _read_camera(_match_folder(camera.name, folders, camera_file), first_frame, last_frame)
        for camera in cameras
    ]
    frames = sorted(set().union(*by_camera))
    if not frames:
        raise UserError(
            f"{root}: no keypoint file with a frame number from {first_frame} to "
            f"{'the end' if last_frame is None else last_frame}"
        )
    skeleton = _joint_set(by_camera, joint_set, root)
    raw = np.full((len(frames), len(cameras), len(skeleton.joints), 3), np.nan)
    for v, people in enumerate(by_camera):
        candidates = [people.get(frame, np.zeros((0, len(skeleton.joints), 3))) for frame in frames]
        raw[:, v] = follow_subject(candidates, min_confidence)
    confidence = np.nan_to_num(raw[..., 2]).clip(0, 1)
    unseen = ~(confidence >= min_confidence) | (raw[..., :2] == 0).all(-1)
    xy = np.where(unseen[..., None], np.nan, raw[..., :2])
    for v, camera in enumerate(cameras):
        xy[:, v] = undistort(xy[:, v], camera.K, camera.dist)
    if not np.isfinite(xy).any():
        raise UserError(f"{root}: no keypoint reaches recording.min_confidence={min_confidence}")
    return recording_of(
        cameras, np.array(frames, np.int64), xy, np.where(unseen, 0.0, confidence), skeleton
    )


def recording_of(
    cameras: Sequence[CameraEntry],
    frames: np.ndarray,
    xy: np.ndarray,
    confidence: np.ndarray,
    skeleton: Skeleton,
    covariance: np.ndarray | None = None,
) -> Recording:
    """A recording of V cameras and what was seen; shapes as in `Recording`."""
    reference = all(camera.R is not None for camera in cameras)
    return Recording(
        names=tuple(camera.name for camera in cameras),
        frames=frames,
        xy=xy,
        confidence=confidence,
        height=person_extent(xy),
        skeleton=skeleton,
        size=np.array([camera.size for camera in cameras]),
        K=np.stack([camera.K for camera in cameras]),
        dist=np.stack([camera.dist for camera in cameras]),
        R=np.stack([camera.R for camera in cameras]) if reference else None,
        t=np.stack([camera.t for camera in cameras]) if reference else None,
        covariance=covariance,
    )


def undistort(xy: np.ndarray, K: np.ndarray, dist: np.ndarray) -> np.ndarray:
    """Removes lens distortion from points (..., 2) px, keeping K; NaN stays NaN."""
    seen = np.isfinite(xy).all(-1)
    result = np.full_like(xy, np.nan)
    if seen.any():
        points = np.ascontiguousarray(xy[seen][:, None])
        result[seen] = cv2.undistortPoints(points, K, dist, P=K)[:, 0]
    return result


def distort(xy: np.ndarray, K: np.ndarray, dist: np.ndarray) -> np.ndarray:
    """Puts lens distortion back on points (..., 2) px, to draw on the original image."""
    flat = xy.reshape(-1, 2)
    rays = np.concatenate([(flat - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((len(flat), 1))], 1)
    seen = np.isfinite(rays).all(1)
    result = np.full_like(flat, np.nan)
    if seen.any():
        zero = np.zeros(3)
        result[seen] = cv2.projectPoints(rays[seen], zero, zero, K, dist)[0][:, 0]
    return result.reshape(xy.shape)


def camera_folders(root: Path) -> dict[str, Path]:
    """Subfolders by name; at least one holds keypoint files (a camera may have seen nothing)."""
    folders = {p.name: p for p in sorted(root.iterdir()) if p.is_dir()}
    if not any(any(folder.glob("*.json")) for folder in folders.values()):
        raise UserError(
            f"{root}: no keypoint files; expected one subfolder per camera with one OpenPose JSON "
            "per frame"
        )
    return folders


def select_views(
    cameras: list[CameraEntry], views: Sequence[str | int] | None
) -> list[CameraEntry]:
    """The chosen cameras, by name or index, in the given order."""
    if views is None:
        return cameras
    names = [camera.name for camera in cameras]
    chosen = []
    for view in views:
        if isinstance(view, int) and not isinstance(view, bool) and 0 <= view < len(cameras):
            chosen.append(view)
        elif str(view) in names:
            chosen.append(names.index(str(view)))
        else:
            raise UserError(
                f"recording.views: no camera {view!r}; expected an index from 0 to "
                f"{len(cameras) - 1} or one of {', '.join(names)}"
            )
    if len(set(chosen)) < len(chosen):
        raise UserError(f"recording.views: {list(views)} names a camera twice")
    return [cameras[index] for index in chosen]


def follow_subject(candidates: Sequence[np.ndarray], min_confidence: float = 0.1) -> np.ndarray:
    """Chooses the same, largest person in every frame of one camera.

    The best chain of detections: each earns its size (over the largest) times its confidence, and
    a move between two costs its length beyond jitter. A person who is larger for a moment does
    not take over; a frame without the subject stays empty rather than jump to a bystander.

    Args:
        candidates: T arrays (persons, J, 3) of x, y, confidence.

    Returns:
        (T, J, 3), NaN in frames without the subject.
    """
    result = np.full((len(candidates), *candidates[0].shape[1:]), np.nan)
    for frame, person in enumerate(subject_of(candidates, min_confidence)):
        if person >= 0:
            result[frame] = candidates[frame][person]
    return result


def subject_of(
    candidates: Sequence[np.ndarray], min_confidence: float = 0.1, free_move: float = _FREE_MOVE
) -> np.ndarray:
    """Index (T,) of the person that `follow_subject` chooses in each frame; -1 = none.

    Args:
        free_move: body heights between two detections that cost nothing.
    """
    J = candidates[0].shape[1]
    result = np.full(len(candidates), -1)
    nodes = []  # (frame, person, centre, height, worth)
    for frame, people in enumerate(candidates):
        for person, points in enumerate(people):
            seen = points[points[:, 2] >= min_confidence]
            if len(seen) >= 4:
                extent = np.linalg.norm(np.ptp(seen[:, :2], axis=0))
                worth = extent * seen[:, 2].sum() / J
                nodes.append((frame, person, np.median(seen[:, :2], 0), extent, worth))
    if not nodes:
        return result
    frame = np.array([node[0] for node in nodes])
    centre = np.array([node[2] for node in nodes])
    extent = np.array([max(node[3], 1.0) for node in nodes])
    worth = np.array([node[4] for node in nodes]) / max(node[4] for node in nodes)
    score, before = worth.copy(), np.full(len(nodes), -1)
    for n in range(1, len(nodes)):
        near = np.arange(max(0, n - _LOOK_BACK), n)
        near = near[frame[near] < frame[n]]
        options = []
        if len(near):
            move = np.linalg.norm(centre[near] - centre[n], axis=1) / np.maximum(
                extent[near], extent[n]
            )
            cost = _MOVE_COST * np.maximum(move - free_move, 0)
            gain = score[near] - np.minimum(cost, _JUMP_COST)
            options.append((gain.max(), near[gain.argmax()]))
        far = np.flatnonzero(frame[:n] < frame[n])
        if len(far):  # from anywhere earlier, at the price of a jump
            best = far[score[far].argmax()]
            options.append((score[best] - _JUMP_COST, best))
        if options and max(options)[0] > 0:
            gain, before[n] = max(options)
            score[n] += gain
    n = int(score.argmax())
    while n >= 0:
        result[nodes[n][0]] = nodes[n][1]
        n = before[n]
    return result


def _keypoint_root(root: Path, setting: str) -> Path:
    if setting != "auto":
        for candidate in (Path(setting), root / setting):
            if candidate.is_dir():
                return candidate
        raise UserError(f"recording.keypoints: {setting}: no such folder (nor in {root})")
    for name in ("openpose", "pose", "keypoints"):
        if (root / name).is_dir():
            return root / name
    return root


def _match_folder(name: str, folders: dict[str, Path], camera_file: Path) -> Path:
    """A camera's folder: its own name, else the only one that starts with it."""
    if name in folders:
        return folders[name]
    starts = [key for key in folders if re.match(re.escape(name) + r"(?![0-9A-Za-z])", key)]
    if len(starts) == 1:
        return folders[starts[0]]
    found = f"{' and '.join(starts)} both fit" if starts else f"found {', '.join(folders)}"
    raise UserError(
        f"{camera_file}: camera {name!r} has no keypoint folder {name} or {name}_json; {found}"
    )


def _read_camera(folder: Path, first: int, last: int | None) -> dict[int, np.ndarray]:
    """Frame number -> (persons, J, 3)."""
    people = {}
    for path in sorted(folder.glob("*.json")):
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise UserError(f"{path}: no frame number in the file name")
        frame = int(numbers[-1])
        if frame < first or (last is not None and frame > last):
            continue
        if frame in people:
            raise UserError(f"{path}: a second file of frame {frame} in this folder")
        people[frame] = _read_people(path)
    return people


def _read_people(path: Path) -> np.ndarray:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        people = [
            np.asarray(person["pose_keypoints_2d"], np.float64).reshape(-1, 3)
            for person in tree["people"]
        ]
        people = [person for person in people if len(person)]
        return np.stack(people) if people else np.zeros((0, 0, 3))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not an OpenPose keypoint file: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}; expected people[].pose_keypoints_2d with "
            "x, y, confidence per joint"
        ) from None


def _joint_set(by_camera: list[dict[int, np.ndarray]], name: str, root: Path) -> Skeleton:
    people = [p for camera in by_camera for p in camera.values() if len(p)]
    lengths = {p.shape[1] for p in people}
    for camera in by_camera:  # frames without anybody have no length of their own
        for frame, found in camera.items():
            if not len(found) and lengths:
                camera[frame] = np.zeros((0, max(lengths), 3))
    if not lengths:
        raise UserError(f"{root}: nobody was detected in any frame of any view")
    if len(lengths) > 1:
        raise UserError(f"{root}: files of {sorted(lengths)} points are mixed; expected one model")
    length = lengths.pop()
    if name != "auto":
        skeleton = SKELETONS[name]
        if len(skeleton.joints) != length:
            raise UserError(
                f"recording.joint_set: {name} has {len(skeleton.joints)} points, the files in "
                f"{root} have {length}"
            )
        return skeleton
    if length == 25:
        skeleton = _guess_body25(np.concatenate(people))
        log.info("%s: 25 points, arranged as in %s", root, skeleton.name)
        return skeleton
    if length not in _BY_LENGTH:
        raise UserError(
            f"{root}: {length} points per person; expected 25 (BODY_25, BODY_25B), 17 or 18 "
            "(COCO) or 26 (HALPE_26), or set recording.joint_set"
        )
    return _BY_LENGTH[length]


def _guess_body25(people: np.ndarray) -> Skeleton:
    """BODY_25 where point 8 is the middle of the hips 9 and 12; else BODY_25B (a right elbow)."""
    people = np.where(people[..., 2:] > 0, people, np.nan)
    extent = np.nanmax(people[..., 1], 1) - np.nanmin(people[..., 1], 1)
    off = np.linalg.norm(people[:, 8, :2] - (people[:, 9, :2] + people[:, 12, :2]) / 2, axis=1)
    relative = np.nanmedian(off / extent) if np.isfinite(off / extent).any() else 0.0
    return BODY25 if relative < 0.05 else BODY25B


def person_extent(xy: np.ndarray) -> np.ndarray:
    """Longer side of the box of the seen points, (T, V) px."""
    seen = np.isfinite(xy).all(-1)
    low = np.where(seen[..., None], xy, np.inf).min(-2)
    high = np.where(seen[..., None], xy, -np.inf).max(-2)
    return np.where(seen.sum(-1) >= 2, (high - low).max(-1), np.nan)
