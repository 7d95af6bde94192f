"""`ptri.estimate_rig`: what must not change the answer does not; what it promises holds."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from recording_fixture import detector_joints
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
from ptri import config as configuration
from ptri.evaluation.metrics import mahalanobis_square
from ptri.geometry.cameras import centres
from ptri.geometry.rotations import so3_exp
from ptri.people.scenes import SceneNumbers, generate_batch
from ptri.posterior.body import bone_vectors, load_body_prior
from ptri.rig.check import check_input, extra_joints, for_model
from ptri.rig.scale import body_height
from ptri.skeleton import H36M17, SKELETONS, find_skeleton
from ptri.structures import Cameras

FRAMES = 4
# Two runs on the same data differ by the Monte-Carlo error alone, a few tenths of a standard
# deviation at 512 samples; the control tests show what a wrong answer gives.
SAME = 0.5


@pytest.fixture(scope="module")
def ring():
    return scene(FRAMES, seed=0)


@pytest.fixture(scope="module")
def plain(ring):
    return estimate(ring)


def test_the_truth_lies_within_the_stated_uncertainty(ring, plain):
    assert plain.accepted and plain.reason == "accepted"
    assert is_lawful(plain)
    assert rotation_error_deg(plain, ring).max() < 3  # found: 1.02
    assert deviation(plain, ring.R[1:]).max() < 3  # found: 0.85
    # Control: cameras of another rig are far outside.
    assert deviation(plain, scene(FRAMES, seed=1).R[1:]).min() > 6
    assert plain.R[0].equal(torch.eye(3, dtype=torch.float64)) and not plain.t[0].any()
    assert plain.units == "mm" and "bones" in plain.scale_source
    assert plain.frames == [0, 1, 2, 3]
    assert 1 <= plain.ess <= 512
    T, V, J, M = FRAMES, 4, 17, 512  # as documented
    shapes = [(V, 3, 3), (V, 3), (T, J, 3), (T, J, 3, 3), (V, 3, 3), (V, 3, 3)]
    values = (*plain[:4], plain.rotation_cov, plain.t_cov)
    assert [value.shape for value in values] == shapes
    assert all(value.dtype == torch.float64 for value in values)
    assert plain.posterior.R.shape == (M, 1, V, 3, 3)
    assert plain.posterior.log_weights.shape == (M, 1)
    assert type(plain.ess) is float and type(plain.accepted) is bool and type(plain.reason) is str


def test_what_must_not_matter(ring, plain):
    """The resolution, the order of the frames, and the kind of array."""
    K = 2.5 * ring.K
    K[:, 2, 2] = 1.0
    larger = estimate(ring._replace(xy=2.5 * ring.xy, K=K, covariance=6.25 * ring.covariance))
    torch.testing.assert_close(larger.t, plain.t, rtol=1e-3, atol=1.0)
    backwards = estimate(Truth(*(v if v is ring.K else v.flip(0) for v in ring)))
    kinds = (torch.Tensor.numpy, torch.Tensor.tolist, lambda value: value.float().numpy())
    converted = [ptri.estimate_rig(*map(convert, ring[:4])) for convert in kinds]
    for other in (larger, backwards, *converted):
        assert isinstance(other.R, torch.Tensor) and deviation(plain, other.R[1:]).max() < SAME
    pixels = np.nan_to_num(ring.xy.numpy(), nan=0).astype(np.int64)
    seen = ~torch.isnan(ring.xy).any(-1)
    other = ptri.estimate_rig(pixels, ring.K.float(), ring.confidence * seen, ring.covariance)
    assert deviation(plain, other.R[1:]).max() < 1  # rounded to whole pixels


def test_equal_seeds_give_equal_bits_and_others_the_same_answer(ring, plain):
    again, other = estimate(ring), estimate(ring, seed=7)
    for first, second in zip((*plain[:4], *plain.posterior), (*again[:4], *again.posterior)):
        assert first.equal(second)
    assert not other.R.equal(plain.R)
    assert deviation(plain, other.R[1:]).max() < SAME


def test_turning_a_camera_about_its_axis_turns_its_image(ring, plain):
    turn = so3_exp(torch.tensor([0.0, 0.0, 0.65], dtype=torch.float64))
    plane, centre = turn[:2, :2], ring.K[0, :2, 2]  # of the reference
    xy, covariance = ring.xy.clone(), ring.covariance.clone()
    xy[:, 0] = (xy[:, 0] - centre) @ plane.T + centre
    covariance[:, 0] = plane @ covariance[:, 0] @ plane.T
    other = estimate(ring._replace(xy=xy, covariance=covariance))
    assert deviation(plain, (other.R @ turn)[1:]).max() < SAME
    assert deviation(plain, other.R[1:]).max() > 10


@pytest.mark.parametrize("order", [[0, 3, 1, 2], [2, 0, 1, 3]])
def test_order_and_reference_of_the_views(ring, plain, order):
    xy, K, confidence, covariance = ring[:4]
    other = ptri.estimate_rig(xy[:, order], K[order], confidence[:, order], covariance[:, order])
    back = [order.index(v) for v in range(4)]
    R = other.R[back] @ other.R[back][0].T
    assert deviation(plain, R[1:]).max() < SAME
    assert deviation(plain, other.R[1:]).max() > 10  # the same without undoing the order
    # The joints, in the frame of the first of the given views.
    R0, t0 = other.R[back][0], other.t[back][0]
    joints = other.joints3d @ R0.T + t0
    sigma = plain.joints3d_covariance.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    assert ((joints - plain.joints3d).norm(dim=-1) / sigma).max() < 1


def test_skewed_pixels_are_straightened(ring, plain):
    skew = torch.eye(3, dtype=torch.float64)
    skew[0, 1] = 0.2
    xy = ring.xy @ skew[:2, :2].T
    covariance = skew[:2, :2] @ ring.covariance @ skew[:2, :2].T
    skewed = ring._replace(xy=xy, covariance=covariance, K=3.0 * skew @ ring.K)
    # Weights are computed in float32, whose rounding moves the mean by 2e-6 rad.
    torch.testing.assert_close(estimate(skewed).R, plain.R, rtol=0, atol=1e-5)


def test_joint_order_does_not_matter(ring, plain):
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    seen = {name: getattr(ring, name)[:, :, order] for name in ("xy", "confidence", "covariance")}
    moved = ring._replace(**seen)
    other, mixed = estimate(moved, skeleton=[H36M17.joints[j] for j in order]), estimate(moved)
    torch.testing.assert_close(other.R, plain.R, rtol=0, atol=1e-9)
    torch.testing.assert_close(other.joints3d, plain.joints3d[:, order], rtol=0, atol=1e-3)
    assert not mixed.accepted or deviation(plain, mixed.R[1:]).max() > 3


# --- skeletons -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco17", "body25", "body25b", "mpii16", "halpe26", "coco18"])
def test_joint_sets(ring, name):
    joints = torch.tensor(detector_joints(ring.joints.numpy(), name))
    xy = seen_from(Cameras(ring.K, ring.R, ring.t), joints, 1.0)
    scale = {"camera_distance": (0, 2, distance(ring, 0, 2))}
    result = ptri.estimate_rig(xy, ring.K, skeleton=name, max_frames=2, scale=scale)
    assert is_lawful(result) and result.accepted
    assert rotation_error_deg(result, ring).max() < 4
    assert result.joints3d.shape == joints.shape
    assert (result.joints3d - joints).norm(dim=-1).median() < 60


def distance(truth, i, j):
    centre = centres(truth.R, truth.t)
    return float((centre[i] - centre[j]).norm())


def test_unknown_joints_take_part_in_the_geometry(ring):
    """Points on the body that no lifter knows make the rig more certain."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.tensor(H36M17.bones)[torch.randint(16, (30,), generator=generator)]
    share = torch.rand(30, 1, generator=generator, dtype=torch.float64)
    points = share * ring.joints[:, ends[:, 0]] + (1 - share) * ring.joints[:, ends[:, 1]]
    points = torch.cat([ring.joints, points], dim=1)
    xy = seen_from(Cameras(ring.K, ring.R, ring.t), points, 4.0)
    names = [*H36M17.joints, *(f"dot {n}" for n in range(30))]
    covariance = 16.0 * torch.eye(2, dtype=torch.float64).expand(*xy.shape, 2)
    some = ptri.estimate_rig(xy[:, :, :17], ring.K, covariance=covariance[:, :, :17])
    more = ptri.estimate_rig(xy, ring.K, covariance=covariance, skeleton=names)
    assert more.joints3d.shape == (FRAMES, 47, 3) and more.accepted
    assert rotation_std(more).norm() < 0.85 * rotation_std(some).norm()
    assert deviation(more, ring.R[1:]).max() < 3


