"""Heatmap decoding and the 2D network."""

import math

import pytest
import torch
from scipy.stats import chi2
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ptri.config import ModelConfig
from ptri.errors import UserError
from ptri.evaluation.metrics import mahalanobis_square
from ptri.models import heatmap, losses, mobileone
from ptri.models.heatmap import Reliability, heatmap_moments
from ptri.models.mobileone import STRIDES, Backbone, has_branches, merge_batchnorm
from ptri.models.network2d import Network2D
from ptri.skeleton import H36M17


def gaussian_logits(centre, covariance, height=64, width=48):
    """Log density of Gaussians (N, J) at pixel centres; heatmap px."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    offset = torch.stack([x, y], -1) - centre[..., None, None, :]  # (N, J, h, w, 2)
    inverse = torch.linalg.inv(covariance)[..., None, None, :, :]
    return -0.5 * (offset.unsqueeze(-2) @ inverse @ offset.unsqueeze(-1)).squeeze(-1).squeeze(-1)


def random_centres(shape):
    generator = torch.Generator().manual_seed(0)
    return 10.0 + torch.tensor([28.0, 44.0]) * torch.rand(*shape, 2, generator=generator)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_decoding_is_exact_on_gaussians():
    centre = random_centres((4, 50))
    sigma = 1.5
    logits = gaussian_logits(centre, sigma**2 * torch.eye(2).expand(4, 50, 2, 2))
    moments = heatmap.heatmap_moments(logits)
    truth = (centre + 0.5) * 4 - 0.5
    worst = (heatmap.heatmap_to_image(moments.mean) - truth).abs().max()
    assert worst < 0.03, worst  # image px; measured 0.014
    torch.testing.assert_close(heatmap.image_to_heatmap(truth), centre)
    # The control: pixel centres alone are off by up to 2 px.
    assert (heatmap.heatmap_to_image(centre.round()) - truth).abs().max() > 1.5


def test_moments_follow_the_peak():
    """Covariance orientation, and a second peak that changes mass but not position."""
    centre = random_centres((1, 30))
    covariance = torch.tensor([[1.6, 0.9], [0.9, 1.2]])
    logits = gaussian_logits(centre, covariance.expand(1, 30, 2, 2))
    moments = heatmap_moments(logits)
    assert (moments.covariance - covariance).abs().max() < 0.2
    torch.testing.assert_close(moments.probability.sum((-1, -2)), torch.ones(1, 30))
    assert (moments.mass > 0.95).all()
    other = (centre + torch.tensor([0.0, 25.0])) % torch.tensor([48.0, 64.0])
    two = torch.logaddexp(logits, gaussian_logits(other, covariance.expand(1, 30, 2, 2)) - 0.7)
    double = heatmap_moments(two)
    assert (double.mean - moments.mean).abs().max() < 0.1
    assert ((double.mass - 0.666).abs() < 0.08).all()


@pytest.mark.parametrize("kind", ["uniform", "one pixel", "corner", "huge", "tie"])
def test_extreme_heatmaps_stay_finite(kind):
    logits = torch.zeros(1, 2, 16, 16)
    if kind == "one pixel":
        logits[..., 7, 7] = 1e4
    elif kind == "corner":
        logits[..., 0, 15] = 50.0
    elif kind == "huge":
        logits = 1e6 * noise(1, 2, 16, 16)
    elif kind == "tie":
        logits[..., 3, 3] = logits[..., 12, 12] = 30.0
    logits.requires_grad_()
    moments = heatmap_moments(logits)
    covariance, confidence = Reliability(3, 2)(moments, torch.randn(1, 3, 16, 16))
    (covariance.sum() + confidence.sum() + moments.mean.sum()).backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(covariance).all() and torch.isfinite(moments.mean).all()
    assert (torch.linalg.eigvalsh(covariance) > 0).all()
    assert ((moments.mean >= 0) & (moments.mean <= 15)).all()


def test_gradient_of_position_against_differences():
    centre = random_centres((1, 3))
    logits = gaussian_logits(centre, 2.0 * torch.eye(2).expand(1, 3, 2, 2)).double()

    def total_x(values):
        return heatmap_moments(values).mean[..., 0].sum()

    direction = noise(*logits.shape, seed=1).double()
    _, expected = torch.autograd.functional.jvp(total_x, logits, direction)
    change = total_x(logits + 1e-6 * direction) - total_x(logits - 1e-6 * direction)
    # The window is fixed in the gradient and moves in the difference: its effect is small.
    assert abs(change / 2e-6 - expected) < 0.05 * abs(expected)


def test_learned_covariance_is_calibrated():
    """Errors larger than the heatmaps say, by a factor that differs between joints and images."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    joints, draw = 4, 512
    factor = torch.tensor([0.3, 0.6, 1.0, 2.0])

    def scene():
        wide = 0.7 + torch.rand(draw, joints, 1, generator=generator)  # of the heatmap
        sigma = wide * torch.tensor([1.0, 0.6])
        centre = 10 + 12 * torch.rand(draw, joints, 2, generator=generator)
        error = factor[:, None] * sigma * torch.randn(draw, joints, 2, generator=generator)
        logits = gaussian_logits(centre, torch.diag_embed(sigma**2), 32, 32)
        return heatmap_moments(logits), centre + error

    reliability = Reliability(2, joints)
    features = torch.zeros(draw, 2, 32, 32)
    optimizer = torch.optim.Adam(reliability.parameters(), lr=0.03)
    everything = torch.ones(draw, joints, dtype=torch.bool)

    def covers():
        moments, truth = scene()
        covariance, _ = reliability(moments, features)
        square = mahalanobis_square(truth - moments.mean, covariance)
        return (square <= chi2.ppf(0.9, 2)).float().mean(0)

    before = covers()
    moments, truth = scene()
    for _ in range(80):
        covariance, _ = reliability(moments, features)
        loss = losses.error_likelihood(moments.mean, covariance, truth, everything, area=1e4)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    after = covers()
    # The control: before training certain joints are over-covered, uncertain ones under-covered.
    assert before.max() > 0.99 and before.min() < 0.5
    # 512 draws: standard deviation 0.013; measured 0.88 to 0.92 over seeds.
    assert ((after > 0.86) & (after < 0.94)).all(), after


