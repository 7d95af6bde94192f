"""Cramer-Rao bound of a rig from 2D keypoints, with the joints marginalised.

Information at the truth, of the clean points only, for Gaussian errors of known size. Parameters
are the cameras of views 1 to V-1 (turned and shifted about the person's middle) and every joint of
every frame; the joints are eliminated (Schur complement).

`bound`: without a body the scale is free: it has no information, and rotations do not depend on how
it is fixed. The errors of one joint in one view form a Gaussian vector over the frames with
covariance ``sigma^2 AR(1) + bias^2``, so each joint is eliminated with all its frames at once.

`bound_with_body`: bone lengths are shared by all frames and Gaussian in the logarithm, errors are
independent: the Bayesian bound (Van Trees, 1968) with its expectation taken at the truth.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.rig.cases import BIAS, Cases, Cell, correlation
from ptri.evaluation.metrics import view_pairs
from ptri.geometry.rotations import skew
from ptri.posterior.body import BodyPrior, bone_vectors
from ptri.structures import take

_METRE = 1e-3  # lengths are in metres here, so that angles and lengths have like sizes
_WIDE = 1e-4  # 1 / m^2, prior of joints under a body: 100 m


class _Blocks(NamedTuple):
    cameras: Tensor  # (B, G, G), G = 6 (V - 1)
    cross: Tensor  # (B, T, J, G, 3)
    joints: Tensor  # (B, T, J, 3, 3)


def bound(cases: Cases, cell: Cell) -> Tensor:
    """Least RMS angle (B, P) deg of each pair's rotation under the cell's kind of errors."""
    rho, bias = (correlation(cell), BIAS) if cell.errors == "detector" else (0.0, 0.0)
    parts = [
        _covariance(take(cases, slice(i, i + 1)), cell.noise, rho, bias)
        for i in range(len(cases.K))
    ]
    return pair_angles(torch.cat(parts), cases.cameras.R)


def bound_with_body(cases: Cases, body: BodyPrior) -> Tensor:
    """The same for independent errors, of one who knows the law of bone lengths."""
    covariance = torch.linalg.inv(_with_body(_blocks(cases), cases.joints3d, body))
    return pair_angles(covariance, cases.cameras.R)


def jacobians(cases: Cases) -> tuple[Tensor, Tensor]:
    """Slopes of the keypoints in px per metre and radian.

    Returns:
        (B, T, V, J, 2, 3) by the joints; (B, T, V-1, J, 2, 6) by the cameras of views 1.., which
        turn and shift about the person's middle: x_cam -> exp(w) (x_cam - c) + c + d.
    """
    R, t = cases.cameras.R, cases.cameras.t * _METRE
    joints = cases.joints3d * _METRE
    camera = torch.einsum("bvij,btkj->btvki", R, joints) + t[:, None, :, None]
    x, y, z = camera.unbind(-1)
    zero = torch.zeros_like(z)
    focal = cases.K.diagonal(dim1=-2, dim2=-1)[..., :2].unsqueeze(-2)  # (B, T, V, 1, 2)
    rows = torch.stack([1 / z, zero, -x / z**2, zero, 1 / z, -y / z**2], -1).unflatten(-1, (2, 3))
    P = focal.unsqueeze(-1) * rows  # (B, T, V, J, 2, 3), d(px) / d(x_cam)
    turn = -skew(camera - camera.mean((1, 3), keepdim=True))  # d(x_cam) / d(w)
    return P @ R[:, None, :, None], torch.cat([P @ turn, P], dim=-1)[:, :, 1:]


def _covariance(case: Cases, noise: float, rho: float, bias: float) -> Tensor:
    """Covariance (1, G, G) of one case's cameras."""
    used = case.clean.sum(2) >= 2  # (1, T, J)
    clean = case.clean & used.unsqueeze(2)
    P = error_precision(case, clean, noise, rho, bias)[0]  # (V, J, T, T)
    A, C = (slope[0] for slope in jacobians(case))  # (T, V, J, 2, 3), (T, V-1, J, 2, 6)
    T, V, J = A.shape[:3]
    joints = torch.einsum("vjts,tvjri,svjrk->jtisk", P, A, A).reshape(J, 3 * T, 3 * T)
    alone = (~used[0]).T.double().repeat_interleave(3, dim=1)  # (J, 3 T)
    joints = joints + torch.diag_embed(alone)
    cross = torch.einsum("vjts,tvjra,svjrk->vajsk", P[1:], C, A[:, 1:])
    cross = cross.permute(2, 0, 1, 3, 4).reshape(J, 6 * (V - 1), 3 * T)
    cameras = torch.block_diag(*torch.einsum("vjts,tvjra,svjrc->vac", P[1:], C, C))
    lost = cross @ torch.linalg.solve(joints, cross.transpose(-1, -2))  # to the joints
    return invert((cameras - lost.sum(0))[None], case.cameras.t)


