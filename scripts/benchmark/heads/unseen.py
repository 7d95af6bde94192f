"""Heads on rig families that training never saw: scenes, solved rigs, scores.

People, rigs and detections are drawn as in training (`ptri.people.scenes`), but people from the
held-out split and rigs also from the exact layouts of `benchmark.rigs`. Every rig is solved
once; each head then fuses the same frames under that posterior, and under the true cameras.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.cache import make_key
from benchmark.rig.scores import pool
from benchmark.rigs import draw_rigs
from ptri import config as configuration
from ptri.checkpoint import read_tensors, write_tensors
from ptri.config import Config, replace
from ptri.errors import UserError
from ptri.evaluation import metrics
from ptri.evaluation.metrics import LEVELS
from ptri.geometry.triangulation import robust_triangulation
from ptri.models.pose_model import PoseModel
from ptri.people.draws import Draws
from ptri.people.scenes import Scene, errors_of, people, seen_by
from ptri.posterior.moments import posterior_from_cameras, resample
from ptri.rig import estimate
from ptri.rig.joints import NUM_SAMPLES, body_under
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Prediction, RigPosterior, cat, take
from ptri.training.solved_scenes import (
    Group,
    from_plain,
    join,
    to_plain,
    weights_digest,
)
from ptri.verdict.readings import Sides

UNSEEN = ("wall", "wall5", "ring_far")  # no rig of theirs, or like theirs, was trained on
TRAINING = "h36m_ring"
NUM_VIEWS = 4
VIEWS = (2, 3, 4, 8)
FRAMES = (1, 27)
SCORED_EVERY = 3  # frames of a clip: neighbours say the same
KIND = "ptri-solved"
FRAMES_AT_ONCE = 64
ROOT = H36M17.root


class RigSet(NamedTuple):
    """Rigs of one family."""

    family: str
    num_frames: int = 1
    num_views: int = NUM_VIEWS
    of_views: int = NUM_VIEWS  # drawn: the first ``num_views`` of them are used

    @property
    def name(self) -> str:
        return f"{self.family}-T{self.num_frames}-V{self.num_views}of{self.of_views}"


class Head(NamedTuple):
    """A head with its weights."""

    name: str
    model: PoseModel  # whose `fuse` is evaluated
    source: str  # the file


class Solved(NamedTuple):
    """Scenes whose rigs are solved."""

    group: Group  # with samples of the rigs' posteriors
    sides: Sides  # how the solver read left and right


Scores = dict[str, np.ndarray]  # (B,) each, a value per rig


def make_rig_sets() -> list[RigSet]:
    """All sets of the tables; the rigs of different numbers of views are nested."""
    rig_sets = [RigSet(family, T) for T in FRAMES for family in (*UNSEEN, TRAINING)]
    return rig_sets + [RigSet(family, 1, V, max(VIEWS)) for V in VIEWS for family in UNSEEN]


def make_scenes(rig_set: RigSet, config: Config, seed: int, first: int, count: int) -> Scene:
    """Scenes ``first`` to ``first + count - 1`` of a set; scene i depends on (seed, family, i)."""
    options = config.generated
    family = zlib.crc32(rig_set.family.encode())
    draws = Draws.from_seeds([(seed, family, first + i, rig_set.num_frames) for i in range(count)])
    joints = people(draws, options, rig_set.num_frames, "held_out")
    rig = draw_rigs(rig_set.family, draws, joints, rig_set.of_views)
    # Nested views are any of the rig's, not neighbours.
    options = replace(config, generated__ordered_views=rig_set.of_views == NUM_VIEWS).generated
    scene = seen_by(draws, options, errors_of(options), joints, rig, torch.full((count,), -1))
    keypoints, K = take((scene.keypoints, scene.K), np.s_[:, :, : rig_set.num_views])
    cameras = take(scene.cameras, np.s_[:, : rig_set.num_views])
    return scene._replace(keypoints=keypoints, K=K, cameras=cameras)


@torch.no_grad()
def solve(
    rig_set: RigSet, count: int, model: PoseModel, config: Config, seed: int, folder: Path
) -> Solved:
    """The rigs of a set with samples of their posteriors, from the folder if it holds them."""
    path = folder / f"{rig_set.name}.pt"
    key = _key(rig_set, count, model, config, seed)
    if path.is_file():
        content = read_tensors(path, KIND)
        if content["key"] == key:
            return Solved(from_plain(content["group"]), Sides(**content["sides"]))
    size = max(FRAMES_AT_ONCE // rig_set.num_frames, 1)
    groups, sides = [], []
    for first in range(0, count, size):
        scene = make_scenes(rig_set, config, seed, first, min(size, count - first))
        solution = estimate.solve(model, scene.keypoints, scene.K, config.posterior, seed)
        R, t, *_ = resample(solution.posterior, NUM_SAMPLES)
        groups.append(Group(scene, R.float(), t.float()))
        sides.append(solution.sides)
    solved = Solved(join(groups), cat(sides))
    plain = {"group": to_plain(solved.group), "sides": solved.sides._asdict()}
    write_tensors(path, KIND, {"key": key, **plain})
    return solved


def _key(rig_set: RigSet, count: int, model: PoseModel, config: Config, seed: int) -> str:
    tree = configuration.to_dict(config)
    parts = (rig_set, count, seed, tree["generated"], tree["posterior"], NUM_SAMPLES)
    parts = (*parts, model.detector, weights_digest(model.lifter))
    return make_key(parts, filter(None, [config.generated.mocap]))


def score(heads: list[Head], rig_set: RigSet, solved: Solved) -> Iterator[tuple[str, Scores]]:
    """Every head's scores of a set, and those of robust triangulation with the true cameras.

    Yields:
        ``mpjpe``, ``calibrated``: root-relative, mm, no alignment, with the rig's posterior and
        with the true cameras; ``scaled``, ``calibrated_scaled``: the same after each frame's best
        scale; ``coverage50`` and so on; ``answered``: ``mpjpe`` of the joints that triangulation
        answers. Of "triangulation": ``calibrated`` and ``answered``, which are equal.
    """
    (scene, R, t), sides = solved
    if rig_set.num_frames > 1:
        moving = (scene.keypoints, scene.K, scene.joints3d, sides)
        keypoints, K, joints, sides = take(moving, np.s_[:, ::SCORED_EVERY])
        scene = scene._replace(keypoints=keypoints, K=K, joints3d=joints)
    solved = Solved(Group(scene, R, t), sides)
    truth = scene.joints3d
    plain, _ = robust_triangulation(scene.keypoints, Cameras(scene.K, *scene.cameras[1:]))
    plain = plain.joints3d.to(truth)
    answered = torch.where(torch.isfinite(plain).all(-1, keepdim=True), truth, torch.nan)
    error = _per_rig(metrics.mpjpe(plain, answered))
    yield "triangulation", {"calibrated": error, "answered": error}
    for head in heads:
        fixed = getattr(head.model.fusion, "num_views", rig_set.num_views)
        if fixed != rig_set.num_views or (
            rig_set.of_views != NUM_VIEWS and not head.model.fusion.uses_cameras
        ):
            continue
        yield head.name, _head_scores(head.model, solved, answered)


@torch.no_grad()
def _head_scores(model: PoseModel, solved: Solved, answered: Tensor) -> Scores:
    B, T = solved.group.scene.K.shape[:2]
    size = max(FRAMES_AT_ONCE // T, 1)
    parts = []
    for first in range(0, B, size):
        part = slice(first, first + size)
        few, truth, sides = take((solved.group.scene, answered, solved.sides), part)
        R, t = solved.group.R[:, part], solved.group.t[:, part]
        level = torch.full(R.shape[:2], -float(np.log(len(R))))
        posterior = RigPosterior(R, t, level, torch.ones(len(few.K)), t.new_zeros(*t.shape[:2], 0))
        unknown = body_under(model, few.keypoints, few.K, posterior, sides)
        values = {"mpjpe": metrics.mpjpe(unknown.joints3d, few.joints3d)}
        values["answered"] = metrics.mpjpe(unknown.joints3d, truth)
        values["scaled"] = metrics.n_mpjpe(unknown.joints3d, few.joints3d)
        values |= _coverage(unknown, few.joints3d, "coverage")
        if model.fusion.uses_cameras:
            fused = body_under(model, few.keypoints, few.K, posterior_from_cameras(few.cameras))
            values["calibrated"] = metrics.mpjpe(fused.joints3d, few.joints3d)
            values["calibrated_scaled"] = metrics.n_mpjpe(fused.joints3d, few.joints3d)
            values |= _coverage(fused, few.joints3d, "calibrated_coverage")
        parts.append({name: _per_rig(value) for name, value in values.items()})
    return pool(parts)


def _coverage(prediction: Prediction, truth: Tensor, name: str) -> dict[str, Tensor]:
    share = metrics.joint_coverage(prediction.joints3d, prediction.covariance, truth)
    return {f"{name}{100 * level:.0f}": share[..., i] for i, level in enumerate(LEVELS)}


def _per_rig(value: Tensor) -> np.ndarray:
    """(B, T) to the mean over the frames that count, (B,); NaN where none does."""
    return value.double().nanmean(1).numpy()


def check_families(config: Config) -> None:
    """Checks that no family called unseen was trained on.

    Raises:
        UserError: one was.
    """
    both = sorted(set(UNSEEN) & set(config.generated.families))
    if both:
        raise UserError(
            f"generated.families: {', '.join(both)} is evaluated as a family that training never "
            "saw; leave it out of generated.families"
        )
