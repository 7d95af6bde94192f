"""Evaluation of the 3D model on a Human3.6M-style test set.

Every frame is solved alone, as the seed project does, and again with the frames of its scene pooled
into one rig posterior. Two ceilings stand beside them: the same keypoints and the same fusion with
the true cameras, and plain robust triangulation with the true cameras.

Several processes (``torchrun``) share the scenes. Nothing that is computed of a scene depends on
the others, so the result is that of one process.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ptri import config as configuration
from ptri.config import Config
from ptri.data.h36m import is_damaged
from ptri.data.loaders import EvaluationLoader
from ptri.data.multiview import MultiView
from ptri.detectors.build import build_detector, detector_name
from ptri.detectors.protocol import PoseDetector
from ptri.errors import UserError
from ptri.evaluation import metrics, outputs, predictions, table
from ptri.evaluation.pictures import Painter
from ptri.evaluation.predictions import SceneEstimate, SceneFrames
from ptri.evaluation.scores import joint_scores, keypoint_scores, rig_scores, seed_scores
from ptri.evaluation.studio import Studio
from ptri.geometry.triangulation import robust_triangulation
from ptri.models.mobileone import merge_batchnorm
from ptri.models.weights import build_model, holds_2d
from ptri.posterior.moments import posterior_from_cameras
from ptri.posterior.prior import Prior
from ptri.rig.check import RigInput, for_model, known_joints
from ptri.rig.estimate import solve, solve_cameras
from ptri.rig.joints import body_under
from ptri.skeleton import H36M17
from ptri.structures import (
    Cameras,
    Keypoints,
    Prediction,
    Sample,
    cat,
    take,
    to_device,
    tree_map,
)
from ptri.system import ALONE, World, gather, on_first, placed, together


class Timer:
    """Seconds and frames by stage; the first use of a stage, which warms up, is left out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._used: dict[str, list[tuple[float, int]]] = defaultdict(list)

    @contextmanager
    def __call__(self, stage: str, frames: int) -> Iterator[None]:
        start = self._now()
        yield
        self._used[stage].append((self._now() - start, frames))

    def totals(self) -> dict[str, np.ndarray]:
        """Seconds and frames (2,) by stage."""
        return {stage: np.sum(used[1:] or used, axis=0) for stage, used in self._used.items()}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Share(NamedTuple):
    """What a process found in its share of the scenes."""

    scores: dict[int, dict[str, np.ndarray]]  # by scene, named by its first item: its rows
    seconds: dict[str, np.ndarray]  # `Timer.totals`


def evaluate(
    model: nn.Module, dataset: MultiView, config: Config, folder: Path, world: World = ALONE
) -> tuple[dict[str, float], str]:
    """Evaluates a model over every frame of a data set and writes the output folder.

    Args:
        model: `ptri.models.pose_model.PoseModel`, on its device.
        dataset: test split, multi-view.
        folder: made and cleared of an older run's files; one that all processes can reach.

    Returns:
        The figures of metrics.json, and the printed text; in the first process, else nothing.

    Raises:
        UserError: of any process; in the first one, the others end.
    """

    def prepare() -> None:
        outputs.clear(folder)
        (folder / "config.yaml").write_text(configuration.to_yaml(config))

    on_first(world, prepare)
    files = [folder / predictions.FILE]
    if world.size > 1:
        files = [folder / predictions.PART.format(rank) for rank in range(world.size)]
    path = files[world.rank]
    share = together(world, lambda: _evaluate_share(model, dataset, config, folder, path, world))
    shares = gather(world, share)
    if not world.first:
        return {}, ""
    if world.size > 1:
        rows = [{k: len(of["action"]) for k, of in share.scores.items()} for share in shares]
        predictions.merge(files, rows, folder / predictions.FILE, dataset)
    by_scene = {number: rows for share in shares for number, rows in share.scores.items()}
    rows = [by_scene[number] for number in sorted(by_scene)]
    scores = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    seconds = {}
    for stage in dict.fromkeys(stage for share in shares for stage in share.seconds):
        total = sum(share.seconds[stage] for share in shares if stage in share.seconds)
        seconds[stage] = total[0] / total[1]
    details = {
        "device": str(next(model.parameters()).device),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "seconds_per_frame": seconds,
    }
    return _report(scores, details, dataset, config, len(rows), folder)


