"""The 3D task: lifter, rig posterior and fusion, from generated keypoints or from images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptri.config import Config
from ptri.data.h36m import H36M, open_split
from ptri.data.loaders import EvaluationLoader, TrainLoader
from ptri.evaluation import draw as visualize
from ptri.evaluation import metrics
from ptri.geometry.cameras import transform
from ptri.models import losses
from ptri.models.heatmap import image_to_heatmap
from ptri.models.lifter import Lifted, lifting_loss
from ptri.models.pose_model import Output, PoseModel
from ptri.people.scenes import Scene, generate_batch
from ptri.posterior.sampling import pose_loss, posterior_from_cameras, posterior_mean
from ptri.skeleton import H36M17
from ptri.structures import UNKNOWN_DETECTOR, Cameras, Keypoints, Sample, to_device
from ptri.system import keep_freed_memory
from ptri.training.solved_scenes import Pool, open_pool
from ptri.training.steps3d import (
    Batch,
    build_parts,
    check_head_alone,
    generated_batch,
    head_alone,
    lifter_alone,
)

ROOT = H36M17.root
MAX_POSE_LOSS = 200.0  # nats; a rig solved in the wrong basin teaches nothing beyond
VALIDATION_SCENES = 64  # generated scenes of held-out families, per number of frames
VALIDATION_VIEWS = 4
VALIDATION_LIFTED = 256  # scenes where the lifter alone is validated
SAMPLES_OF_SCENE = 8  # generated scenes validated at once


class RigTask:
    """Trains `PoseModel`; the engine's `Task` protocol."""

    monitor = "mpjpe"
    epoch: int | None = None
    idle_weights = True  # steps that take turns train different parts

    def __init__(self) -> None:
        self._config: Config | None = None
        self._train: TrainLoader | None = None
        self._share = (0, 1)
        self._test: H36M | None = None
        self._pool: Pool | None = None

    def build_model(self, config: Config) -> nn.Module:
        """The 3D model, from ``init`` where that is set; without images, no 2D network."""
        keep_freed_memory()
        self._config = config
        with_images = config.data.kind != "generated"
        model = build_parts(config, with_images)
        if head_alone(config):
            check_head_alone(config)
            model.lifter.requires_grad_(False)
            if config.generated.pool:
                self._pool = open_pool(model, config)
        if lifter_alone(config):
            self.monitor = "lift"
            model.fusion.requires_grad_(False)
        if model.network2d is not None and config.train.freeze_2d:
            model.network2d.requires_grad_(False)
        elif model.network2d is not None:
            model.detector = (
                UNKNOWN_DETECTOR  # what was known of its weights is not known of those to come
            )
        return model

    def parameter_groups(self, model: nn.Module, config: Config) -> list[dict[str, Any]]:
        """Matrices decay, biases do not; the 2D network learns at a tenth of the rate."""
        groups = []
        for prefix, rate in (("network2d.", 0.1), ("", 1.0)):
            own = [
                p
                for name, p in model.named_parameters()
                if p.requires_grad and name.startswith("network2d.") == bool(prefix)
            ]
            for parameters, decay in (
                ([p for p in own if p.ndim >= 2], config.train.weight_decay),
                ([p for p in own if p.ndim < 2], 0.0),
            ):
                if parameters:
                    lr = rate * config.train.lr
                    groups.append({"params": parameters, "lr": lr, "weight_decay": decay})
        return groups

    def steps_per_epoch(self, config: Config) -> int:
        """``train.steps_per_epoch``, or those of one pass over the images (generated: 100)."""
        if config.data.kind == "generated":
            return config.train.steps_per_epoch or 100
        self._open_test(config)
        return config.train.steps_per_epoch or len(self._open_train(config, 0, 1))

    def train_loader(
        self, config: Config, epoch: int, rank: int, world: int, start_step: int
    ) -> Iterator[Any]:
        """This rank's share of each global batch."""
        steps = self.steps_per_epoch(config)
        position, end = epoch * steps + start_step, (epoch + 1) * steps
        if config.data.kind == "generated":
            for step in range(position, end):
                yield generated_batch(config, epoch, step, rank, world, self._pool)
            return
        loader = self._open_train(config, rank, world)
        while position < end:
            number, offset = divmod(position, len(loader))
            yield from islice(loader.epoch(number, offset), end - position)
            position += min(end - position, len(loader) - offset)

    def training_step(self, model: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        """Losses (B,) of a batch; "loss" is their weighted sum."""
        assert self._config is not None, "build_model comes first"
        config = self._config
        if isinstance(batch, Batch):
            return _generated_losses(model, batch, step, config)
        return _image_losses(model, batch, step, config)

    @torch.no_grad()
    def validate(self, model: nn.Module, config: Config) -> dict[str, float]:
        """Joint and rotation errors of unseen people; of unseen rig families where generated."""
        if config.data.kind == "generated" and lifter_alone(config):
            return _validate_lifter(model, config)
        if config.data.kind == "generated":
            return _validate_generated(model, config)
        return _validate_images(model, self._open_test(config), config)

    @torch.no_grad()
    def pictures(self, model: nn.Module, config: Config) -> dict[str, np.ndarray]:
        """Skeletons from two sides, estimate and truth; heatmaps where there are images."""
        device = next(model.parameters()).device
        found = {}
        if config.data.kind == "generated":
            if lifter_alone(config):
                return found
            scene = to_device(_validation_scenes(config, 1, 0), device)
            output = model(scene.K, keypoints=scene.keypoints, seed=config.run.seed)
            for b in range(min(config.evaluate.pictures, len(scene.K))):
                found[f"skeleton/{b}"] = _sides(output, b, scene.joints3d[b, 0])
            return found
        data = self._open_test(config)
        count = min(config.evaluate.pictures, len(data))
        for number, index in enumerate(np.linspace(0, len(data) - 1, count).round().astype(int)):
            sample = to_device(data[int(index)], device)
            K, images = sample.cameras.K[None, None], sample.images[None, None]
            output = model(K, images=images, seed=config.run.seed)
            found[f"skeleton/{number}"] = _sides(output, 0, sample.joints3d)
            logits = output.detection.logits[0]
            found[f"heatmaps/{number}"] = visualize.heatmap_overlay(
                visualize.denormalise(sample.images[0].cpu().numpy()),
                logits.flatten(1).softmax(-1).view_as(logits).cpu().numpy(),
                sample.joints2d[0].cpu().numpy(),
            )
        return found

    def _open_train(self, config: Config, rank: int, world: int) -> TrainLoader:
        if self._train is None or (rank, world) != self._share:
            self._share = (rank, world)
            data = open_split(config, "train")
            low = config.data.min_views
            high = config.data.max_views or len(data.index.cameras)
            self._train = TrainLoader(
                data, config.train.batch_size, config.run.seed, rank, world, config.data.workers,
                num_views=(min(low, high), high),
            )  # fmt: skip
        return self._train

    def _open_test(self, config: Config) -> H36M:
        if self._test is None:
            self._test = open_split(config, "test")
        return self._test


# --- generated keypoints ---------------------------------------------------------------------


def _generated_losses(model, batch: Batch, step: int, config: Config) -> dict[str, Tensor]:
    scene, train = batch.scene, config.train
    output = model(
        scene.K,
        keypoints=scene.keypoints,
        cameras=scene.cameras if batch.calibrated else None,
        lift_only=batch.lift_only,
        seed=step,
        settings=_training_settings(model, config),
        start=(scene.cameras, scene.joints3d) if train.true_start else None,
        posterior=batch.posterior,
    )
    if output.lifted is None:
        return _joint_losses(output, scene.joints3d, config)
    lift = _lift_loss(output, scene.joints3d, scene.cameras, scene.K)
    if batch.lift_only:
        return {"loss": train.weight_lift * lift, "loss/lift": lift}
    values = _joint_losses(output, scene.joints3d, config)
    values["loss"] = values["loss"] + train.weight_lift * lift
    return {**values, "loss/lift": lift}


def _training_settings(model, config: Config):
    return dataclasses.replace(model.settings, num_samples=config.train.posterior_samples)


def _lift_loss(output: Output, joints3d: Tensor, cameras: Cameras, K: Tensor) -> Tensor:
    """Lifter's loss (B,).

    Args:
        joints3d: (B, T, J, 3) mm, reference frame. cameras: (B, V, ...), reference frame.
        K: (B, T, V, 3, 3) px of the images the keypoints are in.
    """
    truth = transform(joints3d.unsqueeze(2), cameras.R[:, None], cameras.t[:, None])
    seen = torch.isfinite(output.keypoints.xy).all(-1).sum(-1) >= 6  # (B, T, V)
    loss = lifting_loss(output.lifted, truth, Keypoints(*map(Tensor.detach, output.keypoints)), K)
    value = torch.where(seen, loss, 0.0)
    return value.sum((1, 2)) / seen.sum((1, 2)).clamp_min(1)


def _joint_losses(output: Output, joints3d: Tensor, config: Config) -> dict[str, Tensor]:
    train, prediction = config.train, output.prediction
    x3d = losses.joint_l1(prediction.joints3d, joints3d, ROOT).mean(1)
    stated = prediction.joints3d, prediction.covariance, joints3d, ROOT
    joint = losses.joint_likelihood(*stated).mean(1)
    error = metrics.mpjpe(prediction.joints3d.detach(), joints3d, ROOT).mean(1)
    total = train.weight_x3d * x3d + train.weight_joint * joint
    values = {"loss/x3d": x3d, "loss/joint": joint, "mpjpe": error}
    if train.weight_region > 0:
        values["loss/region"] = losses.joint_quantile(*stated).mean(1)
        total = total + train.weight_region * values["loss/region"]
    return {"loss": total, **values}


def _validation_scenes(config: Config, num_frames: int, step: int) -> Scene:
    split = "held_out" if config.generated.held_out_families else "train"
    fixed = config.model.head == "fixed_views_mlp"
    views = config.model.fixed_views if fixed else VALIDATION_VIEWS
    return generate_batch(
        config, config.run.seed + 1, step, SAMPLES_OF_SCENE, views, num_frames, split=split
    )


def _validate_generated(model: PoseModel, config: Config) -> dict[str, float]:
    device = next(model.parameters()).device
    collected: dict[str, list[Tensor]] = {}
    for prefix, num_frames, count in (("", 1, VALIDATION_SCENES), ("pooled/", 8, 16)):
        for step in range(count // SAMPLES_OF_SCENE):
            scene = to_device(_validation_scenes(config, num_frames, step), device)
            values = _errors(model, scene, config)
            for name, value in values.items():
                collected.setdefault(prefix + name, []).append(value.flatten().cpu())
    return _summary(collected)


def _validate_lifter(model: PoseModel, config: Config) -> dict[str, float]:
    """Mean and median over poses of the root-relative error, mm."""
    device = next(model.parameters()).device
    errors = []
    for step in range(VALIDATION_LIFTED // SAMPLES_OF_SCENE):
        scene = to_device(_validation_scenes(config, 1, step), device)
        errors.append(_lift_errors(model.lifter(scene.keypoints, scene.K), scene).flatten().cpu())
    error = torch.cat(errors)
    return {"lift": float(error.mean()), "lift_median": float(error.median())}


def _lift_errors(lifted: Lifted, scene: Scene) -> Tensor:
    """MPJPE (B, T, V) mm of lifted skeletons."""
    R, t = scene.cameras.R[:, None], scene.cameras.t[:, None]
    return metrics.mpjpe(lifted.relative, transform(scene.joints3d.unsqueeze(2), R, t), ROOT)


def _errors(model: PoseModel, scene: Scene, config: Config) -> dict[str, Tensor]:
    keypoints, K, truth = scene.keypoints, scene.K, scene.joints3d
    lifted = model.lifter(keypoints, K)
    posterior = model.solve(keypoints, K, seed=config.run.seed)
    prediction = model.fuse(keypoints, K, posterior)
    calibrated = model.fuse(keypoints, K, posterior_from_cameras(scene.cameras))
    R, _ = posterior_mean(posterior)
    return {
        "lift": _lift_errors(lifted, scene),
        "mpjpe": metrics.mpjpe(prediction.joints3d, truth, ROOT),
        "n_mpjpe": metrics.n_mpjpe(prediction.joints3d, truth, ROOT),
        "mpjpe_calibrated": metrics.mpjpe(calibrated.joints3d, truth, ROOT),
        "rotation_error_deg": metrics.rotation_error_deg(R.float(), scene.cameras.R),
        "coverage_90": metrics.joint_coverage(
            prediction.joints3d, prediction.covariance, truth, ROOT, (0.9,)
        ),
    }


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


# --- images ----------------------------------------------------------------------------------


def _image_losses(model, batch: Sample, step: int, config: Config) -> dict[str, Tensor]:
    train = config.train
    settings = _training_settings(model, config)
    K, joints3d = batch.cameras.K[:, None], batch.joints3d[:, None]
    start = (batch.cameras, joints3d) if train.true_start else None
    output = model(
        K, images=batch.images[:, None], seed=step, settings=settings, start=start,
        gradient_2d=train.gradient_2d,
    )  # fmt: skip
    lift = _lift_loss(output, joints3d, batch.cameras, K)
    pose = pose_loss(batch.cameras, output.solution).clamp(-MAX_POSE_LOSS, MAX_POSE_LOSS)
    heatmap = losses.heatmap_divergence(
        output.detection.logits,
        image_to_heatmap(batch.joints2d.flatten(0, 1)),
        batch.visible.flatten(0, 1),
        train.heatmap_sigma,
    )
    heatmap = heatmap.unflatten(0, batch.images.shape[:2]).mean(1)
    values = _joint_losses(output, joints3d, config)
    total = values["loss"] + train.weight_lift * lift + train.weight_pose * pose + heatmap
    return {**values, "loss": total, "loss/lift": lift, "loss/pose": pose, "loss/hm": heatmap}


def _validate_images(model: PoseModel, data: H36M, config: Config) -> dict[str, float]:
    device = next(model.parameters()).device
    loader = EvaluationLoader(data, config.evaluate.batch_size, config.data.workers)
    collected: dict[str, list[Tensor]] = {}
    for batch in loader:
        batch = to_device(batch, device)
        shape = batch.images.shape[:2]
        detection = model.detect(batch.images.flatten(0, 1))
        features = model.joint_features(detection).unflatten(0, shape)[:, None]
        keypoints = type(detection.keypoints)(
            *(value.unflatten(0, shape)[:, None] for value in detection.keypoints)
        )
        K, truth = batch.cameras.K[:, None], batch.joints3d
        posterior = model.solve(keypoints, K, seed=config.run.seed)
        estimate = model.fuse(keypoints, K, posterior, features).joints3d[:, 0]
        known = posterior_from_cameras(batch.cameras)
        calibrated = model.fuse(keypoints, K, known, features).joints3d[:, 0]
        R, _ = posterior_mean(posterior)
        values = {
            "mpjpe": metrics.mpjpe(estimate, truth, ROOT),
            "n_mpjpe": metrics.n_mpjpe(estimate, truth, ROOT),
            "mpjpe_calibrated": metrics.mpjpe(calibrated, truth, ROOT),
            "rotation_error_deg": metrics.rotation_error_deg(R.float(), batch.cameras.R),
            "x2d/l2": metrics.joint_l2(
                keypoints.xy.flatten(1, 3),
                batch.joints2d.flatten(1, 2),
                batch.visible.flatten(1, 2),
            ),
        }
        for name, value in values.items():
            collected.setdefault(name, []).append(value.flatten().cpu())
    return _summary(collected)


def _sides(output: Output, b: int, truth: Tensor) -> np.ndarray:
    joints, covariance = (value[b, 0].float().cpu().numpy() for value in output.prediction)
    return visualize.skeleton_sides(H36M17, joints, covariance, truth.cpu().numpy())
