"""How often a detector takes left for right, in which views, and for how long."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detector_errors.truth import APART, FEW, FLIP, NAMES, Truth, mean_of

_GROUPS = {"trunk": ("hip", "shoulder"), "arms": ("elbow", "wrist"), "legs": ("knee", "foot")}
_ENDS = ("wrist", "foot")


def exchanges(truth: Truth, xy: Tensor, used: Tensor) -> dict[str, float]:
    """Shares of exchanged trunks and limbs, of ends in one place, and how long that lasts."""
    known, votes = {}, {}
    for name, parts in _GROUPS.items():
        known[name], votes[name] = _vote(truth, xy, used, parts)
    found = [(known["trunk"], votes["trunk"])]
    for limb in ("arms", "legs"):
        found.append((known["trunk"] & known[limb], votes["trunk"] ^ votes[limb]))
    ends = []
    for name in _ENDS:
        left, right = (NAMES.index(f"{side}_{name}") for side in ("left", "right"))
        apart = truth.apart[..., left]
        known_end = (apart > 1.5 * APART) & used[..., left] & used[..., right]
        ends.append((known_end, (xy[..., left, :] - xy[..., right, :]).norm(dim=-1) < 0.35 * apart))
    known_end, one_place = (torch.stack(part, -1) for part in zip(*ends))
    profile = known_end & (truth.facing.abs() < 0.4).unsqueeze(-1)
    facing_ = known_end & (truth.facing.abs() > 0.8).unsqueeze(-1)
    shares = [mean_of(one_place[chosen].float()) for chosen in (profile, facing_)]
    lasting = [_autocorrelation(*event) for event in (*found, *ends)]
    lasting = [value for value in lasting if not math.isnan(value)]
    limbs = [mean_of(event[chosen].float()) for chosen, event in found[1:]]
    return {
        "body_swap_rate": mean_of(found[0][1][found[0][0]].float()),
        "limb_swap_rate": sum(limbs) / 2,
        "limb_copy_rate": mean_of(one_place[known_end].float()),
        # 1e-3 guards a detector that never copies a limb.
        "profile_copies": math.log((shares[0] + 1e-3) / (shares[1] + 1e-3)),
        "fault_s": sum(lasting) / len(lasting) if lasting else math.nan,
    }


def _vote(truth: Truth, xy: Tensor, used: Tensor, parts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(B, T, V) bool: whether a group's sides can be told, and whether they are exchanged."""
    group = [i for i, name in enumerate(NAMES) if "_" in name and name.split("_")[1] in parts]
    told = (truth.apart > APART)[..., group] & used[..., group]
    own = (xy - truth.xy).norm(dim=-1)[..., group].clamp_max(0.3) * told
    other = (xy - truth.xy[..., FLIP, :]).norm(dim=-1)[..., group].clamp_max(0.3) * told
    return told.any(-1), other.sum(-1) < own.sum(-1)


def _autocorrelation(known: Tensor, event: Tensor) -> float:
    """Correlation of a bool event (B, T, V) between neighbouring frames."""
    both = known[:, 1:] & known[:, :-1]
    pair = torch.stack([event[:, 1:][both], event[:, :-1][both]]).float()
    if min(int(pair[0].sum()), int(pair[1].sum())) < FEW:
        return math.nan
    return float(torch.corrcoef(pair)[0, 1])
