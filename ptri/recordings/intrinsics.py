"""Camera files: intrinsics (and, where given, a reference calibration) per camera by name.

JSON, YAML and TOML hold the same tree::

    units: mm                       # of t; "mm", "cm" or "m"; optional
    cameras:
      - name: cam01                 # the start of the keypoint folder's name
        size: [1080, 1920]          # width, height of the video, px
        K: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]        # or the keys fx, fy, cx, cy
        dist: [k1, k2, p1, p2, k3]  # OpenCV; optional
        R: [[...], [...], [...]]    # optional reference, x_cam = R x_world + t
        t: [x, y, z]

Where K is not known it is left out: the focal length is then found with the cameras. What is known
of it is told by

        camera: iPhone14,5          # the device, see ptri/rig/lenses.py; optional
        K_std: 0.02                 # relative standard deviation of the focal length; optional
        group: front                # cameras of one label have like focal lengths; optional

Without a camera file the videos themselves tell names and sizes. ``recording.cameras`` tells the
devices, or the videos' metadata do.

``cameras`` may also map names to entries. Pose2Sim's and Anipose's TOML files (one table per
camera with ``size, matrix, distortions, rotation, translation``) and Qualisys' ``*.qca.txt`` are
read as they are.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml

from ptri.config import RecordingConfig
from ptri.errors import UserError
from ptri.recordings import qualisys
from ptri.recordings.video_files import (
    filmed_by,
    first_picture,
    named_path,
    videos_by_camera,
    videos_in,
)
from ptri.rig.lenses import (
    DEVICE,
    EQUIVALENT,
    EQUIVALENT_STD,
    FAMILIES,
    GIVEN,
    GIVEN_STD,
    LARGEST_STD,
    SIZE,
    Lenses,
    devices,
    find_lenses,
    model_of,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

log = logging.getLogger(__name__)

MILLIMETRES = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
FILE_TYPES = (".json", ".yaml", ".yml", ".toml", qualisys.ENDING)
OTHER_LENS = 0.15  # log of a device's focal length over that of its metadata, three deviations
MIN_FOCAL = 0.1  # of the picture's longer side; no lens is so wide
PROJECT_FILE = "Config.toml"  # Pose2Sim's settings, which lie beside its calibration
ALIASES = {"matrix": "K", "distortions": "dist", "rotation": "R", "translation": "t"}  # Pose2Sim's


class CameraEntry(NamedTuple):
    """One camera of a file."""

    name: str
    size: tuple[int, int]  # width, height, px
    K: np.ndarray  # (3, 3) px
    dist: np.ndarray  # (5,) OpenCV's k1 k2 p1 p2 k3
    R: np.ndarray | None  # (3, 3), x_cam = R x_world + t
    t: np.ndarray | None  # (3,) mm
    K_std: float = GIVEN_STD  # relative standard deviation of the focal length
    group: str | None = None  # cameras of one label have like focal lengths
    source: str = GIVEN  # of K, see ptri/rig/lenses.py


def read_cameras(path: str | Path) -> list[CameraEntry]:
    """Reads a camera file in its own order.

    Raises:
        UserError: unreadable; no camera; a value missing, of the wrong shape, NaN or absurd. The
            message names the file, the camera and the key.
    """
    path = Path(path)
    tree = _parse(path)
    cameras = [_camera(entry, path) for entry in _entries(tree, path)]
    names = [camera.name for camera in cameras]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two cameras are named {name!r}; names must differ")
    unit = _millimetres(tree, cameras, path)
    return [c if c.t is None else c._replace(t=c.t * unit) for c in cameras]


def open_cameras(root: Path, options: RecordingConfig) -> list[CameraEntry]:
    """The cameras of a recording that ``recording.intrinsics`` and ``recording.views`` choose.

    Args:
        root: the recording's folder.

    Raises:
        UserError: no such folder, no or a bad camera file, an unknown or repeated view, or fewer
            than two views.
    """
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    path = _camera_file(root, options.intrinsics)
    cameras = _of_videos(root, options) if path is None else read_cameras(path)
    cameras = _of_devices(cameras, options.cameras)
    cameras = _select_views(_as_filmed(cameras, root, options.videos), options.views)
    path = path or root
    if len(cameras) < 2:
        raise UserError(
            f"{path}: {len(cameras)} view chosen ({', '.join(camera.name for camera in cameras)}); "
            "at least two cameras are needed"
        )
    return cameras


def unknown_camera(
    name: str, size: tuple[int, int], device: str | None, K_std: float | None = None
) -> CameraEntry:
    """A camera of which just the pictures' size, and perhaps the device, is known.

    Raises:
        UserError: an unknown device.
    """
    lenses = Lenses(size, K_std, [device])
    K, focal, (source,) = find_lenses(None, 1, lenses)
    std = 0.0 if focal is None else float(focal.norm())
    dist = np.zeros(5)
    if device in devices():
        dist = np.array(devices()[device]["dist"])
    return CameraEntry(name, size, K[0].numpy(), dist, None, None, std, model_of(device), source)


def _of_videos(root: Path, options: RecordingConfig) -> list[CameraEntry]:
    """Cameras of which only the videos tell."""
    folder = root / "videos" if options.videos == "auto" else named_path(options.videos, root)
    paths = videos_in(folder)
    if len(paths) < 2:
        raise UserError(
            f"{root}: no camera file, and not two videos in {folder} that would tell the pictures' "
            "sizes; put calibration.json (or .yaml, .toml) there with size and, where they are "
            "known, K and dist of every camera, or set recording.intrinsics or recording.videos"
        )
    entries = []
    for path in paths:
        height, width = first_picture(path)[1].shape[:2]
        entries.append(unknown_camera(path.stem, (width, height), None))
    return entries


def _of_devices(cameras: list[CameraEntry], given: dict[str, object]) -> list[CameraEntry]:
    """The cameras with the devices' lenses in place of their own."""
    given = {str(name): device for name, device in given.items()}
    unknown = sorted(set(given) - {camera.name for camera in cameras})
    if unknown:
        names = ", ".join(camera.name for camera in cameras)
        raise UserError(f"recording.cameras: no camera {', '.join(unknown)}; there are {names}")
    return [
        _of_device(camera, given[camera.name]) if camera.name in given else camera
        for camera in cameras
    ]


