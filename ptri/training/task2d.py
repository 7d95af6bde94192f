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
from ptri.data.coco import open_coco, open_photos
from ptri.data.loaders import EvaluationLoader, TrainLoader, num_batches
from ptri.data.mixture import Mixture, sources
from ptri.data.multiview import open_split
from ptri.data.shards import Shards
from ptri.data.transforms import denormalise
from ptri.detectors.build import build_detector
from ptri.errors import UserError
from ptri.evaluation import draw
from ptri.evaluation.metrics import joint_metrics, mahalanobis_square, mirrored
from ptri.evaluation.pictures import spread
from ptri.models import losses
from ptri.models.heatmap import image_to_heatmap
from ptri.models.mobileone import STRIDES, merge_batchnorm
from ptri.models.network2d import Detection, Network2D
from ptri.models.weights import read_network2d
from ptri.skeleton import H36M17
from ptri.structures import Sample, cat, to_device
from ptri.training.imitation import (
    HeatmapTeacher,
    Imitation,
    detector_heatmaps,
    network_heatmaps,
)
from ptri.training.optimizer import decaying_groups
from ptri.training.orientation import Orientation
from ptri.training.state import Task

WEIGHTS = {  # of losses in the total
    "loss/hm": 1.0,
    "loss/x2d": 0.02,  # of the coordinates' L1 (px)
    "loss/covariance": 0.02,  # of the errors' negative log likelihood (nats)
    "loss/coverage": 0.6,  # of the pinball loss of the 90 % error ellipse
    "loss/confidence": 0.2,  # of the confidence's cross-entropy (nats)
}
WEIGHT_IMITATION = 1.0  # of the share of a teacher's features that is not told, or of the
# divergence from its heatmaps (nats)
CONFIDENCE_RADIUS = 0.05  # of the image's side: a keypoint within it counts as found
DETECTORS = ("movenet", "rtmlib")  # that can be named as teachers
CONTEXT = "head.context."  # names of the weights of the head's `Context`


