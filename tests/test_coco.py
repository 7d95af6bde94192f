"""Photographs as a source of 2D training: COCO's files, unknown joints, teachers, mixtures."""

import dataclasses
import io
import json
import logging
import tarfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coco_fixture import BOX, COLORS, annotations_of, make_coco
from h36m_fixture import make_tiny_h36m
from toy_task import assert_same_run, read_lines

from ptri import checkpoint, config
from ptri.config import ModelConfig
from ptri.data.annotations import COCO_ROWS, JOINTS, OUR_ROWS, choose_persons, read_persons
from ptri.data.loaders import TrainLoader
from ptri.data.mixture import Mixture, sources
from ptri.data.multiview import SampleKey
from ptri.data.transforms import project
from ptri.errors import UserError
from ptri.models.network2d import Network2D
from ptri.skeleton import H36M17
from ptri.training import engine
from ptri.training.imitation import HeatmapTeacher
from ptri.training.task2d import HeatmapTask, detection_losses, open_data

LEFT, RIGHT = (OUR_ROWS[JOINTS.index(f"{side}_wrist")] for side in ("left", "right"))
PLAIN = [f"augment.{name}=0" for name in ("color", "scale", "shift", "rotation_deg", "blur")]
PLAIN += ["augment.noise=0", "augment.jpeg=0", "augment.occluder=0"]


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


def settings(out, *overrides):
    return config.load(None, [
        "run.name=two", f"run.out={out}", "run.device=cpu", "run.threads=1", "data.kind=coco",
        "data.image_size=64", "data.workers=0", "data.crop_scale=1.1", "data.train_subjects=[1]",
        "data.test_subjects=[9]", "train.batch_size=8", "train.epochs=1", "train.warmup_steps=5",
        "evaluate.pictures=1", "augment.occluder=0", *overrides,
    ])  # fmt: skip


def coco_settings(root, *overrides):
    return settings(root, f"data.root={root}", *overrides)


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
    fails(r"train2017\.json: no valid JSON")
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
    legs = [COCO_ROWS[JOINTS.index(f"{s}_{n}")] for s in ("left", "right")
            for n in ("hip", "knee", "ankle")]  # fmt: skip
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


# --- mixtures --------------------------------------------------------------------------------


class Tagged(torch.utils.data.Dataset):
    """Items that tell their data set, number and pass."""

    def __init__(self, tag, length):
        self.tag, self.num_views = tag, np.ones(length, np.int64)

    def __len__(self):
        return len(self.num_views)

    def __getitem__(self, key):
        return torch.tensor([self.tag, key.index, key.epoch])


class ManyAtOnce(Tagged):
    """As rendered images are made; asked for none, a renderer would start in vain."""

    def __getitems__(self, keys):
        assert len(keys)
        return [self[key] for key in keys]


def test_shares_hold_in_every_pass():
    parts = [Tagged(0, 1000), Tagged(1, 7), Tagged(2, 90)]
    mixture = Mixture(parts, [0.5, 0.3, 0.2], length=101, seed=3)
    seen = {tag: [] for tag in range(3)}
    for epoch in range(20):
        items = [tuple(mixture[SampleKey(n, epoch)].tolist()) for n in range(101)]
        counts = Counter(tag for tag, *_ in items)
        assert all(abs(counts[tag] - 101 * s) <= 1 for tag, s in enumerate((0.5, 0.3, 0.2)))
        for tag, number, passed in items:
            seen[tag].append((passed, number))
    for tag, part in enumerate(parts):
        # Each data set's own passes are whole, one after another.
        assert len(set(seen[tag])) == len(seen[tag])
        times = Counter(number for _, number in seen[tag])
        least = len(seen[tag]) // len(part)
        assert set(times.values()) <= {least, least + 1}
    orders = [[n for p, n in seen[1] if p == passed] for passed in (0, 1, 2)]
    assert orders[0] != orders[1] != orders[2]
    other = Mixture(parts, [0.5, 0.3, 0.2], length=101, seed=4)
    assert any((other[SampleKey(n, 0)] != mixture[SampleKey(n, 0)]).any() for n in range(101))
    with pytest.raises(IndexError):
        mixture[101]


def test_without_shares_every_item_comes_once():
    mixture = Mixture([ManyAtOnce(0, 5), Tagged(1, 3)])
    assert mixture[7].tolist()[0] == 1
    items = mixture.__getitems__([SampleKey(n, 2) for n in range(8)])
    assert sorted((t, n) for t, n, _ in map(torch.Tensor.tolist, items)) == [
        *((0, n) for n in range(5)), *((1, n) for n in range(3))
    ]  # fmt: skip
    assert {int(item[2]) for item in items} == {2}


