"""Photographs without labels, and the teacher they need."""

import json

import cv2
import numpy as np
import pytest
import torch
from coco_fixture import PLAIN, coco_settings, make_coco, settings

from ptri import config
from ptri.config import ModelConfig
from ptri.data.annotations import JOINTS, OUR_ROWS
from ptri.detectors.movenet import THUNDER, MoveNetDetector
from ptri.errors import UserError
from ptri.models.network2d import Network2D
from ptri.skeleton import COCO17, H36M17
from ptri.structures import Keypoints
from ptri.training.imitation import HeatmapTeacher, detector_heatmaps, network_heatmaps
from ptri.training.task2d import HeatmapTask, open_data

LEFT, RIGHT = (OUR_ROWS[JOINTS.index(f"{side}_wrist")] for side in ("left", "right"))
TAUGHT = ["init.teacher_2d=x", "train.imitate=heatmaps"]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    make_coco(folder)
    return folder


def test_heatmaps_need_a_teacher(coco):
    with pytest.raises(UserError, match=r"train.imitate: .*init\.teacher_2d"):
        HeatmapTask(coco_settings(coco, "train.imitate=heatmaps")).build_model()


def test_boxes_of_unlabelled_photographs(coco, tmp_path):
    (tmp_path / "below").symlink_to(coco / "train2017")
    photos = [f"data.root={tmp_path}", "data.kind=photos", *TAUGHT, *PLAIN, "data.crop_scale=1"]
    made = settings(tmp_path, *photos)
    names = [f"below/{n:012d}.jpg" for n in range(2)]
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    assert len(open_data(made, "train")) == 6 + 1
    sample = open_data(made, "train")[0]
    assert torch.isnan(sample.joints2d).all() and not sample.visible.any()
    # The whole photograph, 200 px wide: black above and below.
    assert float(sample.cameras.K[0, 0, 0]) == pytest.approx(64 / 200)
    (tmp_path / "boxes.csv").write_text(
        "image,x,y,width,height\n" + "".join(f"{name},20,10,80,120\n" for name in names * 2)
    )
    data = open_data(made, "train")
    assert len(data) == 4 and len(data.persons.images) == 2
    assert float(data[0].cameras.K[0, 0, 0]) == pytest.approx(64 / 120)
    entries = [{"image": name, "bbox": [20, 10, 80, 100]} for name in names]
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    assert float(open_data(made, "train")[1].cameras.K[0, 0, 0]) == pytest.approx(64 / 100)
    with pytest.raises(UserError, match="photos have no truth to test on"):
        open_data(made, "test")
    (tmp_path / "boxes.json").unlink()
    for text, message in (
        ("x,y\n", "first line must be image,x,y,width,height"),
        (f"image,x,y,width,height\n{names[0]},1,2,3\n", "person 0: "),
        ("image,x,y,width,height\nno.jpg,1,2,90,90\n", r"1 of 1 images are missing.*no\.jpg"),
        (f"image,x,y,width,height\n{names[0]},1,2,9,9\n", "1 in a box of less than 32 px$"),
    ):
        (tmp_path / "boxes.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            open_data(made, "train")
    (tmp_path / "boxes.csv").write_text("image", encoding="utf-16")  # as some spreadsheets do
    with pytest.raises(UserError, match=r"boxes\.csv: cannot be read as UTF-8 text"):
        open_data(made, "train")
    with pytest.raises(UserError, match="is not a folder"):
        open_data(config.replace(made, data__root=str(tmp_path / "none")), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no JPEG or PNG image"):
        open_data(config.replace(made, data__root=str(tmp_path / "empty")), "train")


def test_a_teacher_teaches_unknown_joints_only():
    torch.manual_seed(0)
    network = Network2D(ModelConfig()).eval()
    teacher = HeatmapTeacher(network_heatmaps(network), 64)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        own = network(images).logits
    unknown = torch.zeros(3, 17, dtype=torch.bool)
    unknown[0, :5], unknown[2, 3] = True, True
    assert float(teacher(images, own, unknown).abs().max()) < 1e-4  # nothing to learn from oneself
    logits = torch.zeros_like(own).requires_grad_()
    apart = teacher(images, logits, unknown)
    apart.sum().backward()
    assert apart.shape == (3,) and (apart[[0, 2]] > 0).all() and apart[1] == 0
    moved = logits.grad.flatten(2).abs().amax(-1) > 0
    assert torch.equal(moved, unknown)
    # As much as it is confident: by definition, and of another size of images.
    expected = _divergence(own, network(images).keypoints.confidence.detach())
    torch.testing.assert_close(apart[2], expected[2, 3], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(apart[0], expected[0, :5].mean(), rtol=1e-3, atol=1e-6)
    nobody = teacher(images, logits, torch.zeros_like(unknown))
    assert (nobody == 0).all() and nobody.requires_grad


def _divergence(logits, confidence):
    """KL from a flat heatmap, by the entropy."""
    p = logits.flatten(2).log_softmax(-1)
    return confidence * ((p.exp() * p).sum(-1) + np.log(p.shape[-1]))


def test_a_teacher_of_another_image_size_points_to_the_same_place():
    """Its heatmaps are made to fit: the mean of a peak stays where it is in the image."""

    def peak(images):
        assert images.shape[-2:] == (128, 128)
        grid = torch.arange(32.0)
        x, y = (20.5 + 0.5) / 4 * 2 - 0.5, (33.0 + 0.5) / 4 * 2 - 0.5  # px of 64 to heatmap px
        logits = -((grid - x) ** 2 + (grid[:, None] - y) ** 2) / (2 * 3.0**2)
        target = logits.flatten().softmax(0).unflatten(0, (32, 32))
        return target.expand(len(images), 17, 32, 32), torch.ones(len(images), 17)

    teacher = HeatmapTeacher(peak, 128)
    target, _ = teacher._heatmaps(torch.zeros(1, 3, 64, 64), 16)
    grid = (torch.arange(16.0) + 0.5) * 4 - 0.5  # heatmap px to px of the image
    place = target[0, 0].unflatten(0, (16, 16))
    assert float(place.sum()) == pytest.approx(1)
    assert float((place.sum(0) * grid).sum()) == pytest.approx(20.5, abs=0.1)
    assert float((place.sum(1) * grid).sum()) == pytest.approx(33.0, abs=0.1)


class Somebody:
    """A detector of COCO's joints that says the same of every image."""

    skeleton = COCO17
    image_size = 128
    xy = torch.linspace(52, 76, 34).view(17, 2)
    covariance = torch.tensor([[90.0, 40.0], [40.0, 60.0]])  # px^2

    def __call__(self, images):
        N = len(images)
        covariance = self.covariance.expand(N, 17, 2, 2)
        return Keypoints(self.xy.expand(N, 17, 2), covariance, torch.full((N, 17), 0.7))


def test_any_detector_teaches_the_joints_that_are_its_own():
    target, confidence = detector_heatmaps(Somebody())(torch.zeros(2, 3, 128, 128))
    known = [H36M17.joints[j] for j in np.flatnonzero(confidence[1] > 0)]
    assert len(known) == 12 and not {"hip", "spine", "thorax", "head", "nose"} & set(known)
    assert confidence[confidence > 0].unique().tolist() == pytest.approx([0.7])
    grid = (torch.arange(32.0) + 0.5) * 4 - 0.5  # heatmap px to px of the image
    for joint, name in (("right_foot", "right_ankle"), ("left_wrist", "left_wrist")):
        heatmap = target[0, H36M17.joints.index(joint)]
        x, y = (heatmap.sum(0) * grid).sum(), (heatmap.sum(1) * grid).sum()
        assert float(heatmap.sum()) == pytest.approx(1)
        expected = Somebody.xy[COCO17.joints.index(name)]
        assert [float(x), float(y)] == pytest.approx(expected.tolist(), abs=0.1)
        mixed = torch.einsum("yx,y,x->", heatmap, grid - y, grid - x)
        assert float(mixed) == pytest.approx(40, rel=0.03)  # the covariance's


def test_a_detector_teaches_the_same_where_training_takes_fewer_bits():
    teach = detector_heatmaps(MoveNetDetector(THUNDER))
    images = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = teach(images)
    with torch.autocast("cpu", torch.bfloat16):
        got = teach(images)
    assert all(torch.equal(*parts) for parts in zip(got, expected))
