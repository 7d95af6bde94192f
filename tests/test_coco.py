"""Photographs as COCO labels them: files, samples, losses of joints that are not known."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_fixture import BOX, COLORS, PLAIN, annotations_of, coco_settings, make_coco, settings
from h36m_fixture import make_tiny_h36m

from ptri import config
from ptri.config import ModelConfig
from ptri.data.annotations import COCO_ROWS, JOINTS, OUR_ROWS, choose_persons, read_persons
from ptri.data.multiview import SampleKey
from ptri.errors import UserError
from ptri.models.network2d import Network2D
from ptri.skeleton import H36M17
from ptri.training.task2d import HeatmapTask, detection_losses, open_data

LEFT, RIGHT = (OUR_ROWS[JOINTS.index(f"{side}_wrist")] for side in ("left", "right"))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    make_coco(folder)
    return folder


@pytest.fixture(scope="module")
def h36m(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h36m")
    make_tiny_h36m(folder, num_frames=2, size=96)
    return folder


def colour_at(sample, joint):
    """BGR of the sample's image at a joint."""
    x, y = sample.joints2d[0, joint].round().int().tolist()
    shown = sample.images[0, :, y, x].numpy()
    return (255 * (shown * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]))[::-1]


def nearest_colour(sample, joint):
    distance = np.abs(np.array(COLORS) - colour_at(sample, joint)).sum(1)
    return OUR_ROWS[int(distance.argmin())]


# --- files -----------------------------------------------------------------------------------


def test_who_is_left_out_is_counted(tmp_path, caplog):
    make_coco(tmp_path)
    content = json.loads(annotations_of(tmp_path).read_text())
    first = content["annotations"][0]
    face = np.reshape(first["keypoints"], (17, 3)).copy()
    face[5:] = 0  # five labelled joints, none of them ours
    unlabelled = np.zeros(51, int).tolist()
    content["annotations"] += [
        {**first, "iscrowd": 1, "keypoints": unlabelled},
        {**first, "keypoints": unlabelled},
        {**first, "keypoints": face.ravel().tolist()},
        {**first, "bbox": [3, 3, 30, 20]},
        {**first, "bbox": [3, 3, 0, 50]},
        {**first, "category_id": 18},
    ]
    annotations_of(tmp_path).write_text(json.dumps(content))
    with caplog.at_level(logging.INFO, "ptri"):
        data = open_data(coco_settings(tmp_path), "train")
    assert len(data) == 6 and data.persons.number.tolist() == list(range(6))
    assert caplog.messages[-1].endswith(
        "train2017.json: 6 of 11 persons; left out: 1 crowds; 1 with fewer than 5 labelled "
        "keypoints; 1 with labels in the face only; 2 in a box of less than 32 px"
    )
    assert len(open_data(coco_settings(tmp_path, "data.train_every=4"), "train")) == 2
    test = open_data(coco_settings(tmp_path), "test")
    assert len(test) == 3 and "val2017" in test.persons.images[0]


def test_other_layouts(coco, tmp_path):
    """A list of persons beside their images; images/train2017; the same persons each time."""
    expected = choose_persons(annotations_of(coco), 5)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/train2017").symlink_to(coco / "train2017")
    (tmp_path / "annotations").symlink_to(coco / "annotations")
    moved = choose_persons(annotations_of(tmp_path), 5)
    assert moved.images[0] == str(tmp_path / "images/train2017/000000000000.jpg")
    entries = [
        {"image": f"train2017/{n:012d}.jpg", "bbox": BOX, "keypoints": keypoints.tolist()}
        for n, keypoints in enumerate(expected.keypoints)
    ]
    (coco / "persons.json").write_text(json.dumps(entries))
    listed = choose_persons(coco / "persons.json", 5)
    for persons in (moved, listed):
        assert [Path(name).name for name in persons.images] == [f"{n:012d}.jpg" for n in range(6)]
        np.testing.assert_array_equal(persons.keypoints, expected.keypoints)
    chosen = settings(tmp_path, f"data.root={coco}/persons.json")
    assert len(open_data(chosen, "train")) == 6
    with pytest.raises(UserError, match=r"data.test_root: .*persons\.json is trained on"):
        open_data(chosen, "test")
    chosen = config.replace(chosen, data__test_root=str(coco))
    assert len(open_data(chosen, "test")) == 3