def test_batches_of_a_mixture_resume_exactly():
    def loader(workers=0):
        mixture = Mixture([Tagged(0, 40), Tagged(1, 9)], [1, 2], length=24)
        return TrainLoader(mixture, 8, seed=1, workers=workers, num_views=(1, 1))

    whole = list(loader().between(0, 9))
    for a, b in zip(loader(1).between(4, 9), whole[4:], strict=True):
        assert torch.equal(a, b)
    halves = [Mixture([Tagged(0, 40), Tagged(1, 9)], [1, 2], length=24) for _ in range(2)]
    parts = [TrainLoader(m, 8, 1, rank, 2, num_views=(1, 1)).between(2, 3)
             for rank, m in enumerate(halves)]  # fmt: skip
    assert torch.equal(torch.cat([next(part) for part in parts]), whole[2])


def mix(*given):
    return f"data.mix={json.dumps(list(given))}"


def test_sources_take_what_they_do_not_say_from_the_section(coco):
    made = coco_settings(coco, mix({"share": 1}, {"kind": "h36m", "root": "x", "share": 3}))
    (first, second), shares = sources(made)
    assert shares == [1, 3]
    assert first.data == dataclasses.replace(made.data, mix=[])
    assert second.data == dataclasses.replace(made.data, mix=[], kind="h36m", root="x")
    assert first.run.seed != second.run.seed
    assert config.from_dicts([("", config.to_dict(made))]) == made


@pytest.mark.parametrize("given, message", [
    ([{"share": 1}, {}], "data.mix: give each source a share, or none"),
    ([{"share": 0}], r"data.mix\[0\].share: 0.0; expected a number above 0"),
    ([{"share": "half"}], r"data.mix\[0\].share: 'half'; expected a number"),
    ([{}, {"kidn": "coco"}], r"data.mix\[1\]: unknown key 'data.kidn'; did you mean 'data.kind'"),
    ([{"kind": "cocoa"}], r"data.mix\[0\]: data.kind: 'cocoa'; expected"),
    ([{"image_size": 96}], r"data.mix\[0\]: image_size: one for all"),
    ([{"root": "/no/such"}], r"data.root: /no/such"),
    ([{"kind": "generated"}], "data.kind: generated; expected"),
    ([{"kind": "photos"}], "no truth to learn from; name a teacher"),
])  # fmt: skip
def test_bad_mixtures(coco, given, message):
    with pytest.raises(UserError, match=message):
        open_data(coco_settings(coco, mix(*given)), "train")


# --- unlabelled photographs and their teacher ------------------------------------------------


TAUGHT = ["init.teacher_2d=x", "train.imitate=heatmaps"]


def test_heatmaps_need_a_teacher(coco):
    with pytest.raises(UserError, match=r"train.imitate: .*init\.teacher_2d"):
        HeatmapTask(coco_settings(coco, "train.imitate=heatmaps")).build_model()


