"""Aligning skeletons: cameras that face a person, depth from size, rigs from lifted skeletons."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.rotations import procrustes_rotation

# mm; a person nearer than this is a lifter's blunder, and is put here.
MIN_DISTANCE = 500.0


def look_at(centre: Tensor) -> Tensor:
    """The smallest rotations (..., 3, 3) that turn the rays (x, y, 1) of ``centre`` onto +z.

    Args:
        centre: (..., 2) normalised image coordinates.
    """
    z = torch.cat([centre, torch.ones_like(centre[..., :1])], dim=-1)
    z = z / z.norm(dim=-1, keepdim=True)
    x, y, c = z.unbind(-1)
    scale = 1 / (1 + c)  # c > 0, Rodrigues' formula with the axis z x e_z
    rows = [
        torch.stack([1 - x * x * scale, -x * y * scale, -x], dim=-1),
        torch.stack([-x * y * scale, 1 - y * y * scale, -y], dim=-1),
        torch.stack([x, y, c], dim=-1),
    ]
    return torch.stack(rows, dim=-2)


def place_on_rays(relative: Tensor, rays: Tensor, weight: Tensor) -> Tensor:
    """Where a skeleton of known size stands, from its rays: least squares, closed form.

    Minimises ``sum w |(I - r r^T)(p + x)|^2`` over the translation x.

    Args:
        relative: (..., J, 3) mm. rays: (..., J, 2) normalised. weight: (..., J).

    Returns:
        (..., 3) mm, at least ``MIN_DISTANCE`` in front of the camera.
    """
    r = torch.cat([rays, torch.ones_like(rays[..., :1])], dim=-1)
    r = r / r.norm(dim=-1, keepdim=True)
    eye = torch.eye(3, dtype=r.dtype, device=r.device)
    across = (eye - r.unsqueeze(-1) * r.unsqueeze(-2)) * weight[..., None, None]
    # 1e-6 keeps a view that sees nobody solvable.
    system = across.sum(-3) + 1e-6 * eye
    right = -(across @ relative.unsqueeze(-1)).sum(-3).to(system)  # autocast: of fewer bits
    # Without the check of `solve`, for which the CPU would wait for the GPU.
    x = torch.linalg.solve_ex(system, right)[0].squeeze(-1)
    return torch.cat([x[..., :2], x[..., 2:].clamp_min(MIN_DISTANCE)], dim=-1)


def align_views(skeletons: Tensor, weight: Tensor, hub: int) -> tuple[Tensor, Tensor, Tensor]:
    """A rig from skeletons of single views, all aligned to one of them (Procrustes).

    Args:
        skeletons: (B, T, V, 17, 3) mm in the camera frames.
        weight: (B, T, V, 17) trust in each joint, above 0.
        hub: the view that the others are aligned to.

    Returns:
        R (B, V, 3, 3), t (B, V, 3) mm and mean joints (B, T, 17, 3) mm, in view 0's frame.
    """
    pair = weight * weight[:, :, hub, None]  # (B, T, V, J)
    share = pair / pair.sum(-1, keepdim=True)
    mean_hub = (share[..., None] * skeletons[:, :, hub, None]).sum(-2)  # (B, T, V, 3)
    mean_own = (share[..., None] * skeletons).sum(-2)
    centred_hub = skeletons[:, :, hub, None] - mean_hub.unsqueeze(-2)
    centred_own = skeletons - mean_own.unsqueeze(-2)
    covariance = torch.einsum("ntvj,ntvja,ntvjb->nvab", pair, centred_own, centred_hub)
    R = procrustes_rotation(covariance)  # hub to own, (B, V, 3, 3)
    trust = pair.sum(-1)  # (B, T, V)
    trust = trust / trust.sum(1, keepdim=True)
    moved = torch.einsum("bvac,btvc->btva", R, mean_hub)
    t = (trust[..., None] * (mean_own - moved)).sum(1)
    # x_v = R_v x_hub + t_v and x_0 = R_0 x_hub + t_0 give view v in view 0's frame.
    first_R, first_t = R[:, :1], t[:, :1]
    R = R @ first_R.mT
    t = t - (R @ first_t.unsqueeze(-1)).squeeze(-1)
    R[:, 0], t[:, 0] = torch.eye(3, dtype=R.dtype, device=R.device), 0.0  # to the last bit
    back = torch.einsum("bvca,btvjc->btvja", R, skeletons - t[:, None, :, None])
    share = weight / weight.sum(2, keepdim=True)
    return R, t, (share[..., None] * back).sum(2)
