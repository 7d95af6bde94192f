"""Evaluation of the 3D model on a Human3.6M-style test set.

Every frame is solved alone, as the seed project does, and again with the frames of its scene pooled
into one rig posterior. Two ceilings stand beside them: the same keypoints and the same fusion with
the true cameras, and plain robust triangulation with the true cameras.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ptri import config as configuration
from ptri.config import Config
from ptri.data.h36m import H36M, open_split
from ptri.data.h36m_index import is_damaged
from ptri.data.loaders import EvaluationLoader
from ptri.errors import UserError
from ptri.evaluation import metrics, outputs, predictions, table
from ptri.evaluation.pictures import Painter
from ptri.evaluation.predictions import SceneEstimate, SceneFrames
from ptri.geometry.robust import robust_triangulation
from ptri.models import losses
from ptri.models.heatmap import image_to_heatmap
from ptri.models.weights import build_model, for_inference, holds_2d
from ptri.posterior.sampling import posterior_from_cameras, posterior_mean
from ptri.rig.check import RigInput
from ptri.rig.estimate import solve, solve_cameras
from ptri.rig.joints import fuse_body, fuse_rig
from ptri.skeleton import H36M17
from ptri.structures import (
    Cameras,
    Keypoints,
    Prediction,
    Sample,
    take,
    to_device,
    tree_map,
)
from ptri.system import choose_device

log = logging.getLogger(__name__)


class Timer:
    """Seconds per frame by stage; the first use of a stage, which warms up, is left out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._used: dict[str, list[tuple[float, int]]] = defaultdict(list)

    @contextmanager
    def __call__(self, stage: str, frames: int) -> Iterator[None]:
        start = self._now()
        yield
        self._used[stage].append((self._now() - start, frames))

    def per_frame(self) -> dict[str, float]:
        result = {}
        for stage, used in self._used.items():
            used = used[1:] or used
            result[stage] = sum(s for s, _ in used) / sum(n for _, n in used)
        return result

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def evaluate(
    model: nn.Module, dataset: H36M, config: Config, folder: Path
) -> tuple[dict[str, float], str]:
    """Evaluates a model over every frame of a data set and writes the output folder.

    Args:
        model: `ptri.models.pose_model.PoseModel`, on its device.
        dataset: test split, multi-view.
        folder: made and cleared of an older run's files.

    Returns:
        The figures of metrics.json, and the printed text.
    """
    outputs.clear(folder)
    (folder / "config.yaml").write_text(configuration.to_yaml(config))
    device = next(model.parameters()).device
    timer, scores = Timer(device), table.Scores()
    painter = Painter(folder / outputs.PICTURES, dataset, config.evaluate.pictures)
    model.eval()
    num_scenes = 0
    attributes = {
        "units": "mm, px, rad",
        "frame": "view 0's camera",
        "format": "ptri predictions 1",
    }
    with (
        torch.no_grad(),
        outputs.PredictionFile(folder / "predictions.h5", attributes) as file,
    ):
        predictions.write_names(file, dataset)
        for scene, singles in _scenes(model, dataset, config, scores, timer, painter):
            num_scenes += 1
            views = predictions.views(dataset, scene)
            pooled = (
                _solve_pooled(model, scene, config, timer) if config.evaluate.pool_frames else None
            )
            if pooled is not None:
                truth = take(scene.cameras, slice(0, 1))
                scores.add("pooled", _joint_scores(pooled.prediction, scene.joints3d))
                scores.add("pooled", _rig_scores(pooled, truth, views, dataset))
                known = _fuse_scene(model, scene, posterior_from_cameras(truth))
                error = metrics.mpjpe(known.joints3d, scene.joints3d, H36M17.root)
                scores.add("pooled", _numpy({"mpjpe_calibrated": error}))
            file.append(predictions.rows(scene, singles, pooled, views, dataset))
            painter.scene(scene, singles, pooled)
    scores.add("", {"damaged": _damaged(dataset)})
    return _report(scores, timer, dataset, config, num_scenes, folder)


def _report(scores, timer, dataset, config, num_scenes, folder) -> tuple[dict[str, float], str]:
    seconds = timer.per_frame()
    figures = table.metrics_of(scores, seconds)
    names = [dataset.index.labels.camera_names[camera] for camera in dataset.index.cameras]
    pairs = [f"{names[i]} - {names[j]}" for i, j in metrics.view_pairs(len(names))]
    notes = {
        "frames": len(dataset),
        "scenes": num_scenes,
        "views": len(names),
        "image_size": config.data.image_size,
        "device": str(timer.device),
        "threads": torch.get_num_threads(),
    }
    details = table.details_of(scores, seconds, pairs, notes)
    rows = table.action_rows(scores, list(dataset.index.labels.action_names))
    text = "\n\n".join(
        [
            table.seed_lines(figures),
            table.table(details, bool(scores["damaged"].any())),
            table.action_table(rows),
        ]
    )
    outputs.write_json(folder / "metrics.json", figures)
    outputs.write_json(folder / "details.json", details)
    table.write_csv(folder / "per_action.csv", rows)
    (folder / "table.txt").write_text(text + "\n")
    return figures, text


