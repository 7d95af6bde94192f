"""Writes rendered people in the Human3.6M layout of the learnable-triangulation project.

``processed/<subject>/<action>/imageSequence-undistorted/<camera>/img_%06d.jpg`` and
``extra/human36m-multiview-labels-GTbboxes.npy``. Each action leaves a small file under
``extra/parts/`` when it is complete; an interrupted run goes on from there.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np

from ptri.data.labels import NPY_NAME, Labels, write_npy
from ptri.errors import UserError
from ptri.render.people import RenderSettings, image_path, render_action, sample_rig

_STATE: dict = {}  # one renderer per worker process


def render_dataset(settings: RenderSettings, progress: bool = True) -> Labels:
    """Renders what is missing of a data set and writes its labels.

    Raises:
        UserError: the folder holds a data set made with other settings.
        ImportError: the `render` extra is not installed.
    """
    from tqdm import tqdm

    root = Path(settings.out)
    parts = root / "extra" / "parts"
    _check_same(settings, root)
    parts.mkdir(parents=True, exist_ok=True)
    jobs = [
        (settings, subject, action)
        for action in range(len(settings.actions))
        for subject in range(len(settings.subjects))
    ]
    todo = [job for job in jobs if not _part_path(*job).exists()]
    images = settings.frames * settings.cameras
    with tqdm(
        total=len(jobs) * images, initial=(len(jobs) - len(todo)) * images, unit="image",
        disable=not progress,
    ) as bar:  # fmt: skip
        for _ in _run(todo, settings.workers):
            bar.update(images)
    labels = _collect(settings)
    write_npy(root / "extra" / NPY_NAME, labels)
    for job in jobs:
        _part_path(*job).unlink()
    parts.rmdir()
    return labels


def _run(jobs: list, workers: int):
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software OpenGL: one thread per worker
    if workers == 1 or len(jobs) <= 1:
        yield from map(_job, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(jobs)), _start_worker) as pool:
        yield from pool.imap_unordered(_job, jobs)


def _start_worker() -> None:
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _job(job: tuple[RenderSettings, int, int]) -> None:
    from ptri.render.gl import Renderer

    settings, subject, action = job
    if _STATE.get("size") != settings.size:
        if "renderer" in _STATE:
            _STATE["renderer"].close()
        _STATE.update(renderer=Renderer(settings.size, settings.size), size=settings.size)
    root = Path(settings.out)
    subject_name, action_name = settings.subjects[subject], settings.actions[action]

    def write(camera: int, frame: int, image: np.ndarray) -> None:
        camera_name = settings.camera_names[camera]
        path = image_path(root, subject_name, action_name, camera_name, frame)
        if frame == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        quality = [cv2.IMWRITE_JPEG_QUALITY, settings.quality]
        if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality):
            raise OSError(f"{path}: cannot be written")

    result = render_action(settings, _STATE["renderer"], subject, action, write)
    path = _part_path(settings, subject, action)
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **result._asdict())
    temporary.replace(path)


def _part_path(settings: RenderSettings, subject: int, action: int) -> Path:
    name = f"{settings.subjects[subject]}_{settings.actions[action]}.npz"
    return Path(settings.out) / "extra" / "parts" / name


def _check_same(settings: RenderSettings, root: Path) -> None:
    """Keeps the settings beside the data and refuses to mix two data sets."""
    relevant = dataclasses.asdict(settings)
    for name in ("out", "workers", "backgrounds"):
        relevant.pop(name)
    relevant["backgrounds"] = bool(settings.backgrounds)
    text = json.dumps(relevant, indent=1)
    path = root / "extra" / "render_settings.json"
    if (root / "extra" / NPY_NAME).exists():
        raise UserError(f"{root}: holds a finished data set; give another --out or remove it")
    if path.exists() and path.read_text() != text:
        raise UserError(
            f"{root}: holds a part of a data set with other settings (see {path}); give the same "
            "settings to go on, another --out, or remove it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _collect(settings: RenderSettings) -> Labels:
    rigs = [sample_rig(settings, subject) for subject in range(len(settings.subjects))]
    rows: dict[str, list] = {name: [] for name in ("subject", "action", "frame", "joints", "boxes")}
    for subject in range(len(settings.subjects)):
        for action in range(len(settings.actions)):
            with np.load(_part_path(settings, subject, action), allow_pickle=False) as part:
                count = len(part["frames"])
                rows["subject"].append(np.full(count, subject, np.int16))
                rows["action"].append(np.full(count, action, np.int16))
                rows["frame"].append(part["frames"])
                rows["joints"].append(part["joints"])
                rows["boxes"].append(part["boxes"])
    return Labels(
        subject_names=settings.subjects,
        camera_names=settings.camera_names,
        action_names=settings.actions,
        K=np.stack([rig.K for rig in rigs]),
        dist=np.zeros((len(rigs), settings.cameras, 5)),
        R=np.stack([rig.R for rig in rigs]),
        t=np.stack([rig.t for rig in rigs]),
        **{name: np.concatenate(values) for name, values in rows.items()},
    )
