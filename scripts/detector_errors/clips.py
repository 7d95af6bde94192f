"""Clips of known people with what a detector says of them: a 2D network's, or the error model's."""

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
from ptri.errors import UserError
from ptri.models.network2d import Network2D
from ptri.people.detections import simulate_detections
from ptri.people.draws import Draws
from ptri.people.error_model import ErrorModel
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints

log = logging.getLogger(__name__)

LABELS_FPS = 50.0  # Human3.6M's labels, and the renderer's, number frames at this rate
FOCAL = 1000.0  # px of the images that keypoints of any crop are brought to
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


def cut_clips(index: Index, length: int) -> tuple[np.ndarray, float]:
    """Rows of consecutive frames with every view.

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
    if len(clips) < MIN_CLIPS or usual < 1:
        raise UserError(
            f"{index.source}: {len(clips)} clips of {length} consecutive frames in every view; at "
            f"least {MIN_CLIPS} are needed: more people (scripts/render_people.py --actions) or "
            "shorter clips (--length)"
        )
    return np.stack(clips), LABELS_FPS / usual


@torch.inference_mode()
def detect(network: Network2D, config: Config, length: int, most_frames: int = 0) -> Clips:
    """Runs a 2D network, ready for inference, on the test subjects of a Human3.6M layout.

    Args:
        config: its section data, the image size being the network's.
        length: T, frames of a clip.
        most_frames: of all clips together, spread evenly; 0: all.

    Raises:
        UserError: no such data or subjects; too few clips; one view only.
    """
    index = build_index(config.data, "test")
    clips, fps = cut_clips(index, length)
    if most_frames:
        count = min(max(most_frames // length, MIN_CLIPS), len(clips))
        clips = clips[np.linspace(0, len(clips) - 1, count).round().astype(int)]
    chosen = clips.ravel()
    index = index._replace(rows=index.rows[chosen], seen=index.seen[chosen])
    loader = EvaluationLoader(MultiView(index, config.data), 4, config.data.workers)
    device = next(network.parameters()).device
    parts = []
    for batch in tqdm(loader, desc="2D network", unit="batch", disable=None):
        said = network(batch.images.flatten(0, 1).to(device)).keypoints
        xy, covariance, confidence = (v.cpu().unflatten(0, batch.visible.shape[:2]) for v in said)
        K = batch.cameras.K
        scale = FOCAL / K[..., 0, 0].unsqueeze(-1)  # (B, V, 1)
        xy = (xy - K[..., None, :2, 2]) * scale.unsqueeze(-1)
        keypoints = xy, covariance * scale[..., None, None] ** 2, confidence
        parts.append((*keypoints, batch.joints3d, batch.visible, *batch.cameras[1:]))
    values = [torch.cat(part).unflatten(0, clips.shape) for part in zip(*parts)]
    *keypoints, joints, inside, R, t = values
    log.info("%d clips of %d frames at %g fps, %d views", *clips.shape, fps, R.shape[2])
    return Clips(joints, static_cameras(R[:, 0], t[:, 0]), Keypoints(*keypoints), inside, fps)


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
