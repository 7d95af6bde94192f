"""Networks of rtmlib: small ONNX files of the same signatures, which see a bright dot."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from ptri import config
from ptri.data.transforms import normalise
from ptri.detectors.build import build_detector, build_person_detector
from ptri.errors import UserError
from ptri.recordings.crops import upright_turn


def options(*extra):
    return config.load(None, ["run.name=x", "data.kind=videos", "detector.name=rtmlib", *extra])


def test_without_rtmlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    with pytest.raises(UserError, match=r"detector.name: rtmlib: no module.*make rtm") as error:
        build_detector(options())
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"detector.people: rtmlib: no module.*make rtm"):
        build_person_detector(options("detector.people=rtmlib"))


# What is not there is made when a test asks for it; the line above needs neither.
WIDTH, HEIGHT, DOT = 192, 256, (150.0, 220.0)  # px of the network's picture; of the crop


class DotPose(nn.Module):
    """Profiles along x and y twice as fine as the pixels, as RTMPose's; all joints at the dot."""

    def forward(self, picture):
        heat = torch.sigmoid(picture.mean(1))  # (1, H, W)
        along = (heat.amax(-2), heat.amax(-1))
        return tuple(
            nn.functional.interpolate(part[:, None], scale_factor=2.0).expand(-1, 17, -1)
            for part in along
        )


class DotHeatmaps(nn.Module):
    """Heatmaps of a quarter of the picture, as ViTPose's."""

    def forward(self, picture):
        heat = nn.functional.avg_pool2d(torch.sigmoid(picture.mean(1, keepdim=True)), 4)
        return heat.expand(-1, 26, -1, -1)


class TwoPersons(nn.Module):
    """Boxes with scores, and keypoints with scores, as RTMO's: one at the middle, one aside."""

    def forward(self, picture):
        places = picture.new_tensor([[40.0, 40.0], [picture.shape[-1] / 2, 330.0]])
        points = torch.cat([places, places.new_full((2, 1), 0.9)], 1)
        boxes = torch.cat([places - 20, places + 20, places.new_full((2, 1), 0.9)], 1)
        zero = 0 * picture.mean()
        return boxes[None] + zero, points[None, :, None].expand(-1, -1, 17, -1) + zero


def saved(module, path, size=(HEIGHT, WIDTH)):
    for package in ("rtmlib", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    picture = torch.zeros(1, 3, *size)
    program = torch.onnx.export(module.eval(), (picture,), dynamo=True, verbose=False)
    program.save(str(path))
    return str(path)


def crops(side):
    """A crop with a bright dot on black, and an empty one."""
    picture = np.zeros((side, side, 3), np.uint8)
    x, y = map(int, DOT)
    picture[y - 2 : y + 3, x - 2 : x + 3] = 255
    return torch.stack([normalise(picture), normalise(np.zeros_like(picture))])


@pytest.mark.parametrize("module, joints", [(DotPose, 17), (DotHeatmaps, 26)])
def test_a_dot_is_where_it_was_drawn(module, joints, tmp_path):
    path = saved(module(), tmp_path / "dot.onnx")
    detector = build_detector(options(f"detector.weights={path}"))
    assert len(detector.skeleton.joints) == joints
    said = detector(crops(detector.image_size))
    assert said.xy.shape == (2, joints, 2)
    # A pixel of its picture is 2.5 of the crop's.
    assert np.abs(said.xy[0].numpy() - DOT).max() < 6
    assert said.confidence[0].min() > said.confidence[1].max()
    variance = said.covariance.diagonal(dim1=-2, dim2=-1)
    assert (variance[0] < variance[1]).all() and (variance > 0).all()
    assert len(detector.fingerprint()) == 32


def test_of_several_persons_the_one_in_the_middle(tmp_path):
    path = saved(TwoPersons(), tmp_path / "two.onnx", (640, 640))
    detector = build_detector(options(f"detector.weights={path}"))
    said = detector(crops(detector.image_size))
    scale = detector.image_size / 640
    np.testing.assert_allclose(said.xy[0, 0], [320 * scale, 330 * scale], atol=0.1)
    assert said.confidence.min() == pytest.approx(0.9)


class TwoBoxes(nn.Module):
    """Boxes with scores, as a YOLOX with its own suppression: a sure one and an unsure one."""

    def forward(self, picture):
        boxes = [[16.0, 32.0, 80.0, 160.0, 0.9], [0.0, 0.0, 10.0, 10.0, 0.1]]
        return picture.new_tensor(boxes)[None] + 0 * picture.mean()


def test_boxes_of_people_are_the_picture_s(tmp_path):
    path = saved(TwoBoxes(), tmp_path / "boxes.onnx", (320, 320))
    finder = build_person_detector(
        options("detector.people=rtmlib", f"detector.people_weights={path}")
    )
    people = finder(np.zeros((640, 480, 3), np.uint8))  # twice as high as the network's picture
    np.testing.assert_allclose(people.boxes, [[32, 64, 160, 320]])
    assert people.keypoints.shape == (1, 17, 3) and upright_turn(people.keypoints[0]) == 0
    assert len(finder.fingerprint()) == 32
    with pytest.raises(UserError, match=r"detector.people_weights: .*none.onnx: "):
        build_person_detector(
            options("detector.people=rtmlib", "detector.people_weights=none.onnx")
        )


def test_other_files_are_one_clear_line(tmp_path):
    pytest.importorskip("rtmlib")
    for path, content in (("nowhere.onnx", None), ("rubbish.onnx", b"rubbish")):
        if content:
            (tmp_path / path).write_bytes(content)
        with pytest.raises(UserError, match=rf"detector.weights: .*{path}: .*expected an ONNX"):
            build_detector(options(f"detector.weights={tmp_path / path}"))
    path = saved(nn.Flatten(), tmp_path / "flat.onnx")
    with pytest.raises(UserError, match="with 17 or 26 joints"):
        build_detector(options(f"detector.weights={path}"))
