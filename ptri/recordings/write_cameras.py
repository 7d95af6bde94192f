"""The cameras of a solved recording as camera files: ours, and Pose2Sim's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ptri.evaluation import outputs
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.solve import Solution, camera_spread
from ptri.rig.known import known_from


def write_cameras(folder: Path, solution: Solution) -> None:
    """Writes the cameras as camera files: cameras.json, and cameras.toml for Pose2Sim."""
    recording, estimate = solution.recording, solution.estimate
    names = recording.names
    parts = estimate.R, estimate.t, estimate.K, estimate.focal_std
    found = zip(recording.cameras, *(part.numpy() for part in parts))
    cameras = [
        camera._replace(R=R, t=t, K=K, K_std=float(std), dist=refocused_distortion(camera, K))
        for camera, R, t, K, std in found
    ]
    frame = f"the frame of {names[0]} (x right, y down, z forward)"
    tree = {
        "units": "mm, px",
        "convention": f"x_cam = R x + t; x in {frame}",
        "scale": estimate.scale.words(names),
        "accepted": estimate.accepted,
        "verdict": estimate.verdict.words(names),
        # Of the rotation vectors w (rad) and translations d (mm) of all cameras but the first, by
        # which they may differ: R' = exp(w) R, t' = t + d.
        "covariance": known_from(estimate).covariance.numpy(),
        "cameras": [camera._asdict() for camera in cameras],
    }
    names = ("late_frames", "late_std_frames", "clock_drift", "clock_drift_std")
    for entry, rotation, centre, clock in zip(
        tree["cameras"], *camera_spread(estimate), recording.clocks
    ):
        del entry["source"]  # K is found now
        entry |= {"rotation_std_deg": rotation, "centre_std_mm": centre}
        entry |= dict(zip(names, clock))
    outputs.write_json(folder / "cameras.json", tree)
    write_toml(folder / "cameras.toml", cameras)


def refocused_distortion(camera: CameraEntry, K: np.ndarray) -> np.ndarray:
    """The coefficients (5,) k1 k2 p1 p2 k3 that bend pixels as before with another focal length.

    They are of normalised radii, which are smaller by as much as it is longer.
    """
    longer = K[0, 0] / camera.K[0, 0]
    return camera.dist * longer ** np.array([2, 4, 1, 1, 6])


def write_toml(path: str | Path, cameras: Sequence[CameraEntry]) -> None:
    """Writes a Pose2Sim calibration: Rodrigues rotations, translations in metres.

    Args:
        cameras: with R and t.
    """
    lines = []
    for v, camera in enumerate(cameras):
        matrix = ", ".join(_numbers(row) for row in camera.K)
        lines += [
            f"[cam_{v + 1:02d}]",
            f"name = {json.dumps(camera.name)}",
            f"size = {_numbers(camera.size)}",
            f"matrix = [{matrix}]",
            f"distortions = {_numbers(camera.dist[:4])}",
            f"rotation = {_numbers(cv2.Rodrigues(np.float64(camera.R))[0].ravel())}",
            f"translation = {_numbers(camera.t / 1000)}",
            "fisheye = false",
            "",
        ]
    lines += ["[metadata]", "adjusted = false", "error = 0.0", ""]
    Path(path).write_text("\n".join(lines))


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(repr(float(value)) for value in values)}]"