# --- frames alone ----------------------------------------------------------------------------


def _scenes(
    model, dataset, config, scores, timer, painter
) -> Iterator[tuple[SceneFrames, SceneEstimate]]:
    """Detects and solves every frame alone; yields the scenes, seen by the same views each."""
    loader = EvaluationLoader(dataset, config.evaluate.batch_size, config.data.workers)
    with tqdm(total=len(dataset), desc="evaluate", unit="frame", leave=False) as progress:
        for scene in loader.scenes():
            parts = []
            for items, batch in scene:
                items = torch.tensor(items)
                frames = _detect(model, batch, items, config, scores, timer, painter)
                single = _solve_single(model, frames, config, timer)
                _score_frames(model, frames, single, dataset, config, scores)
                parts.append((frames, predictions.thin(single)))
                progress.update(len(items))
            yield predictions.join(parts)


def _detect(model, batch: Sample, items: Tensor, config, scores, timer, painter) -> SceneFrames:
    device = timer.device
    painter.keep_images(batch, items)
    batch = to_device(batch, device)
    B, V = batch.images.shape[:2]
    with timer("detect", B):
        detection = model.detect(batch.images.flatten(0, 1))  # (B V, ...)
        keypoints = Keypoints(*(part.float().unflatten(0, (B, V)) for part in detection.keypoints))
        features = model.joint_features(detection).unflatten(0, (B, V))
    painter.keep_heatmaps(detection.logits.unflatten(0, (B, V)), items)
    heatmap_loss = losses.heatmap_divergence(
        detection.logits.float(),
        image_to_heatmap(batch.joints2d.flatten(0, 1)),
        batch.visible.flatten(0, 1),
    )
    l1 = metrics.joint_l1(
        keypoints.xy.flatten(1, 2), batch.joints2d.flatten(1, 2), batch.visible.flatten(1, 2)
    )
    l2 = metrics.joint_l2(
        keypoints.xy.flatten(1, 2), batch.joints2d.flatten(1, 2), batch.visible.flatten(1, 2)
    )
    values = {
        "loss/hm": heatmap_loss.unflatten(0, (B, V)).mean(1),
        "x2d/l1": l1,
        "x2d/l2": l2,
        "x2d/visible": batch.visible.sum((1, 2)),
    }
    scores.add("", _numpy(values))
    return SceneFrames(
        keypoints, features, batch.cameras, batch.joints3d, batch.joints2d, batch.visible,
        batch.subject, batch.action, batch.frame, items,
    )  # fmt: skip


def _solve_single(model, frames: SceneFrames, config: Config, timer: Timer) -> SceneEstimate:
    keypoints, K = predictions.with_time(frames)
    B = len(frames.frame)
    with timer("posterior", B):
        solution = solve(model, keypoints, K, config.posterior, config.run.seed)
    with timer("fusion", B):
        features = frames.features[:, None]
        posterior = solution.posterior
        prediction = fuse_body(model, keypoints, K, posterior, solution.sides, features)
    accepted = torch.tensor([verdict.accepted for verdict in solution.verdicts])
    return SceneEstimate(take(prediction, (slice(None), 0)), posterior, accepted)


def _score_frames(
    model, frames: SceneFrames, single: SceneEstimate, dataset, config, scores
) -> None:
    keypoints, K = predictions.with_time(frames)
    cameras = frames.cameras
    true_rigs = posterior_from_cameras(cameras)
    features = frames.features[:, None]
    calibrated = fuse_body(model, keypoints, K, true_rigs, features=features)
    calibrated = take(calibrated, (slice(None), 0))
    plain, _ = robust_triangulation(keypoints, Cameras(K, cameras.R, cameras.t))
    plain = Prediction(*(part[:, 0].to(K) for part in plain))
    root = H36M17.root  # errors of triangulated joints are independent, so those about the root add
    plain = plain._replace(covariance=plain.covariance + plain.covariance[:, root : root + 1])
    scores.add("single", _joint_scores(single.prediction, frames.joints3d))
    views = predictions.views(dataset, frames)
    scores.add("single", _rig_scores(single, cameras, views, dataset))
    scores.add("calibrated", _joint_scores(calibrated, frames.joints3d))
    scores.add("plain", _joint_scores(plain, frames.joints3d))
    estimate, truth = single.prediction.joints3d, frames.joints3d
    centred = [x - x[:, root : root + 1] for x in (estimate, truth)]
    values = {
        "loss/x3d": losses.joint_l1(estimate, truth, root),
        "x3d/l1": metrics.joint_l1(*centred),
        "x3d/l2": metrics.joint_l2(*centred),
        "action": frames.action,
    }
    scores.add("", _numpy(values))


# --- frames of a scene pooled ----------------------------------------------------------------


