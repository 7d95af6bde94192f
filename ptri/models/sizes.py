"""Sizes of the networks: `model.sizes`, for those who change an architecture.

A file of weights says in its metadata which it was made with.
"""

from __future__ import annotations

from dataclasses import dataclass

from ptri.config import ModelConfig
from ptri.fields import Section, build, number


@dataclass(frozen=True)
class Sizes(Section):
    NAME = "model.sizes"

    head_channels: int = number(64, 8)  # 2D: of the up-sampling head and of the feature map
    context: bool = True  # 2D: attention over the map at stride 32 in the head
    lifter_width: int = number(128, 8)  # of the transformer that lifts one view; a multiple of 4
    lifter_blocks: int = number(4, 1)  # attention over joints and a perceptron in each
    fusion_width: int = number(96, 8)  # of the fusion transformer; a multiple of 4
    fusion_layers: int = number(3, 1)  # attention over views, then over joints, in each
    fusion_frames: int = number(27, 0)  # odd; of a clip, that a frame's joints are fused from; 0:
    # each frame alone
    volume_size: int = number(20, 4)  # voxels a side of the volumetric head; a multiple of 2
    volume_width: int = number(16, 4)  # channels of its convolutions; a multiple of 4
    fixed_views: int = number(4, 1)  # views of the fixed_views_mlp head, no more and no fewer
    fixed_width: int = number(512, 8)  # of its hidden layers


def sizes_of(config: ModelConfig) -> Sizes:
    """The sizes that ``model.sizes`` sets, the others at their defaults."""
    return build(Sizes, config.sizes)
