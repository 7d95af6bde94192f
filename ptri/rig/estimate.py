"""The public function: from 2D keypoints and intrinsics to a posterior over cameras and joints.

    estimate = ptri.estimate_rig(xy, K)

Recordings (`ptri.recordings.solve`) and streams (`ptri.rig.stream`) are solved by the same code.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import roma
import torch
from torch import Tensor, nn

from ptri import config as configuration
from ptri.config_sections import PosteriorConfig
from ptri.errors import UserError
from ptri.geometry.cameras import to_reference
from ptri.models.weights import build_model
from ptri.posterior.sampling import posterior_mean, rotation_covariance
from ptri.rig.check import RigInput, check_input, for_model, joints_to_h36m17
from ptri.rig.frames import MIN_JOINTS, choose_frames
from ptri.rig.joints import joint_samples, joints_under
from ptri.rig.objections import check_numbers, objection
from ptri.rig.scale import KnownLength, describe, known_length, refuse_unmeasured, scale_factors
from ptri.skeleton import Skeleton
from ptri.structures import Cameras, Keypoints, RigPosterior

MIN_KEYPOINTS = 6  # a view with fewer in all frames is not solved
WEIGHTS = "checkpoints/ptri_3d.pt"
# Of a camera that nothing is known about: its rotation is anything, its place this far (mm,
# standard deviation a coordinate) from the reference.
UNKNOWN_SIGMA = 5000.0
SCALE_FRAMES = 50  # frames that measure the subject's height


class RigEstimate(NamedTuple):
    """Cameras and joints of one rig of V views and T frames, as tensors in float64.

    x_cam = R x + t; view 0 is the reference (R = I, t = 0), joints are in its camera's frame.
    """

    R: Tensor  # (V, 3, 3) posterior mean
    t: Tensor  # (V, 3) mm, posterior mean
    joints3d: Tensor  # (T, J, 3) mm, joints of the skeleton that was given
    joints3d_covariance: Tensor  # (T, J, 3, 3) mm^2, the cameras' uncertainty included
    posterior: RigPosterior  # samples R (M, 1, V, 3, 3), t (M, 1, V, 3), log_weights (M, 1)
    rotation_cov: Tensor  # (V, 3, 3) rad^2, tangent space at the mean: R = mean exp(w)
    t_cov: Tensor  # (V, 3, 3) mm^2
    ess: float  # effective number of the posterior's samples, 1 to M
    accepted: bool  # whether the cameras may be used
    reason: str  # "accepted", or why not
    scale_source: str  # in words
    units: str  # of every length: "mm"
    frames: list[int]  # that the cameras were estimated from, of T


class RigSolved(NamedTuple):
    """A rig's posterior (B = 1) with what is needed to go on."""

    posterior: RigPosterior
    frames: list[int]
    noise2: Tensor  # () squared factor on the stated standard deviations, as the residuals say
    scale: float  # mean factor by which a known length changed the model's own scale; NaN: a
    # height was given that could not be measured
    scale_source: str


