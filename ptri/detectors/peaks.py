"""What the peak of a heatmap says of a keypoint's error: covariance and confidence.

Networks that were published without uncertainty say something of it all the same: a low or a wide
peak, or one far from where the body's centre expects the joint, is often wrong. A few numbers,
calibrated on people whose joints are known, turn that into a covariance and a chance of being
right. They travel in the ``meta`` of the weights, as "peaks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ptri import checkpoint
from ptri.errors import UserError
from ptri.structures import constant, to_device

RADIUS = 3  # cells about the peak whose second moments count
LEAST_HEIGHT = 1e-4  # guards the logarithm of a peak that is none
RIGHT = 0.05  # of the crop's side: a keypoint within it is right
RIDGE = 1e-3  # on the squares of the numbers, where few crops leave them open
DEGREES = 3.0  # of freedom of the t law that the size of errors is fitted by: few gross ones


class Peaks(NamedTuple):
    """The peaks of N heatmaps of J joints, in px of the picture."""

    xy: Tensor  # (N, J, 2) the keypoints
    height: Tensor  # (N, J) of the peaks, 0 to 1
    moments: Tensor  # (N, J, 2, 2) px^2 of the heatmap within `RADIUS` cells of the peak
    expected: Tensor  # (N, J, 2) where the person's centre expects the joints


class PeakErrors(NamedTuple):
    """How errors follow from peaks; `peak_features` are multiplied by these numbers."""

    log_variance: tuple[float, ...]  # (4,) of log px^2 in a crop of 256 px
    confidence: tuple[float, ...]  # (4,) of the logit of being within `RIGHT`
    joints: tuple[float, ...] = ()  # (J,) added to the log variance
    shape: float = 0.5  # share of the moments' own shape in the covariance's; the rest is round


def read_peak_errors(meta: Mapping[str, Any], num_joints: int, path: str | Path) -> PeakErrors:
    """The numbers in the metadata of weights.

    Raises:
        UserError: they are missing or make no sense.
    """
    try:
        stored = dict(meta["peaks"])
        numbers = {name: tuple(map(float, stored[name])) for name in stored if name != "shape"}
        errors = PeakErrors(**numbers, shape=float(stored["shape"]))
        lengths = [len(part) for part in errors[:3]]
        good = lengths == [4, 4, num_joints] and 0 <= errors.shape <= 1
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise UserError(
            f"{path}: meta: peaks: expected log_variance and confidence (4 numbers each), joints "
            f"({num_joints}) and shape (0 to 1); take the shipped file"
        )
    return errors


def peak_moments(heatmaps: Tensor, cells: Tensor) -> Tensor:
    """Second moments of heatmaps about cells.

    Args:
        heatmaps: (N, J, h, w), not negative. cells: (N, J) int64, row times w plus column.

    Returns:
        (N, J, 2, 2) cells^2, of x and y, about the window's mean; at least a cell's own 1/12.
    """
    height, width = heatmaps.shape[-2:]
    steps = torch.arange(-RADIUS, RADIUS + 1, device=cells.device)
    rows = (cells // width)[..., None, None] + steps[:, None]  # (N, J, 7, 1)
    columns = (cells % width)[..., None, None] + steps  # (N, J, 1, 7)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    window = heatmaps.flatten(-2).gather(-1, index.flatten(-2)).unflatten(-1, index.shape[-2:])
    window = window * inside
    weight = window / window.sum((-2, -1), keepdim=True).clamp_min(LEAST_HEIGHT)
    place = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).to(weight)  # (7, 7, 2)
    mean = torch.einsum("njab,abc->njc", weight, place)
    second = torch.einsum("njab,abc,abd->njcd", weight, place, place)
    eye = torch.eye(2, dtype=weight.dtype, device=weight.device)
    return second - mean[..., :, None] * mean[..., None, :] + eye / 12


def peak_features(peaks: Peaks, side: int) -> Tensor:
    """(N, J, 4): one; logs of the peak's height, of its mean variance and of the distance to where
    the joint was expected, both in px of a crop of 256 px.

    Args:
        side: px of the crops.
    """
    scale = 256 / side
    variance = peaks.moments.diagonal(dim1=-2, dim2=-1).mean(-1)
    strayed = (peaks.xy - peaks.expected).norm(dim=-1)
    features = (
        torch.ones_like(variance),
        peaks.height.clamp_min(LEAST_HEIGHT).log(),
        (variance * scale**2).log(),
        torch.log1p(strayed * scale),
    )
    return torch.stack(features, -1)


def peak_covariance(peaks: Peaks, side: int, errors: PeakErrors) -> tuple[Tensor, Tensor]:
    """Covariances (N, J, 2, 2) px^2 and confidences (N, J) of peaks in crops of a side in px."""
    features = peak_features(peaks, side)
    given = (*errors[:3], errors.shape)
    size, sure, joints, shape = (constant(v, features.device, features.dtype) for v in given)
    covariance = _covariance(features, peaks.moments, size, joints, shape) * (side / 256) ** 2
    return covariance, (features @ sure).sigmoid()


def _covariance(
    features: Tensor, moments: Tensor, size: Tensor, joints: Tensor, shape: Tensor
) -> Tensor:
    """(N, J, 2, 2) px^2 in a crop of 256 px; numbers as in `PeakErrors`."""
    variance = (features @ size + joints).exp()[..., None, None]
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(2, dtype=moments.dtype, device=moments.device)
    return variance * (shape * moments / mean + (1 - shape) * eye)


def fit_peak_errors(peaks: Peaks, truth: Tensor, side: int, hold: float = 0.9) -> PeakErrors:
    """The numbers under which peaks tell their errors best.

    Sizes by the likelihood of a t law, which a few gross errors do not rule; then all ellipses are
    made larger or smaller so that the share ``hold`` of truths lies in those of that level.

    Args:
        peaks: of N crops, on any device. truth: (N, J, 2) px of the crops, on the CPU, where all
            is fitted; NaN = not known.
        side: px of the crops.
    """
    peaks = to_device(peaks, truth.device)
    known = torch.isfinite(truth).all(-1)
    features, moments = peak_features(peaks, side).double(), peaks.moments.double()
    off = torch.where(known[..., None], truth - peaks.xy, 0.0).double() * (256 / side)
    right = (off.norm(dim=-1) < RIGHT * 256).double()
    size, sure, joints, shape = (torch.zeros(n).double() for n in (4, 4, truth.shape[1], ()))
    parameters = [part.requires_grad_() for part in (size, sure, joints, shape)]
    optimizer = torch.optim.LBFGS(parameters, max_iter=400, line_search_fn="strong_wolfe")

    def error_square() -> tuple[Tensor, Tensor]:
        covariance = _covariance(features, moments, size, joints, shape.sigmoid())
        square = torch.einsum("nja,njab,njb->nj", off, torch.linalg.inv(covariance), off)
        return square, torch.logdet(covariance)

    def loss() -> Tensor:
        optimizer.zero_grad()
        square, log_det = error_square()
        surprise = 0.5 * log_det + (DEGREES + 2) / 2 * torch.log1p(square / DEGREES)
        entropy = F.binary_cross_entropy_with_logits(features @ sure, right, reduction="none")
        value = (surprise + entropy)[known].mean()
        value = value + RIDGE * sum(part.square().sum() for part in parameters)
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        # Of a Gaussian in the plane, the square is below -2 log(1 - p) with probability p.
        factor = error_square()[0][known].quantile(hold) / (-2 * math.log(1 - hold))
        size[0] += factor.log() + joints.mean()
        joints -= joints.mean()
        numbers = (tuple(part.tolist()) for part in (size, sure, joints))
        return PeakErrors(*numbers, shape=shape.sigmoid().item())


def write_peak_errors(path: str | Path, errors: PeakErrors) -> None:
    """Writes the numbers into the metadata of a file of weights, which stay as they are.

    Raises:
        UserError: a missing or corrupt file.
    """
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in errors._asdict().items()}
    checkpoint.change_meta(path, "peaks", plain)
