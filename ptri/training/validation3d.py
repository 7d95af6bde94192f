"""Validation and pictures of 3D training, by the metrics of the evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ptri.config import Config
from ptri.data.loaders import EvaluationLoader
from ptri.data.multiview import MultiView
from ptri.evaluation import draw, metrics
from ptri.evaluation.pictures import spread
from ptri.geometry.cameras import transform
from ptri.models.pose_model import PoseModel
from ptri.models.sizes import sizes_of
from ptri.people.scenes import Scene, generate_batch
from ptri.posterior.moments import posterior_from_cameras, posterior_mean
from ptri.rig.estimate import solve
from ptri.rig.joints import body_under
from ptri.structures import Prediction, RigPosterior, to_device, tree_map
from ptri.training.losses3d import detect

NUM_SCENES = 64  # generated scenes of held-out families, of one frame
NUM_CLIPS, CLIP_FRAMES = 16, 8  # and of more
NUM_VIEWS = 4
NUM_LIFTED = 256  # scenes where the lifter alone is validated
SCENES_AT_ONCE = 8


def validate_images(model: PoseModel, data: MultiView, config: Config) -> dict[str, float]:
    """Errors over every frame of a data set, each solved alone."""
    device = next(model.parameters()).device
    rows = []
    for batch in EvaluationLoader(data, config.evaluate.batch_size, config.data.workers):
        batch = to_device(batch, device)
        scene, features, _ = detect(model, batch)
        xy = scene.keypoints.xy.flatten(1, 3)
        joints2d, visible = batch.joints2d.flatten(1, 2), batch.visible.flatten(1, 2)
        pixels = {"x2d/l2": metrics.joint_l2(xy, joints2d, visible)}
        rows.append(rig_errors(model, scene, config, features) | pixels)
    return _summary(rows)


def validate_generated(model: PoseModel, config: Config) -> dict[str, float]:
    """Errors on generated scenes of held-out rigs, frames alone and (``pooled/``) clips."""
    rows = []
    for prefix, num_frames, count in (("", 1, NUM_SCENES), ("pooled/", CLIP_FRAMES, NUM_CLIPS)):
        for scene in held_out_scenes(model, config, num_frames, count):
            values = rig_errors(model, scene, config) | {"lift": _lift_errors(model, scene)}
            rows.append({prefix + name: value for name, value in values.items()})
    return _summary(rows)


def validate_lifter(model: PoseModel, config: Config) -> dict[str, float]:
    """Mean and median over poses of the lifted skeletons' root-relative error, mm."""
    scenes = held_out_scenes(model, config, 1, NUM_LIFTED)
    error = torch.cat([_lift_errors(model, scene).flatten().cpu() for scene in scenes])
    return {"lift": float(error.mean()), "lift_median": float(error.median())}


def rig_errors(
    model: PoseModel, scene: Scene, config: Config, features: Tensor | None = None
) -> dict[str, Tensor]:
    """Errors of joints and rotations, cameras unknown, and of joints under the true cameras."""
    joints3d, true_rigs = scene.joints3d, posterior_from_cameras(scene.cameras)
    posterior, prediction = estimate(model, scene, config, features)
    calibrated = body_under(model, scene.keypoints, scene.K, true_rigs, features=features)
    R, _ = posterior_mean(posterior)
    stated = prediction.joints3d, prediction.covariance, joints3d
    return {
        "mpjpe": metrics.mpjpe(prediction.joints3d, joints3d),
        "n_mpjpe": metrics.n_mpjpe(prediction.joints3d, joints3d),
        "mpjpe_calibrated": metrics.mpjpe(calibrated.joints3d, joints3d),
        "rotation_error_deg": metrics.rotation_error_deg(R.float(), scene.cameras.R),
        "coverage_90": metrics.joint_coverage(*stated)[..., 1],
    }


def estimate(
    model: PoseModel, scene: Scene, config: Config, features: Tensor | None = None
) -> tuple[RigPosterior, Prediction]:
    """Cameras and joints of a batch's rigs; the truth is not looked at."""
    keypoints, K = scene.keypoints, scene.K
    solution = solve(model, keypoints, K, config.posterior, config.run.seed)
    posterior = solution.posterior
    return posterior, body_under(model, keypoints, K, posterior, solution.sides, features)


def held_out_scenes(
    model: PoseModel, config: Config, num_frames: int, count: int
) -> Iterator[Scene]:
    """Scenes of the families that training leaves out; without any, further ones of the others."""
    split = "held_out" if config.generated.held_out_families else "train"
    fixed = config.model.head == "fixed_views_mlp"
    views = sizes_of(config.model).fixed_views if fixed else NUM_VIEWS
    device, size = next(model.parameters()).device, SCENES_AT_ONCE
    for step in range(count // size):
        seed = config.run.seed + 1
        scene = generate_batch(config, seed, step, size, views, num_frames, split=split)
        yield to_device(scene, device)


def draw_generated(model: PoseModel, config: Config) -> dict[str, np.ndarray]:
    """Skeletons of held-out scenes, estimate and truth."""
    scene = next(held_out_scenes(model, config, 1, SCENES_AT_ONCE))
    _, prediction = estimate(model, scene, config)
    count = min(config.evaluate.pictures, len(scene.K))
    return {f"skeleton/{b}": _skeletons(prediction, b, scene.joints3d) for b in range(count)}


def draw_images(model: PoseModel, data: MultiView, config: Config) -> dict[str, np.ndarray]:
    """Skeletons and heatmaps of frames spread evenly over a data set."""
    device = next(model.parameters()).device
    pictures = {}
    for number, index in enumerate(spread(len(data), config.evaluate.pictures)):
        batch = tree_map(lambda value: value[None].to(device), data[index])
        scene, features, detection = detect(model, batch)
        _, prediction = estimate(model, scene, config, features)
        pictures[f"skeleton/{number}"] = _skeletons(prediction, 0, scene.joints3d)
        pictures[f"heatmaps/{number}"] = draw.heatmap_picture(  # of the first view
            batch.images[0, 0], detection.logits[0], batch.joints2d[0, 0]
        )
    return pictures


def _skeletons(prediction: Prediction, b: int, joints3d: Tensor) -> np.ndarray:
    joints, covariance = (value[b, 0].float().cpu().numpy() for value in prediction)
    return draw.skeleton_sides(joints, covariance, joints3d[b, 0].cpu().numpy())


def _lift_errors(model: PoseModel, scene: Scene) -> Tensor:
    """MPJPE (B, T, V) mm of lifted skeletons."""
    R, t = scene.cameras.R[:, None], scene.cameras.t[:, None]
    lifted = model.lifter(scene.keypoints, scene.K)
    return metrics.mpjpe(lifted.relative, transform(scene.joints3d.unsqueeze(2), R, t))


def _summary(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means; of rotation errors the median and the share of failures."""
    result = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        value = torch.cat([row[name].flatten().cpu() for row in rows if name in row]).double()
        if name.endswith("rotation_error_deg"):
            result[name + "_median"] = float(value.median())
            failed = name.replace("rotation_error_deg", "rotation_failures")
            result[failed] = float(metrics.failures(value).double().mean())
        else:
            result[name] = float(value.mean())
    return result
