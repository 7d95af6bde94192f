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
from ptri.models.sizes import sizes_of


def make_head(model: ModelConfig) -> nn.Module:
    """A head: its ``forward`` takes and gives what that of `FusionTransformer` does.

    Its attribute ``uses_cameras`` says whether it looks at the cameras at all.

    Raises:
        UserError: sizes that do not fit.
    """
    sizes = sizes_of(model)
    channels = sizes.head_channels
    if model.head == "algebraic":
        return AlgebraicHead(num_features=channels)
    if model.head == "volumetric":
        return VolumetricHead(sizes.volume_size, sizes.volume_width, channels)
    if model.head == "fixed_views_mlp":
        return FixedViewsMLP(sizes.fixed_views, sizes.fixed_width, channels)
    return FusionTransformer(
        sizes.fusion_width, sizes.fusion_layers, num_features=channels, frames=sizes.fusion_frames
    )