def estimate_rig(
    xy,
    K,
    confidence=None,
    covariance=None,
    *,
    skeleton: str | Sequence[str] | Skeleton = "h36m17",
    num_samples: int = 512,
    num_iterations: int = 4,
    scale: Mapping[str, object] | None = None,
    children: float = 0.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    max_frames: int = 50,
    model: nn.Module | str | Path | None = None,
) -> RigEstimate:
    """Poses of static cameras, and a person's joints, from 2D keypoints of known cameras' images.

    Args:
        xy: (T, V, J, 2) px in undistorted images, NaN = not seen; NumPy or torch. T >= 1 frames in
            order of time, V >= 2 views, which run in step.
        K: (V, 3, 3) intrinsics, px; integer pixel coordinates are pixel centres.
        confidence: (T, V, J) in [0, 1], the chance that the keypoint is the joint; None: 1.
        covariance: (T, V, J, 2, 2) px^2; None: circular, 1 % of the person's extent in the view.
        skeleton: "h36m17", "coco17", "body25", "body25b", "mpii16" and others of
            `ptri.skeleton.SKELETONS`, or J joint names. Joints that are none of Human3.6M's take
            part in the geometry.
        num_samples, num_iterations: of the adaptive importance sampling.
        scale: a known length, ``{"subject_height": mm}`` (standing) or
            ``{"camera_distance": (view, view, mm)}``; None: the lengths of human bones.
        children: how likely the person is a child of 4 to 14 years, 0 to 1. Proportions then tell
            the size; at 0 a child comes out 10 to 20 % too tall, and the rig with it.
        seed: of the Monte-Carlo noise; equal seeds give equal bits on a machine.
        device: where to compute; None: where xy is.
        max_frames: the cameras come from at most so many frames, chosen by information
            (`ptri.rig.frames`); joints are given for all.
        model: a `ptri.models.PoseModel` or a file of its weights; None: the shipped ones.

    Returns:
        The estimate, always finite. Look at ``accepted`` and ``reason`` before use: where too
        little was seen the cameras are draws from the prior and the covariances say so.

    Raises:
        ValueError: input of a wrong shape or type, or impossible values; the message says what,
            where, what was expected and how to mend it.
    """
    given = check_input(xy, K, confidence, covariance, skeleton, device)
    known = known_length(scale, len(given.K))
    num_samples, num_iterations, max_frames, seed = check_numbers(
        num_samples, num_iterations, max_frames, seed
    )
    network = find_model(model, given.K.device, children)
    settings = dataclasses.replace(
        network.settings, num_samples=num_samples, num_iterations=num_iterations
    )
    solved = solve_rig(network, given, settings, seed, max_frames, known)
    if math.isnan(solved.scale):
        refuse_unmeasured()
    return summarise(solved, given)


def summarise(solved: RigSolved, given: RigInput) -> RigEstimate:
    """The estimate for some frames, which may be others than those that the rig was solved from."""
    posterior = solved.posterior
    R, t = (part[0] for part in posterior_mean(posterior))
    weights = posterior.log_weights[:, 0].exp()
    away = posterior.t[:, 0] - t  # (M, V, 3)
    joints, covariance = joints_under(given.keypoints, given.K, posterior, solved.noise2)
    return RigEstimate(
        R=R,
        t=t,
        joints3d=joints,
        joints3d_covariance=covariance,
        posterior=posterior,
        rotation_cov=rotation_covariance(posterior)[0],
        t_cov=torch.einsum("m,mvi,mvj->vij", weights, away, away),
        ess=float(posterior.ess[0]),
        accepted=bool(posterior.accepted[0]),
        reason=posterior.reason[0],
        scale_source=solved.scale_source,
        units="mm",
        frames=solved.frames,
    )


