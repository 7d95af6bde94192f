"""Files that say where the person is in videos, in one view or more.

Boxes are (4,) px of the picture as recorded: left, top, right, bottom; right and bottom exclusive.

A box file ``<camera>.csv`` has a header and one row per frame::

    frame,left,top,right,bottom
    0,321,200,654,1010
    10,330,,,

Frames between two rows are interpolated. A row without numbers says that the person is not in
view, until the next row with some. Beyond the first and the last row nothing is said.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ptri.config import Config
from ptri.errors import UserError
from ptri.recordings.video_files import named_path

COLUMNS = ("frame", "left", "top", "right", "bottom")


def read_boxes(config: Config, names: Sequence[str], frames: Sequence[int]) -> np.ndarray:
    """Boxes (T, V, 4) px of the files that ``recording.boxes`` names; NaN = none.

    Args:
        names: of the V cameras. frames: T numbers.

    Raises:
        UserError: malformed files, or none where the configuration asks for some.
    """
    setting, root = config.recording.boxes, Path(config.data.root)
    boxes = np.full((len(frames), len(names), 4), np.nan)
    if config.recording.person in ("auto", "box"):
        folder = root / "boxes" if setting == "auto" else named_path(setting, root)
        if folder.is_dir():
            boxes = read_box_files(folder, names, frames)
        elif setting != "auto":
            raise UserError(
                f"recording.boxes: {setting} is no folder; expected 'auto' or a folder of a "
                "<camera>.csv for one camera or more (people are found without: detector.people)"
            )
    if config.recording.person == "box" and np.isnan(boxes).all():
        raise UserError(
            f"recording.person: box, but there is no {root / 'boxes' / names[0]}.csv or another "
            "camera's; write one, or name the folder with recording.boxes"
        )
    return boxes


def read_box_files(folder: Path, names: Sequence[str], frames: Sequence[int]) -> np.ndarray:
    """Boxes (T, V, 4) px of the cameras' files, NaN = none.

    Raises:
        UserError: no file of these cameras, or a malformed one; the message names the line.
    """
    paths = {name: folder / f"{name}.csv" for name in names}
    if not any(path.is_file() for path in paths.values()):
        expected = ", ".join(path.name for path in paths.values())
        raise UserError(f"{folder}: no file of boxes; expected one of {expected} at least")
    result = np.full((len(frames), len(names), 4), np.nan)
    step = np.diff(frames).min() if len(frames) > 1 else 1
    for v, path in enumerate(paths.values()):
        if not path.is_file():
            continue
        given, *sides = np.array(_read_box_file(path)).T
        near = nearest(np.asarray(frames), given)
        for side, values in enumerate(sides):
            # A frame between two rows, of which one has no box, has none.
            result[:, v, side] = np.interp(frames, given, values, np.nan, np.nan)
            # A row between two frames that are read counts for the nearer one, too.
            close = np.abs(np.take(frames, near) - given) < step
            rows = near[close & np.isfinite(values)]
            result[rows, v, side] = values[close & np.isfinite(values)]
        if np.isnan(result[:, v]).all():
            raise UserError(
                f"{path}: no box in any frame from {frames[0]} to {frames[-1]}; number frames "
                "from 0, or remove the file: in the other views the person is found by itself"
            )
    return result


def nearest(rising: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places (N,) of the numbers nearest to some values (N,); of two as near the first."""
    after = np.searchsorted(rising, values).clip(max=len(rising) - 1)
    before = (after - 1).clip(min=0)
    return np.where(values - rising[before] <= rising[after] - values, before, after)


def _read_box_file(path: Path) -> list[list[float]]:
    """Rows of frame number and box, NaN = not in view."""
    rows: list[list[float]] = []
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = [word.strip().lower() for word in next(reader, [])]
        if tuple(header[:5]) != COLUMNS:
            raise UserError(f"{path}: the first line must be {','.join(COLUMNS)}")
        for line in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            try:
                frame = int(line[0])
                box = [float(word) if word.strip() else math.nan for word in line[1:5]]
            except ValueError:
                raise UserError(f"{where}: {','.join(line)!r} is not {','.join(COLUMNS)}") from None
            num_sides = sum(math.isfinite(side) for side in box)
            if len(box) != 4 or num_sides not in (0, 4):
                raise UserError(f"{where}: expected four numbers, or none where nobody is in view")
            if num_sides and not (box[0] < box[2] and box[1] < box[3]):
                raise UserError(f"{where}: left < right and top < bottom must hold, found {box}")
            if rows and frame <= rows[-1][0]:
                raise UserError(f"{where}: frame {frame} again or out of order; expected rising")
            rows.append([frame, *box])
    if not rows:
        raise UserError(f"{path}: no boxes")
    return rows
