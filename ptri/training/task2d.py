"""The 2D task: heatmaps, sub-pixel keypoints and their uncertainty, from single images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ptri import checkpoint
from ptri.config import Config, replace
from ptri.data.h36m import open_split
from ptri.data.loaders import EvaluationLoader, TrainLoader
from ptri.data.mixture import Mixture
from ptri.data.shards import Shards
from ptri.errors import UserError
from ptri.evaluation import draw as visualize
from ptri.evaluation.metrics import joint_metrics, mahalanobis_square, mirrored
from ptri.models import losses
from ptri.models.heatmap import image_to_heatmap
from ptri.models.imitation import Imitation
from ptri.models.mobileone import STRIDES, merge_batchnorm
from ptri.models.network2d import Detection, Network2D
from ptri.models.orientation import Orientation
from ptri.models.weights import read_network2d
from ptri.skeleton import H36M17
from ptri.structures import Sample, to_device

# Weights of losses in the total, where that of the heatmaps has 1.
WEIGHT_X2D = 0.02  # of the coordinates' L1 (px)
WEIGHT_COVARIANCE = 0.02  # of the errors' negative log likelihood (nats)
WEIGHT_COVERAGE = 0.6  # of the pinball loss of the 90 % error ellipse
WEIGHT_CONFIDENCE = 0.2  # of the confidence's cross-entropy (nats)
WEIGHT_IMITATION = 1.0  # of the share of a teacher's features that is not told
CONFIDENCE_RADIUS = 0.05  # of the image's side: a keypoint within it counts as found
CONTEXT = "head.context."  # names of the weights of the head's `Context`


class HeatmapTask:
    """Trains `Network2D`; the engine's `Task` protocol."""

    monitor = "x2d/l2"
    idle_weights = False
    epoch: int | None = None

    def __init__(self) -> None:
        self._config: Config | None = None
        self._train: TrainLoader | None = None
        self._kind = (0, 1, 0)  # rank, world and image size of the loader
        self._test: Dataset | None = None

    def build_model(self, config: Config) -> nn.Module:
        """The 2D network, from ``init.checkpoint_2d`` where that is set.

        Weights without the head's `Context` may start a network with it, which changes nothing yet.
        """
        self._config = config
        model = Network2D(config.model)
        if config.init.checkpoint_2d is not None:
            weights, _ = checkpoint.load_weights(config.init.checkpoint_2d)
            if not any(name.startswith(CONTEXT) for name in weights):
                new = model.state_dict()
                weights |= {name: new[name] for name in new if name.startswith(CONTEXT)}
            checkpoint.load_state(model, weights, config.init.checkpoint_2d)
        if config.train.weight_orientation > 0:
            model.orientation = Orientation(model.backbone.channels)
        if config.init.teacher_2d is not None:
            teacher, _ = read_network2d(config.init.teacher_2d)
            model.imitation = Imitation(model.backbone.channels, teacher)
        return model

    def parameter_groups(self, model: nn.Module, config: Config) -> list[dict[str, Any]]:
        """Convolutions and matrices decay; biases and BatchNorm do not."""
        weights = [p for p in model.parameters() if p.requires_grad]
        return [
            {"params": [p for p in weights if p.ndim >= 2]},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]

    def steps_per_epoch(self, config: Config) -> int:
        """``train.steps_per_epoch``, or those of one pass; opens and checks both splits."""
        self._open_test(config)
        first = self._open_train(config, 0, 1, image_size(config, 0))
        return config.train.steps_per_epoch or len(first)

    def train_loader(
        self, config: Config, epoch: int, rank: int, world: int, start_step: int
    ) -> Iterator[Sample]:
        """This rank's share of each global batch of single views.

        Passes over the data follow one another, whatever the length of an epoch.
        """
        loader = self._open_train(config, rank, world, image_size(config, epoch))
        steps = self.steps_per_epoch(config)
        yield from loader.between(epoch * steps + start_step, (epoch + 1) * steps)

    def training_step(self, model: nn.Module, batch: Sample, step: int) -> dict[str, Tensor]:
        """Losses (B,) of a batch; "loss" is their weighted sum."""
        assert self._config is not None, "build_model comes first"
        images = batch.images.flatten(0, 1)  # (B V, 3, H, W)
        detection = model(images, isolate_uncertainty=True)
        values, _ = detection_losses(detection, batch, self._config)
        if hasattr(model, "orientation"):
            joints = batch.joints3d, batch.joints2d[:, 0]  # of single views
            told = model.orientation(detection.maps, *joints, images.shape[-1])
            total = values["loss"] + self._config.train.weight_orientation * told
            values |= {"loss": total, "loss/orientation": told}
        if hasattr(model, "imitation"):
            left = model.imitation(images, detection)
            total = values["loss"] + WEIGHT_IMITATION * left
            values |= {"loss": total, "loss/imitation": left}
        return values

    @torch.no_grad()
    def validate(self, model: nn.Module, config: Config) -> dict[str, float]:
        """Losses, pixel errors and coverage over every view of every test frame.

        During training the images have the size of the epoch's; errors are then scaled to px of
        ``data.image_size``, so that the epochs can be compared.
        """
        loader = EvaluationLoader(
            self._open_test(config), config.evaluate.batch_size, config.data.workers
        )
        network = merge_batchnorm(model)
        device = next(model.parameters()).device
        sums: dict[str, float] = {}
        images, parts = 0, []
        for batch in loader:
            batch = to_device(batch, device)
            detection = network(batch.images.flatten(0, 1))
            values, joints = detection_losses(detection, batch, config)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.double().sum())
            images += len(batch.images)
            parts.append({name: value.cpu() for name, value in joints.items()})
        joints = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        scale = config.data.image_size / self._open_test(config).data.image_size
        joints["error"], joints["absolute"] = scale * joints["error"], scale * joints["absolute"]
        return {
            **{name: value / images for name, value in sums.items()},
            **joint_metrics(**joints),
        }

    @torch.no_grad()
    def pictures(self, model: nn.Module, config: Config) -> dict[str, np.ndarray]:
        """Heatmaps over images and skeletons with error ellipses, of evenly spread test views."""
        data = self._open_test(config)
        count = min(config.evaluate.pictures, len(data))
        pictures = {}
        device = next(model.parameters()).device
        for number, index in enumerate(np.linspace(0, len(data) - 1, count).round().astype(int)):
            sample = data[int(index)]
            detection = model(sample.images[:1].to(device))
            keypoints = detection.keypoints
            image = visualize.denormalise(sample.images[0].numpy())
            xy, covariance = (part[0].cpu().numpy() for part in keypoints[:2])
            heatmaps = detection.logits[0].flatten(1).softmax(-1).view_as(detection.logits[0])
            truth = sample.joints2d[0].numpy()
            pictures[f"heatmaps/{number}"] = visualize.heatmap_overlay(
                image, heatmaps.cpu().numpy(), truth
            )
            pictures[f"skeleton/{number}"] = visualize.overlay(image, H36M17, xy, covariance)
        return pictures

    def _open_train(self, config: Config, rank: int, world: int, size: int) -> TrainLoader:
        if self._train is None or (rank, world, size) != self._kind:
            self._train = None  # ends its workers before the new ones start
            data = _open_data(replace(config, data__image_size=size), "train")
            self._kind = (rank, world, size)
            self._train = TrainLoader(
                data,
                config.train.batch_size,
                config.run.seed,
                rank,
                world,
                config.data.workers,
                num_views=(1, 1),
            )
        return self._train

    def _open_test(self, config: Config) -> Dataset:
        size = config.data.image_size if self.epoch is None else image_size(config, self.epoch)
        if self._test is None or self._test.data.image_size != size:
            self._test = _open_data(replace(config, data__image_size=size), "test")
        return self._test


