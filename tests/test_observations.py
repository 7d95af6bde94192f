"""Detections: the noise is what it says, and each fault appears as often as configured."""

import math

import pytest
import torch
from scipy import stats

from ptri.geometry.rotations import so3_exp
from ptri.people.bodies import sample_clips
from ptri.people.detections import SimulatedDetections, frame_correlation, simulate_detections
from ptri.people.draws import Draws
from ptri.people.error_model import ErrorModel
from ptri.people.rigs import FAMILY_NAMES, look_at, sample_rigs
from ptri.people.trunk import body_fixed, self_occluded
from ptri.skeleton import H36M17
from ptri.structures import Cameras

QUIET = dict.fromkeys(
    (
        *("definition_mm", "view_bias", "misreport", "rounding", "outlier_rate"),
        *("body_swap_rate", "limb_swap_rate", "missing_rate", "missing_hidden_rate"),
        *("missing_view_rate", "correlated_share"),
    ),
    0.0,
) | {"hidden_noise": 1.0}


def scene(num: int = 30, frames: int = 4, kinds=("gesture", "walk")):
    draws = Draws.from_seeds([(0, i) for i in range(num)])
    joints = sample_clips(draws, frames, 10.0, kinds).joints3d
    family = torch.full((num,), FAMILY_NAMES.index("ring"))
    return draws, joints, sample_rigs(draws, family, joints, 3, 0.0)


def see(num: int = 30, frames: int = 4, exact: bool = False, **options) -> SimulatedDetections:
    draws, joints, rig = scene(num, frames)
    return simulate_detections(draws, ErrorModel(**options), joints, rig.cameras, exact=exact)


