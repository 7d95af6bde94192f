"""Pictures of an evaluation: a few frames with their views, heatmaps, skeleton and rig."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptri.data.h36m import H36M
from ptri.evaluation import draw as visualize
from ptri.evaluation import metrics
from ptri.evaluation.draw_rig import rig_picture
from ptri.evaluation.predictions import SceneEstimate, SceneFrames
from ptri.geometry.cameras import project
from ptri.posterior.sampling import posterior_mean
from ptri.skeleton import H36M17
from ptri.structures import Cameras, RigPosterior, Sample


def up_direction(R: np.ndarray) -> np.ndarray:
    """Roughly up in the reference frame, (3,): against the mean of the cameras' y axes.

    Args:
        R: (V, 3, 3).
    """
    return -R[:, 1].mean(0)


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` indices, evenly spread, the first and the last included."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).round().astype(int)).tolist()


class Painter:
    """Keeps the images of evenly spread frames and draws them once their scene is solved."""

    def __init__(self, folder: Path, dataset: H36M, count: int) -> None:
        self.folder, self.dataset = folder, dataset
        self.wanted = set(spread(len(dataset), count))
        self._images: dict[int, np.ndarray] = {}
        self._heatmaps: dict[int, np.ndarray] = {}

    def keep_images(self, batch: Sample, items: Tensor) -> None:
        for row, item in enumerate(items.tolist()):
            if item in self.wanted:
                views = [visualize.denormalise(image.numpy()) for image in batch.images[row]]
                self._images[item] = np.stack(views)

    def keep_heatmaps(self, logits: Tensor, items: Tensor) -> None:
        """Keeps heatmaps from logits (B, V, J, h, w)."""
        for row, item in enumerate(items.tolist()):
            if item in self.wanted:
                flat = logits[row].float().flatten(2).softmax(-1)
                self._heatmaps[item] = flat.view_as(logits[row]).cpu().numpy()

    def scene(
        self, scene: SceneFrames, single: SceneEstimate, pooled: SceneEstimate | None
    ) -> None:
        """Draws the scene's chosen frames and forgets their images."""
        for row, item in enumerate(scene.item.tolist()):
            if item not in self._images:
                continue
            alone = rig_of(single.posterior, row)
            together = None if pooled is None else rig_of(pooled.posterior, 0)
            name = self._name(scene, row)
            plain = re.sub(r"[^\w.-]+", "_", name)
            parts = self._draw(scene, row, single, alone, pooled, together, name)
            for part, picture in parts.items():
                visualize.save(picture, self.folder / f"{plain}_{part}.png")
            del self._images[item], self._heatmaps[item]

    def _name(self, scene: SceneFrames, row: int) -> str:
        labels = self.dataset.index.labels
        subject = labels.subject_names[int(scene.subject[row])]
        action = labels.action_names[int(scene.action[row])]
        return f"{subject} {action} frame {int(scene.frame[row])}"

    def _camera_names(self, scene: SceneFrames, row: int) -> list[str]:
        index = self.dataset.index
        seen = np.flatnonzero(index.seen[int(scene.item[row])])
        return [index.labels.camera_names[index.cameras[view]] for view in seen]

    def _draw(self, scene, row, single, alone, pooled, together, name) -> dict[str, np.ndarray]:
        item = int(scene.item[row])
        images, heatmaps = self._images[item], self._heatmaps[item]
        keypoints = [part[row].float().cpu().numpy() for part in scene.keypoints]
        K = scene.cameras.K[row]
        truth2d = scene.joints2d[row].cpu().numpy()
        cameras = self._camera_names(scene, row)
        R, t = alone[0]
        joints = single.prediction.joints3d[row]
        projected = project(joints.cpu(), Cameras(K.cpu(), R, t)).numpy()
        views, maps = [], []
        for v, image in enumerate(images):
            error = np.linalg.norm(projected[v] - keypoints[0][v], axis=-1)
            title = f"{cameras[v]}: reprojection {np.nanmedian(error):.1f} px (median)"
            views.append(
                visualize.overlay(
                    image, H36M17, keypoints[0][v], keypoints[1][v], projected[v], title
                )
            )
            error = np.linalg.norm(keypoints[0][v] - truth2d[v], axis=-1)
            title = f"{cameras[v]}: keypoint error {np.nanmedian(error):.1f} px (median)"
            maps.append(visualize.heatmap_overlay(image, heatmaps[v], truth2d[v], title))
        skeletons = [self._skeleton(scene, row, single, R, f"{name}, alone")]
        rigs = [self._rig(scene, row, joints, alone, cameras, f"{name}, alone")]
        if pooled is not None:
            (pooled_R, _), _ = together
            what = f"{len(scene.frame)} frames pooled"
            skeletons.append(self._skeleton(scene, row, pooled, pooled_R, f"{name}, {what}"))
            joints = pooled.prediction.joints3d[row]
            rigs.append(self._rig(scene, row, joints, together, cameras, f"{name}, {what}"))
        rows = [
            visualize.beside(views),
            *(visualize.beside([a, b]) for a, b in zip(skeletons, rigs)),
        ]
        return {
            "views": visualize.beside(views, 4),
            "heatmaps": visualize.beside(maps, 4),
            "skeleton": visualize.beside(skeletons),
            "rig": visualize.beside(rigs, 1),
            "overview": visualize.beside(rows, 1),
        }

    def _skeleton(self, scene, row, estimate: SceneEstimate, R: Tensor, title: str) -> np.ndarray:
        joints = estimate.prediction.joints3d[row].float().cpu()
        truth = scene.joints3d[row].float().cpu()
        error = float(metrics.mpjpe(joints, truth, H36M17.root))
        covariance = estimate.prediction.covariance[row].float().cpu().numpy()
        return visualize.skeleton_sides(
            H36M17, joints.numpy(), covariance, truth.numpy(), up_direction(R.numpy()),
            f"{title}: MPJPE {error:.0f} mm",
        )  # fmt: skip

    def _rig(self, scene, row, joints: Tensor, rig, cameras: list[str], title: str) -> np.ndarray:
        (R, t), samples = rig
        truth = scene.cameras.R[row].cpu(), scene.cameras.t[row].cpu()
        error = metrics.rotation_error_deg(R, truth[0])
        title += (
            f": rotation error of pairs {error.median():.1f} deg (median), "
            f"{error.max():.1f} deg (worst)"
        )
        person, up = joints.float().cpu().numpy(), up_direction(R.numpy())
        truth = tuple(part.numpy() for part in truth)
        return rig_picture(R.numpy(), t.numpy(), samples, truth, H36M17, person, cameras, up, title)


def rig_of(posterior: RigPosterior, b: int) -> tuple[tuple[Tensor, Tensor], tuple]:
    """Mean cameras (V, 3, 3), (V, 3) of one rig, and its samples with their weights, on the CPU."""
    one = posterior.rigs(slice(b, b + 1))
    R, t = posterior_mean(one)
    weights = one.log_weights[:, 0].double().exp()
    samples = (one.R[:, 0], one.t[:, 0], weights / weights.sum())
    mean = (torch.as_tensor(R[0]).float().cpu(), torch.as_tensor(t[0]).float().cpu())
    return mean, tuple(part.cpu().numpy() for part in samples)
