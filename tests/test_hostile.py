"""Hostile input to `ptri.estimate_rig`: a verdict or a clear ValueError; never NaN, never silence.

Whatever is well formed gives a lawful, finite estimate, and one that is accepted is right.
"""

import numpy as np
import pytest
import torch
from rig_scenes import Truth, deviation, is_lawful, rotation_error_deg, scene

import ptri
from ptri.geometry.cameras import normalised_to_pixel, to_reference
from ptri.geometry.rotations import so3_exp
from ptri.structures import Cameras

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def good():
    return scene(3, seed=0)


def estimate(truth, **options):
    return ptri.estimate_rig(truth.xy, truth.K, truth.confidence, truth.covariance, **options)


def observe(joints, R, t, K, noise=2.0, seed=0) -> Truth:
    """What cameras (V, ...) see of joints (T, 17, 3), with Gaussian noise."""
    generator = torch.Generator().manual_seed(seed)
    camera = torch.einsum("vik,tjk->tvji", R, joints) + t[:, None]
    xy = normalised_to_pixel(camera[..., :2] / camera[..., 2:], K)
    xy = xy + noise * torch.randn(xy.shape, generator=generator, dtype=xy.dtype)
    xy = torch.where((camera[..., 2] > 100)[..., None], xy, torch.nan)
    covariance = noise**2 * torch.eye(2, dtype=xy.dtype).expand(*xy.shape, 2)
    _, R, t = to_reference(Cameras(K, R, t))
    return Truth(xy, K, torch.ones(xy.shape[:-1]).double(), covariance, R, t, joints)


def rotvec(*angles):
    return so3_exp(torch.deg2rad(torch.tensor(angles, dtype=torch.float64)))


def right_where_accepted(result, truth, limit=4.0):
    """Accepted means: within four of its own standard deviations, and no failure (10 deg)."""
    assert is_lawful(result)
    assert result.reason
    if result.accepted:
        assert rotation_error_deg(result, truth).max() < 10, result.reason
        assert deviation(result, truth.R[1:]).max() < limit
    else:
        assert result.reason != "accepted"


# --- rigs and people that geometry dislikes ------------------------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_cameras_at_one_place(good, turned):
    """No depth; turned, they look past the person on different sides, and are rolled."""
    angles = [(0, 0, 0), (0, 8, 0), (5, -6, 40.0)] if turned else [(0, 0, 0)] * 3
    R = torch.stack([rotvec(*angle) for angle in angles])
    truth = observe(good.joints, R, torch.zeros(3, 3, dtype=torch.float64), good.K[:3])
    result = estimate(truth)
    assert is_lawful(result) and not result.accepted
    assert "do the cameras stand at one place?" in result.reason
    assert rotation_error_deg(result, truth).max() < 5  # the rotations are known nevertheless


def test_opposite_cameras(good):
    """Two cameras face to face with the person between them: epipoles inside both images."""
    depth = float(good.joints[..., 2].mean())
    R = torch.stack([rotvec(0, 0, 0), rotvec(0, 180, 0)])
    t = torch.tensor([[0.0, 0, 0], [0, 0, 2 * depth]], dtype=torch.float64)
    truth = observe(good.joints, R, t, good.K[:2])
    right_where_accepted(estimate(truth), truth)


def random_places(good, xy):
    """False detections all over the images, in place of keypoints (T, V, 17, 2)."""
    generator = torch.Generator().manual_seed(0)
    size = 2 * good.K[: xy.shape[1], None, :2, 2]
    return torch.rand(xy.shape, generator=generator, dtype=torch.float64) * size


def test_a_camera_that_looks_away(good):
    xy = good.xy.clone()
    xy[:, 2] = random_places(good, xy)[:, 2]
    result = estimate(good._replace(xy=xy))
    assert is_lawful(result) and not result.accepted


def test_a_person_who_stands_still(good):
    """Ten equal frames, noise and all, are no more certain than one of them."""
    T = len(good.xy)
    one = Truth(*(part[:1] if len(part) == T else part for part in good))
    still = Truth(*(p.expand(10, *p.shape[1:]) if len(p) == 1 else p for p in one))
    single, ten = estimate(one), estimate(still)
    right_where_accepted(ten, still)
    spread_one, spread_ten = (
        estimate.rotation_cov.diagonal(dim1=-2, dim2=-1).sum() for estimate in (single, ten)
    )
    assert spread_ten > 0.25 * spread_one


@pytest.mark.parametrize("length", [1600.0, 0.0])
def test_all_joints_on_a_line_or_a_point(good, length):
    """A line looks the same from all around it."""
    along = torch.tensor([0.3, 0.8, 0.5], dtype=torch.float64)
    place = length * torch.linspace(-0.5, 0.5, 17, dtype=torch.float64)
    joints = good.joints.mean((0, 1)) + place[:, None] * along
    truth = observe(joints.expand(3, 17, 3), good.R, good.t, good.K)
    result = estimate(truth)
    assert is_lawful(result) and not result.accepted
    assert "on one line or point" in result.reason
    # And with the default covariance, whose measure is the person's extent.
    result = ptri.estimate_rig(truth.xy.round(), truth.K)
    assert is_lawful(result) and not result.accepted


@pytest.mark.parametrize("useless", ["noise", "equal in all views"])
def test_keypoints_that_say_nothing(good, useless):
    """Equal ones: a detector that ran on one video for all cameras; an exact agreement."""
    xy = random_places(good, good.xy) if useless == "noise" else good.xy[:, :1].expand_as(good.xy)
    result = estimate(good._replace(xy=xy))
    assert is_lawful(result) and not result.accepted


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
    assert is_lawful(result) and not result.accepted
    assert "view 3 has 0" in result.reason or "no frame in which two views" in result.reason
    xy = good.xy[:, :2].clone()
    xy[0, 0], xy[1:, 1] = NAN, NAN
    result = ptri.estimate_rig(xy, good.K[:2])
    assert is_lawful(result) and not result.accepted
    assert "no frame in which two views see" in result.reason


# --- values --------------------------------------------------------------------------------------


def test_nothing_is_seen(good):
    for xy, confidence in ((good.xy, 0 * good.confidence), (good.xy * NAN, good.confidence)):
        result = ptri.estimate_rig(xy, good.K, confidence)
        assert is_lawful(result) and not result.accepted
        assert result.ess == 1 and "has 0 keypoints" in result.reason
        # Not an identity in disguise.
        eye = torch.eye(3, dtype=torch.float64)
        assert (result.R[1:] - eye).norm(dim=(-1, -2)).min() > 0.1
        assert result.rotation_cov[1:].diagonal(dim1=-2, dim2=-1).sum(-1).min() > 1.0
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
