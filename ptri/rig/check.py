"""The keypoints and intrinsics that `ptri.estimate_rig` is given: checked, in float64, no skew."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.errors import UserError
from ptri.skeleton import H36M17, Skeleton, find_skeleton, linear_map, map_joints, to_h36m17
from ptri.structures import Keypoints

# Standard deviation of a keypoint over the person's extent in the view where none is given.
KEYPOINT_NOISE = 0.01
LEAST_NOISE = 5e-4  # and over the focal length: half a pixel at 1000 px
MAX_RAY = 20.0  # a keypoint further from the optical axis (tangent; 87 deg) is in no pinhole image
# A joint made of others repeats what they say: its variance is taken so many times larger.
DERIVED_VARIANCE = 9.0


class RigInput(NamedTuple):
    """One person in T frames of V static views."""

    keypoints: Keypoints  # (T, V, J, ...) px, float64, J of the skeleton; NaN xy = not seen
    K: Tensor  # (V, 3, 3) px, float64, zero skew; (T, V, 3, 3) where each frame has its own
    skeleton: Skeleton

    def of_views(self, views: list[int]) -> RigInput:
        """The same of some views."""
        keypoints = Keypoints(*(value[:, views] for value in self.keypoints))
        return self._replace(keypoints=keypoints, K=self.K[..., views, :, :])

    def of_frames(self, frames: list[int]) -> RigInput:
        """The same of some frames."""
        keypoints = Keypoints(*(value[frames] for value in self.keypoints))
        return self._replace(keypoints=keypoints, K=self.K if self.K.ndim == 3 else self.K[frames])


def check_input(
    xy,
    K,
    confidence=None,
    covariance=None,
    skeleton: str | Sequence[str] | Skeleton = "h36m17",
    device: torch.device | str | None = None,
) -> RigInput:
    """Checks and converts what `ptri.estimate_rig` is given; see there for shapes and units.

    Raises:
        UserError: anything that is wrong; the message says what, where, what was expected and how
            to mend it.
    """
    skeleton = find_skeleton(skeleton)
    if device is None:
        device = xy.device if isinstance(xy, Tensor) else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device: {device!r}: {str(error).splitlines()[0]}") from None
    xy = _tensor(xy, "xy", device)
    if xy.ndim != 4 or xy.shape[-1] != 2:
        hint = "; add the frames' dimension with xy[None]" if xy.ndim == 3 else ""
        raise UserError(
            f"xy: expected shape (frames, views, joints, 2), got {tuple(xy.shape)}{hint}"
        )
    T, V, J, _ = xy.shape
    if T < 1:
        raise UserError("xy: no frames; give at least one")
    if V < 2:
        raise UserError(f"xy: {V} view; at least two are needed")
    if len(skeleton.joints) != J:
        raise UserError(
            f"xy: {J} joints, but skeleton {skeleton.name!r} has {len(skeleton.joints)}; choose "
            "the skeleton of your keypoints or give a list of joint names"
        )
    K, shear = _check_intrinsics(_tensor(K, "K", device), V)
    confidence = _check_confidence(confidence, xy, device)
    seen = ~torch.isnan(xy).any(-1) & (confidence > 0)
    _refuse(
        seen & torch.isinf(xy).any(-1),
        "xy: infinite",
        "write NaN for a keypoint that was not seen",
    )
    xy = torch.where(seen[..., None], xy, torch.nan)
    # Without the skew: u' = u - s (v - cy) / fy, and covariances with it.
    xy = torch.stack(
        [xy[..., 0] + shear[:, None] * (xy[..., 1] - K[:, None, 1, 2]), xy[..., 1]], dim=-1
    )
    focal = K.diagonal(dim1=-2, dim2=-1)[:, None, :2]
    ray = (xy - K[:, None, :2, 2]) / focal
    _refuse(
        seen & (ray.abs().amax(-1) > MAX_RAY),
        "xy: more than 87 deg off the optical axis",
        "no pinhole image holds such a point; check K and the units (px), or write NaN",
    )
    if covariance is None:
        covariance = default_covariance(xy, KEYPOINT_NOISE, LEAST_NOISE * focal.mean((-1, -2)))
    else:
        covariance = _check_covariance(covariance, xy, seen, device)
        turn = torch.eye(2, dtype=xy.dtype, device=device).repeat(V, 1, 1)
        turn[:, 0, 1] = shear
        turn = turn[:, None]  # (V, 1, 2, 2)
        covariance = turn @ covariance @ turn.mT
    eye = torch.eye(2, dtype=xy.dtype, device=device)
    covariance = torch.where(seen[..., None, None], covariance, eye)
    confidence = torch.where(seen, confidence, torch.zeros_like(confidence))
    return RigInput(Keypoints(xy, covariance, confidence), K, skeleton)


def default_covariance(xy: Tensor, noise: float, least: Tensor | float = 0.0) -> Tensor:
    """Covariances (T, V, J, 2, 2) px^2 of keypoints (T, V, J, 2) that come without any.

    The standard deviation is ``noise`` times the longer side of the box around the person in the
    view, or the usual one of that view where that is longer: half a person seen is no smaller
    person. At least ``least`` (V,) px.
    """
    points = xy.detach().cpu().double().numpy()
    with warnings.catch_warnings():  # a view that saw nobody has no extent
        warnings.simplefilter("ignore", RuntimeWarning)
        extent = (np.nanmax(points, 2) - np.nanmin(points, 2)).max(-1)  # (T, V)
        extent = np.where(np.isfinite(points).all(-1).sum(-1) >= 2, extent, np.nan)
        extent = np.fmax(extent, np.nanmedian(extent, 0))
    sigma = torch.as_tensor(noise * extent).nan_to_num(1.0).to(xy)
    sigma = torch.maximum(sigma, torch.as_tensor(least).to(xy))
    eye = torch.eye(2, dtype=xy.dtype, device=xy.device)
    shape = (*xy.shape, 2)
    return (sigma.square()[..., None, None, None] * eye).expand(shape)


def known_joints(given: RigInput) -> Keypoints:
    """Human3.6M's 17 joints (T, V, 17, ...) of the keypoints, NaN where there is no such joint."""
    keypoints, skeleton = given.keypoints, given.skeleton
    if skeleton is H36M17:
        return keypoints
    xy, confidence = (part.detach().cpu().numpy() for part in (keypoints.xy, keypoints.confidence))
    parts = (torch.as_tensor(part).to(keypoints.xy) for part in to_h36m17(xy, confidence, skeleton))
    share = torch.as_tensor(np.nan_to_num(linear_map(skeleton, H36M17))).to(keypoints.xy)
    # As if a joint's sources erred alike: no more certain than they are.
    covariance = torch.einsum("ij,tvjab->tviab", share, keypoints.covariance)
    eye = torch.eye(2).to(covariance)
    covariance = torch.where((share.sum(1) > 0)[:, None, None], covariance, eye)
    xy, confidence = parts
    return Keypoints(xy, covariance, confidence)


