"""Steps 3 to 5 of `ptri.rig.estimate`: views lifted, left and right read, starts gathered."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.geometry.triangulation import weighted_triangulation
from ptri.models.lifter import Lifted
from ptri.models.pose_model import PoseModel
from ptri.posterior.body import BodyPrior
from ptri.posterior.equations import Bundle
from ptri.posterior.prior import PosePrior, Prior
from ptri.posterior.starts import pooled_starts, rig_starts
from ptri.rig.detector import NUM_JOINTS, body_prior, observe
from ptri.skeleton import H36M17
from ptri.structures import MANY_FRAMES, Keypoints, Observations, Views, cat, constant, take
from ptri.verdict.readings import Sides, apply_sides, frames_to_read, read_rigs

PERSON_SIGMA = 1000.0  # mm, of a joint around the person's root before it is triangulated


@torch.no_grad()
def lift_and_read(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    options: PosteriorConfig,
    persons: Tensor | None = None,
) -> tuple[Lifted, Sides | None]:
    """Lifts every view; of a detector that is known to exchange left and right (`Detector`) reads
    them anew, and lifts the views that are read otherwise.

    Args:
        keypoints: (B, T, V, J, ...) px. K: (B, T, V, 3, 3) px.
        persons: (B, T, P) as in `ptri.structures.Observations`; None: one person.

    Returns:
        The skeletons (B, T, V, 17, ...) of the views as they are read, and how that is; None: as
        labelled.
    """
    T, rate = keypoints.xy.shape[1], model.detector.exchanged
    named = take(keypoints, (*[slice(None)] * 3, slice(NUM_JOINTS)))
    if not rate:
        return model.lift(named, K), None
    some = frames_to_read(T, K.device)
    exchanged = take(named, (slice(None), some))
    exchanged = take(exchanged, (*[slice(None)] * 3, constant(H36M17.flip, K.device)))
    lifted = model.lift(cat([named, exchanged], 1), torch.cat([K, K[:, some]], dim=1))
    exchanged_joints = lifted.joints3d[:, T:].double()
    lifted = take(lifted, (slice(None), slice(T)))
    observations = observe(named, K, model.detector, persons)
    trust = observations.inlier / lifted.sigma.double().square()
    body = body_prior(options, model.detector, observations)
    sides = read_rigs(observations, lifted.joints3d.double(), exchanged_joints, trust, body, rate)
    # The CPU waits for the GPU here: few views are read otherwise, and all again would cost more.
    changed = sides.changed().nonzero(as_tuple=True)  # of (B, T, V)
    if len(changed[0]):
        read = apply_sides(named, sides)
        again = model.lift(take(read, changed), K[changed])
        for value, new in zip(lifted, again):
            value[changed] = new
    return lifted, sides


@torch.no_grad()
def gather_starts(
    keypoints: Keypoints,
    K: Tensor,
    observations: Observations,
    lifted: Lifted,
    body: BodyPrior,
    seed: int,
    thorough: bool,
    start: tuple[Views, Tensor] | None = None,
    prior: Prior | None = None,
) -> Bundle:
    """Candidate rigs (B, C, ...) to start from: lifted, given, and of many frames the classical.

    Args:
        keypoints: (B, T, V, J, ...) px as read, K: (B, T, V, 3, 3) px, and the same normalised.
        thorough, start, prior: as in `ptri.rig.estimate.solve`.
    """
    trust = observations.inlier[..., :NUM_JOINTS] / lifted.sigma.double().square()
    starts = rig_starts(lifted.joints3d.double(), trust, body, mirrored=thorough)
    if start is not None:
        (R, t, log_focal), joints = take(start, (slice(None), None))
        nothing = log_focal.new_zeros(*starts.t.shape[:2], log_focal.shape[-1])
        starts = starts._replace(log_focal=nothing)
        given = take(starts, (slice(None), slice(1)))
        given = given._replace(R=R, t=t, log_focal=log_focal, joints=joints)
        starts = cat([starts, given], 1)
    if prior is not None and prior.poses.information.shape[-1]:
        starts = cat([starts, _most_probable(starts, prior.poses)], 1)
    if thorough and keypoints.xy.shape[1] >= MANY_FRAMES:
        starts = cat([starts, pooled_starts(keypoints, K, starts, body, seed=seed)], 1)
    return _with_further_joints(starts, observations)


def _most_probable(starts: Bundle, prior: PosePrior) -> Bundle:
    """The first candidate's joints (B, 1, ...) before the cameras where they most probably are."""
    first = take(starts, (slice(None), slice(1)))
    return first._replace(R=prior.R.expand_as(first.R), t=prior.t.expand_as(first.t))


def _with_further_joints(starts: Bundle, observations: Observations) -> Bundle:
    """Adds the joints that the lifter does not know, triangulated under each start's cameras."""
    if observations.xy.shape[3] == NUM_JOINTS:
        return starts
    root = starts.joints[..., H36M17.root, :]  # (B, C, T, 3)
    distance = root.norm(dim=-1).mean((1, 2))[:, None, None, None]
    further = Observations(
        *(value[:, :, :, NUM_JOINTS:] for value in observations[:3]),
        observations.held[..., NUM_JOINTS:],
        observations.persons,
    )
    points, _ = weighted_triangulation(
        further,
        starts.R.transpose(0, 1).to(further.xy),
        starts.t.transpose(0, 1).to(further.xy),
        further.inlier[None],
        distance,
        root.mean(1)[:, :, None],
        PERSON_SIGMA**-2,
    )
    points = points.transpose(0, 1).to(starts.joints)
    return starts._replace(joints=torch.cat([starts.joints, points], dim=-2))
