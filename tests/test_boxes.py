"""Where the person is in videos: what moves, box files, keypoint files."""

import csv

import cv2
import numpy as np
import pytest
from recording_fixture import NAMES, make_recording

from ptri.config import RecordingConfig
from ptri.errors import UserError
from ptri.recordings import boxes as video_boxes
from ptri.recordings.boxes import COLUMNS, Motion, read_box_files, small
from ptri.recordings.keypoint_files import distort, read_recording


def scene(rectangles, size=(240, 320)):
    """A grey picture with white rectangles (left, top, right, bottom)."""
    image = np.full((*size, 3), 70, np.uint8)
    for left, top, right, bottom in rectangles:
        image[top:bottom, left:right] = 220
    return image


def motion_before(images):
    return Motion([small(image) for image in images])


EMPTY = motion_before([scene([])] * 9)


def test_what_moves_is_boxed_largest_first():
    assert EMPTY.boxes(scene([])) == []
    boxes = EMPTY.boxes(scene([(40, 60, 90, 200), (250, 90, 280, 190)]))
    np.testing.assert_allclose(boxes, [(40, 60, 90, 200), (250, 90, 280, 190)], atol=1.5)
    boxes = EMPTY.boxes(scene([(40, 60, 90, 200), (250, 90, 260, 120)]))  # a tenth of the weight
    assert len(boxes) == 1
    assert EMPTY.boxes(scene([(40, 60, 44, 64)])) == []  # a flicker


def test_a_person_in_pieces_is_one_box_and_others_are_not():
    pieces = [(40, 60, 90, 110), (45, 122, 85, 160), (40, 172, 90, 210)]
    (box,) = EMPTY.boxes(scene(pieces))
    np.testing.assert_allclose(box, (40, 60, 90, 210), atol=1.5)
    box = EMPTY.boxes(scene([pieces[0], (200, 122, 240, 160)]))[0]
    np.testing.assert_allclose(box, pieces[0], atol=1.5)


def test_who_stands_still_is_background():
    still = (200, 60, 240, 200)
    frames = [scene([still, (10 + 12 * f, 50, 50 + 12 * f, 180)]) for f in range(9)]
    boxes = motion_before(frames).boxes(frames[0])
    assert len(boxes) == 1 and boxes[0][0] == pytest.approx(10, abs=1.5)
    assert len(EMPTY.boxes(frames[0])) == 2  # the control: before another background both are


def test_a_change_of_exposure_is_no_motion():
    brighter = scene([(40, 60, 90, 200)])
    brighter[brighter < 100] += 40
    (box,) = EMPTY.boxes(brighter)
    np.testing.assert_allclose(box, (40, 60, 90, 200), atol=1.5)
    half = scene([])
    half[:, 200:] += 40  # the control: 40 levels are motion where the rest stays
    np.testing.assert_allclose(EMPTY.boxes(half), [(200, 0, 320, 240)], atol=2)


def test_boxes_are_in_the_video_s_own_pixels():
    empty = cv2.resize(scene([]), (1280, 960))
    image = empty.copy()
    image[240:800, 160:360] = 220
    (box,) = motion_before([empty] * 5).boxes(image)
    np.testing.assert_allclose(box, (160, 240, 360, 800), atol=6)


# --- files -----------------------------------------------------------------------------------


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


def test_boxes_that_are_missing(tmp_path):
    folder = tmp_path / "boxes"
    write_boxes(folder, {"a": [[0, 1, 2, 3, 4]]}, header=("x", "y", "w", "h", "f"))
    for place, names, message in (
        (folder, ["a"], "first line must be frame,left,top,right,bottom"),
        (folder, ["b", "a"], r"no b\.csv"),
        (tmp_path / "elsewhere", ["a"], "is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            read_box_files(place, names, [0])


def test_boxes_from_keypoint_files(tmp_path):
    make_recording(tmp_path, num_frames=4)
    recording = read_recording(tmp_path, RecordingConfig())
    boxes = video_boxes.keypoint_boxes(recording, [0, 2, 9])
    v = NAMES.index("front")
    xy = distort(recording.xy[2, v], recording.K[v], recording.cameras[v].dist)
    np.testing.assert_allclose(boxes[1, v], [*xy.min(0), *(xy.max(0) + 1)], atol=0.05)
    assert np.isnan(boxes[2]).all()
