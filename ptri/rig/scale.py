"""Where an estimate's millimetres come from: human bones, the subject's height, a distance."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.geometry.cameras import centres
from ptri.posterior.moments import of_views
from ptri.rig.check import RigInput, joints_to_h36m17
from ptri.rig.joints import joints_given
from ptri.skeleton import H36M17
from ptri.structures import RigPosterior, take

# Standing height over the distance from the middle of the shoulders to the middle of the ankles,
# measured along the body: 0.818 - 0.039 of the height (Drillis and Contini 1966).
HEIGHT_OVER_SEGMENTS = 1 / 0.779
SCALE_FRAMES = 50  # frames that measure the subject's height


class Scale(NamedTuple):
    """Where an estimate's millimetres come from."""

    length: float | None = None  # mm, that is known; None: the lengths of human bones
    views: tuple[int, int] | None = None  # whose cameras are so far apart; None: standing height
    factor: float = 1.0  # mean factor from the bones' scale to that of the known length
    measured: float = math.nan  # mm, of that length at the bones' scale; NaN: it was not measured
    person: int | None = None  # whose height it is; None: of all who are seen
    by_cameras: bool = False  # from cameras that were known before

    def words(self, names: Sequence[str] | None = None) -> str:
        """The source in words; ``names`` of the views, None: "view 0" and so on."""
        if self.by_cameras:
            return "cameras that were known before"
        if self.length is None:
            return "lengths of human bones (give subject_height or camera_distance for better)"
        if math.isnan(self.measured):
            return "lengths of human bones; the known length could not be measured"
        before = f"{self.length:g} mm (before: {self.measured:.0f} mm)"
        if self.views is None:
            return f"subject's height of {before}"
        first, second = (f"view {v}" if names is None else names[v] for v in self.views)
        return f"distance of {first} and {second}, {before}"

    def refuse_unmeasured(self) -> None:
        """Raises UserError where the subject's height was given, but could not be measured."""
        if math.isnan(self.factor):
            raise UserError(
                "scale: subject_height needs a frame in which both legs, the hips and the "
                "shoulders are seen by two views; give camera_distance instead"
            )


HUMAN_BONES = Scale()
KNOWN_CAMERAS = Scale(by_cameras=True)


def known_length(
    scale: Mapping[str, object] | None, num_views: int, labels: Sequence[Hashable] = (0,)
) -> Scale:
    """Reads ``{"subject_height": mm}`` or ``{"camera_distance": (view, view, mm)}``.

    Args:
        labels: of the persons; of several the height is one's, ``(label, mm)``.

    Raises:
        UserError: anything else.
    """
    if scale is None:
        return HUMAN_BONES
    expected = 'expected {"subject_height": mm} or {"camera_distance": (view, view, mm)}'
    kinds = {"subject_height", "camera_distance"}
    if not isinstance(scale, Mapping) or len(scale) != 1 or not kinds.issuperset(scale):
        raise UserError(f"scale: {scale!r:.120}; {expected}")
    ((kind, value),) = scale.items()
    views, person, (low, high) = None, None, (300.0, 3000.0)
    if kind == "subject_height" and len(labels) > 1:
        try:
            label, value = value
            person = labels.index(label)
        except (TypeError, ValueError):
            raise UserError(
                f"scale: subject_height {value!r:.80}; whose? Of several persons give (label, mm), "
                f"with a label of {', '.join(map(str, labels))[:80]}"
            ) from None
    if kind == "camera_distance":
        low, high = 1.0, 1e6
        try:
            first, second, value = value
        except (TypeError, ValueError):
            raise UserError(f"scale: camera_distance {value!r:.80}; {expected}") from None
        views = (first, second)
        if (
            not all(isinstance(v, Integral) and 0 <= v < num_views for v in views)
            or first == second
        ):
            raise UserError(
                f"scale: camera_distance between views {first!r} and {second!r}; expected two "
                f"different views from 0 to {num_views - 1}"
            )
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise UserError(
            f"scale: {kind} of {value!r:.80} mm; expected {low:g} to {high:g} mm (not m or cm)"
        )
    return Scale(float(value), views, person=person)


def rescale(
    posterior: RigPosterior,
    given: RigInput,
    views: list[int],
    frames: list[int],
    scale: Scale,
) -> tuple[RigPosterior, Scale]:
    """Every sample (B = 1) at the scale of the known length.

    Args:
        given: keypoints of the views that were solved, which are ``views`` of the rig.
        frames: that the subject is measured in, at most `SCALE_FRAMES` of them.
    """
    if scale.length is None or not frames:
        return posterior, scale
    if scale.person is not None:
        frames = [frame for frame in frames if given.persons[frame, 0] == scale.person]
        if not frames:
            return posterior, scale._replace(factor=math.nan)
    if scale.views is None:
        part = take(given, frames[:: -(-len(frames) // SCALE_FRAMES)])
        solved = of_views(posterior, views)
        joints = joints_given(*take((part.keypoints, part.K), None), solved, solved.views)
        joints = joints.joints[:, 0]
        seen = torch.isfinite(part.keypoints.xy).all(-1).sum(1) >= 2  # (T, J)
        joints = torch.where(seen[..., None], joints, torch.nan)
        measured = body_height(joints_to_h36m17(joints, given.skeleton))  # (M,)
    else:
        first, second = centres(posterior.R[:, 0], posterior.t[:, 0])[:, scale.views].unbind(1)
        measured = (first - second).norm(dim=-1)
    factor = scale.length / measured.clamp_min(1.0)  # 1 mm guards cameras that coincide
    if not bool(torch.isfinite(factor).all()):
        return posterior, scale._replace(factor=math.nan)
    weights = posterior.log_weights[:, 0].exp()
    posterior = posterior._replace(t=posterior.t * factor[:, None, None, None])
    factor, measured = float(weights @ factor), float(weights @ measured)
    return posterior, scale._replace(factor=factor, measured=measured)


def body_height(joints: Tensor) -> Tensor:
    """Standing height (...) mm from the segments of joints (..., T, 17, 3), median over frames."""
    at = {name: joints[..., j, :] for j, name in enumerate(H36M17.joints)}
    segments = ("left_hip", "left_knee", "left_foot"), ("right_hip", "right_knee", "right_foot")
    legs = sum(
        (at[hip] - at[knee]).norm(dim=-1) + (at[knee] - at[foot]).norm(dim=-1)
        for hip, knee, foot in segments
    )
    trunk = ((at["left_shoulder"] + at["right_shoulder"]) / 2 - at["hip"]).norm(dim=-1)
    return (legs / 2 + trunk).nanmedian(dim=-1).values * HEIGHT_OVER_SEGMENTS
