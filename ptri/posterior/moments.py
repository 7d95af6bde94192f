"""Moments of a rig posterior, and a smaller one that stands for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.rotations import rotation_mean, so3_log
from ptri.structures import Cameras, RigPosterior


def posterior_mean(posterior: RigPosterior) -> tuple[Tensor, Tensor]:
    """Mean rotation (B, V, 3, 3) and translation (B, V, 3) mm of the cameras."""
    return mean_cameras(posterior.R, posterior.t, posterior.log_weights.exp())


def mean_cameras(R: Tensor, t: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same of samples R (M, B, V, 3, 3) and t (M, B, V, 3) with weights (M, B)."""
    mean = rotation_mean(R, weights[..., None].expand(R.shape[:-2]))
    return mean, torch.einsum("mb,mbvc->bvc", weights, t)


def rotation_covariance(posterior: RigPosterior) -> Tensor:
    """Covariance (B, V, 3, 3) rad^2 in the tangent space at the mean, ``R = mean exp(w)``."""
    R, _ = posterior_mean(posterior)
    w = so3_log(R.transpose(-1, -2) @ posterior.R)  # (M, B, V, 3)
    return torch.einsum("mb,mbvi,mbvj->bvij", posterior.log_weights.exp(), w, w)


def posterior_from_cameras(cameras: Cameras) -> RigPosterior:
    """The posterior of known cameras: one sample of weight one. Extrinsics (B, V, ...)."""
    B = cameras.R.shape[0]
    one = cameras.R.new_ones(B)
    return RigPosterior(cameras.R[None], cameras.t[None], one[None] * 0, one)


def resample(posterior: RigPosterior, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic resampling to ``count`` samples, and their differentiable log-weights.

    Samples are drawn in order of the rig's size, its widest direction: few then have the
    posterior's mean size, within its spread over ``count`` and not over the square root.

    Returns:
        R (count, B, V, 3, 3), t (count, B, V, 3), log-weights (count, B): equal in value, with the
        gradient of the weights of the samples they stand for.
    """
    M, B = posterior.log_weights.shape
    count = min(count, M)
    with torch.no_grad():
        order = posterior.t.norm(dim=-1).sum(-1).argsort(0)  # (M, B)
        weights = posterior.log_weights.gather(0, order).exp()
        cumulative = weights.cumsum(0).T.contiguous()  # (B, M)
        level = (torch.arange(count, device=cumulative.device) + 0.5) / count
        level = level.to(cumulative).expand(B, count).contiguous()
        index = torch.searchsorted(cumulative, level).clamp_max(M - 1).T  # (count, B)
        index = order.gather(0, index)
    rows = torch.arange(B, device=index.device).expand(count, B)
    chosen = posterior.log_weights[index, rows]
    log_weights = torch.log_softmax(chosen - chosen.detach(), dim=0)
    return posterior.R[index, rows], posterior.t[index, rows], log_weights
