"""Robust triangulation: exact on clean points, close with outliers, NaN without evidence."""

import torch
from rigs_fixture import gaussian_scene, normal

from ptri.evaluation.metrics import mahalanobis_square
from ptri.geometry.cameras import project
from ptri.geometry.triangulation import robust_triangulation
from ptri.structures import Cameras, Keypoints


def scene(noise=0.0, batch=2):
    """Keypoints with noise (px) of generated people, the cameras and the joints."""
    _, K, cameras, joints = gaussian_scene(batch, frames=3)
    xy = project(joints, Cameras(K, cameras.R[:, None], cameras.t[:, None]))  # (B, T, V, J, 2)
    xy += noise * normal(*xy.shape)
    covariance = torch.eye(2).mul(max(noise, 1.0) ** 2).expand(*xy.shape, 2)
    return Keypoints(xy, covariance, torch.ones(xy.shape[:-1])), cameras._replace(K=K), joints


def test_exact_without_noise():
    keypoints, cameras, joints = scene()
    result, weight = robust_triangulation(keypoints, cameras)
    assert (result.joints3d - joints).abs().max() < 0.05  # mm; the generator's are float32
    assert weight.min() > 0.99


def test_one_bad_view_of_four_does_not_matter():
    keypoints, cameras, joints = scene(noise=2.0)
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
    keypoints, cameras, joints = scene(noise=3.0, batch=40)
    result, _ = robust_triangulation(keypoints, cameras)
    chi2 = mahalanobis_square(result.joints3d - joints, result.covariance)
    assert 2.0 < chi2.mean() < 3.6  # 3 for exact weights; Cauchy weights widen the covariance


def test_joints_seen_once_are_nan():
    keypoints, cameras, _ = scene()
    keypoints.xy[:, :, 1:, 0] = torch.nan
    result, weight = robust_triangulation(keypoints, cameras)
    assert torch.isnan(result.joints3d[:, :, 0]).all()
    assert torch.isfinite(result.joints3d[:, :, 1:]).all()
    assert (weight[:, :, 1:, 0] == 0).all()
