"""Mixtures of data sets: shares, batches, sources, whole runs."""

import dataclasses
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_fixture import PLAIN, coco_settings, make_coco, settings
from h36m_fixture import make_tiny_h36m
from toy_task import assert_same_run, read_lines

from ptri import checkpoint, config
from ptri.config import ModelConfig
from ptri.data.annotations import COCO_ROWS, OUR_ROWS
from ptri.data.loaders import TrainLoader
from ptri.data.mixture import Mixture, sources
from ptri.data.multiview import SampleKey
from ptri.data.transforms import project
from ptri.errors import UserError
from ptri.models.network2d import Network2D
from ptri.training import engine
from ptri.training.task2d import HeatmapTask, detection_losses, open_data


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
        *((0, n) for n in range(5)),
        *((1, n) for n in range(3)),
    ]
    assert {int(item[2]) for item in items} == {2}


def test_batches_of_a_mixture_resume_exactly():
    def loader(workers=0):
        mixture = Mixture([Tagged(0, 40), Tagged(1, 9)], [1, 2], length=24)
        return TrainLoader(mixture, 8, seed=1, workers=workers, num_views=(1, 1))

    whole = list(loader().between(0, 9))
    for a, b in zip(loader(1).between(4, 9), whole[4:], strict=True):
        assert torch.equal(a, b)
    halves = [Mixture([Tagged(0, 40), Tagged(1, 9)], [1, 2], length=24) for _ in range(2)]
    parts = [
        TrainLoader(m, 8, 1, rank, 2, num_views=(1, 1)).between(2, 3)
        for rank, m in enumerate(halves)
    ]
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


@pytest.mark.parametrize(
    "given, message",
    [
        ([{"share": 1}, {}], "data.mix: give each source a share, or none"),
        ([{"share": 0}], r"data.mix\[0\].share: 0.0; expected a number above 0"),
        ([{"share": "half"}], r"data.mix\[0\].share: 'half'; expected a number"),
        (
            [{}, {"kidn": "coco"}],
            r"data.mix\[1\]: unknown key 'data.kidn'; did you mean 'data.kind'",
        ),
        ([{"kind": "cocoa"}], r"data.mix\[0\]: data.kind: 'cocoa'; expected"),
        ([{"image_size": 96}], r"data.mix\[0\]: image_size: one for all"),
        ([{"root": "/no/such"}], r"data.root: /no/such"),
        ([{"kind": "generated"}], "data.kind: generated; expected"),
        ([{"kind": "photos"}], "no truth to learn from; name a teacher"),
    ],
)
def test_bad_mixtures(coco, given, message):
    with pytest.raises(UserError, match=message):
        open_data(coco_settings(coco, mix(*given)), "train")


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
            truth = {
                "K": K.tolist(),
                "R": R.tolist(),
                "t": t.tolist(),
                "h36m17": labels.joints[row].tolist(),
                "box": labels.boxes[row, camera].tolist(),
            }
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
        {"share": 0.4},
        {"kind": "h36m", "root": str(h36m), "share": 0.2},
        {"kind": "shards", "root": str(tmp_path / "shards"), "share": 0.2},
        {"kind": "photos", "root": str(coco / "train2017"), "share": 0.2},
    )

    class Killed(HeatmapTask):
        def training_step(self, model, batch, step):
            if step == 3:
                raise KeyboardInterrupt
            return super().training_step(model, batch, step)

    def train(out, task=HeatmapTask, resume=False):
        made = coco_settings(
            coco,
            f"run.out={out}",
            given,
            "train.steps_per_epoch=2",
            "train.amp=off",
            f"init.teacher_2d={tmp_path / 'teacher.pt'}",
            "train.imitate=heatmaps",
            "train.weight_orientation=0.5",
            "train.log_every_steps=1",
            "train.epochs=2",
            "evaluate.pictures=0",
        )
        engine.fit(task(made), resume)

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", Killed)
    train(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    lines = read_lines(tmp_path / "whole", "train")
    assert len(lines) == 4 and all(line["loss/teacher"] > 0 for line in lines)


QUICK = [
    *PLAIN,
    "augment.scale=0.05",
    "evaluate.pictures=0",
    "train.lr=0.005",
    "train.ema_decay=0.9",
    "train.amp=off",
    "train.steps_per_epoch=80",
    "data.kind=h36m",
    "data.test_subjects=[1]",
]


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
    taught = [
        mix({"kind": "photos", "root": str(tmp_path / "photos")}),
        "run.name=student",
        f"init.teacher_2d={teacher}",
        "train.imitate=heatmaps",
    ]
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
    made = config.load(
        "configs/coco_2d.yaml",
        [
            f"run.out={tmp_path}",
            "run.device=cpu",
            "run.threads=1",
            "model.pretrained=false",
            f"data.root={tmp_path}/train.json",
            f"data.test_root={tmp_path}/val.json",
            "data.image_size=64",
            "data.workers=0",
            "model.plain_convolutions=true",
            "train.batch_size=10",
            "train.steps_per_epoch=3",
            "train.epochs=1",
            "train.amp=off",
            "train.log_every_steps=1",
            "evaluate.pictures=1",
            "render.people=2",
            "render.faces=2000",
        ],
    )
    task = HeatmapTask(made)
    assert task.steps_per_epoch() == 3
    batches = list(task.batches(0, 3))
    photos = torch.cat([torch.isnan(batch.joints3d).all((1, 2)) for batch in batches])
    assert int(photos.sum()) == 18 and len(photos) == 30  # 0.6 of them
    engine.fit(HeatmapTask(made))
    (line,) = read_lines(tmp_path, "val")
    assert np.isfinite(line["x2d/l2"]) and len(read_lines(tmp_path, "train")) == 3
