"""MoveNet multipose (lightning): up to six persons with boxes in a picture.

Google's network (2021, Apache-2.0), ported from its TensorFlow.js graph by
``scripts/convert_movenet.py``. Peaks of the map of centres are persons; each centre tells a box and
where it expects the joints. A joint is the highest point inside the box of its heatmap weighted by
a Gaussian about that place, plus the offset that is told there.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptri.detectors.centernet import STRIDE, CenterNet, gather_cells, joint_offsets, places
from ptri.detectors.movenet import HEADS as SINGLE_HEADS
from ptri.detectors.movenet import SHIPPED, cells_to_picture, load_network
from ptri.structures import constant

MULTIPOSE = SHIPPED / "movenet_multipose.pt"
WIDTH = 1.5  # of MobileNetV2
HEADS = {**SINGLE_HEADS, "box_scale": 2, "box_offset": 2}
MOST_PEOPLE = 6
WINDOW = 5  # cells: a centre is the highest of so many across
TIE = 1.0132789611816406e-06  # a cell this close below its window's highest is a peak too
# The Gaussian's exponent is the squared distance over this times the map's shorter side, cells.
SPREAD = 0.300048828125
SEEN = 0.126953125  # joints above it count in a person's score


class PeopleFound(NamedTuple):
    """Six persons in each of N pictures, the most certain first; px of the picture."""

    boxes: Tensor  # (N, 6, 4) left, top, right, bottom of the continuous plane, inside the picture
    scores: Tensor  # (N, 6) 0 to 1; low where there is nobody
    xy: Tensor  # (N, 6, 17, 2) of COCO17's joints, integer coordinates at pixel centres
    confidence: Tensor  # (N, 6, 17)


class Multipose(nn.Module):
    """The network and its decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.network = CenterNet(WIDTH, HEADS)

    def forward(self, pictures: Tensor) -> PeopleFound:
        """
        Args:
            pictures: (N, 3, H, W) RGB, 0 to 255; H and W multiples of 32.
        """
        maps = self.network(pictures)
        height, width = maps["center"].shape[-2:]
        size = constant((width, height), pictures.device, torch.float32)
        center = maps["center"].sigmoid()
        highest = F.max_pool2d(center, WINDOW, stride=1, padding=WINDOW // 2)
        certain = center * ((center - highest).abs() < TIE)
        certainty, person = certain.flatten(1).topk(MOST_PEOPLE)  # (N, P)
        place = places(person, width)  # (N, P, 2) x, y in cells
        middle = place + gather_cells(maps["box_offset"], person).flip(-1)
        half = gather_cells(maps["box_scale"], person).flip(-1).clamp_min(0) / 2
        low, high = ((middle + sign * half).clamp_min(0).minimum(size) for sign in (-1, 1))
        regressed = gather_cells(maps["kpt_regress"], person).unflatten(-1, (-1, 2)).flip(-1)
        expected = place[:, :, None] + regressed  # (N, P, J, 2)
        heatmaps = maps["kpt_heatmap"].sigmoid()
        weighted = _inside(heatmaps, expected, low, high)  # (N, P, J, h w)
        peak = weighted.argmax(-1)  # (N, P, J)
        # As in the graph: the score there is the highest of any person's.
        score = weighted.amax(1).gather(-1, peak.transpose(1, 2)).transpose(1, 2)
        xy = places(peak, width) + joint_offsets(maps["kpt_offset"], peak)
        seen = score > SEEN
        mean = (score * seen).sum(-1) / seen.sum(-1).clamp_min(1)
        return PeopleFound(
            torch.cat([low, high], -1) * STRIDE, certainty * mean, cells_to_picture(xy), score
        )


def load_multipose(path: str | Path | None = None) -> Multipose:
    """The network with its weights, for inference on the CPU; None: the shipped ones.

    Raises:
        UserError: a missing or corrupt file, or weights of another network.
    """
    model = Multipose().eval().to(memory_format=torch.channels_last)
    load_network(model.network, path or MULTIPOSE, "movenet_multipose")
    return model


def _inside(heatmaps: Tensor, expected: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Heatmaps (N, J, h, w) near each person's expected joints (N, P, J, 2) and inside its box.

    The Gaussian is a product of one along x and one along y.

    Args:
        low, high: (N, P, 2) corners of the boxes, cells.

    Returns:
        (N, P, J, h w).
    """
    height, width = heatmaps.shape[-2:]
    parts = []
    for axis, count in ((0, width), (1, height)):
        cells = torch.arange(count, device=heatmaps.device).to(heatmaps)
        square = (cells - expected[..., axis, None]).square()  # (N, P, J, count)
        near = torch.exp(-square / (SPREAD * min(height, width)))
        there = (cells >= low[..., axis, None]) & (cells < high[..., axis, None])  # (N, P, count)
        parts.append(near * there[:, :, None])
    along_x, along_y = parts
    near = along_y[..., :, None] * along_x[..., None, :]  # (N, P, J, h, w)
    return (heatmaps[:, None] * near).flatten(-2)
