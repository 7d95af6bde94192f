"""How far an exported network's keypoints are from PyTorch's, on real images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ptri import config
from ptri.data.multiview import open_split
from ptri.data.transforms import IMAGE_MEAN, IMAGE_STD
from ptri.export.decode import Decoder, decode
from ptri.models.network2d import Network2D

FOUND = 0.05  # of the image's side: a keypoint within it of the truth counts as found
EXACT = 1e-3  # px, every joint of a float32 file
CLOSE = 0.05  # px, 95 % of the joints of a float16 file
SAME_PEAK = 0.2  # px, its others, but for those whose heatmap has another highest pixel
COARSE = 5.0  # px, the mean of 8 bits and palettes: what they cost is printed, not judged
HEADS = ["mean", "95 %", "largest", "moved", "of others", "error", "found"]


class Images(NamedTuple):
    """N crops with their truth."""

    pixels: np.ndarray  # (N, 3, S, S) uint8 RGB
    truth: np.ndarray  # (N, J, 2) px
    visible: np.ndarray  # (N, J) bool


class Reference(NamedTuple):
    """What PyTorch says of N images in float32."""

    xy: np.ndarray  # (N, J, 2) px
    peak: np.ndarray  # (N, J) place of the heatmap's highest pixel


class Differences(NamedTuple):
    """Of keypoints, over all joints of all images."""

    mean: float  # px to PyTorch's
    p95: float
    largest: float
    # Share of joints whose heatmap has its highest pixel elsewhere. Where two are nearly as high
    # the last bit decides, and decoding starts from another one: a jump that no runtime can avoid.
    moved: float
    largest_of_others: float
    error: float  # mean px to the truth, of visible joints
    found: float  # share of those within `FOUND`

    def row(self) -> list[str]:
        """For a table with `HEADS`."""
        away = [f"{value:.2g}" for value in (self.mean, self.p95, self.largest)]
        moved, others = f"{100 * self.moved:.1f} %", f"{self.largest_of_others:.2g}"
        return [*away, moved, others, f"{self.error:.2f}", f"{100 * self.found:.1f} %"]

    def agrees(self, precision: str) -> bool:
        """Whether a file of this precision computes what the network does."""
        if precision == "float32":
            return self.largest <= EXACT
        if precision == "float16":
            return self.p95 <= CLOSE and self.largest_of_others <= SAME_PEAK
        return self.mean <= COARSE


def read_images(root: str, subjects: list[int], size: int, every: int = 1) -> Images:
    """Crops of a data set in Human3.6M's layout, all views of every n-th frame.

    Raises:
        UserError: as `open_split`.
    """
    settings = [f"data.root={root}", f"data.test_subjects={subjects}", f"data.image_size={size}"]
    data = open_split(config.load(None, ["run.name=export", *settings]), "test")
    samples = [data[item] for item in range(0, len(data), every)]
    images, truth, visible = (
        torch.cat([getattr(sample, name) for sample in samples]).numpy()
        for name in ("images", "joints2d", "visible")
    )
    raw = 255 * (images * IMAGE_STD[:, None, None] + IMAGE_MEAN[:, None, None])
    return Images(np.rint(raw).astype(np.uint8), truth, visible)


@torch.no_grad()
def reference(network: Network2D, pixels: np.ndarray) -> Reference:
    """PyTorch's keypoints of raw images, (N, 3, S, S) uint8."""
    mean, std = (torch.from_numpy(255 * value)[:, None, None] for value in (IMAGE_MEAN, IMAGE_STD))
    parts = [network((part - mean) / std) for part in torch.from_numpy(pixels).float().split(8)]
    xy = torch.cat([part.keypoints.xy for part in parts]).numpy()
    return Reference(xy, np.concatenate([_peak(part.logits.numpy()) for part in parts]))


def compare(
    outputs: list[np.ndarray], decoder: Decoder, expected: Reference, images: Images
) -> Differences:
    """
    Args:
        outputs: logits and features of an exported network. decoder: its weights for decoding.
    """
    xy, _, _ = decode(*outputs, decoder)
    away = np.linalg.norm(xy - expected.xy, axis=-1)  # (N, J)
    moved = _peak(outputs[0]) != expected.peak
    error, found = accuracy(xy, images)
    return Differences(
        mean=float(away.mean()),
        p95=float(np.quantile(away, 0.95)),
        largest=float(away.max()),
        moved=float(moved.mean()),
        largest_of_others=float(away.max(initial=0, where=~moved)),
        error=error,
        found=found,
    )


def accuracy(xy: np.ndarray, images: Images) -> tuple[float, float]:
    """Mean distance to the truth, px, and the share found, of visible joints; xy (N, J, 2)."""
    error = np.linalg.norm(xy - images.truth, axis=-1)[images.visible]
    return float(error.mean()), float((error < FOUND * images.pixels.shape[-1]).mean())


def _peak(logits: np.ndarray) -> np.ndarray:
    return logits.reshape(*logits.shape[:2], -1).argmax(-1)
