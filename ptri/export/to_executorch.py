"""ExecuTorch: a .pte of backbone and head, lowered to XNNPACK for the CPUs of phones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ptri.export.files import missing
from ptri.export.graph import Exported

PRECISIONS = ("float32", "w8a8")
SUFFIX = ".pte"


def write(
    module: Exported, path: str | Path, size: int, precision: str, calibration: np.ndarray
) -> None:
    """Lowers and saves; the program takes (1, 3, S, S) float32 RGB, 0 to 255.

    Args:
        module: gives heatmaps. size: px. precision: one of `PRECISIONS`.
        calibration: (N, 3, S, S) uint8 images, whose activations set the scales of w8a8.

    Raises:
        UserError: executorch is not installed.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise missing(error, "executorch") from None
    image = torch.zeros(1, 3, size, size)
    model: nn.Module = module
    with torch.no_grad():
        if precision == "w8a8":
            model = _quantise(module, image, torch.from_numpy(calibration).float())
        program = torch.export.export(model, (image,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        Path(path).write_bytes(lowered.to_executorch().buffer)


def run(path: str | Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The saved program on this CPU, one thread: images (N, 3, S, S) uint8 to logits and features.

    Raises:
        UserError: executorch is not installed.
    """
    try:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    except ImportError as error:
        raise missing(error, "executorch") from None
    portable_lib._unsafe_reset_threadpool(1)  # before the first call, as its name asks
    method = Runtime.get().load_program(str(path)).load_method("forward")

    def call(images: np.ndarray) -> list[np.ndarray]:
        results = [
            [part.numpy().copy() for part in method.execute([image[None]])]
            for image in torch.from_numpy(images).float()
        ]
        return [np.concatenate(part) for part in zip(*results)]

    return call


def _quantise(module: Exported, image: Tensor, images: Tensor) -> nn.Module:
    """Weights of 8 bits, a scale a channel; activations of 8 bits with scales from the images."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(True))
    prepared = prepare_pt2e(torch.export.export(module, (image,)).module(), quantizer)
    for single in images:
        prepared(single[None])
    return convert_pt2e(prepared)
