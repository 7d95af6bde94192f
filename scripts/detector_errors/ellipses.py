"""How often the truth lies in a detector's ellipses; and the numbers that make them hold it.

A detector with `peaks` (`ptri.detectors.peaks`) states what its heatmaps' peaks tell, by numbers
that are fitted here. The truth is that of the detector's own joints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from detector_errors.clips import Detected, with_own_joints
from ptri.config import Config
from ptri.data.loaders import EvaluationLoader
from ptri.data.multiview import MultiView, build_index
from ptri.detectors.movenet import MoveNetDetector
from ptri.detectors.peaks import PeakErrors, fit_peak_errors
from ptri.errors import UserError
from ptri.evaluation.metrics import LEVELS, mahalanobis_square
from ptri.evaluation.table import grid
from ptri.skeleton import H36M17, SKELETONS
from ptri.structures import cat

FRAMES = 400  # of all views, that the numbers are fitted to


@torch.inference_mode()
def peaks_and_truth(detector: MoveNetDetector, config: Config) -> tuple:
    """Peaks (N, J, ...) in crops of the test subjects, and the true joints there (N, J, 2) px.

    Raises:
        UserError: no such data, or it does not tell the detector's own joints.
    """
    data = dataclasses.replace(
        config.data, image_size=detector.image_size, crop_scale=detector.crop_scale
    )
    index = with_own_joints(build_index(data, "test"), detector.skeleton)
    rows = np.linspace(0, len(index.rows) - 1, min(FRAMES, len(index.rows))).round().astype(int)
    index = index._replace(rows=index.rows[rows], seen=index.seen[rows])
    if np.isnan(index.labels.joints[index.rows]).any():
        raise UserError(
            f"{index.root}: does not say where {detector.name}'s joints are; give people rendered "
            "by scripts/render_people.py"
        )
    first = len(H36M17.joints)  # the detector's own come after Human3.6M's
    parts, truths = [], []
    loader = EvaluationLoader(MultiView(index, data), 4, data.workers)
    for batch in tqdm(loader, desc=f"{detector.name}: peaks", unit="batch", disable=None):
        parts.append(detector.peaks(batch.images.flatten(0, 1)))
        truth = batch.joints2d[..., first:, :].clone()
        truth[~batch.visible[..., first:]] = torch.nan
        truths.append(truth.flatten(0, 1))
    return cat(parts), torch.cat(truths)


def calibrate(detector: MoveNetDetector, configs: Sequence[Config]) -> PeakErrors:
    """The numbers under which 90 % of the ellipses of that level hold the truth."""
    peaks, truth = cat([peaks_and_truth(detector, config) for config in configs])
    return fit_peak_errors(peaks, truth, detector.image_size)


def ellipse_table(found: Detected) -> str:
    """Shares of the true joints in the ellipses of 50 and 90 %, joint by joint; "" without truth.

    A joint's left and right count together; joints outside the image do not.
    """
    names = SKELETONS[found.clips.joint_set].joints
    square, used = _squares(found)
    if not used.any():
        return ""
    kinds = [name.removeprefix("left_").removeprefix("right_") for name in names]
    rows = []
    for kind in (*dict.fromkeys(kinds), "all"):
        columns = [i for i, name in enumerate(kinds) if kind in (name, "all")]
        chosen = square[..., columns][used[..., columns]]
        # Of a Gaussian in the plane, the square is below -2 log(1 - p) with probability p.
        shares = [float((chosen < -2 * np.log(1 - p)).double().mean()) for p in LEVELS]
        rows.append([kind, *(f"{100 * share:.1f}" for share in shares)])
    return grid(["truth in the ellipses, %", *(f"of {100 * p:.0f} %" for p in LEVELS)], rows)


def _squares(found: Detected) -> tuple[Tensor, Tensor]:
    """Squared errors over the stated covariances (B, T, V, J), and which count."""
    keypoints = found.keypoints
    error = keypoints.xy - found.true_xy()
    used = found.inside & error.isfinite().all(-1)
    error = torch.where(used[..., None], error, 0.0)
    return mahalanobis_square(error.double(), keypoints.covariance.double()), used
