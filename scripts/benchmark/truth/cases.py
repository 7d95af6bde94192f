"""Rigs to solve, as a user of `ptri.estimate_rig` has them, with their truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from detector_errors.clips import FOCAL, Detected
from torch import Tensor

from benchmark.detectors.cases import windows
from benchmark.rig import cases as generated
from ptri.errors import UserError
from ptri.rig.check import RigInput, check_input
from ptri.rig.lenses import Lenses
from ptri.skeleton import H36M17, SKELETONS, Skeleton
from ptri.structures import UNKNOWN_DETECTOR, Cameras, Detector, take

SETTINGS = "extra/render_settings.json"  # what scripts/render_people.py leaves beside its images
USUAL_VIEWS = 4
MEDIAN = 1.1774  # of the length of a two-dimensional error, over its standard deviation
GOOD = 0.1  # of the person's extent in the view: half of a good view's keypoints are so near
SELDOM = (0.08, 0.4)  # share of the frames in which a view sees the person
# What a view from the waist up shows: ten joints of COCO's or of Human3.6M's.
UPPER = ("ear", "shoulder", "elbow", "wrist", "left_hip", "right_hip", "thorax", "head")
GENERATED = {"gaussian": 0, "student8": 8, "student3": 3}  # tails, see `generated.Cell`
SEED = 19  # of the generated cases, which all runs share


class Case(NamedTuple):
    """T frames of one person before V static cameras; no covariance: the user has none."""

    clip: int  # frames of one clip are no independent cases
    xy: Tensor  # (T, V, J, 2) px, NaN = not seen
    K: Tensor  # (V, 3, 3) px
    confidence: Tensor  # (T, V, J)
    covariance: Tensor | None  # (T, V, J, 2, 2) px^2
    skeleton: Skeleton
    known: Detector  # what is known of the errors
    cameras: Cameras  # truth, relative to view 0
    joints: Tensor  # (T, 17, 3) mm, truth, frame of view 0
    own_joints: Tensor  # (T, J, 3) mm, truth of the keypoints' own joints; NaN = not known
    noise: float  # standard deviation of a coordinate over the focal length, robust, from the truth
    good: (
        Tensor  # (V,) bool, whether a view's keypoints are mostly where they should be, see `GOOD`
    )

    def given(self) -> RigInput:
        """As `ptri.estimate_rig` checks and completes it."""
        return check_input(
            self.xy, self.K, self.confidence, self.covariance, self.skeleton, lenses=Lenses()
        )


def first_views(case: Case, count: int) -> Case:
    """Only so many of a case's views."""
    some, each = slice(0, count), (slice(None), slice(0, count))
    covariance = None if case.covariance is None else case.covariance[each]
    return case._replace(
        xy=case.xy[each],
        K=case.K[some],
        confidence=case.confidence[each],
        covariance=covariance,
        cameras=take(case.cameras, some),
        good=case.good[some],
    )


class Root(NamedTuple):
    """A folder of rendered people."""

    path: Path
    family: str  # of rigs; with the number of views where it is not four
    length: int  # frames of a clip


def read_root(path: str | Path) -> Root:
    """What a folder of scripts/render_people.py holds.

    Raises:
        UserError: it is no such folder.
    """
    path = Path(path)
    try:
        settings = json.loads((path / SETTINGS).read_text())
        views = int(settings["cameras"])
        family = settings["rig"] + (f" {views}" if views != USUAL_VIEWS else "")
        return Root(path, family, int(settings["frames"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: no rigs of scripts/render_people.py ({type(error).__name__}: {SETTINGS}); "
            "docs/benchmark.md has the commands that render them"
        ) from None


def rendered_cases(
    found: Detected, known: Detector | None, num_frames: int, most: int, kind: str = ""
) -> list[Case]:
    """Windows of clips with what a detector says of them.

    Args:
        known: what is known of the detector; None: nothing, not even covariances.
        most: windows of a clip. kind: of `THINNED`.
    """
    clips = found.clips
    true_xy = found.true_xy()
    error = (found.keypoints.xy - true_xy).norm(dim=-1)  # (B, T, V, J)
    error = torch.where(found.inside, error, torch.nan)
    typical = error.flatten(1).nanmedian(1).values
    noise = (typical / MEDIAN / FOCAL).nan_to_num(0.01).tolist()
    finite = torch.isfinite(true_xy)
    ends = (torch.where(finite, sign * true_xy, -torch.inf).amax(3) for sign in (1, -1))
    error = error / sum(ends).amax(-1, keepdim=True)  # (B, T, V, J), over the extent
    skeleton = SKELETONS[clips.joint_set]
    chosen = []
    for number, (clip, frames) in enumerate(windows(*clips.joints.shape[:2], num_frames, most)):
        keypoints, joints, own = take((found.keypoints, clips.joints, found.truth), (clip, frames))
        covariance = keypoints.covariance
        if known is None or bool(covariance.isnan().all()):
            covariance = None
        case = Case(
            clip,
            keypoints.xy.double(),
            clips.cameras.K[clip].double(),
            keypoints.confidence.clamp(0, 1).double(),
            covariance,
            skeleton,
            known or UNKNOWN_DETECTOR,
            take(clips.cameras, clip),
            joints,
            own,
            noise[clip],
            error[clip, frames].transpose(0, 1).flatten(1).nanmedian(1).values < GOOD,
        )
        generator = torch.Generator().manual_seed(number)
        chosen.append(THINNED[kind](case, generator))
    return chosen


def generated_cases(name: str, family: str, num_frames: int, count: int) -> list[Case]:
    """Generated people before rigs, with independent errors of 3 px, known to be that large.

    Of every point 5 % are gross outliers and 10 % missing (`benchmark.rig.cases`).

    Args:
        name: of `GENERATED`. count: cases, each of a person and a rig of its own.
    """
    cell = generated.Cell(family, num_frames, tails=GENERATED[name])
    made = generated.make_cases(cell, count, SEED)
    parts = (
        (*take((made.keypoints, made.K[:, 0], made.cameras, made.joints3d), row), row)
        for row in range(count)
    )
    focal = made.K[:, 0, :, 0, 0]
    noise = (made.sigma / focal).median(1).values.tolist()
    return [
        Case(
            *(row, keypoints.xy, K, keypoints.confidence, keypoints.covariance),
            *(H36M17, UNKNOWN_DETECTOR, cameras, joints, joints, noise[row]),
            torch.ones(len(K), dtype=torch.bool),
        )
        for keypoints, K, cameras, joints, row in parts
    ]


def _seldom(case: Case, generator: torch.Generator) -> Case:
    """One view sees the person in few frames only."""
    T, V = case.xy.shape[:2]
    low, high = SELDOM
    share = low + (high - low) * float(torch.rand((), generator=generator))
    view = int(torch.randint(V, (), generator=generator))
    seen = torch.randperm(T, generator=generator) < max(1, round(share * T))
    xy = case.xy.clone()
    xy[~seen, view] = torch.nan
    return case._replace(xy=xy)


def _upper(case: Case, generator: torch.Generator) -> Case:
    """Ten joints of the upper body, the same in all views."""
    unseen = [not name.endswith(UPPER) for name in case.skeleton.joints]
    xy = case.xy.clone()
    xy[..., torch.tensor(unseen), :] = torch.nan
    return case._replace(xy=xy)


THINNED: dict[str, Callable[[Case, torch.Generator], Case]] = {
    "": lambda case, generator: case,
    "seldom": _seldom,
    "upper": _upper,
}
