"""scripts/prepare_photos.py: frames of videos, the people in pictures, and what trains on them."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import prepare_photos
import pytest

from ptri import config
from ptri.data.coco import open_photos
from ptri.data.labels import labels_path, read_labels
from ptri.recordings.detect import overlap

CAMERA = 0


@pytest.fixture
def demo():
    """A scene of the demo: its pictures of one camera, and the boxes (N, 4) left, top, ..."""
    labels = read_labels(labels_path("data/demo"))
    rows = np.flatnonzero((labels.subject == labels.subject[0]) & (labels.action == 0))[:3]
    names = labels.subject_names[labels.subject[0]], labels.action_names[0]
    folder = Path("data/demo/processed").joinpath(*names, "imageSequence-undistorted")
    folder = folder / labels.camera_names[CAMERA]
    paths = [folder / f"img_{labels.frame[row] + 1:06d}.jpg" for row in rows]
    return paths, labels.boxes[rows, CAMERA][:, [1, 0, 3, 2]].astype(float)


def test_people_are_found_in_pictures_and_frames(demo, tmp_path, capsys):
    paths, boxes = demo
    video = tmp_path / "walk.avi"
    images = [cv2.imread(str(path)) for path in paths]
    size = images[0].shape[1::-1]
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25, size)
    for image in images:
        writer.write(image)
    writer.release()
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(paths[1], folder / "one.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    whole = paths[0].read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])  # OpenCV alone would fill it
    arguments = [str(folder), "--videos", str(video), "--every", "2"]
    assert prepare_photos.main(arguments) == 0
    said = capsys.readouterr().out
    assert "3 persons in 3 of 5 pictures; 2 could not be read" in said
    entries = json.loads((folder / "boxes.json").read_text())
    found = {entry["image"]: np.array(entry["bbox"]) for entry in entries}
    for name, box in zip(("walk/000000.jpg", "one.jpg", "walk/000002.jpg"), boxes, strict=True):
        x, y, width, height = found[name]
        assert overlap(np.array([x, y, x + width, y + height]), box) > 0.6
    (folder / "broken.png").unlink()
    settings = [f"data.root={folder}", "data.kind=photos", "run.name=x"]
    assert len(open_photos(config.load(None, settings))) == 3


def test_what_is_wrong_is_said(tmp_path, capsys):
    (tmp_path / "grey").mkdir()
    cv2.imwrite(str(tmp_path / "grey" / "a.jpg"), np.full((64, 64, 3), 90, np.uint8))
    (tmp_path / "none.mp4").write_bytes(b"")
    for arguments, message in (
        ([str(tmp_path / "no")], "no such folder"),
        ([str(tmp_path / "grey")], "nobody was found in 1 pictures"),
        ([str(tmp_path), "--videos", str(tmp_path / "none.mp4")], "not a video"),
        ([str(tmp_path), "--videos", "a/x.mp4", "b/x.mp4"], "two of the same name"),
        ([str(tmp_path), "--every", "0"], "--every: 0"),
    ):
        assert prepare_photos.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
