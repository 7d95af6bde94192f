"""Cameras whose poses are known before, and which of them have moved since."""

from __future__ import annotations

import math

import pytest
import torch
from recording_fixture import edit_cameras, make_recording
from rigs_fixture import (
    deviation,
    estimate,
    is_lawful,
    normal,
    random_rotations,
    rotation_error_deg,
    scene,
)

import ptri
from ptri.config import RecordingConfig
from ptri.errors import UserError
from ptri.geometry.cameras import to_reference
from ptri.geometry.rotations import so3_exp
from ptri.posterior.prior import PosePrior, differences
from ptri.recordings.keypoint_files import read_recording
from ptri.recordings.known import known_cameras, moved_text
from ptri.rig.studio import learn_poses
from ptri.structures import Cameras, Views

FRAMES = 12


@pytest.fixture(scope="module")
def walk():
    return scene(FRAMES, seed=1)


def known(walk, degrees=0.5, mm=20.0, moved=None, **more):
    """Its cameras in some world, off by so much; one of them has moved."""
    V = len(walk.R)
    R = walk.R @ random_rotations()
    t = walk.t + (walk.R @ (1000.0 * normal(3, seed=8))[:, None])[..., 0]
    turn = so3_exp(math.radians(degrees) * normal(V, 3, seed=9))
    R, t = turn @ R, (turn @ t[..., None])[..., 0] + mm * normal(V, 3, seed=10)
    if moved is not None:
        turn = so3_exp(torch.tensor([0.0, 0.08, 0.0], dtype=torch.float64))
        R[moved], t[moved] = turn @ R[moved], turn @ t[moved] + 150.0
    return ptri.KnownCameras(R, t, degrees, mm, **more)


def some(walk, rows):
    names = "xy", "confidence", "covariance", "joints"
    return walk._replace(**{name: getattr(walk, name)[rows] for name in names})


def mean_error(rig, walk):
    return float(rotation_error_deg(rig, walk)[1:].mean())


def test_what_is_known_counts(walk):
    frame = some(walk, slice(1))
    alone, rig = (estimate(frame, K_std=0, prior=prior) for prior in (None, known(walk)))
    assert alone.moved is None and is_lawful(rig)
    assert max(rig.moved) < 0.3 and rig.scale_source == "cameras that were known before"
    assert mean_error(rig, walk) < 1.1 * mean_error(alone, walk)
    assert deviation(rig, walk.R[1:]).max() < 3
    assert float(rig.t.norm() / walk.t.norm()) == pytest.approx(1, abs=0.01)
    stated = [one.rotation_cov[1:].diagonal(dim1=-2, dim2=-1).sum() for one in (rig, alone)]
    assert stated[0] < 0.25 * stated[1]


@pytest.mark.parametrize("view", [0, 2])
def test_a_camera_that_has_moved_is_named_and_found(walk, view):
    rig = estimate(walk, K_std=0, prior=known(walk, moved=view))
    assert [chance > 0.9 for chance in rig.moved] == [v == view for v in range(4)]
    assert rig.accepted and mean_error(rig, walk) < 0.8


def test_exact_cameras_are_the_answer(walk):
    exact = known(walk, 0.0, 0.0)
    rig = estimate(walk, K_std=0, prior=exact)
    assert rig.accepted
    torch.testing.assert_close(rig.R, walk.R, atol=1e-6, rtol=0)
    torch.testing.assert_close(rig.t, walk.t, atol=1e-3, rtol=0)
    assert not rig.rotation_cov.abs().max() > 1e-12
    assert float((rig.joints3d - walk.joints).norm(dim=-1).median()) < 30
    wrong = known(walk, 0.0, 0.0, moved=1)
    rig = estimate(walk, K_std=0, prior=wrong)
    assert not rig.accepted and "elsewhere" in rig.reason
    with pytest.raises(UserError, match="exact"):
        estimate(walk, K_std=0, prior=exact, scale={"subject_height": 1700})


def test_some_of_the_cameras(walk):
    prior = known(walk)
    for unknown in (0, 3):
        R = prior.R.clone()
        R[unknown] = torch.nan
        rig = estimate(walk, K_std=0, prior=prior._replace(R=R))
        assert math.isnan(rig.moved[unknown]) and rig.accepted
        assert max(chance for chance in rig.moved if chance == chance) < 0.3
        assert mean_error(rig, walk) < 0.5


