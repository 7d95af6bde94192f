"""The 3D task: lifter, rig posterior and fusion, from generated keypoints or from images."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptri.config import Config
from ptri.data.loaders import TrainLoader, num_batches
from ptri.data.multiview import MultiView, open_split
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.models.weights import build_around, build_model
from ptri.people.scenes import draw_num_views, generate_batch
from ptri.posterior.moments import posterior_from_cameras
from ptri.structures import UNKNOWN_DETECTOR
from ptri.training import validation3d
from ptri.training.losses3d import Batch, generated_losses, image_losses
from ptri.training.optimizer import decaying_groups
from ptri.training.solved_scenes import Pool, draw, open_pool
from ptri.training.state import Task

RATE_2D = 0.1  # learning rate of the 2D network over that of the rest


class RigTask(Task):
    """Trains `PoseModel`."""

    monitor = "mpjpe"
    idle_weights = True  # steps take turns and train different parts

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.data.mix:
            raise UserError("data.mix: sources of single images, for train2d.py only; leave it out")
        self.generated = config.data.kind == "generated"
        self.pool: Pool | None = None
        self._loader: TrainLoader | None = None

    def build_model(self) -> nn.Module:
        """The 3D model, from ``init`` where that is set; without images, no 2D network."""
        config = self.config
        model = build_parts(config, with_images=not self.generated)
        if head_alone(config):
            check_head_alone(config)
            model.lifter.requires_grad_(False)
            if config.generated.pool:
                self.pool = open_pool(model, config)
        if lifter_alone(config):
            self.monitor = "lift"
            model.fusion.requires_grad_(False)
        if model.network2d is not None and config.train.freeze_2d:
            model.network2d.requires_grad_(False)
        elif model.network2d is not None:
            # What was known of its weights is not known of those to come.
            model.detector = UNKNOWN_DETECTOR
        return model

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Matrices decay, biases do not; the 2D network learns at a tenth of the rate."""
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = []
        for of_2d, rate in ((True, RATE_2D), (False, 1.0)):
            weights = [p for name, p in trained if name.startswith("network2d.") == of_2d]
            groups += decaying_groups(weights, lr=rate * self.config.train.lr)
        return [group for group in groups if group["params"]]

    def steps_per_epoch(self) -> int:
        """``train.steps_per_epoch``, or those of one pass over the images (generated: 100)."""
        train = self.config.train
        if self.generated:
            return train.steps_per_epoch or 100
        one_pass = num_batches(self.data["train"], train.batch_size)
        return train.steps_per_epoch or one_pass

    def batches(self, first: int, end: int, rank: int = 0, world: int = 1) -> Iterator[Any]:
        """Samples of images, or `Batch` of generated keypoints."""
        config = self.config
        if self.generated:
            epoch = first // self.steps_per_epoch()
            for step in range(first, end):
                yield generated_batch(config, epoch, step, rank, world, self.pool)
            return
        if self._loader is None:
            data, size = self.data["train"], config.train.batch_size
            high = len(data.index.cameras)
            views = min(config.data.min_views, high), high
            seed, workers = config.run.seed, config.data.workers
            self._loader = TrainLoader(data, size, seed, rank, world, workers, views)
        yield from self._loader.between(first, end)

    def training_step(self, model: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        """Losses (B,) of a batch; "loss" is their weighted sum."""
        losses = generated_losses if self.generated else image_losses
        return losses(model, batch, step, self.config)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Joint and rotation errors of unseen people; of unseen rig families where generated."""
        if lifter_alone(self.config):
            return validation3d.validate_lifter(model, self.config)
        if self.generated:
            return validation3d.validate_generated(model, self.config)
        return validation3d.validate_images(model, self.data["test"], self.config)

    @torch.no_grad()
    def pictures(self, model: nn.Module) -> dict[str, np.ndarray]:
        """Skeletons from two sides, estimate and truth; heatmaps where there are images."""
        if lifter_alone(self.config):
            return {}
        if self.generated:
            return validation3d.draw_generated(model, self.config)
        return validation3d.draw_images(model, self.data["test"], self.config)

    @functools.cached_property
    def data(self) -> dict[str, MultiView]:
        """The images of both splits, checked."""
        return {split: open_split(self.config, split) for split in ("test", "train")}


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


def head_alone(config: Config) -> bool:
    """Whether no step of a run on generated keypoints trains or needs the lifter."""
    blind = config.model.head == "fixed_views_mlp"
    return config.data.kind == "generated" and (blind or config.generated.pool is not None)


def lifter_alone(config: Config) -> bool:
    """Whether no step of a run trains anything but the lifter."""
    return config.data.kind == "generated" and config.train.lifter_epochs >= config.train.epochs


def generated_batch(
    config: Config,
    epoch: int,
    step: int,
    rank: int = 0,
    world: int = 1,
    pool: Pool | None = None,
) -> Batch:
    """This rank's share of a step's scenes.

    The first epochs train the lifter on many single frames. Then steps take turns: frames alone,
    frames alone with the true cameras, and pooled frames, so that the fusion learns from rigs
    that are uncertain, exact and in between. Scenes of a pool take the same turns.
    """
    if pool is not None:
        scene, posterior = draw(pool, config, step, rank, world)
        return Batch(scene, posterior=posterior)
    train, seed = config.train, config.run.seed
    num_views = draw_num_views(config, seed, step)
    lift_only = epoch < train.lifter_epochs
    turn = step % 3
    num_frames, size = 1, train.batch_size
    if lift_only:
        num_views, size = train.lifter_views, train.batch_size * train.lifter_batch
    elif turn == 2 and train.max_frames > 1:
        num_frames = 2 ** (1 + step // 3 % int(math.log2(train.max_frames)))
        size = max(train.batch_size // num_frames, 1)
    if size % world:
        raise UserError(
            f"train.batch_size: {train.batch_size} scenes, or {size} of {num_frames} frames, do "
            f"not share out to {world} processes; make it a multiple of train.max_frames times "
            "the number of processes"
        )
    share = size // world
    scene = generate_batch(
        config, seed, step, share, num_views, num_frames, first=rank * share, split="train"
    )
    # A head that looks at no cameras needs none solved.
    posterior = posterior_from_cameras(scene.cameras) if head_alone(config) else None
    return Batch(scene, lift_only, not lift_only and turn == 1, posterior)
