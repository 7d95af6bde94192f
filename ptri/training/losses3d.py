"""The losses of a step of 3D training: detect, lift, solve, fuse, compare with the truth."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from ptri.config import Config
from ptri.evaluation import metrics
from ptri.geometry.cameras import transform
from ptri.models import losses
from ptri.models.heatmap import image_to_heatmap
from ptri.models.lifter import Lifted, lifting_loss
from ptri.models.network2d import Detection
from ptri.models.pose_model import PoseModel
from ptri.people.scenes import Scene
from ptri.posterior.moments import posterior_from_cameras
from ptri.posterior.pose_loss import pose_loss
from ptri.posterior.sampling import RigSolution
from ptri.rig import estimate
from ptri.rig.joints import fuse_body
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints, Prediction, RigPosterior, Sample, Views, tree_map

ROOT = H36M17.root
MAX_POSE_LOSS = 200.0  # nats; a rig solved in the wrong basin teaches nothing beyond
POSTERIOR_SAMPLES = 64  # of a rig
MIN_KEYPOINTS = 6  # of a view whose skeleton is compared with the truth
# Weights of losses in the total, where those of the joints (L1) and of the lifter have 1.
WEIGHT_JOINT = 0.1  # of the joints' negative log likelihood (nats)
WEIGHT_POSE = 0.02  # of the Monte-Carlo pose loss (nats)


class Batch(NamedTuple):
    """Generated scenes, and how this step uses them (equal on all ranks)."""

    scene: Scene
    lift_only: bool = False
    calibrated: bool = False
    posterior: RigPosterior | None = None  # solved before, for the head alone


@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def generated_losses(
    model: PoseModel, batch: Batch, step: int, config: Config
) -> dict[str, Tensor]:
    """Losses (B,) of generated keypoints; "loss" is the weighted sum."""
    scene = batch.scene
    if batch.posterior is not None:  # solved before: the head alone learns
        prediction = fuse_body(model, scene.keypoints, scene.K, batch.posterior)
        return joint_losses(prediction, scene.joints3d, config)
    # 1. Lift each view.
    lifted = model.lifter(scene.keypoints, scene.K)
    lift = lift_loss(lifted, scene.keypoints, scene.K, scene.joints3d, scene.cameras)
    if batch.lift_only:
        return {"loss": lift, "loss/lift": lift}
    # 2. Solve the rig, or take the true one.
    if batch.calibrated:
        posterior = posterior_from_cameras(scene.cameras)
    else:
        truth = scene.cameras, scene.joints3d
        posterior = solve(model, scene.keypoints, scene.K, lifted, truth, step, config).posterior
    # 3. Fuse.
    prediction = fuse_body(model, scene.keypoints, scene.K, posterior)
    values = joint_losses(prediction, scene.joints3d, config)
    return {**values, "loss": values["loss"] + lift, "loss/lift": lift}


def image_losses(model: PoseModel, batch: Sample, step: int, config: Config) -> dict[str, Tensor]:
    """Losses (B,) of images, each sample one frame; "loss" is the weighted sum."""
    # 1. Detect, in the precision of ``train.amp``.
    return _losses_of(model, batch, detect(model, batch), step, config)


# Millimetres and pixels have four digits before the point: bf16 would round the truth by 16 mm.
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def _losses_of(
    model: PoseModel,
    batch: Sample,
    detected: tuple[Scene, Tensor, Detection],
    step: int,
    config: Config,
) -> dict[str, Tensor]:
    """The losses of what `detect` found, in float32 and float64."""
    scene, features, detection = detected
    B, V = batch.images.shape[:2]
    K, joints3d = scene.K, scene.joints3d
    keypoints, features = tree_map(
        lambda value: _scale_gradient(value, config.train.gradient_2d), (scene.keypoints, features)
    )
    # 2. Lift each view.
    fixed = tree_map(lambda value: value.detach().float(), keypoints)
    lifted = model.lifter(fixed, K.float())
    # 3. Solve the rig.
    solution = solve(model, keypoints, K, lifted, (batch.cameras, joints3d), step, config)
    # 4. Fuse.
    prediction = fuse_body(model, keypoints, K, solution.posterior, features=features)
    # 5. Compare.
    values = joint_losses(prediction, joints3d, config)
    lift = lift_loss(lifted, fixed, K, joints3d, batch.cameras)
    pose = pose_loss(batch.cameras, solution).clamp(-MAX_POSE_LOSS, MAX_POSE_LOSS)
    heatmap = losses.heatmap_divergence(
        detection.logits,
        image_to_heatmap(batch.joints2d.flatten(0, 1)),
        batch.visible.flatten(0, 1),
    )
    heatmap = heatmap.unflatten(0, (B, V)).mean(1)
    total = values["loss"] + lift + WEIGHT_POSE * pose + heatmap
    return {**values, "loss": total, "loss/lift": lift, "loss/pose": pose, "loss/hm": heatmap}


def detect(model: PoseModel, batch: Sample) -> tuple[Scene, Tensor, Detection]:
    """The frames of a batch as scenes of one frame each, as the 2D network sees them.

    Returns:
        The scenes; features of their joints (B, 1, V, J, D); the detection of B V images.
    """
    B, V = batch.images.shape[:2]
    detection = model.detect(batch.images.flatten(0, 1))
    parts = detection.keypoints, model.joint_features(detection)
    keypoints, features = tree_map(lambda value: value.unflatten(0, (B, 1, V)), parts)
    K, joints3d = batch.cameras.K[:, None], batch.joints3d[:, None]
    family = torch.full_like(batch.subject, -1)  # none
    return Scene(keypoints, K, batch.cameras, joints3d, family), features, detection


def solve(
    model: PoseModel,
    keypoints: Keypoints,
    K: Tensor,
    lifted: Lifted,
    truth: tuple[Cameras, Tensor],
    step: int,
    config: Config,
) -> RigSolution:
    """The posterior of each rig, as cheaply as training needs it.

    Args:
        keypoints: (B, T, V, J, ...) px. K: (B, T, V, 3, 3) px.
        lifted: skeletons of each view (B, T, V, J, ...).
        truth: cameras and joints, where the adjustment starts too if ``train.true_start``.
        step: seeds the Monte-Carlo noise.
    """
    options = dataclasses.replace(config.posterior, num_samples=POSTERIOR_SAMPLES)
    start = None
    if config.train.true_start:
        (_, R, t), joints3d = truth
        # Joints that are not known start where the reference view's skeleton has them.
        joints3d = torch.where(joints3d.isnan(), lifted.joints3d[:, :, 0], joints3d)
        start = Views(R, t, t.new_zeros(len(t), 0)), joints3d
    solution = estimate.solve(
        model, keypoints, K, options, step, thorough=False, lifted=lifted, start=start
    )
    return solution.rig


def lift_loss(
    lifted: Lifted, keypoints: Keypoints, K: Tensor, joints3d: Tensor, cameras: Cameras
) -> Tensor:
    """Lifter's loss (B,), the mean over views that saw enough.

    Args:
        keypoints: (B, T, V, J, ...) px. K: (B, T, V, 3, 3) px of the images they are in.
        joints3d: (B, T, J, 3) mm, reference frame. cameras: (B, V, ...), reference frame.
    """
    truth = transform(joints3d.unsqueeze(2), cameras.R[:, None], cameras.t[:, None])
    seen = torch.isfinite(keypoints.xy).all(-1).sum(-1) >= MIN_KEYPOINTS  # (B, T, V)
    value = torch.where(seen, lifting_loss(lifted, truth, keypoints, K), 0.0)
    return value.sum((1, 2)) / seen.sum((1, 2)).clamp_min(1)


def joint_losses(prediction: Prediction, joints3d: Tensor, config: Config) -> dict[str, Tensor]:
    """Losses (B,) of joints (B, T, J, 3) mm, and "mpjpe" (mm)."""
    stated = prediction.joints3d, prediction.covariance, joints3d, ROOT
    x3d = losses.joint_l1(prediction.joints3d, joints3d, ROOT).mean(1)
    joint = losses.joint_likelihood(*stated).mean(1)
    error = metrics.mpjpe(prediction.joints3d.detach(), joints3d).mean(1)
    total = x3d + WEIGHT_JOINT * joint
    values = {"loss/x3d": x3d, "loss/joint": joint, "mpjpe": error}
    if config.train.weight_region > 0:
        values["loss/region"] = losses.joint_quantile(*stated).mean(1)
        total = total + config.train.weight_region * values["loss/region"]
    return {"loss": total, **values}


def _scale_gradient(value: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied by a factor on its way back."""
    if factor == 1:
        return value
    fixed = value.detach()
    return fixed + factor * (value - fixed) if factor else fixed
