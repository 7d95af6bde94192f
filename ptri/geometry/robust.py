"""Robust triangulation with known cameras: the classical answer, without a posterior or a network.

Every pair of views proposes a point; the one that all views like best starts iteratively
reweighted least squares with Cauchy weights.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from ptri.geometry.cameras import MIN_DEPTH, pixel_to_normalised
from ptri.geometry.triangulation import ray_moments, symmetric_to_matrix, triangulate
from ptri.structures import Cameras, Keypoints, Observations, Prediction

START_DEPTH = 4000.0  # mm, for the first weights of the views against each other
PRIOR_SIGMA = 1e5  # mm, keeps points finite whose rays are parallel
MEDIAN_CHI2 = 1.386  # median of a chi-square with two degrees of freedom
CAUCHY = 2.0  # standard deviations at which an observation's weight is halved
# Log density of an outlier over the inlier's peak: at twelve squared standard deviations an
# outlier of prior probability one half becomes the better explanation.
LOG_OUTLIER = -0.5 * 12.0


def chi_square(residual: Tensor, information: Tensor) -> Tensor:
    """Squared Mahalanobis length (...) of residuals (..., 2)."""
    x, y = residual.unbind(-1)
    a, b, c = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
    return (a * x + 2 * b * y) * x + c * y.square()


def log_mixture(chi2: Tensor, inlier: Tensor, log_peak: Tensor | float = 0.0) -> Tensor:
    """Log density of keypoints, a mixture of inliers and outliers; zero where not seen (c = 0).

    ``log[c exp(log_peak - chi2 / 2) + (1 - c) exp(LOG_OUTLIER)]``
    """
    good, bad = _log_parts(chi2, inlier, log_peak)
    return torch.where(inlier > 0, torch.logaddexp(good, bad), 0.0)  # even where chi2 is NaN


def responsibility(chi2: Tensor, inlier: Tensor, log_peak: Tensor | float = 0.0) -> Tensor:
    """Probability that a keypoint is an inlier, given its residual; zero where not seen."""
    good, bad = _log_parts(chi2, inlier, log_peak)
    return torch.where(inlier > 0, torch.sigmoid(good - bad), 0.0)


def _log_parts(chi2: Tensor, inlier: Tensor, log_peak: Tensor | float) -> tuple[Tensor, Tensor]:
    c = inlier.clamp(0.02, 0.98)  # no detector is certain, nor useless
    return c.log() + log_peak - 0.5 * chi2, torch.log1p(-c) + LOG_OUTLIER


def robust_triangulation(
    keypoints: Keypoints, cameras: Cameras, iterations: int = 8, cauchy: float = CAUCHY
) -> tuple[Prediction, Tensor]:
    """Triangulates joints with known cameras.

    Args:
        keypoints: (B, T, V, J, ...) px; NaN xy or zero confidence = not seen.
        cameras: K (B, T, V, 3, 3) px; R (B, V, 3, 3), t (B, V, 3) mm.
        iterations: of reweighting.
        cauchy: standard deviations at which an observation's weight is halved; infinity gives
            plain least squares of the reprojection error.

    Returns:
        Joints (B, T, J, 3) mm with covariance (B, T, J, 3, 3) mm^2 in the frame of R and t, NaN
        where fewer than two views see a joint; and weights (B, T, V, J) in [0, 1]. Float64.
    """
    seen = torch.isfinite(keypoints.xy).all(-1) & (keypoints.confidence > 0)
    K = cameras.K.double()
    R, t = cameras.R.double(), cameras.t.double()
    xy = torch.where(seen[..., None], keypoints.xy, torch.zeros_like(keypoints.xy)).double()
    focal = K.diagonal(dim1=-2, dim2=-1)[..., None, :2]
    eye = torch.eye(2, dtype=K.dtype, device=K.device)
    covariance = torch.where(seen[..., None, None], keypoints.covariance.double(), eye)
    information = torch.linalg.inv(covariance) * focal.unsqueeze(-1) * focal.unsqueeze(-2)
    rays = pixel_to_normalised(xy, K)
    confidence = torch.where(seen, keypoints.confidence.double(), 0.0)
    depth = torch.full_like(confidence, START_DEPTH)

    best_cost, best = None, None
    for pair in combinations(range(R.shape[-3]), 2):
        mask = torch.zeros(R.shape[-3], dtype=K.dtype, device=K.device)
        mask[list(pair)] = 1.0
        both = (seen[..., list(pair), :]).all(-2)  # (B, T, J)
        points, _ = _solve(rays, information, confidence * mask[:, None], depth, R, t)
        cost = _cost(points, rays, information, confidence, R, t, cauchy)
        cost = torch.where(both, cost, torch.inf)
        if best is None:
            best_cost, best = cost, points
        else:
            better = cost < best_cost
            best = torch.where(better[..., None], points, best)
            best_cost = torch.where(better, cost, best_cost)

    points = best
    for _ in range(iterations):
        chi2, depth, front = _residuals(points, rays, information, R, t)
        weight = front / (1 + chi2 / cauchy**2)
        points, spread = _solve(rays, information, confidence * weight, depth, R, t)
    enough = (seen.sum(-2) >= 2)[..., None]  # (B, T, J, 1)
    points = torch.where(enough, points, torch.nan)
    spread = torch.where(enough[..., None], spread, torch.nan)
    return Prediction(points, spread), torch.where(seen, weight, 0.0)


def _solve(
    rays: Tensor, information: Tensor, weight: Tensor, depth: Tensor, R: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted least squares: points (B, T, J, 3) and covariances (B, T, J, 3, 3)."""
    B, T, V, J = weight.shape
    # 1e-9 keeps joints without any weight finite.
    scaled = information * ((weight + 1e-9) / depth.square())[..., None, None]
    moments = ray_moments(rays, scaled).permute(0, 1, 3, 2, 4).reshape(B, T * J, V, 6)
    prior = torch.zeros(B, T * J, 3, dtype=R.dtype, device=R.device)
    points, entries, _ = triangulate(moments, R[None], t[None], prior, PRIOR_SIGMA**-2)
    covariance = symmetric_to_matrix(entries[:, 0])
    return points[0].reshape(B, T, J, 3), covariance.reshape(B, T, J, 3, 3)