def _open_data(config: Config, split: str) -> Dataset:
    """Single views of a split, from images, from shards or rendered on the fly.

    Raises:
        UserError: no such data; ``data.more_roots`` with data that is not on the disk.
    """
    if config.data.more_roots and config.data.kind != "h36m":
        raise UserError(f"data.more_roots: needs data.kind h36m, not {config.data.kind}")
    if config.data.kind == "rendered":
        from ptri.render.stream import Rendered

        return Rendered(config, split)
    if config.data.kind == "shards":
        return Shards(config, split)
    if split == "test" or not config.data.more_roots:
        return open_split(config, split, single_view=True)
    parts = [
        replace(config, data__root=root, run__seed=config.run.seed + number)
        for number, root in enumerate([config.data.root, *config.data.more_roots])
    ]
    return Mixture([open_split(part, split, single_view=True) for part in parts])


def image_size(config: Config, epoch: int) -> int:
    """Side of the training images in an epoch (px), by ``train.image_sizes``.

    Raises:
        UserError: the sizes do not end with ``data.image_size`` or are no multiples of 32.
    """
    sizes, last = config.train.image_sizes, config.data.image_size
    if not sizes:
        return last
    if sizes[-1] != last or any(size < 32 or size % STRIDES[-1] for size in sizes):
        raise UserError(
            f"train.image_sizes: {sizes}; expected multiples of {STRIDES[-1]} px that end with "
            f"data.image_size, {last}"
        )
    return sizes[min(epoch * len(sizes) // config.train.epochs, len(sizes) - 1)]


def detection_losses(
    detection: Detection, batch: Sample, config: Config
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses per sample and errors per joint of a batch's detections.

    Args:
        detection: of B V images, those of `batch` with B and V flattened.
        batch: B samples of V views.

    Returns:
        Losses (B,): "loss", "loss/hm" (nats), "loss/x2d" (px), "loss/covariance" (nats),
        "loss/coverage", "loss/confidence" (nats). And of all N = B V J joints: "error" (N,) px, the
        Euclidean distance; "absolute" (N,) px, the mean of both coordinates; "square" (N,)
        Mahalanobis; "confidence"; "found"; "visible";
        "paired", with a mirror joint elsewhere; "swapped", nearer to the mirror joint's truth.
    """
    views = batch.images.shape[:2]
    height, width = batch.images.shape[-2:]
    truth = batch.joints2d.flatten(0, 1)  # (B V, J, 2)
    visible = batch.visible.flatten(0, 1)
    keypoints, logits = detection.keypoints, detection.logits
    xy = keypoints.xy.detach()
    error = (xy - truth).norm(dim=-1)
    found = (error < CONFIDENCE_RADIUS * width) & visible
    parts = {
        "loss/hm": losses.heatmap_divergence(logits, image_to_heatmap(truth), visible),
        "loss/x2d": losses.coordinate_l1(keypoints.xy, truth, visible),
        "loss/covariance": losses.error_likelihood(
            xy, keypoints.covariance, truth, visible, area=float(height * width)
        ),
        "loss/coverage": losses.ellipse_quantile(xy, keypoints.covariance, truth, visible),
        "loss/confidence": losses.confidence_entropy(keypoints.confidence, found),
    }
    parts = {name: value.unflatten(0, views).mean(1) for name, value in parts.items()}
    total = (
        parts["loss/hm"]
        + WEIGHT_X2D * parts["loss/x2d"]
        + WEIGHT_COVARIANCE * parts["loss/covariance"]
        + WEIGHT_COVERAGE * parts["loss/coverage"]
        + WEIGHT_CONFIDENCE * parts["loss/confidence"]
    )
    joints = {
        "error": error,
        "absolute": (xy - truth).abs().mean(-1),
        "square": mahalanobis_square(xy - truth, keypoints.covariance.detach()),
        "confidence": keypoints.confidence.detach(),
        "found": found,
        "visible": visible,
        **mirrored(xy, truth, visible, 2 * CONFIDENCE_RADIUS * width),
    }
    return {"loss": total, **parts}, {name: value.flatten() for name, value in joints.items()}
