"""What keypoints of single images are measured by: errors, exchanged sides, calibration."""

from __future__ import annotations

import torch
from scipy.stats import chi2
from torch import Tensor

from ptri.errors import UserError
from ptri.skeleton import H36M17

LEVELS = (0.5, 0.9)  # of the error ellipses whose coverage is measured


def mirrored(xy: Tensor, truth: Tensor, visible: Tensor, apart: float) -> dict[str, Tensor]:
    """Which joints have a mirror joint more than ``apart`` px away, and which lie nearer to it."""
    mirror = list(H36M17.flip)
    other = truth[:, mirror]
    paired = ((other - truth).norm(dim=-1) > apart) & visible
    swapped = paired & ((xy - other).norm(dim=-1) < (xy - truth).norm(dim=-1))
    return {"paired": paired, "swapped": swapped}


def joint_metrics(
    error: Tensor,
    absolute: Tensor,
    square: Tensor,
    confidence: Tensor,
    found: Tensor,
    visible: Tensor,
    paired: Tensor,
    swapped: Tensor,
) -> dict[str, float]:
    """Numbers over all visible joints, from what `detection_losses` says of each.

    Returns:
        "x2d/l1" and "x2d/l2", the mean of ``absolute`` and ``error`` (px); "x2d/median" (px);
        "x2d/pck", the share found; "x2d/swapped", the share of joints nearer to the mirror joint's
        truth, of those more than two `confidence_radius` away from it; "coverage_50",
        "coverage_90" of the error ellipses; "confidence/gap", the expected calibration error of the
        confidence over all joints; "confidence/auc", how often a found joint is more confident than
        a lost one.
    """
    if not visible.any():
        raise UserError("data: no joint lies inside any test image; check the labels and boxes")
    metrics = {
        "x2d/l1": float(absolute[visible].double().mean()),
        "x2d/l2": float(error[visible].double().mean()),
        "x2d/median": float(error[visible].median()),
        "x2d/pck": float(found[visible].double().mean()),
        "x2d/swapped": float(swapped.sum() / paired.sum().clamp_min(1)),
    }
    for level in LEVELS:
        inside = square[visible] <= chi2.ppf(level, 2)
        metrics[f"coverage_{100 * level:.0f}"] = float(inside.double().mean())
    metrics["confidence/gap"] = calibration_gap(confidence, found)
    metrics["confidence/auc"] = ranking(confidence[visible], found[visible])
    return metrics


def calibration_gap(confidence: Tensor, happened: Tensor, bins: int = 10) -> float:
    """Expected calibration error: |confidence - frequency|, the mean over equally filled bins."""
    order = confidence.argsort()
    gap = (confidence - happened.to(confidence)).double()[order]
    parts = torch.tensor_split(gap, min(bins, len(gap)))
    return float(sum(part.sum().abs() for part in parts) / len(gap))


def ranking(confidence: Tensor, happened: Tensor) -> float:
    """Area under the ROC curve (Mann and Whitney's U): 0.5 says nothing, 1 is perfect.

    0.5 where all or none happened. Ties are split by the order.
    """
    rank = torch.empty(len(confidence), dtype=torch.float64)
    rank[confidence.argsort()] = torch.arange(1, len(confidence) + 1, dtype=torch.float64)
    positive = int(happened.sum())
    negative = len(happened) - positive
    if not positive or not negative:
        return 0.5
    above = float(rank[happened].sum()) - positive * (positive + 1) / 2
    return above / (positive * negative)
