"""MoveNet thunder: one person's 17 keypoints in a square crop of 256 px.

Google's single-person network (2021, Apache-2.0), ported from its TensorFlow.js graph by
``scripts/convert_movenet.py``. The graph chooses the person whose centre is most central, looks
where that centre expects the joints, takes each heatmap's peak near there, and adds the offset that
is told in the peak's cell. The covariance is ours (`ptri.detectors.peaks`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptri import checkpoint
from ptri.data.transforms import IMAGE_MEAN, IMAGE_STD
from ptri.detectors.centernet import STRIDE, CenterNet, gather_cells, joint_offsets, places
from ptri.detectors.peaks import Peaks, peak_covariance, peak_moments, read_peak_errors
from ptri.errors import UserError
from ptri.models.weights import read_detector
from ptri.skeleton import COCO17
from ptri.structures import Keypoints, cat, constant

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints"
THUNDER = SHIPPED / "movenet_thunder.pt"
NUM_JOINTS = len(COCO17.joints)
WIDTH = 1.75  # of MobileNetV2
HEADS = {
    "center": 1,
    "kpt_heatmap": NUM_JOINTS,
    "kpt_regress": 2 * NUM_JOINTS,
    "kpt_offset": 2 * NUM_JOINTS,
}
IMAGES_AT_ONCE = 4  # on a CPU: activations of more leave its caches
# Both weights fall with the distance in cells as 1 / (distance + this), in float16 as published.
SOFTENING = 1.7998046875


class MoveNet(nn.Module):
    """The network and its decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.network = CenterNet(WIDTH, HEADS)

    def forward(self, pictures: Tensor) -> Peaks:
        """
        Args:
            pictures: (N, 3, 256, 256) RGB, 0 to 255.
        """
        maps = self.network(pictures)
        center, heatmaps = maps["center"].sigmoid(), maps["kpt_heatmap"].sigmoid()
        height, width = heatmaps.shape[-2:]
        rows = torch.arange(height, device=pictures.device)
        columns = torch.arange(width, device=pictures.device)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).float()  # (h, w, 2)
        middle = constant((width // 2, height // 2), grid.device, grid.dtype)
        central = 1 / ((grid - middle).norm(dim=-1) + SOFTENING)
        central = central.half().float()  # a table in the graph
        person = (center[:, 0] * central).flatten(1).argmax(-1, keepdim=True)  # (N, 1)
        # (N, 1, 2 J) -> (N, J, 2) as x, y in cells
        regressed = gather_cells(maps["kpt_regress"], person).unflatten(-1, (-1, 2))[:, 0].flip(-1)
        expected = places(person, width) + regressed
        distance = (grid - expected[:, :, None, None]).norm(dim=-1)  # (N, J, h, w)
        peak = (heatmaps / (distance + SOFTENING)).flatten(-2).argmax(-1)  # (N, J)
        offsets = joint_offsets(maps["kpt_offset"], peak[:, None])[:, 0]
        return Peaks(
            cells_to_picture(places(peak, width) + offsets),
            heatmaps.flatten(-2).gather(-1, peak[..., None])[..., 0],
            peak_moments(heatmaps, peak) * STRIDE**2,
            cells_to_picture(expected),
        )


class MoveNetDetector(nn.Module):
    """A `ptri.detectors.protocol.PoseDetector` by MoveNet."""

    name = "movenet"
    skeleton = COCO17
    image_size = 256
    crop_scale = 1.0

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: weights that ``scripts/convert_movenet.py`` wrote.

        Raises:
            UserError: a missing or corrupt file, or weights of another network.
        """
        super().__init__()
        self.movenet = MoveNet().eval().to(memory_format=torch.channels_last)  # 1.3 times faster
        meta = load_network(self.movenet.network, path, "movenet_thunder")
        self.errors = read_peak_errors(meta, NUM_JOINTS, path)
        self.known = read_detector(path)
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGE_MEAN, IMAGE_STD))
        self.register_buffer("mean", 255 * mean, persistent=False)
        self.register_buffer("std", 255 * std, persistent=False)

    def forward(self, images: Tensor) -> Keypoints:
        """See `PoseDetector`."""
        peaks = self.peaks(images)
        return Keypoints(peaks.xy, *peak_covariance(peaks, self.image_size, self.errors))

    @torch.no_grad()
    def peaks(self, images: Tensor) -> Peaks:
        """The heatmaps' peaks in normalised images (N, 3, 256, 256), px of the crop."""
        pictures = images.to(self.mean.device) * self.std + self.mean
        at_once = IMAGES_AT_ONCE if pictures.device.type == "cpu" else max(len(pictures), 1)
        return cat([self.movenet(part) for part in pictures.split(at_once)])

    def fingerprint(self) -> str:
        return f"{checkpoint.digest(self.movenet)} {self.errors}"


def load_network(network: CenterNet, path: str | Path, name: str) -> dict[str, Any]:
    """Loads weights that ``scripts/convert_movenet.py`` wrote; returns their metadata.

    Args:
        name: of the network, as the metadata say it.

    Raises:
        UserError: a missing or corrupt file, or weights of another network.
    """
    weights, meta = checkpoint.load_weights(path)
    if meta.get("model") != name:
        raise UserError(
            f"{path}: no weights of {name}; expected a file of scripts/convert_movenet.py, or "
            "null for the shipped one"
        )
    checkpoint.load_state(network, weights, path)
    return meta


def cells_to_picture(xy: Tensor) -> Tensor:
    """Cells of a head's map to px of the picture, with integer coordinates at pixel centres.

    The network's plane is continuous: 0 and the map's width are the picture's edges.
    """
    return xy * STRIDE - 0.5
