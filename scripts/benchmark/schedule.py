"""Training schedules on Human3.6M, and what a step of them costs.

Steps are counted and timed here, on the demo's images; what a GPU would take is worked out from
them in `gpu_seconds` under stated assumptions, and is an estimate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ptri.config import Config, replace
from ptri.data.h36m import SampleKey, open_split
from ptri.data.labels import NPY_NAME, labels_path, read_labels, write_npy
from ptri.training.task2d import HeatmapTask
from ptri.training.task3d import RigTask

# S1 and S5 to S8, four cameras, 50 frames a second: 1,559,752 images, as MotionBERT's reader has
# them (lib/data/datareader_h36m.py). Labels made by others may lack a few.
TRAIN_FRAMES, TRAIN_VIEWS = 389_938, 4
H36M_SIDE = 1000  # px of its images


class Step(NamedTuple):
    """A training step, forward and backward, without the optimizer's part."""

    images: int  # of the counted and timed step
    giga: float  # G floating-point operations of an image; convolutions and matrix products
    operators: int  # of the step, views aside; hardly more where the batch is larger
    megabytes: float  # kept for the backward pass, of an image, in float32
    seconds: float  # of processor time, of an image; the fastest of a few steps


class Plan(NamedTuple):
    """A training schedule on so many GPUs."""

    gpus: int
    batch: int  # samples of all GPUs together
    lr: float
    steps: int  # of the whole training
    images: int  # of the whole training; drawn numbers of views by their mean


def is_2d(config: Config) -> bool:
    """Whether a configuration is for train2d.py: it starts from no 3D weights."""
    return config.init.checkpoint_3d is None


def plan(config: Config, gpus: int) -> Plan:
    """The schedule of a configuration on Human3.6M: its batch on every GPU.

    The learning rate grows with the square root of the number of GPUs, as is usual with AdamW.
    """
    frames = math.ceil(TRAIN_FRAMES / config.data.train_every)
    samples = frames * TRAIN_VIEWS if is_2d(config) else frames
    views = 1 if is_2d(config) else (config.data.min_views + TRAIN_VIEWS) / 2
    batch = gpus * config.train.batch_size
    steps = config.train.epochs * (samples // batch)
    return Plan(gpus, batch, config.train.lr * math.sqrt(gpus), steps, round(steps * batch * views))


def gpu_seconds(step: Step, plan: Plan, rate: float, launch: float) -> float:
    """Estimated seconds of a training, loading, optimizer and exchange of gradients aside.

    Args:
        rate: T floating-point operations a second that a GPU sustains.
        launch: seconds of an operator that has next to nothing to compute.
    """
    return step.giga * plan.images / (plan.gpus * rate * 1e3) + plan.steps * step.operators * launch


def measure(config: Config, root: str, batch: int, repeats: int = 3) -> Step:
    """Counts and times training steps on the images of ``root``.

    Args:
        batch: samples of the step, each of one view (2D) or of four.
    """
    config = replace(
        config, data__root=root, data__workers=0, data__train_every=1, data__min_views=TRAIN_VIEWS,
        train__batch_size=batch, init__checkpoint_2d=None,
    )  # fmt: skip
    task = HeatmapTask() if is_2d(config) else RigTask()
    torch.manual_seed(config.run.seed)
    model = task.build_model(config).train()
    sample = next(iter(task.train_loader(config, 0, 0, 1, 0)))
    number = sample.images.shape[0] * sample.images.shape[1]

    def step() -> None:
        model.zero_grad()
        task.training_step(model, sample, 0)["loss"].mean().backward()

    # Backward takes twice the operations of forward; counted itself, torch's counter takes the
    # weights' gradient of a grouped convolution for that of a full one.
    with FlopCounterMode(display=False) as forward:
        task.training_step(model, sample, 0)
    operations = 3 * forward.get_total_flops()
    with _Operators() as operators:
        step()
    megabytes = _kept(lambda: task.training_step(model, sample, 0), model) / number / 1e6
    used = []
    for _ in range(repeats):
        start = time.process_time()
        step()
        used.append(time.process_time() - start)
    return Step(
        number, operations / number / 1e9, operators.count, megabytes, min(used) / number
    )  # fmt: skip


def _kept(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights aside."""
    found: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = forward()  # held: freed storage would be counted again
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    del result
    return sum(size for place, size in found.items() if place not in weights)


class _Operators(TorchDispatchMode):
    """Counts operators that compute: those whose result is no view of an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returns = func._schema.returns
        alias = returns[0].alias_info if returns else None
        self.count += alias is None or alias.is_write
        return func(*args, **(kwargs or {}))


def enlarge(root: Path, target: Path, subject: str) -> None:
    """A copy of one subject of a data set with images of `H36M_SIDE` px, as Human3.6M's are."""
    labels = read_labels(labels_path(root))
    files = sorted((root / "processed" / subject).rglob("*.jpg"))
    scale = H36M_SIDE / cv2.imread(str(files[0])).shape[1]
    for file in files:
        image = cv2.imread(str(file))
        larger = cv2.resize(image, (H36M_SIDE, H36M_SIDE), interpolation=cv2.INTER_CUBIC)
        place = target / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), larger, [cv2.IMWRITE_JPEG_QUALITY, 90])
    K = labels.K.copy()
    K[..., :2, :] *= scale
    K[..., :2, 2] += 0.5 * scale - 0.5  # integer coordinates are pixel centres
    boxes = (labels.boxes * scale).astype(labels.boxes.dtype)
    write_npy(target / "extra" / NPY_NAME, labels._replace(K=K, boxes=boxes))


def loading_seconds(config: Config, root: Path) -> float:
    """Processor seconds to read, crop and augment one image of a data set's training subjects."""
    dataset = open_split(replace(config, data__root=str(root), data__train_every=1), "train", True)
    dataset[0]
    start = time.process_time()
    for index in range(len(dataset)):
        dataset[SampleKey(index)]
    return (time.process_time() - start) / len(dataset)
