"""How heavy the tails of a detector's errors are: a Student-t law, its shape from the residuals.

A keypoint errs by a law between a Gaussian (tail 0) and nearly a Cauchy law (tail 1/2); tail is one
over the law's degrees of freedom. Detectors differ in it, and so do recordings: it is an unknown,
like the noise's scale. Its posterior mean over a grid is taken, from residuals of an adjusted rig.

Residuals are smaller than errors, because joints follow their keypoints: of the 2 V coordinates of
a joint that V views see, three are taken. What is left of a keypoint is treated as an error in
2 - 3 / V dimensions: as two, Gaussian residuals of two views would look heavy-tailed.
The view with the largest residuals has no say: it may be a wrong one, for the verdict to find.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.rays import LEAST_TAIL, LOG_OUTLIER, bounded
from ptri.structures import constant

GRID = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
ROUNDS = 8  # of expectation maximisation for the scale, under each tail


@torch.no_grad()
def fit_tail(chi2: Tensor, inlier: Tensor, scale2: Tensor) -> Tensor:
    """Posterior mean (N,) of the tail, every value of the grid equally likely before.

    Args:
        chi2: (N, T, V, J) squared residuals at the stated noise. inlier: as in `Observations`.
        scale2: (N,) squared noise scale, at which an outlier's density is told.
    """
    seen = inlier > 0
    views = seen.sum(2, keepdim=True).expand_as(inlier)
    used = (seen & (views > 1)).to(chi2)
    if chi2.shape[2] > 2:
        usual = (used * chi2).sum((1, 3)) / used.sum((1, 3)).clamp_min(1.0)  # (N, V)
        worst = usual.argmax(1)[:, None, None, None]
        used = used.scatter(2, worst.expand(-1, used.shape[1], -1, used.shape[3]), 0.0)
    used = used.flatten(1)[:, None]  # (N, 1, P)
    p = (2 - 3 / views.clamp_min(2).to(chi2)).flatten(1)[:, None]
    energy = torch.where(used > 0, chi2.flatten(1)[:, None], 0.0)
    c = bounded(inlier.flatten(1))[:, None]
    tail = constant(GRID, chi2.device, chi2.dtype).clamp_min(LEAST_TAIL)[:, None]  # (G, 1)
    half = 0.5 / tail
    norm = torch.lgamma(half + 0.5 * p) - torch.lgamma(half) - 0.5 * p * half.log()  # (N, G, P)
    first = scale2[:, None, None]
    outlier = torch.log1p(-c) + LOG_OUTLIER - 0.5 * p * first.log()
    scale = first.expand(-1, len(GRID), 1)
    for _ in range(ROUNDS):
        ratio = energy / scale
        inside = norm - 0.5 * p * scale.log() - (half + 0.5 * p) * torch.log1p(tail * ratio)
        inside = inside + c.log()
        share = used * torch.sigmoid(inside - outlier)
        weight = share * (1 + p * tail) / (1 + tail * ratio)
        freedom = (share * p).sum(2, keepdim=True).clamp_min(1e-3)  # nothing was seen twice
        scale = ((weight * energy).sum(2, keepdim=True) / freedom).clamp_min(1e-3)
    value = (used * torch.logaddexp(inside, outlier)).sum(2)  # (N, G)
    return torch.softmax(value, 1) @ tail[:, 0]