def _as_filmed(cameras: list[CameraEntry], root: Path, setting: str) -> list[CameraEntry]:
    """The cameras with what their videos' metadata say, where nothing better is known."""
    unknown = [camera.name for camera in cameras if camera.source == SIZE]
    videos = videos_by_camera(unknown, root, setting) if unknown else {}
    return [
        _filmed(camera, videos[camera.name]) if camera.name in videos else camera
        for camera in cameras
    ]


def _filmed(camera: CameraEntry, video: Path) -> CameraEntry:
    """The camera that filmed a video, as its metadata name it. The equivalent focal length tells
    another lens of a device from the one that is known."""
    model, equivalent = filmed_by(video)
    device = model_of(model) or next((f for f in FAMILIES if (model or "").startswith(f)), None)
    told = None if device is None else _of_device(camera, device)
    if equivalent is not None:
        focal = EQUIVALENT * equivalent * max(camera.size)
        apart = math.inf if told is None else abs(math.log(told.K[0, 0] / focal))
        if apart > OTHER_LENS or told.group is None:
            K = camera.K.copy()
            K[0, 0] = K[1, 1] = focal
            told = camera._replace(K=K, K_std=EQUIVALENT_STD, source=DEVICE)
    if told is None:
        return camera
    words = ", ".join(
        [model or "an unnamed device", *([] if equivalent is None else [f"{equivalent:g} mm"])]
    )
    log.info("%s: filmed by %s, as its metadata say", video, words)
    return told


def _of_device(camera: CameraEntry, device: object) -> CameraEntry:
    """The camera with a device's lens; a label of its own stays, and so does its distortion where
    that of the device is not known."""
    new = unknown_camera(camera.name, camera.size, device)
    dist = new.dist if new.dist.any() else camera.dist
    return new._replace(R=camera.R, t=camera.t, group=camera.group or new.group, dist=dist)


def _camera_file(root: Path, setting: str) -> Path | None:
    """The camera file of a recording: the one named by the setting, else one of a usual name;
    None: there is none, or none is wanted."""
    if setting == "none":
        return None
    if setting != "auto":
        path = named_path(setting, root)
        if not path.is_file():
            raise UserError(f"recording.intrinsics: {setting}: no such file (nor in {root})")
        return path
    stems = ("calibration", "intrinsics", "cameras", "calib")
    for folder in (root, root / "calibration"):
        usual = [folder / (stem + suffix) for stem in stems for suffix in FILE_TYPES]
        files = [path for path in usual if path.is_file()]
        others = [path for kind in ("*.toml", f"*{qualisys.ENDING}") for path in folder.glob(kind)]
        others = sorted(path for path in others if path.name != PROJECT_FILE)
        if files or len(others) == 1:
            return (files or others)[0]
    return None


