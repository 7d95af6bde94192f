import pytest
import torch
from rigs_fixture import gaussian_scene, normal, random_rotations, skeletons

from ptri.geometry import alignment, rotations
from ptri.geometry.cameras import (
    centres,
    normalised_to_pixel,
    pixel_to_normalised,
    project,
    to_reference,
    transform,
)
from ptri.geometry.triangulation import ray_moments, symmetric_to_matrix, triangulate
from ptri.posterior.body import load_body_prior
from ptri.posterior.starts import rig_starts
from ptri.skeleton import H36M17
from ptri.structures import Cameras


def test_exponential_and_logarithm_are_inverse():
    w = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 - 1.5
    assert torch.allclose(rotations.so3_log(rotations.so3_exp(w)), w, atol=1e-9)
    assert torch.allclose(rotations.rotation_angle(rotations.so3_exp(w)), w.norm(dim=-1))


def test_small_angles_keep_their_digits():
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


def test_look_at_turns_the_centre_onto_the_axis():
    centre = normal(20, 2)
    turn = alignment.look_at(centre)
    ray = torch.cat([centre, torch.ones(20, 1, dtype=torch.float64)], -1)
    seen = (turn @ ray.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(seen[:, :2], torch.zeros(20, 2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.det(turn), torch.ones(20, dtype=torch.float64))


def test_place_on_rays_finds_the_depth():
    _, _, cameras, joints = gaussian_scene(batch=4)
    skeleton = skeletons(cameras, joints)  # (B, T, V, J, 3)
    relative = skeleton - skeleton[..., H36M17.root, None, :]
    rays = skeleton[..., :2] / skeleton[..., 2:]
    root = alignment.place_on_rays(relative, rays, torch.ones_like(rays[..., 0]))
    # The guard that keeps empty views solvable weighs 1e-6 of one joint.
    assert torch.allclose(root, skeleton[..., H36M17.root, :], rtol=1e-3)


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