def _solve_pooled(model, scene: SceneFrames, config: Config, timer: Timer) -> SceneEstimate:
    """One rig posterior from the frames that say most; all frames of the scene fused with it."""
    T = len(scene.frame)
    keypoints = tree_map(Tensor.double, scene.keypoints)
    given = RigInput(keypoints, scene.cameras.K.double(), H36M17)
    with timer("pooled/posterior", T):
        solved = solve_cameras(
            model, given, config.posterior, config.run.seed, config.evaluate.pool_frames
        )
    with timer("pooled/fusion", T):
        prediction = _fuse_scene(model, scene, solved.posterior, solved.sides, solved.frames)
    accepted = torch.tensor([solved.verdict.accepted])
    return SceneEstimate(prediction, solved.posterior, accepted)


def _fuse_scene(model, scene: SceneFrames, posterior, sides=None, frames=()) -> Prediction:
    """Joints of a scene's frames, which lie in order of time, under one posterior."""
    keypoints, K = scene.keypoints, scene.cameras.K
    return fuse_rig(model, keypoints, K, posterior, sides, frames, scene.features)


# --- scores ----------------------------------------------------------------------------------


def _joint_scores(prediction: Prediction, truth: Tensor) -> dict[str, np.ndarray]:
    estimate, root = prediction.joints3d, H36M17.root
    values = {
        "mpjpe": metrics.mpjpe(estimate, truth, root),
        "n_mpjpe": metrics.n_mpjpe(estimate, truth, root),
        "pa_mpjpe": metrics.pa_mpjpe(estimate, truth),
        "absolute": metrics.absolute_error(estimate, truth),
        "joint_coverage": metrics.joint_coverage(
            estimate, prediction.covariance, truth, root, metrics.LEVELS
        ),
    }
    return _numpy(values)


def _rig_scores(
    estimate: SceneEstimate, truth: Cameras, views: np.ndarray, dataset: H36M
) -> dict[str, np.ndarray]:
    """Errors of B rigs, by pair of the data set's cameras; NaN where a rig lacks a view.

    Args:
        views: (B, V) places of each rig's views among the chosen cameras.
    """
    posterior = estimate.posterior
    R, t = posterior_mean(posterior)
    truth = Cameras(truth.K, truth.R.to(R), truth.t.to(t))
    rotation = metrics.rotation_error_deg(R, truth.R)
    direction = metrics.translation_direction_error_deg(R, t, truth.R, truth.t)
    coverage = metrics.rotation_coverage(posterior, truth.R, metrics.LEVELS)  # (B, V - 1, 2)
    B, C = len(views), len(dataset.index.cameras)
    number = {pair: p for p, pair in enumerate(metrics.view_pairs(C))}
    own = metrics.view_pairs(views.shape[1])
    place = np.array([[number[(row[i], row[j])] for i, j in own] for row in views])
    rows = np.arange(B)[:, None]
    values = {"ess": posterior.ess, "accepted": estimate.accepted.float()}
    result = _numpy(values)
    for name, value in (("rotation_deg", rotation), ("direction_deg", direction)):
        result[name] = np.full((B, len(number)), np.nan)
        result[name][rows, place] = value.cpu().numpy()
    result["pair_seen"] = np.zeros((B, len(number)), bool)
    result["pair_seen"][rows, place] = True
    result["failed"] = ~(result["rotation_deg"] <= metrics.FAILURE_DEG) & result["pair_seen"]
    result["rotation_coverage"] = np.full((B, C - 1, len(metrics.LEVELS)), np.nan)
    result["rotation_coverage"][:, : views.shape[1] - 1] = coverage.cpu().numpy()
    return result


def _damaged(dataset: H36M) -> np.ndarray:
    damaged = is_damaged(dataset.index.labels)
    return np.array([damaged[dataset.row(item)] for item in range(len(dataset))])


def _numpy(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in values.items()}


def load_model(config: Config, images: bool) -> nn.Module:
    """The 3D model with its weights, ready to evaluate, on ``run.device``.

    Args:
        images: also load the 2D network, from ``init.checkpoint_2d`` or, where that is null, from
            a whole model in ``init.checkpoint_3d`` (what end-to-end training writes).

    Raises:
        UserError: a checkpoint is not set, missing, corrupt or of another architecture.
    """
    init = config.init
    if init.checkpoint_3d is None:
        raise UserError("init.checkpoint_3d: not set; name the weights, such as checkpoints/*.pt")
    if images and init.checkpoint_2d is None and not holds_2d(init.checkpoint_3d):
        raise UserError(
            f"init.checkpoint_2d: not set, and {init.checkpoint_3d} holds no 2D network; name the "
            "weights, such as checkpoints/*.pt"
        )
    device = choose_device(config.run.device)
    model = build_model(config, with_images=images).eval()
    return (for_inference(model) if images else model).to(device)


def run(config: Config, overwrite: bool = False) -> str:
    """What ``infer3d.py`` does for Human3.6M-style data: checks, loads, evaluates.

    Returns:
        The text to print.

    Raises:
        UserError: bad settings, data or weights, or an existing output folder.
    """
    folder = outputs.output_folder(config, overwrite)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    dataset = open_split(config, "test")
    _, text = evaluate(load_model(config, images=True), dataset, config, folder)
    return f"{text}\n\nwritten: {folder}/"
