"""Recordings from their videos, by each 2D detector: the rig's error, its regions, the time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmark.results import check_names, write_results
from benchmark.videos.rendered import write_recordings
from benchmark.videos.scores import scores, summary, table
from ptri import config as configuration
from ptri.errors import UserError
from ptri.recordings import run as recordings

FILES = "files"  # in place of a detector: the recording's own keypoint files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("recordings", nargs="*", help="folders with videos/ and a camera file, see recordings.md")
    add("--rendered", metavar="ROOT", help="rigs of scripts/render_people.py, made into recordings")
    add("--clips", type=int, default=12, help="of them, at most; 0: all")
    text = f"names of detectors, and {FILES}: the recording's keypoint files"
    add("--detector", nargs="+", default=["movenet", "ours"], metavar="NAME", help=text)
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of configs/videos.yaml")
    add("--threads", type=int, default=2)
    add("--out", default="outputs/benchmark", help="folder for results, and of each run's output")


def run(args: argparse.Namespace) -> str:
    torch.set_num_threads(args.threads)
    folders = [Path(folder).resolve() for folder in args.recordings]
    if args.rendered is not None:
        out = Path(args.out) / "rendered_recordings"
        folders += write_recordings(args.rendered, out, args.clips)
    if not folders:
        raise UserError("give folders of recordings, or --rendered ROOT")
    check_names(folders)
    results, by = {}, {}
    for folder in folders:
        for detector in args.detector:
            label = f"{folder.name}, {detector}"
            results[label], by[label] = _solve(folder, detector, args), detector
            print(f"{label}: {results[label].get('verdict', results[label].get('error'))}")
    text = f"{table(results)}\n\n{summary(results, by)}"
    text += "\n\nreprojection: of the estimated cameras (of the reference)"
    return write_results(args, "videos", text, {"recordings": results}, "a folder of each run")


def _solve(folder: Path, detector: str, args: argparse.Namespace) -> dict[str, Any]:
    """The scores of a recording; what was wrong, where it cannot be solved."""
    files = detector == FILES
    path = "configs/recording.yaml" if files else "configs/videos.yaml"
    settings = [f"data.root={folder}", f"run.name={folder.name}_{detector}"]
    settings += [f"evaluate.out={args.out}/videos", "evaluate.pictures=3"]
    settings += args.set if files else [f"detector.name={detector}", *args.set]
    config = configuration.load(path, settings)
    out = Path(config.evaluate.out) / config.run.name
    out.mkdir(parents=True, exist_ok=True)
    try:
        model, recording, detections = recordings.observe(config)
        figures, _ = recordings.process(model, recording, config, out, detections)
    except UserError as error:
        return {"error": str(error)[:48]}
    with h5py.File(out / "predictions.h5") as file:
        joints = np.asarray(file["native/joints3d"])
    return scores(figures, recording, joints)
