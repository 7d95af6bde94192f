"""MobileOne's three forms: branches, plain, fused."""

import pytest
import torch
from torch import nn

from ptri.errors import UserError
from ptri.models import mobileone
from ptri.models.mobileone import STRIDES, Backbone, has_branches, merge_batchnorm


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
