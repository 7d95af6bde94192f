"""Heads: keypoints and camera samples to joints with covariance; ``model.head`` names one.

The fusion transformer of `ptri.models.fusion` is the one to use. The others answer what it is worth
(ablations: configs/ablations): `algebraic` (weighted triangulation), `volumetric` (a cube of
voxels), `fixed_views` (a perceptron that sees no cameras).
"""

from __future__ import annotations

from torch import nn

from ptri.config import ModelConfig
from ptri.models.fusion import FusionTransformer
from ptri.models.heads.algebraic import AlgebraicHead
from ptri.models.heads.fixed_views import FixedViewsMLP
from ptri.models.heads.volumetric import VolumetricHead


def make_head(model: ModelConfig) -> nn.Module:
    """A head with the interface of `FusionTransformer.forward`.

    Its attribute ``uses_cameras`` says whether it looks at the cameras at all.

    Raises:
        UserError: sizes that do not fit.
    """
    channels = model.head_channels
    if model.head == "algebraic":
        return AlgebraicHead(num_features=channels)
    if model.head == "volumetric":
        return VolumetricHead(
            model.volume_size, model.volume_side, model.volume_width, channels,
            model.volume_features,
        )  # fmt: skip
    if model.head == "fixed_views_mlp":
        return FixedViewsMLP(model.fixed_views, model.fixed_width, channels)
    return FusionTransformer(
        model.fusion_width,
        model.fusion_layers,
        num_features=channels,
        frames=model.fusion_frames,
    )
