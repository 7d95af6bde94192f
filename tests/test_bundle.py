import pytest
import torch
from rigs_fixture import BODY, observed, starts_near

from ptri.geometry import bundle as adjustment
from ptri.geometry.bundle import Bundle, Observations
from ptri.geometry.rotations import rotation_angle, so3_log


def flat(starts):
    return Bundle(*(value.flatten(0, 1) for value in starts))


def errors_deg(R, cameras):
    return torch.rad2deg(rotation_angle(R @ cameras.R.mT))[:, 1:]


def solve(frames, degrees, batch=8, views=4, seed=0, **options):
    observations, cameras, joints = observed(batch, views, frames, seed, **options)
    start = flat(starts_near(cameras, joints, degrees, count=1))
    bundle, scale2, cost = adjustment.adjust(observations, start, BODY)
    return observations, cameras, joints, bundle, scale2, cost


def test_recovers_exact_rigs_from_exact_points():
    _, cameras, _, bundle, _, _ = solve(4, 10.0, noise=1e-5, missing=0.0)
    assert float(errors_deg(bundle.R, cameras).max()) < 0.01
    size = bundle.t.norm(dim=-1)[:, 1:] / cameras.t.norm(dim=-1)[:, 1:]
    relative = size / size.mean(1, keepdim=True)  # scale itself comes from the body prior
    assert torch.allclose(relative, torch.ones_like(relative), atol=1e-3)


def test_most_starts_12_deg_off_end_where_the_truth_does():
    *_, cameras, _, far, _, far_cost = solve(4, 12.0)
    *_, near_cost = solve(4, 0.0)
    assert float((far_cost < near_cost + 1.0).double().mean()) >= 0.75
    assert float(errors_deg(far.R, cameras).median()) < 1.5


def test_stated_information_matches_the_errors():
    squares = []
    for seed in range(2):
        observations, cameras, _, bundle, scale2, _ = solve(2, 2.0, batch=32, seed=seed)
        one = torch.ones_like(scale2)
        information, _ = adjustment.camera_information(observations, bundle, scale2, BODY, one)
        covariance = torch.linalg.inv(information).unflatten(-1, (3, 6)).unflatten(1, (3, 6))
        turn = cameras.R @ bundle.R.mT
        w = so3_log(turn)[:, 1:]
        for v in range(3):
            block = covariance[:, v, :3, v, :3]
            squares.append((w[:, v, None] @ torch.linalg.solve(block, w[:, v, :, None])).flatten())
    square = torch.cat(squares)
    # 90 % quantile of a chi-square with 3 degrees of freedom; measured 0.84 to 0.95 a seed.
    assert 0.83 < float((square < 6.251).double().mean()) < 0.96
    assert float((9 * square < 6.251).double().mean()) < 0.6  # thrice too narrow would show


def test_outliers_are_recognised():
    observations, cameras, joints = observed(8, 4, 4)
    xy = observations.xy.clone()
    xy[:, :, 1, 3] += 0.05  # about 60 px at focal length 1150
    spoiled = observations._replace(xy=xy)
    start = flat(starts_near(cameras, joints, 8.0, count=1))
    bundle, scale2, _ = adjustment.adjust(spoiled, start, BODY)
    _, weight = adjustment.camera_information(
        spoiled, bundle, scale2, BODY, torch.ones_like(scale2)
    )
    seen = observations.inlier > 0
    assert float(weight[:, :, 1, 3][seen[:, :, 1, 3]].mean()) < 0.1
    assert float(weight[seen].mean()) > 0.85
    assert float(errors_deg(bundle.R, cameras).median()) < 1.5


def test_noise_scale_is_estimated():
    observations, cameras, joints = observed(16, 4, 6)
    optimistic = observations._replace(information=9 * observations.information)
    start = flat(starts_near(cameras, joints, 3.0, count=1))
    _, scale2, _ = adjustment.adjust(optimistic, start, BODY)
    assert float(scale2.median().sqrt()) == pytest.approx(3.0, rel=0.12)


def test_batch_elements_do_not_influence_each_other():
    observations, cameras, joints = observed(4, 3, 2)
    start = flat(starts_near(cameras, joints, 8.0, count=1))
    together, _, _ = adjustment.adjust(observations, start, BODY)
    part = Observations(*(v[2:3] for v in observations[:3]), observations.log_outlier)
    alone, _, _ = adjustment.adjust(part, Bundle(*(v[2:3] for v in start)), BODY)
    assert torch.allclose(alone.R[0], together.R[2], atol=1e-6)


def test_errors_common_to_all_frames_make_a_frame_worth_less():
    observations, cameras, joints = observed(4, 4, 10, missing=0.0)
    bias = 0.004 * torch.randn(4, 1, 4, 17, 2, generator=torch.Generator().manual_seed(0))
    biased = observations._replace(xy=observations.xy + bias.double())
    start = flat(starts_near(cameras, joints, 2.0, count=1))
    found = []
    for data in (observations, biased):
        bundle, scale2, _ = adjustment.adjust(data, start, BODY)
        one = torch.ones_like(scale2)
        _, weight = adjustment.camera_information(data, bundle, scale2, BODY, one)
        found.append(float(adjustment.frame_worth(data, bundle, weight, scale2).mean()))
    assert found[0] > 0.6
    assert found[1] < 0.5 * found[0]
