"""Recordings as folders of 2D keypoint files: one subfolder per camera, one JSON per frame.

The files are OpenPose's (``people[].pose_keypoints_2d`` = x, y, confidence per joint), which
RTMPose / Pose2Sim and others write too. The file number is the frame number. Several persons in a
frame: `ptri.recordings.subject` tells who is followed.
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
import torch

from ptri.config import RecordingConfig
from ptri.errors import UserError
from ptri.geometry.cameras import to_reference
from ptri.recordings.candidates import Candidates
from ptri.recordings.intrinsics import CameraEntry, open_cameras
from ptri.recordings.subject import follow
from ptri.recordings.video_files import named_path
from ptri.skeleton import BODY25, BODY25B, COCO17, COCO18, HALPE26, SKELETONS, Skeleton
from ptri.structures import Cameras

log = logging.getLogger(__name__)

# Sets told apart by their number of points; 25 points need a look at them (`_guess_body25`).
_BY_LENGTH = {17: COCO17, 18: COCO18, 26: HALPE26}

USUAL_FPS = 30.0  # of files that do not say how many frames there are a second
People = dict[int, list[np.ndarray]]  # frame number -> points (J, 3) of each person


class Recording(NamedTuple):
    """2D keypoints of one person in T frames of V static cameras; NaN xy = not seen."""

    cameras: tuple[CameraEntry, ...]  # V
    frames: np.ndarray  # (T,) int64, file numbers
    xy: np.ndarray  # (T, V, J, 2) px, undistorted to the same K
    confidence: np.ndarray  # (T, V, J) in [0, 1]
    skeleton: Skeleton  # of the J points
    covariance: np.ndarray | None = None  # (T, V, J, 2, 2) px^2, where the detector states it
    fps: float = 0.0  # that the frames' numbers count; 0 = not known
    who: str = ""  # was followed in each view, and how sure that is
    late: np.ndarray | None = None  # (V, 2) frames that each camera's clock was late in the middle,
    # against the first camera's, and the standard deviation (0: given); None: taken to run in step
    drift: np.ndarray | None = None  # (V, 2) frames a frame by which that grew, and its deviation
    others: tuple[Recording, ...] = ()  # further people of the same cameras and frames, who only
    # serve to find the cameras

    @property
    def names(self) -> tuple[str, ...]:
        """Of the V cameras."""
        return tuple(camera.name for camera in self.cameras)

    @property
    def K(self) -> np.ndarray:
        """(V, 3, 3) px."""
        return np.stack([camera.K for camera in self.cameras])

    @property
    def clocks(self) -> np.ndarray:
        """(V, 4) `late` and `drift`."""
        nothing = np.zeros((len(self.cameras), 2))
        parts = (nothing if part is None else part for part in (self.late, self.drift))
        return np.concatenate(list(parts), axis=1)

    def late_at(self, frame: float) -> np.ndarray:
        """(V,) frames that each camera's clock was late."""
        late, _, drift, _ = self.clocks.T
        return late + drift * (frame - 0.5 * (self.frames[0] + self.frames[-1]))

    @property
    def reference(self) -> Cameras | None:
        """The camera file's extrinsics, in view 0's frame and mm; None: not of every camera."""
        if any(camera.R is None for camera in self.cameras):
            return None
        R, t = (torch.tensor(np.stack(part)) for part in zip(*((c.R, c.t) for c in self.cameras)))
        return to_reference(Cameras(torch.tensor(self.K), R, t))

    def part(self, views: list[int], frames: slice = slice(None)) -> Recording:
        """Some views of some frames."""
        covariance = self.covariance
        return self._replace(
            cameras=tuple(self.cameras[v] for v in views),
            frames=self.frames[frames],
            xy=self.xy[frames][:, views],
            confidence=self.confidence[frames][:, views],
            covariance=None if covariance is None else covariance[frames][:, views],
            late=None if self.late is None else self.late[views],
            drift=None if self.drift is None else self.drift[views],
            others=tuple(other.part(views, frames) for other in self.others),
        )


