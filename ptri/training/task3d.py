"""The 3D task: lifter, rig posterior and fusion, from generated keypoints or from images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptri.config import Config
from ptri.data.h36m import H36M, open_split
from ptri.data.loaders import TrainLoader
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.models.weights import build_around, build_model
from ptri.structures import UNKNOWN_DETECTOR
from ptri.training import validation3d
from ptri.training.batches3d import Batch, generated_batch, head_alone, lifter_alone
from ptri.training.losses3d import generated_losses, image_losses
from ptri.training.solved_scenes import Pool, open_pool

RATE_2D = 0.1  # learning rate of the 2D network over that of the rest


class RigTask:
    """Trains `PoseModel`; the engine's `Task` protocol."""

    monitor = "mpjpe"
    epoch: int | None = None
    idle_weights = True  # steps take turns and train different parts

    def __init__(self) -> None:
        self._config: Config | None = None
        self._train: TrainLoader | None = None
        self._share = (0, 1)
        self._test: H36M | None = None
        self._pool: Pool | None = None

    def build_model(self, config: Config) -> nn.Module:
        """The 3D model, from ``init`` where that is set; without images, no 2D network."""
        self._config = config
        model = build_parts(config, with_images=config.data.kind != "generated")
        if head_alone(config):
            check_head_alone(config)
            model.lifter.requires_grad_(False)
            if config.generated.pool:
                self._pool = open_pool(model, config)
        if lifter_alone(config):
            self.monitor = "lift"
            model.fusion.requires_grad_(False)
        if model.network2d is not None and config.train.freeze_2d:
            model.network2d.requires_grad_(False)
        elif model.network2d is not None:
            # What was known of its weights is not known of those to come.
            model.detector = UNKNOWN_DETECTOR
        return model

    def parameter_groups(self, model: nn.Module, config: Config) -> list[dict[str, Any]]:
        """Matrices decay, biases do not; the 2D network learns at a tenth of the rate."""
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = []
        for of_2d, rate in ((True, RATE_2D), (False, 1.0)):
            weights = [p for name, p in trained if name.startswith("network2d.") == of_2d]
            options = {"lr": rate * config.train.lr}
            groups.append({"params": [p for p in weights if p.ndim >= 2], **options})
            groups.append(
                {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0, **options}
            )
        return [group for group in groups if group["params"]]

    def steps_per_epoch(self, config: Config) -> int:
        """``train.steps_per_epoch``, or those of one pass over the images (generated: 100)."""
        if config.data.kind == "generated":
            return config.train.steps_per_epoch or 100
        self._open_test(config)
        return config.train.steps_per_epoch or len(self._open_train(config, 0, 1))

    def train_loader(
        self, config: Config, epoch: int, rank: int, world: int, start_step: int
    ) -> Iterator[Any]:
        """This rank's share of each global batch."""
        steps = self.steps_per_epoch(config)
        position, end = epoch * steps + start_step, (epoch + 1) * steps
        if config.data.kind == "generated":
            for step in range(position, end):
                yield generated_batch(config, epoch, step, rank, world, self._pool)
        else:
            yield from self._open_train(config, rank, world).between(position, end)

    def training_step(self, model: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        """Losses (B,) of a batch; "loss" is their weighted sum."""
        assert self._config is not None, "build_model comes first"
        losses = generated_losses if isinstance(batch, Batch) else image_losses
        return losses(model, batch, step, self._config)

    @torch.no_grad()
    def validate(self, model: nn.Module, config: Config) -> dict[str, float]:
        """Joint and rotation errors of unseen people; of unseen rig families where generated."""
        if lifter_alone(config):
            return validation3d.validate_lifter(model, config)
        if config.data.kind == "generated":
            return validation3d.validate_generated(model, config)
        return validation3d.validate_images(model, self._open_test(config), config)

    @torch.no_grad()
    def pictures(self, model: nn.Module, config: Config) -> dict[str, np.ndarray]:
        """Skeletons from two sides, estimate and truth; heatmaps where there are images."""
        if lifter_alone(config):
            return {}
        if config.data.kind == "generated":
            return validation3d.draw_generated(model, config)
        return validation3d.draw_images(model, self._open_test(config), config)

    def _open_train(self, config: Config, rank: int, world: int) -> TrainLoader:
        if self._train is None or (rank, world) != self._share:
            self._share = (rank, world)
            data = open_split(config, "train")
            low = config.data.min_views
            high = len(data.index.cameras)
            self._train = TrainLoader(
                data,
                config.train.batch_size,
                config.run.seed,
                rank,
                world,
                config.data.workers,
                num_views=(min(low, high), high),
            )
        return self._train

    def _open_test(self, config: Config) -> H36M:
        if self._test is None:
            self._test = open_split(config, "test")
        return self._test


def build_parts(config: Config, with_images: bool) -> PoseModel:
    """The model of ``init``, but for a new lifter or a new head."""
    new = config.train.new
    if new == "nothing":
        return build_model(config, with_images)
    if config.init.checkpoint_3d is None:
        raise UserError(
            f"train.new: {new}: there is no other part to keep; name init.checkpoint_3d, or leave "
            "train.new out"
        )
    return build_around(config, "fusion" if new == "lifter" else "lifter", with_images)


def check_head_alone(config: Config) -> None:
    """Checks a run that trains the head alone.

    Raises:
        UserError: epochs of the lifter, or a pool without a trained lifter.
    """
    if config.train.lifter_epochs:
        why = "generated.pool" if config.generated.pool else f"model.head={config.model.head}"
        raise UserError(
            f"train.lifter_epochs: {config.train.lifter_epochs}, but with {why} the lifter is not "
            "trained; set it to 0"
        )
    if config.generated.pool and config.init.checkpoint_3d is None:
        raise UserError(
            "generated.pool: its rigs are solved from the lifter's skeletons; name the weights of "
            "a trained lifter in init.checkpoint_3d"
        )
