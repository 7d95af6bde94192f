"""The cameras and joints of a recording, by the one pipeline (`ptri.rig.estimate`).

Then whether its two halves tell the same cameras. A detector that meets pictures unlike those it
learned from errs with the pose, in the same way for many frames on end: then the posterior is
narrower than it is right, and its residuals do not show it. The halves hold other poses, so their
cameras differ by what such errors do. Halves that differ by d leave d / 2 as the standard deviation
of what they say together: the stated region becomes at least so wide in that direction.
"""

from __future__ import annotations

import logging
import math
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.config import Config
from ptri.errors import UserError
from ptri.geometry.cameras import centres
from ptri.geometry.rotations import so3_exp, so3_log
from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import posterior_mean, rotation_covariance
from ptri.recordings.keypoint_files import Recording, distort
from ptri.recordings.known import known_cameras
from ptri.rig.advice import Advice, advise
from ptri.rig.check import RigInput, check_input, default_covariance, doubt_input
from ptri.rig.estimate import solve_cameras
from ptri.rig.frames import MIN_JOINTS, usable_frames
from ptri.rig.known import check_known, solve_known
from ptri.rig.lenses import Lenses
from ptri.rig.persons import of_first, one_after_another
from ptri.rig.result import RigEstimate, Solved, with_joints
from ptri.rig.scale import known_length
from ptri.skeleton import H36M17
from ptri.structures import RigPosterior, to_device, tree_map, where
from ptri.verdict.figures import spread_deg
from ptri.verdict.judge import MIN_KEYPOINTS
from ptri.verdict.verdict import Code, Verdict

log = logging.getLogger(__name__)

SEEN = 3  # points of a person that a view sees
LEAST_FRAMES = 16  # of a recording; fewer are not halved
# Halves that differ by more of their own standard deviations than this are not of one rig, as when
# a camera was moved: no width makes their mean right.
UNEXPLAINED = 5.0


class Solution(NamedTuple):
    """What is known of a recording, in the frame of its first solved camera, on the CPU."""

    recording: Recording  # of the V solved cameras
    left_out: list[str]  # names of cameras that saw too little
    estimate: RigEstimate  # joints are NaN in frames in which fewer than two views see the person
    seconds: dict[str, float]  # of the posterior and of the joints
    solved: Solved  # what the estimate is made of, on the model's device,
    given: RigInput  # and from these keypoints
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
    estimate = _with_joints(model, solved, given, solvable)
    seconds = {"posterior": middle - start, "joints": time.perf_counter() - middle}
    return Solution(solvable, left_out, estimate, seconds, solved, given)