def test_an_older_estimate(walk):
    first, last = some(walk, slice(0, 6)), some(walk, slice(6, None))
    before = estimate(first, K_std=0)
    rig = estimate(last, K_std=0, prior=before)
    assert max(rig.moved) < 0.3 and rig.accepted
    assert mean_error(rig, walk) < max(mean_error(before, walk), 0.4)


def test_without_a_size(walk):
    prior = known(walk, scale_std=math.inf)
    prior = prior._replace(t=3.0 * prior.t)  # COLMAP's
    rig = estimate(walk, K_std=0, prior=prior)
    assert max(rig.moved) < 0.3 and "bones" in rig.scale_source
    assert float(rig.t.norm() / walk.t.norm()) == pytest.approx(1, abs=0.12)


def test_mistakes_are_named(walk):
    prior = known(walk)
    for change, words in (
        ({"R": prior.R[:2]}, "prior.R: expected shape"),
        ({"R": 2 * prior.R}, "no rotation at view 0"),
        ({"R": prior.R * torch.tensor([1, 0, 0, 0])[:, None, None] / 0}, "known camera"),
        ({"rotation_std": -1.0}, "prior.rotation_std"),
        ({"centre_std": [1.0, 2.0]}, "prior.centre_std"),
        ({"covariance": torch.eye(3)}, "prior.covariance"),
        ({"covariance": -torch.eye(18)}, "positive definite"),
        ({"scale_std": math.nan}, "prior.scale_std"),
    ):
        with pytest.raises(UserError, match=words):
            estimate(walk, prior=prior._replace(**change))
    with pytest.raises(UserError, match=r"prior: str; expected ptri\.KnownCameras"):
        estimate(walk, prior="cameras.json")


def studio(count, seed=0):
    """Rigs of one studio in different worlds, whose cameras differ by 1 deg and 50 mm."""
    walk = scene(1, seed=1)
    turn = so3_exp(math.radians(1.0) * normal(count, 4, 3, seed=seed))
    R, t = turn @ walk.R, walk.t + 50.0 * normal(count, 4, 3, seed=seed + 1)
    world = random_rotations(count)[:, None]
    shift = 1000.0 * normal(count, 1, 3, 1, seed=seed + 2)
    return R @ world, t + (R @ shift)[..., 0]


def test_a_studio_is_learned():
    R, t = studio(12)
    law = learn_poses(R, t)
    rest = to_reference(Cameras(None, *studio(40, seed=20)))[1:]
    others = PosePrior(*(part.expand(40, *part.shape) for part in law))
    away = differences(Views(*rest, rest[1][..., :0, 0]), others)
    chi2 = torch.einsum("ni,ij,nj->n", away, law.information, away) / 18
    assert 0.5 < float(chi2.mean()) < 1.5, chi2.mean()
    with pytest.raises(UserError, match="3 are needed"):
        learn_poses(R[:2], t[:2])


def test_a_recording_takes_poses(tmp_path):
    make_recording(tmp_path)
    options = RecordingConfig(poses="roughly", poses_std=[2.0, 10.0])
    recording = read_recording(tmp_path, options)
    cameras = known_cameras(recording, options)
    assert (cameras.rotation_std, cameras.centre_std) == (2.0, 10.0)
    assert known_cameras(recording, RecordingConfig()) is None
    for std in ([1.0], [-1.0, 30.0], [1.0, math.nan]):
        with pytest.raises(UserError, match=r"recording\.poses_std: .* two numbers"):
            known_cameras(recording, RecordingConfig(poses="roughly", poses_std=std))
    exact = known_cameras(recording, RecordingConfig(poses="exact"))
    assert exact.rotation_std == exact.centre_std == 0
    text = moved_text(("a", "b", "c"), (0.001, math.nan, 0.98))
    assert "a 0.1 %" in text and "b not known" in text and "c found anew" in text

    def forget(tree):
        for camera in tree[:3]:
            del camera["R"], camera["t"]

    edit_cameras(tmp_path, forget)
    recording = read_recording(tmp_path, options)
    with pytest.raises(UserError, match="fewer than two"):
        known_cameras(recording, options)
