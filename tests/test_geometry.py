import numpy as np
import pytest
import torch
from rigs_fixture import gaussian_scene, normal, random_rotations, scene, skeletons

from ptri.evaluation.metrics import mahalanobis_square, n_mpjpe, rotation_error_deg
from ptri.geometry import alignment, epipolar, rotations
from ptri.geometry.cameras import (
    centres,
    normalised_to_pixel,
    pixel_to_normalised,
    project,
    to_reference,
    transform,
)
from ptri.geometry.triangulation import (
    ray_moments,
    robust_triangulation,
    symmetric_to_matrix,
    triangulate,
)
from ptri.posterior.body import load_body_prior
from ptri.posterior.starts import rig_starts
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints


def test_exponential_and_logarithm_are_inverse():
    w = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 - 1.5
    assert torch.allclose(rotations.so3_log(rotations.so3_exp(w)), w, atol=1e-9)
    assert torch.allclose(rotations.rotation_angle(rotations.so3_exp(w)), w.norm(dim=-1))
    # Small angles keep their digits.
    w = torch.tensor([[1e-5, 0.0, 0.0]], dtype=torch.float32)
    angle = rotations.rotation_angle(rotations.so3_exp(w))
    assert float(angle) == pytest.approx(1e-5, rel=1e-3)


def test_haar_density_integrates_to_the_volume_of_so3():
    angle = torch.linspace(0, torch.pi, 20001, dtype=torch.float64)
    density = rotations.log_haar_density(angle).exp() * 4 * torch.pi * angle**2
    assert float(torch.trapezoid(density, angle)) == pytest.approx(8 * torch.pi**2, rel=1e-6)


def test_rotation_mean_is_safe_against_antipodal_quaternions():
    base = rotations.so3_exp(torch.tensor([0.0, torch.pi - 1e-3, 0.0], dtype=torch.float64))
    # Their quaternions straddle q and -q.
    samples = base @ rotations.so3_exp(0.02 * normal(400, 3))
    mean = rotations.rotation_mean(samples, torch.full((400,), 1 / 400, dtype=torch.float64))
    assert float(rotations.rotation_angle(mean.mT @ base)) < 0.005


def test_projection_and_its_inverse():
    keypoints, K, cameras, joints = gaussian_scene(batch=2, noise=1e-6, missing=0.0)
    xy = project(joints[:, 0], Cameras(K[:, 0], cameras.R, cameras.t))
    assert torch.allclose(xy, keypoints.xy[:, 0], atol=0.05)
    back = normalised_to_pixel(pixel_to_normalised(xy, K[:, 0]), K[:, 0])
    assert torch.allclose(back, xy)


