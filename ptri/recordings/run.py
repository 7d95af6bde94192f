"""Real recordings: keypoint files or videos of static cameras in; cameras, joints and their
uncertainties out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from ptri import config as configuration
from ptri.config import Config
from ptri.evaluation import outputs
from ptri.evaluation.evaluate import load_model
from ptri.posterior.sampling import resample
from ptri.recordings import cache as recording_cache
from ptri.recordings import report as recording_report
from ptri.recordings import videos as recording_videos
from ptri.recordings.halves import compare_halves
from ptri.recordings.intrinsics import write_toml
from ptri.recordings.keypoint_files import Recording, read_recording
from ptri.recordings.solve import Solution, camera_spread, solve, usable_views
from ptri.recordings.videos import Detected
from ptri.skeleton import H36M17

SAVED_SAMPLES = 128


def process(
    model: nn.Module,
    recording: Recording,
    config: Config,
    folder: Path,
    detected: Detected | None = None,
) -> tuple[dict[str, object], str]:
    """Solves a recording and writes the output folder.

    Args:
        detected: what the recording was detected from, where it comes from videos.

    Returns:
        The figures of metrics.json, and the printed text.
    """
    solution = solve(model, recording, config)
    halves = compare_halves(model, recording, config, solution)
    solution = halves.solution
    figures = recording_report.figures_of(recording, solution)
    text = f"{recording_report.text_of(recording, solution, figures)}\n{halves.text}"
    if halves.difference_deg is not None:
        for view, value in zip(solution.views, halves.difference_deg.tolist()):
            figures[f"halves_rotation_difference_deg/{recording.names[view]}"] = value
    if detected is not None:
        text += f"\n{detected.text}"
        figures["seconds/2d_per_frame"] = detected.detections.seconds
    outputs.clear(folder)
    if detected is not None:
        path = folder / recording_cache.NAME
        recording_cache.write(path, detected.detections, detected.depends_on)
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    outputs.write_json(folder / "metrics.json", figures)
    (folder / "table.txt").write_text(text + "\n")
    _write_cameras(folder, recording, solution)
    _write_predictions(folder / "predictions.h5", recording, solution)
    recording_report.draw(folder / outputs.PICTURES, recording, solution, config)
    return figures, text


def _write_cameras(folder: Path, recording: Recording, solution: Solution) -> None:
    views = solution.views
    names = [recording.names[v] for v in views]
    R, t = solution.R.double().numpy(), solution.t.double().numpy()
    rotation_std, centre_std = camera_spread(solution)
    cameras = [
        {
            "name": name,
            "size": recording.size[v],
            "K": recording.K[v],
            "dist": recording.dist[v],
            "R": R[i],
            "t": t[i],
            "rotation_std_deg": float(rotation_std[i]),
            "centre_std_mm": float(centre_std[i]),
        }
        for i, (v, name) in enumerate(zip(views, names))
    ]
    tree = {
        "units": "mm, px",
        "convention": f"x_cam = R x + t; x in the frame of {names[0]} (x right, y down, z forward)",
        "scale": solution.scale_source,
        "accepted": bool(solution.posterior.accepted[0]),
        "verdict": solution.posterior.reason[0],
        "cameras": cameras,
    }
    outputs.write_json(folder / "cameras.json", tree)
    parts = (recording.size[views], recording.K[views], recording.dist[views])
    write_toml(folder / "cameras.toml", names, *parts, R, t)


def _write_predictions(path: Path, recording: Recording, solution: Solution) -> None:
    posterior, views = solution.posterior, solution.views
    sample_R, sample_t, _ = resample(posterior, SAVED_SAMPLES)
    attributes = {"units": "mm, px, rad", "format": "ptri recording 1"}
    attributes["frame"] = f"camera {recording.names[views[0]]}"
    with outputs.PredictionFile(path, attributes) as file:
        file.names("camera_names", [recording.names[v] for v in views])
        file.names("joint_names", list(H36M17.joints))
        file.names("native/joint_names", list(recording.skeleton.joints))
        file.append(
            {
                "frame": recording.frames,
                "joints3d": solution.prediction.joints3d.numpy(),
                "covariance": solution.prediction.covariance.numpy(),
                "native/joints3d": solution.native.joints3d.numpy(),
                "native/covariance": solution.native.covariance.numpy(),
                "keypoints/xy": recording.xy[:, views],
                "keypoints/confidence": recording.confidence[:, views],
                **_stated(recording, views),
                "cameras/R": solution.R.numpy(),
                "cameras/t": solution.t.numpy(),
                "cameras/K": recording.K[views],
                "samples_R": sample_R[:, 0].numpy(),
                "samples_t": sample_t[:, 0].numpy(),
                "pooled_frames": recording.frames[solution.pooled],
            }
        )


def _stated(recording: Recording, views: list[int]) -> dict[str, np.ndarray]:
    if recording.covariance is None:
        return {}
    return {"keypoints/covariance": recording.covariance[:, views]}


def open_recording(config: Config) -> Recording:
    """Reads the recording that a configuration names (UserError as `read_recording`)."""
    options = config.recording
    return read_recording(
        config.data.root, options.keypoints, options.intrinsics, options.joint_set, options.views,
        options.first_frame, options.last_frame, options.min_confidence,
    )  # fmt: skip


def run(config: Config, overwrite: bool = False) -> str:
    """What ``infer3d.py`` does for recordings: checks, loads, solves, writes.

    Returns:
        The text to print.

    Raises:
        UserError: bad settings, files or weights, or an existing output folder.
    """
    folder = outputs.output_folder(config, overwrite)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.data.kind == "videos":
        source = recording_videos.open_source(config)
        model = load_model(config, images=True)
        detected = recording_videos.detect(model, source, config)
        recording = detected.recording
    else:
        detected, recording = None, open_recording(config)
    usable_views(recording)
    if detected is None:
        model = load_model(config, images=False)
    _, text = process(model, recording, config, folder, detected)
    return f"{text}\n\nwritten: {folder}/"
