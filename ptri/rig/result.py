"""What `ptri.estimate_rig` gives back, and its last step: from cameras to joints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.models.pose_model import PoseModel
from ptri.posterior.moments import at_mean_focal, posterior_mean, rotation_covariance
from ptri.posterior.sampling import RigSolution
from ptri.rig.check import RigInput, joints_to_h36m17, known_joints
from ptri.rig.joints import body_under, joints_under
from ptri.rig.persons import Person, rows_by_person
from ptri.rig.scale import Scale, body_height
from ptri.structures import Prediction, RigPosterior, cat, put, take, tree_map
from ptri.verdict.readings import Sides
from ptri.verdict.verdict import Verdict


class RigEstimate(NamedTuple):
    """Cameras and joints of one rig of V views and T frames, as tensors.

    x_cam = R x + t; view 0 is the reference (R = I, t = 0), joints are in its camera's frame.
    Of keypoints with a dimension of persons, joints and bodies have it too: (T, P, J, 3).
    """

    R: Tensor  # (V, 3, 3) posterior mean
    t: Tensor  # (V, 3) mm, posterior mean
    # Joints of the skeleton that was given, triangulated from their own keypoints: what a detector
    # means by a joint stays so, and each joint says by itself how well it is known. For
    # measurements, and for joints that Human3.6M does not have.
    joints3d: Tensor  # (T, J, 3) mm
    joints3d_covariance: Tensor  # (T, J, 3, 3) mm^2, the cameras' uncertainty included
    # Human3.6M's 17 joints from the fusion network, which knows bodies and the frames around: a
    # whole person in every frame, nearer to the truth where keypoints are poor. For animation, and
    # wherever all joints are needed. Its covariances are those of a joint about the root.
    body: Prediction  # (T, 17, 3) mm, (T, 17, 3, 3) mm^2; float32
    posterior: RigPosterior  # samples R (M, 1, V, 3, 3), t (M, 1, V, 3), log_weights (M, 1)
    rotation_cov: Tensor  # (V, 3, 3) rad^2, tangent space at the mean: R = mean exp(w)
    t_cov: Tensor  # (V, 3, 3) mm^2
    ess: float  # effective number of the posterior's samples, 1 to M
    verdict: Verdict  # whether the cameras may be used, and why not
    scale: Scale  # where the millimetres come from
    frames: list[int]  # that the cameras were estimated from, of T
    K: Tensor  # (V, 3, 3) px, as given, without skew; focal lengths not exact: posterior mean ...
    focal_std: Tensor  # (V,) ... and relative standard deviation; 0: exact
    persons: tuple[Person, ...]  # who was filmed; one where none was named
    moved: tuple[float, ...] | None  # (V,) chance that each camera has moved since `prior`
    advice: object | None = None  # `ptri.rig.advice.Advice`, where it was asked for

    @property
    def accepted(self) -> bool:
        """Whether the cameras may be used."""
        return self.verdict.accepted

    @property
    def reason(self) -> str:
        """The verdict in words: "accepted", or why not."""
        return self.verdict.words()

    @property
    def scale_source(self) -> str:
        """Where the millimetres come from, in words."""
        return self.scale.words()

    @property
    def units(self) -> str:
        """Of every length."""
        return "mm"


class Solved(NamedTuple):
    """The cameras of one rig, with what is needed to go on to its joints."""

    posterior: RigPosterior  # B = 1, at the known scale
    verdict: Verdict
    frames: list[int]  # that it was solved from
    sides: Sides | None  # (1, frames, V, 17) how left and right were read in them
    noise2: Tensor  # () squared factor on the stated standard deviations, and ...
    tail: Tensor  # () ... the tail of the keypoints' errors, as the residuals say
    scale: Scale
    persons: tuple[Person, ...]  # without their heights
    rig: RigSolution | None  # that this is made of; None: views were left out
    moved: tuple[float, ...] | None = None  # as in `RigEstimate`


def together(estimate: RigEstimate, num_persons: int) -> RigEstimate:
    """The estimate of P persons who are in the same T frames, from that of P T frames."""

    def by_person(value: Tensor) -> Tensor:
        return value.unflatten(0, (num_persons, -1)).transpose(0, 1)

    parts = estimate.joints3d, estimate.joints3d_covariance, estimate.body
    joints3d, covariance, body = tree_map(by_person, parts)
    frames = sorted({frame % len(joints3d) for frame in estimate.frames})
    return estimate._replace(
        joints3d=joints3d, joints3d_covariance=covariance, body=body, frames=frames
    )


@torch.no_grad()
def with_joints(model: PoseModel, solved: Solved, given: RigInput) -> RigEstimate:
    """The estimate with the joints of the same frames, or of others.

    Args:
        solved: its ``sides`` None where ``given`` holds others than it was solved from.
    """
    posterior = solved.posterior
    R, t = (part[0] for part in posterior_mean(posterior))
    K, focused = at_mean_focal(given.K[None], posterior)
    log_focal, weights = posterior.log_focal[:, 0], posterior.log_weights[:, 0].exp()
    focal_std = torch.zeros_like(t[:, 0])
    if log_focal.shape[-1]:
        focal_std = (weights @ (log_focal - weights @ log_focal).square()).sqrt()
    native = joints_under(given.keypoints, given.K, posterior, solved.noise2, solved.tail)
    groups = rows_by_person(given.persons, len(given.K), len(solved.persons))
    known, bodies, persons = known_joints(given), [], []
    numbered = {frame: place for place, frame in enumerate(solved.frames)}
    seen = torch.isfinite(given.keypoints.xy).all(-1).sum(1) >= 2  # (T, J)
    measured = torch.where(seen.unsqueeze(-1), native.joints3d, torch.nan)
    for rows, person in zip(groups, solved.persons):
        if not len(rows):
            persons.append(person)
            continue
        own, own_K = take((known, K[0]), rows)
        within = {frame: place for place, frame in enumerate(rows.tolist())}
        frames = [frame for frame in solved.frames if frame in within]
        sides = solved.sides
        if sides is not None:
            sides = take(sides, (slice(None), [numbered[frame] for frame in frames]))
        frames = [within[frame] for frame in frames]
        body = body_under(model, *take((own, own_K), None), focused, sides, frames=frames)
        bodies.append(take(body, 0))
        height = body_height(joints_to_h36m17(measured[rows], given.skeleton))
        persons.append(person._replace(height=float(height)))
    body = put(tree_map(torch.empty_like, cat(bodies)), torch.cat(groups).to(R.device), cat(bodies))
    away = posterior.t[:, 0] - t  # (M, V, 3)
    t_cov = torch.einsum("m,mvi,mvj->vij", weights, away, away)
    spread = rotation_covariance(posterior)[0], t_cov, float(posterior.ess[0])
    rest = solved.verdict, solved.scale, solved.frames, K[0, 0], focal_std
    return RigEstimate(R, t, *native, body, posterior, *spread, *rest, tuple(persons), solved.moved)