def _residuals(
    points: Tensor, rays: Tensor, information: Tensor, R: Tensor, t: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Squared Mahalanobis residuals, depths (mm) and 1 in front of the view, (B, T, V, J) each."""
    camera = torch.einsum("bvik,btjk->btvji", R, points) + t[:, None, :, None]
    depth = camera[..., 2].clamp_min(MIN_DEPTH)
    error = camera[..., :2] / depth[..., None] - rays
    chi2 = torch.einsum("btvji,btvjik,btvjk->btvj", error, information, error)
    return chi2, depth, (camera[..., 2] > MIN_DEPTH).to(depth)


def _cost(points, rays, information, confidence, R, t, cauchy) -> Tensor:
    chi2, _, front = _residuals(points, rays, information, R, t)
    loss = torch.log1p(chi2 / cauchy**2) + 20 * (1 - front)  # behind a view: as bad as any miss
    return (confidence * loss).sum(-2)


def triangulate_observations(
    observations: Observations, R: Tensor, t: Tensor, iterations: int = 8
) -> Tensor:
    """`robust_triangulation` of normalised keypoints (N, T, V, J, ...).

    Returns:
        Joints (N, T, J, 3) mm, NaN where fewer than two views see a joint; float64.
    """
    seen = observations.inlier > 0
    eye = torch.eye(2, dtype=R.dtype, device=R.device)
    information = torch.where(seen[..., None, None], observations.information, eye)
    xy = torch.where(seen[..., None], observations.xy, torch.nan)
    keypoints = Keypoints(xy, torch.linalg.inv(information), observations.inlier)
    K = torch.eye(3, dtype=eye.dtype, device=eye.device).expand(*xy.shape[:3], 3, 3)
    return robust_triangulation(keypoints, Cameras(K, R, t), iterations)[0].joints3d
