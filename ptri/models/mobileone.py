"""MobileOne (Vasu et al., CVPR 2023) through timm, as a backbone with one form per purpose.

- *branches*: timm's training form, several branches with a BatchNorm each; most accurate, slow.
- *plain*: one convolution and one BatchNorm per block, a MobileNet-v1-like network; trains three
  times faster on a CPU. Where the branch form has an identity branch, the kernel starts with a unit
  impulse. From published weights the merged kernels go in and BatchNorm keeps fixed statistics.
- *merged*: the same convolutions without BatchNorm, for inference; by `merge_batchnorm`.

Other networks of timm's serve in its place, as they are: to compare with, or to teach it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ptri.errors import UserError
from ptri.models.torchvision_compat import prepare_torchvision

prepare_torchvision()
import timm  # noqa: E402
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD  # noqa: E402
from timm.models.byobnet import MobileOneBlock  # noqa: E402

STRIDES = (4, 8, 16, 32)  # of the maps that `Backbone` returns


class ConvNorm(nn.Sequential):
    """Convolution without bias, then BatchNorm; `merge_batchnorm` merges the two."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")


class Backbone(nn.Module):
    """Feature maps of MobileOne, or of another network, at strides 4, 8, 16 and 32."""

    def __init__(
        self,
        name: str = "mobileone_s0",
        pretrained: bool = False,
        plain: bool = True,
        weights: str | None = None,
    ) -> None:
        """
        Args:
            name: mobileone_s0 to mobileone_s4, or any network of timm's with maps at all strides.
            pretrained: start from ImageNet weights: timm's (a download), or those of `weights`.
            plain: train one convolution per block of MobileOne instead of branches. Pretrained,
                its BatchNorm keeps its statistics: the merged kernels have none of their own.
            weights: file of the network's timm state dict, in place of the download.

        Raises:
            UserError: no such network, one without those maps, or its weights cannot be had.
        """
        super().__init__()
        self.body = _timm_network(name, pretrained, weights)
        if self.body.feature_info.reduction() != list(STRIDES):
            raise UserError(
                f"model.backbone: {name} has no maps at strides {STRIDES}; take another"
            )
        self.channels: list[int] = self.body.feature_info.channels()
        self.plain = plain and bool(_blocks(self.body))
        self.freeze_norm = pretrained and self.plain
        if plain:
            for block in _blocks(self.body):
                _make_plain(block, keep_weights=pretrained)
        self._rescale = _normalisation(name)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W), normalised, to four maps (N, C_i, H / stride_i, W / stride_i)."""
        if self._rescale is not None:
            gain, offset = images.new_tensor(self._rescale)[:, :, None, None]
            images = gain * images + offset
        return self.body(images)

    def train(self, mode: bool = True) -> Backbone:
        """Training mode; frozen BatchNorm stays in evaluation mode."""
        super().train(mode)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


def merge_batchnorm(model: nn.Module) -> nn.Module:
    """A copy for inference whose branches and BatchNorms are merged into single convolutions.

    Works on a backbone or any module that contains one and `ConvNorm`; equal outputs in evaluation
    mode up to rounding. The copy cannot be trained further.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for block in _blocks(model):
        block.reparameterize()  # does nothing in plain form
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ConvNorm):
                merged = nn.utils.fusion.fuse_conv_bn_eval(child.conv, child.norm)
                setattr(parent, name, merged.requires_grad_(False))
    return model


def has_branches(model: nn.Module) -> bool:
    """Whether any MobileOne block is in timm's multi-branch form."""
    return any(block.reparam_conv is None for block in _blocks(model))


def _blocks(model: nn.Module) -> list[MobileOneBlock]:
    return [module for module in model.modules() if isinstance(module, MobileOneBlock)]


def _make_plain(block: MobileOneBlock, keep_weights: bool) -> None:
    """Replaces a block's branches by one `ConvNorm`, in place."""
    has_identity = block.identity is not None
    block.reparameterize()  # also deletes the branches
    fused = block.reparam_conv
    plain = ConvNorm(
        fused.in_channels, fused.out_channels, fused.kernel_size[0], fused.stride[0], fused.groups
    )
    with torch.no_grad():
        if keep_weights:  # statistics 0 and 1 leave the published function unchanged
            plain.conv.weight.copy_(fused.weight)
            plain.norm.bias.copy_(fused.bias)
            plain.norm.running_var.fill_(1 - plain.norm.eps)
        elif has_identity:
            centre = fused.kernel_size[0] // 2
            outputs = torch.arange(fused.out_channels)
            inputs = outputs % plain.conv.weight.shape[1]  # channel within its group
            plain.conv.weight[outputs, inputs, centre, centre] += 1.0
    block.reparam_conv = plain


def _normalisation(name: str) -> tuple[list[float], list[float]] | None:
    """Gain and offset (3,) from images normalised our way to a network's own; None: the same."""
    theirs = timm.get_pretrained_cfg(name)
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if theirs is None or (theirs.mean == mean and theirs.std == std):
        return None
    gain = [ours / other for ours, other in zip(std, theirs.std)]
    offset = [(a - b) / c for a, b, c in zip(mean, theirs.mean, theirs.std)]
    return gain, offset


def _timm_network(name: str, pretrained: bool, weights: str | None) -> nn.Module:
    if not timm.is_model(name):
        names = ", ".join(timm.list_models("mobileone_s*"))
        raise UserError(f"model.backbone: no '{name}'; expected one of {names}, or timm's others")
    options = {"features_only": True, "out_indices": (1, 2, 3, 4)}
    if not pretrained:
        return timm.create_model(name, **options)
    try:
        if weights is not None:  # timm itself would pass over some that are missing
            state = torch.load(weights, map_location="cpu", weights_only=True)
            timm.create_model(name).load_state_dict(state)
            options["pretrained_cfg_overlay"] = {"file": weights}
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # whatever the network, the hub's client and torch.load raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if weights is not None:
            raise UserError(
                f"model.pretrained_file: {weights}: no weights of {name} ({reason}); give a file "
                f"of its timm state dict"
            ) from None
        raise UserError(
            f"model.pretrained: the weights of {name} cannot be downloaded ({reason}); connect to "
            f"the network, put them into the Hugging Face cache, name a file by "
            f"model.pretrained_file, or set model.pretrained=false"
        ) from None
