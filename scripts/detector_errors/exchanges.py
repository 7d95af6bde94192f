"""How often a detector takes left for right, in which views, and for how long."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detector_errors.truth import APART, FEW, FLIP, NAMES, Truth, mean_of

_GROUPS = (("hip", "shoulder"), ("elbow", "wrist"), ("knee", "foot"))  # trunk, arms, legs
_ENDS = ("wrist", "foot")


def exchanges(truth: Truth, xy: Tensor, used: Tensor) -> dict[str, float]:
    """Shares of exchanged trunks and limbs, of ends in one place, and how long that lasts."""
    # Events: (where they can be told, where they happen), bool.
    trunk, arms, legs = (_vote(truth, xy, used, parts) for parts in _GROUPS)
    limbs = [(trunk[0] & limb[0], trunk[1] ^ limb[1]) for limb in (arms, legs)]
    ends = []
    for name in _ENDS:
        left, right = (NAMES.index(f"{side}_{name}") for side in ("left", "right"))
        apart = truth.apart[..., left]
        told = (apart > 1.5 * APART) & used[..., left] & used[..., right]
        ends.append((told, (xy[..., left, :] - xy[..., right, :]).norm(dim=-1) < 0.35 * apart))
    told, copied = (torch.stack(part, -1) for part in zip(*ends))
    side_on, front_on = (truth.facing.abs() < 0.4)[..., None], (truth.facing.abs() > 0.8)[..., None]
    copies = [mean_of(copied[told & view].float()) for view in (side_on, front_on)]
    lasting = [_autocorrelation(*event) for event in (trunk, *limbs, *ends)]
    lasting = [value for value in lasting if not math.isnan(value)]
    return {
        "body_swap_rate": mean_of(trunk[1][trunk[0]].float()),
        "limb_swap_rate": sum(mean_of(event[where].float()) for where, event in limbs) / 2,
        "limb_copy_rate": mean_of(copied[told].float()),
        # 1e-3 guards a detector that never copies a limb.
        "profile_copies": math.log((copies[0] + 1e-3) / (copies[1] + 1e-3)),
        "fault_s": sum(lasting) / len(lasting) if lasting else math.nan,
    }


def _vote(truth: Truth, xy: Tensor, used: Tensor, parts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(B, T, V) bool: whether a group's sides can be told, and whether they are exchanged."""
    group = [i for i, name in enumerate(NAMES) if "_" in name and name.split("_")[1] in parts]
    told = (truth.apart > APART)[..., group] & used[..., group]
    as_named, exchanged = (
        ((xy - target).norm(dim=-1)[..., group].clamp_max(0.3) * told).sum(-1)
        for target in (truth.xy, truth.xy[..., FLIP, :])
    )
    return told.any(-1), exchanged < as_named


def _autocorrelation(known: Tensor, event: Tensor) -> float:
    """Correlation of a bool event (B, T, V) between neighbouring frames."""
    both = known[:, 1:] & known[:, :-1]
    pair = torch.stack([event[:, 1:][both], event[:, :-1][both]]).float()
    if min(int(pair[0].sum()), int(pair[1].sum())) < FEW:
        return math.nan
    return float(torch.corrcoef(pair)[0, 1])