def test_boxes_of_unlabelled_photographs(coco, tmp_path):
    (tmp_path / "below").symlink_to(coco / "train2017")
    photos = [f"data.root={tmp_path}", "data.kind=photos", *TAUGHT, *PLAIN, "data.crop_scale=1"]
    made = settings(tmp_path, *photos)
    names = [f"below/{n:012d}.jpg" for n in range(2)]
    cv2.imwrite(str(tmp_path / "notes.png"), np.zeros((40, 40, 3), np.uint8))
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
    ):
        (tmp_path / "boxes.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            open_data(made, "train")
    with pytest.raises(UserError, match="is not a folder"):
        open_data(config.replace(made, data__root=str(tmp_path / "none")), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no JPEG image"):
        open_data(config.replace(made, data__root=str(tmp_path / "empty")), "train")


def test_a_teacher_teaches_unknown_joints_only():
    torch.manual_seed(0)
    network = Network2D(ModelConfig()).eval()
    teacher = HeatmapTeacher(network, 64)
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

    class Peak(torch.nn.Module):
        def forward(self, images):
            assert images.shape[-2:] == (128, 128)
            grid = torch.arange(32.0)
            x, y = (20.5 + 0.5) / 4 * 2 - 0.5, (33.0 + 0.5) / 4 * 2 - 0.5  # px of 64 to heatmap px
            logits = -((grid - x) ** 2 + (grid[:, None] - y) ** 2) / (2 * 3.0**2)
            said = torch.ones(len(images), 17)
            detection = type("Detection", (), {})()
            detection.logits = logits.expand(len(images), 17, 32, 32)
            detection.keypoints = type("Keypoints", (), {"confidence": said})
            return detection

    teacher = HeatmapTeacher(Peak(), 128)
    target, _ = teacher._heatmaps(torch.zeros(1, 3, 64, 64), 16)
    grid = (torch.arange(16.0) + 0.5) * 4 - 0.5  # heatmap px to px of the image
    place = target[0, 0].unflatten(0, (16, 16))
    assert float(place.sum()) == pytest.approx(1)
    assert float((place.sum(0) * grid).sum()) == pytest.approx(20.5, abs=0.1)
    assert float((place.sum(1) * grid).sum()) == pytest.approx(33.0, abs=0.1)


# --- whole runs ------------------------------------------------------------------------------


def make_shard(folder, h36m):
    """A shard of the miniature's images, as `scripts/render_people.py` writes them."""
    data = open_data(settings(h36m, "data.kind=h36m", f"data.root={h36m}"), "test")
    folder.mkdir()
    with tarfile.open(folder / "S1-000000.tar", "w") as tar:
        for number in range(6):
            row, view = data.row(number), data.items[number][1]
            labels, camera = data.index.labels, data.index.cameras[view]
            K, R, t = data.index.camera_of(row, camera)
            truth = {"K": K.tolist(), "R": R.tolist(), "t": t.tolist(),
                     "h36m17": labels.joints[row].tolist(),
                     "box": labels.boxes[row, camera].tolist()}  # fmt: skip
            image = Path(data.index.image_path(row, camera)).read_bytes()
            for kind, content in (("jpg", image), ("json", json.dumps(truth).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_a_mixture_trains_and_resumes_exactly(coco, h36m, tmp_path):
    """Labelled and unlabelled photographs, images of a rig and shards, with a teacher."""
    make_shard(tmp_path / "shards", h36m)
    torch.manual_seed(0)
    teacher = Network2D(ModelConfig())
    meta = {"model": dataclasses.asdict(ModelConfig()), "image_size": 64}
    checkpoint.save_weights(tmp_path / "teacher.pt", teacher.state_dict(), meta)
    given = mix(
        {"share": 0.4}, {"kind": "h36m", "root": str(h36m), "share": 0.2},
        {"kind": "shards", "root": str(tmp_path / "shards"), "share": 0.2},
        {"kind": "photos", "root": str(coco / "train2017"), "share": 0.2},
    )  # fmt: skip

    class Killed(HeatmapTask):
        def training_step(self, model, batch, step):
            if step == 3:
                raise KeyboardInterrupt
            return super().training_step(model, batch, step)

    def train(out, task=HeatmapTask, resume=False):
        made = coco_settings(
            coco, f"run.out={out}", given, "train.steps_per_epoch=2", "train.amp=off",
            f"init.teacher_2d={tmp_path / 'teacher.pt'}", "train.imitate=heatmaps",
            "train.weight_orientation=0.5", "train.log_every_steps=1", "train.epochs=2",
            "evaluate.pictures=0",
        )  # fmt: skip
        engine.fit(task(made), resume)

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", Killed)
    train(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    lines = read_lines(tmp_path / "whole", "train")
    assert len(lines) == 4 and all(line["loss/teacher"] > 0 for line in lines)


QUICK = [
    *PLAIN, "augment.scale=0.05", "evaluate.pictures=0", "train.lr=0.005", "train.ema_decay=0.9",
    "train.amp=off", "train.steps_per_epoch=80", "data.kind=h36m", "data.test_subjects=[1]",
]  # fmt: skip


def persons_of(h36m):
    """The miniature's views as a list of persons: boxes, and COCO's keypoints of our joints."""
    data = open_data(settings(h36m, *QUICK, f"data.root={h36m}"), "test")
    persons = []
    for item in range(len(data)):
        row, view = data.row(item), data.items[item, 1]
        top, left, bottom, right = data.index.labels.boxes[row, view].tolist()
        K, R, t = data.index.camera_of(row, view)
        xy = project(data.index.labels.joints[row].astype(float), K, R, t)[:, :2]
        keypoints = np.zeros((17, 3))
        keypoints[COCO_ROWS] = np.c_[xy[OUR_ROWS], np.full(len(OUR_ROWS), 2)]
        box = [left, top, right - left, bottom - top]
        image = str(data.index.image_path(row, view))
        persons.append({"image": image, "bbox": box, "keypoints": keypoints.tolist()})
    return persons


def errors_of(task, path=None):
    """Mean error of each joint (17,) in px of a 64 px image, over the test views."""
    torch.manual_seed(0)
    model = task.build_model().eval()
    if path is not None:
        checkpoint.initialise(model, path)
    data = open_data(task.config, "test")
    batch = torch.utils.data.default_collate([data[n] for n in range(len(data))])
    with torch.no_grad():
        _, joints = detection_losses(model(batch.images[:, 0]), batch)
    return joints["error"].unflatten(0, (-1, 17)).mean(0)


@pytest.mark.slow
def test_a_mixture_teaches_all_joints(h36m, tmp_path):
    """Photographs alone leave five as they are."""
    (tmp_path / "persons.json").write_text(json.dumps(persons_of(h36m)))
    photos = {"kind": "coco", "root": str(tmp_path / "persons.json"), "share": 1}
    errors = {}
    for name, given in {"alone": [photos], "mixed": [photos, {"share": 1}]}.items():
        made = settings(tmp_path, *QUICK, f"data.root={h36m}", f"run.name={name}", mix(*given))
        engine.fit(HeatmapTask(made))
        errors[name] = errors_of(HeatmapTask(made), tmp_path / name / "best.pt")
    others = [joint for joint in range(17) if joint not in OUR_ROWS]
    alone, mixed = errors["alone"], errors["mixed"]
    # Measured 1.9 and 20.2, 2.6 and 0.9.
    assert alone[OUR_ROWS].mean() < 4 and alone[others].mean() > 10, errors
    assert mixed[OUR_ROWS].mean() < 4 and mixed[others].mean() < 5, errors


@pytest.mark.slow
def test_joints_are_learned_from_a_teacher_alone(h36m, tmp_path):
    """From pictures and boxes."""
    base = [*QUICK, f"data.root={h36m}"]
    engine.fit(HeatmapTask(settings(tmp_path, *base, "run.name=teacher")))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/boxes.json").write_text(json.dumps(persons_of(h36m)))
    teacher = tmp_path / "teacher/best.pt"
    taught = [mix({"kind": "photos", "root": str(tmp_path / "photos")}), "run.name=student",
              f"init.teacher_2d={teacher}", "train.imitate=heatmaps"]  # fmt: skip
    engine.fit(HeatmapTask(settings(tmp_path, *base, *taught)))
    task = HeatmapTask(settings(tmp_path, *base))
    before, teachers, students = (
        float(errors_of(task, path).mean())
        for path in (None, teacher, tmp_path / "student/best.pt")
    )
    # Measured 21.9, 1.8 and 2.8.
    assert before > 12 and teachers < 4 and students < 6, (before, teachers, students)


REAL = Path(__file__).resolve().parents[2] / "shared/data/coco_mini/persons.json"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the shared photographs are not here")
def test_real_photographs_train_beside_rendered_people(tmp_path):
    """configs/coco_2d.yaml as it is, in small; its test split are other photographs."""
    pytest.importorskip("moderngl")
    pytest.importorskip("anny")
    people = json.loads(REAL.read_text())
    for split in ("train", "val"):
        chosen = [
            {**person, "image": str(REAL.parent / person["image"])}
            for person in people
            if person["split"] == split
        ]
        (tmp_path / f"{split}.json").write_text(json.dumps(chosen))
    made = config.load("configs/coco_2d.yaml", [
        f"run.out={tmp_path}", "run.device=cpu", "run.threads=1", "model.pretrained=false",
        f"data.root={tmp_path}/train.json", f"data.test_root={tmp_path}/val.json",
        "data.image_size=64", "data.workers=0", "model.plain_convolutions=true",
        "train.batch_size=10", "train.steps_per_epoch=3", "train.epochs=1", "train.amp=off",
        "train.log_every_steps=1", "evaluate.pictures=1", "render.people=2", "render.faces=2000",
    ])  # fmt: skip
    task = HeatmapTask(made)
    assert task.steps_per_epoch() == 3
    batches = list(task.batches(0, 3))
    photos = torch.cat([torch.isnan(batch.joints3d).all((1, 2)) for batch in batches])
    assert int(photos.sum()) == 18 and len(photos) == 30  # 0.6 of them
    engine.fit(HeatmapTask(made))
    (line,) = read_lines(tmp_path, "val")
    assert np.isfinite(line["x2d/l2"]) and len(read_lines(tmp_path, "train")) == 3