def _evaluate_share(
    model: nn.Module, dataset: MultiView, config: Config, folder: Path, path: Path, world: World
) -> Share:
    """Evaluates this process's scenes, and writes their predictions to a file."""
    device = next(model.parameters()).device
    # Of several processes each has a GPU of its own.
    detector = build_detector(configuration.replace(config, run__device=str(device)), model)
    model.detector = detector.known
    for name, unit in (("image_size", "px"), ("crop_scale", "times the person's box")):
        asked, takes = getattr(config.data, name), getattr(detector, name)
        if asked != takes:
            raise UserError(
                f"data.{name}: {asked:g}; {detector.name} takes crops of {takes:g} {unit}: set "
                f"data.{name}={takes:g}"
            )
    timer, scenes = Timer(device), {}
    collected: dict[str, list[np.ndarray]] = defaultdict(list)  # of one scene

    def score(method: str, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            collected[f"{method}{name}"].append(value.cpu().numpy())

    painter = Painter(folder / outputs.PICTURES, dataset, config.evaluate.pictures)
    options = config.evaluate.batch_size, config.data.workers
    loader = EvaluationLoader(dataset, *options, world.rank, world.size)
    progress = tqdm(
        total=loader.num_items,
        desc="evaluate",
        unit="frame",
        leave=False,
        disable=not world.first,
    )
    studio = Studio(dataset) if config.evaluate.known_studio else None
    pooled = None
    model.eval()
    with torch.no_grad(), h5py.File(path, "w") as file, progress:
        predictions.write_header(file, dataset)
        for batches in loader.scenes():
            parts = []
            for items, batch in batches:
                if world.failing:
                    return Share({}, {})
                # 1 from images to keypoints
                batch, items = to_device(batch, device), torch.tensor(items)
                frames, logits = _detect(model, detector, batch, items, timer)
                score("", keypoint_scores(frames, logits))
                # 2 each frame alone
                single = _solve_single(model, frames, config, timer)
                true_rigs = posterior_from_cameras(frames.truth.cameras)
                score("single/", rig_scores(single, true_rigs, frames, dataset))
                score("single/", joint_scores(single.prediction, frames.truth.joints3d))
                score("", seed_scores(single.prediction, frames.truth))
                if studio is not None:
                    prior = studio.prior(frames.places(dataset).tolist())
                    known = _solve_single(model, frames, config, timer, prior)
                    score("studio/", rig_scores(known, true_rigs, frames, dataset))
                    score("studio/", joint_scores(known.prediction, frames.truth.joints3d))
                for method, ceiling in _ceilings(model, frames, true_rigs).items():
                    score(f"{method}/", joint_scores(ceiling, frames.truth.joints3d))
                single = predictions.thin(single)
                predictions.write_frames(file, frames, dataset)
                predictions.write_estimate(file, "single", single, frames, dataset)
                painter.keep(batch.images, logits, frames, single)
                parts.append(frames)
                progress.update(len(items))
            # 3 the frames of the scene pooled
            scene = cat(parts)
            if config.evaluate.pool_frames:
                pooled = _solve_pooled(model, scene, config, timer)
                true_rig = posterior_from_cameras(take(scene.truth.cameras, slice(0, 1)))
                score("pooled/", rig_scores(pooled, true_rig, scene, dataset))
                score("pooled/", joint_scores(pooled.prediction, scene.truth.joints3d))
                known = _fuse_scene(model, scene, true_rig)
                error = metrics.mpjpe(known.joints3d, scene.truth.joints3d)
                score("pooled/", {"mpjpe_calibrated": error})
                predictions.write_estimate(file, "pooled", pooled, scene, dataset)
            painter.scene(scene.item, pooled)
            scenes[int(scene.item[0])] = {
                name: np.concatenate(values) for name, values in collected.items()
            }
            collected.clear()
    return Share(scenes, timer.totals())


def _report(scores, machine, dataset, config, num_scenes, folder) -> tuple[dict[str, float], str]:
    labels, cameras = dataset.index.labels, dataset.index.cameras
    damaged = is_damaged(labels)[[dataset.row(item) for item in range(len(dataset))]]
    names = [labels.camera_names[camera] for camera in cameras]
    pairs = [f"{names[i]} - {names[j]}" for i, j in metrics.view_pairs(len(names))]
    details = {
        "frames": len(dataset),
        "scenes": num_scenes,
        "views": len(names),
        "image_size": config.data.image_size,
        **machine,
        **table.details_of(scores, ~damaged, pairs),
    }
    figures = table.metrics_of(scores, details)
    groups, by = [labels.action_names[action] for action in scores["action"]], "action"
    if config.data.kind == "panoptic":
        groups, by = [labels.subject_names[subject] for subject in scores["subject"]], "sequence"
    rows = table.action_rows(scores, groups, ~damaged, by)
    tables = table.table(details, bool(damaged.any()))
    text = "\n\n".join([table.seed_lines(figures), tables, table.action_table(rows, by)])
    outputs.write_json(folder / "metrics.json", figures)
    outputs.write_json(folder / "details.json", details)
    table.write_csv(folder / "per_action.csv", rows)
    (folder / "table.txt").write_text(text + "\n")
    return figures, text


# --- steps -----------------------------------------------------------------------------------


def _detect(
    model, detector: PoseDetector, batch: Sample, items: Tensor, timer: Timer
) -> tuple[SceneFrames, Tensor | None]:
    """The frames of a batch, and the heatmaps' logits (B, V, J, h, w) of our own 2D network."""
    B, V = batch.images.shape[:2]
    images = batch.images.flatten(0, 1)
    features, logits = None, None
    with timer("detect", B):
        if detector.name == "ours":
            detection = model.detect(images)  # (B V, ...)
            features = model.joint_features(detection).unflatten(0, (B, V))
            logits = detection.logits.float().unflatten(0, (B, V))
            keypoints = detection.keypoints
        else:
            keypoints = detector(images)
        keypoints = Keypoints(*(part.float().unflatten(0, (B, V)) for part in keypoints))
        given = RigInput(keypoints, batch.cameras.K, detector.skeleton)
    truth = batch._replace(images=None)
    return SceneFrames(given, known_joints(given), features, truth, items), logits


def _solve_single(
    model, frames: SceneFrames, config: Config, timer: Timer, prior: Prior | None = None
) -> SceneEstimate:
    keypoints, K, features = frames.alone()
    points = take(for_model(frames.given), (slice(None), None))
    with timer("posterior" if prior is None else "studio/posterior", len(K)):
        solution = solve(model, points, K, config.posterior, config.run.seed, prior=prior)
    posterior = solution.posterior
    with timer("fusion" if prior is None else "studio/fusion", len(K)):
        prediction = body_under(model, keypoints, K, posterior, solution.sides, features)
    accepted = torch.tensor([verdict.accepted for verdict in solution.verdicts])
    return SceneEstimate(take(prediction, (slice(None), 0)), posterior, accepted)


def _ceilings(model, frames: SceneFrames, true_rigs) -> dict[str, Prediction]:
    """Joints under the true cameras: by the same fusion, and plainly triangulated."""
    keypoints, K, features = frames.alone()
    fused = body_under(model, keypoints, K, true_rigs, features=features)
    cameras = frames.truth.cameras
    plain, _ = robust_triangulation(keypoints, Cameras(K, cameras.R, cameras.t))
    # Errors of triangulated joints are independent, so those about the root add.
    covariance = plain.covariance + plain.covariance[:, :, H36M17.root, None]
    both = {"calibrated": fused, "plain": Prediction(plain.joints3d, covariance)}
    return tree_map(lambda part: part[:, 0].to(K), both)


def _solve_pooled(model, scene: SceneFrames, config: Config, timer: Timer) -> SceneEstimate:
    """One rig posterior from the frames that say most; all frames of the scene fused with it."""
    T = len(scene.item)
    given = tree_map(Tensor.double, scene.given)
    settings = config.posterior, config.run.seed, config.evaluate.pool_frames
    with timer("pooled/posterior", T):
        solved = solve_cameras(model, given, *settings)
    with timer("pooled/fusion", T):
        prediction = _fuse_scene(model, scene, solved.posterior, solved.sides, solved.frames)
    return SceneEstimate(prediction, solved.posterior, torch.tensor([solved.verdict.accepted]))


def _fuse_scene(model, scene: SceneFrames, posterior, sides=None, frames=()) -> Prediction:
    """Joints of a scene's frames, which lie in order of time, under one posterior."""
    keypoints, K, features = take((scene.keypoints, scene.truth.cameras.K, scene.features), None)
    return take(body_under(model, keypoints, K, posterior, sides, features, frames), 0)


def load_model(config: Config, images: bool, world: World = ALONE) -> nn.Module:
    """The 3D model with its weights, ready to evaluate, on ``run.device``.

    Args:
        images: also load our 2D network, where ``detector.name`` is that one: from
            ``init.checkpoint_2d`` or, where that is null, from a whole model in
            ``init.checkpoint_3d`` (what end-to-end training writes).
        world: of several processes each takes its own GPU.

    Raises:
        UserError: a checkpoint is not set, missing, corrupt or of another architecture.
    """
    init = config.init
    images = images and detector_name(config) == "ours"
    if init.checkpoint_3d is None:
        raise UserError("init.checkpoint_3d: not set; name the weights, such as checkpoints/*.pt")
    if images and init.checkpoint_2d is None and not holds_2d(init.checkpoint_3d):
        raise UserError(
            f"init.checkpoint_2d: not set, and {init.checkpoint_3d} holds no 2D network; name the "
            "weights, such as checkpoints/*.pt"
        )
    device = placed(world, config.run.device).device
    model = build_model(config, with_images=images).eval()
    return (merge_batchnorm(model) if images else model).to(device)
