"""The 2D network as an ONNX graph: image to keypoints with covariance and confidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptri.data.transforms import IMAGE_MEAN, IMAGE_STD
from ptri.errors import UserError
from ptri.models.mobileone import has_branches
from ptri.models.network2d import Network2D
from ptri.skeleton import H36M17

OUTPUTS = ("xy", "covariance", "confidence")
_INSTALL = "install them: pip install 'ptri[export]'"


class Exported(nn.Module):
    """The network between plain tensors, with the images' normalisation inside if wanted."""

    def __init__(self, network: Network2D, raw: bool = True) -> None:
        super().__init__()
        self.network, self.raw = network, raw
        mean, std = (torch.from_numpy(255 * v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
        self.register_buffer("scale", 1 / std, persistent=False)
        self.register_buffer("shift", mean / std, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            images: (N, 3, H, W) float32 RGB, 0 to 255 where ``raw``, else normalised.

        Returns:
            xy (N, J, 2) px, covariance (N, J, 2, 2) px^2, confidence (N, J).
        """
        if self.raw:
            images = images * self.scale - self.shift
        return tuple(self.network(images).keypoints)


def export(network: Network2D, path: str | Path, size: int, raw: bool = True) -> None:
    """Writes a network with merged BatchNorms, for any number of square images of ``size`` px.

    Raises:
        UserError: onnx is not installed, or BatchNorms are not merged.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError(f"{error.name} is missing; {_INSTALL}") from None
    if has_branches(network):
        raise UserError("BatchNorm is not merged; use ptri.models.mobileone.merge_batchnorm first")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    module = Exported(network, raw).eval()
    images = torch.zeros(2, 3, size, size)
    names = {"input_names": ["images"], "output_names": list(OUTPUTS)}
    shapes = ({0: torch.export.Dim("N", min=1, max=4096)},)
    model = torch.onnx.export(
        module, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names
    ).model_proto
    notes: dict[str, Any] = {
        "input": "RGB 0-255 float32" if raw else "ImageNet-normalised RGB float32",
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


def compare(
    network: Network2D, path: str | Path, images: Tensor, raw: bool = True
) -> dict[str, float]:
    """Largest differences between the graph and eager: px, relative, and of the confidence.

    Args:
        images: (N, 3, H, W) as the graph takes them.
    """
    outputs = open_session(path).run(list(OUTPUTS), {"images": images.numpy()})
    with torch.no_grad():
        expected = [part.numpy() for part in Exported(network, raw)(images)]
    away = [np.abs(a - b) for a, b in zip(outputs, expected)]
    away[1] /= np.abs(expected[1]).max((-1, -2), keepdims=True)
    return {name: float(value.max()) for name, value in zip(OUTPUTS, away)}
