"""Writes rendered people in the Human3.6M layout of the learnable-triangulation project.

``processed/<subject>/<action>/imageSequence-undistorted/<camera>/img_%06d.jpg`` and
``extra/human36m-multiview-labels-GTbboxes.npy``. What that has no room for is in
``extra/rendered_truth.npz``, one entry for each image: ``row`` of the labels' table, ``camera``,
``h36m17`` and ``coco17`` (M, 17, 2) px, ``h36m17_visible`` and ``coco17_visible`` (M, 17) bool;
and one for each row: ``coco17_joints`` (N, 17, 3) mm, world.

Single images have an action named after the kind of pose and rows that only one camera sees; the
boxes of the others are 0. Each job leaves a small file under ``extra/parts/`` when it is complete;
an interrupted run goes on from there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ptri.data.labels import NPY_NAME, Labels, write_npy
from ptri.errors import UserError
from ptri.render.clips import render_action, sample_rig
from ptri.render.draw.gl import Renderer
from ptri.render.people.person import make_rng
from ptri.render.people.poses import KIND_NAMES
from ptri.render.processes import run_jobs
from ptri.render.settings import RenderSettings
from ptri.render.single import Studio
from ptri.render.stage.cameras import Camera, sample_lens
from ptri.render.truth import Label
from ptri.render.write import shards

TRUTH_NAME = "rendered_truth.npz"
_CHUNK = 64  # single images of a job
_open_renderer = functools.lru_cache(maxsize=1)(Renderer)
_open_studio = functools.lru_cache(maxsize=1)(Studio)


class _Job(NamedTuple):
    """A part of the work: an action of a subject, or single images from `number` on."""

    settings: RenderSettings
    subject: int
    number: int
    images: int
    part: Path  # the file that says that it is done, with what the labels need


def action_names(settings: RenderSettings) -> tuple[str, ...]:
    """The actions of the labels: the settings', or those that single images have."""
    if settings.mode == "rig":
        return settings.actions
    return tuple("".join(map(str.title, kind.split("_"))) for kind in KIND_NAMES)


def image_path(root: Path, subject: str, action: str, camera: str, frame: int) -> Path:
    """Where Human3.6M's layout has an image; frame is 0-based."""
    folder = root / "processed" / subject / action / "imageSequence-undistorted" / camera
    return folder / f"img_{frame + 1:06d}.jpg"


def render_dataset(settings: RenderSettings, progress: bool = True) -> Labels | None:
    """Renders what is missing of a data set and writes its labels.

    Returns:
        The labels; None if shards were written.

    Raises:
        UserError: the folder holds a data set made with other settings.
        ImportError: the `render` extra is not installed.
    """
    from tqdm import tqdm

    root = Path(settings.out)
    _check_same(settings, root)
    jobs = _list_jobs(settings)
    jobs[0].part.parent.mkdir(parents=True, exist_ok=True)
    todo = [job for job in jobs if not job.part.exists()]
    total, left = (sum(job.images for job in some) for some in (jobs, todo))
    with tqdm(total=total, initial=total - left, unit="image", disable=not progress) as bar:
        workers = settings.workers if settings.workers > 1 and len(todo) > 1 else 0
        for images in run_jobs(_job, todo, workers):
            bar.update(images)
    labels = None
    if not settings.shard_size:
        labels, truth = _collect(settings, jobs)
        np.savez_compressed(root / "extra" / TRUTH_NAME, **truth)
        write_npy(root / "extra" / NPY_NAME, labels)
        for job in jobs:
            job.part.unlink()
        jobs[0].part.parent.rmdir()
    return labels


def _list_jobs(settings: RenderSettings) -> list[_Job]:
    parts = Path(settings.out) / "extra" / "parts"
    subjects = list(enumerate(settings.subjects))
    if settings.mode == "rig":
        images = settings.frames * settings.cameras
        return [
            _Job(settings, s, a, images, parts / f"{subject}_{action}.npz")
            for a, action in enumerate(settings.actions)
            for s, subject in subjects
        ]
    step, count = settings.shard_size or _CHUNK, settings.images
    # Subject by subject: a studio keeps the dressed bodies of two crowds.
    return [
        _Job(settings, s, first, min(step, count - first), parts / f"{subject}_{first:07d}.npz")
        for s, subject in subjects
        for first in range(0, count, step)
    ]


def _job(job: _Job) -> int:
    """Does a job; returns how many images it made."""
    values = _single_job(job) if job.settings.mode == "single" else _rig_job(job)
    temporary = job.part.with_suffix(".tmp.npz")
    np.savez(temporary, **values)
    temporary.replace(job.part)
    return job.images


def _rig_job(job: _Job) -> dict[str, np.ndarray]:
    """Renders an action; returns its rows of the labels' table."""
    settings = job.settings
    renderer = _open_renderer(settings.size, settings.size, settings.samples)
    names = settings.subjects[job.subject], settings.actions[job.number]

    def write(camera: int, frame: int, image: np.ndarray) -> None:
        path = image_path(Path(settings.out), *names, settings.camera_names[camera], frame)
        _write_image(path, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings.quality)

    rows = render_action(settings, renderer, job.subject, job.number, write)
    return rows | {"action": np.full(settings.frames, job.number, np.int16)}