class HeatmapTask(Task):
    """Trains `Network2D`."""

    monitor = "x2d/l2"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._data: dict[str, tuple[int, Dataset]] = {}  # by split: image size and data set
        self._loader: TrainLoader | None = None
        self._teacher: HeatmapTeacher | None = None

    def build_model(self) -> nn.Module:
        """The 2D network, from ``init.checkpoint_2d`` where that is set.

        Weights without the head's `Context` may start a network with it, which changes nothing yet.
        """
        init, imitate = self.config.init, self.config.train.imitate
        model = Network2D(self.config.model)
        if init.checkpoint_2d is not None:
            weights, _ = checkpoint.load_weights(init.checkpoint_2d)
            if not any(name.startswith(CONTEXT) for name in weights):
                new = model.state_dict()
                weights |= {name: new[name] for name in new if name.startswith(CONTEXT)}
            checkpoint.load_state(model, weights, init.checkpoint_2d)
        if self.config.train.weight_orientation > 0:
            model.orientation = Orientation(model.backbone.channels)
        if init.teacher_2d is not None and imitate == "features":
            teacher, _ = read_network2d(init.teacher_2d)
            model.imitation = Imitation(model.backbone.channels, teacher)
        elif imitate == "heatmaps":
            if init.teacher_2d is None:
                raise UserError("train.imitate: heatmaps of whom? Name a network: init.teacher_2d")
            self._teacher = self._heatmap_teacher(init.teacher_2d)
        return model

    def _heatmap_teacher(self, name: str) -> HeatmapTeacher:
        """By a detector of that name, else by a file of weights of a 2D network."""
        if name in DETECTORS:
            detector = build_detector(replace(self.config, detector__name=name))
            return HeatmapTeacher(detector_heatmaps(detector), detector.image_size)
        network, size = read_network2d(name)
        return HeatmapTeacher(network_heatmaps(network), size)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Convolutions and matrices decay; biases and BatchNorm do not."""
        return decaying_groups([p for p in model.parameters() if p.requires_grad])

    def steps_per_epoch(self) -> int:
        """``train.steps_per_epoch``, or those of one pass; opens and checks both splits."""
        one_pass = num_batches(self._open("train"), self.config.train.batch_size)
        self._open("test")
        return self.config.train.steps_per_epoch or one_pass

    def batches(self, first: int, end: int, rank: int = 0, world: int = 1) -> Iterator[Sample]:
        """Batches of single views; passes over the data follow one another."""
        data, size = self._open("train"), self.config.train.batch_size
        if self._loader is None or self._loader.dataset is not data:
            self._loader = None  # ends its workers before the new ones start
            workers, seed = self.config.data.workers, self.config.run.seed
            self._loader = TrainLoader(data, size, seed, rank, world, workers, num_views=(1, 1))
        return self._loader.between(first, end)

    def training_step(self, model: nn.Module, batch: Sample, step: int) -> dict[str, Tensor]:
        """Losses (B,) of a batch; "loss" is their weighted sum."""
        images = batch.images.flatten(0, 1)  # (B V, 3, H, W)
        detection = model(images, isolate_uncertainty=True)
        values, _ = detection_losses(detection, batch)
        total = values["loss"]
        if hasattr(model, "orientation"):
            joints = batch.joints3d, batch.joints2d[:, 0]  # of single views
            untold = model.orientation(detection.maps, *joints, images.shape[-1])
            total = total + self.config.train.weight_orientation * untold
            values["loss/orientation"] = untold
        if hasattr(model, "imitation"):
            untold = model.imitation(images, detection)
            total = total + WEIGHT_IMITATION * untold
            values["loss/imitation"] = untold
        if self._teacher is not None:
            unknown = ~torch.isfinite(batch.joints2d[:, 0]).all(-1)  # (B, J)
            apart = self._teacher(images, detection.logits, unknown)
            total = total + WEIGHT_IMITATION * apart
            values["loss/teacher"] = apart
        return {**values, "loss": total}

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Losses, pixel errors and coverage over every view of every test frame.

        During training the images have the size of the epoch's; errors are then scaled to px of
        ``data.image_size``, so that the epochs can be compared.
        """
        config, data = self.config, self._open("test")
        network = merge_batchnorm(model)
        device = next(model.parameters()).device
        sums: dict[str, float] = {}
        parts = []
        for batch in EvaluationLoader(data, config.evaluate.batch_size, config.data.workers):
            batch = to_device(batch, device)
            values, errors = detection_losses(network(batch.images.flatten(0, 1)), batch)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.double().sum())
            parts.append(to_device(errors, torch.device("cpu")))
        errors = cat(parts)
        scale = config.data.image_size / data.data.image_size
        errors["error"], errors["absolute"] = scale * errors["error"], scale * errors["absolute"]
        means = {name: value / len(data) for name, value in sums.items()}
        return {**means, **joint_metrics(**errors)}

    @torch.no_grad()
    def pictures(self, model: nn.Module) -> dict[str, np.ndarray]:
        """Heatmaps over images and skeletons with error ellipses, of evenly spread test views."""
        data, pictures = self._open("test"), {}
        device = next(model.parameters()).device
        for number, index in enumerate(spread(len(data), self.config.evaluate.pictures)):
            image, truth = data[index].images[0], data[index].joints2d[0]
            detection = model(image[None].to(device))
            xy, covariance = (part[0].cpu().numpy() for part in detection.keypoints[:2])
            pictures[f"heatmaps/{number}"] = draw.heatmap_picture(image, detection.logits[0], truth)
            pictures[f"skeleton/{number}"] = draw.overlay(
                denormalise(image.numpy()), H36M17, xy, covariance
            )
        return pictures

    def _open(self, split: str) -> Dataset:
        """A split with images of the epoch's size; opened again where that changes."""
        if self.epoch is None and split == "test":
            size = self.config.data.image_size
        else:
            size = image_size(self.config, self.epoch or 0)
        if split not in self._data or self._data[split][0] != size:
            data = open_data(replace(self.config, data__image_size=size), split)
            self._data[split] = size, data
        return self._data[split][1]


