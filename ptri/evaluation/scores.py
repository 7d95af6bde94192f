"""The scores of frames: of keypoints, of rigs, and of joints."""

from __future__ import annotations

import torch
from torch import Tensor

from ptri.data.multiview import MultiView
from ptri.evaluation import metrics
from ptri.evaluation.predictions import SceneEstimate, SceneFrames
from ptri.models import losses
from ptri.models.heatmap import image_to_heatmap
from ptri.posterior.moments import posterior_mean
from ptri.skeleton import H36M17
from ptri.structures import Prediction, RigPosterior, Sample


def keypoint_scores(frames: SceneFrames, logits: Tensor | None) -> dict[str, Tensor]:
    """Of the joints that the detector gives."""
    given = torch.isfinite(frames.keypoints.xy).all(-1)  # (B, V, J)
    xy, truth, visible = (
        part.flatten(1, 2)  # (B, V J, ...)
        for part in (frames.keypoints.xy, frames.truth.joints2d, frames.truth.visible & given)
    )
    loss = truth.new_full((len(truth),), torch.nan)  # heatmaps of others are not ours to score
    if logits is not None:
        target = image_to_heatmap(frames.truth.joints2d.flatten(0, 1))
        shown = frames.truth.visible.flatten(0, 1)
        loss = losses.heatmap_divergence(logits.flatten(0, 1), target, shown)
        loss = loss.unflatten(0, logits.shape[:2]).mean(1)
    return {
        "loss/hm": loss,
        "x2d/l1": metrics.joint_l1(xy, truth, visible),
        "x2d/l2": metrics.joint_l2(xy, truth, visible),
        "x2d/visible": visible.sum(1),
    }


def seed_scores(prediction: Prediction, truth: Sample) -> dict[str, Tensor]:
    """What the seed project prints of joints, beside their MPJPE."""
    estimate, joints3d = prediction.joints3d, truth.joints3d
    return {
        "loss/x3d": losses.joint_l1(estimate, joints3d, H36M17.root),
        "x3d/l1": metrics.joint_l1(metrics.about_root(estimate), metrics.about_root(joints3d)),
        "subject": truth.subject,
        "action": truth.action,
    }


def joint_scores(prediction: Prediction, truth: Tensor) -> dict[str, Tensor]:
    estimate, covariance = prediction
    return {
        "mpjpe": metrics.mpjpe(estimate, truth),
        "n_mpjpe": metrics.n_mpjpe(estimate, truth),
        "pa_mpjpe": metrics.pa_mpjpe(estimate, truth),
        "absolute": metrics.joint_l2(estimate, truth),
        "joint_coverage": metrics.joint_coverage(estimate, covariance, truth),
    }


def rig_scores(
    estimate: SceneEstimate, true_rigs: RigPosterior, frames: SceneFrames, dataset: MultiView
) -> dict[str, Tensor]:
    """Errors of T frames' rigs, by pair of the data set's C cameras; NaN where they lack a view."""
    posterior = estimate.posterior
    R, t = posterior_mean(posterior)
    R_true, t_true = true_rigs.R[0].to(R), true_rigs.t[0].to(t)
    T, V, C = len(frames.item), R.shape[1], len(dataset.index.cameras)
    places, pairs = frames.places(dataset), metrics.view_pairs(C)
    seen = [pairs.index((places[i], places[j])) for i, j in metrics.view_pairs(V)]
    coverage = R.new_full((T, C - 1, len(metrics.LEVELS)), torch.nan)
    coverage[:, : V - 1] = metrics.rotation_coverage(posterior, R_true)
    scores = {"ess": posterior.ess, "accepted": estimate.accepted.float()}
    error = metrics.mpjpe(estimate.prediction.joints3d, frames.truth.joints3d)
    scores["mpjpe_accepted"] = torch.where(estimate.accepted.to(error.device), error, torch.nan)
    scores["rotation_coverage"] = coverage
    rotation = metrics.rotation_error_deg(R, R_true)
    of_pairs = {
        "rotation_deg": rotation,
        "direction_deg": metrics.translation_direction_error_deg(R, t, R_true, t_true),
        "failed": metrics.failures(rotation),
    }
    for name, value in of_pairs.items():
        scores[name] = R.new_full((T, len(pairs)), torch.nan)
        scores[name][:, seen] = value.to(R)
    return scores