def for_model(given: RigInput) -> Keypoints:
    """Keypoints (T, V, 17 + E, ...) as the model takes them.

    First Human3.6M's 17 joints, then the E joints of the skeleton that are none of them. Those of
    the 17 that are means of several keypoints guide the lifter, but the geometry has these
    keypoints already, so that their variance is inflated by `DERIVED_VARIANCE`.
    """
    known = known_joints(given)
    if given.skeleton is H36M17:
        return known
    sources = (np.nan_to_num(linear_map(given.skeleton, H36M17)) > 0).sum(1)
    factor = np.where(sources > 1, DERIVED_VARIANCE, 1.0)
    factor = torch.as_tensor(factor).to(known.covariance)
    known = known._replace(covariance=known.covariance * factor[:, None, None])
    extra = extra_joints(given.skeleton)
    more = Keypoints(*(part[:, :, extra] for part in given.keypoints))
    return Keypoints(*(torch.cat(pair, dim=2) for pair in zip(known, more)))


def extra_joints(skeleton: Skeleton) -> list[int]:
    """Joints of a skeleton that are none of Human3.6M's 17."""
    matrix = np.nan_to_num(linear_map(skeleton, H36M17))
    alone = (matrix > 0).sum(1) == 1
    return np.flatnonzero(~(matrix[alone] > 0).any(0)).tolist()