@torch.no_grad()
def solve_rig(
    model: nn.Module,
    given: RigInput,
    settings: PosteriorConfig,
    seed: int = 0,
    max_frames: int = 50,
    known: KnownLength | None = None,
    start: tuple[Cameras, Tensor] | None = None,
    names: list[str] | None = None,
    when: Tensor | None = None,
) -> RigSolved:
    """The posterior of a rig from the frames that say most about it.

    A view that saw next to nothing is left out, gets cameras drawn from the prior, and the rig is
    rejected with its name.

    Args:
        model: with ``solve_full`` of `ptri.models.pose_model.PoseModel`, in evaluation mode.
        start: see ``solve_full``: cameras (1, V, ...) and joints (1, frames, 17, 3) to start from
            besides the lifted ones; ``given`` then holds just the frames to solve from.
        names: of the views, for the verdict; None: "view 0" and so on.
        when: (T,) int64 the frames' places in time; None: one after the other.
    """
    V = len(given.K)
    counts = torch.isfinite(given.keypoints.xy).all(-1).sum((0, 2))  # (V,)
    views = [v for v in range(V) if int(counts[v]) >= MIN_KEYPOINTS]
    part = Keypoints(*(value[:, views] for value in given.keypoints))
    frames = choose_frames(part, given.K[views], max_frames) if len(views) >= 2 else []
    if not frames:
        reason = (
            f"no frame in which two views see {MIN_JOINTS} joints each"
            if len(views) >= 2
            else _too_few(counts, views)
        )
        return _nothing_known(given, settings.num_samples, seed, known, counts, reason)
    inside = RigInput(part, given.K[views], given.skeleton)
    chosen = Keypoints(*(value[frames][None] for value in for_model(inside)))
    K = inside.K.expand(1, len(frames), -1, -1, -1)
    if start is not None and len(views) < V:
        start = None  # the cameras of other views
    times = torch.tensor(frames) if when is None else when[frames]
    times = times.to(K.device)
    solution = model.solve_full(chosen, K, seed, settings, start=start, frames=times)
    accepted, reason = solution.posterior.accepted, solution.posterior.reason[0]
    R = posterior_mean(solution.posterior)[0][0].double()
    part = Keypoints(*(value[frames] for value in part))
    noise2 = solution.evidence.scale2.reshape(-1)[0].double()
    problem = objection(part, inside.K, R)
    if problem is None and bool(accepted[0]):  # the residuals may show more noise than was stated
        problem = objection(part, inside.K, R, float(noise2))
    if problem is not None:
        accepted, reason = torch.zeros_like(accepted), problem
    posterior = RigPosterior(
        *(value.double() for value in solution.posterior[:4]),
        accepted,
        [_named(reason, views, names)],
    )
    posterior = _with_unknown(posterior, views, V, seed, counts)
    posterior, factor, source = _rescale(posterior, inside, views, frames, known, names)
    return RigSolved(posterior, frames, noise2, factor, source)


