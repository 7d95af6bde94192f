"""Clips of known people with what a detector says of them: a real one, or the error model."""

from __future__ import annotations

import dataclasses
import logging
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ptri.config import Config
from ptri.data.index import Index
from ptri.data.loaders import EvaluationLoader
from ptri.data.multiview import MultiView, build_index
from ptri.detectors.protocol import PoseDetector
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.people.detections import simulate_detections
from ptri.people.draws import Draws
from ptri.people.error_model import ErrorModel
from ptri.rig.check import RigInput, known_joints
from ptri.skeleton import COCO17, H36M17, Skeleton
from ptri.structures import Cameras, Keypoints, cat

log = logging.getLogger(__name__)

LABELS_FPS = 50.0  # Human3.6M's labels, and the renderer's, number frames at this rate
FOCAL = 1000.0  # px of the images that keypoints of any crop are brought to
TRUTH_NAME = "rendered_truth.npz"  # what the renderer writes beside the labels
MIN_CLIPS = 8  # fewer say nothing about the spread over clips
# Faults that a network which answers for every joint does not have, and those of other detectors.
PRESENT = dict.fromkeys(
    (
        *("missing_rate", "missing_hidden_rate", "missing_view_rate"),
        *("gross_rate", "drop_rate", "flat_views"),
    ),
    0.0,
)


class Clips(NamedTuple):
    """B clips of T frames in V static views; px of images with focal length `FOCAL`, centre 0."""

    joints: Tensor  # (B, T, 17, 3) mm, frame of view 0
    cameras: Cameras  # (B, V, ...) truth
    keypoints: Keypoints  # (B, T, V, 17, ...); NaN: the detector's joint set has no such joint
    inside: Tensor  # (B, T, V, 17) bool, the joint lies inside the image
    fps: float
    joint_set: str = H36M17.name  # of the detector

    def moving_cameras(self) -> Cameras:
        """The cameras with their K once a frame (B, T, V, 3, 3), as triangulation takes them."""
        K = self.cameras.K.unsqueeze(1).expand(-1, self.joints.shape[1], -1, -1, -1)
        return self.cameras._replace(K=K)


class Detected(NamedTuple):
    """A detector's keypoints of clips, also by the names that it gives them itself."""

    clips: Clips
    keypoints: Keypoints  # (B, T, V, J, ...) px as in `Clips`, of the detector's joint set
    truth: Tensor  # (B, T, J, 3) mm, its joints where the data tell them, else NaN
    inside: Tensor  # (B, T, V, J) bool, these lie inside the image

    def true_xy(self) -> Tensor:
        """(B, T, V, J, 2) px, where the keypoints should be; NaN where that is not known."""
        return project(self.truth, Cameras(*(part.unsqueeze(1) for part in self.clips.cameras)))


def cut_clips(index: Index, length: int, least: int = MIN_CLIPS) -> tuple[np.ndarray, float]:
    """Rows of consecutive frames with every view.

    Args:
        least: clips that are needed.

    Returns:
        Positions (B, T) in the index, and frames per second.

    Raises:
        UserError: too few clips of that length.
    """
    labels, rows = index.labels, index.rows
    truth = labels.subject[rows].astype(np.int64) * len(labels.action_names) + labels.action[rows]
    step = np.diff(labels.frame[rows].astype(np.int64))
    same = (np.diff(truth) == 0) & index.seen.all(1)[1:] & index.seen.all(1)[:-1]
    usual = int(np.median(step[same])) if same.any() else 0
    ends = np.flatnonzero(~(same & (step == usual))) + 1
    runs = np.split(np.arange(len(rows)), ends)
    clips = [
        run[first : first + length]
        for run in runs
        for first in range(0, len(run) - length + 1, length)
    ]
    if len(clips) < least or usual < 1:
        raise UserError(
            f"{index.source}: {len(clips)} clips of {length} consecutive frames in every view; at "
            f"least {least} are needed: more people (scripts/render_people.py --actions) or "
            "shorter clips (--length)"
        )
    return np.stack(clips), LABELS_FPS / usual