def test_reference_frame_keeps_camera_coordinates():
    R, t, world = random_rotations(3, 4), normal(3, 4, 3), normal(3, 7, 3)
    moved = to_reference(Cameras(None, R, t))
    inside = transform(world, R[:, 0], t[:, 0])
    expected = transform(world.unsqueeze(1), R, t)
    assert torch.allclose(transform(inside.unsqueeze(1), moved.R, moved.t), expected)
    assert torch.allclose(moved.R[:, 0], torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(centres(moved.R, moved.t)[:, 0], torch.zeros(3, dtype=torch.float64))


def test_triangulation_agrees_with_naive_least_squares():
    """Of two rigs of four views and six points: stacked, whitened rows of P (R X + t) = 0."""
    R, t = random_rotations(2, 1, 4), normal(2, 1, 4, 3) + torch.tensor([0, 0, 5.0])
    xy, A = 0.3 * normal(1, 6, 4, 2), normal(1, 6, 4, 2, 2)
    L = A @ A.mT + 0.1 * torch.eye(2, dtype=torch.float64)
    prior = torch.zeros(1, 6, 3, dtype=torch.float64)
    points, entries, log_det = triangulate(ray_moments(xy, L), R, t, prior, 1e-12)
    P = torch.cat([torch.eye(2, dtype=xy.dtype).expand_as(L), -xy.unsqueeze(-1)], -1)
    rows = torch.linalg.cholesky(L).mT @ P  # (1, 6, V, 2, 3)
    left, right = rows @ R, -rows @ t.unsqueeze(-1)  # (2, 6, V, 2, 3 and 1)
    naive = torch.linalg.lstsq(left.flatten(2, 3), right.flatten(2, 3)).solution.squeeze(-1)
    assert torch.allclose(points[:, 0], naive, atol=1e-8)
    assert torch.allclose(-torch.linalg.slogdet(symmetric_to_matrix(entries))[1], log_det)


def test_triangulation_passes_gradcheck():
    R, t = random_rotations(2, 1, 3), normal(2, 1, 3, 3)
    xy = (0.2 * normal(1, 2, 3, 2)).requires_grad_()
    L = torch.eye(2, dtype=torch.float64).expand(1, 2, 3, 2, 2)
    prior = torch.zeros(1, 2, 3, dtype=torch.float64)

    def points(xy, t):
        return triangulate(ray_moments(xy, L), R, t, prior, 1e-3)

    assert torch.autograd.gradcheck(points, (xy, t.requires_grad_()))


def test_place_on_rays_finds_the_depth():
    _, _, cameras, joints = gaussian_scene(batch=4)
    skeleton = skeletons(cameras, joints)  # (B, T, V, J, 3)
    relative = skeleton - skeleton[..., H36M17.root, None, :]
    rays = skeleton[..., :2] / skeleton[..., 2:]
    root = alignment.place_on_rays(relative, rays, torch.ones_like(rays[..., 0]))
    # The guard that keeps empty views solvable weighs 1e-6 of one joint.
    assert torch.allclose(root, skeleton[..., H36M17.root, :], rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):  # as in a training step
        coarse = alignment.place_on_rays(
            relative.float(), rays.float(), torch.ones(rays.shape[:-1])
        )
    # Measured: 40 mm at 4 m; bfloat16 has eight bits.
    assert torch.allclose(coarse.double(), root, rtol=0.03, atol=60)


def test_rig_starts_from_true_skeletons_are_the_true_rig():
    _, _, cameras, joints = gaussian_scene(batch=4, frames=2)
    weight = torch.ones(*joints.shape[:2], 4, 17, dtype=torch.float64)
    starts = rig_starts(skeletons(cameras, joints), weight, load_body_prior())
    assert starts.R.shape == (4, 8, 4, 3, 3)
    for c in range(4):  # every view as hub; the mirrored ones are wrong on purpose
        assert torch.allclose(starts.R[:, c], cameras.R, atol=1e-6)
        assert torch.allclose(starts.t[:, c], cameras.t, atol=1e-2)
    assert torch.allclose(starts.joints[:, 0], joints, atol=1e-2)
    assert float(rotations.rotation_angle(starts.R[:, 5] @ cameras.R.mT).max()) > 0.1


def keypoint_scene(noise=0.0, batch=2):
    """Keypoints with noise (px) of generated people, the cameras and the joints."""
    _, K, cameras, joints = gaussian_scene(batch, frames=3)
    xy = project(joints, Cameras(K, cameras.R[:, None], cameras.t[:, None]))  # (B, T, V, J, 2)
    xy += noise * normal(*xy.shape)
    covariance = torch.eye(2).mul(max(noise, 1.0) ** 2).expand(*xy.shape, 2)
    return Keypoints(xy, covariance, torch.ones(xy.shape[:-1])), cameras._replace(K=K), joints


def test_exact_without_noise():
    keypoints, cameras, joints = keypoint_scene()
    result, weight = robust_triangulation(keypoints, cameras)
    assert (result.joints3d - joints).abs().max() < 0.05  # mm; the generator's are float32
    assert weight.min() > 0.99


def test_one_bad_view_of_four_does_not_matter():
    keypoints, cameras, joints = keypoint_scene(noise=2.0)
    clean = (robust_triangulation(keypoints, cameras)[0].joints3d - joints).norm(dim=-1)
    keypoints.xy[:, :, 2] += 150.0
    result, weight = robust_triangulation(keypoints, cameras)
    error = (result.joints3d - joints).norm(dim=-1)
    assert clean.median() < 15
    assert error.median() < 1.6 * clean.median()  # three views instead of four
    assert weight[:, :, 2].max() < 0.1
    # The control: without reweighting the bad view wrecks the points.
    plain, _ = robust_triangulation(keypoints, cameras, cauchy=1e3)
    assert (plain.joints3d - joints).norm(dim=-1).median() > 5 * clean.median()


def test_covariance_matches_the_errors():
    keypoints, cameras, joints = keypoint_scene(noise=3.0, batch=40)
    result, _ = robust_triangulation(keypoints, cameras)
    chi2 = mahalanobis_square(result.joints3d - joints, result.covariance)
    assert 2.0 < chi2.mean() < 3.6  # 3 for exact weights; Cauchy weights widen the covariance


def test_joints_seen_once_are_nan():
    keypoints, cameras, _ = keypoint_scene()
    keypoints.xy[:, :, 1:, 0] = torch.nan
    result, weight = robust_triangulation(keypoints, cameras)
    assert torch.isnan(result.joints3d[:, :, 0]).all()
    assert torch.isfinite(result.joints3d[:, :, 1:]).all()
    assert (weight[:, :, 1:, 0] == 0).all()


TOLERANCE_DEG = 3.0  # single rigs of the ring and dome families: measured up to 0.9
FAMILIES = ["ring", "wall", "corner", "dome", "two_phones"]


def seen(family, views, seed=0, frames=12):
    """xy, K, R, joints of a rig with independent noise, about 1 px at 435 px body height."""
    truth = scene(frames, views, seed, noise=0.002, missing=0.1, fps=1.0, family=family)
    K = np.tile(truth.K.numpy(), (frames, 1, 1, 1))
    return truth.xy.numpy(), K, truth.R, truth.joints


def worst_deg(candidate, R):
    return float(rotation_error_deg(torch.from_numpy(candidate.R), R).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_recovers_generated_rigs(family):
    views = 2 if family == "two_phones" else 4
    worst, structure = [], []
    for seed in range(8):
        xy, K, R, joints = seen(family, views, seed)
        best = epipolar.five_point_rigs(xy, K)[0]
        worst.append(worst_deg(best, R))
        known = np.isfinite(best.joints).all(-1)
        assert np.array_equal(known, np.isfinite(xy).all(-1).sum(1) >= 2)
        points = torch.from_numpy(best.joints.reshape(1, -1, 3))
        truth = torch.where(torch.isnan(points), torch.nan, joints.reshape(1, -1, 3))
        shift = H36M17.root - int(np.flatnonzero(known.ravel())[0])  # a root that is seen
        structure.append(float(n_mpjpe(points.roll(shift, 1), truth.roll(shift, 1))))
    # Measured over 12 rigs a family: medians 0.5 to 1.5 deg and 7 to 18 mm; the worst are people
    # who hardly move before cameras close to each other (5 to 42 deg).
    assert np.median(worst) < 2.5, worst
    assert np.median(structure) < 40, structure


def test_gross_outliers_and_control():
    """5 % of the points anywhere: still right; a view whose joints are shuffled: not."""
    rng = np.random.default_rng(0)
    for seed in range(4):
        xy, K, R, _ = seen("ring", 4, seed, frames=16)
        wild = (rng.random(xy.shape[:-1]) < 0.05) & np.isfinite(xy).all(-1)
        dirty = np.where(wild[..., None], rng.uniform(0, 1000, xy.shape), xy)
        assert worst_deg(epipolar.five_point_rigs(dirty, K)[0], R) < TOLERANCE_DEG
        shuffled = xy.copy()
        shuffled[:, 2] = xy[:, 2][:, rng.permutation(xy.shape[2])]
        control = epipolar.five_point_rigs(shuffled, K)
        assert not control or worst_deg(control[0], R) > 10


def test_candidates_are_ranked_and_repeatable():
    xy, K, _, _ = seen("dome", 5)
    first, second = (epipolar.five_point_rigs(xy, K, seed=3, num_pairs=4) for _ in range(2))
    assert len(first) == 4
    assert [c.error for c in first] == sorted(c.error for c in first)
    for a, b in zip(first, second):
        assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b))
    for c in first:
        np.testing.assert_allclose(c.R @ c.R.swapaxes(-1, -2), [np.eye(3)] * 5, atol=1e-9)
        np.testing.assert_allclose(c.R[0], np.eye(3), atol=1e-12)
        np.testing.assert_allclose(c.t[0], 0, atol=1e-12)
        assert np.nanmedian(np.linalg.norm(c.joints, axis=-1)) == pytest.approx(1.0)


