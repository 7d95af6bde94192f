"""How cameras move by tangent vectors.

A camera moves by ``x_cam -> exp(w) (x_cam - c) + c + d`` about the person's centre c in its frame,
which decouples rotation w (rad) from translation d (mm). A focal length that grows by a share g of
itself takes its camera away by as much, ``g c_z``, so that the person stays as large in the
picture; view 0, which stands at the origin, takes the joints and all other views away (`carried`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.geometry.rotations import so3_exp
from ptri.structures import Views

LEAST_GROWTH = -0.9  # of a focal length in a step


def move_cameras(views: Views, centre: Tensor, tangent: Tensor) -> Views:
    """Moves the cameras by tangent vectors; view 0 stays in its place.

    Args:
        views: (..., V, ...). centre: (..., V, 3), pivots in the camera frames.
        tangent: (..., F + 6 (V - 1)): of each view the focal length's growth, where these are
            unknown, and of each but the first rotation (rad) and translation (mm).
    """
    R, t, log_focal = views
    F = log_focal.shape[-1]
    growth = tangent[..., :F].clamp_min(LEAST_GROWTH)
    step = tangent[..., F:].unflatten(-1, (-1, 6))
    turn = so3_exp(step[..., :3])
    pivot = centre[..., 1:, :]
    moved_R = turn @ R[..., 1:, :, :]
    moved_t = (turn @ (t[..., 1:, :] - pivot).unsqueeze(-1)).squeeze(-1) + pivot + step[..., 3:]
    if F:
        moved_t = moved_t + dolly(growth, centre, moved_R)
    first_R = R[..., :1, :, :].expand(*moved_R.shape[:-3], 1, 3, 3)
    first_t = t[..., :1, :].expand(*moved_t.shape[:-2], 1, 3)
    R, t = torch.cat([first_R, moved_R], dim=-3), torch.cat([first_t, moved_t], dim=-2)
    return Views(R, t, log_focal + torch.log1p(growth))


def dolly(growth: Tensor, centre: Tensor, R: Tensor) -> Tensor:
    """By how much views 1.. (..., V - 1, 3) mm move away as focal lengths grow by shares (..., V).

    Args:
        centre: (..., V, 3), in the camera frames. R: (..., V - 1, 3, 3) of views 1...
    """
    away = growth * centre[..., 2]  # (..., V)
    own = torch.nn.functional.pad(away[..., 1:, None], (2, 0))
    return own - away[..., :1, None] * R[..., 2]


def carried(centre: Tensor, tangent: Tensor, num_focal: int) -> Tensor:
    """By how much (..., 3) mm all joints move with view 0's focal length.

    Args:
        centre, tangent: as in `move_cameras`. num_focal: F.
    """
    if not num_focal:
        return torch.zeros_like(centre[..., 0, :])
    growth = tangent[..., :1].clamp_min(LEAST_GROWTH)
    return torch.nn.functional.pad(growth * centre[..., 0, 2:], (2, 0))


def by_focal(camera: Tensor, centre: Tensor) -> Tensor:
    """How points (N, V, ..., 3) mm in the camera frames move with their view's focal length.

    Args:
        centre: (N, V, ..., 3), pivots in the camera frames.
    """
    depth = centre[..., 2:].expand(*camera.shape[:-1], 1)
    return torch.cat([camera[..., :2], depth], dim=-1)
