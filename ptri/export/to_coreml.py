"""Core ML: an .mlpackage of backbone and head, for iOS 16 and macOS 13 or later.

coremltools converts on Linux, but Core ML runs on Apple's systems only; `run` interprets the saved
package (`mil`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from ptri.export import mil
from ptri.export.files import missing
from ptri.export.graph import HEATMAPS, Exported

# w8 and palette6 compress weights (a scale a channel; 64 values a tensor, found by k-means) and
# compute in float16.
PRECISIONS = ("float16", "float32", "w8", "palette6", "w8a8")
SUFFIX = ".mlpackage"


def write(
    module: Exported, path: str | Path, size: int, precision: str, calibration: np.ndarray
) -> None:
    """Converts and saves; the package takes an RGB image.

    Args:
        module: gives heatmaps. size: px. precision: one of `PRECISIONS`.
        calibration: (N, 3, S, S) uint8 images, whose activations set the scales of w8a8.

    Raises:
        UserError: coremltools is not installed.
    """
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it says that it is not on a Mac
    try:
        import coremltools as ct
        import coremltools.optimize.coreml as cto
    except ImportError as error:
        raise missing(error, "coreml") from None
    # Without decompositions attention stays one operation, which becomes a plain softmax.
    program = torch.export.export(module, (torch.zeros(1, 3, size, size),)).run_decompositions({})
    shape = (1, 3, size, size)
    kind = "FLOAT32" if precision == "float32" else "FLOAT16"
    # Quantised activations need iOS 17.
    target = ct.target.iOS17 if precision == "w8a8" else ct.target.iOS16
    model = ct.convert(
        program,
        inputs=[ct.ImageType("image", shape, color_layout=ct.colorlayout.RGB)],
        outputs=[ct.TensorType(name) for name in HEATMAPS],
        compute_precision=getattr(ct.precision, kind),
        minimum_deployment_target=target,
    )
    eight = cto.OptimizationConfig(cto.OpLinearQuantizerConfig(mode="linear_symmetric"))
    if precision == "w8a8":
        model = _quantise_activations(model, eight, path, calibration)
    if precision in ("w8", "w8a8"):
        model = cto.linear_quantize_weights(model, eight)
    elif precision == "palette6":
        palette = cto.OpPalettizerConfig(mode="kmeans", nbits=6)
        # Depthwise kernels are few, and their channels too unlike for one palette.
        (function,) = model._mil_program.functions.values()
        depthwise = [op.name for op in function.find_ops(op_type="conv") if op.groups.val > 1]
        config = cto.OptimizationConfig(palette, op_name_configs=dict.fromkeys(depthwise))
        model = cto.palettize_weights(model, config)
    model.short_description = "Keypoint heatmaps of a square crop of one person, before softmax"
    _save(model, path)


def run(path: str | Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    """What a saved package computes: images (N, 3, S, S) uint8 to logits and features."""
    program = mil.read_program(path)

    def call(images: np.ndarray) -> list[np.ndarray]:
        results = [mil.run(program, image[None]) for image in images]
        return [np.concatenate(part) for part in zip(*results)]

    return call


def _save(model, path: str | Path) -> None:
    model.save(str(path))
    # A note for another program's debugger, which coremltools leaves in the package.
    (Path(path) / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _quantise_activations(model, config, path: str | Path, images: np.ndarray):
    """coremltools' own pass, with ranges that our interpreter finds in place of Core ML's."""
    import coremltools.optimize.coreml as cto
    from coremltools.optimize.coreml import _post_training_quantization as passes

    _save(model, path)
    program = mil.read_program(path)
    ranges: dict[str, dict[str, float]] = {}

    def watch(name: str, value: np.ndarray) -> None:
        old = ranges.get(name, {"rmin": np.inf, "rmax": -np.inf})
        low, high = float(value.min()), float(value.max())
        ranges[name] = {"rmin": min(low, old["rmin"]), "rmax": max(high, old["rmax"])}

    for image in images:
        mil.run(program, image[None], watch)
    with mock.patch.object(passes, "_get_activation_calibration_stats", lambda *_: ranges):
        return cto.linear_quantize_activations(model, config, [{"image": images[0]}])
