"""Losses, one value per sample; the engine averages over the batch.

Joints that a mask leaves out (or whose truth is NaN) add neither value nor gradient; a sample
without any counts 0. Leading dimensions ``...`` are samples, or samples and views.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import chi2
from torch import Tensor

HEATMAP_SIGMA = 1.5  # heatmap px, width of the target's Gaussian
LEVEL = 0.9  # share of errors that a stated region is to hold
DF = 5.0  # degrees of freedom of the joints' Student-t law

# --- 2D --------------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (...,) over the last dimension of the values (..., J) where the mask holds, else 0."""
    total = torch.where(mask, values, 0.0).sum(-1)
    return total / mask.sum(-1).clamp_min(1)


def heatmap_divergence(logits: Tensor, xy: Tensor, visible: Tensor) -> Tensor:
    """Cross-entropy of heatmaps to Gaussians, less the Gaussians' entropy, hence >= 0.

    ``KL(t || softmax(logits))`` over pixels, with t a Gaussian around the joint, sampled at the
    pixel centres and normalised over the image.

    Args:
        logits: (..., J, h, w).
        xy: (..., J, 2) joint positions in heatmap px.
        visible: (..., J) bool, joints that count.

    Returns:
        (...,) nats, the mean over visible joints.
    """
    visible = visible & torch.isfinite(xy).all(-1)
    xy = torch.where(visible[..., None], xy, 0.0)
    x = _log_gaussian(xy[..., 0], logits.shape[-1])  # (..., J, w)
    y = _log_gaussian(xy[..., 1], logits.shape[-2])  # (..., J, h)
    # The target is separable: sum_hw t logits without building t.
    columns = (logits * y.exp()[..., :, None]).sum(-2)  # (..., J, w)
    expected = (columns * x.exp()).sum(-1)
    cross_entropy = logits.flatten(-2).logsumexp(-1) - expected
    entropy = -(x * x.exp()).sum(-1) - (y * y.exp()).sum(-1)
    return masked_mean(cross_entropy - entropy, visible)


def _log_gaussian(centre: Tensor, size: int) -> Tensor:
    position = torch.arange(size, dtype=centre.dtype, device=centre.device)
    return (-0.5 * ((position - centre[..., None]) / HEATMAP_SIGMA).square()).log_softmax(-1)


