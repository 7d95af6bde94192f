"""Recordings whose cameras everybody tells of who is seen."""

from __future__ import annotations

import numpy as np
import pytest
from recording_fixture import make_recording

from ptri import config
from ptri.evaluation import metrics
from ptri.evaluation.evaluate import load_model
from ptri.recordings import clocks
from ptri.recordings.keypoint_files import read_recording
from ptri.recordings.solve import solve

FRAMES = 16


def settings(root, *extra):
    return config.load("configs/recording.yaml", [f"data.root={root}", "run.name=test", *extra])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    make_recording(folder, FRAMES, noise=2.0, second=True)
    return folder


def test_everybody_is_found(root):
    recording = read_recording(root, settings(root, "recording.people=all").recording)
    (other,) = recording.others
    assert other.xy.shape == recording.xy.shape and other.cameras == recording.cameras
    assert np.isfinite(other.xy).mean() > 0.9
    sizes = [np.ptp(one.xy[..., 1], axis=2).mean() for one in (recording, other)]
    assert sizes[1] < 0.95 * sizes[0]  # the larger one is followed
    assert not read_recording(root, settings(root).recording).others
    part = recording.part([0, 2], slice(2, 9))
    assert part.others[0].xy.shape == part.xy.shape == (7, 2, *recording.xy.shape[2:])


def test_cameras_come_from_everybody(root):
    options = settings(root, "recording.people=all", "evaluate.pool_frames=20")
    model = load_model(options, images=False)
    recording = read_recording(root, options.recording)
    solution = solve(model, recording, options)
    estimate = solution.estimate
    assert estimate.accepted and estimate.joints3d.shape[0] == FRAMES
    assert max(estimate.frames) < FRAMES
    assert solution.solved.rig.evidence.observations.persons.shape == (1, 20, 2)
    error = metrics.rotation_error_deg(estimate.R, recording.reference.R)
    assert float(error.max()) < 1.5
    tall = settings(root, "recording.people=all", "recording.subject_height=1700")
    scaled = solve(model, recording, tall).estimate
    assert scaled.persons[0].height == pytest.approx(1700, rel=0.02)


def test_everybody_is_brought_in_step(root):
    plain = read_recording(root, settings(root, "recording.people=all").recording)
    gappy = plain.part([0, 1, 2, 3], slice(0, None, 3))
    dense, rows, spacing = clocks._without_gaps(plain)
    assert dense.others[0].xy.shape == plain.xy.shape and spacing == 1
    assert clocks._without_gaps(gappy)[0].others[0].frames.tolist() == gappy.frames.tolist()
    moved = clocks._read(dense, np.array([0.0, 2.0, 0.0, 0.0]), np.zeros(4)).part(
        [0, 1, 2, 3], rows
    )
    for one, before in ((moved, plain), (moved.others[0], plain.others[0])):
        np.testing.assert_allclose(one.xy[:12, 1], before.xy[2:14, 1])
        np.testing.assert_allclose(one.xy[:12, 0], before.xy[:12, 0])
