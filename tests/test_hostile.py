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


def test_coincident_cameras(good):
    """All cameras at one place, looking the same way: no depth, but known to be the same."""
    R = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    t = torch.zeros(3, 3, dtype=torch.float64)
    truth = observe(good.joints, R, t, good.K[:3])
    result = estimate(truth)
    assert is_lawful(result) and not result.accepted
    assert "do the cameras stand at one place?" in result.reason


def test_pure_rotation(good):
    """Cameras at one place that look past the person on different sides, and are rolled."""
    R = torch.stack([rotvec(0, 0, 0), rotvec(0, 8, 0), rotvec(5, -6, 40.0)])
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


def test_a_camera_that_looks_away_sees_noise(good):
    """Its keypoints are false detections all over the image."""
    generator = torch.Generator().manual_seed(0)
    xy = good.xy.clone()
    size = 2 * good.K[2, :2, 2]
    xy[:, 2] = torch.rand(xy[:, 2].shape, generator=generator, dtype=xy.dtype) * size
    result = estimate(good._replace(xy=xy))
    assert is_lawful(result)
    assert not result.accepted


def test_a_camera_that_looks_away_sees_nothing(good):
    xy = good.xy.clone()
    xy[:, 2] = NAN
    result = estimate(good._replace(xy=xy))
    assert is_lawful(result) and not result.accepted
    assert "view 2 has 0 keypoints" in result.reason


def test_a_person_who_stands_still(good):
    """Ten equal frames, noise and all, are no more certain than one of them."""
    one = Truth(*(part[:1] if part.shape[0] == 3 else part for part in good))
    still = Truth(
        *(part[:1].expand(10, *part.shape[1:]) if part.shape[0] == 3 else part for part in good)
    )
    single, ten = estimate(one), estimate(still)
    right_where_accepted(ten, still)
    assert (
        ten.rotation_cov.diagonal(dim1=-2, dim2=-1).sum()
        > 0.25 * single.rotation_cov.diagonal(dim1=-2, dim2=-1).sum()
    )


@pytest.mark.parametrize("direction", [(0.0, 1.0, 0.0), (0.3, 0.8, 0.5), (0.0, 0.0, 1.0)])
def test_all_joints_on_a_line(good, direction):
    """A line looks the same from all around it."""
    along = torch.tensor(direction, dtype=torch.float64)
    place = torch.linspace(-800, 800, 17, dtype=torch.float64)
    middle = good.joints.mean((0, 1))
    joints = (middle + place[:, None] * along / along.norm()).expand(3, 17, 3)
    truth = observe(joints, good.R, good.t, good.K)
    result = estimate(truth)
    assert is_lawful(result) and not result.accepted
    assert "on one line" in result.reason


def test_all_joints_at_one_point(good):
    joints = good.joints.mean((0, 1)).expand(2, 17, 3)
    truth = observe(joints, good.R, good.t, good.K)
    result = estimate(truth)
    assert is_lawful(result) and not result.accepted
    # And with the default covariance, whose measure is the person's extent.
    result = ptri.estimate_rig(truth.xy.round(), truth.K)
    assert is_lawful(result) and not result.accepted


def test_keypoints_that_are_noise(good):
    generator = torch.Generator().manual_seed(0)
    size = 2 * good.K[:, None, :2, 2]
    xy = torch.rand(good.xy.shape, generator=generator, dtype=torch.float64) * size
    result = estimate(good._replace(xy=xy))
    assert is_lawful(result) and not result.accepted


def test_equal_keypoints_in_all_views(good):
    """A detector that ran on one video for all cameras: an exact but useless agreement."""
    xy = good.xy[:, :1].expand_as(good.xy)
    result = estimate(good._replace(xy=xy))
    assert is_lawful(result) and not result.accepted


@pytest.mark.parametrize("views", [2, 3, 5, 8, 12])
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


def test_infinity_that_was_not_seen_does_no_harm(good):
    xy, confidence = good.xy.clone(), good.confidence.clone()
    xy[0, 1, 3], confidence[0, 1, 3] = INF, 0.0
    result = ptri.estimate_rig(xy, good.K, confidence, good.covariance)
    xy[0, 1, 3] = NAN
    assert result.R.equal(ptri.estimate_rig(xy, good.K, None, good.covariance).R)


