"""A task, as the engine sees it, and a run's state: built, saved, restored to the bit."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptri import checkpoint
from ptri import config as configuration
from ptri.config import Config
from ptri.errors import UserError
from ptri.models.weights import detector_to_meta
from ptri.system import World
from ptri.training import system
from ptri.training.optimizer import amp_type, learning_rate_factor, make_optimizer
from ptri.training.runlog import RunLog


class Task:
    """What is trained. Everything it draws is seeded by (run.seed, epoch or step, sample)."""

    monitor: str  # the validation metric that chooses best.pt; lower is better
    idle_weights = False  # whether some steps leave trained weights out; those get no gradient
    epoch: int | None = None  # the engine's, also during validation; None outside training

    def __init__(self, config: Config) -> None:
        self.config = config

    def build_model(self) -> nn.Module:
        """The model, initialised from ``config.init`` where that is set, on the CPU."""

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Groups for the optimizer; "lr" defaults to the configuration's."""

    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; opens and checks the data set."""

    def batches(self, first: int, end: int, rank: int = 0, world: int = 1) -> Iterator[Any]:
        """This rank's equal share of the run's global batches ``first`` to ``end - 1``.

        They depend on the seed and their numbers only, and earlier ones are not loaded.
        """

    def training_step(self, model: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        """Losses (B,) per sample; "loss" is optimised, the others are logged."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics over the whole validation set, without augmentation."""

    def pictures(self, model: nn.Module) -> dict[str, np.ndarray]:
        """Pictures (H, W, 3) uint8 for TensorBoard, by name."""


class Losses(nn.Module):
    """A task's losses as a module: DDP then finds the weights that a step's loss depends on."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Losses (B,) of a batch; only "loss" has a gradient."""
        losses = self.task.training_step(self.model, batch, step)
        # DDP waits for the gradients of all that it can reach from here.
        return {name: v if name == "loss" else v.detach() for name, v in losses.items()}


@dataclasses.dataclass
class Run:
    """Everything that changes during training."""

    config: Config
    world: World
    folder: Path
    model: nn.Module
    losses: nn.Module  # the model's, in DDP where there are several processes
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    amp: torch.dtype | None
    steps_per_epoch: int
    epoch: int = 0  # epochs completed, validation included
    step: int = 0  # optimizer steps completed
    best: float = math.inf
    window: dict[str, float] = dataclasses.field(default_factory=dict)  # sums since last logged
    skipped: int = 0  # steps in a row without a finite gradient
    log: RunLog | None = None  # of the first process


def build(task: Task, world: World, folder: Path) -> Run:
    """A new run; nothing is written.

    Raises:
        UserError: bad settings, data or weights.
    """
    config, train = task.config, task.config.train
    check_batch(config, world)
    system.keep_freed_memory()
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    # 1. The data, then the model, which may have weights to download; the same in every process.
    steps = task.steps_per_epoch()
    system.seed_everything(config.run.seed)
    model = task.build_model()
    if world.size > 1 and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(world.device)
    # 2. Optimizer, learning rate, averaged weights, precision.
    optimizer = make_optimizer(task.parameter_groups(model), train)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, steps * train.epochs, train.warmup_steps),
    )
    ema = copy.deepcopy(model).requires_grad_(False) if train.ema_decay > 0 else model
    amp = amp_type(train.amp, world.device)
    if amp is torch.float16:  # the scaler may skip the very first step
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    scaler = torch.amp.GradScaler(world.device.type, enabled=amp is torch.float16)
    losses = Losses(task, model)
    return Run(config, world, folder, model, losses, ema, optimizer, scheduler, scaler, amp, steps)


def check_batch(config: Config, world: World) -> None:
    """Raises UserError where the processes cannot share a batch equally."""
    if config.train.batch_size % world.size:
        raise UserError(
            f"train.batch_size: {config.train.batch_size} is not a multiple of the {world.size} "
            f"processes; each takes an equal share of the global batch"
        )


def save(run: Run, name: str) -> None:
    """Writes a checkpoint from which training continues exactly; in the first process only."""
    if run.log is None:
        return
    run.log.open()
    model = run.model
    with_2d = getattr(model, "network2d", None) is not None
    checkpoint.save(
        run.folder / name,
        {
            "config": configuration.to_dict(run.config),
            "model": model.state_dict(),
            "ema": run.ema.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict(),
            "scaler": run.scaler.state_dict(),
            "epoch": run.epoch,
            "step": run.step,
            "steps_per_epoch": run.steps_per_epoch,
            "best": run.best,
            "window": run.window,
            "log_lines": run.log.lines,
            # What is known of the 2D network in a model, for `ptri.models.weights.read_detector`.
            "detector": detector_to_meta(model.detector) if with_2d else None,
        },
    )


def restore(run: Run) -> dict[str, Any]:
    """Continues from the run folder's last.pt, whose content it returns.

    Raises:
        UserError: no such file, a corrupt one, or one of another model, data set or optimizer.
    """
    path = run.folder / "last.pt"
    saved = checkpoint.load(path)
    if saved["steps_per_epoch"] != run.steps_per_epoch:
        raise UserError(
            f"{path}: made with {saved['steps_per_epoch']} steps per epoch, this configuration and "
            f"data set give {run.steps_per_epoch}; resume with the same data and train.batch_size, "
            f"train.steps_per_epoch"
        )
    checkpoint.load_state(run.model, saved["model"], path)
    if run.ema is not run.model:
        checkpoint.load_state(run.ema, saved["ema"], path)
    try:
        run.optimizer.load_state_dict(saved["optimizer"])
    except ValueError as error:
        raise UserError(f"{path}: the optimizer's state does not fit the model: {error}") from None
    run.scheduler.load_state_dict(saved["scheduler"])
    run.scaler.load_state_dict(saved["scaler"])
    run.epoch, run.step, run.best = saved["epoch"], saved["step"], saved["best"]
    run.window = saved["window"]
    return saved


def changes(saved: dict[str, Any], config: Config) -> Iterator[str]:
    """Settings that differ from those of a checkpoint's content, in words."""
    for section, values in configuration.to_dict(config).items():
        before = saved["config"].get(section, {})
        for key, value in values.items():
            if key in before and before[key] != value:
                yield f"{section}.{key}: {value!r} (was {before[key]!r})"
