"""Robust triangulation: exact on clean points, close with outliers, NaN without evidence."""

import pytest
import torch

from ptri.geometry.cameras import project
from ptri.geometry.triangulation import robust_triangulation
from ptri.structures import Cameras, Keypoints


def scene(generator, B=2, T=3, V=4, J=6, noise=0.0):
    """Cameras on a ring in view 0's frame, joints near the middle, keypoints in px."""
    angle = torch.arange(V) * 1.3
    zero, one = torch.zeros(V), torch.ones(V)
    R = torch.stack(
        [angle.cos(), zero, -angle.sin(), zero, one, zero, angle.sin(), zero, angle.cos()], -1
    ).reshape(V, 3, 3)
    middle = torch.tensor([0.0, 0.0, 4500.0])
    t = middle - R @ middle
    K = torch.tensor([[1100.0, 0, 500], [0, 1100, 500], [0, 0, 1]]).expand(B, T, V, 3, 3)
    R, t = R.expand(B, V, 3, 3), t.expand(B, V, 3)
    joints = middle + 500 * torch.randn(B, T, J, 3, generator=generator)
    xy = torch.stack(
        [project(joints[:, i], Cameras(K[:, i], R, t)) for i in range(T)], 1
    )  # (B, T, V, J, 2)
    xy = xy + noise * torch.randn(xy.shape, generator=generator)
    covariance = torch.eye(2).mul(max(noise, 1.0) ** 2).expand(B, T, V, J, 2, 2)
    return Keypoints(xy, covariance, torch.ones(B, T, V, J)), Cameras(K, R, t), joints


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def test_exact_without_noise(generator):
    keypoints, cameras, joints = scene(generator)
    estimate, weight = robust_triangulation(keypoints, cameras)
    # Keypoints are float32: 1e-4 px, which is 1e-3 mm at 4.5 m.
    assert (estimate.joints3d - joints).abs().max() < 0.05
    assert weight.min() > 0.99


def test_one_bad_view_of_four_does_not_matter(generator):
    keypoints, cameras, joints = scene(generator, noise=2.0)
    clean = (robust_triangulation(keypoints, cameras)[0].joints3d - joints).norm(dim=-1)
    broken = keypoints.xy.clone()
    broken[:, :, 2] += 150.0
    result, weight = robust_triangulation(keypoints._replace(xy=broken), cameras)
    error = (result.joints3d - joints).norm(dim=-1)
    assert clean.median() < 15
    assert error.median() < 1.6 * clean.median()  # three views instead of four
    assert weight[:, :, 2].max() < 0.1
    # The control: without reweighting the bad view wrecks the points.
    plain, _ = robust_triangulation(
        keypoints._replace(xy=broken, covariance=keypoints.covariance * 1e6), cameras
    )
    assert (plain.joints3d - joints).norm(dim=-1).median() > 5 * clean.median()


def test_covariance_matches_the_errors(generator):
    keypoints, cameras, joints = scene(generator, B=40, noise=3.0)
    estimate, _ = robust_triangulation(keypoints, cameras)
    error = (estimate.joints3d - joints).unsqueeze(-1)
    chi2 = (error.mT @ torch.linalg.inv(estimate.covariance) @ error).flatten()
    assert 2.0 < chi2.mean() < 3.6  # 3 for exact weights; Cauchy weights widen the covariance


def test_joints_seen_once_are_nan(generator):
    keypoints, cameras, _ = scene(generator)
    xy = keypoints.xy.clone()
    xy[:, :, 1:, 0] = torch.nan
    estimate, weight = robust_triangulation(keypoints._replace(xy=xy), cameras)
    assert torch.isnan(estimate.joints3d[:, :, 0]).all()
    assert torch.isfinite(estimate.joints3d[:, :, 1:]).all()
    assert (weight[:, :, 1:, 0] == 0).all()
