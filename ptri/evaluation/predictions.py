"""Frames after the 2D network, what is estimated of them, and their rows in predictions.h5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from torch import Tensor

from ptri.data.multiview import MultiView
from ptri.evaluation.outputs import append
from ptri.posterior.moments import posterior_mean, resample
from ptri.rig.check import RigInput
from ptri.skeleton import H36M17
from ptri.structures import Keypoints, Prediction, RigPosterior, Sample, take

FILE = "predictions.h5"
PART = "predictions.part{}.h5"  # of each process, where there are several
SAVED_SAMPLES = 32  # posterior samples per rig in predictions.h5, of equal weight


class SceneEstimate(NamedTuple):
    """Joints of T frames and the rig posterior they came from (B = T, or 1 when pooled)."""

    prediction: Prediction  # (T, J, 3) mm, (T, J, 3, 3) mm^2
    posterior: RigPosterior
    accepted: Tensor  # (B,) bool, the verdicts

    def frame(self, row: int) -> SceneEstimate:
        """Joints (J, 3) of one frame, and its rig's posterior (B = 1)."""
        rig = [row % len(self.accepted)]  # of one rig: the first one
        return SceneEstimate(
            take(self.prediction, row), self.posterior.rigs(rig), self.accepted[rig]
        )


class SceneFrames(NamedTuple):
    """One batch, or one scene, after the 2D network; tensors have T frames first."""

    given: RigInput  # as detected, of the detector's own skeleton
    keypoints: Keypoints  # (T, V, 17, ...) Human3.6M's joints of them; NaN where it has none
    features: Tensor | None  # (T, V, 17, C) of our own 2D network at the keypoints
    truth: Sample  # without images (None): a scene of them would fill the memory
    item: Tensor  # (T,) place in the data set

    def alone(self) -> tuple[Keypoints, Tensor, Tensor | None]:
        """Keypoints (T, 1, V, J, ...), K (T, 1, V, 3, 3) and features: T rigs of one frame each."""
        return take((self.keypoints, self.truth.cameras.K, self.features), (slice(None), None))

    def places(self, dataset: MultiView) -> np.ndarray:
        """(V,) places of the frames' views among the data set's chosen cameras."""
        return np.flatnonzero(dataset.index.seen[int(self.item[0])])


def thin(estimate: SceneEstimate) -> SceneEstimate:
    """Keeps `SAVED_SAMPLES` samples of equal weight of each rig."""
    samples = resample(estimate.posterior, SAVED_SAMPLES)
    return estimate._replace(posterior=samples._replace(ess=estimate.posterior.ess))


def write_header(file: h5py.File, dataset: MultiView) -> None:
    """Units, and the names of what the rows count."""
    labels, cameras = dataset.index.labels, dataset.index.cameras
    file.attrs.update(units="mm, px, rad", frame="view 0's camera", format="ptri predictions 1")
    file["subject_names"] = list(labels.subject_names)
    file["action_names"] = list(labels.action_names)
    file["camera_names"] = [labels.camera_names[camera] for camera in cameras]
    file["joint_names"] = list(H36M17.joints)


def write_frames(file: h5py.File, frames: SceneFrames, dataset: MultiView) -> None:
    """Appends what was detected in frames, and the truth."""
    truth = frames.truth
    rows = {name: getattr(truth, name).cpu().numpy() for name in ("subject", "action", "frame")}
    for name, value in frames.keypoints._asdict().items():
        rows[f"keypoints/{name}"] = _spread_views(value, 1, frames, dataset)
    for name, value in truth.cameras._asdict().items():
        rows[f"cameras/{name}"] = _spread_views(value, 1, frames, dataset)
    append(file, rows | {"joints3d_true": truth.joints3d.float().cpu().numpy()})


def write_estimate(
    file: h5py.File, method: str, estimate: SceneEstimate, frames: SceneFrames, dataset: MultiView
) -> None:
    """Appends what was estimated of frames; a rig of several stands at each of them."""
    T, (R, t) = len(frames.item), posterior_mean(estimate.posterior)
    sample_R, sample_t, *_ = resample(estimate.posterior, SAVED_SAMPLES)
    rows = {
        "R": _spread_views(R, 1, frames, dataset),
        "t": _spread_views(t, 1, frames, dataset),
        "samples_R": _spread_views(sample_R.transpose(0, 1), 2, frames, dataset),
        "samples_t": _spread_views(sample_t.transpose(0, 1), 2, frames, dataset),
        "accepted": estimate.accepted.cpu().numpy(),
        "ess": estimate.posterior.ess.float().cpu().numpy(),
    }
    for name, value in estimate.prediction._asdict().items():
        rows[name] = value.float().cpu().numpy()
    rows = {name: value.repeat(T, 0) if len(value) < T else value for name, value in rows.items()}
    append(file, {f"{method}/{name}": value for name, value in rows.items()})


def merge(
    parts: Sequence[Path], shares: Sequence[dict[int, int]], path: Path, dataset: MultiView
) -> None:
    """Joins the files of several processes, scene by scene in order, and removes them.

    Args:
        shares: of each file's scenes, in its order: the first item, and the number of frames.
    """
    places = {}  # of each scene: its file, its first row there, its rows
    for part, share in zip(parts, shares):
        row = 0
        for number, count in share.items():
            places[number] = part, slice(row, row + count)
            row += count
    with h5py.File(path, "w") as whole:
        write_header(whole, dataset)
        for number in sorted(places):
            part, rows = places[number]
            with h5py.File(part) as file:
                values: dict[str, h5py.Dataset] = {}
                file.visititems(lambda name, value, found=values: found.update({name: value}))
                grown = {  # the header's do not grow
                    name: value[rows]
                    for name, value in values.items()
                    if isinstance(value, h5py.Dataset) and value.maxshape[0] is None
                }
            append(whole, grown)
    for part in parts:
        part.unlink()


def _spread_views(value: Tensor, axis: int, frames: SceneFrames, dataset: MultiView) -> np.ndarray:
    """Views at their camera's place along an axis; NaN where there is none."""
    array = np.moveaxis(value.float().cpu().numpy(), axis, 0)
    result = np.full((len(dataset.index.cameras), *array.shape[1:]), np.nan, np.float32)
    result[frames.places(dataset)] = array
    return np.moveaxis(result, 0, axis)
