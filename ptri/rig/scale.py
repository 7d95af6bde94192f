"""Where an estimate's millimetres come from: human bones, the subject's height, a distance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import NamedTuple

from torch import Tensor

from ptri.errors import UserError
from ptri.geometry.cameras import centres
from ptri.skeleton import H36M17

# Standing height over the distance from the middle of the shoulders to the middle of the ankles,
# measured along the body: 0.818 - 0.039 of the height (Drillis and Contini 1966).
HEIGHT_OVER_SEGMENTS = 1 / 0.779
FROM_BONES = "lengths of human bones (give subject_height or camera_distance for better)"


class KnownLength(NamedTuple):
    """A length that is known; views = None: the subject's standing height."""

    length: float  # mm
    views: tuple[int, int] | None  # whose cameras are so far apart


def known_length(scale: Mapping[str, object] | None, num_views: int) -> KnownLength | None:
    """Reads ``{"subject_height": mm}`` or ``{"camera_distance": (view, view, mm)}``.

    Raises:
        UserError: anything else.
    """
    if scale is None:
        return None
    expected = 'expected {"subject_height": mm} or {"camera_distance": (view, view, mm)}'
    if not isinstance(scale, Mapping) or set(scale) - {"subject_height", "camera_distance"}:
        raise UserError(f"scale: {scale!r:.80}; {expected}")
    if len(scale) != 1:
        raise UserError(
            "scale: subject_height and camera_distance both fix the scale; give one of them"
            if scale
            else f"scale: empty; {expected}"
        )
    ((kind, value),) = scale.items()
    views = None
    if kind == "camera_distance":
        try:
            first, second, value = value
        except (TypeError, ValueError):
            raise UserError(f"scale: camera_distance {value!r:.80}; {expected}") from None
        views = (first, second)
        good = (
            all(isinstance(v, Integral) and 0 <= v < num_views for v in views) and first != second
        )
        if not good:
            raise UserError(
                f"scale: camera_distance between views {first!r} and {second!r}; expected two "
                f"different views from 0 to {num_views - 1}"
            )
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"scale: {kind} {value!r:.80}; expected a length in mm")
    low, high = (300.0, 3000.0) if views is None else (1.0, 1e6)
    if not low <= value <= high:
        raise UserError(
            f"scale: {kind} of {value:g} mm; expected {low:g} to {high:g} mm (not m or cm)"
        )
    return KnownLength(float(value), views)


def scale_factors(
    known: KnownLength, joints: Tensor, R: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The factor (M,) that gives each of M samples the known length, and what it measures (M,).

    Args:
        joints: (M, T, 17, 3) mm, NaN where not seen. R, t: (M, V, 3, 3), (M, V, 3) mm.

    Returns:
        NaN where the height cannot be measured.
    """
    if known.views is None:
        measured = body_height(joints)
    else:
        centre = centres(R, t)
        measured = (centre[:, known.views[0]] - centre[:, known.views[1]]).norm(dim=-1)
    # 1 mm guards cameras that coincide.
    return known.length / measured.clamp_min(1.0), measured


def refuse_unmeasured() -> None:
    """Raises: the subject's height was given, but nothing to measure it by was seen."""
    raise UserError(
        "scale: subject_height needs a frame in which both legs, the hips and the shoulders are "
        "seen by two views; give camera_distance instead"
    )


def describe(known: KnownLength | None, measured: float, names: list[str] | None = None) -> str:
    """The source of the scale in words."""
    if known is None:
        return FROM_BONES
    if known.views is None:
        return f"subject's height of {known.length:g} mm (before: {measured:.0f} mm)"
    first, second = (f"view {v}" if names is None else names[v] for v in known.views)
    return f"distance of {first} and {second}, {known.length:g} mm (before: {measured:.0f} mm)"


def body_height(joints: Tensor) -> Tensor:
    """Standing height (...) mm from the segments of joints (..., T, 17, 3), median over frames."""
    index = {name: j for j, name in enumerate(H36M17.joints)}

    def length(a: str, b: str) -> Tensor:
        return (joints[..., index[a], :] - joints[..., index[b], :]).norm(dim=-1)

    legs = sum(
        length(f"{s}_hip", f"{s}_knee") + length(f"{s}_knee", f"{s}_foot")
        for s in ("left", "right")
    )
    shoulders = (
        joints[..., index["left_shoulder"], :] + joints[..., index["right_shoulder"], :]
    ) / 2
    trunk = (shoulders - joints[..., index["hip"], :]).norm(dim=-1)
    return (legs / 2 + trunk).nanmedian(dim=-1).values * HEIGHT_OVER_SEGMENTS