def joints_to_h36m17(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Human3.6M's joints (..., 17, 3) of a skeleton's (..., J, 3); NaN where it lacks one."""
    mapped = map_joints(joints.detach().cpu().numpy(), linear_map(skeleton, H36M17))
    return torch.as_tensor(mapped).to(joints)


# --- checks ------------------------------------------------------------------------------------


def check_numbers(
    num_samples: int, num_iterations: int, children: float, max_frames: int, seed: int
) -> tuple[PosteriorConfig, int, int]:
    """The posterior's options, and max_frames and seed as Python's own integers.

    Raises:
        UserError: one of them is out of range.
    """
    for name, value, least in (
        ("num_samples", num_samples, 8),
        ("num_iterations", num_iterations, 1),
        ("max_frames", max_frames, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise UserError(f"{name}: {value!r}; expected a whole number >= {least}")
    if num_iterations > num_samples:
        raise UserError(
            f"num_iterations: {num_iterations} for {num_samples} samples; expected no more than "
            "num_samples, which is the number of samples of all iterations together"
        )
    if isinstance(children, bool) or not isinstance(children, Real) or not 0 <= children <= 1:
        raise UserError(f"children: {children!r:.80}; expected a chance from 0 to 1")
    options = PosteriorConfig(
        num_samples=int(num_samples), num_iterations=int(num_iterations), children=float(children)
    )
    return options, int(max_frames), int(seed)


def _tensor(value, name: str, device: torch.device) -> Tensor:
    """Any array of real numbers as float64."""
    try:
        if not isinstance(value, Tensor):
            value = torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name}: not an array of numbers ({' '.join(str(error).split())[:80]}); give a NumPy "
            "array or a torch tensor"
        ) from None
    if value.dtype == torch.bool or value.is_complex():
        raise UserError(f"{name}: expected real numbers, got {value.dtype}")
    try:
        return value.detach().to(device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError) as error:  # no such device
        raise UserError(f"device: {device}: {str(error).splitlines()[0][:120]}") from None


def _refuse(bad: Tensor, what: str, mend: str, words=("frame", "view", "joint")) -> None:
    """Raises where any entry is bad, and names the first one."""
    if bool(bad.any()):
        place = torch.nonzero(bad)[0].tolist()
        where = ", ".join(f"{word} {index}" for word, index in zip(words, place))
        raise UserError(f"{what} at {where} ({int(bad.sum())} of {bad.numel()}); {mend}")


def _check_intrinsics(K: Tensor, num_views: int) -> tuple[Tensor, Tensor]:
    """K (V, 3, 3) without skew, and the shear (V,) that takes the skew out of points."""
    if K.shape != (num_views, 3, 3):
        hint = "; repeat it for every view" if K.shape == (3, 3) else ""
        raise UserError(
            f"K: expected shape ({num_views}, 3, 3), one per view of xy, got {tuple(K.shape)}{hint}"
        )
    bad = ~torch.isfinite(K).flatten(1).all(1)
    _refuse(bad, "K: NaN or infinite", "calibrate the camera again", ("view",))
    corner = K[:, 2, 2]
    form = (K[:, 1, 0].abs() + K[:, 2, :2].abs().sum(-1) > 1e-6 * K.abs().amax((1, 2))) | (
        corner.abs() < 1e-12
    )
    expected = "expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in px"
    _refuse(form, "K: not an intrinsic matrix", expected, ("view",))
    K = K / corner[:, None, None]
    focal = K.diagonal(dim1=-2, dim2=-1)[:, :2]
    _refuse(
        (focal <= 0).any(1),
        "K: a focal length is zero or negative",
        f"{expected} with fx, fy > 0; a mirrored image has to be mirrored back",
        ("view",),
    )
    _refuse(
        (focal.amax(1) > 1e7) | (focal.amin(1) < 1e-2) | (K[:, :2, 2].abs().amax(1) > 1e7),
        "K: beyond any camera",
        "focal lengths and principal point are in px, such as 1000",
        ("view",),
    )
    shear = -K[:, 0, 1] / focal[:, 1]
    _refuse(shear.abs() > 0.5, "K: skew beyond half of fy", expected, ("view",))
    K = K.clone()
    K[:, 0, 1] = 0.0
    K[:, 1, 0], K[:, 2, :2] = 0.0, 0.0
    return K, shear


def _check_confidence(confidence, xy: Tensor, device: torch.device) -> Tensor:
    if confidence is None:
        return (~torch.isnan(xy).any(-1)).to(xy)
    confidence = _tensor(confidence, "confidence", device)
    if confidence.shape != xy.shape[:-1]:
        raise UserError(
            f"confidence: expected shape {tuple(xy.shape[:-1])}, that of xy without its last "
            f"dimension, got {tuple(confidence.shape)}"
        )
    there = ~torch.isnan(xy).any(-1)
    mend = "expected 0 (not seen) to 1 (certain); divide by the largest where a detector has scores"
    inside = (confidence >= 0) & (confidence <= 1)  # False for NaN
    _refuse(there & ~inside, "confidence: outside [0, 1]", mend)
    return torch.where(there, confidence, torch.zeros_like(confidence))


def _check_covariance(covariance, xy: Tensor, seen: Tensor, device: torch.device) -> Tensor:
    covariance = _tensor(covariance, "covariance", device)
    if covariance.shape != (*xy.shape, 2):
        raise UserError(
            f"covariance: expected shape {(*xy.shape, 2)}, a matrix (px^2) per keypoint, got "
            f"{tuple(covariance.shape)}"
        )
    finite = torch.isfinite(covariance).flatten(-2).all(-1)
    mend = "give px^2, or NaN in xy for a keypoint that was not seen"
    _refuse(seen & ~finite, "covariance: NaN or infinite", mend)
    a, b = covariance[..., 0, 0], covariance[..., 0, 1]
    c, d = covariance[..., 1, 1], covariance[..., 1, 0]
    size = torch.maximum(a, c)
    _refuse(seen & ((b - d).abs() > 1e-6 * size.abs()), "covariance: not symmetric", mend)
    positive = (a > 0) & (c > 0) & (a * c - b * b > 1e-12 * size.square())
    mend = "expected variances > 0 and |cov_xy| < sqrt(var_x var_y); add a small multiple of I"
    _refuse(seen & ~positive, "covariance: not positive definite", mend)
    _refuse(
        seen & ((size > 1e12) | (torch.minimum(a, c) < 1e-12)),
        "covariance: beyond any keypoint",
        "variances are in px^2, such as 9",
    )
    return covariance
