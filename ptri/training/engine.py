"""The training loop, for any task: optimizer, EMA, mixed precision, checkpoints, exact resume.

A step depends only on the weights, the seed and its number: before each step the random generators
are seeded with (seed, step, rank), and the task's loader orders the samples by (seed, epoch). Hence
a killed and resumed run ends with the same bits as an uninterrupted one, although no state of a
generator is saved, and several processes (``torchrun``) follow one with the same global batch.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ptri.errors import UserError
from ptri.evaluation.outputs import run_folder
from ptri.structures import to_device
from ptri.system import gather, joined, largest, on_first, placed, total
from ptri.training import state
from ptri.training.optimizer import update_ema
from ptri.training.runlog import RunLog, check_folder
from ptri.training.state import Run, Task
from ptri.training.system import StopRequested, StopSignals, seed_everything

LOGGER = logging.getLogger(__name__)
GRAD_CLIP = 1.0  # largest gradient norm
MAX_SKIPPED = 20  # fp16 steps in a row with overflowing gradients before the run stops


def fit(task: Task, resume: bool = False, overwrite: bool = False) -> None:
    """Trains a task into its run folder.

    Args:
        task: what is trained, and its configuration.
        resume: continue the run folder's last.pt.
        overwrite: replace the run folder, once a step has shown that settings, data and model are
            good; before that nothing is written.

    Raises:
        UserError: bad settings, data or checkpoint, or the loss is no longer finite.
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM, with the run saved.
    """
    folder = run_folder(task.config)
    with joined() as world, StopSignals() as signals:
        world = placed(world, task.config.run.device)
        on_first(world, lambda: check_folder(folder, resume, overwrite))
        log = RunLog(folder, task.config) if world.first else None
        run = None
        try:
            run = state.build(task, world, folder)
            run.log = log
            _announce(run, state.restore(run) if resume else None)
            if world.size > 1:
                ids = [world.device.index] if world.device.type == "cuda" else None
                run.losses = DistributedDataParallel(
                    run.losses, device_ids=ids, find_unused_parameters=task.idle_weights
                )
            _train(task, run, signals)
        except StopRequested as stop:
            where = f"epoch {run.epoch}, step {run.step}"
            LOGGER.warning("stopped by %s at %s; saved, go on with --resume", stop.name, where)
            raise SystemExit(stop.exit_code) from None
        except UserError as error:
            if log is not None and log.is_open:
                LOGGER.error("%s", error)
            raise
        finally:
            if log is not None:
                log.close()
            # DDP must go before the process group: freed after it, gloo can wait for its own
            # thread, which waits for Python's lock, for ever.
            if run is not None:
                run.losses = run.model
            gc.collect()


def _announce(run: Run, saved: dict[str, Any] | None) -> None:
    """What begins, or goes on from a checkpoint's content."""
    if run.log is not None and saved is not None:
        run.log.lines, run.log.step = saved["log_lines"], run.step
    for change in state.changes(saved, run.config) if saved else ():
        LOGGER.warning("resuming with changed %s", change)
    LOGGER.info(
        "%s: %d trained parameters, %d steps per epoch, %s, %s, %d process(es); epoch %d, step %d",
        run.folder,
        sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        run.steps_per_epoch,
        run.world.device,
        run.amp or torch.float32,
        run.world.size,
        run.epoch,
        run.step,
    )


def _train(task: Task, run: Run, signals: StopSignals) -> None:
    """The loop over epochs."""
    epochs = run.config.train.epochs
    if run.epoch >= epochs:
        LOGGER.info("all %d epochs are done", run.epoch)
    while run.epoch < epochs:
        task.epoch = run.epoch
        # 1. The steps of the epoch, or what is left of them.
        _train_epoch(task, run, signals)
        state.save(run, "last.pt")  # a stop during validation repeats that, not the epoch
        # 2. Validation of the averaged weights, by the first process.
        metrics, pictures = _validate(task, run, signals)
        _stop_if_asked(run, signals)
        run.epoch += 1
        # 3. What is evaluated is what is saved.
        if metrics:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            LOGGER.info("epoch %d/%d, step %d: %s", run.epoch, epochs, run.step, shown)
            run.log.scalars("val", run.epoch - 1, run.step, metrics)
            run.log.pictures(run.step, pictures)
            if metrics[task.monitor] < run.best:
                run.best = metrics[task.monitor]
                state.save(run, "best.pt")  # before last.pt, which holds its metric
        state.save(run, "last.pt")