def _single_job(job: _Job) -> dict[str, np.ndarray]:
    """Renders single images; returns rows as `_rig_job`, zeros for the cameras that see nobody."""
    settings = job.settings
    indices = np.arange(job.number, job.number + job.images)
    frame, camera = np.divmod(indices, settings.lenses)
    keys = [(settings.seed, job.subject, i) for i in indices.tolist()]
    lenses = _lenses(settings, job.subject)[camera]
    shots = _open_studio(settings, settings.masks).shoot(keys, lenses)
    if settings.shard_size:
        name = f"{settings.subjects[job.subject]}-{job.number:07d}.tar"
        shards.write_shard(Path(settings.out) / name, keys, shots, settings.quality)
        return {}
    actions = [KIND_NAMES.index(shot.kind) for shot in shots]
    rows = {"action": np.array(actions, np.int16), "frame": frame.astype(np.int32)}
    for name in ("joints", "coco"):
        # In the camera's frame: there all single images of a lens have one camera.
        placed = [getattr(shot, name) @ shot.R.T + shot.t for shot in shots]
        rows[name] = np.stack(placed).astype(np.float32)
    for name in Label._fields:
        values = np.stack([getattr(shot, name) for shot in shots])
        rows[name] = np.zeros((len(shots), settings.lenses, *values.shape[1:]), values.dtype)
        rows[name][np.arange(len(shots)), camera] = values
    names = action_names(settings)
    for action, f, c, shot in zip(actions, frame.tolist(), camera.tolist(), shots):
        place = settings.subjects[job.subject], names[action], settings.camera_names[c]
        path = image_path(Path(settings.out), *place, f)
        _write_image(path, cv2.cvtColor(shot.image, cv2.COLOR_RGB2BGR), settings.quality)
        if shot.mask is not None:
            mask = str(path).replace("imageSequence-undistorted", "masks")
            _write_image(Path(mask).with_suffix(".png"), 255 * shot.mask.astype(np.uint8))
    return rows


def _lenses(settings: RenderSettings, subject: int) -> np.ndarray:
    """The intrinsics (L, 3, 3) px of a subject's single images."""
    rngs = (make_rng(settings.seed, subject, lens, 79) for lens in range(settings.lenses))
    return np.stack([sample_lens(rng, settings) for rng in rngs])


def _write_image(path: Path, image: np.ndarray, quality: int = 100) -> None:
    """Writes an image, BGR or grey, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality]):
        raise OSError(f"{path}: cannot be written")


def _check_same(settings: RenderSettings, root: Path) -> None:
    """Keeps the settings beside the data and refuses to mix two data sets."""
    relevant = dataclasses.asdict(settings)
    for name in ("out", "workers"):
        relevant.pop(name)
    for name in ("backgrounds", "mocap", "garments"):  # folders may move
        relevant[name] = bool(relevant[name])
    text = json.dumps(relevant, indent=1)
    path = root / "extra" / "render_settings.json"
    if (root / "extra" / NPY_NAME).exists():
        raise UserError(f"{root}: holds a finished data set; give another --out or remove it")
    if path.exists() and json.loads(path.read_text()) != json.loads(text):
        raise UserError(
            f"{root}: holds a part of a data set with other settings (see {path}); give the same "
            "settings to go on, another --out, or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _collect(settings: RenderSettings, jobs: list[_Job]) -> tuple[Labels, dict[str, np.ndarray]]:
    """Labels and further truth from the parts of all jobs, subject by subject."""
    parts = []
    for job in sorted(jobs, key=lambda job: (job.subject, job.number)):
        with np.load(job.part, allow_pickle=False) as part:
            rows = {name: part[name] for name in part.files}
        parts.append(rows | {"subject": np.full(len(rows["joints"]), job.subject, np.int16)})
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    truth = {name: table.pop(name) for name in ("coco", "visible", "coco_visible")}
    K, R, t = _cameras(settings)
    labels = Labels(
        subject_names=settings.subjects,
        camera_names=settings.camera_names,
        action_names=action_names(settings),
        K=K,
        dist=np.zeros((*K.shape[:2], 5)),
        R=R,
        t=t,
        **table,
    )
    return labels, _image_truth(labels, truth)


def _cameras(settings: RenderSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K (S, C, 3, 3) px, R (S, C, 3, 3), t (S, C, 3) mm."""
    subjects = range(len(settings.subjects))
    if settings.mode == "rig":
        rigs = [sample_rig(settings, subject) for subject in subjects]
        return tuple(np.stack([getattr(rig, name) for rig in rigs]) for name in ("K", "R", "t"))
    K = np.stack([_lenses(settings, subject) for subject in subjects])
    return K, np.tile(np.eye(3), (*K.shape[:2], 1, 1)), np.zeros(K.shape[:3])


def _image_truth(labels: Labels, truth: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The contents of `TRUTH_NAME` (module docstring)."""
    row, camera = np.nonzero((labels.boxes != 0).any(-1))  # a box is at least a pixel large
    keypoints = {"h36m17": [], "coco17": []}
    for n, c in zip(row, camera):
        view = Camera(*(part[labels.subject[n], c] for part in (labels.K, labels.R, labels.t)))
        for name, points in (("h36m17", labels.joints[n]), ("coco17", truth["coco"][n])):
            keypoints[name].append(view.project(points.astype(float))[:, :2].astype(np.float32))
    return {
        "row": row.astype(np.int64),
        "camera": camera.astype(np.int16),
        "h36m17": np.stack(keypoints["h36m17"]),
        "coco17": np.stack(keypoints["coco17"]),
        "h36m17_visible": truth["visible"][row, camera],
        "coco17_visible": truth["coco_visible"][row, camera],
        "coco17_joints": truth["coco"].astype(np.float32),
    }
