"""Keypoints as rays: normalised coordinates with their information, and how likely a miss is."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.cameras import pixel_to_normalised
from ptri.structures import Keypoints, Observations

MEDIAN_CHI2 = 1.386  # median of a chi-square with two degrees of freedom
# Log density of an outlier over the inlier's peak: at twelve squared standard deviations an
# outlier of prior probability one half becomes the better explanation.
LOG_OUTLIER = -0.5 * 12.0
LEAST_TAIL = 1e-3  # the Gaussian is its limit


def normalise(keypoints: Keypoints, K: Tensor) -> Observations:
    """Keypoints in pixels to observations in normalised coordinates.

    Args:
        keypoints: (B, T, V, J, ...) px; NaN xy = not seen.
        K: (B, T, V, 3, 3) px, zero skew.

    Raises:
        ValueError: a covariance or confidence of a seen point is not finite. On a GPU, for which
            the CPU would have to wait, that point's information is NaN instead.
    """
    seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)
    xy = torch.where(seen[..., None], keypoints.xy, 0.0)
    covariance = keypoints.covariance
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    determinant = a * c - b * b
    usable = (determinant > 0) & torch.isfinite(determinant) & torch.isfinite(keypoints.confidence)
    bad = seen & ~usable
    if bad.device.type == "cpu" and bool(bad.any()):
        raise ValueError("keypoints: a covariance is not positive definite or a value not finite")
    information = torch.stack([c, -b, -b, a], dim=-1).unflatten(-1, (2, 2))
    determinant = torch.where(bad, torch.nan, torch.where(seen, determinant, 1.0))
    information = information / determinant[..., None, None]
    focal = K.diagonal(dim1=-2, dim2=-1)[..., None, :2]  # (B, T, V, 1, 2)
    information = information * (focal.unsqueeze(-1) * focal.unsqueeze(-2))
    information = torch.where(seen[..., None, None], information, 0.0)
    normalised = torch.where(seen[..., None], pixel_to_normalised(xy, K), 0.0)
    inlier = torch.where(seen, keypoints.confidence, 0.0)
    one = torch.ones_like(inlier[:, :, 0])  # (B, T, J)
    return Observations(normalised, information, inlier, one, one[..., :1])


def refocused(observations: Observations, log_focal: Tensor) -> Observations:
    """Observations (B, T, V, J, ...) normalised by other focal lengths.

    Args:
        log_focal: (B, F) of the new ones over the old ones; F = V, 0: they stay.
    """
    if not log_focal.shape[-1]:
        return observations
    factor = log_focal.exp()[:, None, :, None, None]
    return observations._replace(
        xy=observations.xy / factor,
        information=observations.information * factor.square().unsqueeze(-1),
    )


def chi_square(residual: Tensor, information: Tensor) -> Tensor:
    """Squared Mahalanobis length (...) of residuals (..., 2)."""
    x, y = residual.unbind(-1)
    a, b, c = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
    return (a * x + 2 * b * y) * x + c * y.square()


def log_mixture(
    chi2: Tensor, inlier: Tensor, log_peak: Tensor | float = 0.0, tail: Tensor | None = None
) -> Tensor:
    """Log density of keypoints, a mixture of inliers and outliers; zero where not seen (c = 0).

    ``log[c exp(log_peak) t(chi2) + (1 - c) exp(LOG_OUTLIER)]``, t a Student-t law of two
    dimensions with 1 / tail degrees of freedom, over its peak (the same for all tails; Kotz and
    Nadarajah 2004, eq. 1.1): ``(1 + tail chi2)^(-1 - 1 / (2 tail))``, ``exp(-chi2 / 2)`` where
    it is None.
    """
    good, bad = _log_parts(chi2, inlier, log_peak, tail)
    return torch.where(inlier > 0, torch.logaddexp(good, bad), 0.0)  # even where chi2 is NaN


def responsibility(
    chi2: Tensor, inlier: Tensor, log_peak: Tensor | float = 0.0, tail: Tensor | None = None
) -> Tensor:
    """Weight of a keypoint in least squares, given its residual; zero where not seen.

    It is minus twice the slope of `log_mixture`: the probability that the keypoint is an inlier,
    times ``(1 + 2 tail) / (1 + tail chi2)``, one for a Gaussian.
    """
    good, bad = _log_parts(chi2, inlier, log_peak, tail)
    heavy = 1.0 if tail is None else (1 + 2 * tail) / (1 + tail * chi2)
    return torch.where(inlier > 0, torch.sigmoid(good - bad) * heavy, 0.0)


def expected_curvature(tail: Tensor) -> Tensor:
    """Expected curvature of a keypoint's cost, over its weight in least squares (`responsibility`).

    (n + 2) / (n + 4) of a Student-t law in two dimensions with n degrees of freedom (Lange et al.
    1989), n = 1 / tail; 1 of a Gaussian.
    """
    return (1 + 2 * tail) / (1 + 4 * tail)


def bounded(inlier: Tensor) -> Tensor:
    """Prior probabilities that keypoints are inliers: no detector is certain, nor useless."""
    return inlier.clamp(0.02, 0.98)


def _log_parts(
    chi2: Tensor, inlier: Tensor, log_peak: Tensor | float, tail: Tensor | None
) -> tuple[Tensor, Tensor]:
    c = bounded(inlier)
    if tail is not None:
        tail = tail.clamp_min(LEAST_TAIL)
        fall = (1 + 0.5 / tail) * torch.log1p(tail * chi2)
    else:
        fall = 0.5 * chi2
    return c.log() + log_peak - fall, torch.log1p(-c) + LOG_OUTLIER