def _train_epoch(task: Task, run: Run, signals: StopSignals) -> None:
    """The steps of an epoch that are still to be done."""
    train, world, start = run.config.train, run.world, run.step
    end = (run.epoch + 1) * run.steps_per_epoch
    run.losses.train()
    batches = iter(task.batches(start, end, world.rank, world.size))
    began = time.perf_counter()
    with tqdm(
        total=run.steps_per_epoch,
        initial=start + run.steps_per_epoch - end,
        unit="step",
        leave=False,
        desc=f"epoch {run.epoch + 1}/{train.epochs}",
        disable=None if world.first else True,
    ) as bar:
        while run.step < end:
            # 1. A batch, a step.
            values = _training_step(run, next(batches))
            if run.log is not None:
                run.log.open()  # by now settings, data and model have proved good
            bar.update()
            # 2. Means over some steps are logged.
            for name, value in values.items():
                run.window[name] = run.window.get(name, 0.0) + value
            run.window["steps"] = run.window.get("steps", 0) + 1
            last = run.step == end
            if last or run.step % train.log_every_steps == 0:
                bar.set_postfix(loss=f"{values['loss']:.4g}", refresh=False)
                count = run.window.pop("steps")
                means = {name: value / count for name, value in run.window.items()}
                run.window.clear()
                samples = (run.step - start) * train.batch_size
                means["samples_per_second"] = samples / (time.perf_counter() - began)
                if run.log is not None:
                    run.log.scalars("train", run.epoch, run.step, means)
            # 3. The state is saved, and the run stops here if it was asked to.
            if train.save_every_steps and run.step % train.save_every_steps == 0 and not last:
                state.save(run, "last.pt")
            if not last:
                _stop_if_asked(run, signals, save=True)


def _training_step(run: Run, batch: Any) -> dict[str, float]:
    """One optimizer step; returns the global batch's mean losses, gradient norm, learning rate."""
    config, world = run.config, run.world
    # 1. What is drawn depends on the step's number alone.
    seed_everything(config.run.seed, run.step, world.rank)
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
    means = total(world, sums) / world.size  # the shares are equal
    # 3. Gradients, clipped. In fp16 the scaler skips a step that overflows and lowers its scale.
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(losses["loss"].float().mean()).backward()
    run.scaler.unscale_(run.optimizer)
    weights = [p for group in run.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, GRAD_CLIP)
    # The one place of a step where the CPU waits for the GPU (but for what `solve` must ask).
    numbers = torch.cat([means, norm.to(means)[None]]).tolist()
    values = dict(zip((*losses, "grad_norm"), numbers))
    if not math.isfinite(values["loss"]):
        _raise_not_finite(run, "loss", batch, ~losses["loss"].isfinite())
    run.skipped = 0 if math.isfinite(values["grad_norm"]) else run.skipped + 1
    if run.skipped > (MAX_SKIPPED if run.scaler.is_enabled() else 0):
        _raise_not_finite(run, "gradient norm", batch, torch.ones_like(losses["loss"]))
    # 4. Weights, learning rate, averaged weights.
    values["lr"] = run.optimizer.param_groups[0]["lr"]
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.scheduler.step()
    if run.ema is not run.model:
        update_ema(run.ema, run.model, config.train.ema_decay, run.step)
    run.step += 1
    return values


def _raise_not_finite(run: Run, what: str, batch: Any, chosen: Tensor) -> NoReturn:
    """Names the chosen samples (B,) of all processes, as far as their batches know."""
    keys = [key for key in ("subject", "action", "frame") if hasattr(batch, key)]
    samples = [
        ", ".join(f"{key} {int(getattr(batch, key)[i])}" for key in keys) or f"{i} of the batch"
        for i in chosen.nonzero().flatten().tolist()
    ]
    names = [name for part in gather(run.world, samples) for name in part]
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    raise UserError(
        f"{run.folder}: the {what} is not finite at epoch {run.epoch}, step {run.step}, samples "
        f"{'; '.join(names[:4])}{more}; last.pt keeps the last checkpoint; look at these samples, "
        f"lower train.lr or set train.amp=off"
    )


def _validate(
    task: Task, run: Run, signals: StopSignals
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and pictures of the averaged weights; empty where none are due, and elsewhere."""
    train, number = run.config.train, run.epoch + 1
    due = number % train.validate_every_epochs == 0 or number == train.epochs
    if not due or not run.world.first:
        return {}, {}
    seed_everything(run.config.run.seed, run.step)
    try:
        with signals.at_once(), torch.no_grad():
            run.ema.eval()
            return task.validate(run.ema), task.pictures(run.ema)
    except StopRequested:
        return {}, {}


def _stop_if_asked(run: Run, signals: StopSignals, save: bool = False) -> None:
    """Stops all processes after the same step."""
    signum = largest(run.world, signals.received)
    if signum:
        if save:
            state.save(run, "last.pt")
        largest(run.world, 0)  # wait for the file
        raise StopRequested(signum)