def test_nan_beside_unseen_keypoints_does_no_harm(good):
    """Confidence and covariance of keypoints that were not seen are not looked at."""
    xy, confidence, covariance = good.xy.clone(), good.confidence.clone(), good.covariance.clone()
    xy[:, 1, 3] = NAN
    expected = ptri.estimate_rig(xy, good.K, confidence, covariance)
    confidence[:, 1, 3], covariance[:, 1, 3] = NAN, NAN
    assert ptri.estimate_rig(xy, good.K, confidence, covariance).R.equal(expected.R)


@pytest.mark.parametrize("scale2", [1e-4, 1e6])
def test_covariances_of_a_wrong_size(good, scale2):
    """A detector that is a hundred times too sure, or a thousand times too modest."""
    right_where_accepted(estimate(good._replace(covariance=scale2 * good.covariance)), good, 6.0)


def with_entry(array, place, value):
    array = array.clone()
    array[place] = value
    return array


BAD_VALUES = {
    "xy infinite": (
        lambda g: {"xy": with_entry(g.xy, (1, 2, 3, 0), INF)},
        r"xy: infinite at frame 1, view 2, joint 3 \(1 of 204\); write NaN",
    ),
    "xy huge": (
        lambda g: {"xy": with_entry(g.xy, (1, 2, 3, 0), 1e30)},
        "more than 87 deg off the optical axis at frame 1, view 2, joint 3",
    ),
    "K NaN": (lambda g: {"K": with_entry(g.K, (1, 0, 0), NAN)}, "K: NaN or infinite at view 1"),
    "K infinite": (lambda g: {"K": with_entry(g.K, (1, 0, 2), INF)}, "K: NaN or inf.* view 1"),
    "K zero": (lambda g: {"K": with_entry(g.K, 2, 0.0)}, "K: not an intrinsic matrix at view 2"),
    "K transposed": (lambda g: {"K": g.K.mT}, r"K: not an intrinsic matrix.*\[\[fx, s, cx\]"),
    "K negative": (
        lambda g: {"K": with_entry(g.K, (3, 0, 0), -1000.0)},
        "K: a focal length is zero or negative at view 3",
    ),
    "K zero focal": (
        lambda g: {"K": with_entry(g.K, (0, 1, 1), 0.0)},
        "zero or negative at view 0",
    ),
    "K skewed": (lambda g: {"K": with_entry(g.K, (0, 0, 1), 1e4)}, "K: skew beyond half of fy"),
    "K huge": (lambda g: {"K": with_entry(g.K, (0, 0, 0), 1e12)}, "K: beyond any camera"),
    "confidence high": (
        lambda g: {"confidence": 100 * g.confidence},
        r"confidence: outside \[0, 1\] at frame 0.*divide by the largest",
    ),
    "confidence negative": (
        lambda g: {"confidence": -g.confidence},
        r"confidence: outside \[0, 1\]",
    ),
    "confidence NaN": (
        lambda g: {"xy": g.xy.nan_to_num(500.0), "confidence": g.confidence * NAN},
        r"confidence: outside \[0, 1\]",
    ),
    "covariance NaN": (lambda g: {"covariance": NAN * g.covariance}, "covariance: NaN or infinite"),
    "covariance zero": (lambda g: {"covariance": 0 * g.covariance}, "not positive definite"),
    "covariance negative": (lambda g: {"covariance": -g.covariance}, "not positive definite"),
    "covariance singular": (
        lambda g: {"covariance": torch.ones_like(g.covariance)},
        "not positive definite.*add a small multiple of I",
    ),
    "covariance lopsided": (
        lambda g: {"covariance": g.covariance + torch.tensor([[0.0, 0.5], [0.0, 0.0]])},
        "covariance: not symmetric",
    ),
    "covariance huge": (lambda g: {"covariance": 1e15 * g.covariance}, "beyond any keypoint"),
    "covariance tiny": (lambda g: {"covariance": 1e-15 * g.covariance}, "beyond any keypoint"),
    "no frames": (lambda g: {"xy": g.xy[:0]}, "xy: no frames; give at least one"),
    "one view": (lambda g: {"xy": g.xy[:, :1], "K": g.K[:1]}, "xy: 1 view; at least two"),
    "no views": (lambda g: {"xy": g.xy[:, :0], "K": g.K[:0]}, "xy: 0 view"),
    "one frame without its dimension": (lambda g: {"xy": g.xy[0]}, r"got \(4, 17, 2\).*xy\[None\]"),
    "three coordinates": (
        lambda g: {"xy": torch.cat([g.xy, g.xy[..., :1]], -1)},
        r"expected shape \(frames, views, joints, 2\), got \(3, 4, 17, 3\)",
    ),
    "another skeleton": (lambda g: {"xy": g.xy[:, :, :16]}, "xy: 16 joints, but skeleton 'h36m17'"),
    "K of other views": (lambda g: {"K": g.K[:3]}, r"K: expected shape \(4, 3, 3\)"),
    "one K": (lambda g: {"K": g.K[0]}, "repeat it for every view"),
    "confidence's shape": (
        lambda g: {"confidence": g.confidence[0]},
        r"\(3, 4, 17\).*got \(4, 17\)",
    ),
    "covariance's shape": (
        lambda g: {"covariance": g.covariance[..., 0]},
        r"covariance: expected shape \(3, 4, 17, 2, 2\)",
    ),
    "words": (lambda g: {"xy": np.array([["a"]])}, "xy: not an array of numbers"),
    "ragged": (lambda g: {"xy": [[1.0], [1.0, 2.0]]}, "xy: not an array of numbers"),
    "None": (lambda g: {"xy": None}, "xy: not an array of numbers"),
    "bool": (lambda g: {"xy": g.xy > 0}, "xy: expected real numbers"),
    "complex": (lambda g: {"K": g.K.to(torch.complex128)}, "K: expected real numbers"),
    "skeleton": (lambda g: {"skeleton": "coco"}, "skeleton: no joint set 'coco'"),
    "num_samples": (lambda g: {"num_samples": 0}, "num_samples: 0; expected a whole number >= 8"),
    "num_iterations": (lambda g: {"num_iterations": 2.5}, "num_iterations: 2.5; expected a whole"),
    "more iterations than samples": (
        lambda g: {"num_samples": 8, "num_iterations": 9},
        "num_iterations: 9 for 8 samples",
    ),
    "max_frames": (lambda g: {"max_frames": 0}, "max_frames: 0"),
    "seed": (lambda g: {"seed": -1}, "seed: -1"),
    "device": (lambda g: {"device": "abacus"}, "device: 'abacus'"),
    "scale's form": (lambda g: {"scale": 1780}, 'scale: 1780; expected {"subject_height"'),
    "scale's key": (lambda g: {"scale": {"height": 1}}, "scale: {'height': 1}"),
    "scale empty": (lambda g: {"scale": {}}, "scale: empty"),
    "scale twice": (
        lambda g: {"scale": {"subject_height": 1780, "camera_distance": (0, 1, 3000)}},
        "give one of them",
    ),
    "height in metres": (lambda g: {"scale": {"subject_height": 1.78}}, "1.78 mm.*not m or cm"),
    "height NaN": (lambda g: {"scale": {"subject_height": NAN}}, "nan; expected a length"),
    "distance of one camera": (
        lambda g: {"scale": {"camera_distance": (1, 1, 3000)}},
        "two different views from 0 to 3",
    ),
    "distance without views": (
        lambda g: {"scale": {"camera_distance": 3000}},
        "camera_distance 3000",
    ),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values_are_named(good, name):
    change, message = BAD_VALUES[name]
    given = {"xy": good.xy, "K": good.K} | change(good)
    if "xy" in given and "confidence" not in given and "covariance" not in given:
        given.pop("confidence", None)
    with pytest.raises(ValueError, match=message) as caught:
        ptri.estimate_rig(**given)
    assert "\n" not in str(caught.value)


def test_a_height_that_cannot_be_measured(good):
    xy = good.xy.clone()
    xy[:, :, [0, 1, 4, 5]] = NAN  # no legs
    with pytest.raises(ValueError, match="subject_height needs a frame"):
        ptri.estimate_rig(xy, good.K, scale={"subject_height": 1800})
