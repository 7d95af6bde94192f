"""Hostile input to `ptri.estimate_rig`: a verdict or a clear ValueError; never NaN, never silence.

Whatever is well formed gives a lawful, finite estimate, and one that is accepted is right.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from h36m_fixture import make_tiny_h36m
from recording_fixture import make_recording, run_script
from rigs_fixture import (
    Truth,
    deviation,
    estimate,
    is_lawful,
    rotation_error_deg,
    rotation_std,
    scene,
    seen_from,
)

import ptri
from ptri.geometry.cameras import to_reference
from ptri.geometry.rotations import so3_exp
from ptri.structures import Cameras

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def good():
    return scene(3, seed=0)


def observe(joints, R, t, K) -> Truth:
    """What cameras (V, ...) see of joints (T, 17, 3), with Gaussian noise of 2 px."""
    cameras = Cameras(K, R, t)
    xy = seen_from(cameras, joints, 2.0)
    covariance = 4.0 * torch.eye(2, dtype=xy.dtype).expand(*xy.shape, 2)
    confidence = torch.ones(xy.shape[:-1], dtype=xy.dtype)
    return Truth(xy, K, confidence, covariance, *to_reference(cameras)[1:], joints)


def rotations(*degrees):
    return so3_exp(torch.deg2rad(torch.tensor(degrees, dtype=torch.float64)))


def right_where_accepted(result, truth, limit=4.0):
    """Accepted means: within four of its own standard deviations, and no failure (10 deg)."""
    assert is_lawful(result) and result.reason
    assert result.accepted == (result.reason == "accepted")
    if result.accepted:
        assert rotation_error_deg(result, truth).max() < 10
        assert deviation(result, truth.R[1:]).max() < limit


def refused(result):
    return is_lawful(result) and not result.accepted


# --- rigs and people that geometry dislikes ------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_cameras_at_one_place(good, turned):
    """No depth; turned, they look past the person on different sides, and are rolled."""
    R = rotations(*([(0, 0, 0), (0, 8, 0), (5, -6, 40.0)] if turned else [(0, 0, 0)] * 3))
    truth = observe(good.joints, R, torch.zeros(3, 3, dtype=torch.float64), good.K[:3])
    result = estimate(truth)
    assert refused(result) and "do the cameras stand at one place?" in result.reason
    assert rotation_error_deg(result, truth).max() < 5  # the rotations are known nevertheless


def test_opposite_cameras(good):
    """Two cameras face to face with the person between them: epipoles inside both images."""
    depth = float(good.joints[..., 2].mean())
    t = torch.tensor([[0.0, 0, 0], [0, 0, 2 * depth]], dtype=torch.float64)
    truth = observe(good.joints, rotations((0, 0, 0), (0, 180, 0)), t, good.K[:2])
    right_where_accepted(estimate(truth), truth)


def test_a_person_who_stands_still(good):
    """Ten equal frames, noise and all, are no more certain than one of them."""
    single = Truth(*(part[:1] if len(part) == 3 else part for part in good))
    still = Truth(*(p.expand(10, *p.shape[1:]) if len(p) == 1 else p for p in single))
    ten = estimate(still)
    right_where_accepted(ten, still)
    assert rotation_std(ten).norm() > 0.5 * rotation_std(estimate(single)).norm()


@pytest.mark.parametrize("length", [1600.0, 0.0])
def test_all_joints_on_a_line_or_a_point(good, length):
    """A line looks the same from all around it."""
    along = torch.tensor([0.3, 0.8, 0.5], dtype=torch.float64)
    place = length * torch.linspace(-0.5, 0.5, 17, dtype=torch.float64)
    joints = good.joints.mean((0, 1)) + place[:, None] * along
    truth = observe(joints.expand(3, 17, 3), good.R, good.t, good.K)
    result = estimate(truth)
    assert refused(result) and "on one line or point" in result.reason
    # And with the default covariance, whose measure is the person's extent.
    assert refused(ptri.estimate_rig(truth.xy.round(), truth.K))


@pytest.mark.parametrize("useless", ["one view", "all views", "equal in all views"])
def test_keypoints_that_say_nothing(good, useless):
    """False detections all over the images, or a detector that ran on one video for all cameras:
    an exact agreement."""
    generator = torch.Generator().manual_seed(0)
    xy = torch.rand(good.xy.shape, generator=generator, dtype=torch.float64)
    xy = xy * 2 * good.K[:, None, :2, 2]
    if useless == "one view":
        xy[:, [0, 1, 3]] = good.xy[:, [0, 1, 3]]
    if useless == "equal in all views":
        xy = good.xy[:, :1].expand_as(xy)
    assert refused(estimate(good._replace(xy=xy)))


@pytest.mark.parametrize("views", [2, 5, 12])
def test_numbers_of_views(views):
    truth = scene(3, views=views, seed=1, family="dome")
    result = estimate(truth)
    assert result.R.shape == (views, 3, 3)
    right_where_accepted(result, truth, limit=5.0)


@pytest.mark.parametrize("joints", [[1, 2, 3], [0, 5, 10, 11, 14, 15], [6]])
def test_few_joints(good, joints):
    xy = torch.full_like(good.xy, NAN)
    xy[:, :, joints] = good.xy[:, :, joints]
    right_where_accepted(estimate(good._replace(xy=xy)), good)


def test_views_that_never_see_the_person_together(good):
    xy = good.xy.clone()
    for f in range(3):
        xy[f, [v for v in range(4) if v != f]] = NAN
    result = estimate(good._replace(xy=xy))
    assert refused(result)
    assert "view 3 has 0" in result.reason or "no frame in which two views" in result.reason
    xy = good.xy[:, :2].clone()
    xy[0, 0], xy[1:, 1] = NAN, NAN
    result = ptri.estimate_rig(xy, good.K[:2])
    assert refused(result) and "no frame in which two views see" in result.reason


# --- values --------------------------------------------------------------------------------------


def test_nothing_is_seen(good):
    for xy, confidence in ((good.xy, 0 * good.confidence), (good.xy * NAN, good.confidence)):
        result = ptri.estimate_rig(xy, good.K, confidence)
        assert refused(result) and result.ess == 1 and "has 0 keypoints" in result.reason
        # Not an identity in disguise.
        eye = torch.eye(3, dtype=torch.float64)
        assert (result.R[1:] - eye).norm(dim=(-1, -2)).min() > 0.1
        assert rotation_std(result)[1:].min() > 1.0
        assert result.joints3d_covariance.diagonal(dim1=-2, dim2=-1).min() > 1e6


def test_what_was_not_seen_does_no_harm(good):
    """Infinite xy of no confidence; confidence and covariance where there is no xy."""
    xy, confidence, covariance = good.xy.clone(), good.confidence.clone(), good.covariance.clone()
    xy[:, 1, 3] = NAN
    expected = ptri.estimate_rig(xy, good.K, confidence, covariance).R
    xy[:, 1, 3], confidence[:, 1, 3] = INF, 0.0
    assert ptri.estimate_rig(xy, good.K, confidence, covariance).R.equal(expected)
    xy[:, 1, 3], confidence[:, 1, 3], covariance[:, 1, 3] = NAN, NAN, NAN
    assert ptri.estimate_rig(xy, good.K, confidence, covariance).R.equal(expected)


@pytest.mark.parametrize("scale2", [1e-4, 1e6])
def test_covariances_of_a_wrong_size(good, scale2):
    """A detector that is a hundred times too sure, or a thousand times too modest."""
    right_where_accepted(estimate(good._replace(covariance=scale2 * good.covariance)), good, 6.0)


def put(place, value):
    """A change of one entry of an array."""

    def change(array):
        array = array.clone()
        array[place] = value
        return array

    return change


HUGE_RAY = "more than 87 deg off the optical axis at frame 1, view 2, joint 3"
NOT_POSITIVE = "not positive definite.*add a small multiple of I"
# Argument, its value or what becomes of a good one, and words of the message.
BAD_VALUES = [
    ("xy", put((1, 2, 3, 0), INF), r"infinite at frame 1, view 2, joint 3 \(1 of 204\); write NaN"),
    ("xy", put((1, 2, 3, 0), 1e30), HUGE_RAY),
    ("xy", lambda xy: xy[:0], "xy: no frames; give at least one"),
    ("xy", lambda xy: xy[:, :1], "xy: 1 view; at least two"),
    ("xy", lambda xy: xy[0], r"got \(4, 17, 2\).*xy\[None\]"),
    ("xy", lambda xy: xy[:, :, :16], "xy: 16 joints, but skeleton 'h36m17'"),
    ("xy", lambda xy: xy > 0, "xy: expected real numbers"),
    ("xy", np.array([["a"]]), "xy: not an array of numbers"),
    ("K", put((1, 0, 0), NAN), "K: NaN or infinite at view 1"),
    ("K", lambda K: K.mT, r"K: not an intrinsic matrix.*\[\[fx, s, cx\]"),
    ("K", put((3, 0, 0), -1000.0), "K: a focal length is zero or negative at view 3"),
    ("K", put((0, 0, 1), 1e4), "K: skew beyond half of fy"),
    ("K", put((0, 0, 0), 1e12), "K: beyond any camera"),
    ("K", lambda K: K[:3], r"K: expected shape \(4, 3, 3\)"),
    ("K", lambda K: K[0], "repeat it for every view"),
    ("confidence", lambda c: 100 * c, r"outside \[0, 1\] at frame 0.*divide by the largest"),
    ("confidence", lambda c: NAN * c, r"confidence: outside \[0, 1\]"),
    ("confidence", lambda c: c[0], r"\(3, 4, 17\).*got \(4, 17\)"),
    ("covariance", lambda c: NAN * c, "covariance: NaN or infinite"),
    ("covariance", lambda c: -c, NOT_POSITIVE),
    ("covariance", put((..., 0, 1), 0.5), "covariance: not symmetric"),
    ("covariance", lambda c: 1e15 * c, "beyond any keypoint"),
    ("covariance", lambda c: c[..., 0], r"covariance: expected shape \(3, 4, 17, 2, 2\)"),
    ("skeleton", "coco", "skeleton: no joint set 'coco'"),
    ("num_samples", 0, "num_samples: 0; expected a whole number >= 8"),
    ("num_iterations", 2.5, "num_iterations: 2.5; expected a whole"),
    ("num_iterations", 999, "num_iterations: 999; expected a whole number from 1 to num_samples"),
    ("max_frames", 0, "max_frames: 0"),
    ("children", 2, "children: 2; expected a chance from 0 to 1"),
    ("model", "nowhere.pt", r"nowhere\.pt: no such checkpoint"),
    ("seed", -1, "seed: -1"),
    ("device", "abacus", "device: 'abacus'"),
    ("scale", 1780, 'scale: 1780; expected {"subject_height"'),
    ("scale", {"height": 1}, "scale: {'height': 1}"),
    ("scale", {}, 'scale: {}; expected {"subject_height"'),
    ("scale", {"subject_height": 1, "camera_distance": (0, 1, 1)}, "expected .* or "),
    ("scale", {"subject_height": 1.78}, "1.78 mm.*not m or cm"),
    ("scale", {"camera_distance": (1, 1, 3000)}, "two different views from 0 to 3"),
    ("scale", {"camera_distance": 3000}, "camera_distance 3000"),
]


@pytest.mark.parametrize(("argument", "change", "message"), BAD_VALUES)
def test_bad_values_are_named(good, argument, change, message):
    given = {name: getattr(good, name) for name in ("xy", "K", "confidence", "covariance")}
    given["xy"] = given["xy"].nan_to_num(500.0)  # so that all of confidence is looked at
    given[argument] = change(given[argument]) if callable(change) else change
    with pytest.raises(ValueError, match=message) as caught:
        ptri.estimate_rig(**given)
    assert "\n" not in str(caught.value)


def test_a_height_that_cannot_be_measured(good):
    xy = good.xy.clone()
    xy[:, :, [0, 1, 4, 5]] = NAN  # no legs
    with pytest.raises(ValueError, match="subject_height needs a frame"):
        ptri.estimate_rig(xy, good.K, scale={"subject_height": 1800})


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def turned_down(monkeypatch, capsys, tmp_path):
    """Runs a script that has to exit with 2 and one line, which is returned."""
    monkeypatch.chdir(tmp_path)

    def turned_down(script, settings, *arguments):
        path = ROOT / "configs" / settings
        status, _, lines = run_script(monkeypatch, capsys, script, path, *arguments)
        errors = [line for line in lines if line.startswith("error: ")]
        assert status == 2 and len(errors) == 1, lines
        assert not any("Traceback" in line for line in lines)
        return errors[0]

    return turned_down


def test_data_sets(turned_down, tmp_path):
    make_tiny_h36m(tmp_path)
    root = f"data.root={tmp_path}"
    assert "view" in turned_down("infer3d.py", "h36m_infer.yaml", root, "data.views=[0]")
    next((tmp_path / "extra").glob("*.npy")).unlink()
    for script, settings in (("infer3d.py", "h36m_infer.yaml"), ("train2d.py", "demo_2d.yaml")):
        error = turned_down(script, settings, root)
        assert "labels are missing" in error and str(tmp_path) in error


@pytest.fixture
def recording(tmp_path):
    make_recording(tmp_path / "recording", num_frames=2)
    return tmp_path / "recording"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recording.vews=[0,1]", "did you mean 'recording.views'"),
        ("init.checkpoint_3d=nowhere.pt", "nowhere.pt: no such checkpoint"),
        ("data.kind=generated", "data.kind: generated"),
    ],
)
def test_wrong_setting(turned_down, recording, tmp_path, setting, message):
    arguments = (f"data.root={recording}", setting)
    assert message in turned_down("infer3d.py", "recording.yaml", *arguments)
    assert not (tmp_path / "outputs").exists()


def test_an_existing_output_folder_is_kept(turned_down, recording, tmp_path):
    folder = tmp_path / "outputs/recording"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("precious")
    root = f"data.root={recording}"
    error = turned_down("infer3d.py", "recording.yaml", root)
    assert "outputs/recording" in error and "--overwrite" in error
    # Not even --overwrite removes anything before the input has proved good.
    turned_down("infer3d.py", "recording.yaml", root, "data.root=nowhere", "--overwrite")
    assert (folder / "metrics.json").read_text() == "precious"
