"""Moments of a rig posterior, and a smaller one that stands for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.cameras import with_focal
from ptri.geometry.rotations import rotation_mean, so3_log
from ptri.structures import Cameras, RigPosterior, Views, take


def posterior_mean(posterior: RigPosterior) -> tuple[Tensor, Tensor]:
    """Mean rotation (B, V, 3, 3) and translation (B, V, 3) mm of the cameras."""
    return mean_views(posterior.views, posterior.log_weights.exp())[:2]


def mean_views(views: Views, weights: Tensor) -> Views:
    """Mean cameras (B, V, ...) of samples (M, B, V, ...) with weights (M, B)."""
    R = rotation_mean(views.R, weights[..., None].expand(views.R.shape[:-2]))
    t, log_focal = (torch.einsum("mb,mb...->b...", weights, part) for part in views[1:])
    return Views(R, t, log_focal)


def of_views(posterior: RigPosterior, views: list[int]) -> RigPosterior:
    """The posterior of some of the views, in the same frame."""
    F = posterior.log_focal.shape[-1]
    log_focal = posterior.log_focal[..., views] if F else posterior.log_focal
    return posterior._replace(
        R=posterior.R[:, :, views], t=posterior.t[:, :, views], log_focal=log_focal
    )


def at_mean_focal(K: Tensor, posterior: RigPosterior) -> tuple[Tensor, RigPosterior]:
    """K (B, T, V, 3, 3) at the mean focal lengths, and the posterior as it would be if these were
    known: every translation less what the focal lengths' deviations say of it (linear regression).
    """
    if not posterior.log_focal.shape[-1]:
        return K, posterior
    weights = posterior.log_weights.exp()
    views, log_focal = posterior.views, posterior.log_focal
    mean = mean_views(views, weights)
    away, shift = log_focal - mean.log_focal, views.t - mean.t
    moment = torch.einsum("mb,mbf,mbg->bfg", weights, away, away)
    cross = torch.einsum("mb,mbf,mbvc->bfvc", weights, away, shift).flatten(2)
    slope = (torch.linalg.pinv(moment, hermitian=True) @ cross).unflatten(2, views.t.shape[2:])
    t = views.t - torch.einsum("mbf,bfvc->mbvc", away, slope)
    K = with_focal(K, mean.log_focal[:, None])
    return K, posterior._replace(t=t, log_focal=log_focal[..., :0])


def rotation_covariance(posterior: RigPosterior) -> Tensor:
    """Covariance (B, V, 3, 3) rad^2 in the tangent space at the mean, ``R = mean exp(w)``."""
    R, _ = posterior_mean(posterior)
    w = so3_log(R.transpose(-1, -2) @ posterior.R)  # (M, B, V, 3)
    return torch.einsum("mb,mbvi,mbvj->bvij", posterior.log_weights.exp(), w, w)


def posterior_from_cameras(cameras: Cameras) -> RigPosterior:
    """The posterior of known cameras: one sample of weight one. Extrinsics (B, V, ...)."""
    B = cameras.R.shape[0]
    one = cameras.R.new_ones(B)
    nothing = cameras.R.new_zeros(1, B, 0)
    return RigPosterior(cameras.R[None], cameras.t[None], one[None] * 0, one, nothing)


def resample(posterior: RigPosterior, count: int) -> RigPosterior:
    """Systematic resampling to ``count`` samples, and their differentiable log-weights.

    Samples are drawn in order of the rig's size, its widest direction: few then have the
    posterior's mean size, within its spread over ``count`` and not over the square root.

    Returns:
        ``count`` samples whose log-weights are equal in value, with the gradient of the weights of
        the samples they stand for.
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
    R, t, log_focal = take(posterior.views, (index, rows))
    return RigPosterior(R, t, log_weights, posterior.ess.clamp_max(count), log_focal)