def _with_joints(
    model: PoseModel, solved: Solved, given: RigInput, recording: Recording
) -> RigEstimate:
    """The estimate on the CPU; joints are NaN where fewer than two views see the person."""
    estimate = to_device(with_joints(model, solved, given), torch.device("cpu"))
    views = (np.isfinite(recording.xy).all(-1).sum(-1) >= SEEN).sum(-1)  # (T,) that see the person
    joints = (estimate.joints3d, estimate.joints3d_covariance, estimate.body)
    unknown = tree_map(lambda part: torch.full_like(part, torch.nan), joints)
    native, covariance, body = where(torch.tensor(views >= 2), joints, unknown)
    return estimate._replace(joints3d=native, joints3d_covariance=covariance, body=body)


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
    if known.length is not None and known.views is None:
        known = known._replace(person=0 if recording.others else None)  # who is followed
    given = rig_input(recording, options.noise, device)
    if not bool(usable_frames(given.keypoints).any()):
        raise UserError(
            f"recording: no frame in which two cameras see {MIN_JOINTS} joints each; do the "
            "cameras run in step, and do file numbers agree?"
        )
    all_given = given
    if recording.others:
        others = [rig_input(other, options.noise, device) for other in recording.others]
        all_given = one_after_another([given, *others], range(1 + len(others)))
    numbers = config.posterior, config.run.seed, config.evaluate.pool_frames
    doubt = doubt_input(_as_recorded(recording, given), [c.size for c in recording.cameras])
    cameras = known_cameras(recording, options)
    if cameras is None:
        solved = solve_cameras(model, all_given, *numbers, known, doubt=doubt)
    else:
        cameras = check_known(cameras, len(recording.cameras), device)
        solved = solve_known(model, all_given, *numbers, known, cameras, doubt=doubt)
    solved.scale.refuse_unmeasured()
    return of_first(solved, len(given.K)), given


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
    known = ((camera.K_std, camera.group, camera.source) for camera in recording.cameras)
    std, groups, sources = zip(*known)
    lenses = Lenses(K_std=std, group=groups, source=sources)
    return check_input(*arrays, recording.skeleton, device, lenses)


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
    """Solves both halves of a solved recording, and widens what is stated by how they differ.

    A rig is rejected if it is then less certain than ``posterior.max_rotation_std_deg``, or if the
    halves' own regions do not explain how they differ.

    Returns:
        The solution with its estimate, and what its halves say.
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
    # (V, 3); what cannot be compared is as far apart as can be.
    apart = so3_log(first.mT @ second).nan_to_num(math.pi)
    difference = torch.rad2deg(apart.norm(dim=-1))
    parts = [f"{camera} {angle:.1f}" for camera, angle in zip(recording.names, difference)]
    text = f"{name}rotations differ by {', '.join(parts[1:])} deg"
    person = estimate.body.joints3d[:, H36M17.root].double().nanmean(0)
    wider, factor = widened(estimate.posterior, apart, person)
    if float(factor.max()) > 1.0:
        text += f"; the stated deviations grew by up to {float(factor.max()):.1f} x for that"
    own = sum(rotation_covariance(half.posterior)[0].cpu() for half in solved)  # (V, 3, 3)
    worst = int(difference.argmax())
    deviations = deviation_along(apart, own)[worst]
    limit, figures = config.posterior.max_rotation_std_deg, estimate.verdict.figures
    doubt = float(spread_deg(wider)[0].max())
    explained = bool(deviations < UNEXPLAINED) and doubt < limit
    verdict = estimate.verdict
    if not explained and estimate.accepted:
        value = float(difference[worst])
        verdict = Verdict(Code.HALVES, worst, value=value, limit=limit, figures=figures)
    if bool((factor > 1).any()):
        device = solution.given.K.device
        whole = solution.solved._replace(posterior=to_device(wider, device))
        estimate = _with_joints(model, whole, solution.given, recording)
    estimate = estimate._replace(verdict=verdict)
    return solution._replace(estimate=estimate, halves=text, halves_deg=difference)


def advice_of(solution: Solution) -> Advice | None:
    """What to film for cameras that are known better; None: cameras were not found together."""
    device, estimate = solution.given.K.device, solution.estimate
    posterior = to_device(estimate.posterior, device)
    solved = solution.solved._replace(posterior=posterior, verdict=estimate.verdict)
    sizes = torch.tensor([camera.size for camera in solution.recording.cameras])
    return advise(solved, solution.given, sizes)


def deviation_along(apart: Tensor, covariance: Tensor) -> Tensor:
    """Lengths (V,) of vectors (V, 3) in standard deviations of covariances (V, 3, 3) along them."""
    length = apart.norm(dim=-1)
    # 1e-12 guards view 0, which has no error.
    along = apart / length.clamp_min(1e-12)[:, None]
    variance = torch.einsum("vi,vij,vj->v", along, covariance, along)
    return length / variance.sqrt().clamp_min(1e-12)


def widened(posterior: RigPosterior, apart: Tensor, person: Tensor) -> tuple[RigPosterior, Tensor]:
    """The posterior (B = 1), at least half as wide as each view's rotation differs.

    Args:
        apart: (V, 3) rad, from one half's rotation to the other's. person: (3,) mm, its place.

    Returns:
        Samples further from the mean along that direction, cameras turned about the person; and
        the factors (V,) of the standard deviation along it.
    """
    R, _ = posterior_mean(posterior)
    factor = (deviation_along(apart, rotation_covariance(posterior)[0]) / 2).clamp_min(1.0)
    factor = torch.where(apart.norm(dim=-1) > 1e-9, factor, 1.0)
    along = torch.nn.functional.normalize(apart, dim=-1)
    offset = so3_log(R.mT @ posterior.R)  # (M, 1, V, 3)
    part = (offset * along).sum(-1, keepdim=True) * along
    new = R @ so3_exp(offset + (factor - 1)[:, None] * part)
    return posterior._replace(R=new, t=posterior.t + (posterior.R - new) @ person), factor
