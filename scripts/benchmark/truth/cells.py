"""All cases of one kind, solved and kept on disk."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from benchmark.truth.cases import Case
from benchmark.truth.scores import Scores, score
from ptri.checkpoint import replacing
from ptri.config import PosteriorConfig
from ptri.models.pose_model import PoseModel


class Cell(NamedTuple):
    """Cases that a row of the tables is made of."""

    detector: str
    family: str
    source: str  # name of the folder of images; "": generated
    num_frames: int
    kind: str = ""  # how the keypoints were thinned, see `cases.THINNED`

    @property
    def name(self) -> str:
        parts = (self.detector, self.source or self.family, f"T{self.num_frames}", self.kind)
        return "-".join(part.replace(" ", "_") for part in parts if part)


class Result(NamedTuple):
    """Scores of N cases."""

    cell: Cell
    clips: np.ndarray  # (N,) int64: cases of one number are of one clip, others are not
    scores: Scores  # arrays of `score` with leading N


def solve_cell(
    cell: Cell, cases: Sequence[Case], model: PoseModel, options: PosteriorConfig, seed: int
) -> Result:
    """Solves N cases, one by one, with a progress bar."""
    bar = tqdm(cases, cell.name, unit="rig", disable=None, leave=False)
    solved = [score(model, case, options, seed, bool(cell.kind)) for case in bar]
    scores = {name: np.stack([part[name] for part in solved]) for name in solved[0]}
    place = zlib.crc32((cell.source or cell.name).encode()) << 16
    return Result(cell, np.array([place + case.clip for case in cases]), scores)


def read_result(cell: Cell, path: Path, key: str | None) -> Result | None:
    """A kept result; None where there is none, or of another key (None: of any)."""
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as data:
        if key is not None and str(data["key"]) != key:
            return None
        scores = {name: data[name] for name in data.files if name not in ("key", "clips")}
        return Result(cell, data["clips"], scores)


def write_result(result: Result, path: Path, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, key=key, clips=result.clips, **result.scores)
