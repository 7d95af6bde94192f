"""Losses of the 2D network."""

import math

import numpy as np
import pytest
import torch

from ptri.models import losses


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_divergence(logits, xy, sigma):
    """KL of one heatmap, with the target written out."""
    height, width = logits.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target = (-((x - xy[0]) ** 2 + (y - xy[1]) ** 2) / (2 * sigma**2)).exp()
    target = target / target.sum()
    log_p = logits.flatten().log_softmax(0).view_as(logits)
    return (target * (target.clamp_min(1e-30).log() - log_p)).sum()


def test_divergence_equals_naive():
    logits, xy = draw(2, 3, 12, 10), 3 + 2 * draw(2, 3, 2)
    value = losses.heatmap_divergence(logits, xy, torch.ones(2, 3, dtype=torch.bool))
    expected = [
        sum(naive_divergence(logits[n, j], xy[n, j], 1.5) for j in range(3)) / 3 for n in range(2)
    ]
    torch.testing.assert_close(value, torch.stack(expected), rtol=1e-4, atol=1e-4)


SEEN = torch.ones(1, 1, dtype=torch.bool)


def test_divergence_is_zero_only_at_the_target():
    x = torch.arange(16.0)
    target = -((x[None] - 6.3) ** 2 + (x[:, None] - 8.8) ** 2) / (2 * 1.5**2)
    logits = target[None, None].clone().requires_grad_()
    xy = torch.tensor([[[6.3, 8.8]]])
    value = losses.heatmap_divergence(logits, xy, SEEN)
    value.sum().backward()
    assert abs(float(value.detach())) < 1e-5 and float(logits.grad.abs().max()) < 1e-6
    assert float(losses.heatmap_divergence(logits, xy + 1.0, SEEN).detach()) > 0.3


def test_extreme_logits_give_finite_loss_and_gradient():
    logits = (1e4 * draw(1, 2, 8, 8)).requires_grad_()
    xy = torch.tensor([[[3.0, 3.0], [-500.0, 900.0]]])
    value = losses.heatmap_divergence(logits, xy, torch.ones(1, 2, dtype=torch.bool))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logits.grad).all()


CONFIDENT = torch.eye(2).expand(2, 3, 2, 2)


@pytest.mark.parametrize("loss", [
    lambda e, t, m: losses.heatmap_divergence(e[..., None] * draw(2, 3, 2, 5), t, m),
    losses.coordinate_l1,
    lambda e, t, m: losses.ellipse_quantile(e, CONFIDENT, t, m),
    lambda e, t, m: losses.error_likelihood(e, CONFIDENT, t, m, 1e4),
])  # fmt: skip
def test_hidden_joints_and_nan_truth_do_not_count(loss):
    truth = draw(2, 3, 2, seed=1)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    results = []
    for hidden in (0.0, 1e3, float("nan")):
        estimate = draw(2, 3, 2).requires_grad_()
        changed = torch.where(mask[..., None], truth, truth + hidden)
        value = loss(estimate, changed, mask)
        value.sum().backward()
        assert value.shape == (2,) and float(value[1].detach()) == 0
        assert (estimate.grad[~mask] == 0).all() and torch.isfinite(estimate.grad).all()
        results.append(value.detach())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    # A visible joint whose truth is NaN does not count either.
    nan_truth = truth.clone()
    nan_truth[0, 0] = float("nan")
    assert torch.isfinite(loss(draw(2, 3, 2), nan_truth, mask)).all()


def test_error_likelihood():
    covariance = torch.tensor([[4.0, 1.0], [1.0, 2.0]]).expand(1, 1, 2, 2)
    estimate, truth = torch.zeros(1, 1, 2), torch.tensor([[[1.0, -2.0]]])
    value = losses.error_likelihood(estimate, covariance, truth, SEEN, 1e4, outliers=1e-9)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), covariance[0, 0])
    torch.testing.assert_close(value, -normal.log_prob(truth[0, 0])[None])
    # A gross outlier costs no more than the uniform density, and pulls no more.
    far = torch.full((1, 1, 2), 500.0).requires_grad_()
    value = losses.error_likelihood(far, covariance, truth, SEEN, 1e4, outliers=0.02)
    value.sum().backward()
    assert math.isclose(float(value.detach()), -math.log(0.02 / 1e4), rel_tol=1e-4)
    assert float(far.grad.abs().max()) < 1e-6


def test_confidence_entropy_is_least_at_the_frequency():
    found = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) < 0.7
    confidence = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])[:, None].expand(5, 1000)
    assert losses.confidence_entropy(confidence, found.expand(5, -1)).argmin() == 2
    assert math.isfinite(float(losses.confidence_entropy(torch.ones(1, 1000), found)))


@pytest.mark.parametrize(
    "dim, radius2, wrong", [(2, -2 * math.log(0.1), 0.828), (3, 6.2514, 0.871)]
)
def test_quantile_losses_are_least_where_the_share_is_held(dim, radius2, wrong):
    """Heavy tails: the likelihood's 90 % region holds less, in the image and in space."""
    generator = torch.Generator().manual_seed(dim - 2)
    error = torch.randn(1, 20001, dim, generator=generator)
    error[:, 1::8] *= 8.0  # one in eight is poor
    error[:, 0] = 0  # in space: the root
    square = error[0, 1:].square().sum(-1)
    seen = torch.ones(1, 20001, dtype=torch.bool)
    scales = torch.linspace(0.5, 8, 100)

    def held(loss, unit, *more, **options):
        def value(scale):
            covariance = (unit * scale) ** 2 * torch.eye(dim).expand(1, 20001, dim, dim)
            return float(loss(unit * error, covariance, 0 * error, *more, **options))

        best = scales[int(np.argmin([value(scale) for scale in scales]))]
        return float((square < radius2 * best**2).float().mean())

    if dim == 2:
        quantile = held(losses.ellipse_quantile, 1.0, seen)
        likelihood = held(losses.error_likelihood, 1.0, seen, area=6e4)
    else:  # mm
        quantile = held(losses.joint_quantile, 100.0, 0)
        likelihood = held(losses.joint_likelihood, 100.0, 0)
    assert abs(quantile - 0.9) < 0.01
    assert abs(likelihood - wrong) < 0.02 and abs(likelihood - 0.9) > 0.02
