"""Pictures of an evaluation: a few frames with their views, heatmaps, skeleton and rig."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptri.data.multiview import MultiView
from ptri.data.transforms import denormalise
from ptri.evaluation import draw, metrics
from ptri.evaluation.draw_rig import rig_picture, up_direction
from ptri.evaluation.predictions import SceneEstimate, SceneFrames
from ptri.geometry.cameras import project
from ptri.posterior.moments import posterior_mean
from ptri.skeleton import H36M17
from ptri.structures import Cameras, take, to_device


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` indices, evenly spread, the first and the last included."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int)).tolist()


def rotation_words(R: Tensor, R_true: Tensor) -> str:
    """How far the rotations (V, 3, 3) of a rig's pairs of views are off, for a title."""
    error = metrics.rotation_error_deg(R.to(R_true), R_true)
    return f"{error.median():.1f} deg (median), {error.max():.1f} deg (worst)"


class Painter:
    """Keeps the images of evenly spread frames and draws them once their scene is solved."""

    def __init__(self, folder: Path, dataset: MultiView, count: int) -> None:
        self.folder, self.dataset = folder, dataset
        self.wanted = set(spread(len(dataset), count))
        self._kept: dict[int, tuple] = {}  # by place in the data set: what `keep` says

    def keep(
        self, images: Tensor, logits: Tensor | None, frames: SceneFrames, single: SceneEstimate
    ) -> None:
        """Keeps what was seen in chosen frames, and estimated of each alone.

        Args:
            images: (B, V, 3, H, W). logits: (B, V, J, h, w) of the heatmaps, where there are.
        """
        for row, item in enumerate(frames.item.tolist()):
            if item in self.wanted:
                maps = None if logits is None else logits[row]
                seen = images[row].clone(), maps, take(frames, row), single.frame(row)
                self._kept[item] = to_device(seen, torch.device("cpu"))

    def scene(self, items: Tensor, pooled: SceneEstimate | None) -> None:
        """Draws the chosen frames of a scene and forgets them."""
        for row, item in enumerate(items.tolist()):
            if item not in self._kept:
                continue
            images, logits, frame, single = self._kept.pop(item)
            estimates = {"alone": single}
            if pooled is not None:
                estimate = to_device(pooled.frame(row), torch.device("cpu"))
                estimates[f"{len(items)} frames pooled"] = estimate
            labels, truth = self.dataset.index.labels, frame.truth
            action = f"{labels.subject_names[truth.subject]} {labels.action_names[truth.action]}"
            name = f"{action} frame {int(truth.frame)}"
            plain = re.sub(r"[^\w.-]+", "_", name)
            for part, picture in self._draw(images, logits, frame, estimates, name).items():
                draw.save(picture, self.folder / f"{plain}_{part}.png")

    def _draw(
        self, images, logits, frame: SceneFrames, estimates: dict[str, SceneEstimate], name: str
    ) -> dict[str, np.ndarray]:
        """The pictures of one frame (no dimension T); estimates by what titles call them."""
        truth, index = frame.truth, self.dataset.index
        places = np.flatnonzero(index.seen[int(frame.item)])
        names = [index.labels.camera_names[index.cameras[place]] for place in places]
        views, maps, skeletons, rigs = [], [], [], []
        for what, (prediction, posterior, _) in estimates.items():
            R, t = (part[0].float() for part in posterior_mean(posterior))
            joints, covariance = (part.float().numpy() for part in prediction)
            error = float(metrics.mpjpe(prediction.joints3d.float(), truth.joints3d))
            person, up = (joints, covariance, truth.joints3d.numpy()), up_direction(R.numpy())
            title = f"{name}, {what}: MPJPE {error:.0f} mm"
            skeletons.append(draw.skeleton_sides(*person, up, title))
            words = rotation_words(R, truth.cameras.R)
            title = f"{name}, {what}: rotation error of pairs {words}"
            rigs.append(rig_picture(posterior, joints, names, truth.cameras, title))
            if what == "alone":
                rig = Cameras(truth.cameras.K, R, t)
                projected = project(prediction.joints3d, rig).numpy()
        xy, covariance, _ = (part.float().numpy() for part in frame.keypoints)
        for v, image in enumerate(images):
            error = np.linalg.norm(projected[v] - xy[v], axis=-1)
            title = f"{names[v]}: reprojection {np.nanmedian(error):.1f} px (median)"
            view = denormalise(image.numpy()), H36M17, xy[v], covariance[v], projected[v]
            views.append(draw.overlay(*view, title))
            if logits is not None:
                error = np.linalg.norm(xy[v] - truth.joints2d[v].numpy(), axis=-1)
                title = f"{names[v]}: keypoint error {np.nanmedian(error):.1f} px (median)"
                maps.append(draw.heatmap_picture(image, logits[v], truth.joints2d[v], title))
        rows = [draw.beside(views), *(draw.beside(pair) for pair in zip(skeletons, rigs))]
        return {
            "views": draw.beside(views, 4),
            **({"heatmaps": draw.beside(maps, 4)} if maps else {}),
            "skeleton": draw.beside(skeletons),
            "rig": draw.beside(rigs, 1),
            "overview": draw.beside(rows, 1),
        }
