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
from ptri.recordings.keypoint_files import Recording
from ptri.recordings.solve import Solution, camera_spread, solve

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
    try:
        R = [
            solve(model, recording.part(views, part), config).R.double()
            for part in (slice(0, T // 2), slice(T // 2, T))
        ]
    except UserError as error:
        return Halves(solution, None, f"{name}not compared ({error})")
    if R[0].shape != R[1].shape or len(R[0]) != len(views):
        return Halves(solution, None, f"{name}not compared, a camera saw too little in one of them")
    difference = torch.rad2deg(rotation_angle(R[0].mT @ R[1]))
    names = [recording.names[v] for v in views]
    parts = [f"{n} {d:.1f}" for n, d in zip(names[1:], difference[1:])]
    text = f"{name}rotations differ by {', '.join(parts)} deg"
    stated = camera_spread(solution)[0][1:]
    if np.any(difference[1:].numpy() > TELLING * 2 * stated):
        text += "; half of it says more of the cameras' errors than the +- above"
    worst = int(difference.nan_to_num(180.0).argmax())
    limit = config.posterior.max_rotation_std_deg
    if float(difference.nan_to_num(180.0)[worst]) > 2 * limit and solution.posterior.accepted[0]:
        reason = (
            f"the two halves of the recording disagree: camera {names[worst]} differs by "
            f"{difference[worst]:.0f} deg between them, so the keypoints err in ways that last"
            "; look at the pictures"
        )
        rejected = torch.zeros_like(solution.posterior.accepted)
        posterior = solution.posterior._replace(accepted=rejected, reason=[reason])
        solution = solution._replace(posterior=posterior)
    return Halves(solution, difference, text)
