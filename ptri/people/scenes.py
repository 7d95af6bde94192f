"""Generated scenes: moving people before rigs of cameras, as a 2D detector would see them.

Sample i of a batch depends on (seed, step, i) only: it is the same on any rank, in any worker and
beside any other samples. Ranks therefore ask for their share with ``first``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptri.config import Config, GeneratedConfig
from ptri.errors import UserError
from ptri.fields import build
from ptri.geometry.cameras import to_reference
from ptri.people.bodies import sample_clips
from ptri.people.detections import simulate_detections
from ptri.people.draws import Draws
from ptri.people.error_model import ErrorModel
from ptri.people.mocap import load_mocap, sample_mocap
from ptri.people.motions import KINDS
from ptri.people.rigs import Rig, family_indices, in_order, sample_rigs
from ptri.structures import Cameras, Keypoints

Split = Literal["train", "held_out", "pool"]
_STREAM = {"train": 0, "held_out": 1, "views": 2, "pool": 3}  # keeps random streams apart


class SceneNumbers(NamedTuple):
    """What scenes are like in training; tests ask for others."""

    fps: float = 10.0  # frames per second of a clip
    motions: tuple[str, ...] = KINDS
    area: float = 1000.0  # mm, people stand within this distance of the rig's middle
    bone_spread: float = 0.05  # relative, bones beyond the body statistics
    max_truncated: float = 0.2  # largest share of joints outside an image


USUAL = SceneNumbers()


class Scene(NamedTuple):
    """A clip before one static rig; every field gains a leading B in a batch."""

    keypoints: Keypoints  # (T, V, J, ...) px of the image that K belongs to
    K: Tensor  # (T, V, 3, 3) px
    cameras: Cameras  # truth, (V, ...), reference frame
    joints3d: Tensor  # (T, J, 3) mm, reference-camera frame
    family: Tensor  # () int64 index into ptri.people.rigs.FAMILY_NAMES


def check(config: GeneratedConfig) -> None:
    """Checks what the single fields cannot.

    Raises:
        UserError: unknown or overlapping families, an empty range of views.
    """
    family_indices(config.families)
    if config.held_out_families:
        family_indices(config.held_out_families, "generated.held_out_families")
    both = sorted(set(config.families) & set(config.held_out_families))
    if both:
        raise UserError(
            f"generated.held_out_families: {', '.join(both)} is also in generated.families; "
            "a family held out must not be trained on"
        )
    if config.min_views > config.max_views:
        raise UserError(
            f"generated.max_views: {config.max_views} is below generated.min_views "
            f"({config.min_views})"
        )


def draw_num_views(config: Config, seed: int, step: int) -> int:
    """The number of views of a batch, from generated.min_views to generated.max_views."""
    rng = np.random.default_rng([seed, step, _STREAM["views"]])
    low, high = config.generated.min_views, config.generated.max_views
    return int(rng.integers(low, high, endpoint=True))


def errors_of(options: GeneratedConfig, step: int = 0) -> ErrorModel:
    """The errors of a step's detections: ``errors``, changed by one of ``more_errors`` in turn.

    Raises:
        UserError: they set what is no setting, or to an impossible value.
    """
    turn = step % (1 + len(options.more_errors))
    more = options.more_errors[turn - 1] if turn else {}
    return build(ErrorModel, {**options.errors, **more})


def generate_batch(
    config: Config,
    seed: int,
    step: int,
    batch_size: int,
    num_views: int,
    num_frames: int = 1,
    first: int = 0,
    split: Split = "train",
    exact: bool = False,
    numbers: SceneNumbers = USUAL,
) -> Scene:
    """Generates samples ``first`` to ``first + batch_size - 1`` of a step's batch.

    Args:
        config: its section `generated` decides everything not given here.
        seed, step: of the run; sample i depends on (seed, step, i, split) only.
        num_views: V, at least 1; `draw_num_views` draws one per batch.
        num_frames: T frames at ``numbers.fps``.
        split: "train" draws from generated.families (and the training trials of the motion
            capture), "held_out" from generated.held_out_families (and the held-out trials); "pool"
            as "train", other scenes.
        exact: errors are what the covariances say and nothing else, for tests
            (`simulate_detections`).

    Returns:
        A `Scene` with leading B, float32.

    Raises:
        UserError: as `check`; no held-out family for that split; unreadable motion capture, or
            impossible numbers of errors.
    """
    options = config.generated
    check(options)
    errors = dataclasses.replace(errors_of(options, step), fps=numbers.fps)
    key = "held_out_families" if split == "held_out" else "families"
    families = family_indices(getattr(options, key), f"generated.{key}")
    seeds = [(seed, step, first + i, _STREAM[split]) for i in range(batch_size)]
    draws = Draws.from_seeds(seeds)
    joints = people(draws, options, num_frames, split, numbers)
    family = families[draws.choice(len(families))]
    rig = sample_rigs(draws, family, joints, num_views, numbers.max_truncated)
    return seen_by(draws, options, errors, joints, rig, family, exact)


def seen_by(
    draws: Draws,
    options: GeneratedConfig,
    errors: ErrorModel,
    joints: Tensor,
    rig: Rig,
    family: Tensor,
    exact: bool = False,
) -> Scene:
    """People (B, T, 17, 3) mm, world, before given rigs: the rest of `generate_batch`."""
    if options.ordered_views:
        rig = in_order(rig)
    simulated = simulate_detections(draws, errors, joints, rig.cameras, rig.size, exact)
    K = rig.cameras.K.unsqueeze(1).expand(-1, joints.shape[1], -1, -1, -1)
    R0, t0 = rig.cameras.R[:, 0], rig.cameras.t[:, 0]
    joints = joints @ R0.transpose(-1, -2).unsqueeze(1) + t0[:, None, None]
    cameras = to_reference(rig.cameras)
    cameras.R[:, 0], cameras.t[:, 0] = torch.eye(3), 0.0  # exactly
    return Scene(simulated.keypoints, K, cameras, joints, family)


def people(
    draws: Draws,
    options: GeneratedConfig,
    num_frames: int,
    split: Split,
    numbers: SceneNumbers = USUAL,
) -> Tensor:
    """Moving people (B, T, 17, 3) mm, world, within the area."""
    fps = numbers.fps
    clip = sample_clips(
        draws, num_frames, fps, numbers.motions, numbers.bone_spread, options.children
    )
    joints = clip.joints3d
    if options.mocap is not None and options.mocap_share > 0:
        trials = load_mocap(options.mocap, "held_out" if split == "held_out" else "train")
        captured = sample_mocap(draws, trials, num_frames, fps, clip.bone_lengths)
        chosen = draws.uniform(1, 1, 1) < options.mocap_share
        joints = torch.where(chosen, captured, joints)
    radius, angle = draws.uniform().sqrt() * numbers.area, draws.uniform(high=2 * math.pi)
    place = torch.stack([radius * angle.cos(), radius * angle.sin(), 0 * angle], dim=-1)
    return joints + place[:, None, None]