def small_network(**changes):
    torch.manual_seed(0)
    return Network2D(ModelConfig(**changes))


def test_network_contract_and_gradients():
    network = small_network().train()
    keypoints, logits, features, _ = network(noise(2, 3, 64, 96))
    assert logits.shape == (2, 17, 16, 24) and features.shape == (2, 64, 16, 24)
    assert keypoints.xy.shape == (2, 17, 2) and keypoints.covariance.shape == (2, 17, 2, 2)
    assert keypoints.confidence.shape == (2, 17)
    assert ((keypoints.confidence > 0) & (keypoints.confidence < 1)).all()
    assert (torch.linalg.eigvalsh(keypoints.covariance) > 0).all()
    total = keypoints.xy.square().mean() + keypoints.covariance.diagonal(0, -2, -1).log().mean()
    stem = next(network.backbone.parameters())
    assert float(torch.autograd.grad(total, stem)[0].abs().max()) > 0


def test_isolated_uncertainty_trains_only_itself():
    network = small_network().train()
    with torch.no_grad():
        network.reliability.output.weight.normal_()
    for isolate in (True, False):
        network.zero_grad()
        keypoints = network(noise(2, 3, 64, 64), isolate_uncertainty=isolate).keypoints
        (keypoints.covariance.log().nan_to_num().sum() + keypoints.confidence.sum()).backward()
        assert float(network.reliability.output.weight.grad.abs().max()) > 0
        assert (next(network.head.parameters()).grad is None) == isolate


