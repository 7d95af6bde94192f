"""Metrics: invariances, agreement with naive versions, coverage on known laws."""

import numpy as np
import pytest
import torch
from rigs_fixture import normal, random_rotations

from ptri.evaluation import metrics
from ptri.geometry.rotations import rotation_mean, so3_exp, so3_log
from ptri.structures import RigPosterior

ROOT = 6


def people(count=20):
    truth = 400 * normal(count, 17, 3)
    return truth, truth + 40 * normal(count, 17, 3, seed=1)


def test_mpjpe_agrees_with_a_loop_and_ignores_translation():
    truth, estimate = people()
    pairs = zip(estimate.numpy(), truth.numpy())  # the root's zero counts
    naive = [np.linalg.norm(e - e[ROOT] - g + g[ROOT], axis=1).mean() for e, g in pairs]
    error = metrics.mpjpe(estimate, truth)
    np.testing.assert_allclose(error, naive, rtol=1e-12)
    moved = estimate + torch.tensor([100.0, -20, 3000])
    torch.testing.assert_close(metrics.mpjpe(moved, truth), error)
    assert (metrics.joint_l2(moved, truth) > 2000).all()  # the control: this one sees it


def test_pa_mpjpe_ignores_similarities_but_not_mirrors():
    truth, _ = people()
    R = random_rotations(20)
    moved = 0.7 * truth @ R.transpose(-1, -2) + 500
    assert metrics.pa_mpjpe(moved, truth).max() < 1e-9
    assert metrics.n_mpjpe(moved, truth).min() > 50
    mirrored = truth * torch.tensor([-1.0, 1, 1])
    assert metrics.pa_mpjpe(mirrored, truth).min() > 50


def test_alignment_lowers_the_error():
    truth, estimate = people()
    scaled = 1.3 * estimate
    normalised = metrics.n_mpjpe(scaled, truth)
    torch.testing.assert_close(normalised, metrics.n_mpjpe(estimate, truth))
    # Least squares after a similarity leaves less than after a scale about the root.
    least = metrics.pa_mpjpe(scaled, truth)
    assert (least < normalised).all() and (normalised < metrics.mpjpe(scaled, truth)).all()


def test_missing_joints_are_left_out():
    truth, estimate = people(3)
    estimate[0, 2] = torch.nan
    keep = [j for j in range(17) if j != 2]
    expected = (estimate[0, keep] - truth[0, keep]).norm(dim=-1).mean()
    torch.testing.assert_close(metrics.joint_l2(estimate, truth)[0], expected)
    assert torch.isfinite(metrics.pa_mpjpe(estimate, truth)).all()
    aligned = metrics.pa_mpjpe(estimate[:1, keep], truth[:1, keep])
    torch.testing.assert_close(metrics.pa_mpjpe(estimate, truth)[:1], aligned)
    estimate[1] = torch.nan
    for error in (metrics.joint_l2, metrics.pa_mpjpe):
        assert torch.isnan(error(estimate, truth)).tolist() == [False, True, False]


def test_l1_l2_and_masks():
    estimate = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [9.0, 9.0]]])
    truth = torch.zeros(1, 3, 2)
    valid = torch.tensor([[True, True, False]])
    assert metrics.joint_l1(estimate, truth, valid).item() == pytest.approx(1.75)
    assert metrics.joint_l2(estimate, truth, valid).item() == pytest.approx(2.5)
    assert metrics.joint_l2(estimate, truth).item() > 2.5


def test_pair_errors_ignore_the_world_frame_and_scale():
    R, t = random_rotations(5, 4), 1000 * normal(5, 4, 3)
    Q, c = random_rotations(5, 1), 500 * normal(5, 1, 3)
    R_moved, t_moved = R @ Q, 2.5 * (t + (R @ c.unsqueeze(-1)).squeeze(-1))
    assert metrics.rotation_error_deg(R_moved, R).max() < 1e-5
    direction = metrics.translation_direction_error_deg(R_moved, t_moved, R, t)
    assert direction.shape == (5, 6)
    assert direction.max() < 1e-5
    assert not metrics.failures(direction).any()


