"""Whether the two halves of a recording tell the same cameras.

A detector that meets pictures unlike those it learned from errs with the pose, in the same way
for many frames on end: then the posterior is narrower than it is right, and its residuals do not
show it. The first half of the frames and the second hold other poses, so their cameras differ by
what such errors do. The mean of two halves that differ by d is off by about d / 2.
"""

from __future__ import annotations

import numpy as np
import torch

from ptri.config import Config
from ptri.errors import UserError
from ptri.geometry.rotations import rotation_angle
from ptri.models.pose_model import PoseModel
from ptri.posterior.sampling import posterior_mean
from ptri.recordings.solve import Solution, camera_spread, num_keypoints, solve_recording_cameras
from ptri.verdict.judge import MIN_KEYPOINTS
from ptri.verdict.verdict import Code, Verdict

LEAST_FRAMES = 16  # of a recording; fewer are not halved
TELLING = 2.0  # times the stated deviation: so large a half of the difference is pointed out


def compare_halves(model: PoseModel, solution: Solution, config: Config) -> Solution:
    """Solves both halves of a solved recording; rejects a rig whose halves differ too much.

    The limit is ``posterior.max_rotation_std_deg``, for half of the difference.

    Returns:
        The solution with its verdict and what its halves say.
    """
    name, recording, estimate = "halves of the recording: ", solution.recording, solution.estimate
    T, views = len(recording.frames), list(range(len(recording.cameras)))

    def not_compared(reason: str) -> Solution:
        return solution._replace(halves=f"{name}not compared{reason}")

    if T < LEAST_FRAMES:
        return not_compared(f", fewer than {LEAST_FRAMES} frames")
    halves = [recording.part(views, part) for part in (slice(0, T // 2), slice(T // 2, T))]
    if min(num_keypoints(half).min() for half in halves) < MIN_KEYPOINTS:
        return not_compared(", a camera saw too little in one")
    try:
        solved = [solve_recording_cameras(model, half, config)[0] for half in halves]
    except UserError as error:
        return not_compared(f" ({error})")
    first, second = (posterior_mean(half.posterior)[0][0].cpu() for half in solved)
    difference = torch.rad2deg(rotation_angle(first.mT @ second))  # (V,)
    parts = [f"{camera} {angle:.1f}" for camera, angle in zip(recording.names, difference)]
    text = f"{name}rotations differ by {', '.join(parts[1:])} deg"
    stated = camera_spread(estimate)[0]
    if np.any(difference[1:].numpy() > TELLING * 2 * stated[1:]):
        text += "; half of it says more of the cameras' errors than the +- above"
    angle = difference.nan_to_num(180.0)  # what cannot be compared is as far as can be
    worst, limit = int(angle.argmax()), 2 * config.posterior.max_rotation_std_deg
    if float(angle[worst]) > limit and estimate.accepted:
        value, figures = float(difference[worst]), estimate.verdict.figures
        verdict = Verdict(Code.HALVES, worst, value=value, limit=limit, figures=figures)
        estimate = estimate._replace(verdict=verdict)
    return solution._replace(estimate=estimate, halves=text, halves_deg=difference)
