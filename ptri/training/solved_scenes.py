"""A pool of generated scenes whose rigs are solved once, to train heads on.

Solving a rig costs a hundred times what a head does with it, and is the same for every head. The
pool is a file: scenes, a few samples of each rig's posterior, and the settings it was made with,
which must be those of the run that uses it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ptri import config as configuration
from ptri.checkpoint import read_tensors, write_tensors
from ptri.config import Config
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.models.weights import detector_to_meta
from ptri.people.scenes import Scene, errors_of, generate_batch
from ptri.posterior.moments import posterior_from_cameras, resample
from ptri.rig.estimate import solve
from ptri.structures import Cameras, Keypoints, RigPosterior, cat, take, to_device

KIND = "ptri-pool"
CHUNK = 64  # frames solved at once
SAMPLES = 16  # of each rig's posterior, of equal weight
POSTERIOR_SAMPLES = 128  # that they are resampled from
_STREAM = 3  # keeps the pool's random numbers apart from the training's
_FREE = ("pool", "more_pools", "errors")  # of the section generated: no influence on the content


class Group(NamedTuple):
    """Scenes of equal numbers of views and frames, with samples of their rigs' posteriors."""

    scene: Scene  # (B, T, V, ...)
    R: Tensor  # (M, B, V, 3, 3)
    t: Tensor  # (M, B, V, 3) mm


class Pool(NamedTuple):
    """Groups of single frames, and of clips."""

    frames: list[Group]
    clips: list[Group]


def open_pool(model: PoseModel, config: Config) -> Pool:
    """Reads the pool that ``generated.pool`` names, or makes it; and ``generated.more_pools``.

    Args:
        model: its lifter and posterior solve the rigs.

    Raises:
        UserError: a file is corrupt, or was made with another lifter, the first also with other
            settings; a further one is missing.
    """
    path, settings = Path(str(config.generated.pool)), _settings(model, config)
    if path.exists():
        content = read_tensors(path, KIND)
        _check_settings(path, content["settings"], settings)
    else:
        content = {"settings": settings, "groups": _solve(model, config)}
        write_tensors(path, KIND, content)
    plain = list(content["groups"])
    for more in map(Path, config.generated.more_pools):
        if not more.exists():
            raise UserError(
                f"generated.more_pools: no such file: {more}; a run with generated.pool={more} "
                "makes it"
            )
        content = read_tensors(more, KIND)
        if content["settings"]["lifter"] != settings["lifter"]:
            raise UserError(
                f"{more}: a pool solved with another lifter; make it again with init.checkpoint_3d "
                "of this run, or leave it out of generated.more_pools"
            )
        plain += content["groups"]
    groups = [from_plain(group) for group in plain]
    frames = [group for group in groups if group.scene.K.shape[1] == 1]
    return Pool(frames, [group for group in groups if group.scene.K.shape[1] > 1])


def _check_settings(path: Path, made: dict[str, Any], asked: dict[str, Any]) -> None:
    """Settings that are asked for and differ; those of earlier versions are not asked for."""
    differences = [
        f"{key}: {made.get(key)!r} (now {asked[key]!r})"
        for key in sorted(asked)
        if made.get(key) != asked[key]
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{path}: a pool made with other settings: {'; '.join(differences[:3])}{more}; name "
            "another file in generated.pool, which is then made, or use the pool's settings"
        )


