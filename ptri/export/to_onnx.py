"""ONNX: the whole network in one graph, for any number of images."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.export.graph import Exported
from ptri.skeleton import H36M17

_INSTALL = 'make onnx installs it, or pip install -e ".[export]"'


def write(module: Exported, path: str | Path, size: int) -> None:
    """Writes a graph for any number of square images of ``size`` px.

    Raises:
        UserError: onnx is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError(f"{error.name} is missing; {_INSTALL}") from None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.zeros(2, 3, size, size)
    names = {"input_names": ["images"], "output_names": list(module.outputs)}
    shapes = ({0: torch.export.Dim("N", min=1, max=4096)},)
    model = torch.onnx.export(
        module, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names
    ).model_proto
    notes: dict[str, Any] = {
        "input": "RGB 0-255 float32" if module.raw else "ImageNet-normalised RGB float32",
        "size": size,
        "joints": list(H36M17.joints),
        "pixels": "integer coordinates are pixel centres",
    }
    onnx.helper.set_model_props(model, {k: json.dumps(v) for k, v in notes.items()})
    onnx.save(model, str(path))


def open_session(path: str | Path, threads: int = 1):
    """An ONNX Runtime session on the CPU with so many threads.

    Raises:
        UserError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"onnxruntime is missing; {_INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait without spinning, as everywhere else here: see OMP_WAIT_POLICY.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(module: Exported, path: str | Path, images: Tensor) -> dict[str, float]:
    """Largest differences of keypoints to eager: px, relative, and of the confidence.

    Args:
        module: one that decodes. images: (N, 3, H, W) as the graph takes them.
    """
    outputs = open_session(path).run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = [part.numpy() for part in module(images)]
    away = [np.abs(a - b) for a, b in zip(outputs, expected)]
    away[1] /= np.abs(expected[1]).max((-1, -2), keepdims=True)
    return {name: float(value.max()) for name, value in zip(module.outputs, away)}
