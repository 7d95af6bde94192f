"""What was not fitted: how far the fitted model is like the detector where nobody made it so."""

from __future__ import annotations

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
    square = metrics.mahalanobis_square(error.double(), covariance)
    figures = {f"error, {100 * q:g} % quantile": _quantile(size[used], q) for q in _QUANTILES}
    for level, limit in _CHI2.items():
        figures[f"{level} % ellipses hold"] = float((square[used] < limit).double().mean())
    figures["error / stated sigma, 99 % quantile"] = _quantile(square[used].sqrt(), 0.99)
    figures |= _sides(truth, xy, used) | _confidence(keypoints.confidence, size, used)
    return figures | _triangulated(clips)


def _sides(truth: Truth, xy: Tensor, used: Tensor) -> dict[str, float]:
    """Shares of the joints of a pair that lie nearer to the mirror joint."""
    flat = mirrored(*(value.flatten(0, 2) for value in (xy, truth.xy, used)), _PAIR_APART)
    paired, swapped = (flat[name].view_as(used) for name in ("paired", "swapped"))

    def share(chosen) -> float:
        return float(swapped[chosen].sum() / paired[chosen].sum().clamp_min(1))

    shares = {}
    for kind in _LIMB_ENDS:
        columns = [i for i, name in enumerate(NAMES) if name.endswith(f"_{kind}")]
        many = "feet" if kind == "foot" else f"{kind}s"
        shares[f"{many} on the wrong side"] = share((..., columns))
    views = {
        "seen from behind": truth.facing < -0.5,
        "seen in front": truth.facing > 0.5,
        "seen in profile": truth.facing.abs() < 0.5,
    }
    for name, chosen in views.items():
        shares[f"joints on the wrong side, {name}"] = share(chosen)
    return shares


def _confidence(confidence: Tensor, size: Tensor, used: Tensor) -> dict[str, float]:
    return {
        "mean confidence, errors < 0.02": float(confidence[used & (size < 0.02)].mean()),
        "mean confidence, errors > 0.1": float(confidence[used & (size > 0.1)].mean()),
    }


def _triangulated(clips: Clips) -> dict[str, float]:
    """Robust triangulation with the true cameras; bones drawn over true ones."""
    cameras = clips.moving_cameras()
    joints = robust_triangulation(clips.keypoints, cameras)[0].joints3d.to(clips.joints)
    error = metrics.mpjpe(joints, clips.joints).double().nanmean()
    figures = {"triangulated, true cameras: MPJPE, mm": float(error)}
    ratio = bone_ratio(clips.keypoints, cameras, clips.joints)
    for name in ("head", "left_shoulder", "left_hip", "left_knee", "left_elbow"):
        bone = [c for c, _ in H36M17.bones].index(NAMES.index(name))
        figures[f"its bone to {name.replace('_', ' ')} over the true one"] = float(ratio[bone])
    return figures


def _quantile(value: Tensor, level: float) -> float:
    return float(value.sort().values[int(level * (len(value) - 1))])
