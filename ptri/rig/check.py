"""The keypoints and intrinsics that `ptri.estimate_rig` is given: checked, in float64, no skew."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.errors import UserError
from ptri.rig.arrays import as_tensor, picture_sizes
from ptri.rig.lenses import CENTRE_STD, EXACT, GIVEN, Lenses, find_lenses
from ptri.skeleton import H36M17, Skeleton, find_skeleton, linear_map, map_joints
from ptri.structures import Keypoints, cat, take
from ptri.verdict.pictures import doubt_pictures
from ptri.verdict.verdict import Verdict

# Standard deviation of a keypoint over the person's extent in the view where none is given.
KEYPOINT_NOISE = 0.03
LEAST_NOISE = 5e-4  # and over the focal length: half a pixel at 1000 px
MIN_FOCAL = 0.1  # of a keypoint's usual distance from the picture's corner; less is no px
MAX_RAY = 20.0  # a keypoint further from the optical axis (tangent; 87 deg) is in no pinhole image
# A joint made of others repeats what they say: its variance is taken so many times larger.
DERIVED_VARIANCE = 9.0
_UP_TO_SAMPLES = "a whole number from 1 to num_samples, the samples of all iterations together"


class RigInput(NamedTuple):
    """T frames of V static views, each with one person."""

    keypoints: Keypoints  # (T, V, J, ...) px, float64, J of the skeleton; NaN xy = not seen
    K: Tensor  # (T, V, 3, 3) px, float64, zero skew
    skeleton: Skeleton
    # (T, V, S) what is not known of the log focal lengths: standard deviations by S independent
    # sources, the same in all frames; None: K is exact
    focal: Tensor | None = None
    persons: Tensor | None = None  # (T, V) int64 the number of the person shown; None: one person
    labels: tuple[Hashable, ...] = (0,)  # of the persons
    # (T, V) rad by which a principal point may be off, standard deviation of each axis; None: exact
    centre: Tensor | None = None

    @property
    def focal_covariance(self) -> Tensor:
        """Of the log focal lengths about those of K, (F, F); F = V, 0: K is exact."""
        if self.focal is None or not len(self.focal):
            return self.K.new_zeros(0, 0)
        return self.focal[0] @ self.focal[0].mT


def check_input(
    xy,
    K,
    confidence=None,
    covariance=None,
    skeleton: str | Sequence[str] | Skeleton = "h36m17",
    device: torch.device | str | None = None,
    lenses: Lenses = EXACT,
) -> RigInput:
    """Checks and converts what `ptri.estimate_rig` is given; see there for shapes and units.

    Args:
        K: None: by the lenses.

    Raises:
        UserError: anything that is wrong; the message says what, where, what was expected and how
            to mend it.
    """
    skeleton = find_skeleton(skeleton)
    if device is None:
        device = xy.device if isinstance(xy, Tensor) else "cpu"
    xy = as_tensor(xy, "xy", device)
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
    K, focal, source = find_lenses(K, V, lenses)
    K, shear = _check_intrinsics(K, V, device)
    centre = None
    if set(source) - {GIVEN}:
        shorter = 2 * K[:, :2, 2].amin(-1) + 1
        taken = torch.tensor([kind != GIVEN for kind in source]).to(K)
        centre = (CENTRE_STD * taken * shorter / K[:, 0, 0]).expand(T, V)
    there = ~torch.isnan(xy).any(-1)
    _check_units(torch.where(there[..., None], xy, torch.nan).abs(), K)
    confidence = _check_confidence(confidence, there, device)
    seen = there & (confidence > 0)
    infinite = seen & torch.isinf(xy).any(-1)
    _refuse(infinite, "xy: infinite", "write NaN for a keypoint that was not seen")
    xy = torch.where(seen[..., None], xy, torch.nan)
    # Without the skew: u' = u - s (v - cy) / fy, and covariances with it.
    xy = torch.stack(
        [xy[..., 0] + shear[:, None] * (xy[..., 1] - K[:, None, 1, 2]), xy[..., 1]], dim=-1
    )
    lengths = K.diagonal(dim1=-2, dim2=-1)[:, None, :2]
    ray = (xy - K[:, None, :2, 2]) / lengths
    _refuse(
        seen & (ray.abs().amax(-1) > MAX_RAY),
        "xy: more than 87 deg off the optical axis",
        "no pinhole image holds such a point; check K and the units (px), or write NaN",
    )
    eye = torch.eye(2).to(xy)
    if covariance is None:
        covariance = default_covariance(xy, KEYPOINT_NOISE, LEAST_NOISE * lengths.mean((-1, -2)))
    else:
        covariance = _check_covariance(covariance, seen, device)
        turn = eye.repeat(V, 1, 1, 1)  # (V, 1, 2, 2)
        turn[:, 0, 0, 1] = shear
        covariance = turn @ covariance @ turn.mT
    covariance = torch.where(seen[..., None, None], covariance, eye)
    if focal is not None:
        focal = focal.to(K).expand(T, -1, -1)
    keypoints = Keypoints(xy, covariance, confidence)
    return RigInput(keypoints, K.expand(T, V, 3, 3), skeleton, focal, centre=centre)


def doubt_input(given: RigInput, size=None) -> Verdict | None:
    """What speaks against keypoints and intrinsics before anything is solved; None: nothing.

    Args:
        size: (V, 2) or (2,) px, width and height of the pictures, see `doubt_pictures`.

    Raises:
        UserError: a size that is none.
    """
    if not len(given.K):
        return None
    K = given.K[0]
    if size is not None:
        size = picture_sizes(size, len(K), K.device)
    known = known_joints(given)
    xy, confidence = known.xy, known.confidence
    if given.skeleton != H36M17:
        extra = extra_joints(given.skeleton)
        xy = torch.cat([xy, given.keypoints.xy[:, :, extra]], 2)
        confidence = torch.cat([confidence, given.keypoints.confidence[:, :, extra]], 2)
    seen = torch.isfinite(xy).all(-1) & (confidence > 0)
    return doubt_pictures(xy, seen, K, size)


def default_covariance(xy: Tensor, noise: float, least: Tensor | float = 0.0) -> Tensor:
    """Covariances (T, V, J, 2, 2) px^2 of keypoints (T, V, J, 2) that come without any.

    The standard deviation is ``noise`` times the longer side of the box around the person in the
    view, or the usual one of that view where that is longer: half a person seen is no smaller
    person. At least ``least`` (V,) px.
    """
    extent = (xy.nan_to_num(-torch.inf).amax(2) - xy.nan_to_num(torch.inf).amin(2)).amax(-1)
    several = torch.isfinite(xy).all(-1).sum(-1) >= 2  # (T, V)
    extent = torch.where(several, extent, torch.nan)
    sigma = noise * torch.fmax(extent, extent.nanquantile(0.5, dim=0))
    sigma = torch.maximum(sigma.nan_to_num(1.0), torch.as_tensor(least).to(xy))
    eye = torch.eye(2).to(xy)
    return (sigma.square()[..., None, None, None] * eye).expand(*xy.shape, 2)


def known_joints(given: RigInput) -> Keypoints:
    """Human3.6M's 17 joints (T, V, 17, ...) of the keypoints, NaN where there is no such joint.

    A joint's confidence is the least of its sources.
    """
    keypoints = given.keypoints
    if given.skeleton == H36M17:
        return keypoints
    xy = joints_to_h36m17(keypoints.xy, given.skeleton)
    share = torch.as_tensor(linear_map(given.skeleton, H36M17)).nan_to_num().to(xy)
    # As if a joint's sources erred alike: no more certain than they are.
    covariance = torch.einsum("ij,tvjab->tviab", share, keypoints.covariance)
    eye = torch.eye(2).to(covariance)
    covariance = torch.where((share.sum(1) > 0)[:, None, None], covariance, eye)
    least = torch.where(share > 0, keypoints.confidence[..., None, :], torch.inf).amin(-1)
    return Keypoints(xy, covariance, torch.where(torch.isfinite(xy).all(-1), least, 0.0))


def for_model(given: RigInput) -> Keypoints:
    """Keypoints (T, V, 17 + E, ...) as the model takes them.

    First Human3.6M's 17 joints, then the E joints of the skeleton that are none of them. Those of
    the 17 that are means of several keypoints guide the lifter, but the geometry has these
    keypoints already, so that their variance is inflated by `DERIVED_VARIANCE`.
    """
    known = known_joints(given)
    if given.skeleton == H36M17:
        return known
    derived = torch.as_tensor((linear_map(given.skeleton, H36M17) > 0).sum(1) > 1)
    factor = torch.where(derived, DERIVED_VARIANCE, 1.0).to(known.covariance)
    known = known._replace(covariance=known.covariance * factor[:, None, None])
    all_of = slice(None)
    return cat([known, take(given.keypoints, (all_of, all_of, extra_joints(given.skeleton)))], 2)


def extra_joints(skeleton: Skeleton) -> list[int]:
    """Joints of a skeleton that are none of Human3.6M's 17."""
    used = linear_map(skeleton, H36M17) > 0
    return np.flatnonzero(~used[used.sum(1) == 1].any(0)).tolist()


