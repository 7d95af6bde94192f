"""Generated scenes of a step of 3D training, and which parts of the model the steps train."""

from __future__ import annotations

import math
from typing import NamedTuple

from ptri.config import Config
from ptri.errors import UserError
from ptri.people.scenes import Scene, draw_num_views, generate_batch
from ptri.posterior.sampling import posterior_from_cameras
from ptri.structures import RigPosterior
from ptri.training.solved_scenes import Pool, draw


class Batch(NamedTuple):
    """Generated scenes, and how this step uses them (equal on all ranks)."""

    scene: Scene
    lift_only: bool = False
    calibrated: bool = False
    posterior: RigPosterior | None = None  # solved before, for the head alone


def head_alone(config: Config) -> bool:
    """Whether no step of a run on generated keypoints trains or needs the lifter."""
    blind = config.model.head == "fixed_views_mlp"
    return config.data.kind == "generated" and (blind or config.generated.pool is not None)


def lifter_alone(config: Config) -> bool:
    """Whether no step of a run trains anything but the lifter."""
    return config.data.kind == "generated" and config.train.lifter_epochs >= config.train.epochs


def generated_batch(
    config: Config, epoch: int, step: int, rank: int, world: int, pool: Pool | None = None
) -> Batch:
    """This rank's share of a step's scenes.

    The first epochs train the lifter on many single frames. Then steps take turns: frames alone,
    frames alone with the true cameras, and pooled frames, so that the fusion learns from rigs
    that are uncertain, exact and in between. Scenes of a pool take the same turns.
    """
    if pool is not None:
        scene, posterior = draw(pool, config, step, rank, world)
        return Batch(scene, posterior=posterior)
    train, seed = config.train, config.run.seed
    num_views = draw_num_views(config, seed, step)
    lift_only = epoch < train.lifter_epochs
    turn = step % 3
    num_frames, size = 1, train.batch_size
    if lift_only:
        num_views, size = train.lifter_views, train.batch_size * train.lifter_batch
    elif turn == 2 and train.max_frames > 1:
        num_frames = 2 ** (1 + step // 3 % int(math.log2(train.max_frames)))
        size = max(train.batch_size // num_frames, 1)
    if size % world:
        raise UserError(
            f"train.batch_size: {train.batch_size} scenes, or {size} of {num_frames} frames, do "
            f"not share out to {world} processes; make it a multiple of train.max_frames times "
            "the number of processes"
        )
    share = size // world
    scene = generate_batch(
        config, seed, step, share, num_views, num_frames, first=rank * share, split="train"
    )
    # A head that looks at no cameras needs none solved.
    posterior = posterior_from_cameras(scene.cameras) if head_alone(config) else None
    return Batch(scene, lift_only, not lift_only and turn == 1, posterior)
