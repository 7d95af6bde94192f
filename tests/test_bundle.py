import pytest
import torch
from rigs_fixture import BODY, observed, start_near

from ptri.evaluation.metrics import mahalanobis_square
from ptri.geometry.rotations import rotation_angle, so3_log
from ptri.posterior.adjust import adjust
from ptri.posterior.equations import misfits
from ptri.posterior.expansion import expand


def errors_deg(R, cameras):
    return torch.rad2deg(rotation_angle(R @ cameras.R.mT))[:, 1:]


def solve(frames, degrees, batch=8, seed=0, **options):
    observations, cameras, joints = observed(batch, 4, frames, seed, **options)
    start = start_near(cameras, joints, degrees)
    return observations, cameras, *adjust(observations, start, BODY)


def test_recovers_exact_rigs_from_exact_points():
    _, cameras, bundle, _ = solve(4, 10.0, noise=1e-5, missing=0.0)
    assert float(errors_deg(bundle.R, cameras).max()) < 0.01
    size = bundle.t.norm(dim=-1)[:, 1:] / cameras.t.norm(dim=-1)[:, 1:]
    relative = size / size.mean(1, keepdim=True)  # scale itself comes from the body prior
    assert torch.allclose(relative, torch.ones_like(relative), atol=1e-3)


def test_starts_25_deg_off_end_where_the_truth_does():
    _, cameras, far, _ = solve(4, 25.0)
    _, _, near, _ = solve(4, 0.0)
    apart = torch.rad2deg(rotation_angle(far.R @ near.R.mT)).amax(1)
    # Measured: at most 0.3 deg for 16 rigs of seeds 0 and 1; a keypoint may change its verdict.
    assert float((apart < 0.5).double().mean()) >= 0.75
    assert float(errors_deg(far.R, cameras).median()) < 1.5


def test_stated_information_matches_the_errors():
    squares = []
    for seed in range(2):
        observations, cameras, bundle, errors = solve(2, 2.0, batch=32, seed=seed)
        at = expand(observations, bundle, errors, BODY)
        size = torch.cat([torch.zeros_like(bundle.t[:, 1:]), bundle.t[:, 1:]], -1).flatten(1)
        chart = torch.cat([at.basis, size.unsqueeze(-1)], dim=-1)
        covariance = chart @ torch.linalg.inv(at.information) @ chart.mT
        covariance = covariance.unflatten(-1, (3, 6)).unflatten(1, (3, 6))
        w = so3_log(cameras.R @ bundle.R.mT)[:, 1:]
        for v in range(3):
            squares.append(mahalanobis_square(w[:, v], covariance[:, v, :3, v, :3]))
    square = torch.cat(squares)
    # 90 % quantile of a chi-square with 3 degrees of freedom; measured 0.84 to 0.95 a seed.
    assert 0.83 < float((square < 6.251).double().mean()) < 0.96
    assert float((9 * square < 6.251).double().mean()) < 0.6  # thrice too narrow would show


def test_outliers_are_recognised():
    observations, cameras, joints = observed(8, 4, 4)
    observations.xy[:, :, 1, 3] += 0.05  # about 60 px at focal length 1150
    bundle, errors = adjust(observations, start_near(cameras, joints, 8.0), BODY)
    _, weight = misfits(bundle, observations, errors)
    seen = observations.inlier > 0
    assert float(weight[:, :, 1, 3][seen[:, :, 1, 3]].mean()) < 0.1
    assert float(weight[seen].mean()) > 0.85
    assert float(errors_deg(bundle.R, cameras).median()) < 1.5


def test_noise_scale_is_estimated():
    observations, cameras, joints = observed(16, 4, 6)
    optimistic = observations._replace(information=9 * observations.information)
    _, errors = adjust(optimistic, start_near(cameras, joints, 3.0), BODY)
    assert float(errors.scale2.median().sqrt()) == pytest.approx(3.0, rel=0.12)
