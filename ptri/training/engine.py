"""The training loop, for any task: optimizer, EMA, mixed precision, checkpoints, exact resume.

A step depends only on the weights, the seed and its number: before each step the random generators
are seeded with (seed, step, rank), and the task's loader orders the samples by (seed, epoch). Hence
a killed and resumed run ends with the same bits as an uninterrupted one, and several processes
(``torchrun``) follow one process with the same global batch.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ptri import checkpoint
from ptri import config as configuration
from ptri.config import Config
from ptri.errors import UserError
from ptri.evaluation.outputs import run_folder
from ptri.models.weights import detector_to_meta
from ptri.structures import to_device
from ptri.training import system
from ptri.training.optimizer import amp_type, learning_rate_factor, make_optimizer, update_ema
from ptri.training.runlog import RunLog, check_folder
from ptri.training.system import StopRequested, StopSignals, World

LOGGER = logging.getLogger(__name__)
MAX_SKIPPED = 20  # fp16 steps in a row with overflowing gradients before the run stops


class Task(Protocol):
    """What is trained. Everything it draws is seeded by (run.seed, epoch or step, sample)."""

    monitor: str  # the validation metric that chooses best.pt; lower is better
    idle_weights: bool  # whether some steps leave trained weights out; those get no gradient
    epoch: int | None  # the engine's, also during validation; None outside training

    def build_model(self, config: Config) -> nn.Module:
        """The model, initialised from ``config.init`` where that is set, on the CPU."""

    def parameter_groups(self, model: nn.Module, config: Config) -> list[dict[str, Any]]:
        """Groups for the optimizer; "lr" defaults to the configuration's."""

    def steps_per_epoch(self, config: Config) -> int:
        """Global batches in an epoch; opens and checks the data set."""

    def train_loader(
        self, config: Config, epoch: int, rank: int, world: int, start_step: int
    ) -> Iterable[Any]:
        """This rank's equal share of each global batch, from batch ``start_step`` of the epoch on.

        The order depends on (seed, epoch) only, and skipping does not load what is skipped.
        """

    def training_step(self, model: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        """Losses (B,) per sample; "loss" is optimised, the others are logged."""

    def validate(self, model: nn.Module, config: Config) -> dict[str, float]:
        """Metrics over the whole validation set, without augmentation."""

    def pictures(self, model: nn.Module, config: Config) -> dict[str, np.ndarray]:
        """Pictures (H, W, 3) uint8 for TensorBoard, by name."""


class _Losses(nn.Module):
    """A task's losses as a module: DDP then finds the weights that a step's loss depends on."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Any, step: int) -> dict[str, Tensor]:
        losses = self.task.training_step(self.model, batch, step)
        # DDP waits for the gradients of all that it can reach from here.
        return {name: v if name == "loss" else v.detach() for name, v in losses.items()}


@dataclasses.dataclass
class _Run:
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
    skipped: int = 0
    log: RunLog | None = None


def fit(task: Task, config: Config, resume: bool = False, overwrite: bool = False) -> None:
    """Trains a task into its run folder.

    Args:
        task: what is trained.
        config: how.
        resume: continue the run folder's last.pt.
        overwrite: replace the run folder, once configuration, model and data have proved good.

    Raises:
        UserError: bad settings, data or checkpoint, or the loss is no longer finite.
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM, with the run saved.
    """
    folder = run_folder(config)
    with system.started(config.run.device) as world, StopSignals() as signals:
        system.on_first(world, lambda: check_folder(folder, resume, overwrite))
        run = _build(task, config, world, folder)
        saved = _restore(run) if resume else None
        system.on_first(world, lambda: _open_log(run, saved))
        try:
            if world.size > 1:
                ids = [world.device.index] if world.device.type == "cuda" else None
                run.losses = DistributedDataParallel(
                    run.losses, device_ids=ids, find_unused_parameters=task.idle_weights
                )
            _train(task, run, signals)
        except StopRequested as stop:
            LOGGER.warning(
                "stopped by %s at epoch %d, step %d; saved, continue with --resume",
                stop.name, run.epoch, run.step,
            )  # fmt: skip
            raise SystemExit(stop.exit_code) from None
        except UserError as error:
            LOGGER.error("%s", error)
            raise
        finally:
            if run.log is not None:
                run.log.close()
            # DDP must go before the process group: freed after it, gloo can wait for its own
            # thread, which waits for Python's lock, for ever.
            run.losses = run.model
            gc.collect()


def _build(task: Task, config: Config, world: World, folder: Path) -> _Run:
    _check_batch(config, world)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    if config.run.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    system.seed_everything(config.run.seed)  # the same weights on every rank
    model = task.build_model(config)
    steps = task.steps_per_epoch(config)
    if steps < 1:
        raise UserError("train: no full batch in the training set; lower train.batch_size")
    if world.size > 1 and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(world.device)
    groups = task.parameter_groups(model, config)
    optimizer = make_optimizer(groups, config.train)
    total, train = steps * config.train.epochs, config.train
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, total, train.warmup_steps, train.final_lr),
    )
    ema = copy.deepcopy(model).requires_grad_(False) if train.ema_decay > 0 else model
    amp = amp_type(config.train.amp, world.device)
    if amp is torch.float16:  # the scaler may skip the very first step
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    return _Run(
        config, world, folder, model, _Losses(task, model), ema, optimizer, scheduler,
        torch.amp.GradScaler(world.device.type, enabled=amp is torch.float16), amp, steps,
    )  # fmt: skip


def _check_batch(config: Config, world: World) -> None:
    if config.train.batch_size % world.size:
        raise UserError(
            f"train.batch_size: {config.train.batch_size} is not a multiple of the {world.size} "
            f"processes; each takes an equal share of the global batch"
        )


def _restore(run: _Run) -> dict[str, Any]:
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
    system.set_rng_states(saved["rng"])
    return saved


def _open_log(run: _Run, saved: dict[str, Any] | None) -> None:
    if saved is None:
        run.log = RunLog(run.folder, run.config)
    else:
        run.log = RunLog(run.folder, run.config, saved["log_lines"], run.step)
        for change in _changes(saved["config"], configuration.to_dict(run.config)):
            LOGGER.warning("resuming with changed %s", change)
    count = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    LOGGER.info(
        "%s: %d trained parameters, %d steps per epoch, %s, %s, %d process(es); epoch %d, step %d",
        run.folder, count, run.steps_per_epoch, run.world.device,
        run.amp or torch.float32, run.world.size, run.epoch, run.step,
    )  # fmt: skip


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for section, values in new.items():
        for key, value in values.items():
            before = old.get(section, {}).get(key)
            if before != value:
                yield f"{section}.{key}: {value!r} (was {before!r})"


def _save(run: _Run, name: str) -> None:
    """Writes a checkpoint from which training continues exactly."""
    if run.log is None:
        return
    checkpoint.save(
        run.folder / name,
        {
            "config": configuration.to_dict(run.config),
            "model": run.model.state_dict(),
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
            "rng": system.rng_states(),
            "detector": _detector_meta(run.model),
        },
    )


def _detector_meta(model: nn.Module) -> dict[str, Any] | None:
    """What is known of the 2D network in a model, for `ptri.models.weights.read_detector`."""
    if getattr(model, "network2d", None) is None:
        return None
    return detector_to_meta(model.detector)


def _train(task: Task, run: _Run, signals: StopSignals) -> None:
    if run.epoch >= run.config.train.epochs:
        LOGGER.info("all %d epochs are done", run.epoch)
    while run.epoch < run.config.train.epochs:
        task.epoch = run.epoch
        _train_epoch(task, run, signals)
        _save(run, "last.pt")  # a stop during validation repeats the validation, not the epoch
        _validate(task, run, signals)


def _train_epoch(task: Task, run: _Run, signals: StopSignals) -> None:
    config, world = run.config, run.world
    start = run.step - run.epoch * run.steps_per_epoch
    if start >= run.steps_per_epoch:
        return
    run.losses.train()
    batches = iter(task.train_loader(config, run.epoch, world.rank, world.size, start))
    began = time.perf_counter()
    bar = tqdm(
        total=run.steps_per_epoch, initial=start, unit="step", leave=False,
        desc=f"epoch {run.epoch + 1}/{config.train.epochs}", disable=None if world.first else True,
    )  # fmt: skip
    with bar:
        for done in range(start + 1, run.steps_per_epoch + 1):
            try:
                batch = next(batches)
            except StopIteration:
                raise RuntimeError(
                    f"the loader ended after {done - 1} of {run.steps_per_epoch} batches"
                ) from None
            values = _training_step(run, batch)
            bar.update()
            for name, value in values.items():
                run.window[name] = run.window.get(name, 0.0) + value
            run.window["steps"] = run.window.get("steps", 0) + 1
            last = done == run.steps_per_epoch
            if last or run.step % config.train.log_every_steps == 0:
                bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
                speed = (done - start) * config.train.batch_size / (time.perf_counter() - began)
                _log_window(run, speed)
            every = config.train.save_every_steps
            if every and run.step % every == 0 and not last:
                _save(run, "last.pt")
            if not last:
                _stop_if_asked(run, signals, save=True)


def _training_step(run: _Run, batch: Any) -> dict[str, float]:
    """One optimizer step; returns the global batch's mean losses, gradient norm, learning rate."""
    config, world = run.config, run.world
    # 1. What is drawn depends on the step's number alone.
    system.seed_everything(config.run.seed, run.step, world.rank)
    batch = to_device(batch, world.device)
    # 2. Losses, (B,) each.
    try:
        with torch.autocast(world.device.type, run.amp, enabled=run.amp is not None):
            losses = run.losses(batch, run.step)
    except torch.linalg.LinAlgError as error:  # what becomes of NaN in a factorisation
        raise UserError(
            f"{run.folder}: {str(error).splitlines()[0]} (epoch {run.epoch}, step {run.step}); "
            f"last.pt keeps the last checkpoint; lower train.lr or set train.amp=off"
        ) from error
    sums = torch.stack([value.detach().double().mean() for value in losses.values()])
    means = (system.total(world, sums) / world.size).tolist()  # the shares are equal
    values = dict(zip(losses, means))
    if not math.isfinite(values["loss"]):
        _raise_not_finite(run, "loss", _sample_names(batch, ~losses["loss"].isfinite()))
    # 3. Gradients, clipped. In fp16 the scaler skips a step that overflows and lowers its scale.
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(losses["loss"].float().mean()).backward()
    run.scaler.unscale_(run.optimizer)
    weights = [p for group in run.optimizer.param_groups for p in group["params"]]
    limit = config.train.grad_clip or math.inf
    values["grad_norm"] = float(nn.utils.clip_grad_norm_(weights, limit))
    run.skipped = 0 if math.isfinite(values["grad_norm"]) else run.skipped + 1
    if run.skipped > (MAX_SKIPPED if run.scaler.is_enabled() else 0):
        any_sample = torch.ones_like(losses["loss"], dtype=torch.bool)
        _raise_not_finite(run, "gradient norm", _sample_names(batch, any_sample))
    # 4. Weights, learning rate, averaged weights.
    values["lr"] = run.optimizer.param_groups[0]["lr"]
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.scheduler.step()
    if run.ema is not run.model:
        update_ema(run.ema, run.model, config.train.ema_decay, run.step)
    run.step += 1
    return values


def _sample_names(batch: Any, chosen: Tensor) -> list[str]:
    """What the chosen samples (B,) of a batch are called, as far as the batch knows."""
    indices = chosen.nonzero().flatten().tolist()
    known = [key for key in ("subject", "action", "frame") if hasattr(batch, key)]
    if not known:
        return [f"{index} of the batch" for index in indices]
    return [", ".join(f"{key} {int(getattr(batch, key)[i])}" for key in known) for i in indices]


def _raise_not_finite(run: _Run, what: str, samples: list[str]) -> NoReturn:
    """Every process names the samples of all."""
    names = [name for part in system.gather(run.world, samples) for name in part]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    raise UserError(
        f"{run.folder}: the {what} is not finite at epoch {run.epoch}, step {run.step}, samples "
        f"{'; '.join(names[:4])}{more}; last.pt keeps the last checkpoint; look at these samples, "
        f"lower train.lr or set train.amp=off"
    )


def _log_window(run: _Run, speed: float) -> None:
    """Logs the means since the last logged step."""
    count = run.window.pop("steps")
    means = {name: value / count for name, value in run.window.items()}
    run.window.clear()
    if run.log is not None:
        run.log.scalars("train", run.epoch, run.step, {**means, "samples_per_second": speed})


def _validate(task: Task, run: _Run, signals: StopSignals) -> None:
    """Evaluates the averaged weights, saves best.pt and last.pt, completes the epoch."""
    train, epoch = run.config.train, run.epoch
    due = (epoch + 1) % train.validate_every_epochs == 0 or epoch + 1 == train.epochs
    metrics: dict[str, float] = {}
    pictures: dict[str, np.ndarray] = {}
    if due and run.world.first:
        try:
            with signals.at_once(), torch.no_grad():
                run.ema.eval()
                metrics = task.validate(run.ema, run.config)
                pictures = task.pictures(run.ema, run.config)
        except StopRequested:
            pass
    _stop_if_asked(run, signals, save=False)
    run.epoch += 1
    if run.log is None:
        return
    if metrics:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        LOGGER.info("epoch %d/%d, step %d: %s", epoch + 1, train.epochs, run.step, shown)
        run.log.scalars("val", epoch, run.step, metrics)
        run.log.pictures(run.step, pictures)
    better = bool(metrics) and metrics[task.monitor] < run.best
    if better:
        run.best = metrics[task.monitor]
        _save(run, "best.pt")  # before last.pt, which holds its metric
    _save(run, "last.pt")


def _stop_if_asked(run: _Run, signals: StopSignals, save: bool) -> None:
    """Stops all processes after the same step."""
    signum = system.largest(run.world, signals.received)
    if signum:
        if save:
            _save(run, "last.pt")
        system.largest(run.world, 0)  # wait for the file
        raise StopRequested(signum)
