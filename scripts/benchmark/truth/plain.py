"""Two plain solves to compare with: no reading, no repair, no posterior.

The *optimum* of the joint density of cameras, joints and bones from the same starts, and from there
bundle adjustment by pycolmap with Cauchy's loss, which knows the true noise and nothing of bodies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.rig.adjust import adjust as adjust_with
from benchmark.rig.cases import Cases
from benchmark.rig.peers import NotInstalledError, library, triangulated
from benchmark.truth.cases import Case
from ptri.config import PosteriorConfig
from ptri.models.pose_model import PoseModel
from ptri.posterior.adjust import adjust
from ptri.posterior.optima import Poses, adjust_starts
from ptri.rig.check import RigInput, for_model
from ptri.rig.detector import NUM_JOINTS, body_prior, observe
from ptri.rig.starts import gather_starts
from ptri.structures import Cameras, Keypoints, take, tree_map

STEPS = 12  # of Levenberg and Marquardt, from the best start on


@torch.no_grad()
def optimum(
    model: PoseModel, given: RigInput, options: PosteriorConfig, seed: int
) -> tuple[Tensor, Tensor]:
    """Rotations (V, 3, 3) and translations (V, 3) mm of the best optimum of the joint density."""
    keypoints, K = take((for_model(given), given.K), None)
    lifted = model.lift(keypoints, K)
    observations = observe(keypoints, K, model.detector)
    body = body_prior(options, model.detector, observations)
    starts = gather_starts(keypoints, K, observations, lifted, body, seed, thorough=True)
    unseen = observations.inlier[..., :NUM_JOINTS] <= 0
    poses = Poses(lifted.joints3d.double(), lifted.sigma.double().masked_fill(unseen, torch.inf))
    starts = tree_map(Tensor.double, starts)
    best = take(adjust_starts(observations, starts, body, options, poses), (slice(None), 0))
    bundle, _ = adjust(observations, best, body, STEPS, 2)
    return bundle.R[0], bundle.t[0]


def cauchy(case: Case, given: RigInput, R: Tensor, t: Tensor) -> Tensor:
    """Rotations (V, 3, 3) after bundle adjustment from given cameras; NaN without pycolmap."""
    nothing = torch.full_like(R, torch.nan)
    try:
        lib = library("pycolmap")
    except NotInstalledError:
        return nothing
    lib.logging.minloglevel = 2  # errors only
    keypoints, K = take((given.keypoints, given.K), None)
    focal = K[:, 0, :, 0, 0]  # (1, V)
    made = _cases(keypoints, K, case.noise * focal)
    joints = triangulated(keypoints, Cameras(K, R[None], t[None]))[0].numpy()
    answer = adjust_with(lib, made, R.numpy(), t.numpy(), joints, "cauchy")
    return nothing if answer is None else torch.from_numpy(answer.R)


def _cases(keypoints: Keypoints, K: Tensor, sigma: Tensor) -> Cases:
    """One case as `benchmark.rig.adjust` takes it; it does not look at the truth."""
    unknown = torch.empty(0)
    return Cases(keypoints, K, Cameras(*[unknown] * 3), unknown, sigma, unknown)
