"""A detector's own keypoints of known people as a pool to train the fusion on.

Errors that no setting of the error model imitates are in it. Each clip serves several times, seen
by other views: a subset of the rig's cameras is a rig, too. For `generated.more_pools`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from detector_errors.clips import Clips
from ptri.checkpoint import write_tensors
from ptri.config import PosteriorConfig
from ptri.geometry.cameras import to_reference, transform
from ptri.models.pose_model import PoseModel
from ptri.people.scenes import Scene
from ptri.posterior.moments import resample
from ptri.rig.estimate import solve
from ptri.structures import Cameras, cat, take
from ptri.training.solved_scenes import (
    CHUNK,
    KIND,
    POSTERIOR_SAMPLES,
    SAMPLES,
    Group,
    join,
    to_plain,
    weights_digest,
)

TIMES = {1: 12, 8: 6}  # frames of a scene: how many scenes each clip makes
LEAST_VIEWS, MOST_VIEWS = 2, 6


@torch.no_grad()
def write_pool(path: str | Path, clips: list[Clips], model: PoseModel, seed: int) -> int:
    """Solves the scenes of detected clips and writes them.

    Args:
        model: whose lifter solves them, with what is known of the detector.

    Returns:
        The number of scenes.
    """
    rng = np.random.default_rng(seed)
    options = PosteriorConfig(num_samples=POSTERIOR_SAMPLES)
    by_shape: dict[tuple[int, int], list[Group]] = {}
    jobs = [
        (part, length, LEAST_VIEWS + number % (min(V, MOST_VIEWS) - LEAST_VIEWS + 1))
        for part in clips
        for V in (part.inside.shape[2],)
        for length, times in TIMES.items()
        for number in range(times)
    ]
    for part, length, views in tqdm(jobs, desc="pool", disable=None):
        scenes = cat([_scene(part, row, length, views, rng) for row in range(len(part.joints))])
        size = max(CHUNK // length, 1)
        for first in range(0, len(scenes.K), size):
            scene = take(scenes, slice(first, first + size))
            posterior = solve(model, scene.keypoints, scene.K, options, seed).posterior
            R, t, *_ = resample(posterior, SAMPLES)
            group = Group(scene, R.float(), t.float())
            by_shape.setdefault((views, length), []).append(group)
    groups = [join(parts) for parts in by_shape.values()]
    settings = {"lifter": weights_digest(model.lifter)}
    write_tensors(path, KIND, {"settings": settings, "groups": [to_plain(g) for g in groups]})
    return sum(len(group.scene.K) for group in groups)


def _scene(clips: Clips, row: int, length: int, views: int, rng: np.random.Generator) -> Scene:
    """One clip's frames as some of its cameras see them, with a leading 1."""
    T, V = clips.inside.shape[1:3]
    first = int(rng.integers(T - length + 1))
    chosen = rng.permutation(V)[:views].tolist()
    keypoints = take(take(clips.keypoints, (row, slice(first, first + length))), np.s_[:, chosen])
    cameras = take(take(clips.cameras, row), chosen)
    joints = clips.joints[row, first : first + length]
    joints = transform(joints, cameras.R[0], cameras.t[0])
    relative = to_reference(Cameras(*(part[None] for part in cameras)))
    relative.R[:, 0], relative.t[:, 0] = torch.eye(3), 0.0  # exactly
    K = cameras.K.expand(1, length, -1, -1, -1)
    keypoints, joints = take((keypoints, joints), None)
    return Scene(keypoints, K, relative, joints, torch.full((1,), -1))