def test_the_models_joints_come_first_and_none_twice():
    K = torch.tensor([[1000.0, 0, 500], [0, 1000, 500], [0, 0, 1]]).repeat(3, 1, 1)
    for name in ("coco17", "body25b", "mpii16", "h36m17"):
        skeleton = SKELETONS[name]
        xy = torch.rand(2, 3, len(skeleton.joints), 2, dtype=torch.float64) * 1000
        keypoints = for_model(check_input(xy, K, skeleton=name))
        extra = [skeleton.joints[j] for j in extra_joints(skeleton)]
        assert keypoints.xy.shape[2] == 17 + len(extra)
        assert not {"left_knee", "right_wrist", "left_hip"} & set(extra)
        assert name != "coco17" or extra == ["nose", *skeleton.joints[1:5]]  # eyes and ears
        assert name != "h36m17" or extra == []


def test_names_are_forgiving():
    names = [name.replace("_", " ").title() for name in SKELETONS["body25b"].joints]
    assert find_skeleton(names).joints == SKELETONS["body25b"].joints
    for wrong, message in (
        (["left_knee", "Left Knee", *H36M17.joints], "left_knee occurs more than once"),
        (["a", "b", "c"], "only 0 of Human3.6M's 17 joints"),
    ):
        with pytest.raises(ValueError, match=message):
            find_skeleton(wrong)