def error_precision(cases: Cases, clean: Tensor, noise: float, rho: float, bias: float) -> Tensor:
    """Inverse covariances (B, V, J, T, T) of the errors, 1 / px^2; 0 in frames without the point.

    Args:
        clean: (B, T, V, J) points that count. noise: px at 1000 px, of which ``cases.sigma`` is
            the image's own. rho: correlation of neighbouring frames. bias: px at 1000 px.
    """
    T = clean.shape[1]
    lag = (torch.arange(T)[:, None] - torch.arange(T)[None]).abs()
    law = rho ** lag.double() + (bias / noise) ** 2  # (T, T), over sigma^2
    seen = clean.permute(0, 2, 3, 1).double()  # (B, V, J, T)
    both = seen.unsqueeze(-1) * seen.unsqueeze(-2)
    # Frames without the point get variance one, apart from the others, and are then cleared.
    covariance = both * law + torch.diag_embed(1 - seen)
    precision = torch.linalg.inv(covariance) * both
    return precision / cases.sigma[:, :, None, None, None].square()


def _blocks(cases: Cases) -> _Blocks:
    """Information of cameras and joints, joints not yet eliminated."""
    to_joint, to_camera = jacobians(cases)
    weight = (cases.clean / cases.sigma[:, None, :, None])[..., None, None]
    to_joint, to_camera = weight * to_joint, weight[:, :, 1:] * to_camera
    B, T, views, J = to_camera.shape[:4]
    blocks = torch.einsum("btvjra,btvjrc->bvac", to_camera, to_camera)
    cameras = torch.stack([torch.block_diag(*views_of_case) for views_of_case in blocks])
    cross = torch.einsum("btvjra,btvjri->btjvai", to_camera, to_joint[:, :, 1:])
    structure = torch.einsum("btvjri,btvjrk->btjik", to_joint, to_joint)
    return _Blocks(cameras, cross.reshape(B, T, J, 6 * views, 3), structure)


def _with_body(blocks: _Blocks, truth: Tensor, body: BodyPrior) -> Tensor:
    """Information of the cameras with joints and bone lengths eliminated."""
    B, T, J = blocks.joints.shape[:3]
    G, dtype = blocks.cameras.shape[-1], blocks.joints.dtype
    body = body.to(blocks.joints.device, dtype)
    length, direction = bone_vectors(truth, body)
    N = length.shape[-1]
    slope = direction / (length * _METRE)[..., None]  # d(log length) / d(child), 1 / m
    bones = torch.arange(N)
    rows = blocks.joints.new_zeros(B, T, N, J, 3)
    rows[:, :, bones, body.child] += slope
    rows[:, :, bones, body.parent] -= slope
    rows = rows.flatten(-2) / body.slack  # (B, T, N, 3 J)
    frames = rows.transpose(-1, -2) @ rows
    view = frames.unflatten(-1, (J, 3)).unflatten(-3, (J, 3))  # (B, T, J, 3, J, 3)
    joints = torch.arange(J)
    view[:, :, joints, :, joints] += blocks.joints.permute(2, 0, 1, 3, 4)
    frames = frames + _WIDE * torch.eye(3 * J, dtype=dtype)
    cross = blocks.cross.permute(0, 1, 3, 2, 4).reshape(B, T, G, 3 * J)
    coupling = torch.cat([cross, -rows / body.slack], dim=2)  # (B, T, G + N, 3 J)
    shared = torch.zeros(B, G + N, G + N, dtype=dtype)
    shared[:, :G, :G] = blocks.cameras
    shared[:, G:, G:] = T / body.slack**2 * torch.eye(N, dtype=dtype) + body.precision
    chol = torch.linalg.cholesky(frames)
    solved = torch.cholesky_solve(coupling.transpose(-1, -2), chol)
    shared = shared - (coupling @ solved).sum(1)
    cameras, mixed, lengths = shared[:, :G, :G], shared[:, :G, G:], shared[:, G:, G:]
    return cameras - mixed @ torch.linalg.solve(lengths, mixed.transpose(-1, -2))


def invert(information: Tensor, t: Tensor) -> Tensor:
    """Covariance (B, G, G) of the cameras with the scale fixed.

    Args:
        information: (B, G, G), without information on the scale. t: (B, V, 3) mm.
    """
    shift = t[:, 1:] * _METRE
    scale = torch.cat([torch.zeros_like(shift), shift], dim=-1).flatten(1)
    scale = scale / scale.norm(dim=-1, keepdim=True)  # what a change of scale does
    # Any value fixes it; this one is of the information's own size.
    size = information.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    fixed = information + size * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    return torch.linalg.pinv(fixed, hermitian=True)


def pair_angles(covariance: Tensor, R: Tensor) -> Tensor:
    """RMS angle (B, P) deg of every pair's rotation from the cameras' covariance (B, G, G)."""
    V = R.shape[1]
    angles = covariance.unflatten(-1, (V - 1, 6)).unflatten(-3, (V - 1, 6))
    angles = angles[:, :, :3, :, :3]
    first = torch.nn.functional.pad(angles, (0, 0, 1, 0, 0, 0, 1, 0))  # (B, V, 3, V, 3), view 0: 0
    result = []
    for i, j in view_pairs(V):
        turn = R[:, j] @ R[:, i].transpose(-1, -2)
        # R_ij -> exp(w_j - R_ij w_i) R_ij
        spread = (
            first[:, j, :, j]
            + turn @ first[:, i, :, i] @ turn.transpose(-1, -2)
            - turn @ first[:, i, :, j]
            - (turn @ first[:, i, :, j]).transpose(-1, -2)
        )
        result.append(spread.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0).sqrt())
    return torch.rad2deg(torch.stack(result, dim=-1))
