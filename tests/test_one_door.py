"""Every entry gives the same answer for the same keypoints: the API, a data set, a recording."""

import numpy as np
import pytest
import torch
from rigs_fixture import broken

import ptri
from ptri import config
from ptri.evaluation.evaluate import Timer, _solve_pooled, load_model
from ptri.evaluation.predictions import SceneFrames
from ptri.people.scenes import generate_batch
from ptri.recordings.intrinsics import CameraEntry
from ptri.recordings.keypoint_files import Recording
from ptri.recordings.solve import solve
from ptri.rig.check import RigInput
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Sample, tree_map
from ptri.verdict.verdict import Code

FRAMES, CHOSEN = 12, 8
OPTIONS = [
    "run.name=door", "init.checkpoint_3d=checkpoints/ptri_3d.pt", "generated.families=[ring]",
    f"evaluate.pool_frames={CHOSEN}",
]  # fmt: skip


@pytest.fixture(scope="module")
def door():
    settings = config.load(None, OPTIONS)
    return load_model(settings, images=False), settings


def keypoints_of(settings, kind):
    """A person before four cameras, (T, V, ...); `broken` in view 1."""
    scene = generate_batch(settings, 3, 0, 1, 4, FRAMES)
    keypoints = broken(scene.keypoints, scene.K, 1, kind)
    return tree_map(lambda value: value[0].double(), keypoints), scene.K[0, 0].double()


def from_data_set(model, settings, keypoints, K):
    """Cameras, fused joints and verdict of a scene of a data set."""
    T, V = keypoints.xy.shape[:2]
    cameras = Cameras(K.expand(T, V, 3, 3), torch.zeros(T, V, 3, 3), torch.zeros(T, V, 3))
    given = RigInput(keypoints, cameras.K, H36M17)
    truth = Sample(None, cameras, *[None] * 6)
    frames = SceneFrames(given, keypoints, None, truth, torch.arange(T))
    return _solve_pooled(model, frames, settings, Timer(torch.device("cpu")))


def from_recording(model, settings, keypoints, K):
    rest = np.zeros(5), None, None, 0.0  # no distortion, no extrinsics, an exact K
    sizes = [tuple((2 * k[:2, 2] + 1).long().tolist()) for k in K]
    cameras = tuple(
        CameraEntry(f"cam{v}", size, k.numpy(), *rest) for v, (k, size) in enumerate(zip(K, sizes))
    )
    xy, covariance, confidence = (value.numpy() for value in keypoints)
    recording = Recording(cameras, np.arange(FRAMES), xy, confidence, H36M17, covariance)
    return solve(model, recording, settings).estimate


@pytest.mark.parametrize(("kind", "code"), [("good", Code.ACCEPTED), ("exchanged", Code.MISREAD)])
def test_every_entry_gives_the_same_answer(door, kind, code):
    model, settings = door
    keypoints, K = keypoints_of(settings, kind)
    xy, covariance, confidence = keypoints
    api = ptri.estimate_rig(xy, K, confidence, covariance, max_frames=CHOSEN, K_std=0, model=model)
    assert len(api.frames) == CHOSEN < FRAMES
    assert api.verdict.code is code and api.verdict.view == (None if kind == "good" else 1)

    recording = from_recording(model, settings, keypoints, K)
    assert recording.frames == api.frames and recording.verdict == api.verdict
    for name in ("R", "t", "joints3d", "joints3d_covariance", "rotation_cov"):
        assert torch.equal(getattr(recording, name), getattr(api, name)), name
    assert torch.equal(recording.body.joints3d, api.body.joints3d)

    with torch.no_grad():
        scene = from_data_set(model, settings, keypoints, K)
    assert scene.accepted.tolist() == [api.accepted]
    assert torch.equal(scene.posterior.R, api.posterior.R)
    assert torch.equal(scene.posterior.t, api.posterior.t)
    assert torch.equal(scene.prediction.joints3d, api.body.joints3d)
    assert torch.equal(scene.prediction.covariance, api.body.covariance)


def test_a_stream_ends_where_the_whole_ends(door):
    model, settings = door
    keypoints, K = keypoints_of(settings, "good")
    xy, covariance, confidence = keypoints
    whole = ptri.estimate_rig(xy, K, confidence, covariance, model=model)
    stream = ptri.RigFilter(K, model=model)
    last = stream.update(xy, confidence, covariance)
    assert last.frames == whole.frames and last.verdict == whole.verdict
    assert torch.equal(last.R, whole.R) and torch.equal(last.joints3d, whole.joints3d)
