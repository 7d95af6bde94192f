"""Core ML's operations that our networks become, in NumPy: what `mil` runs.

Each takes float32 or integer arrays named as Core ML names its inputs (the MIL operators of
coremltools' reference), one image at a time where images are meant, and is not rounded: `mil`
rounds each result to the type that the program declares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ptri.errors import UserError

Array = np.ndarray


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    strides: Sequence[int] = (1, 1),
    pad_type: str = "valid",
    pad: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolution, x (1, C, H, W), weight (D, C / groups, kh, kw), pad before and after H, then W.

    A sum over the kernel's places: each is a product of matrices, or, where each channel has a
    kernel of its own, of numbers.
    """
    if pad_type not in ("custom", "valid") or tuple(dilations) != (1, 1) or len(x) != 1:
        raise UserError(f"conv: pad_type {pad_type}, dilations {dilations} of {len(x)}: not known")
    before_y, after_y, before_x, after_x = pad if pad_type == "custom" else (0, 0, 0, 0)
    x = np.pad(x[0], ((0, 0), (before_y, after_y), (before_x, after_x)))
    outputs, inputs, rows, columns = weight.shape
    height = (x.shape[1] - rows) // strides[0] + 1
    width = (x.shape[2] - columns) // strides[1] + 1
    weight = weight.reshape(groups, outputs // groups, inputs, rows, columns)
    result = np.zeros((groups, outputs // groups, height * width), np.float32)
    for row in range(rows):
        for column in range(columns):
            part = x[:, row:, column:][:, :: strides[0], :: strides[1]][:, :height, :width]
            part = part.reshape(groups, inputs, height * width)
            kernel = weight[..., row, column]  # (groups, D / groups, C / groups)
            result += kernel * part if inputs == 1 else kernel @ part
    result = result.reshape(1, outputs, height, width)
    return result if bias is None else result + bias[:, None, None]


def layer_norm(x: Array, axes: Sequence[int], gamma: Array, beta: Array, epsilon: float) -> Array:
    axes = tuple(axes)
    centred = x - x.mean(axes, keepdims=True)
    variance = (centred**2).mean(axes, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * gamma + beta


def softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def linear(x: Array, weight: Array, bias: Array) -> Array:
    return x @ weight.T + bias


def matmul(x: Array, y: Array, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    x = x.swapaxes(-1, -2) if transpose_x else x
    return x @ (y.swapaxes(-1, -2) if transpose_y else y)


def split(x: Array, split_sizes: Sequence[int], axis: int) -> list[Array]:
    return np.split(x, np.cumsum(split_sizes)[:-1], axis)


def upsample_nearest_neighbor(
    x: Array, scale_factor_height: float, scale_factor_width: float
) -> Array:
    return x.repeat(int(scale_factor_height), -2).repeat(int(scale_factor_width), -1)


def cast(x: Array, dtype: str) -> Array:
    kinds = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32}
    return x.astype(kinds[dtype])


# --- compressed weights and activations --------------------------------------------------------


def constexpr_affine_dequantize(
    quantized_data: Array, scale: Array, zero_point: Array, axis: int
) -> Array:
    """Weights of 8 bits, scaled along one axis."""
    shape = [1] * quantized_data.ndim
    if np.ndim(scale):
        shape[axis] = -1
    away = quantized_data.astype(np.float32) - np.reshape(zero_point, shape).astype(np.float32)
    return away * np.reshape(scale, shape)


def constexpr_lut_to_dense(indices: Array, lut: Array, shape: Array) -> Array:
    """Palettes: indices of log2(len(lut)) bits each, packed into bytes from the lowest bit on."""
    bits = len(lut).bit_length() - 1
    count = int(np.prod(shape))
    digits = np.unpackbits(indices.view(np.uint8), bitorder="little")[: count * bits]
    place = digits.reshape(count, bits) @ (1 << np.arange(bits))
    return lut[place].reshape(shape)


def quantize(input: Array, scale: Array, output_dtype: str, zero_point: Array = 0) -> Array:
    """Activations to 8 bits, one scale for all."""
    limits = np.iinfo(output_dtype)
    steps = np.rint(input / scale) + np.asarray(zero_point, np.float32)
    return steps.clip(limits.min, limits.max).astype(output_dtype)


def dequantize(input: Array, scale: Array, zero_point: Array = 0) -> Array:
    return (input.astype(np.float32) - np.asarray(zero_point, np.float32)) * scale


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "cast": cast,
    "constexpr_affine_dequantize": constexpr_affine_dequantize,
    "constexpr_lut_to_dense": constexpr_lut_to_dense,
    "conv": conv,
    "dequantize": dequantize,
    "layer_norm": layer_norm,
    "linear": linear,
    "matmul": matmul,
    "mul": lambda x, y: x * y,
    "quantize": quantize,
    "relu": lambda x: np.maximum(x, 0),
    "reshape": lambda x, shape: x.reshape(shape),
    "softmax": softmax,
    "split": split,
    "squeeze": lambda x, axes: x.squeeze(tuple(axes)),
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: x.transpose(perm),
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