def test_fused_network_equals_unfused():
    network, images = small_network(), noise(4, 3, 64, 64)
    with torch.no_grad():
        for weight in (network.head.heatmaps.weight, network.head.context.output.weight):
            nn.init.normal_(weight, std=0.3)
        for _ in range(5):
            network.train()(images)  # statistics
        network.eval()
        before, after = network(images), merge_batchnorm(network)(images)
    torch.testing.assert_close(before.logits, after.logits, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(before.keypoints.xy, after.keypoints.xy, rtol=0, atol=0.02)


def test_flip_test_is_symmetric():
    network, images = small_network(flip_test=True).eval(), noise(2, 3, 64, 64)
    with torch.no_grad():
        straight, mirrored = network(images), network(images.flip(-1))
        network.flip_test = False
        plain = network(images)
    swapped = mirrored.logits.flip(-1)[:, list(H36M17.flip)]
    torch.testing.assert_close(straight.logits, swapped)
    assert not torch.allclose(straight.logits, plain.logits)


def test_image_size_must_fit():
    with pytest.raises(UserError, match=r"data.image_size.*100 x 64.*32"):
        small_network()(torch.zeros(1, 3, 64, 100))


def test_context_starts_as_nothing_and_then_reaches_everywhere():
    network = small_network().eval()
    context = network.head.context
    coarse = network.backbone(noise(1, 3, 128, 128))[-1].detach().requires_grad_()
    assert not context(coarse).any()
    nn.init.normal_(context.output.weight)
    context(coarse)[0, :, 0, 0].square().sum().backward()
    assert (coarse.grad.abs().amax(1) > 0).all()  # of all 4 x 4 pixels


@pytest.mark.parametrize("name, expected", [("mobileone_s0", 358e6), ("mobileone_s4", 3960e6)])
def test_head_is_light(name, expected):
    """The head spends under a third of its backbone's multiply-adds at 256 px."""
    network = merge_batchnorm(small_network(backbone=name))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 256, 256))
    counts = counter.get_flop_counts()
    backbone, head = (
        sum(counts[f"Network2D.{part}"].values()) / 2 for part in ("backbone", "head")
    )
    assert head < 0.25 * backbone  # measured 0.2 of s0, 0.02 of s4
    assert math.isclose(backbone, expected, rel_tol=0.02)


def random_statistics(model, seed=0):
    """BatchNorms as after training, so that merging them matters."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.6, 1.4),
                (module.weight.data, 0.4, 0.8),
                (module.bias.data, -0.1, 0.2),
            ):
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    "name, plain", [("mobileone_s0", True), ("mobileone_s0", False), ("mobileone_s4", True)]
)
def test_fused_equals_unfused(name, plain):
    model = random_statistics(Backbone(name, plain=plain)).eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before, fused = model(images), merge_batchnorm(model)
        after = fused(images)
    assert [tuple(x.shape) for x in before] == [
        (1, count, 64 // stride, 96 // stride) for count, stride in zip(model.channels, STRIDES)
    ]
    for x, y in zip(before, after):  # measured 5e-6 of the range
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert has_branches(model) != plain and not has_branches(fused)
    trained = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    trained.bias.data += 1.0  # the copy is a copy
    assert torch.equal(fused(images)[0], after[0])


def test_plain_and_branches_fuse_to_the_same_network():
    plain, branches = (
        [(name, p.shape) for name, p in merge_batchnorm(Backbone(plain=form)).named_parameters()]
        for form in (True, False)
    )
    assert plain == branches and len(plain) == 2 * 43


def test_plain_form_keeps_published_function(monkeypatch):
    """Pretrained branches, put into plain blocks, compute the same, also in training mode."""
    published = random_statistics(
        mobileone.timm.create_model("mobileone_s0", features_only=True, out_indices=(1, 2, 3, 4))
    ).eval()
    monkeypatch.setattr(mobileone, "_timm_network", lambda *_: published)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = published(images)
        model = Backbone(pretrained=True, plain=True).train()
        after = model(images)
    for x, y in zip(before, after):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)


def test_signal_and_gradient_pass_through_all_plain_blocks():
    torch.manual_seed(0)
    model = Backbone(plain=True).train()
    maps = model(torch.randn(4, 3, 64, 64))
    assert all(0.2 < float(x.detach().std()) < 5 for x in maps)
    sum(x.square().mean() for x in maps).backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_unknown_backbone_and_failed_download(monkeypatch):
    with pytest.raises(UserError, match=r"mobileone_s9.*mobileone_s0"):
        Backbone("mobileone_s9")

    def offline(name, pretrained=False, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(mobileone.timm, "create_model", offline)
    with pytest.raises(UserError, match=r"model.pretrained.*no route to host"):
        Backbone("mobileone_s0", pretrained=True)
