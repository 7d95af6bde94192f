"""A made-up recording: a person walking between cameras, as OpenPose files and a camera file."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from h36m_fixture import STANDING, ring_cameras

from ptri import config
from ptri.skeleton import H36M17, SKELETONS, linear_map, map_joints

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("left", "front", "right", "back")
SIZE = 1000


def body(num_frames: int) -> np.ndarray:
    """World joints (T, 17, 3) mm of a turning, waving person who walks away."""
    frame = np.arange(num_frames)
    joints = np.tile(STANDING, (num_frames, 1, 1))
    for wrist, elbow, shoulder, side in ((10, 11, 12, -1), (15, 14, 13, 1)):
        angle = 0.8 * np.sin(0.7 * frame + side)
        upper = [side * np.cos(angle), np.sin(angle), np.full(num_frames, 0.2)]
        lower = [side * np.cos(2 * angle), np.sin(2 * angle), np.full(num_frames, 0.3)]
        joints[:, elbow] = joints[:, shoulder] + 280 * np.stack(upper, 1)
        joints[:, wrist] = joints[:, elbow] + 250 * np.stack(lower, 1)
    world = joints[..., [0, 2, 1]] * [1, -1, 1]  # z up
    turn = np.stack([cv2.Rodrigues(np.array([0, 0, 0.15 * f]))[0] for f in frame])
    return world @ turn.swapaxes(1, 2) + frame[:, None, None] * [30, -20, 0]


def seen_by_ring(size: int, world: np.ndarray, dist) -> tuple[np.ndarray, ...]:
    """K, R, t of four cameras and what they see of joints (T, J, 3): (T, 4, J, 2) px, distorted."""
    K, _, R, t = (part[0] for part in ring_cameras(1, size))
    xy = [
        cv2.projectPoints(joints, cv2.Rodrigues(R[v])[0], t[v], K[v], np.array(dist))[0][:, 0]
        for joints in world for v in range(4)
    ]  # fmt: skip
    return K, R, t, np.reshape(xy, (len(world), 4, -1, 2))


def detector_joints(world: np.ndarray, joint_set: str) -> np.ndarray:
    """Joints (T, J, 3) of a detector's set; those beyond Human3.6M's are near the nose."""
    joints = map_joints(world, linear_map(H36M17, SKELETONS[joint_set]))
    beside = np.array([[40, 30 + j, -20] for j in range(joints.shape[1])])
    nose = world[:, [H36M17.joints.index("nose")]]
    return np.where(np.isnan(joints), nose + beside, joints)


def make_recording(
    root: Path,
    num_frames: int = 6,
    joint_set: str = "body25b",
    noise: float = 0.0,
    dist=(-0.05, 0.1, 0.001, -0.001, 0.0),
    bystander: bool = False,
    second: bool = False,
) -> dict:
    """Writes ``root``; returns K, R, t, dist, world joints of the detector and of Human3.6M."""
    world = body(num_frames)
    joints = detector_joints(world, joint_set)
    K, R, t, seen = seen_by_ring(SIZE, joints, dist)
    # The second person moves otherwise: a copy of the first would pass for it in any view.
    child = 0.8 * joints[::-1, :, [1, 0, 2]] * [-1, 1, 1] + [-700, 500, 0]
    other = seen_by_ring(SIZE, child, dist)[-1]
    rng = np.random.default_rng(0)
    seen, other = (xy + noise * rng.standard_normal(xy.shape) for xy in (seen, other))
    for v, name in enumerate(NAMES):
        folder = root / "openpose" / f"{name}_json"
        folder.mkdir(parents=True)
        for f, xy in enumerate(seen[:, v]):
            person = np.concatenate([xy, np.full((len(xy), 1), 0.8)], 1)
            people = [person]
            if bystander and v < 2:  # smaller, listed first
                people.insert(0, person * [0.45, 0.45, 0.9] + [20.0, 15.0, 0])
            if second:
                points = np.concatenate([other[f, v], np.full((len(xy), 1), 0.8)], 1)
                people.insert(f % 2, points)
            tree = {"people": [{"pose_keypoints_2d": p.ravel().tolist()} for p in people]}
            (folder / f"{name}_{f:012d}_keypoints.json").write_text(json.dumps(tree))
    write_cameras(root, SIZE, K, dist, R, t)
    return {"K": K, "R": R, "t": t, "dist": np.array(dist), "joints": joints, "world": world}


def write_cameras(root: Path, size: int, K, dist, R, t) -> None:
    """Writes ``calibration.json`` of square pictures."""
    parts = [dict(zip("KRt", (part.tolist() for part in camera))) for camera in zip(K, R, t)]
    common = {"size": [size, size], "dist": list(dist)}
    cameras = [{"name": name} | common | part for name, part in zip(NAMES, parts)]
    (root / "calibration.json").write_text(json.dumps({"units": "mm, px", "cameras": cameras}))


def sample_settings(name: str, *extra: str) -> config.Config:
    """Settings of a file of `configs` for the sample recording, which not every machine has."""
    sample = ROOT.parent / "shared/data/pose2sim_single"
    if not sample.is_dir():
        pytest.skip("needs the sample recording")
    return config.load(ROOT / "configs" / name, [f"data.root={sample}", *extra])


def edit_cameras(root: Path, change) -> None:
    """Changes the list of cameras in ``calibration.json`` in place."""
    tree = json.loads((root / "calibration.json").read_text())
    change(tree["cameras"])
    (root / "calibration.json").write_text(json.dumps(tree))


def run_script(monkeypatch, capsys, script, *arguments) -> tuple[int, str, list[str]]:
    """Exit status, stdout and lines of stderr of a script, in this process (torch loads slowly)."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    stdout, stderr = capsys.readouterr()
    return stopped.value.code, stdout, stderr.splitlines()