def joints_to_h36m17(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Human3.6M's joints (..., 17, D) of a skeleton's (..., J, D); NaN where it lacks one."""
    mapped = map_joints(joints.detach().cpu().numpy(), linear_map(skeleton, H36M17))
    return torch.as_tensor(mapped).to(joints)


# --- checks ------------------------------------------------------------------------------------


def check_numbers(
    num_samples: int, num_iterations: int, children: float, seed: int, max_frames: int
) -> tuple[PosteriorConfig, int, int]:
    """The posterior's options, and seed and max_frames as Python's own integers.

    Raises:
        UserError: one of them is out of range.
    """
    for name, value, kind, low, high, expected in (
        ("num_samples", num_samples, Integral, 8, math.inf, "a whole number >= 8"),
        ("num_iterations", num_iterations, Integral, 1, num_samples, _UP_TO_SAMPLES),
        ("children", children, Real, 0, 1, "a chance from 0 to 1"),
        ("max_frames", max_frames, Integral, 1, math.inf, "a whole number >= 1"),
        ("seed", seed, Integral, 0, math.inf, "a whole number >= 0"),
    ):
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise UserError(f"{name}: {value!r:.80}; expected {expected}")
    options = PosteriorConfig(int(num_samples), int(num_iterations), children=float(children))
    return options, int(seed), int(max_frames)


def _refuse(bad: Tensor, what: str, mend: str, words=("frame", "view", "joint")) -> None:
    """Raises where any entry is bad, and names the first one."""
    if bool(bad.any()):
        place = torch.nonzero(bad)[0].tolist()
        where = ", ".join(f"{word} {index}" for word, index in zip(words, place))
        raise UserError(f"{what} at {where} ({int(bad.sum())} of {bad.numel()}); {mend}")


def _check_units(distance: Tensor, K: Tensor) -> None:
    """Refuses keypoints or intrinsics (V, 3, 3) that are no px.

    Args:
        distance: (T, V, J, 2) px of the keypoints from the picture's corner, NaN = not seen.
    """
    usual = distance.amax(-1).transpose(0, 1).flatten(1).nanmedian(1).values  # (V,)
    most = distance.nan_to_num(0.0).amax((0, 2, 3))
    size = torch.maximum(usual.nan_to_num(0.0), K[:, :2, 2].abs().amax(1))
    focal = K.diagonal(dim1=-2, dim2=-1)[:, :2].amin(1)
    shares = (most > 0) & (most <= 1.5) & (size > 15)
    _refuse(
        shares,
        "xy: all keypoints between 0 and 1",
        "expected px; multiply by the picture's width and height",
        ("view",),
    )
    _refuse(
        focal < MIN_FOCAL * size,
        "K: a focal length far below the picture's size",
        "expected fx, fy, cx, cy in px; a focal length in px is that in mm over the sensor's width "
        "in mm, times the picture's width in px",
        ("view",),
    )


def _check_intrinsics(K, num_views: int, device) -> tuple[Tensor, Tensor]:
    """K (V, 3, 3) without skew, and the shear (V,) that takes the skew out of points."""
    given = as_tensor(K, "K", device, (num_views, 3, 3), "one per view of xy")
    finite = torch.isfinite(given).flatten(1).all(1)
    below = given[:, 1, 0].abs() + given[:, 2, :2].abs().sum(-1)  # zero but for rounding
    corner = given[:, 2, 2]
    lawful = (below <= 1e-6 * given.abs().amax((1, 2))) & (corner.abs() >= 1e-12)
    K = given / corner[:, None, None]
    focal, centre = K.diagonal(dim1=-2, dim2=-1)[:, :2], K[:, :2, 2]
    usual = (focal.amax(1) <= 1e7) & (focal.amin(1) >= 1e-2) & (centre.abs().amax(1) <= 1e7)
    shear = -K[:, 0, 1] / focal[:, 1]
    form = "expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in px"
    positive = f"{form} with fx, fy > 0; a mirrored image has to be mirrored back"
    for good, what, mend in (
        (finite, "NaN or infinite", "calibrate the camera again"),
        (lawful, "not an intrinsic matrix", form),
        ((focal > 0).all(1), "a focal length is zero or negative", positive),
        (usual, "beyond any camera", "focal lengths and principal point are in px, such as 1000"),
        (shear.abs() <= 0.5, "skew beyond half of fy", form),
    ):
        _refuse(~good, f"K: {what}", mend, ("view",))
    K = torch.eye(3).to(K).repeat(num_views, 1, 1)
    K[:, [0, 1], [0, 1]], K[:, :2, 2] = focal, centre
    return K, shear


def _check_confidence(confidence, there: Tensor, device) -> Tensor:
    """Confidence (T, V, J), 0 where there is no keypoint."""
    if confidence is None:
        return there.double()
    what = "that of xy without its last dimension"
    confidence = as_tensor(confidence, "confidence", device, tuple(there.shape), what)
    mend = "expected 0 (not seen) to 1 (certain); divide by the largest where a detector has scores"
    inside = (confidence >= 0) & (confidence <= 1)  # False for NaN
    _refuse(there & ~inside, "confidence: outside [0, 1]", mend)
    return torch.where(there, confidence, 0.0)


def _check_covariance(covariance, seen: Tensor, device) -> Tensor:
    what = "a matrix (px^2) per keypoint"
    covariance = as_tensor(covariance, "covariance", device, (*seen.shape, 2, 2), what)
    finite = torch.isfinite(covariance).flatten(-2).all(-1)
    a, b, d, c = covariance.flatten(-2).unbind(-1)
    size = torch.maximum(a, c)
    symmetric = (b - d).abs() <= 1e-6 * size.abs()
    positive = (a > 0) & (c > 0) & (a * c - b * b > 1e-12 * size.square())
    usual = (size <= 1e12) & (torch.minimum(a, c) >= 1e-12)
    give = "give px^2, or NaN in xy for a keypoint that was not seen"
    more = "expected variances > 0 and |cov_xy| < sqrt(var_x var_y); add a small multiple of I"
    for good, what, mend in (
        (finite, "NaN or infinite", give),
        (symmetric, "not symmetric", give),
        (positive, "not positive definite", more),
        (usual, "beyond any keypoint", "variances are in px^2, such as 9"),
    ):
        _refuse(seen & ~good, f"covariance: {what}", mend)
    return covariance
