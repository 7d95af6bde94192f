"""Time and multiply-adds of the 2D network, fused, from normalised images to keypoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmark.timing import time_calls
from ptri.config import ModelConfig
from ptri.export.graph import Exported
from ptri.export.to_onnx import open_session, write
from ptri.models.heatmap import heatmap_moments
from ptri.models.mobileone import merge_batchnorm
from ptri.models.network2d import Network2D


class Work(NamedTuple):
    """Multiply-adds of one image, in millions."""

    backbone: float
    head: float  # pyramid and heatmaps
    rest: float  # features pooled under the heatmaps, covariance, confidence


def random_network(backbone: str) -> Network2D:
    """A fused network with random weights: time and work do not depend on them."""
    torch.manual_seed(0)
    return merge_batchnorm(Network2D(ModelConfig(backbone=backbone, plain_convolutions=True)))


@torch.no_grad()
def multiply_adds(network: Network2D, size: int) -> Work:
    """Counted by torch from the operators that run: convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    counts = counter.get_flop_counts()
    total, backbone, head = (
        sum(counts.get(name, {}).values()) / 2e6
        for name in ("Global", "Network2D.backbone", "Network2D.head")
    )
    return Work(backbone, head, total - backbone - head)


def matrix_rate(threads: int, size: int = 1024, repeats: int = 20) -> float:
    """G multiply-adds a second of a square float32 matrix product: what this machine can do."""
    torch.set_num_threads(threads)
    matrix = torch.ones(size, size)
    (timing,) = time_calls({"product": lambda: matrix @ matrix}, repeats)
    return size**3 / 1e9 / timing.fastest


def variants(
    network: Network2D, images: Tensor, folder: Path | None, threads: int
) -> dict[str, Callable[[], object]]:
    """What can be timed: name -> a call; ONNX Runtime's where a folder for the graph is given."""
    last = network.to(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], object]] = {
        "eager": lambda: network(images),
        "eager, channels-last weights": lambda: last(images),
    }
    module = Exported(network, raw=False)
    traced = torch.jit.trace(module, images, check_trace=False)
    frozen = torch.jit.freeze(traced)
    calls["frozen trace"] = lambda: frozen(images)
    if folder is not None:
        path = folder / "network2d.onnx"
        if not path.exists():
            write(module, path, images.shape[-1])
        session = open_session(path, threads)
        feed = {"images": images.numpy()}
        calls["ONNX Runtime"] = lambda: session.run(None, feed)
    return calls


def parts(network: Network2D, images: Tensor) -> dict[str, Callable[[], object]]:
    """The stages of an eager call, each on what the one before it gives."""
    images = images.contiguous(memory_format=torch.channels_last)
    maps = network.backbone(images)
    logits, features = network.head(maps)
    moments = heatmap_moments(logits)
    return {
        "backbone": lambda: network.backbone(images),
        "head": lambda: network.head(maps),
        "softmax over pixels": lambda: logits.flatten(-2).softmax(-1),
        "decoding, softmax included": lambda: heatmap_moments(logits),
        "covariance and confidence": lambda: network.reliability(moments, features),
    }