def read_recording(
    root: str | Path, options: RecordingConfig, late: np.ndarray | None = None
) -> Recording:
    """Reads a recording of keypoint files.

    Args:
        root: folder with the keypoint folder and the camera file.
        options: which folder, file, views and frames; points less confident than its
            ``min_confidence`` are not seen.
        late: (V,) whole frames by which what a camera shows comes too late; None: none.

    Raises:
        UserError: a missing or unreadable file, a camera without intrinsics or keypoints, fewer
            than two views, no frame. The message names it.
    """
    root = Path(root)
    cameras = open_cameras(root, options)
    folders = _camera_folders(root, options.keypoints)
    by_camera = [_read_camera(_match_folder(c.name, folders, root), options) for c in cameras]
    frames = sorted(set().union(*by_camera))
    if not frames:
        last = "the end" if options.last_frame is None else options.last_frame
        raise UserError(
            f"{root}: no keypoint file with a frame number from {options.first_frame} to {last}"
        )
    skeleton = _skeleton_of(by_camera, options.joint_set, root)
    if options.person == "box":
        raise UserError("recording.person: box is for videos; expected largest or moving here")
    people = _candidates(by_camera, frames, cameras, len(skeleton.joints))
    recording = followed_recording(people, cameras, frames, 0.0, skeleton, options, late)
    if not np.isfinite(recording.xy).any():
        least = options.min_confidence
        raise UserError(f"{root}: no keypoint reaches recording.min_confidence={least}")
    others = tuple(other._replace(covariance=None) for other in recording.others)
    return recording._replace(covariance=None, others=others)


def followed_recording(
    people: Candidates,
    cameras: Sequence[CameraEntry],
    frames: Sequence[int],
    fps: float,
    skeleton: Skeleton,
    options: RecordingConfig,
    late: np.ndarray | None = None,
) -> Recording:
    """The recording of the person who is followed; what is too unsure is not seen.

    Args:
        people: all who were seen.
        fps: that the frames' numbers count; 0 = not known.
        late: (V,) whole frames by which what a camera shows comes too late; None: none.
    """
    people = people.surely(options.min_confidence)
    if late is not None:
        people = _earlier(people, np.array(frames), late)
    K, names = np.stack([camera.K for camera in cameras]), [camera.name for camera in cameras]
    times = np.array(frames) / (fps or USUAL_FPS)
    followed = follow(people, times, K, names, options.person)

    def recording_of(sighting: np.ndarray, words: str = "") -> Recording:
        there = sighting >= 0  # (T, V)
        subject = people.rows(sighting[there])
        shape = (*there.shape, len(skeleton.joints))
        xy, covariance = np.full((*shape, 2), np.nan), np.full((*shape, 2, 2), np.nan)
        confidence = np.zeros(shape)
        xy[there], covariance[there] = subject.xy, subject.covariance
        confidence[there] = subject.confidence
        rest = skeleton, covariance, fps, words
        return Recording(tuple(cameras), np.array(frames, np.int64), xy, confidence, *rest)

    others = followed.others if options.people == "all" else ()
    recording = recording_of(followed.sighting, followed.words)
    return recording._replace(others=tuple(map(recording_of, others)))


def _earlier(people: Candidates, frames: np.ndarray, late: np.ndarray) -> Candidates:
    """The same people, each view's at the frames (T,) that are so much (V,) earlier, if any."""
    frame = frames[people.row] - np.rint(late).astype(np.int64)[people.view]
    row = np.searchsorted(frames, frame).clip(0, len(frames) - 1)
    there = frames[row] == frame
    return people._replace(row=row).rows(there)


def _candidates(
    by_camera: list[People], frames: list[int], cameras: list[CameraEntry], num_joints: int
) -> Candidates:
    """All people of all files, undistorted; a point at 0, 0 was not seen."""
    places = [
        (row, view, points)
        for view, people in enumerate(by_camera)
        for row, frame in enumerate(frames)
        for points in people.get(frame, [])
    ]
    row, view, points = zip(*places)
    row, view, points = np.array(row), np.array(view), np.reshape(points, (-1, num_joints, 3))
    N = len(row)
    xy = np.where((points[..., :2] != 0).any(-1, keepdims=True), points[..., :2], np.nan)
    for v, camera in enumerate(cameras):
        xy[view == v] = undistort(xy[view == v], camera.K, camera.dist)
    confidence = np.nan_to_num(points[..., 2]).clip(0, 1)
    covariance = np.full((*xy.shape, 2), np.nan)
    unknown = np.full((N, 4), np.nan), np.full((N, 6), np.nan)
    return Candidates(row, view, xy, covariance, confidence, *unknown, np.zeros(N, bool))


def undistort(xy: np.ndarray, K: np.ndarray, dist: np.ndarray) -> np.ndarray:
    """Takes the lens's distortion out of points (..., 2) px, keeping K; NaN stays NaN."""
    seen = np.isfinite(xy).all(-1)
    result = np.full_like(xy, np.nan)
    if seen.any():
        points = np.ascontiguousarray(xy[seen][:, None])
        result[seen] = cv2.undistortPoints(points, K, dist, P=K)[:, 0]
    return result


