"""Builds the 3D model from a configuration, with the weights that it names."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ptri import checkpoint
from ptri.config import Config
from ptri.models.mobileone import fuse
from ptri.models.ptri import PoseModel

_PREFIX_2D = "network2d."


def build_model(config: Config, with_images: bool = True) -> PoseModel:
    """The model with the weights that ``init`` names; strict.

    ``init.checkpoint_3d`` may hold the whole model or lifter and fusion alone;
    ``init.checkpoint_2d`` holds the 2D network, and wins over a whole model's.

    Raises:
        UserError: a missing or corrupt file, or weights of another architecture.
    """
    model = PoseModel(config, with_images)
    init = config.init
    if init.checkpoint_3d is not None:
        weights, _ = checkpoint.load_weights(init.checkpoint_3d)
        if with_images and any(name.startswith(_PREFIX_2D) for name in weights):
            checkpoint.load_state(model, weights, init.checkpoint_3d)
        else:
            weights = {k: v for k, v in weights.items() if not k.startswith(_PREFIX_2D)}
            parts = nn.ModuleDict({"lifter": model.lifter, "fusion": model.fusion})
            checkpoint.load_state(parts, weights, init.checkpoint_3d)
    if with_images and init.checkpoint_2d is not None:
        checkpoint.initialise(model.network2d, init.checkpoint_2d)
    return model


def holds_2d(path: str | Path) -> bool:
    """Whether a file of 3D weights holds the whole model, its 2D network included.

    Raises:
        UserError: a missing or corrupt file.
    """
    return any(name.startswith(_PREFIX_2D) for name in checkpoint.load_weights(path)[0])


def for_inference(model: PoseModel) -> PoseModel:
    """A copy in evaluation mode with its convolutions fused; cannot be trained further."""
    return fuse(model)
