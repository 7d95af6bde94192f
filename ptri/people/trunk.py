"""What depends on how a person's trunk stands: offsets that turn with it, its front, what it hides.

Joints are Human3.6M's 17, mm, world.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ptri.geometry.cameras import project_normalised, transform
from ptri.geometry.rotations import upright_axes
from ptri.skeleton import H36M17
from ptri.structures import Cameras

_RADIUS = 130.0  # mm, of the capsule that hides arms and legs
_LIMBS = [name.endswith(("wrist", "elbow", "knee", "foot")) for name in H36M17.joints]
_HIP, _THORAX, _SPINE, _LEFT, _RIGHT = (
    H36M17.joints.index(name) for name in ("hip", "thorax", "spine", "left_hip", "right_hip")
)


def body_fixed(joints: Tensor, along: Tensor, trunk: Tensor) -> Tensor:
    """Displacements (..., T, J, 3) mm that move with the body.

    Args:
        joints: (..., T, J, 3) mm.
        along: (..., 1, J, 1) mm along each joint's bone, away from its parent.
        trunk: (..., 1, J, 3) mm to the left, up and forwards in the trunk's axes.
    """
    parent = torch.tensor(H36M17.parents)
    parent[_HIP] = _SPINE
    bone = normalize(joints - joints[..., parent, :], dim=-1)
    up = joints[..., _THORAX, :] - joints[..., _HIP, :]
    across = joints[..., _LEFT, :] - joints[..., _RIGHT, :]
    return along * bone + trunk @ upright_axes(across, up)


def facing(joints: Tensor, cameras: Cameras) -> Tensor:
    """(B, T, V) how the trunk stands to a camera: 1 seen from the front, 0 in profile, -1 behind.

    Args:
        joints: (B, T, J, 3) mm, world. cameras: (B, V, ...), world.
    """
    across = normalize(joints[..., _LEFT, :] - joints[..., _RIGHT, :], dim=-1)
    return torch.einsum("btk,bvk->btv", across, cameras.R[..., 0, :])


def self_occluded(joints: Tensor, cameras: Cameras) -> Tensor:
    """(B, T, V, J) bool: arms and legs seen through the trunk (a 130 mm thick capsule).

    Args:
        joints: (B, T, J, 3) mm, world. cameras: (B, V, ...), world.
    """
    view = transform(joints.unsqueeze(2), cameras.R.unsqueeze(1), cameras.t.unsqueeze(1))
    ray, depth = project_normalised(view), view[..., 2]  # (B, T, V, J, 2) and (B, T, V, J)
    base = ray[..., _HIP, None, :]
    axis = ray[..., _THORAX, None, :] - base
    # 1e-9 guards a trunk seen end on.
    along = ((ray - base) * axis).sum(-1) / (axis**2).sum(-1).clamp_min(1e-9)
    along = along.clamp(0, 1)
    nearest = base + along.unsqueeze(-1) * axis
    trunk = torch.lerp(depth[..., _HIP, None], depth[..., _THORAX, None], along)
    beside = (ray - nearest).norm(dim=-1) * trunk < _RADIUS
    return beside & (depth > trunk + _RADIUS) & torch.tensor(_LIMBS)