def distort(xy: np.ndarray, K: np.ndarray, dist: np.ndarray) -> np.ndarray:
    """Puts the lens's distortion back on points (..., 2) px: places in the picture as recorded."""
    seen = np.isfinite(xy).all(-1)
    result = np.full_like(xy, np.nan)
    if seen.any():
        rays = np.insert((xy[seen] - K[:2, 2]) / K[[0, 1], [0, 1]], 2, 1.0, axis=1)
        zero = np.zeros(3)
        result[seen] = cv2.projectPoints(rays, zero, zero, K, dist)[0][:, 0]
    return result


# --- folders and files -----------------------------------------------------------------------


def _camera_folders(root: Path, setting: str) -> dict[str, Path]:
    """Each camera's folder by name; at least one holds files (a camera may have seen nothing)."""
    if setting == "auto":
        usual = (root / name for name in ("openpose", "pose", "keypoints"))
        root = next((folder for folder in usual if folder.is_dir()), root)
    else:
        place = named_path(setting, root)
        if not place.is_dir():
            raise UserError(f"recording.keypoints: {setting}: no such folder (nor in {root})")
        root = place
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    if not any(any(folder.glob("*.json")) for folder in folders.values()):
        raise UserError(
            f"{root}: no keypoint files; expected one subfolder per camera with one OpenPose JSON "
            "per frame"
        )
    return folders


def _match_folder(name: str, folders: dict[str, Path], root: Path) -> Path:
    """A camera's folder: its own name, else the only one that starts with it."""
    if name in folders:
        return folders[name]
    starts = [key for key in folders if re.match(re.escape(name) + r"(?![0-9A-Za-z])", key)]
    if len(starts) == 1:
        return folders[starts[0]]
    there = f"{' and '.join(starts)} both fit" if starts else f"found {', '.join(folders)}"
    raise UserError(
        f"{root}: no keypoint folder {name} or {name}_json for camera {name!r} of the camera file; "
        f"{there}; rename the folder, or the camera in the file"
    )


def _read_camera(folder: Path, options: RecordingConfig) -> People:
    """The people in the chosen frames of a camera."""
    people: People = {}
    for path in sorted(folder.glob("*.json")):
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise UserError(f"{path}: no frame number in the file name")
        frame, last = int(numbers[-1]), options.last_frame
        if frame < options.first_frame or (last is not None and frame > last):
            continue
        if frame in people:
            raise UserError(f"{path}: a second file of frame {frame} in this folder")
        people[frame] = _read_people(path)
    return people


def _read_people(path: Path) -> list[np.ndarray]:
    """Points (J, 3) of each person: x, y (px, as recorded) and confidence."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        people = [
            np.asarray(person["pose_keypoints_2d"], np.float64).reshape(-1, 3)
            for person in tree["people"]
        ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not an OpenPose keypoint file: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:120]}; expected people[].pose_keypoints_2d with "
            "x, y, confidence per joint"
        ) from None
    return [points for points in people if len(points)]


# --- sets of joints --------------------------------------------------------------------------


def _skeleton_of(by_camera: list[People], name: str, root: Path) -> Skeleton:
    """The skeleton of that name ("auto": of as many points as the files have)."""
    people = [points for camera in by_camera for frame in camera.values() for points in frame]
    lengths = sorted({len(points) for points in people})
    if not lengths:
        raise UserError(f"{root}: nobody was detected in any frame of any view")
    if len(lengths) > 1:
        raise UserError(f"{root}: files of {lengths} points are mixed; expected one model")
    (length,) = lengths
    if name != "auto":
        skeleton = SKELETONS[name]
        if len(skeleton.joints) != length:
            raise UserError(
                f"recording.joint_set: {name} has {len(skeleton.joints)} points, the files in "
                f"{root} have {length}"
            )
    elif length == 25:
        skeleton = _guess_body25(np.stack(people))
        log.info("%s: 25 points, arranged as in %s", root, skeleton.name)
    elif length in _BY_LENGTH:
        skeleton = _BY_LENGTH[length]
    else:
        raise UserError(
            f"{root}: {length} points per person; expected 25 (BODY_25, BODY_25B), 17 or 18 "
            "(COCO) or 26 (HALPE_26), or set recording.joint_set"
        )
    return skeleton


def _guess_body25(people: np.ndarray) -> Skeleton:
    """BODY_25 where point 8 is the middle of the hips 9 and 12; else BODY_25B (a right elbow)."""
    people = np.where(people[..., 2:] > 0, people, np.nan)
    height = np.nanmax(people[..., 1], 1) - np.nanmin(people[..., 1], 1)
    away = np.linalg.norm(people[:, 8, :2] - (people[:, 9, :2] + people[:, 12, :2]) / 2, axis=1)
    share = away / height
    median = np.nanmedian(share) if np.isfinite(share).any() else 0.0
    return BODY25 if median < 0.05 else BODY25B
