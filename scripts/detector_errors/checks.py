"""What was not fitted: how far the fitted model is like the detector where nobody made it so."""

from __future__ import annotations

import torch
from torch import Tensor

from detector_errors.bones import bone_ratio
from detector_errors.clips import Clips
from detector_errors.truth import NAMES, Truth
from ptri.evaluation import metrics
from ptri.evaluation.metrics import mirrored
from ptri.geometry.triangulation import robust_triangulation
from ptri.skeleton import H36M17

_QUANTILES = (0.5, 0.9, 0.99)
_PAIR_APART = 0.12  # of the person: pairs farther apart are asked whether they are exchanged
_CHI2 = {50: 1.386, 90: 4.605}  # of two dimensions
_LIMB_ENDS = ("shoulder", "elbow", "wrist", "hip", "knee", "foot")


def check(truth: Truth, clips: Clips) -> dict[str, float]:
    """Numbers by what they say, of keypoints as they are; lengths 2D in units of the person."""
    keypoints = clips.keypoints
    xy = keypoints.xy / truth.scale[..., None, None]
    used = truth.inside & ~xy.isnan().any(-1)
    error = xy - truth.xy
    size = error.norm(dim=-1)
    covariance = keypoints.covariance.double() / truth.scale[..., None, None, None] ** 2
    safe = torch.where(used.unsqueeze(-1), error, 0.0).double().unsqueeze(-1)
    square = (safe.mT @ torch.linalg.solve(covariance, safe)).squeeze(-1).squeeze(-1)
    found = {f"error, {100 * q:g} % quantile": _quantile(size[used], q) for q in _QUANTILES}
    for level, limit in _CHI2.items():
        found[f"{level} % ellipses hold"] = float((square[used] < limit).double().mean())
    found["error / stated sigma, 99 % quantile"] = _quantile(square[used].sqrt(), 0.99)
    found |= _sides(truth, xy, used) | _confidence(keypoints.confidence, size, used)
    return found | _triangulated(clips)


def _sides(truth: Truth, xy: Tensor, used: Tensor) -> dict[str, float]:
    """Shares of the joints of a pair that lie nearer to the mirror joint."""
    flat = (value.flatten(0, 2) for value in (xy, truth.xy, used))
    found = mirrored(*flat, _PAIR_APART)
    found = {name: value.view_as(used) for name, value in found.items()}
    result = {}
    for kind in _LIMB_ENDS:
        columns = [i for i, name in enumerate(NAMES) if name.endswith(f"_{kind}")]
        many = "feet" if kind == "foot" else f"{kind}s"
        result[f"{many} on the wrong side"] = _share(found, (slice(None),) * 3 + (columns,))
    views = {"behind": truth.facing < -0.5, "in front": truth.facing > 0.5}
    views["in profile"] = truth.facing.abs() < 0.5
    for name, chosen in views.items():
        result[f"joints on the wrong side, seen from {name}".replace("from in", "in")] = _share(
            found, chosen
        )
    return result


def _share(found: dict[str, Tensor], chosen) -> float:
    return float(found["swapped"][chosen].sum() / found["paired"][chosen].sum().clamp_min(1))


def _confidence(confidence: Tensor, size: Tensor, used: Tensor) -> dict[str, float]:
    near = used & (size < 0.02)
    far = used & (size > 0.1)
    return {
        "mean confidence, errors < 0.02": float(confidence[near].mean()),
        "mean confidence, errors > 0.1": float(confidence[far].mean()),
    }


def _triangulated(clips: Clips) -> dict[str, float]:
    """Robust triangulation with the true cameras; bones drawn over true ones."""
    cameras = clips.moving_cameras()
    joints = robust_triangulation(clips.keypoints, cameras)[0].joints3d.to(clips.joints)
    error = metrics.mpjpe(joints, clips.joints).double().nanmean()
    found = {"triangulated, true cameras: MPJPE, mm": float(error)}
    ratio = bone_ratio(clips.keypoints, cameras, clips.joints)
    for name in ("head", "left_shoulder", "left_hip", "left_knee", "left_elbow"):
        bone = [c for c, _ in H36M17.bones].index(NAMES.index(name))
        found[f"its bone to {name.replace('_', ' ')} over the true one"] = float(ratio[bone])
    return found


def _quantile(value: Tensor, level: float) -> float:
    return float(value.sort().values[int(level * (len(value) - 1))])