@pytest.mark.parametrize("angle", [1e-3, 9.9, 10.1, 179.0])
def test_rotation_error_is_the_angle_turned(angle):
    R = random_rotations(7, 3)
    axis = torch.nn.functional.normalize(normal(7, 3), dim=-1)
    turned = R.clone()
    turned[:, 1] = so3_exp(axis * np.deg2rad(angle)) @ R[:, 1]
    error = metrics.rotation_error_deg(turned, R)  # pairs 01, 02, 12
    torch.testing.assert_close(error[:, 0], torch.full((7,), angle, dtype=torch.float64))
    assert error[:, 1].max() < 1e-6
    assert metrics.failures(error)[:, 0].all() == (angle > 10)
    assert metrics.failures(torch.tensor([torch.nan])).all()


def test_opposite_baselines_are_180_degrees_apart():
    R = torch.eye(3).expand(1, 2, 3, 3)
    t = torch.tensor([[[0.0, 0, 0], [100, 0, 0]]])
    assert metrics.translation_direction_error_deg(R, -t, R, t).item() == pytest.approx(180)
    assert torch.isnan(metrics.translation_direction_error_deg(R, t, R, 0 * t)).all()


def test_joint_coverage_is_nominal_on_gaussian_errors():
    truth = torch.zeros(4000, 17, 3, dtype=torch.float64)
    factor = 20 * normal(4000, 17, 3, 3)
    covariance = factor @ factor.transpose(-1, -2) + 4 * torch.eye(3)
    chol = torch.linalg.cholesky(covariance)
    draw = normal(4000, 17, 3, 1, seed=1)
    estimate = (chol @ draw).squeeze(-1)
    estimate[:, ROOT] = 0  # root-relative: the covariance is of joints about the root
    share = metrics.joint_coverage(estimate, covariance, truth).mean(0)
    # 64,000 independent joints: standard error 0.002.
    torch.testing.assert_close(share, torch.tensor(metrics.LEVELS).double(), atol=0.008, rtol=0)
    # Controls: intervals 2 x too narrow, and a covariance that is none.
    narrow = metrics.joint_coverage(estimate, covariance / 4, truth).mean(0)
    assert narrow[1] < 0.7
    assert metrics.joint_coverage(estimate, -covariance, truth).max() == 0


SPREAD = 0.02 * torch.tensor([3.0, 1.0, 0.3])  # rad, anisotropic


def gaussian_posterior(samples, rigs, views, stated=1.0):
    """Truth and samples from the same law around an unknown mean; samples ``stated`` as wide."""
    mean = random_rotations(rigs, views)
    mean[:, 0] = torch.eye(3)
    noise = normal(samples + 1, rigs, views, 3, seed=1)
    noise[:, :, 0] = 0
    noise *= SPREAD
    R = mean @ so3_exp(stated * noise[1:])
    log_weights = torch.full((samples, rigs), -np.log(samples), dtype=torch.float64)
    t, nothing = torch.zeros_like(R[..., 0]), R.new_zeros(samples, rigs, 0)
    posterior = RigPosterior(R, t, log_weights, torch.ones(rigs), nothing)
    return posterior, mean @ so3_exp(noise[0])


def test_rotation_coverage_is_nominal_when_the_posterior_is_right():
    posterior, truth = gaussian_posterior(256, 600, 3)
    share = metrics.rotation_coverage(posterior, truth).mean((0, 1))
    # 1,200 draws: standard errors 0.014 and 0.009.
    assert share[0].item() == pytest.approx(0.5, abs=0.045)
    assert share[1].item() == pytest.approx(0.9, abs=0.03)
    posterior, truth = gaussian_posterior(256, 600, 3, 0.35)
    assert metrics.rotation_coverage(posterior, truth)[..., 1].mean() < 0.5


def test_rotation_coverage_uses_the_weights():
    posterior, truth = gaussian_posterior(2048, 400, 2, 2.0)
    # Samples twice too wide, reweighted to the right law: N(s) / N(2 s) in the tangent space.
    wide = metrics.rotation_coverage(posterior, truth)[..., 0].mean()
    assert wide > 0.8
    mean = rotation_mean(posterior.R[:, :, 1], posterior.log_weights.exp())
    z = so3_log(mean.mT @ posterior.R[:, :, 1]) / SPREAD
    log_weights = (-0.5 * z.square().sum(-1) * (1 - 1 / 4)).log_softmax(0)
    share = metrics.rotation_coverage(posterior._replace(log_weights=log_weights), truth)
    assert share[..., 0].mean().item() == pytest.approx(0.5, abs=0.075)


def test_a_single_sample_has_no_coverage():
    posterior, truth = gaussian_posterior(1, 3, 4)
    assert torch.isnan(metrics.rotation_coverage(posterior, truth)).all()
