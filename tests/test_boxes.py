"""Files that say where the person is in videos."""

import csv

import numpy as np
import pytest
from videos_fixture import settings

from ptri.errors import UserError
from ptri.recordings.boxes import COLUMNS, nearest, read_box_files, read_boxes


def write_boxes(folder, rows, header=COLUMNS):
    folder.mkdir(exist_ok=True)
    for name, lines in rows.items():
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *lines])


def test_box_files(tmp_path):
    lines = [[2, 10, 20, 30, 60], [6, 18, 20, 38, 60], [8, "", "", "", ""], [9, 1, 2, 3, 4]]
    write_boxes(tmp_path / "boxes", {"a": lines})
    boxes = read_box_files(tmp_path / "boxes", ["a"], range(11))[:, 0]
    assert boxes[2].tolist() == [10, 20, 30, 60] and boxes[4].tolist() == [14, 20, 34, 60]
    assert np.isnan(boxes[[0, 1, 7, 8, 10]]).all() and boxes[9].tolist() == [1, 2, 3, 4]


def test_the_nearest_frame_without_comparing_all():
    """As of all distances at once, for which a row a frame of a long video has no memory."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 30):
        frames = np.unique(rng.integers(0, 99, count))
        values = np.sort(rng.choice(np.arange(-9, 120), 40, False)).astype(float)
        naive = np.abs(np.subtract.outer(frames, values)).argmin(0)
        assert (nearest(frames, values) == naive).all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([[0, 10, 20, 5, 60]], "line 2: left < right"),
        ([[0, 10, 20, 30, 60], [0, 10, 20, 30, 60]], "line 3: frame 0 again"),
        ([[0, 10, 20, 30, "wide"]], "line 2: '0,10,20,30,wide'"),
        ([[0, 10, "", 30, 60]], "expected four numbers, or none"),
        ([[0, 10, 20, 30]], "expected four numbers, or none"),
        ([], "no boxes"),
    ],
)
def test_bad_box_files(tmp_path, lines, message):
    write_boxes(tmp_path / "boxes", {"a": lines})
    with pytest.raises(UserError, match=message):
        read_box_files(tmp_path / "boxes", ["a"], range(3))


def test_boxes_of_one_camera_are_enough(tmp_path):
    write_boxes(tmp_path / "boxes", {"b": [[7, 1, 2, 3, 4]]})
    boxes = read_boxes(settings(tmp_path), ["a", "b"], range(0, 20, 5))
    # One row counts for the nearest frame that is read.
    assert boxes[1, 1].tolist() == [1, 2, 3, 4] and np.isfinite(boxes).sum() == 4
    for person in ("largest", "moving"):
        assert np.isnan(
            read_boxes(settings(tmp_path, f"recording.person={person}"), "ab", [7])
        ).all()


def test_boxes_that_are_missing(tmp_path):
    folder = tmp_path / "boxes"
    write_boxes(folder, {"a": [[0, 1, 2, 3, 4]]}, header=("x", "y", "w", "h", "f"))
    with pytest.raises(UserError, match="first line must be frame,left,top,right,bottom"):
        read_box_files(folder, ["a"], [0])
    with pytest.raises(UserError, match=r"no file of boxes; expected one of b\.csv, c\.csv"):
        read_box_files(folder, ["b", "c"], [0])
    write_boxes(folder, {"a": [[0, 1, 2, 3, 4], [5, "", "", "", ""]]})
    with pytest.raises(UserError, match=r"a\.csv: no box in any frame from 10 to 11"):
        read_box_files(folder, ["a"], [10, 11])
    elsewhere = settings(tmp_path, "recording.boxes=elsewhere")
    with pytest.raises(UserError, match=r"recording.boxes: elsewhere is no folder"):
        read_boxes(elsewhere, ["a"], [0])
    none = settings(tmp_path / "none", "recording.person=box")
    with pytest.raises(UserError, match=r"recording.person: box, but there is no .*a\.csv"):
        read_boxes(none, ["a"], [0])
