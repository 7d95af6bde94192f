"""The work that is measured: training steps in 2D and 3D, and the rig posterior."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from ptri import config
from ptri.models.weights import build_model
from ptri.people.scenes import generate_batch
from ptri.rig.estimate import solve
from ptri.structures import to_device
from ptri.system import World
from ptri.training import engine, losses3d, state
from ptri.training.state import Run, Task
from ptri.training.task2d import HeatmapTask
from ptri.training.task3d import RigTask

DEMO = ["data.root=data/demo", "data.train_subjects=[1]", "data.test_subjects=[9]"]
WEIGHTS = ["init.checkpoint_3d=checkpoints/ptri_3d.pt"]


class Stage(NamedTuple):
    """A part of a training step."""

    seconds: float
    memory: float  # bytes of the GPU at its peak, above those before the step; NaN on a CPU


def make_step(task: Task, device: torch.device) -> tuple[Callable[[], Any], Run]:
    """A call that does an optimizer step of the engine on one batch, which is loaded once."""
    run = state.build(task, World(0, 1, device), Path("unused"))
    run.losses.train()
    batch = to_device(next(iter(task.batches(0, 1))), device)
    return lambda: engine._training_step(run, batch), run


def task_2d(size: int, batch: int, amp: str) -> Task:
    """Training of the 2D network on the demo's images of so many px."""
    options = ["run.name=work", f"data.image_size={size}", f"train.batch_size={batch}"]
    return HeatmapTask(config.load(None, [*DEMO, *options, f"train.amp={amp}", "data.workers=0"]))


def task_3d(size: int, batch: int, amp: str) -> Task:
    """End-to-end training on the demo's images of so many px, four views a sample."""
    options = ["run.name=work", f"data.image_size={size}", f"train.batch_size={batch}"]
    options += ["data.min_views=4", "init.checkpoint_2d=checkpoints/ptri_2d_s0.pt"]
    settings = [*DEMO, *WEIGHTS, *options, f"train.amp={amp}", "data.workers=0"]
    return RigTask(config.load(None, settings))


def make_solve(num_frames: int, batch: int, device: torch.device) -> Callable[[], Any]:
    """A call that solves generated rigs of four views, of so many frames each."""
    settings = config.load(None, ["run.name=work", "generated.families=[ring]", *WEIGHTS])
    model = build_model(settings, with_images=False).eval().to(device)
    scene = to_device(generate_batch(settings, 0, 0, batch, 4, num_frames), device)
    options = settings.posterior

    @torch.no_grad()
    def call() -> None:
        solve(model, scene.keypoints, scene.K, options, 0)

    return call


def stages_3d(step: Callable[[], Any], run: Run) -> dict[str, Stage]:
    """Time and peak memory of the parts of an end-to-end step, one after the other.

    The device is waited for between the parts, so that their sum is more than a plain step's time.
    """
    device = run.world.device
    cuda = device.type == "cuda"
    found: dict[str, Stage] = {}
    before = torch.cuda.memory_allocated(device) if cuda else 0

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        if cuda:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        yield
        if cuda:
            torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before if cuda else float("nan")
        found[name] = Stage(time.perf_counter() - start, peak)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with stage(name):
                return function(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for name, owner, attribute in (
            ("detect", losses3d, "detect"),
            ("lift", run.model.lifter, "forward"),
            ("posterior", losses3d, "solve"),
            ("fuse", losses3d, "fuse_body"),
            ("backward", torch.Tensor, "backward"),
            ("optimizer", run.optimizer, "step"),
        ):
            patch = mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute)))
            stack.enter_context(patch)
        start = time.perf_counter()
        step()
        whole = time.perf_counter() - start
    rest = whole - sum(part.seconds for part in found.values())
    return {**found, "losses and the rest": Stage(rest, float("nan"))}
