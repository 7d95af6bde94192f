"""This repository's rig posterior as a method of the benchmark."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmark.rig.cases import Cases
from benchmark.rig.scores import Answer
from ptri.config import Config, PosteriorConfig, load
from ptri.models.pose_model import PoseModel
from ptri.models.weights import build_model
from ptri.posterior.sampling import posterior_mean, resample
from ptri.rig import estimate
from ptri.rig.joints import joints_given
from ptri.skeleton import H36M17
from ptri.structures import take

JOINT_SAMPLES = 64  # posterior samples that the joints are averaged over
GEOMETRY_ONLY = ("posterior.bone_slack=0.5", "posterior.bone_definition=200")  # nearly no body
WEIGHTS = "checkpoints/ptri_3d.pt"


def make_model(
    overrides: tuple[str, ...] = (), path: str | None = None, geometry_only: bool = False
) -> tuple[PoseModel, PosteriorConfig]:
    """The 3D model without its 2D network, with the shipped lifter, and the posterior's settings.

    Args:
        overrides: ``section.key=value``. path: YAML file to start from.
        geometry_only: with a bone prior so wide that it says nearly nothing.

    Raises:
        UserError: bad settings or weights.
    """
    fixed = ["run.name=benchmark", f"init.checkpoint_3d={WEIGHTS}"]
    own = list(GEOMETRY_ONLY) if geometry_only else []
    settings: Config = load(path, [*fixed, *own, *overrides])
    return build_model(settings, with_images=False).eval(), settings.posterior


@torch.no_grad()
def solve(model: PoseModel, options: PosteriorConfig, cases: Cases, seed: int = 0) -> Answer:
    """Cameras, joints and their stated uncertainty of B cases at once."""
    start = time.perf_counter()
    solution = estimate.solve(model, cases.keypoints, cases.K, options, seed)
    seconds = time.perf_counter() - start
    posterior = solution.posterior
    R, t = posterior_mean(posterior)
    parts = []
    for rig in range(len(R)):  # as users get them, but for the covariance: of joints about the root
        one = posterior.rigs(slice(rig, rig + 1))
        drawn_R, drawn_t, log_weights = resample(one, JOINT_SAMPLES)
        keypoints, K = take((cases.keypoints, cases.K), rig)
        noise2 = solution.rig.evidence.scale2[rig]
        joints, covariance = joints_given(keypoints, K, one, drawn_R, drawn_t, noise2)
        weights = log_weights.exp()
        parts.append(mixture(joints[:, None], covariance[:, None], weights, H36M17.root))
    mean, spread = (torch.cat(values) for values in zip(*parts))
    accepted = torch.tensor([verdict.accepted for verdict in solution.verdicts])
    return Answer(R, t, mean, spread, posterior, accepted, True, seconds)


def mixture(
    joints: Tensor, covariance: Tensor, weights: Tensor, root: int
) -> tuple[Tensor, Tensor]:
    """Mean joints, and the covariance of root-relative joints, over the cameras' posterior.

    Args:
        joints, covariance: (M, B, T, J, 3) mm, (M, B, T, J, 3, 3) mm^2 given each sample's cameras,
            where joints do not depend on each other. weights: (M, B), summing to one.

    Returns:
        (B, T, J, 3) and (B, T, J, 3, 3): within plus between the samples; the root's own is zero
        but for rounding and does not count.
    """
    mean = torch.einsum("mb,mbtjc->btjc", weights, joints)
    relative = joints - joints[..., root : root + 1, :]
    centre = torch.einsum("mb,mbtjc->btjc", weights, relative)
    offset = relative - centre
    between = torch.einsum("mb,mbtji,mbtjk->btjik", weights, offset, offset)
    within = covariance + covariance[..., root : root + 1, :, :]
    return mean, between + torch.einsum("mb,mbtjik->btjik", weights, within)
