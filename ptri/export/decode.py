"""Heatmaps and features to keypoints with covariance and confidence, in NumPy alone.

What an application does with the outputs of an exported network (docs/phones.md has the formulas);
the same as `ptri.models.heatmap`, which this is tested against.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ptri.models.heatmap import MAX_ANISOTROPY, MIN_VARIANCE, STRIDE, WINDOW, Reliability


class Decoder(NamedTuple):
    """The weights that turn what a heatmap looks like into covariance and confidence; K hidden."""

    feature_weight: np.ndarray  # (K, C)
    feature_bias: np.ndarray  # (K,)
    statistics_weight: np.ndarray  # (K, 4)
    statistics_bias: np.ndarray  # (K,)
    joint_bias: np.ndarray  # (J, K)
    output_weight: np.ndarray  # (2, K): log of the size, confidence's logit
    output_bias: np.ndarray  # (2,)
    blur: np.ndarray  # () heatmap px^2


def decoder_of(reliability: Reliability) -> Decoder:
    """The weights of a network's `Reliability`, float32."""
    parts = reliability.features, reliability.statistics, reliability.output
    (feature, statistics, output) = ((part.weight, part.bias) for part in parts)
    tensors = *feature, *statistics, reliability.joint, *output, reliability.blur
    return Decoder(*(tensor.detach().cpu().float().numpy() for tensor in tensors))


def write_decoder(path: str | Path, decoder: Decoder, size: int, joints: list[str]) -> None:
    """Writes all that decoding needs beside the package, as JSON.

    Args:
        size: px, of the images. joints: their names, in order.
    """
    constants = {
        "image_size": size,
        "joints": joints,
        "stride": STRIDE,
        "window": WINDOW,
        "max_anisotropy": MAX_ANISOTROPY,
        "min_variance": MIN_VARIANCE,
    }
    weights = {name: value.tolist() for name, value in decoder._asdict().items()}
    Path(path).write_text(json.dumps({**constants, **weights}) + "\n")


def read_decoder(path: str | Path) -> Decoder:
    """The weights that `write_decoder` wrote."""
    content = json.loads(Path(path).read_text())
    return Decoder(*(np.asarray(content[name], np.float32) for name in Decoder._fields))


def decode(
    logits: np.ndarray, features: np.ndarray, decoder: Decoder
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints of N images.

    Args:
        logits: (N, J, h, w). features: (N, C, h, w).

    Returns:
        xy (N, J, 2) px of the image, integer coordinates at pixel centres; covariance
        (N, J, 2, 2) px^2; confidence (N, J) in [0, 1].
    """
    logits, features = logits.astype(np.float32), features.astype(np.float32)
    height, width = logits.shape[-2:]
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    # 1. The heatmap: softmax over pixels.
    probability = np.exp(logits - logits.max((-1, -2), keepdims=True))
    probability /= probability.sum((-1, -2), keepdims=True)  # (N, J, h, w)
    # 2. The mode, then the mean of a window around it: the centre of the window that counts.
    flat = probability.reshape(*probability.shape[:2], -1)
    index, peak = flat.argmax(-1), flat.max(-1)
    centre_x, centre_y = (index % width).astype(np.float32), (index // width).astype(np.float32)
    cut = probability * _window(x, y, centre_x, centre_y)
    mass = cut.sum((-1, -2))
    centre_x = (cut.sum(-2) * x).sum(-1) / mass
    centre_y = (cut.sum(-1) * y).sum(-1) / mass
    # 3. Moments of that window.
    cut = probability * _window(x, y, centre_x, centre_y)
    mass = cut.sum((-1, -2))  # (N, J)
    dx, dy = x - centre_x[..., None], y - centre_y[..., None]  # (N, J, w), (N, J, h)
    along_x, along_y = cut.sum(-2) / mass[..., None], cut.sum(-1) / mass[..., None]
    mean_x, mean_y = (along_x * dx).sum(-1), (along_y * dy).sum(-1)
    var_x = (along_x * dx**2).sum(-1) - mean_x**2
    var_y = (along_y * dy**2).sum(-1) - mean_y**2
    mixed = ((cut * dx[..., None, :]).sum(-1) * dy).sum(-1) / mass - mean_x * mean_y
    xy = np.stack([centre_x + mean_x, centre_y + mean_y], -1)
    # 4. Size of the error and confidence, from the window and the features under the heatmap.
    variance = (var_x + var_y) / 2 + MIN_VARIANCE
    half, eye = (var_x - var_y) / 2, np.eye(2, dtype=np.float32)
    radius = np.sqrt(half**2 + mixed**2 + MIN_VARIANCE**2)
    pooled = flat @ features.reshape(*features.shape[:2], -1).transpose(0, 2, 1)  # (N, J, C)
    statistics = np.stack([np.log(peak), np.log(mass), np.log(variance), radius / variance], -1)
    hidden = pooled @ decoder.feature_weight.T + decoder.feature_bias
    hidden += statistics @ decoder.statistics_weight.T + decoder.statistics_bias
    hidden = np.maximum(hidden + decoder.joint_bias, 0)
    output = hidden @ decoder.output_weight.T + decoder.output_bias  # (N, J, 2)
    size = variance * np.exp(10 * np.tanh(output[..., 0] / 5))
    scale = np.maximum(variance - decoder.blur, radius / MAX_ANISOTROPY)
    deviation = np.stack([half, mixed, mixed, -half], -1).reshape(*half.shape, 2, 2)
    shape = eye + deviation / scale[..., None, None]
    confidence = 1 / (1 + np.exp(-output[..., 1]))
    return (xy + 0.5) * STRIDE - 0.5, size[..., None, None] * shape * STRIDE**2, confidence


def _window(x: np.ndarray, y: np.ndarray, centre_x: np.ndarray, centre_y: np.ndarray) -> np.ndarray:
    """The window (N, J, h, w) about centres (N, J), its edges one pixel soft; x (w,), y (h,)."""
    along_x = np.clip(WINDOW + 0.5 - np.abs(x - centre_x[..., None]), 0, 1)
    along_y = np.clip(WINDOW + 0.5 - np.abs(y - centre_y[..., None]), 0, 1)
    return along_y[..., :, None] * along_x[..., None, :]
