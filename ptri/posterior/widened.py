"""Samples moved apart, as errors that go together ask for, and as far as the views disagree."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.rotations import so3_log
from ptri.posterior.agreement import agreement
from ptri.posterior.modes import Evidence, Modes, cameras_of, coordinates_around
from ptri.posterior.moments import posterior_mean
from ptri.posterior.optima import Poses
from ptri.posterior.rows import pack
from ptri.structures import RigPosterior, take, to_device

WIDTH_FREEDOM = 3  # degrees of freedom of how much wider errors that go together make regions
# Their variance is this share of what is known before, where the views agree, and so many times
# the square of how far they turn against the others, over what is stated.
WIDTH_SHARE, WIDTH_TURNED = 0.3, 2.5


@torch.no_grad()
def widened(
    R: Tensor,
    t: Tensor,
    log_scale: Tensor,
    owner: Tensor,
    log_weights: Tensor,
    modes: Modes,
    evidence: Evidence,
    poses: Poses | None,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples (M, B, ...) moved away from their mode's mean as errors that go together ask for.

    How much wider is known roughly: what the moves add is scaled by the square root of an inverse
    chi-square, one for each sample, about what the views' disagreement says (`disagreement2`).
    The mean stays.

    Returns:
        R, t, and the square (B,) of what the moves were scaled by.
    """
    (M, B), K = log_scale.shape, modes.log_mass.shape[1]
    rig = torch.arange(B, device=owner.device)
    x, _ = coordinates_around(R, t, log_scale, evidence.expansions)  # (M, B, K, D + 1)
    x = x.gather(2, owner[..., None, None].expand(-1, -1, 1, x.shape[-1])).squeeze(2)
    own = torch.nn.functional.one_hot(owner, K) * log_weights.exp().unsqueeze(-1)  # (M, B, K)
    own = own / own.sum(0).clamp_min(1e-30)  # guards a mode without samples
    mode = (rig, owner)  # (M, B)

    def middle(value: Tensor) -> Tensor:
        return torch.einsum("mbk,mbd->bkd", own, value)[mode]

    shape = x[..., :-1]
    away = shape - middle(shape)
    further = (modes.wider[mode] @ away.unsqueeze(-1)).squeeze(-1) - away
    rows = pack(owner, K)
    expansions = take(evidence.expansions, rows.mode)

    def cameras(further: Tensor) -> tuple[Tensor, Tensor]:
        moved = shape + further - middle(further)
        # In its log the size's mean stays; of the size itself it would grow with the width.
        grown = middle(moved[..., -1:].exp()) / middle(shape[..., -1:].exp()).clamp_min(1e-30)
        size = moved[..., -1:] - grown.clamp_min(1e-30).log()
        packed = torch.cat([moved[..., :-1], size, x[..., -1:]], dim=-1)
        found = cameras_of(packed.flatten(0, 1)[rows.sample], expansions)
        return tuple(part.flatten(0, 1)[rows.place].unflatten(0, (M, B)) for part in found)

    spread2 = disagreement2(*cameras(further), log_weights, evidence, poses)
    generator = torch.Generator().manual_seed(seed + 1)  # not the numbers the samples have
    chi2 = torch.randn(M, WIDTH_FREEDOM, generator=generator, dtype=x.dtype).square().sum(1)
    factor = to_device((WIDTH_FREEDOM / chi2).sqrt(), x.device)[:, None, None]
    scale = spread2.sqrt()[:, None].expand(-1, further.shape[-1]).clone()
    scale[:, -1] = 1.0  # of the size views cannot disagree
    return *cameras(factor * scale * further), spread2


def disagreement2(
    R: Tensor, t: Tensor, log_weights: Tensor, evidence: Evidence, poses: Poses | None
) -> Tensor:
    """Factor (B,) on the variance that was added to cameras (M, B, V, ...), by how views disagree.

    A view that is fitted to what the others know turns (`ptri.posterior.agreement`) by a part of
    what it may be turned against them.
    """
    posterior = RigPosterior(R, t, log_weights, log_weights[0])
    mean, place = posterior_mean(posterior)
    at = evidence.observations, mean, place, evidence.joints.nan_to_num(), evidence.weight
    agreed = agreement(*at, poses, evidence.scale2)
    if agreed is None:
        return torch.ones_like(place[:, 0, 0])
    w = so3_log(mean.mT @ R)
    V = w.shape[2]
    w = (w - w.mean(2, keepdim=True)) * (V / (V - 1))  # against the mean of the others
    stated2 = torch.einsum("mb,mbvi->bv", log_weights.exp(), w.square())
    # (1e-6 rad)^2 guards samples that all agree to rounding.
    ratio2 = agreed.turned.square() / stated2.clamp_min(1e-12)
    return WIDTH_SHARE + WIDTH_TURNED * ratio2.nanmean(1).nan_to_num(1.0)
