"""How alike a detector's errors are: by the distance of postures, and by the distance of joints.

What the length of `ptri.posterior.width` rests on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from detector_errors.clips import Detected
from torch import Tensor

from ptri.evaluation.table import grid
from ptri.posterior.width import LENGTH
from ptri.rig.check import KEYPOINT_NOISE, default_covariance

CLIPPED = 2.0  # stated standard deviations, to which errors are clipped: exchanged sides are others
POSTURES = (0, 10, 25, 50, 100, 150, 200, 300, 500)  # mm, edges of the bins
JOINTS = (80, 150, 250, 350, 500, 700, 1000)


def alike(found: Sequence[Detected]) -> tuple[list[float], list[float]]:
    """Correlations of a detector's errors over clips, pooled in bins of distance.

    Returns:
        Of one joint in two frames of a view, by the mean distance of the joints about their middle
        (`POSTURES`); of two joints of an image, by their distance (`JOINTS`). NaN: no such pair.
    """
    frames, joints = [], []
    for each in found:
        for clip, truth in enumerate(each.truth):
            error = _errors(each, clip)
            posture = truth - truth.nanmean(1, keepdim=True)
            apart = (posture[:, None] - posture).norm(dim=-1).nanmean(-1)  # (T, T)
            frames.append(_pairs(error, apart[None], "tvjc,svjc->ts"))
            apart = (truth[:, :, None] - truth[:, None]).norm(dim=-1)  # (T, J, J)
            joints.append(_pairs(error, apart, "tvic,tvjc->tij"))
    return _binned(frames, POSTURES), _binned(joints, JOINTS)


def table(correlations: dict[str, tuple[list[float], list[float]]]) -> str:
    """Both correlations of each detector, beside the law that stands for them."""
    texts = []
    for which, (title, edges) in enumerate((("postures", POSTURES), ("joints", JOINTS))):
        bins = list(itertools.pairwise(edges))
        rows = [[n, *(f"{v:.2f}" for v in part[which])] for n, part in correlations.items()]
        law = [f"{math.exp(-0.5 * sum(each) / LENGTH):.2f}" for each in bins]
        rows.append([f"exp(-distance / {LENGTH:.0f} mm)", *law])
        heads = [f"distance of {title}, mm", *(f"{low}-{high}" for low, high in bins)]
        texts.append(grid(heads, rows))
    return "correlation of a detector's errors\n" + "\n\n".join(texts)


def _errors(found: Detected, clip: int) -> Tensor:
    """Errors (T, V, J, 2) over the stated deviation, or the usual one where none is stated."""
    xy, covariance = found.keypoints.xy[clip].double(), found.keypoints.covariance[clip].double()
    if bool(covariance.isnan().all()):
        covariance = default_covariance(xy, KEYPOINT_NOISE)
    scale = torch.linalg.det(covariance).clamp_min(1e-9).pow(0.25)
    return ((xy - found.true_xy()[clip]) / scale[..., None]).clamp(-CLIPPED, CLIPPED)


def _pairs(error: Tensor, apart: Tensor, rule: str) -> Tensor:
    """Distances (..., N, N), products of errors over their mean square, and numbers of pairs, of
    the pairs above the diagonal: (3, P)."""
    seen = torch.isfinite(error)
    error = error.nan_to_num(0.0)
    product = torch.einsum(rule, error, error) * (seen.sum() / error.square().sum())
    count = torch.einsum(rule, *[seen.to(error)] * 2)
    rows, columns = torch.triu_indices(*apart.shape[-2:], 1)
    parts = (part.reshape(apart.shape)[..., rows, columns] for part in (apart, product, count))
    return torch.stack([part.flatten() for part in parts])


def _binned(rows: list[Tensor], edges: Sequence[float]) -> list[float]:
    """Products over pairs of (3, N) distances, products and numbers of pairs, in bins."""
    apart, product, pairs = torch.cat(rows, 1)
    inside = [(apart >= low) & (apart < high) for low, high in itertools.pairwise(edges)]
    return [float(product[part].sum() / pairs[part].sum()) for part in inside]
