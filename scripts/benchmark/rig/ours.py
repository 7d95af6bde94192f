"""This repository's rig posterior as a method of the benchmark."""

from __future__ import annotations

import time

import torch

from benchmark.rig.cases import Cases
from benchmark.rig.scores import Answer
from ptri.config import PosteriorConfig, load
from ptri.models.fusion import about_root, mixture
from ptri.models.pose_model import PoseModel
from ptri.models.weights import build_model
from ptri.posterior.moments import posterior_mean, resample
from ptri.rig import estimate
from ptri.rig.joints import NUM_SAMPLES, joints_given

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
    fixed += GEOMETRY_ONLY if geometry_only else ()
    settings = load(path, [*fixed, *overrides])
    return build_model(settings, with_images=False).eval(), settings.posterior


@torch.no_grad()
def solve(model: PoseModel, options: PosteriorConfig, cases: Cases, seed: int = 0) -> Answer:
    """Cameras, joints and their stated uncertainty of B cases at once.

    The joints are those that `ptri.estimate_rig` triangulates, with the covariances of joints
    relative to the root in place of their own.
    """
    start = time.perf_counter()
    solution = estimate.solve(model, cases.keypoints, cases.K, options, seed)
    seconds = time.perf_counter() - start
    posterior = solution.posterior
    R, t = posterior_mean(posterior)
    samples = resample(posterior, NUM_SAMPLES)
    noise2, tail = estimate.keypoint_noise(solution.rig)
    noise = noise2.reshape(-1, 1, 1, 1, 1, 1), tail.reshape(-1, 1, 1, 1)
    # (M, B, T, J, ...)
    joints, covariance = joints_given(cases.keypoints, cases.K, posterior, samples.views, *noise)
    weights = samples.log_weights.unsqueeze(-1).expand(joints.shape[:3])
    samples = (value.flatten(1, 2) for value in (joints, about_root(covariance), weights))
    mean, spread = (value.unflatten(0, cases.K.shape[:2]) for value in mixture(*samples))
    accepted = torch.tensor([verdict.accepted for verdict in solution.verdicts])
    return Answer(R, t, mean, spread, posterior, accepted, True, seconds)
