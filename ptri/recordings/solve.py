"""The cameras and joints of a recording, by the one pipeline (`ptri.rig.estimate`).

Then whether its two halves tell the same cameras. A detector that meets pictures unlike those it
learned from errs with the pose, in the same way for many frames on end: then the posterior is
narrower than it is right, and its residuals do not show it. The halves hold other poses, so their
cameras differ by what such errors do. The mean of halves that differ by d is off by about d / 2.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.config import Config
from ptri.errors import UserError
from ptri.geometry.cameras import centres
from ptri.geometry.rotations import rotation_angle
from ptri.models.pose_model import PoseModel
from ptri.posterior.sampling import posterior_mean
from ptri.recordings.keypoint_files import Recording, distort
from ptri.rig.check import RigInput, check_input, default_covariance, doubt_input
from ptri.rig.estimate import RigEstimate, Solved, solve_cameras, with_joints
from ptri.rig.frames import MIN_JOINTS, usable_frames
from ptri.rig.scale import known_length
from ptri.structures import to_device, tree_map, where
from ptri.verdict.judge import MIN_KEYPOINTS
from ptri.verdict.verdict import Code, Verdict

log = logging.getLogger(__name__)

SEEN = 3  # points of a person that a view sees
LEAST_FRAMES = 16  # of a recording; fewer are not halved
TELLING = 2.0  # times the stated deviation: so large a half of the difference is pointed out


class Solution(NamedTuple):
    """What is known of a recording, in the frame of its first solved camera, on the CPU."""

    recording: Recording  # of the V solved cameras
    left_out: list[str]  # names of cameras that saw too little
    estimate: RigEstimate  # joints are NaN in frames in which fewer than two views see the person
    seconds: dict[str, float]  # of the posterior and of the joints
    halves: str = ""  # what its two halves say, and ...
    halves_deg: Tensor | None = None  # ... (V,) by which rotations differ; None: not compared


def num_keypoints(recording: Recording) -> np.ndarray:
    """How many keypoints each of the V cameras saw, in all frames together."""
    return np.isfinite(recording.xy).all(-1).sum((0, 2))


def usable_views(recording: Recording) -> list[int]:
    """Views with enough keypoints.

    Raises:
        UserError: fewer than two.
    """
    counts = num_keypoints(recording)
    views = [v for v, count in enumerate(counts) if count >= MIN_KEYPOINTS]
    for v, name in enumerate(recording.names):
        if v not in views:
            log.warning("camera %s: %d keypoints in all frames, left out", name, counts[v])
    if len(views) < 2:
        seen = ", ".join(f"{name} {count}" for name, count in zip(recording.names, counts))
        raise UserError(
            f"recording: {len(views)} camera with at least {MIN_KEYPOINTS} keypoints, two are "
            f"needed (keypoints seen: {seen})"
        )
    return views


def solve(model: PoseModel, recording: Recording, config: Config) -> Solution:
    """Cameras and joints of a recording.

    Raises:
        UserError: too little was seen.
    """
    solvable = recording.part(usable_views(recording))
    left_out = [name for name in recording.names if name not in solvable.names]
    start = time.perf_counter()
    solved, given = solve_recording_cameras(model, solvable, config)
    middle = time.perf_counter()
    estimate = to_device(with_joints(model, solved, given), torch.device("cpu"))
    seconds = {"posterior": middle - start, "joints": time.perf_counter() - middle}
    views = (np.isfinite(solvable.xy).all(-1).sum(-1) >= SEEN).sum(-1)  # (T,) that see the person
    joints = (estimate.joints3d, estimate.joints3d_covariance, estimate.body)
    unknown = tree_map(lambda part: torch.full_like(part, torch.nan), joints)
    native, covariance, body = where(torch.tensor(views >= 2), joints, unknown)
    estimate = estimate._replace(joints3d=native, joints3d_covariance=covariance, body=body)
    return Solution(solvable, left_out, estimate, seconds)


def solve_recording_cameras(
    model: PoseModel, recording: Recording, config: Config
) -> tuple[Solved, RigInput]:
    """The cameras of a recording, and its keypoints as they were given to the solver.

    Raises:
        UserError: too little was seen, or ``evaluate.pool_frames`` is 0.
    """
    options, device = config.recording, next(model.parameters()).device
    if config.evaluate.pool_frames == 0:
        raise UserError(
            "evaluate.pool_frames: 0, but the cameras of a recording come from its frames "
            "together; set the most frames to take, such as 50"
        )
    lengths = {}
    if options.subject_height is not None:
        lengths["subject_height"] = options.subject_height
    if options.camera_distance is not None:
        lengths["camera_distance"] = (0, 1, options.camera_distance)
    known = known_length(lengths or None, len(recording.cameras))
    given = rig_input(recording, options.noise, device)
    if not bool(usable_frames(given.keypoints).any()):
        raise UserError(
            f"recording: no frame in which two cameras see {MIN_JOINTS} joints each; do the "
            "cameras run in step, and do file numbers agree?"
        )
    numbers = config.posterior, config.run.seed, config.evaluate.pool_frames
    doubt = doubt_input(_as_recorded(recording, given), [c.size for c in recording.cameras])
    solved = solve_cameras(model, given, *numbers, known, doubt=doubt)
    solved.scale.refuse_unmeasured()
    return solved, given


def rig_input(
    recording: Recording, noise: float, device: torch.device | str | None = None
) -> RigInput:
    """The keypoints of a recording as the solver takes them.

    Args:
        noise: standard deviation of a keypoint over the person's extent in the view, where the
            recording holds no covariances.
    """
    covariance = recording.covariance
    if covariance is None:
        covariance = default_covariance(torch.tensor(recording.xy), noise)
    arrays = (recording.xy, recording.K, recording.confidence, covariance)
    return check_input(*arrays, recording.skeleton, device)


def _as_recorded(recording: Recording, given: RigInput) -> RigInput:
    """The same with keypoints where they are in the pictures, the lens's distortion included."""
    xy = [distort(recording.xy[:, v], c.K, c.dist) for v, c in enumerate(recording.cameras)]
    xy = torch.as_tensor(np.stack(xy, 1)).to(given.keypoints.xy)
    return given._replace(keypoints=given.keypoints._replace(xy=xy))


def camera_spread(estimate: RigEstimate) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations of each camera: rotation (V,) deg, all axes together, and centre (V,) mm.

    The scale's own uncertainty is part of the centre's.
    """
    rotation = estimate.rotation_cov.diagonal(dim1=-2, dim2=-1).sum(-1)
    weights = estimate.posterior.log_weights[:, 0].exp()[:, None, None]
    centre = centres(estimate.posterior.R[:, 0], estimate.posterior.t[:, 0])
    mean = (weights * centre).sum(0)
    variance = (weights * (centre - mean).square()).sum((0, 2))
    return torch.rad2deg(rotation.sqrt()).numpy(), variance.sqrt().numpy()


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