# --- scale, frames, views ------------------------------------------------------------------------


def test_known_lengths_fix_the_scale(ring, plain):
    by_distance = estimate(ring, scale={"camera_distance": (0, 2, 4321.0)})
    assert "view 0 and view 2" in by_distance.scale_source
    centre = centres(*by_distance.posterior[:2])
    assert centre[:, 0, 2].norm(dim=-1).tolist() == pytest.approx([4321.0] * 512)
    torch.testing.assert_close(by_distance.R, plain.R)
    by_height = estimate(ring, scale={"subject_height": np.float32(1900)}, seed=np.int64(0))
    assert "1900 mm" in by_height.scale_source
    assert float(body_height(by_height.joints3d)) == pytest.approx(1900, rel=0.01)
    # Less is unknown than before.
    assert by_distance.t_cov[2].trace() < plain.t_cov[2].trace()


def test_many_frames():
    """A long sequence: few frames for the cameras, joints for all, within their covariance."""
    truth = scene(150, seed=3, fps=5.0)
    distance_mm = distance(truth, 0, 2)
    result = estimate(truth, max_frames=12, scale={"camera_distance": (0, 2, distance_mm)})
    assert len(result.frames) == 12 and result.joints3d.shape[0] == 150
    assert is_lawful(result)
    chi2 = mahalanobis_square(result.joints3d - truth.joints, result.joints3d_covariance)
    assert (chi2 < 6.251).double().mean() > 0.75  # 90 % of a chi-square with three degrees


def test_a_view_without_keypoints_is_named_and_the_others_are_solved(ring, plain):
    xy = ring.xy.clone()
    xy[:, 2] = torch.nan
    result = estimate(ring._replace(xy=xy))
    assert not result.accepted and is_lawful(result)
    assert "view 2 has 0 keypoints" in result.reason and "the others: accepted" in result.reason
    assert rotation_error_deg(result, ring)[[1, 3]].max() < 4
    std = torch.rad2deg(rotation_std(result))
    assert std[2] > 90 and std[[1, 3]].max() < 5  # nothing is known of it, and it says so
    xy = ring.xy.clone()
    xy[:, 0] = torch.nan
    result = estimate(ring._replace(xy=xy))
    assert not result.accepted and "view 0 has 0 keypoints" in result.reason
    # Relative to each other the cameras are known.
    R = result.posterior.R[:, 0, 3] @ result.posterior.R[:, 0, 1].mT
    truth = ring.R[3] @ ring.R[1].T
    assert float((R - truth).norm(dim=(-1, -2)).median()) < 0.15


def bones(joints):
    return bone_vectors(joints, load_body_prior())[0].mean()


def test_a_child_is_smaller_when_children_are_expected(ring):
    """A ring seen by a person of a child's proportions, of unknown size."""
    options = ["run.name=child", "generated.children=1", "generated.families=[ring]"]
    options += ["generated.errors.definition_mm=0"]
    numbers = SceneNumbers(bone_spread=0.0)
    scene = generate_batch(configuration.load(None, options), 5, 0, 3, 4, 6, numbers=numbers)
    size = torch.zeros(2, 3)  # estimated over true, of three children
    for row, children in enumerate((0.0, 1.0)):
        for i in range(3):
            xy, covariance, confidence = (value[i] for value in scene.keypoints)
            fast = {"num_samples": 64, "num_iterations": 1, "children": children}
            rig = ptri.estimate_rig(xy, scene.K[i, 0], confidence, covariance, **fast)
            size[row, i] = bones(rig.joints3d) / bones(scene.joints3d[i].double())
    assert (size[0] > 1.08).all()
    assert abs(size[1].mean() - 1) < 0.5 * (size[0].mean() - 1)


def test_importing_ptri_is_light():
    code = "import sys, ptri; assert 'torch' not in sys.modules; print(ptri.estimate_rig.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "estimate_rig\n", done.stderr
    with pytest.raises(AttributeError, match="nothing"):
        ptri.nothing  # noqa: B018