def test_bad_trees_are_one_line(tmp_path):
    def fails(message):
        with pytest.raises(UserError, match=message) as caught:
            open_data(coco_settings(tmp_path), "train")
        assert "\n" not in str(caught.value)

    fails(r"data.root: .*annotations: no person_keypoints_train2017\.json; extract")
    make_coco(tmp_path)
    path = annotations_of(tmp_path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    fails(r"train2017\.json: truncated or no JSON")
    path.write_text("[]")
    fails("0 of 0 persons: the file is empty")
    content = json.loads(whole)
    content["annotations"][2]["keypoints"] = [1, 2, 3]
    path.write_text(json.dumps(content))
    fails("person 2: 1 keypoints, expected 17")
    path.write_text(json.dumps({**json.loads(whole), "images": []}))
    fails(r"expected COCO's images .*KeyError 70")
    path.write_text(whole)
    (tmp_path / "train2017/000000000003.jpg").unlink()
    fails(r"1 of 6 images are missing, such as .*000000000003\.jpg")
    (tmp_path / "train2017").rename(tmp_path / "elsewhere")
    fails(r"train2017: no such folder; extract COCO's train2017\.zip")


def test_a_file_is_read_once(coco):
    read_persons.cache_clear()
    for _ in range(2):  # as when the images' size changes
        choose_persons(annotations_of(coco), 5)
    assert read_persons.cache_info().misses == 1


# --- samples ---------------------------------------------------------------------------------


def test_joints_lie_where_they_are_drawn(coco):
    """Also in turned, shifted and mirrored crops; a flip exchanges left and right."""
    turned = ["augment.rotation_deg=40", "augment.scale=0.2", "augment.color=0", "augment.blur=0"]
    for flip in (0, 1):
        made = coco_settings(coco, *PLAIN, *turned, f"augment.flip={flip}", "data.image_size=160")
        data, hits = open_data(made, "train"), 0
        for index in range(12):
            sample = data[SampleKey(index % 6, index // 6)]
            for joint in (LEFT, RIGHT):
                if sample.visible[0, joint]:
                    drawn = H36M17.flip[joint] if flip else joint
                    hits += nearest_colour(sample, joint) == drawn
        assert hits >= 18, hits  # of at most 24; dots may cover each other


def test_what_is_not_known_is_nan(coco, tmp_path):
    make_coco(tmp_path / "some")
    path = annotations_of(tmp_path / "some")
    content = json.loads(path.read_text())
    ankle = 3 * COCO_ROWS[JOINTS.index("left_ankle")]
    content["annotations"][0]["keypoints"][ankle : ankle + 3] = [0, 0, 0]
    path.write_text(json.dumps(content))
    data = open_data(coco_settings(tmp_path / "some"), "train")
    sample = data[0]
    known = torch.isfinite(sample.joints2d[0]).all(-1)
    assert sorted(known.nonzero()[:, 0].tolist()) == sorted(set(OUR_ROWS) - {_ankle()})
    assert not sample.visible[0, ~known].any() and torch.isnan(sample.joints3d).all()
    assert torch.isfinite(sample.cameras.K).all() and sample.images.shape == (1, 3, 64, 64)
    again = data[SampleKey(0, 0)]
    assert torch.equal(sample.images, again.images)
    assert not torch.equal(sample.images, data[SampleKey(0, 1)].images)


def _ankle():
    return OUR_ROWS[JOINTS.index("left_ankle")]


def test_half_bodies_need_known_joints(coco):
    """Of a person whose legs nobody labelled the upper body is cut out, never a NaN."""
    data = open_data(coco_settings(coco, *PLAIN, "augment.half_body=1"), "train")
    legs = [
        COCO_ROWS[JOINTS.index(f"{s}_{n}")]
        for s in ("left", "right")
        for n in ("hip", "knee", "ankle")
    ]
    keypoints = data.persons.keypoints.copy()
    keypoints[:, legs, 2] = 0
    data.persons = data.persons._replace(keypoints=keypoints)
    whole = 64 / (1.1 * 120)  # px of the crop by px of the photograph
    scales = [float(data[SampleKey(0, epoch)].cameras.K[0, 0, 0]) / whole for epoch in range(40)]
    assert all(np.isfinite(scales)) and 0.2 < np.mean(np.array(scales) > 1.01) < 0.9, scales


# --- losses ----------------------------------------------------------------------------------


def batch_with_unknown(coco, h36m):
    """Eight samples: four of photographs, four whose joints are all known."""
    photo = open_data(coco_settings(coco), "train")
    known = open_data(settings(h36m, "data.kind=h36m", f"data.root={h36m}"), "train")
    samples = [photo[n] for n in range(4)] + [known[n] for n in range(4)]
    return torch.utils.data.default_collate(samples)


def test_unknown_joints_get_no_gradient(coco, h36m, tmp_path):
    """Not of heatmaps, covariances or confidences; all others do, also those out of the image."""
    batch = batch_with_unknown(coco, h36m)
    far = batch.joints2d.clone()
    far[4, 0, 3] = 500.0  # known not to be in the image
    batch = batch._replace(joints2d=far, visible=batch.visible & (far < 64).all(-1))
    torch.manual_seed(0)
    network = Network2D(ModelConfig()).train()
    with torch.no_grad():
        network.reliability.output.bias[1] = 1.0
    detection = network(batch.images[:, 0], isolate_uncertainty=True)
    keypoints = detection.keypoints
    outputs = detection.logits, keypoints.covariance, keypoints.confidence
    for value in outputs:
        value.retain_grad()
    losses, joints = detection_losses(detection, batch)
    losses["loss"].mean().backward()
    known = torch.isfinite(batch.joints2d[:, 0]).all(-1)
    assert (~known[:4]).sum() == 4 * 5 and known[4:].all()
    size = [value.grad.flatten(2).abs().amax(-1) for value in outputs[:2]]
    for gradient, taught in zip(size, (batch.visible[:, 0], batch.visible[:, 0])):
        assert (gradient[~taught] == 0).all() and (gradient[taught] > 0).all()
    assert (keypoints.confidence.grad[~known] == 0).all()
    assert (keypoints.confidence.grad[known] != 0).all()  # also of the joint out of the image
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert (
        torch.equal(joints["known"], known.flatten())
        and not joints["found"][~joints["known"]].any()
    )
    # The control: were unknown joints numbers, they would be taught not to be found.
    other, _ = detection_losses(detection, batch._replace(joints2d=batch.joints2d.nan_to_num()))
    assert (other["loss/confidence"][:4] > losses["loss/confidence"][:4]).all()


def test_orientation_needs_a_known_trunk(coco, h36m, tmp_path):
    task = HeatmapTask(coco_settings(coco, "train.weight_orientation=1"))
    torch.manual_seed(0)
    model = task.build_model().train()
    values = task.training_step(model, batch_with_unknown(coco, h36m), 0)
    assert (values["loss/orientation"][:4] == 0).all() and (
        values["loss/orientation"][4:] > 0
    ).all()
    values["loss"].mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_validation_counts_known_joints_only(coco, tmp_path):
    task = HeatmapTask(coco_settings(coco))
    torch.manual_seed(0)
    model = task.build_model().eval()
    metrics = task.validate(model)
    assert all(np.isfinite(list(metrics.values())))
    pictures = task.pictures(model)
    assert all(picture.std() > 0 for picture in pictures.values())
