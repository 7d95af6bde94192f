"""The density that cameras are weighted by, against a naive twin: the joint density of keypoints,
joints and bones written out plainly, its optimum by Newton steps, log det of the exact Hessian."""

import pytest
import torch
from rigs_fixture import BODY, exact, observed, starts_near

from ptri.config_sections import PosteriorConfig
from ptri.posterior.adjust import MIN_SCALE2
from ptri.posterior.sampling import log_target, rig_posterior

HEAVIEST = 20  # samples compared
PRECISION = torch.linalg.inv(BODY.covariance)  # the Hessian of vmap's `solve` is wrong
STEPS = 6  # of Newton's method; from the solver's own optimum, after which the slope is zero
PRIOR_COUNT = 2.0  # residuals that the prior of the noise's scale is worth


def cost(unknowns, R, t, variance, place, seen, data, tail):
    """Negative log density of one rig's keypoints, bones and lengths, without volumes.

    ``unknowns`` (51 + 16,): joints in mm, row by row, and the bones' log lengths; ``variance`` ():
    factor on the covariances; ``data``: xy (V, 17, 2), information, inlier; ``seen``: of joints;
    ``tail`` (): one over the degrees of freedom of the errors' Student-t law.
    """
    xy, information, inlier = data
    joints, lengths = unknowns[:51].view(17, 3), unknowns[51:]
    camera = torch.einsum("vab,jb->vja", R, joints) + t[:, None]
    error = camera[..., :2] / camera[..., 2:] - xy
    chi2 = torch.einsum("vja,vjab,vjb->vj", error, information, error) / variance
    certain = inlier.clamp(0.02, 0.98)
    good = certain.log() - (0.5 / tail + 1) * torch.log1p(tail * chi2) - variance.log()
    bad = (1 - certain).log() - 0.5 * 12.0
    keypoints = torch.where(inlier > 0, torch.logaddexp(good, bad), 0.0).sum()
    stretch = (bone_lengths(joints).log() - lengths) / BODY.slack
    stretch = stretch * seen[BODY.child] * seen[BODY.parent]
    away = lengths - BODY.mean
    body = away @ PRECISION @ away
    idle = (1 - seen.double())[:, None] * (joints - place)  # joints without keypoints stay
    return 0.5 * (stretch.square().sum() + body + idle.square().sum()) - keypoints


def bone_lengths(joints):
    return (joints[..., BODY.child, :] - joints[..., BODY.parent, :]).norm(dim=-1)


def naive(R, t, variance, start, seen, data, tail, floor):
    """Log density (M,) of M rigs, found from unknowns (M, 67); its bones' volume element."""
    value = torch.func.vmap(cost, (0, 0, 0, 0, 0, None, None, None))
    slope = torch.func.vmap(torch.func.grad(cost), (0, 0, 0, 0, 0, None, None, None))
    curvature = torch.func.vmap(torch.func.hessian(cost), (0, 0, 0, 0, 0, None, None, None))
    unknowns, fixed = start, (R, t, variance, start[:, :51].view(-1, 17, 3), seen, data, tail)
    for _ in range(STEPS):
        eigenvalue, basis = torch.linalg.eigh(curvature(unknowns, *fixed))
        gradient = (basis.mT @ slope(unknowns, *fixed)[..., None]).squeeze(-1)
        step = (basis @ (gradient / eigenvalue.abs().clamp_min(1e-8))[..., None]).squeeze(-1)
        trials = torch.stack([unknowns - 4.0**-k * step for k in range(6)])
        costs = torch.stack([value(trial, *fixed) for trial in trials])
        unknowns = trials.gather(0, costs.argmin(0)[None, :, None].expand(1, *step.shape))[0]
    assert float(slope(unknowns, *fixed).norm(dim=-1).max()) < 1e-2
    joints = unknowns[:, :51].view(-1, 17, 3)
    size = joints.norm(dim=-1)  # of joints without a bone, the root: the place counts as its size
    size[:, BODY.child] = bone_lengths(joints)
    bones = -3 * (size.log() * seen).sum(-1)
    laplace = -0.5 * torch.logdet(curvature(unknowns, *fixed))
    person = torch.einsum("mvab,mb->mva", R, joints.mean(1)) + t
    cameras = -3 * person[:, 1:].norm(dim=-1).log().sum(-1)
    noise = -0.5 * (PRIOR_COUNT * (variance.log() + 1 / variance) + floor / variance)
    return bones + laplace + cameras + noise - value(unknowns, *fixed), bones


def heaviest(views, seed):
    """The solver's log density of the heaviest samples of a rig, and what `naive` needs for it."""
    observations, cameras, joints = observed(1, views, 1, seed)
    starts = starts_near(cameras, joints, 3.0)
    solution = rig_posterior(observations, starts, BODY, PosteriorConfig(), worth=1.0)
    rows = solution.posterior.log_weights[:, 0].topk(HEAVIEST).indices
    R, t = solution.posterior.R[rows], solution.posterior.t[rows]
    log_scale, owner = solution.log_scale.T[rows], solution.owner.T[rows]
    evidence = solution.evidence
    density, joints = log_target(exact(R, t), evidence, log_scale, owner)
    lengths = bone_lengths(joints[:, 0, 0]).log()
    start = torch.cat([joints[:, 0, 0].flatten(1), lengths], dim=1)
    data = [value[0, 0] for value in evidence.observations[:3]]
    seen = (data[2] > 0).any(0)
    variance = evidence.scale2 * (2 * log_scale[:, 0]).exp()
    tail = evidence.best.errors.tail[0]
    floor = MIN_SCALE2 * evidence.best.freedom[0]  # energy of the noise's least scale
    return density[:, 0], (R[:, 0], t[:, 0], variance, start, seen, data, tail, floor)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_density_is_the_joint_density_with_joints_and_bones_integrated_out(views):
    for seed in range(2):
        density, arguments = heaviest(views, seed)
        expected, bones = naive(*arguments)
        # Standard deviation of the difference in nats, measured over seeds 0 to 7: of two views
        # 0.22 to 0.56, of three 0.42 to 0.69, of four 0.24 to 0.45.
        assert float((density - expected).std()) < 0.75
        # Control: without the bones' volume element 1.3 to 3.1.
        assert float((density - (expected - bones)).std()) > 1.1
    # Control: with every covariance doubled 1.0 to 3.6.
    *fixed, (xy, information, inlier), tail, floor = arguments
    wrong, _ = naive(*fixed, (xy, 0.5 * information, inlier), tail, floor)
    assert float((density - wrong).std()) > 0.9
