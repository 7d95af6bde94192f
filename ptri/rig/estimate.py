"""The one way from 2D keypoints and intrinsics to cameras and joints, in eight steps:

1 check the input, 2 choose the frames that say most, 3 lift each view, 4 read left and right anew
where a detector exchanged them, 5 gather starts, 6 the posterior, 7 the verdict, 8 the joints.

`ptri.rig.api.estimate_rig` is what users call: all steps, for one rig. `solve_cameras` takes one
rig through steps 2 to 7 and `with_joints` through 8, `solve` takes many rigs through 3 to 7: data
sets, recordings, streams, training and the benchmark call these.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ptri.config_sections import PosteriorConfig
from ptri.models.lifter import Lifted
from ptri.models.pose_model import PoseModel
from ptri.posterior.equations import USUAL_TAIL
from ptri.posterior.optima import Poses
from ptri.posterior.prior import PosePrior, Prior, no_poses, of_views
from ptri.posterior.sampling import RigSolution, rig_posterior
from ptri.posterior.widened import turned_apart
from ptri.rig.check import (
    RigInput,
    for_model,
)
from ptri.rig.detector import NUM_JOINTS, body_prior, observe
from ptri.rig.frames import MIN_JOINTS, choose_frames
from ptri.rig.left_out import with_unknown, without_misfits
from ptri.rig.persons import persons_of, shown, times_of
from ptri.rig.result import Solved
from ptri.rig.scale import HUMAN_BONES, Scale, rescale
from ptri.rig.starts import gather_starts, lift_and_read
from ptri.structures import (
    MANY_FRAMES,
    Keypoints,
    RigPosterior,
    Views,
    take,
    tree_map,
)
from ptri.system import one_thread
from ptri.verdict.judge import MIN_KEYPOINTS, judge
from ptri.verdict.lenses import lens_verdict, wrong_lenses
from ptri.verdict.readings import Sides, apply_sides
from ptri.verdict.verdict import Code, Verdict

SURE = 2.0  # deviations of K by which a focal length is wrong
ROUNDS = 3  # of doubting focal lengths and solving again
# What explains a view otherwise than by its focal length.
EXPLAINED = (Code.MISREAD, Code.SHIFTED, Code.CLOCK, Code.MOVED)


class Solution(NamedTuple):
    """B rigs, solved from T frames each."""

    rig: RigSolution  # the posterior, and what it was computed from
    verdicts: list[Verdict]  # B; empty where nothing was judged
    sides: Sides | None  # how left and right were read; None: as labelled

    @property
    def posterior(self) -> RigPosterior:
        return self.rig.posterior


@torch.no_grad()
def solve_cameras(
    model: PoseModel,
    given: RigInput,
    options: PosteriorConfig,
    seed: int = 0,
    max_frames: int = 50,
    scale: Scale = HUMAN_BONES,
    *,
    start: tuple[Views, Tensor] | None = None,
    times: Tensor | None = None,
    doubt: Verdict | None = None,
    poses: PosePrior | None = None,
) -> Solved:
    """The cameras of one rig from the frames that say most about it: steps 2 to 7.

    A view that saw next to nothing is left out, gets cameras drawn from the prior, and the rig is
    rejected with its number.

    Args:
        model: in evaluation mode.
        max_frames: that the cameras are solved from, at most.
        scale: a length that fixes it; by default the lengths of human bones.
        start: cameras (1, V, ...) and joints (1, frames, 17, 3) to start from besides the lifted
            ones; ``given`` then holds just the frames to solve from.
        times: (T,) int64 the frames' places in time; None: one after the other.
        doubt: what speaks against the input (`doubt_input`); the rig is then rejected.
        poses: what is known of the cameras' poses, float64; None: nothing.
    """
    # 2 choose frames
    counts = torch.isfinite(given.keypoints.xy).all(-1).sum((0, 2)).tolist()  # V
    views = [view for view, count in enumerate(counts) if count >= MIN_KEYPOINTS]
    partial = len(views) < len(counts)
    inside = take(given, (slice(None), views))
    frames = choose_frames(inside, max_frames) if len(views) >= 2 else []
    posterior, sides = None, None
    noise2, tail = given.K.new_tensor([1.0, USUAL_TAIL])
    verdict = Verdict(Code.FEW_FRAMES, limit=MIN_JOINTS)
    if frames:
        chosen = take(inside, frames)
        keypoints = Keypoints(*(value[None] for value in for_model(chosen)))
        times = times_of(given.persons, len(given.K)) if times is None else times
        times = times[frames].to(given.K.device)
        start = None if partial or start is None else (start[0], start[1][:, frames])
        # 3 to 7
        persons = shown(chosen.persons, len(given.labels))
        extra = {"start": start, "times": times, "persons": persons}
        problem = model, keypoints, chosen.K[None], options, seed
        known = no_poses(given.K) if poses is None else of_views(poses, views)
        solution, wrong = _with_lenses(problem, chosen, extra, known)
        posterior = tree_map(Tensor.double, solution.posterior)
        if inside.centre is not None:
            posterior = turned_apart(posterior, inside.centre[:1], seed)
        noise2, tail = (value[0].double() for value in keypoint_noise(solution.rig))
        verdict, sides = solution.verdicts[0], solution.sides
        verdict = lens_verdict(verdict, wrong, solution.posterior).of_views(views)
    if doubt is not None:
        verdict = doubt._replace(figures=verdict.figures)
    if partial:
        view, sides = counts.index(min(counts)), None
        rest = verdict if len(views) >= 2 else None
        verdict = Verdict(
            Code.FEW_KEYPOINTS, view, value=counts[view], limit=MIN_KEYPOINTS, rest=rest
        )
    if partial or not frames:
        posterior = with_unknown(posterior, views, given, options.num_samples, seed)
    posterior, scale = rescale(posterior, inside, views, frames, scale)
    evidence = solution.rig.evidence if frames else None
    persons = persons_of(given.labels, evidence, scale.factor)
    rig = solution.rig if frames and not partial else None
    return Solved(posterior, verdict, frames, sides, noise2, tail, scale, persons, rig)


def _with_lenses(
    problem: tuple, given: RigInput, extra: dict, poses: PosePrior
) -> tuple[Solution, list[int]]:
    """The solution of a rig, and its views whose focal lengths are not those of K.

    Where there are any, it is solved again with these unknown.
    """
    covariance = given.focal_covariance
    prior = Prior(torch.linalg.inv(covariance), poses)
    solution = solve(*problem, **extra, prior=prior.if_any())
    explained = solution.verdicts[0].code in EXPLAINED[:-1]  # a wrong lens seems to move
    if not len(covariance) or len(given.K) < MANY_FRAMES or explained:
        return solution, []
    first, views = solution, []
    for _ in range(ROUNDS):
        told = take(solution.rig.modes.told, (0, 0))
        found, doubt = wrong_lenses(told, covariance)
        if found == views:
            break
        views = found
        doubt = covariance if doubt is None else doubt
        prior = prior._replace(focal=torch.linalg.inv(doubt))
        solution = solve(*problem, **extra, prior=prior)
    if not views:
        return first, []
    # An explanation that ends within what K says of itself is none.
    weights, log_focal = solution.posterior.log_weights[:, 0].exp(), solution.posterior.log_focal
    off = (weights @ log_focal[:, 0]).abs().double() / covariance.diagonal().sqrt()
    if solution.verdicts[0].code in EXPLAINED or float(off[views].max()) < SURE:
        return first, []
    return solution, views


def keypoint_noise(rig: RigSolution) -> tuple[Tensor, Tensor]:
    """Of B rigs the squared factor (B,) on the stated deviations of keypoints, and their tails.

    Errors that go together leave smaller residuals than they are, because the joints follow them:
    there what is stated stands, unless the residuals show more.
    """
    together = rig.modes.together
    together = torch.maximum(together.frames, together.joints)[:: rig.modes.mean.shape[1]]
    scale2 = rig.evidence.scale2
    return torch.lerp(scale2, scale2.clamp_min(1.0), together), rig.evidence.best.errors.tail


@one_thread()
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def solve(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    options: PosteriorConfig,
    seed: int = 0,
    *,
    thorough: bool = True,
    lifted: Lifted | None = None,
    start: tuple[Views, Tensor] | None = None,
    times: Tensor | None = None,
    prior: Prior | None = None,
    persons: Tensor | None = None,
) -> Solution:
    """The posterior of each rig's cameras from the keypoints of its frames, and its verdict.

    Args:
        keypoints: (B, T, V, J, ...) px. The first 17 joints are Human3.6M's; further ones take
            part in the geometry.
        K: (B, T, V, 3, 3) px of the images the keypoints are in.
        seed: of the Monte-Carlo noise.
        thorough: False: few starts, left and right as labelled, no verdict; for training steps.
        lifted: skeletons of the views, where they are known already (not where thorough).
        start: cameras (B, V, ...) and joints (B, T, 17, 3) mm to start from besides the lifted
            ones.
        times: (T,) numbers of the frames, in which shifts in time are told; default 0 to T - 1.
        prior: of the cameras of every rig; None: K is exact, and nothing else known.
        persons: (B, T, P) 1 for the person that a frame shows, 0 for others; None: one person.

    Returns:
        Samples (M, B, V, ...) in mm, view 0's frame; float64. Their log-weights are differentiable
        in the keypoints, covariances and confidences.
    """
    detector = model.detector
    sides = None
    if thorough:
        # 3 lift each view, and 4 read left and right
        lifted, sides = lift_and_read(model, keypoints, K, options, persons)
        keypoints = keypoints if sides is None else apply_sides(keypoints, sides)
    elif lifted is None:
        with torch.no_grad():
            lifted = model.lift(keypoints, K)

    # 5 start
    K = K.double()
    observations = observe(keypoints, K, detector, persons)
    body = body_prior(options, detector, observations)
    problem = keypoints, K, observations, lifted, body, seed, thorough
    starts = gather_starts(*problem, start, prior)
    unseen = observations.inlier[..., :NUM_JOINTS].detach() <= 0
    sigma = lifted.sigma.detach().double().masked_fill(unseen, torch.inf)
    poses = Poses(lifted.joints3d.detach().double(), sigma)

    # 6 posterior
    worth = detector.frame_worth if thorough else 1.0
    rig = rig_posterior(observations, starts, body, options, seed, poses, worth, prior)
    if not thorough:
        return Solution(rig, [], sides)

    # 7 verdict
    verdicts = judge(rig, options.max_rotation_std_deg, times, poses)
    rig = without_misfits(rig, verdicts, options, seed, worth, poses)
    return Solution(rig, verdicts, sides)