def _rescale(posterior, inside, views, frames, known, names) -> tuple[RigPosterior, float, str]:
    """Every sample at the scale of the known length."""
    if known is None:
        return posterior, 1.0, describe(None, 0.0)
    M = len(posterior.R)
    joints = posterior.t.new_zeros(M, 1, 17, 3)
    if known.views is None:
        some = frames[:: -(-len(frames) // SCALE_FRAMES)]
        part = Keypoints(*(value[some] for value in inside.keypoints))
        own = posterior._replace(R=posterior.R[:, :, views], t=posterior.t[:, :, views])
        joints = joint_samples(part, inside.K, own)
        seen = torch.isfinite(part.xy).all(-1).sum(1) >= 2  # (T, J)
        joints = torch.where(seen[..., None], joints, torch.nan)
        joints = joints_to_h36m17(joints, inside.skeleton)
    factor, measured = scale_factors(known, joints, posterior.R[:, 0], posterior.t[:, 0])
    if not bool(torch.isfinite(factor).all()):
        return posterior, math.nan, describe(None, 0.0)
    weights = posterior.log_weights[:, 0].exp()
    source = describe(known, float((weights * measured).sum()), names)
    posterior = posterior._replace(t=posterior.t * factor[:, None, None, None])
    return posterior, float((weights * factor).sum()), source


# --- views of which nothing is known -----------------------------------------------------------


def _too_few(counts: Tensor, views: list[int]) -> str:
    blind = [v for v in range(len(counts)) if v not in views]
    seen = ", ".join(f"view {v} has {int(counts[v])}" for v in blind)
    return f"{seen} keypoints, {MIN_KEYPOINTS} are needed"


def _named(reason: str, views: list[int], names: list[str] | None) -> str:
    """A verdict on the solved views with the numbers, or the names, of the given ones."""
    for i in reversed(range(len(views))):
        new = f"view\0{views[i]}" if names is None else f"camera {names[views[i]]}"
        reason = reason.replace(f"view {i}", new)
    return reason.replace("\0", " ")


def _unknown_cameras(num_samples: int, count: int, like: Tensor, seed: int) -> Cameras:
    """Draws (M, count, ...) of cameras that nothing is known about."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(num_samples, count, 4, generator=generator, dtype=torch.float64)
    t = UNKNOWN_SIGMA * torch.randn(num_samples, count, 3, generator=generator, dtype=torch.float64)
    R = roma.unitquat_to_rotmat(q / q.norm(dim=-1, keepdim=True))
    return Cameras(torch.empty(0), R.to(like), t.to(like))


def _with_unknown(
    posterior: RigPosterior, views: list[int], num_views: int, seed: int, counts: Tensor
) -> RigPosterior:
    """The posterior of some views with all of the rig's, in view 0's frame exactly."""
    unknown = _unknown_cameras(len(posterior.R), num_views, posterior.t, seed)
    R, t = unknown.R, unknown.t
    R[:, views], t[:, views] = posterior.R[:, 0], posterior.t[:, 0]
    cameras = to_reference(Cameras(unknown.K, R, t))
    R, t = cameras.R.clone(), cameras.t.clone()
    R[:, 0], t[:, 0] = torch.eye(3).to(R), 0.0
    posterior = posterior._replace(R=R[:, None], t=t[:, None])
    if len(views) == num_views:
        return posterior
    others = f"; the others: {posterior.reason[0]}" if views else ""
    return posterior._replace(
        accepted=torch.zeros_like(posterior.accepted),
        reason=[f"too little evidence: {_too_few(counts, views)}{others}"],
    )


def _nothing_known(given: RigInput, M: int, seed: int, known, counts, reason: str) -> RigSolved:
    like = given.K
    empty = RigPosterior(
        like.new_zeros(M, 1, 0, 3, 3), like.new_zeros(M, 1, 0, 3),
        like.new_full((M, 1), 1 / M).log(), like.new_ones(1),
        torch.zeros(1, dtype=torch.bool, device=like.device), ["none"],
    )  # fmt: skip
    posterior = _with_unknown(empty, [], len(given.K), seed, counts)
    posterior = posterior._replace(reason=[f"too little evidence: {reason}"])
    source = "none: nothing was estimated" if known is None else "the known length was not used"
    return RigSolved(posterior, [], like.new_ones(()), 1.0, source)


# --- the model ---------------------------------------------------------------------------------


def find_model(
    model: nn.Module | str | Path | None, device: torch.device, children: float = 0.0
) -> nn.Module:
    """A model in evaluation mode on a device: the one given, or that of a file of weights.

    Args:
        children: as in `estimate_rig`; a model that is given has its own.

    Raises:
        UserError: no such file, or one of another architecture.
    """
    if isinstance(children, bool) or not isinstance(children, Real) or not 0 <= children <= 1:
        raise UserError(f"children: {children!r:.80}; expected a chance from 0 to 1")
    if isinstance(model, nn.Module):
        if children not in (0, getattr(model, "children_share", children)):
            raise UserError(
                f"children: {children:g}, but the model was built with posterior.children of "
                f"{model.children_share:g}; build it with {children:g}, or give its file"
            )
        place = next(model.parameters()).device
        if place != device:
            raise UserError(f"model: on {place}, but the keypoints are on {device}; move one")
        if model.training:
            raise UserError("model: in training mode; call model.eval() first")
        return model
    if model is not None and not isinstance(model, (str, Path)):
        raise UserError(f"model: {type(model).__name__}; expected a PoseModel or a file of weights")
    return _load(str(model or _shipped_weights()), str(device), float(children))


def _shipped_weights() -> Path:
    package = Path(__file__).resolve().parents[1]
    places = [package / Path(WEIGHTS).name, package / WEIGHTS, package.parent / WEIGHTS]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"model: no weights at {' or '.join(map(str, places))}; give model=path/to/ptri_3d.pt"
    )


@functools.lru_cache(maxsize=4)
def _load(weights: str, device: str, children: float) -> nn.Module:
    options = ["run.name=rig", f"init.checkpoint_3d={weights!r}", f"posterior.children={children}"]
    model = build_model(configuration.load(None, options), with_images=False)
    return model.eval().to(device)