def _select_views(
    cameras: list[CameraEntry], views: Sequence[str | int] | None
) -> list[CameraEntry]:
    """The chosen cameras, by name or index, in the given order."""
    if views is None:
        return cameras
    names = [camera.name for camera in cameras]
    places = {name: place for place, name in enumerate(names)} | {p: p for p in range(len(names))}
    chosen = [places.get(view, places.get(str(view))) for view in views]
    if None in chosen:
        raise UserError(
            f"recording.views: no camera {views[chosen.index(None)]!r}; expected an index from 0 "
            f"to {len(cameras) - 1} or one of {', '.join(names)}"
        )
    if len(set(chosen)) < len(chosen):
        raise UserError(f"recording.views: {list(views)} names a camera twice")
    return [cameras[place] for place in chosen]


# --- reading a file --------------------------------------------------------------------------


def _parse(path: Path) -> dict[str, Any]:
    """The tree of a file."""
    kind = next((kind for kind in FILE_TYPES if path.name.lower().endswith(kind)), None)
    if kind is None:
        raise UserError(f"{path}: expected a camera file ending in {', '.join(FILE_TYPES)}")
    parsers = {".json": json.loads, ".toml": tomllib.loads, qualisys.ENDING: qualisys.parse_qca}
    parse = parsers.get(kind, yaml.safe_load)
    try:
        tree = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such camera file") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a table with the key 'cameras'")
    return tree


