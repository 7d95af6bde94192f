"""Whether an estimated rig can be trusted, and if not, why."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ptri.geometry.rotations import rotation_angle
from ptri.posterior import Evidence, Modes, RigSolution, Settings, rotation_covariance
from ptri.structures import RigPosterior


def judge(solution: RigSolution, settings: Settings) -> RigSolution:
    """The solution with its posterior's ``accepted`` and ``reason`` filled in."""
    posterior = solution.posterior
    with torch.no_grad():
        accepted, reason = verdict(posterior, solution.modes, solution.evidence, settings)
    return solution._replace(posterior=posterior._replace(accepted=accepted, reason=reason))


def verdict(
    posterior: RigPosterior, modes: Modes, evidence: Evidence, settings: Settings
) -> tuple[Tensor, list[str]]:
    """Whether each rig can be trusted, (B,) bool, and why not in words."""
    observations = evidence.observations
    B = observations.inlier.shape[0]
    spread = rotation_covariance(posterior).diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()  # (B, V)
    spread = torch.rad2deg(spread)
    seen = (observations.inlier > 0).sum((1, 3))  # (B, V)
    used = evidence.weight.sum((1, 3)) / seen.clamp_min(1)
    apart = rotation_angle(modes.R[:, 1:] @ modes.R[:, :1].transpose(-1, -2)).amax(-1)  # (B, K-1)
    near = modes.log_mass[:, 1:] > modes.log_mass[:, :1] - 3.0
    several = (near & (apart > math.radians(10.0))).any(1)
    accepted = torch.ones(B, dtype=torch.bool, device=seen.device)
    reasons = []
    for b in range(B):
        reason = ""
        fewest = int(seen[b].argmin())
        if int(seen[b, fewest]) < 6:
            reason = f"too little evidence: view {fewest} has {int(seen[b, fewest])} keypoints"
        elif bool(modes.failed[b]):
            reason = "too little evidence: the information of the cameras is singular"
        elif not bool(torch.isfinite(posterior.log_weights[:, b]).any()):
            reason = "no sample explains the keypoints"
        elif float(evidence.scale2[b]) > 25.0:
            reason = (
                f"the keypoints disagree: residuals are {float(evidence.scale2[b]) ** 0.5:.1f} "
                "times their stated uncertainty"
            )
        elif float(used[b].min()) < 0.4 and float(used[b].median()) > 0.6:
            reason = f"bad camera: view {int(used[b].argmin())} disagrees with the others"
        elif float(used[b].mean()) < 0.4:
            reason = "the keypoints disagree: most of them are outliers"
        elif bool(several[b]):
            reason = "several modes explain the keypoints"
        elif float(spread[b].max()) > settings.max_rotation_std_deg:
            worst = int(spread[b].argmax())
            reason = (
                f"too little evidence: rotation of view {worst} uncertain by "
                f"{float(spread[b, worst]):.1f} deg"
            )
        if reason:
            accepted[b] = False
        reasons.append(reason or "accepted")
    return accepted, reasons