def quiet(num: int = 30, frames: int = 4, **options) -> SimulatedDetections:
    """As configured, everything else switched off."""
    return see(num, frames, **(QUIET | options))


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def whitened(error: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    factor = torch.linalg.cholesky(covariance.double())
    return torch.linalg.solve_triangular(factor, error.double().unsqueeze(-1), upper=False)[..., 0]


def spread_of_views(flag: torch.Tensor) -> float:
    """Mean share over the views, each of which has its own."""
    rate = flag.float().mean((1, 3))
    assert float(rate.min()) < 0.03 < 0.3 < float(rate.max())
    return float(rate.mean())


def scale_of(result: SimulatedDetections) -> float:
    """Apparent size in px, from the noise-free projections' height (people are about 1.6 m)."""
    return float((result.clean[..., 1].amax(-1) - result.clean[..., 1].amin(-1)).median())


def test_exact_detections_are_gaussian_with_the_stated_covariance():
    result = see(num=60, exact=True, missing_rate=0.0)
    keypoints = result.keypoints
    assert torch.equal(keypoints.covariance, result.covariance)
    assert (keypoints.confidence == 1).all()
    white = whitened(keypoints.xy - result.clean, keypoints.covariance)
    distance = white.square().sum(-1).flatten().numpy()
    assert stats.kstest(distance, "chi2", args=(2,)).pvalue > 1e-3
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > 1e-3
    # No correlation between the axes, frames, views or joints.
    for other in (white.flip(-1)[..., :1], *(white.roll(1, d)[..., :1] for d in (1, 2, 3))):
        assert abs(correlation(white[..., 0], other)) < 5 / math.sqrt(white[..., 0].numel())
    # The controls: a covariance 10 % off, and its off-diagonal dropped, are noticed.
    assert stats.kstest(distance / 1.1, "chi2", args=(2,)).pvalue < 1e-3
    diagonal = keypoints.covariance * torch.eye(2)
    wrong = whitened(keypoints.xy - result.clean, diagonal).square().sum(-1).flatten().numpy()
    assert stats.kstest(wrong, "chi2", args=(2,)).pvalue < 1e-3


def test_noise_is_anisotropic_and_of_the_stated_size():
    result = quiet(num=60, noise=0.01, clip_spread=0.0, view_spread=0.0, noise_spread=0.0)
    values = torch.linalg.eigvalsh(result.covariance.double())
    ratio = (values[..., 1] / values[..., 0]).sqrt().log()  # 2 |a|, a normal of 0.3
    assert abs(ratio.mean() - 2 * 0.3 * math.sqrt(2 / math.pi)) < 0.02
    area = torch.linalg.det(result.covariance.double()) ** 0.25  # sigma
    head = H36M17.joints.index("head")
    relative = float(area[..., head].median()) / (scale_of(result) / 0.87)  # ankle to crown
    assert relative == pytest.approx(0.8 * 0.01, rel=0.1)
    assert torch.allclose(result.keypoints.covariance, result.covariance, rtol=1e-4)


def test_correlation_over_frames_is_as_configured():
    for share in (1.0, 0.5):
        result = quiet(num=60, frames=12, correlated_share=share, correlation_s=0.4)
        white = whitened(result.keypoints.xy - result.clean, result.covariance)
        for lag in (1, 3):
            expected = share * frame_correlation(0.4, 10.0) ** lag
            assert correlation(white[:, lag:], white[:, :-lag]) == pytest.approx(expected, abs=0.02)
        assert float(white.var()) == pytest.approx(1, abs=0.03)  # stationary from the first frame
        assert float(white[:, 0].var()) == pytest.approx(1, abs=0.06)
    assert frame_correlation(0.4, 30.0) > frame_correlation(0.4, 10.0)
    assert frame_correlation(0.0, 10.0) == 0.0


def test_reported_covariance_follows_the_true_one_but_is_not_it():
    result = quiet(misreport=0.3, rounding=0.5)
    true, said = (
        covariance.diagonal(dim1=-2, dim2=-1).sum(-1).log()
        for covariance in (result.covariance, result.keypoints.covariance)
    )
    assert correlation(true, said) > 0.7
    assert float((said - true).std()) == pytest.approx(0.6, rel=0.1)
    assert torch.linalg.eigvalsh(result.keypoints.covariance.double()).min() > 0


def test_outliers_swaps_and_losses_have_their_rates():
    result = quiet(num=200, frames=2, outlier_rate=0.1)
    assert float(result.outlier.float().mean()) == pytest.approx(0.1, abs=0.01)
    error = (result.keypoints.xy - result.clean).norm(dim=-1)
    assert error[result.outlier].median() > 8 * error[~result.outlier].median()

    result = quiet(num=300, frames=2, body_swap_rate=0.2, noise=0.0005)
    assert float(result.swapped.any(-1).float().mean()) == pytest.approx(0.2, abs=0.04)
    assert not result.swapped[..., H36M17.root].any()
    flipped = result.clean[..., list(H36M17.flip), :]
    near = result.keypoints.xy - torch.where(result.swapped[..., None], flipped, result.clean)
    assert near.norm(dim=-1).max() < 0.03 * scale_of(result)

    limbs = quiet(num=300, frames=2, limb_swap_rate=0.2).swapped
    arms, legs = H36M17.joints.index("left_wrist"), H36M17.joints.index("right_foot")
    assert (limbs[..., arms] != limbs[..., legs]).float().mean() > 0.2
    assert (limbs[..., arms] == limbs[..., H36M17.joints.index("right_elbow")]).all()

    result = quiet(num=100, frames=2, missing_rate=0.15)
    missing = result.keypoints.xy.isnan().any(-1)
    assert float(missing.float().mean()) == pytest.approx(0.15, abs=0.02)
    assert (result.keypoints.confidence[missing] == 0).all()
    view = quiet(num=200, frames=2, missing_view_rate=0.2).keypoints.xy.isnan()
    lost = view.all(-1).all(-1)  # (B, T, V)
    assert torch.equal(lost, view.any(-1).any(-1))
    # One view of three may go.
    assert float(lost.float().mean()) == pytest.approx(0.2 / 3, abs=0.02)
    assert ((~lost).sum(-1) >= 2).all()


def test_gross_outliers_lie_anywhere_in_the_box_and_look_like_good_points():
    off = ("missing_rate", "missing_hidden_rate", "missing_view_rate", "outlier_rate")
    present = dict.fromkeys(off, 0.0)
    plain, result = see(num=200, **present), see(num=200, gross_rate=0.4, **present)
    assert spread_of_views(result.outlier) == pytest.approx(0.2, abs=0.02)
    # All else is as without them, and so is what they report.
    good = ~result.outlier
    assert torch.equal(result.keypoints.xy[good], plain.keypoints.xy[good])
    assert torch.equal(result.keypoints.confidence, plain.keypoints.confidence)
    assert torch.equal(result.keypoints.covariance, plain.keypoints.covariance)
    low, high = result.clean.amin(-2, keepdim=True), result.clean.amax(-2, keepdim=True)
    place = ((result.keypoints.xy - low) / (high - low))[result.outlier]
    assert -0.25 <= float(place.min()) < -0.2 < 1.2 < float(place.max()) <= 1.25
    low, high = place[:, 0].quantile(torch.tensor([0.25, 0.75])).tolist()
    assert low == pytest.approx(0.125, abs=0.05) and high == pytest.approx(0.875, abs=0.05)


def test_views_lose_joints_and_report_flat_confidences_at_rates_of_their_own():
    result = quiet(num=300, drop_rate=0.4, flat_views=0.5)
    missing = result.keypoints.xy.isnan().any(-1)
    assert spread_of_views(missing) == pytest.approx(0.2, abs=0.02)
    confidence = result.keypoints.confidence.masked_fill(missing, torch.nan)[:, 0]  # (B, V, J)
    spread = confidence.nan_to_num(0).amax(-1) - confidence.nan_to_num(1).amin(-1)
    assert float((spread == 0).float().mean()) == pytest.approx(0.5, abs=0.07)


def test_covariances_and_confidences_are_always_finite():
    for options in ({}, {"noise": 0.0}, {"missing_view_rate": 0.9}, {"exact": True}):
        keypoints = see(**options).keypoints
        assert keypoints.covariance.isfinite().all()
        assert torch.linalg.eigvalsh(keypoints.covariance.double()).min() > 0
        assert ((keypoints.confidence >= 0) & (keypoints.confidence <= 1)).all()


def test_confidence_means_something():
    result = see(num=60)
    keypoints = result.keypoints
    seen = ~keypoints.xy.isnan().any(-1)
    error = (keypoints.xy - result.clean).norm(dim=-1)[seen].numpy()
    confidence = keypoints.confidence[seen].numpy()
    assert stats.spearmanr(error, confidence).statistic < -0.3
    assert abs(stats.spearmanr(error, confidence[::-1]).statistic) < 0.1  # the control
    assert confidence[error < 5].mean() > confidence[error > 60].mean() + 0.2
    assert 0.55 < confidence.mean() < 0.9
    # Some outliers are made with confidence, as real detectors make them.
    outliers = keypoints.confidence[result.outlier & seen]
    assert 0.05 < (outliers > 0.7).float().mean() < 0.6


def test_truncated_joints_are_missing():
    draws, joints, rig = scene()
    narrow = rig.size * 0.6
    result = simulate_detections(draws, ErrorModel(**QUIET), joints, rig.cameras, narrow)
    inside = (result.clean >= -0.5) & (result.clean <= narrow[:, None, :, None] - 0.5)
    assert torch.equal(result.keypoints.xy.isnan().any(-1), ~inside.all(-1))
    assert 0.05 < (~inside.all(-1)).float().mean() < 0.95


def test_systematic_offsets_stay_over_frames_and_differ_between_views():
    result = quiet(frames=8, view_bias=0.02, noise=0.0005)
    error = result.keypoints.xy - result.clean
    assert error.mean(1).std(dim=1).mean() > 5 * error.std(dim=1).mean()
    moved = quiet(frames=8, definition_mm=40.0, noise=0.0005)
    shift = (moved.keypoints.xy - moved.clean).norm(dim=-1).mean()
    expected = 0.5 * 40 * 1.4 / 1700 * scale_of(moved) / 0.87  # half strength on average
    assert 0.5 * expected < shift < 1.5 * expected


def test_definition_offsets_turn_with_the_body():
    joints = scene(num=4)[1]
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(4, 1, 17, 1, generator=generator)
    trunk = torch.randn(4, 1, 17, 3, generator=generator)
    R = so3_exp(torch.randn(4, 1, 3, generator=generator)).transpose(-1, -2)
    turned = body_fixed(joints @ R, along, trunk)
    assert torch.allclose(turned, body_fixed(joints, along, trunk) @ R, atol=1e-4)
    assert not torch.allclose(turned, body_fixed(joints, along, trunk), atol=0.1)


def test_hands_behind_the_back_are_hidden_from_the_front():
    joints = scene(num=1, frames=1, kinds=("stand",))[1].clone()
    centre = torch.tensor([[[0.0, 4000, 900], [0.0, -4000, 900]]])  # behind, in front
    R = look_at(centre, torch.tensor([0.0, 0, 900]), torch.zeros(1, 2))
    cameras = Cameras(torch.eye(3).expand_as(R), R, -(R @ centre.unsqueeze(-1)).squeeze(-1))
    hip, thorax, wrist = (H36M17.joints.index(n) for n in ("hip", "thorax", "left_wrist"))
    joints[..., wrist, :] = (joints[..., hip, :] + joints[..., thorax, :]) / 2
    joints[..., wrist, 1] += 250
    assert self_occluded(joints, cameras)[0, 0, :, wrist].tolist() == [False, True]
    joints[..., wrist, 0] += 500  # beside the trunk
    assert not self_occluded(joints, cameras)[0, 0, :, wrist].any()
    hidden = quiet(hidden_noise=3.0)
    factor = (hidden.covariance[..., 0, 0] / quiet().covariance[..., 0, 0]).sqrt()
    assert set(factor.round(decimals=2).unique().tolist()) == {1.0, 3.0}