def _entries(tree: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The table of each camera, with its name and our keys."""
    cameras = tree.get("cameras")
    if cameras is None:  # Pose2Sim and Anipose: one table per camera
        tables = {key: value for key, value in tree.items() if isinstance(value, dict)}
        cameras = {k: table for k, table in tables.items() if table.keys() & {"matrix", "K", "fx"}}
    if isinstance(cameras, dict):
        cameras = [
            {"name": name, **entry} if isinstance(entry, dict) else entry
            for name, entry in cameras.items()
        ]
    if not isinstance(cameras, list) or not cameras:
        raise UserError(f"{path}: no camera found; expected a list under the key 'cameras'")
    for index, entry in enumerate(cameras):
        if not isinstance(entry, dict) or "name" not in entry:
            raise UserError(f"{path}: cameras[{index}] is not a table with the key 'name'")
    return [{ALIASES.get(key, key): value for key, value in entry.items()} for entry in cameras]


def _millimetres(tree: dict[str, Any], cameras: list[CameraEntry], path: Path) -> float:
    """Of the unit of the file's translations."""
    text = tree.get("units")
    if isinstance(tree.get("metadata"), dict):
        text = tree["metadata"].get("units", text)
    if text is not None:
        for word in re.findall(r"[a-z]+", str(text).lower()):
            if word in MILLIMETRES:
                return MILLIMETRES[word]
        raise UserError(f"{path}: units = {text!r}; expected mm, cm or m")
    largest = max((abs(camera.t).max() for camera in cameras if camera.t is not None), default=0)
    if 0 < largest < 50:  # cameras stand metres apart, and farther than 50 mm
        log.info("%s: no 'units'; its translations are taken as metres", path)
        return MILLIMETRES["m"]
    return MILLIMETRES["mm"]


def _camera(entry: dict[str, Any], path: Path) -> CameraEntry:
    """One camera, checked; t in the file's unit."""
    name = str(entry["name"])
    where = f"{path}: camera {name!r}"
    if entry.get("fisheye") is True:
        raise UserError(f"{where}: fisheye lenses are not supported; undistort the keypoints first")
    size = _array(entry, "size", (2,), where)
    if min(size) < 1:
        raise UserError(f"{where}: size = {size.tolist()} px; expected [width, height]")
    known, device = _lens(entry, where), entry.get("camera")
    if not entry.keys() & {"K", "fx", "fy", "cx", "cy"}:
        K_std = None if entry.get("K_std") is None else known[0]
        try:
            camera = unknown_camera(name, (int(size[0]), int(size[1])), device, K_std)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if entry.get("dist") is not None:
            camera = camera._replace(dist=_distortion(entry, where))
        R, t = _pose(entry, where)
        return camera._replace(R=R, t=t, group=known[1] or camera.group)
    if device is not None:
        raise UserError(f"{where}: K and camera; give one of the two (how well K is known: K_std)")
    if "K" in entry:
        K = _array(entry, "K", (3, 3), where)
    else:
        fx, fy, cx, cy = (_array(entry, key, (), where) for key in ("fx", "fy", "cx", "cy"))
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    if min(K[0, 0], K[1, 1]) <= 0 or abs(K[2] - [0, 0, 1]).max() > 1e-6:
        raise UserError(
            f"{where}: K = {K.tolist()}; expected [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with "
            "positive focal lengths in px"
        )
    if K[0, 0] < MIN_FOCAL * max(size):
        raise UserError(
            f"{where}: a focal length of {K[0, 0]:.4g} px for a picture of {size[0]:.0f} x "
            f"{size[1]:.0f} px; expected K in px: the focal length in mm over the sensor's width "
            "in mm, times the picture's width in px"
        )
    if abs(K[0, 1]) > 1e-3 * K[0, 0]:
        raise UserError(f"{where}: K has a skew of {K[0, 1]:g}; expected square pixels' 0")
    dist = _distortion(entry, where)
    R, t = _pose(entry, where)
    return CameraEntry(name, (int(size[0]), int(size[1])), K, dist, R, t, *known)


def _pose(entry: dict[str, Any], where: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """R (3, 3) and t (3,) of an entry, in the file's unit, if it has them."""
    if "R" not in entry:
        return None, None
    return _rotation(_array(entry, "R", None, where), where), _array(entry, "t", (3,), where)


def _distortion(entry: dict[str, Any], where: str) -> np.ndarray:
    """OpenCV's coefficients (5,) of an entry; zero where it has none."""
    dist = np.zeros(5)
    if entry.get("dist") is not None:
        values = _array(entry, "dist", None, where).ravel()
        if np.any(values[5:]):
            raise UserError(f"{where}: {len(values)} distortion values; expected at most 5")
        dist[: len(values)] = values[:5]
    return dist


def _lens(entry: dict[str, Any], where: str) -> tuple[float, str | None]:
    """Relative standard deviation of an entry's focal length, and the label of its kind."""
    std, group = GIVEN_STD, entry.get("group")
    if entry.get("K_std") is not None:
        std = float(_array(entry, "K_std", (), where))
        if not 0 <= std <= LARGEST_STD or isinstance(entry["K_std"], bool):
            raise UserError(
                f"{where}: K_std = {entry['K_std']}; expected 0 (exact) to {LARGEST_STD:g}"
            )
    if group is not None and not isinstance(group, (str, int)):
        raise UserError(f"{where}: group = {group!r:.80}; expected a label")
    return std, None if group is None else str(group)


def _rotation(value: np.ndarray, where: str) -> np.ndarray:
    """R (3, 3) from a matrix or a Rodrigues vector."""
    if value.size == 3:
        return cv2.Rodrigues(value.reshape(3))[0]
    if value.size != 9:
        raise UserError(
            f"{where}: R has {value.size} numbers; expected 3 x 3 or a Rodrigues vector"
        )
    R = value.reshape(3, 3)
    error = abs(R @ R.T - np.eye(3)).max()
    if error > 1e-3 or np.linalg.det(R) < 0:
        raise UserError(f"{where}: R is not a rotation (R R^T differs from I by {error:.2g})")
    return R


def _array(
    entry: dict[str, Any], key: str, shape: tuple[int, ...] | None, where: str
) -> np.ndarray:
    """A finite float64 array under a key; shape None: any."""
    if key not in entry:
        raise UserError(f"{where}: key {key!r} is missing")
    try:
        value = np.asarray(entry[key], np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {key} is not numeric: {str(entry[key])[:80]!r}") from None
    if shape is not None and value.shape != shape:
        raise UserError(f"{where}: {key} has shape {value.shape}, expected {shape}")
    if not np.isfinite(value).all():
        raise UserError(
            f"{where}: {key} holds NaN or infinity; expected finite numbers, so calibrate the "
            "lens (or write the focal length from the data sheet) first"
        )
    return value
