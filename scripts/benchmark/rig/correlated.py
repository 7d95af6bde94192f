"""Cramer-Rao bound of a rig under errors that are correlated over frames and hold a fixed offset.

As `benchmark.rig.bound` without a body, but the errors of one joint in one view form a Gaussian
vector over the frames with covariance ``sigma^2 AR(1) + bias^2``. Frames then couple, so each joint
is eliminated with all its frames at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.rig.bound import invert, jacobians, pair_angles
from benchmark.rig.cases import BIAS, Cases, Cell, correlation, one


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


def bound_correlated(cases: Cases, cell: Cell) -> Tensor:
    """Least RMS angle (B, P) deg of the pairs' rotations under the cell's kind of errors."""
    rho, bias = (correlation(cell), BIAS) if cell.errors == "detector" else (0.0, 0.0)
    return torch.cat([_one(one(cases, i), cell.noise, rho, bias) for i in range(len(cases.K))])


def _one(case: Cases, noise: float, rho: float, bias: float) -> Tensor:
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
    own = torch.einsum("vjts,tvjra,svjrc->vac", P[1:], C, C)
    cameras = torch.block_diag(*own)
    told = cross @ torch.linalg.solve(joints, cross.transpose(-1, -2))
    information = (cameras - told.sum(0))[None]
    return pair_angles(invert(information, case.cameras.t), case.cameras.R)