def _errors(estimate: Tensor, truth: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Errors (..., J, 2), 0 where the truth is not known or not visible, and where it is."""
    visible = visible & torch.isfinite(truth).all(-1)
    return torch.where(visible[..., None], estimate - truth, 0.0), visible


def coordinate_l1(estimate: Tensor, truth: Tensor, visible: Tensor) -> Tensor:
    """Mean absolute coordinate error (...,) over visible joints; estimate, truth (..., J, 2) px."""
    error, visible = _errors(estimate, truth, visible)
    return masked_mean(error.abs().mean(-1), visible)


def error_likelihood(
    estimate: Tensor,
    covariance: Tensor,
    truth: Tensor,
    visible: Tensor,
    area: float,
    outliers: float = 0.02,
) -> Tensor:
    """Negative log likelihood of the errors under their stated covariances, robust to outliers.

    ``-log[(1 - e) N(truth; estimate, S) + e / area]``: a joint that was mistaken for another says
    nothing about how well found joints are placed.

    Args:
        estimate, truth: (..., J, 2) px. covariance: (..., J, 2, 2) px^2.
        visible: (..., J) bool. area: px^2, where an outlier may lie. outliers: their share e.

    Returns:
        (...,) nats, the mean over visible joints.
    """
    error, visible = _errors(estimate, truth, visible)
    square, determinant = _mahalanobis_square(error, covariance)
    inlier = -0.5 * square - 0.5 * determinant.log() - math.log(2 * math.pi / (1 - outliers))
    likelihood = torch.logaddexp(inlier, torch.full_like(inlier, math.log(outliers / area)))
    return masked_mean(-likelihood, visible)


def ellipse_quantile(
    estimate: Tensor, covariance: Tensor, truth: Tensor, visible: Tensor
) -> Tensor:
    """Pinball loss that is least where a share `LEVEL` of errors lies inside that error ellipse.

    On ``u = log(d^2 / q)``, d the Mahalanobis length, q the chi-square quantile of two degrees of
    freedom: ``max(LEVEL u, (LEVEL - 1) u)`` (Koenker and Bassett, Econometrica 1978). Errors have
    heavier tails than the Gaussians of `error_likelihood`, whose 90 % ellipses hold too little.

    Args:
        estimate, truth: (..., J, 2) px. covariance: (..., J, 2, 2) px^2.
        visible: (..., J) bool.

    Returns:
        (...,), the mean over visible joints.
    """
    error, visible = _errors(estimate, truth, visible)
    square, _ = _mahalanobis_square(error, covariance)
    return masked_mean(_pinball(square, 2), visible)


def _pinball(square: Tensor, df: int) -> Tensor:
    u = (square.clamp_min(1e-6) / float(chi2.ppf(LEVEL, df))).log()  # guards a perfect joint
    return torch.maximum(LEVEL * u, (LEVEL - 1) * u)


def _mahalanobis_square(error: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Squared lengths of errors (..., 2) under covariances (..., 2, 2), and the determinants."""
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    determinant = (a * c - b * b).clamp_min(1e-12)  # px^4; guards rounding of a thin ellipse
    dx, dy = error.unbind(-1)
    return (c * dx * dx - 2 * b * dx * dy + a * dy * dy) / determinant, determinant


def confidence_entropy(confidence: Tensor, found: Tensor, known: Tensor) -> Tensor:
    """Binary cross-entropy (...,) of confidences (..., J) to whether joints were found.

    Args:
        found: (..., J) bool. known: (..., J) bool, whether anybody can tell; others do not count.
    """
    confidence = confidence.float().clamp(1e-6, 1 - 1e-6)  # guards the logarithm
    return masked_mean(-torch.where(found, confidence.log(), (1 - confidence).log()), known)


# --- 3D --------------------------------------------------------------------------------------


def joint_l1(estimate: Tensor, truth: Tensor, root: int) -> Tensor:
    """Error of the joints (...,), in units of 100 mm: root-relative, and a tenth of the absolute.

    Args:
        estimate, truth: (..., J, 3) mm. root: joint index.
    """
    error, relative, known = _joint_errors(estimate, truth, root)
    return masked_mean(relative.abs().sum(-1) + 0.1 * error.abs().sum(-1), known) / 100


def joint_likelihood(estimate: Tensor, covariance: Tensor, truth: Tensor, root: int) -> Tensor:
    """Negative log likelihood (...,) of root-relative joints under their covariances.

    Student-t with `DF` degrees of freedom and that covariance, so that a lost joint does not
    decide the others' sizes; constants left out.

    Args:
        estimate, truth: (..., J, 3) mm. covariance: (..., J, 3, 3) mm^2.
    """
    chol, square, counts = _whitened_square(estimate, covariance, truth, root)
    log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    value = log_det + 0.5 * (DF + 3) * torch.log1p(square / (DF - 2))
    return masked_mean(value, counts)


def joint_quantile(estimate: Tensor, covariance: Tensor, truth: Tensor, root: int) -> Tensor:
    """`ellipse_quantile` (...,) of root-relative joints in space: three degrees of freedom.

    Args:
        estimate, truth: (..., J, 3) mm. covariance: (..., J, 3, 3) mm^2.
    """
    _, square, counts = _whitened_square(estimate, covariance, truth, root)
    return masked_mean(_pinball(square, 3), counts)


def _joint_errors(estimate: Tensor, truth: Tensor, root: int) -> tuple[Tensor, Tensor, Tensor]:
    """Errors (..., J, 3), the same about the root's, and which joints count (..., J).

    Joints whose truth is not known do not count; none does where the root's is not.
    """
    known = torch.isfinite(truth).all(-1)
    known = known & known[..., root, None]
    error = torch.where(known[..., None], estimate - truth, 0.0)
    return error, error - error[..., root, None, :], known


def _whitened_square(
    estimate: Tensor, covariance: Tensor, truth: Tensor, root: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cholesky factors (..., J, 3, 3) and ``e^T C^-1 e`` (..., J) of root-relative errors.

    Also which joints count (..., J): all but the root and those of `_joint_errors`.
    """
    _, error, counts = _joint_errors(estimate, truth, root)
    eye = torch.eye(3, dtype=covariance.dtype, device=covariance.device)
    # 1 mm^2 guards rounding. What cannot be factorised gives a loss of NaN, which is reported.
    chol, info = torch.linalg.cholesky_ex(covariance + eye)
    chol = torch.where((info > 0)[..., None, None], torch.nan, chol)
    whitened = torch.linalg.solve_triangular(chol, error.unsqueeze(-1), upper=False).squeeze(-1)
    counts = counts & (torch.arange(counts.shape[-1], device=counts.device) != root)
    return chol, whitened.square().sum(-1), counts