def test_confidence_zero_is_not_seen():
    xy, K, R, _ = seen("ring", 3)
    confidence = np.ones(xy.shape[:-1])
    confidence[:, 1, ::2] = 0.0
    spoiled = np.where(confidence[..., None] > 0, xy, 500.0)
    assert worst_deg(epipolar.five_point_rigs(spoiled, K, confidence)[0], R) < TOLERANCE_DEG


def test_nothing_to_go_on():
    """Too few points, no points, all points in one place: no candidate, no exception."""
    K = np.tile(np.diag([1000.0, 1000.0, 1.0]), (3, 1, 1))
    rng = np.random.default_rng(0)
    few = np.full((1, 3, 17, 2), np.nan)
    few[:, :, :4] = rng.normal(size=(1, 3, 4, 2))
    assert epipolar.five_point_rigs(few, K) == []
    assert epipolar.five_point_rigs(np.full((2, 3, 17, 2), np.nan), K) == []
    assert epipolar.five_point_rigs(np.zeros((0, 3, 17, 2)), K) == []
    for candidate in epipolar.five_point_rigs(np.ones((1, 3, 17, 2)), K):
        assert np.isfinite(candidate.R).all()


def test_triangulation_is_exact_without_noise():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(20, 3)) + np.array([0.0, 0.0, 6.0])
    R = np.array([np.eye(3), [[0.8, 0, -0.6], [0, 1, 0], [0.6, 0, 0.8]]])
    t = np.array([[0, 0, 0], [3.0, 0.1, 1.0]])
    camera = points @ R.swapaxes(1, 2) + t[:, None]
    joints, fixed = epipolar.triangulate(
        camera[..., :2] / camera[..., 2:], np.ones((2, 20), bool), R, t
    )
    assert fixed.all()
    np.testing.assert_allclose(joints, points, atol=1e-5)  # the ridge moves points by 1e-9 or so
