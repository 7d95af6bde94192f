"""Generated scenes for the tests of `ptri.estimate_rig`: one rig, T frames, known truth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from rigs_fixture import gaussian_scene
from torch import Tensor

from ptri.geometry.rotations import rotation_angle, so3_log
from ptri.structures import take


class Truth(NamedTuple):
    """Keypoints of one rig with independent Gaussian noise, and the truth."""

    xy: Tensor  # (T, V, 17, 2) px
    K: Tensor  # (V, 3, 3)
    confidence: Tensor  # (T, V, 17)
    covariance: Tensor  # (T, V, 17, 2, 2)
    R: Tensor  # (V, 3, 3)
    t: Tensor  # (V, 3) mm
    joints: Tensor  # (T, 17, 3) mm


def scene(frames=4, views=4, seed=0, family="ring", fps=2.0, noise=0.004, missing=0.05) -> Truth:
    """One rig of a family; noise as a share of the person's height."""
    overrides = [f"generated.families=[{family}]", "generated.errors.definition_mm=0"]
    made = gaussian_scene(1, views, frames, seed, noise, missing, fps, overrides)
    keypoints, K, cameras, joints = take(made, 0)
    xy, covariance, confidence = keypoints
    return Truth(xy, K[0], confidence, covariance, cameras.R, cameras.t, joints)


def rotation_error_deg(estimate, truth: Truth) -> Tensor:
    """Rotation errors (V,) of the cameras against the reference."""
    return torch.rad2deg(rotation_angle(estimate.R.mT @ truth.R))


def deviation(estimate, R: Tensor) -> Tensor:
    """How far rotations (V - 1, 3, 3) of views 1.. lie from an estimate, in its own standard
    deviations: root mean square over the three axes; about 1 for a true rotation."""
    w = so3_log(estimate.R[1:].mT @ R)
    # 1e-4 rad: what two runs may differ by where both are sure.
    cov = estimate.rotation_cov[1:] + 1e-8 * torch.eye(3, dtype=w.dtype)
    chi2 = (w * torch.linalg.solve(cov, w.unsqueeze(-1)).squeeze(-1)).sum(-1)
    return (chi2 / 3).sqrt()


def is_lawful(estimate) -> bool:
    """Finite; rotations are rotations; covariances positive semidefinite; weights sum to one."""
    parts = (
        estimate.R, estimate.t, estimate.joints3d, estimate.joints3d_covariance,
        estimate.rotation_cov, estimate.t_cov, *estimate.posterior,
    )  # fmt: skip
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        return False
    eye = torch.eye(3, dtype=torch.float64)
    orthogonal = (estimate.R @ estimate.R.mT - eye).abs().max() < 1e-6
    proper = (torch.linalg.det(estimate.R) > 0).all()
    positive = torch.linalg.eigvalsh(estimate.joints3d_covariance).min() > 0
    spread = torch.linalg.eigvalsh(estimate.rotation_cov).min() > -1e-12
    one = (torch.logsumexp(estimate.posterior.log_weights, 0)).abs().max() < 1e-6
    return bool(orthogonal & proper & positive & spread & one)