@torch.inference_mode()
def detect(
    detector: PoseDetector,
    config: Config,
    length: int,
    most_frames: int = 0,
    least: int = MIN_CLIPS,
) -> Detected:
    """Runs a detector on the test subjects of a Human3.6M layout.

    Args:
        config: its section data; image size and crops become the detector's.
        length: T, frames of a clip.
        most_frames: of all clips together, spread evenly; 0: all.
        least: clips that are needed.

    Raises:
        UserError: no such data or subjects; too few clips; one view only.
    """
    data = dataclasses.replace(
        config.data, image_size=detector.image_size, crop_scale=detector.crop_scale
    )
    index = build_index(data, "test")
    clips, fps = cut_clips(index, length, least)
    if most_frames:
        count = min(max(most_frames // length, least), len(clips))
        clips = clips[np.linspace(0, len(clips) - 1, count).round().astype(int)]
    chosen = clips.ravel()
    index = index._replace(rows=index.rows[chosen], seen=index.seen[chosen])
    index = with_own_joints(index, detector.skeleton)
    parts = []
    loader = EvaluationLoader(MultiView(index, data), 4, data.workers)
    for batch in tqdm(loader, desc=detector.name, unit="batch", disable=None):
        said = detector(batch.images.flatten(0, 1))
        shape = batch.visible.shape[:2]
        xy, covariance, confidence = (v.cpu().unflatten(0, shape) for v in said)
        K = batch.cameras.K
        scale = FOCAL / K[..., 0, 0].unsqueeze(-1)  # (B, V, 1)
        xy = (xy - K[..., None, :2, 2]) * scale.unsqueeze(-1)
        native = Keypoints(xy, covariance * scale[..., None, None] ** 2, confidence)
        keypoints = known_joints(RigInput(native, K, detector.skeleton))
        parts.append((*native, *keypoints, batch.joints3d, batch.visible, *batch.cameras[1:]))
    values = [torch.cat(part).unflatten(0, clips.shape) for part in zip(*parts)]
    native, keypoints = Keypoints(*values[:3]), Keypoints(*values[3:6])
    joints, inside, R, t = values[6:]
    J = len(H36M17.joints)
    log.info("%d clips of %d frames at %g fps, %d views", *clips.shape, fps, R.shape[2])
    cameras = static_cameras(R[:, 0], t[:, 0])
    name = detector.skeleton.name
    found = Clips(joints[:, :, :J], cameras, keypoints, inside[..., :J], fps, name)
    own = slice(None) if detector.skeleton == H36M17 else slice(J, None)
    return Detected(found, native, joints[:, :, own], inside[..., own])


def join(parts: list[Detected]) -> Detected:
    """Clips of several data sets as one.

    Raises:
        UserError: they have other numbers of views, or other frame rates.
    """
    kinds = {(part.inside.shape[2], part.clips.fps) for part in parts}
    if len(kinds) > 1:
        words = ", ".join(f"{views} views at {fps:g} fps" for views, fps in sorted(kinds))
        raise UserError(f"several data sets: {words}; expected the same in all (--views chooses)")
    return cat(parts)


def with_own_joints(index: Index, skeleton: Skeleton) -> Index:
    """An index whose joints (N, 17 + J, 3) mm go on with those of a detector's joint set.

    Rendered people have COCO's (`ptri/render/write/layout.py`); others are NaN.
    """
    if skeleton == H36M17:
        return index
    labels, path = index.labels, index.root / "extra" / TRUTH_NAME
    own = np.full((len(labels.joints), len(skeleton.joints), 3), np.nan, np.float32)
    if skeleton == COCO17 and path.is_file():
        with np.load(path, allow_pickle=False) as file:
            own = file["coco17_joints"]
    joints = np.concatenate([labels.joints, own], 1)
    return index._replace(labels=labels._replace(joints=joints))


def static_cameras(R: Tensor, t: Tensor) -> Cameras:
    """Cameras with the intrinsics of `Clips`; R (B, V, 3, 3), t (B, V, 3) mm."""
    K = torch.diag(torch.tensor([FOCAL, FOCAL, 1.0])).expand(*R.shape[:-2], 3, 3)
    return Cameras(K, R, t)


def simulate(clips: Clips, options: ErrorModel, seed: int) -> Clips:
    """The same people and cameras with keypoints from the error model, missing where they were."""
    draws = Draws.from_seeds([(seed, row) for row in range(len(clips.joints))])
    errors = dataclasses.replace(options, fps=clips.fps, joint_set=clips.joint_set, **PRESENT)
    keypoints = simulate_detections(draws, errors, clips.joints, clips.cameras).keypoints
    xy = keypoints.xy.masked_fill(clips.keypoints.xy.isnan(), torch.nan)
    return clips._replace(keypoints=keypoints._replace(xy=xy))
