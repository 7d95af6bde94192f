"""Validation and pictures of 3D training, by the metrics of the evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ptri.config import Config
from ptri.data.h36m import H36M
from ptri.data.loaders import EvaluationLoader
from ptri.evaluation import draw, metrics
from ptri.evaluation.pictures import spread
from ptri.geometry.cameras import transform
from ptri.models.pose_model import PoseModel
from ptri.models.sizes import sizes_of
from ptri.people.scenes import Scene, generate_batch
from ptri.posterior.sampling import posterior_from_cameras, posterior_mean
from ptri.rig.estimate import solve
from ptri.rig.joints import fuse_body
from ptri.structures import Cameras, Keypoints, Prediction, RigPosterior, to_device
from ptri.training.losses3d import detect

NUM_SCENES = 64  # generated scenes of held-out families, of one frame
NUM_CLIPS, CLIP_FRAMES = 16, 8  # and of more
NUM_VIEWS = 4
NUM_LIFTED = 256  # scenes where the lifter alone is validated
SCENES_AT_ONCE = 8


def validate_images(model: PoseModel, data: H36M, config: Config) -> dict[str, float]:
    """Errors over every frame of a data set, each solved alone."""
    device = next(model.parameters()).device
    collected: dict[str, list[Tensor]] = {}
    for batch in EvaluationLoader(data, config.evaluate.batch_size, config.data.workers):
        batch = to_device(batch, device)
        K, joints3d = batch.cameras.K[:, None], batch.joints3d[:, None]  # (B, 1, ...): one frame
        _, keypoints, features = detect(model, batch.images)
        values = rig_errors(model, keypoints, K, features, joints3d, batch.cameras, config)
        values["x2d/l2"] = metrics.joint_l2(
            keypoints.xy.flatten(1, 3), batch.joints2d.flatten(1, 2), batch.visible.flatten(1, 2)
        )
        _collect(collected, values)
    return _summary(collected)


def validate_generated(model: PoseModel, config: Config) -> dict[str, float]:
    """Errors on generated scenes of held-out rigs, frames alone and (``pooled/``) clips."""
    device = next(model.parameters()).device
    collected: dict[str, list[Tensor]] = {}
    for prefix, num_frames, count in (("", 1, NUM_SCENES), ("pooled/", CLIP_FRAMES, NUM_CLIPS)):
        for step in range(count // SCENES_AT_ONCE):
            scene = to_device(held_out_scenes(config, num_frames, step), device)
            values = rig_errors(
                model, scene.keypoints, scene.K, None, scene.joints3d, scene.cameras, config
            )
            values["lift"] = _lift_errors(model, scene)
            _collect(collected, {prefix + name: value for name, value in values.items()})
    return _summary(collected)


def validate_lifter(model: PoseModel, config: Config) -> dict[str, float]:
    """Mean and median over poses of the lifted skeletons' root-relative error, mm."""
    device = next(model.parameters()).device
    steps = range(NUM_LIFTED // SCENES_AT_ONCE)
    scenes = (to_device(held_out_scenes(config, 1, step), device) for step in steps)
    error = torch.cat([_lift_errors(model, scene).flatten().cpu() for scene in scenes])
    return {"lift": float(error.mean()), "lift_median": float(error.median())}


def rig_errors(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    features: Tensor | None,
    joints3d: Tensor,
    cameras: Cameras,
    config: Config,
) -> dict[str, Tensor]:
    """Errors of joints and rotations, cameras unknown, and of joints under the true cameras.

    Args:
        keypoints, K, features: (B, T, V, ...), as `PoseModel.fuse` takes them.
        joints3d: (B, T, J, 3) mm, reference frame. cameras: (B, V, ...), the true ones.
    """
    posterior, prediction = estimate(model, keypoints, K, features, config)
    calibrated = fuse_body(model, keypoints, K, posterior_from_cameras(cameras), features=features)
    R, _ = posterior_mean(posterior)
    stated = prediction.joints3d, prediction.covariance, joints3d
    return {
        "mpjpe": metrics.mpjpe(prediction.joints3d, joints3d),
        "n_mpjpe": metrics.n_mpjpe(prediction.joints3d, joints3d),
        "mpjpe_calibrated": metrics.mpjpe(calibrated.joints3d, joints3d),
        "rotation_error_deg": metrics.rotation_error_deg(R.float(), cameras.R),
        "coverage_90": metrics.joint_coverage(*stated)[..., 1],
    }


def estimate(
    model: PoseModel, keypoints: Keypoints, K: Tensor, features: Tensor | None, config: Config
) -> tuple[RigPosterior, Prediction]:
    """Cameras and joints of B rigs, from keypoints (B, T, V, J, ...)."""
    solution = solve(model, keypoints, K, config.posterior, config.run.seed)
    posterior = solution.posterior
    return posterior, fuse_body(model, keypoints, K, posterior, solution.sides, features)


def held_out_scenes(config: Config, num_frames: int, step: int) -> Scene:
    """Scenes of the families that training leaves out; without any, further ones of the others."""
    split = "held_out" if config.generated.held_out_families else "train"
    fixed = config.model.head == "fixed_views_mlp"
    views = sizes_of(config.model).fixed_views if fixed else NUM_VIEWS
    return generate_batch(
        config, config.run.seed + 1, step, SCENES_AT_ONCE, views, num_frames, split=split
    )


def draw_generated(model: PoseModel, config: Config) -> dict[str, np.ndarray]:
    """Skeletons of held-out scenes, estimate and truth."""
    scene = to_device(held_out_scenes(config, 1, 0), next(model.parameters()).device)
    _, prediction = estimate(model, scene.keypoints, scene.K, None, config)
    count = min(config.evaluate.pictures, len(scene.K))
    return {f"skeleton/{b}": _skeletons(prediction, b, scene.joints3d[b, 0]) for b in range(count)}


def draw_images(model: PoseModel, data: H36M, config: Config) -> dict[str, np.ndarray]:
    """Skeletons and heatmaps of frames spread evenly over a data set."""
    device = next(model.parameters()).device
    pictures = {}
    for number, index in enumerate(spread(len(data), config.evaluate.pictures)):
        sample = to_device(data[index], device)
        detection, keypoints, features = detect(model, sample.images[None])
        _, prediction = estimate(model, keypoints, sample.cameras.K[None, None], features, config)
        pictures[f"skeleton/{number}"] = _skeletons(prediction, 0, sample.joints3d)
        pictures[f"heatmaps/{number}"] = draw.heatmap_picture(  # of the first view
            sample.images[0], detection.logits[0], sample.joints2d[0]
        )
    return pictures


def _skeletons(prediction: Prediction, b: int, truth: Tensor) -> np.ndarray:
    joints, covariance = (value[b, 0].float().cpu().numpy() for value in prediction)
    return draw.skeleton_sides(joints, covariance, truth.cpu().numpy())


def _lift_errors(model: PoseModel, scene: Scene) -> Tensor:
    """MPJPE (B, T, V) mm of lifted skeletons."""
    R, t = scene.cameras.R[:, None], scene.cameras.t[:, None]
    lifted = model.lifter(scene.keypoints, scene.K)
    return metrics.mpjpe(lifted.relative, transform(scene.joints3d.unsqueeze(2), R, t))


def _collect(collected: dict[str, list[Tensor]], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        collected.setdefault(name, []).append(value.flatten().cpu())


def _summary(collected: dict[str, list[Tensor]]) -> dict[str, float]:
    """Means; of rotation errors the median and the share of failures."""
    result = {}
    for name, parts in collected.items():
        value = torch.cat(parts).double()
        if name.endswith("rotation_error_deg"):
            result[name + "_median"] = float(value.median())
            failed = name.replace("rotation_error_deg", "rotation_failures")
            result[failed] = float(metrics.failures(value).double().mean())
        else:
            result[name] = float(value.mean())
    return result