def open_data(config: Config, split: str) -> Dataset:
    """Single views of a split: "train" is what ``data.mix`` names, or else ``data`` itself.

    Raises:
        UserError: no such data; photographs without labels to test on, or without a teacher.
    """
    if split == "test" or not config.data.mix:
        return _open_source(config, split)
    configs, shares = sources(config)
    length = config.train.steps_per_epoch * config.train.batch_size
    parts = [_open_source(source, split) for source in configs]
    return Mixture(parts, shares, length, config.run.seed)


def _open_source(config: Config, split: str) -> Dataset:
    """A split of one source: of images, rendered on the fly, of shards or photographs."""
    if config.data.kind == "rendered":
        from ptri.render.stream import Rendered

        return Rendered(config, split)
    if config.data.kind == "shards":
        return Shards(config, split)
    if config.data.kind == "coco":
        return open_coco(config, split)
    if config.data.kind == "photos":
        if split == "test":
            raise UserError(
                "data.kind: photos have no truth to test on; name them as a source of data.mix"
            )
        if config.init.teacher_2d is None or config.train.imitate != "heatmaps":
            raise UserError(
                "data.kind: photos have no truth to learn from; name a teacher (init.teacher_2d) "
                "and set train.imitate=heatmaps"
            )
        return open_photos(config)
    return open_split(config, split, single_view=True)


def image_size(config: Config, epoch: int) -> int:
    """Side of the training images in an epoch (px), by ``train.image_sizes``.

    Raises:
        UserError: the sizes do not end with ``data.image_size`` or are no multiples of 32.
    """
    sizes, last, step = config.train.image_sizes, config.data.image_size, STRIDES[-1]
    if not sizes:
        return last
    if sizes[-1] != last or any(size < step or size % step for size in sizes):
        raise UserError(
            f"train.image_sizes: {sizes}; expected multiples of {step} px that end with "
            f"data.image_size, {last}"
        )
    return sizes[min(epoch * len(sizes) // config.train.epochs, len(sizes) - 1)]


def detection_losses(
    detection: Detection, batch: Sample
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses per sample and errors per joint of a batch's detections.

    Args:
        detection: of B V images, those of `batch` with B and V flattened.
        batch: B samples of V views. Joints whose truth is NaN are not known: they add nothing to
            any loss and get no gradient. What is known to be outside the image is `visible` nowhere
            but counts for the confidence: it was not found.

    Returns:
        Losses (B,): "loss", "loss/hm" (nats), "loss/x2d" (px), "loss/covariance" (nats),
        "loss/coverage", "loss/confidence" (nats). And of all N = B V J joints: "error" (N,) px, the
        Euclidean distance; "absolute" (N,) px, the mean of both coordinates; "square" (N,)
        Mahalanobis; "confidence"; "found"; "visible"; "known";
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
    known = torch.isfinite(truth).all(-1)
    parts = {
        "loss/hm": losses.heatmap_divergence(logits, image_to_heatmap(truth), visible),
        "loss/x2d": losses.coordinate_l1(keypoints.xy, truth, visible),
        "loss/covariance": losses.error_likelihood(
            xy, keypoints.covariance, truth, visible, area=float(height * width)
        ),
        "loss/coverage": losses.ellipse_quantile(xy, keypoints.covariance, truth, visible),
        "loss/confidence": losses.confidence_entropy(keypoints.confidence, found, known),
    }
    parts = {name: value.unflatten(0, views).mean(1) for name, value in parts.items()}
    total = sum(weight * parts[name] for name, weight in WEIGHTS.items())
    joints = {
        "error": error,
        "absolute": (xy - truth).abs().mean(-1),
        "square": mahalanobis_square(xy - truth, keypoints.covariance.detach()),
        "confidence": keypoints.confidence.detach(),
        "found": found,
        "visible": visible,
        "known": known,
        **mirrored(xy, truth, visible, 2 * CONFIDENCE_RADIUS * width),
    }
    return {"loss": total, **parts}, {name: value.flatten() for name, value in joints.items()}
