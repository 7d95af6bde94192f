"""Whether the two halves of a recording tell the same cameras.

A detector that meets pictures unlike those it learned from errs with the pose, in the same way
for many frames on end: then the posterior is narrower than it is right, and its residuals do not
show it. The first half of the frames and the second hold other poses, so their cameras differ by
what such errors do. The mean of two halves that differ by d is off by about d / 2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ptri.config import Config
from ptri.errors import UserError
from ptri.geometry.rotations import rotation_angle
from ptri.posterior.sampling import posterior_mean
from ptri.recordings.keypoint_files import Recording
from ptri.recordings.solve import Solution, camera_spread, cameras_of, usable_views
from ptri.verdict.verdict import Code, Verdict

LEAST_FRAMES = 16  # of a recording; fewer are not halved
TELLING = 2.0  # times the stated deviation: so large a half of the difference is pointed out


class Halves(NamedTuple):
    """How far the cameras of the halves differ."""

    solution: Solution  # with its verdict
    difference_deg: Tensor | None  # (V,) rotations, the reference 0; None: not compared
    text: str  # a line for the report


def compare_halves(
    model: nn.Module, recording: Recording, config: Config, solution: Solution
) -> Halves:
    """Solves both halves; rejects a rig whose halves differ too much.

    The limit is ``posterior.max_rotation_std_deg``, for half of the difference.

    Args:
        solution: of the whole recording.
    """
    T = len(recording.frames)
    name = "halves of the recording: "
    if T < LEAST_FRAMES:
        return Halves(solution, None, f"{name}not compared, fewer than {LEAST_FRAMES} frames")
    views = solution.views
    halves = slice(0, T // 2), slice(T // 2, T)
    parts = [recording.part(views, part) for part in halves]
    try:
        if any(len(usable_views(part)) < len(views) for part in parts):
            return Halves(solution, None, f"{name}not compared, a camera saw too little in one")
        solved = [cameras_of(model, part, list(range(len(views))), config)[0] for part in parts]
    except UserError as error:
        return Halves(solution, None, f"{name}not compared ({error})")
    first, second = (posterior_mean(half.posterior)[0][0].cpu() for half in solved)
    difference = torch.rad2deg(rotation_angle(first.mT @ second))
    names = [recording.names[v] for v in views]
    parts = [f"{n} {d:.1f}" for n, d in zip(names[1:], difference[1:])]
    text = f"{name}rotations differ by {', '.join(parts)} deg"
    stated = camera_spread(solution)[0][1:]
    if np.any(difference[1:].numpy() > TELLING * 2 * stated):
        text += "; half of it says more of the cameras' errors than the +- above"
    worst = int(difference.nan_to_num(180.0).argmax())
    limit = config.posterior.max_rotation_std_deg
    if float(difference.nan_to_num(180.0)[worst]) > 2 * limit and solution.estimate.accepted:
        verdict = Verdict(
            Code.HALVES, worst, value=float(difference[worst]), limit=2 * limit,
            figures=solution.estimate.verdict.figures,
        )  # fmt: skip
        solution = solution._replace(estimate=solution.estimate._replace(verdict=verdict))
    return Halves(solution, difference, text)
