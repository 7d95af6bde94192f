"""Samples moved apart, as errors that go together ask for, and as far as the views disagree; and as
principal points that may be off do."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from ptri.geometry.rays import refocused
from ptri.geometry.rotations import so3_exp, so3_log
from ptri.posterior.leave_one_out import fit_each_view
from ptri.posterior.modes import Evidence, Modes, cameras_of, coordinates_around
from ptri.posterior.moments import mean_views
from ptri.posterior.optima import Poses
from ptri.posterior.rows import pack
from ptri.structures import RigPosterior, Views, take, to_device, tree_map

FREEDOM = 3  # degrees of freedom of how much wider errors that go together make regions
# Their variance is this share of what is known before, where the views agree, and so many times
# the square of how far they turn against the others, over what is stated.
SHARE, TURNED = 0.3, 2.5
FOCAL_RANGE = (-1.5, 1.5)  # of log focal lengths about the mode


@torch.no_grad()
def widened(
    views: Views,
    log_scale: Tensor,
    owner: Tensor,
    log_weights: Tensor,
    modes: Modes,
    evidence: Evidence,
    poses: Poses | None,
    seed: int,
) -> tuple[Views, Tensor]:
    """Samples (M, B, ...) moved away from their mode's mean as errors that go together ask for.

    How much wider is known roughly: what the moves add is scaled by the square root of an inverse
    chi-square, one for each sample, about what the views' disagreement says (`disagreement2`).
    The mean stays.

    Returns:
        Them, and the rotations (M, B, V, 3, 3) as they would be whatever the views say.
    """
    (M, B), K = log_scale.shape, modes.log_mass.shape[1]
    rig = torch.arange(B, device=owner.device)
    x, _ = coordinates_around(views, log_scale, evidence.expansions)  # (M, B, K, D + 1)
    x = x.gather(2, owner[..., None, None].expand(-1, -1, 1, x.shape[-1])).squeeze(2)
    own = torch.nn.functional.one_hot(owner, K) * log_weights.exp().unsqueeze(-1)  # (M, B, K)
    own = own / own.sum(0).clamp_min(1e-30)  # guards a mode without samples
    mode = (rig, owner)  # (M, B)

    def middle(value: Tensor) -> Tensor:
        return torch.einsum("mbk,mbd->bkd", own, value)[mode]

    F, shape = views.log_focal.shape[-1], x[..., :-1]
    if F:  # in the log, so that no lens is moved beyond zero
        focal = torch.log1p(shape[..., :F] * x[..., -1:].exp()) * (-x[..., -1:]).exp()
        shape = torch.cat([focal, shape[..., F:]], dim=-1)
    away = shape - middle(shape)
    further = (modes.wider[mode] @ away.unsqueeze(-1)).squeeze(-1) - away
    rows = pack(owner, K)
    expansions = take(evidence.expansions, rows.mode)

    def cameras(further: Tensor) -> Views:
        moved = shape + modes.shift[mode] + further - middle(further)
        # In its log the size's mean stays; of the size itself it would grow with the width.
        grown = middle(moved[..., -1:].exp()) / middle(shape[..., -1:].exp()).clamp_min(1e-30)
        size = moved[..., -1:] - grown.clamp_min(1e-30).log()
        packed = torch.cat([moved[..., :-1], size, x[..., -1:]], dim=-1)
        if F:
            growth = torch.expm1((moved[..., :F] * x[..., -1:].exp()).clamp(*FOCAL_RANGE))
            packed = torch.cat([growth * (-x[..., -1:]).exp(), packed[..., F:]], dim=-1)
        found = cameras_of(packed.flatten(0, 1)[rows.sample], expansions)
        return tree_map(lambda part: part.flatten(0, 1)[rows.place].unflatten(0, (M, B)), found)

    usual = cameras(further)
    scale = disagreement2(usual, log_weights, evidence, poses).sqrt()[:, None]
    scale = scale * to_device(_factors(M, seed).to(x.dtype), x.device)[:, None, None]
    # Not the size's: of it views cannot disagree. Nor focal lengths', which their prior bounds.
    parts = further[..., :F], scale * further[..., F:-1], further[..., -1:]
    further = torch.cat(parts, dim=-1)
    # Turned apart, cameras would have a mean nearer to the first view.
    weights, wide = log_weights.exp(), cameras(further)
    if F:
        views = cameras(torch.zeros_like(further))
    mean, wide_mean = (mean_views(each, weights) for each in (views, wide))
    R = wide.R @ (wide_mean.R.mT @ mean.R)
    return wide._replace(R=R, t=wide.t + mean.t - wide_mean.t), usual.R


def _factors(count: int, seed: int) -> Tensor:
    """Roots (M,) of inverse chi-squares over their degrees of freedom, stratified, shuffled."""
    level = (np.arange(count) + 0.5) / count
    values = torch.from_numpy(np.sqrt(FREEDOM / chi2.ppf(level, FREEDOM)))
    generator = torch.Generator().manual_seed(seed + 1)  # not the numbers the samples have
    return values[torch.randperm(count, generator=generator)]


def disagreement2(
    views: Views, log_weights: Tensor, evidence: Evidence, poses: Poses | None
) -> Tensor:
    """Factor (B,) on the variance that was added to cameras (M, B, V, ...), by how views disagree.

    A view that is fitted to what the others know turns (`ptri.posterior.leave_one_out`) by a part
    of what it may be turned against them. One where no view can be fitted.
    """
    weights = log_weights.exp()
    R, t, log_focal = mean_views(views, weights)
    joints = evidence.joints.nan_to_num()
    observations = refocused(evidence.observations, log_focal)
    left_out = fit_each_view(observations, R, t, joints, evidence.weight, poses, evidence.scale2)
    if left_out is None:
        return torch.ones_like(weights[0])
    w = so3_log(R.mT @ views.R)
    V = w.shape[2]
    w = (w - w.mean(2, keepdim=True)) * (V / (V - 1))  # against the mean of the others
    stated2 = torch.einsum("mb,mbvi->bv", weights, w.square())
    # (1e-6 rad)^2 guards samples that all agree to rounding.
    ratio2 = left_out.turned.square() / stated2.clamp_min(1e-12)
    return (SHARE + TURNED * ratio2.nanmean(1)).nan_to_num(1.0)


def turned_apart(posterior: RigPosterior, std: Tensor, seed: int) -> RigPosterior:
    """Samples whose cameras are turned about their own centres, as by principal points that are
    off: to first order all rays of a view turn alike, and nothing in the keypoints shows it.

    Args:
        std: (B, V) rad about each of a camera's x and y axes.
    """
    R, t, weights = posterior.R, posterior.t, posterior.log_weights.exp()
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn((*t.shape[:3], 2), generator=generator, dtype=t.dtype).to(t.device)
    turn = (turn - torch.einsum("mb,mbvc->bvc", weights, turn)) * std.unsqueeze(-1)  # mean stays
    Q = so3_exp(torch.nn.functional.pad(turn, (0, 1)))
    return posterior._replace(R=Q @ R @ Q[:, :, :1].mT, t=(Q @ t.unsqueeze(-1)).squeeze(-1))