def draw(
    pool: Pool, config: Config, step: int, rank: int, world: int
) -> tuple[Scene, RigPosterior]:
    """This rank's share of a step's scenes, and their posterior.

    Steps take turns: frames alone, frames under the true cameras, clips under one posterior.

    Returns:
        The scenes, and ``train.fusion_samples`` samples of their rigs (of true ones: one).
    """
    rng = np.random.default_rng([config.run.seed, step, _STREAM])
    turn = step % 3
    groups = pool.clips if turn == 2 and pool.clips else pool.frames
    sizes = np.array([len(group.scene.K) for group in groups], float)
    group = groups[rng.choice(len(groups), p=sizes / sizes.sum())]
    size = max(config.train.batch_size // group.scene.K.shape[1], 1)
    size = max(size // world * world, world)
    chosen = rng.choice(len(group.scene.K), size, replace=size > len(group.scene.K))
    rows = torch.from_numpy(chosen)[rank * size // world : (rank + 1) * size // world]
    scene = take(group.scene, rows)
    if turn == 1:
        return scene, posterior_from_cameras(scene.cameras)
    count = min(config.train.fusion_samples or config.model.fusion_samples, len(group.R))
    samples = torch.from_numpy(rng.choice(len(group.R), count, replace=False))
    R, t = group.R[samples][:, rows], group.t[samples][:, rows]
    weights = torch.full((count, len(rows)), -math.log(count))
    ess = torch.full((len(rows),), float(count))
    return scene, RigPosterior(R, t, weights, ess, t.new_zeros(count, len(rows), 0))


def _settings(model: PoseModel, config: Config) -> dict[str, Any]:
    """Everything that the content depends on but the code, by dotted names."""
    tree = configuration.to_dict(config)
    kept = {f"generated.{k}": v for k, v in tree["generated"].items() if k not in _FREE}
    kept |= {f"generated.{k}": v for k, v in vars(errors_of(config.generated)).items()}
    kept |= {f"posterior.{k}": v for k, v in tree["posterior"].items()}
    kept |= {"run.seed": config.run.seed, "train.max_frames": config.train.max_frames}
    mocap = config.generated.mocap
    if mocap is not None and Path(mocap).is_file():
        kept["generated.mocap"] = _digest(Path(mocap).read_bytes())
    kept["detector"] = detector_to_meta(model.detector)
    kept["lifter"] = weights_digest(model.lifter)
    return kept


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def weights_digest(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that stand for a module's weights."""
    state = module.state_dict()
    return _digest(b"".join(state[name].cpu().numpy().tobytes() for name in sorted(state)))


def _plan(config: Config) -> Iterator[tuple[int, int]]:
    """Numbers of views and frames of each chunk."""
    options = config.generated
    span = options.max_views - options.min_views + 1
    lengths = [2**k for k in range(1, int(math.log2(config.train.max_frames)) + 1)]
    for number in range(-(-options.pool_scenes // CHUNK)):
        yield options.min_views + number % span, 1
        clip, rest = divmod(number, options.pool_clips)
        if lengths and rest == options.pool_clips - 1:
            yield options.min_views + clip % span, lengths[clip // span % len(lengths)]


@torch.no_grad()
def _solve(model: PoseModel, config: Config) -> list[dict[str, Any]]:
    """Generates and solves every chunk; those of equal shape are joined."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    options = dataclasses.replace(config.posterior, num_samples=POSTERIOR_SAMPLES)
    by_shape: dict[tuple[int, int], list[Group]] = {}
    plan = list(_plan(config))
    for step, (views, frames) in enumerate(tqdm(plan, desc="pool", unit="chunk", disable=None)):
        size = max(CHUNK // frames, 1)
        scene = generate_batch(config, config.run.seed, step, size, views, frames, split="pool")
        keypoints, K = to_device((scene.keypoints, scene.K), device)
        solution = solve(model, keypoints, K, options, step)
        R, t, *_ = resample(solution.posterior, SAMPLES)
        group = Group(scene, R.float().cpu(), t.float().cpu())
        by_shape.setdefault((views, frames), []).append(group)
    model.train(was_training)
    return [to_plain(join(groups)) for groups in by_shape.values()]


def join(parts: list[Group]) -> Group:
    """Groups of equal shape as one."""
    scenes, R, t = zip(*parts)
    return Group(cat(scenes), cat(R, dim=1), cat(t, dim=1))


def to_plain(group: Group) -> dict[str, Any]:
    """Dicts of tensors, which load with ``weights_only=True``."""
    scene = group.scene
    parts = {name: dict(getattr(scene, name)._asdict()) for name in ("keypoints", "cameras")}
    return {**scene._asdict(), **parts, "K": scene.K.contiguous(), "R": group.R, "t": group.t}


def from_plain(plain: dict[str, Any]) -> Group:
    """What `to_plain` made of a group."""
    parts = {"keypoints": Keypoints(**plain["keypoints"]), "cameras": Cameras(**plain["cameras"])}
    scene = Scene(**{name: parts.get(name, plain[name]) for name in Scene._fields})
    return Group(scene, plain["R"], plain["t"])
