"""LiteRT (once TensorFlow Lite): a .tflite of backbone and head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ptri.export.files import missing
from ptri.export.graph import Exported

# float16 and w8 store weights so and compute in float32.
PRECISIONS = ("float32", "float16", "w8", "w8a8")
SUFFIX = ".tflite"


def write(
    module: Exported, path: str | Path, size: int, precision: str, calibration: np.ndarray
) -> None:
    """Converts and saves; takes (1, S, S, 3) float32 RGB, 0 to 255; w8a8 takes and gives int8.

    Args:
        module: gives heatmaps. size: px. precision: one of `PRECISIONS`.
        calibration: (N, 3, S, S) uint8 images, whose activations set the scales of w8a8.

    Raises:
        UserError: litert-torch is not installed.
    """
    try:
        import litert_torch
    except ImportError as error:
        raise missing(error, "litert") from None
    channels_last = litert_torch.to_channel_last_io(module, args=[0], outputs=[0, 1]).eval()
    model = litert_torch.convert(channels_last, (torch.zeros(1, size, size, 3),))
    model.export(str(path))
    if precision != "float32":
        _quantise(Path(path), precision, calibration)


def run(path: str | Path) -> Callable[[np.ndarray], list[np.ndarray]]:
    """The saved model on this CPU, one thread: images (N, 3, S, S) uint8 to logits and features.

    Raises:
        UserError: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise missing(error, "litert") from None
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    wanted = interpreter.get_output_details()

    def single(image: np.ndarray) -> list[np.ndarray]:
        image = np.ascontiguousarray(image.transpose(1, 2, 0)[None], np.float32)
        interpreter.set_tensor(given["index"], _to_integers(image, given))
        interpreter.invoke()
        values = [_to_floats(interpreter.get_tensor(part["index"]), part) for part in wanted]
        return [value.transpose(0, 3, 1, 2) for value in values]

    def call(images: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate(part) for part in zip(*(single(image) for image in images))]

    return call


def _quantise(path: Path, precision: str, images: np.ndarray) -> None:
    """Rewrites a file in another precision; 8-bit weights have a scale a channel."""
    from ai_edge_quantizer import qtyping, quantizer, recipe

    model, ranges = quantizer.Quantizer(str(path)), None
    if precision == "float16":
        half = qtyping.TensorQuantizationConfig(16, dtype=qtyping.TensorDataType.FLOAT)
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half,
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        )
        model.update_quantization_recipe(
            ".*", qtyping.TFLOperationName.ALL_SUPPORTED, config, "float_casting"
        )
    elif precision == "w8":
        model.load_quantization_recipe(recipe.weight_only_wi8_afp32())
    else:
        model.load_quantization_recipe(recipe.static_wi8_ai8())
        arrays = np.ascontiguousarray(images.transpose(0, 2, 3, 1), np.float32)
        ranges = model.calibrate({"serving_default": [{"args_0": x[None]} for x in arrays]})
    content = model.quantize(ranges).quantized_model
    path.write_bytes(content)


def _to_integers(values: np.ndarray, details: dict) -> np.ndarray:
    if details["dtype"] == np.float32:
        return values
    scale, zero = details["quantization"]
    limits = np.iinfo(details["dtype"])
    return (np.rint(values / scale) + zero).clip(limits.min, limits.max).astype(details["dtype"])


def _to_floats(values: np.ndarray, details: dict) -> np.ndarray:
    if details["dtype"] == np.float32:
        return values
    scale, zero = details["quantization"]
    return (values.astype(np.float32) - zero) * scale
