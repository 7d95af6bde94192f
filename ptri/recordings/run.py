"""Real recordings: keypoint files or videos of static cameras in; cameras, joints and their
uncertainties out."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py

from ptri import config as configuration
from ptri.config import Config
from ptri.detectors.build import build_detector, build_person_detector
from ptri.evaluation import outputs
from ptri.evaluation.evaluate import load_model
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import resample
from ptri.recordings import cache, report
from ptri.recordings.clocks import bring_in_step
from ptri.recordings.detections import Detections, detected_recording
from ptri.recordings.keypoint_files import Recording, read_recording
from ptri.recordings.solve import Solution, compare_halves, solve
from ptri.recordings.videos import open_video_set
from ptri.recordings.write_cameras import write_cameras
from ptri.skeleton import H36M17

SAVED_SAMPLES = 128


def run(config: Config, folder: Path) -> str:
    """What ``infer3d.py`` does for recordings: loads, solves, writes; returns the text.

    Raises:
        UserError: bad settings, files or weights.
    """
    model, recording, detections = observe(config)
    return process(model, recording, config, folder, detections)[1]


def observe(config: Config) -> tuple[PoseModel, Recording, Detections | None]:
    """The model and the keypoints of a recording: from its files, or detected in its videos.

    Raises:
        UserError: bad settings, files or weights.
    """
    if config.data.kind != "videos":
        model = load_model(config, images=False)
        read = partial(read_recording, config.data.root, config.recording)
        return model, bring_in_step(model, read, config), None
    video_set = open_video_set(config)
    model = load_model(config, images=True)
    detector = build_detector(config, model)
    model.detector = detector.known
    finder = build_person_detector(config)
    detections = cache.detect_or_reuse(detector, finder, video_set, config)
    read = partial(detected_recording, detections, video_set.cameras, config.recording)
    return model, bring_in_step(model, read, config), detections


def process(
    model: PoseModel,
    recording: Recording,
    config: Config,
    folder: Path,
    detections: Detections | None = None,
) -> tuple[dict[str, object], str]:
    """Solves a recording and writes the output folder.

    Args:
        detections: that the recording is made of, where it comes from videos.

    Returns:
        The figures of metrics.json, and the printed text.
    """
    solution = compare_halves(model, solve(model, recording, config), config)
    figures = report.figures_of(solution)
    text = report.text_of(solution, figures)
    outputs.clear(folder)
    if detections is not None:
        text += f"\n{report.detection_text(detections, config)}"
        figures["seconds/2d_per_frame"] = detections.seconds
        cache.write(folder / cache.NAME, detections)
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    outputs.write_json(folder / "metrics.json", figures)
    (folder / "table.txt").write_text(text + "\n")
    write_cameras(folder, solution)
    _write_predictions(folder / "predictions.h5", solution)
    report.draw(folder / outputs.PICTURES, solution, config)
    return figures, text


def _write_predictions(path: Path, solution: Solution) -> None:
    """Writes joints, keypoints, cameras and posterior samples of the solved views."""
    recording, estimate = solution.recording, solution.estimate
    samples = resample(estimate.posterior, SAVED_SAMPLES).views
    arrays = {
        "frame": recording.frames,
        "joints3d": estimate.body.joints3d,
        "covariance": estimate.body.covariance,
        "native/joints3d": estimate.joints3d,
        "native/covariance": estimate.joints3d_covariance,
        "keypoints/xy": recording.xy,
        "keypoints/confidence": recording.confidence,
        "cameras/R": estimate.R,
        "cameras/t": estimate.t,
        "cameras/K": estimate.K,
        "samples_R": samples.R[:, 0],
        "samples_t": samples.t[:, 0],
        "samples_log_focal": samples.log_focal[:, 0],
        "pooled_frames": recording.frames[estimate.frames],
    }
    if recording.covariance is not None:
        arrays["keypoints/covariance"] = recording.covariance
    with h5py.File(path, "w") as file:
        file.attrs.update(units="mm, px, rad", format="ptri recording 1")
        file.attrs["frame"] = f"camera {recording.names[0]}"
        file["camera_names"] = list(recording.names)
        file["joint_names"] = list(H36M17.joints)
        file["native/joint_names"] = list(recording.skeleton.joints)
        outputs.append(file, arrays)
