import dataclasses
import itertools
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from h36m_fixture import COLORS, make_tiny_h36m

from ptri import config as configuration
from ptri.config import AugmentConfig, DataConfig
from ptri.data.h36m import is_damaged
from ptri.data.labels import NPY_NAME, write_npy
from ptri.data.multiview import MultiView, SampleKey, build_index, open_split
from ptri.data.transforms import denormalise
from ptri.errors import UserError
from ptri.geometry.cameras import project
from ptri.skeleton import H36M17


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return root, make_tiny_h36m(root)


def _data(root, **changes) -> DataConfig:
    options = {"train_subjects": [1], "test_subjects": [9], "image_size": 96, "crop_scale": 1.1}
    return DataConfig(root=str(root), **(options | changes))


def _index(root, split="test", **changes):
    return build_index(_data(root, **changes), split)


def _open(root, split="test", augment=None, seed=0, **changes):
    return MultiView(_index(root, split, **changes), _data(root, **changes), augment, seed)


def _fails(words, root, split="test", **changes):
    with pytest.raises(UserError, match=words) as caught:
        _index(root, split, **changes)
    assert "\n" not in str(caught.value)


def _config(root, **changes) -> configuration.Config:
    run = configuration.RunConfig(name="x")
    return configuration.Config(run=run, data=_data(root, **changes), augment=PLAIN)


HEAD = H36M17.joints.index("head")
PLAIN = AugmentConfig(color=0, blur=0, noise=0, jpeg=0, occluder=0)


def _hits(sample, flip=False, joints=range(17)) -> float:
    """Share of the joints inside the image that lie on a dot of their own colour."""
    hits = []
    for image, points, seen in zip(sample.images, sample.joints2d, sample.visible):
        picture = denormalise(image.numpy()).astype(int)
        for joint in np.flatnonzero(seen[joints]) + joints[0]:
            x, y = points[joint].round().int()
            name = H36M17.flip[joint] if flip else joint
            hits.append(abs(picture[y, x] - COLORS[name][::-1]).max() < 60)
    return np.mean(hits)


def _consistent(sample) -> None:
    """The tuple's own promises: view 0 is the reference and K, R, t project the joints."""
    cameras = sample.cameras
    assert torch.equal(cameras.R[0], torch.eye(3)) and not cameras.t[0].any()
    # float32 at 4 m: 0.01 px
    projected, eye = project(sample.joints3d, cameras), torch.eye(3).expand_as(cameras.R)
    torch.testing.assert_close(projected, sample.joints2d, atol=0.02, rtol=0)
    torch.testing.assert_close(cameras.R @ cameras.R.mT, eye, atol=1e-5, rtol=0)
    assert (torch.linalg.det(cameras.R) > 0).all()


@pytest.mark.parametrize("size", [128, 512])  # 512: decoded at a reduced size
def test_joints_lie_on_their_dots(tmp_path, size):
    make_tiny_h36m(tmp_path, num_frames=2, size=size)
    for sample in _open(tmp_path):
        _consistent(sample)
        # Nearer joints hide others: in side views up to 5 of 17.
        assert _hits(sample) > 0.75
        moved = sample._replace(joints2d=sample.joints2d + 4)
        assert _hits(moved) < 0.4  # the control


def test_plain_images_are_undistorted(tmp_path):
    dist = (-4.0, 0.3, 0.15, -0.1, 0.2)  # strong: the dots are small
    make_tiny_h36m(tmp_path, num_frames=1, size=256, dist=dist, folder="imageSequence")
    data, index = _data(tmp_path), _index(tmp_path)
    assert not index.images.undistorted
    sample = MultiView(index, data)[0]
    _consistent(sample)
    assert _hits(sample) > 0.75 and _hits(sample, joints=[HEAD]) == 1
    ignored = index._replace(labels=index.labels._replace(dist=0 * index.labels.dist))
    assert _hits(MultiView(ignored, data)[0], joints=[HEAD]) == 0  # the control
    make_tiny_h36m(tmp_path, num_frames=1)
    assert _index(tmp_path).images.undistorted  # where there are both


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_augmented_samples_stay_consistent(tiny, flip):
    augment = dataclasses.replace(PLAIN, rotation_deg=60, scale=0.2, shift=0.1, flip=flip)
    dataset = _open(tiny[0], "train", augment, seed=3)
    for epoch in range(3):
        sample = dataset[SampleKey(4, epoch)]
        _consistent(sample)
        assert _hits(sample, flip=flip > 0) > 0.7
    assert _hits(sample, flip=flip == 0) < 0.6  # the control: the other naming


def test_world_to_reference(tiny):
    """joints3d is the reference camera's view of the world joints, in mm."""
    root, labels = tiny
    dataset = _open(root, views=[2, 0])
    sample, row = dataset[3], dataset.row(3)
    _consistent(sample)
    subject = labels.subject[row]
    expected = labels.joints[row] @ labels.R[subject, 2].T + labels.t[subject, 2]
    np.testing.assert_allclose(sample.joints3d, expected, atol=1e-2)  # labels are float32


def test_types_and_bookkeeping(tiny):
    root, labels = tiny
    dataset = _open(root)
    sample, later = dataset[4], dataset[SampleKey(4, epoch=7)]
    assert sample.images.shape == (4, 3, 96, 96) and sample.cameras.K.shape == (4, 3, 3)
    for value in (sample.images, sample.joints3d, sample.joints2d):
        assert value.dtype == torch.float32
    assert sample.visible.shape == (4, 17) and sample.visible.dtype == torch.bool
    assert labels.subject_names[sample.subject] == "S9" and sample.subject.dtype == torch.int64
    assert labels.action_names[sample.action] == "Walking-1" and sample.frame == 5
    assert len(dataset) == 6 and dataset.num_views.tolist() == [4] * 6
    assert torch.equal(sample.images, later.images)  # tests do not augment


def test_training_shuffles_views_and_draws_subsets(tiny):
    dataset = _open(tiny[0], "train", AugmentConfig(scale=0, shift=0), seed=1)
    samples = [dataset[SampleKey(0, epoch)] for epoch in range(12)]
    assert len({tuple(sample.joints3d[0].round().tolist()) for sample in samples}) >= 3
    assert dataset[SampleKey(0, 0, 2)].images.shape[0] == 2


def test_samples_depend_on_seed_epoch_and_index_only(tiny):
    a, b, other = (_open(tiny[0], "train", AugmentConfig(), seed) for seed in (5, 5, 6))
    for _ in range(3):
        b[0]  # earlier draws leave no trace
    for key in (SampleKey(1, 2), SampleKey(3, 0, 3)):
        assert torch.equal(a[key].images, b[key].images)
        assert torch.equal(a[key].joints3d, b[key].joints3d)
    assert not torch.equal(a[SampleKey(1, 2)].images, a[SampleKey(1, 3)].images)
    assert not torch.equal(a[SampleKey(1, 2)].images, other[SampleKey(1, 2)].images)


def test_single_views(tiny):
    config = _config(tiny[0])
    dataset = open_split(config, "test", single_view=True)
    assert len(dataset) == 24 and set(dataset.num_views) == {1}
    assert dataset[5].images.shape == (1, 3, 96, 96)
    _consistent(dataset[5])
    assert dataset.row(5) == dataset.row(4) == open_split(config, "test").row(1)
    train = open_split(config, "train", single_view=True)
    assert train.augment is config.augment and dataset.augment is None
    assert len(open_split(_config(tiny[0], views=[1]), "test", single_view=True)) == 6


def test_thinning_takes_every_nth_frame_of_each_scene(tmp_path):
    make_tiny_h36m(tmp_path, num_frames=5, size=64)
    kept = {1: [0, 5, 10, 15, 20], 2: [0, 10, 20], 3: [0, 15], 64: [0]}
    for (subject, split), every in itertools.product(enumerate(("train", "test")), kept):
        index = _index(tmp_path, split, **{f"{split}_every": every})
        assert index.labels.frame[index.rows].tolist() == 2 * kept[every]
        assert (index.labels.subject[index.rows] == subject).all()


def test_damaged_scenes(tiny):
    root, labels = tiny
    assert is_damaged(labels).sum() == 3  # S9 Greeting-2, not S1 Greeting-2
    assert len(_index(root).rows) == 6
    index = _index(root, include_damaged=False)
    assert len(index.rows) == 3
    assert {labels.action_names[a] for a in labels.action[index.rows]} == {"Walking-1"}
    assert len(_index(root, "train", include_damaged=False).rows) == 6


def test_views_by_index_and_by_name(tiny):
    assert _index(tiny[0], views=[3, 1]).cameras == (3, 1)
    assert _index(tiny[0], views=[60457274, 54138969]).cameras == (3, 0)
    for views, message in (
        ([4, 0], ".*no camera 4"),
        ([-1, 0], ".*no camera"),
        ([0, 0], ".*twice"),
        ([2], "1 view only; at least 2"),
    ):
        _fails(rf"data\.views: {message}", tiny[0], views=views)


def _relabel(root: Path, labels, **changes) -> None:
    write_npy(root / "extra" / NPY_NAME, labels._replace(**changes))


def test_missing_views(tmp_path, caplog):
    labels = make_tiny_h36m(tmp_path, size=64)
    boxes = labels.boxes.copy()
    boxes[7, 0] = 0
    boxes[8, 1:] = 0
    _relabel(tmp_path, labels, boxes=boxes)
    with caplog.at_level(logging.WARNING):
        index = _index(tmp_path)
    message = "1 of 6 frames have fewer than 2 views (such as S9/Greeting-2 frame 10)"
    assert message in caplog.text
    assert index.rows.tolist() == [6, 7, 9, 10, 11]
    dataset = _open(tmp_path)
    assert dataset.num_views.tolist() == [4, 3, 4, 4, 4]
    assert dataset[1].images.shape[0] == 3
    _consistent(dataset[1])
    boxes[:, 1] = 0
    _relabel(tmp_path, labels, boxes=boxes)
    _fails(r"fewer than 2 views.*choose other data\.views", tmp_path, views=[0, 1])


def test_wrong_roots(tmp_path):
    _fails(r"data.root: .*nowhere is not a folder", tmp_path / "nowhere")
    _fails("labels are missing", tmp_path)
    make_tiny_h36m(tmp_path, num_frames=1, size=64)
    (tmp_path / "processed").rename(tmp_path / "elsewhere")
    _fails("processed: no such folder", tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "processed")
    _fails(r"data\.test_subjects: .*no frame of S11; it holds", tmp_path, test_subjects=[11])


def test_missing_and_truncated_images(tmp_path):
    make_tiny_h36m(tmp_path, size=64)
    scene = "processed/{}/Walking-1/imageSequence-undistorted/55011271"
    folder = tmp_path / scene.format("S9")
    (folder / "img_000006.jpg").unlink()
    _fails(r"1 of 24 images are missing, such as .*img_000006\.jpg", tmp_path)
    _index(tmp_path, "train")  # not needed there
    _index(tmp_path, views=[0, 2])
    shutil.rmtree(folder)
    _fails("3 of 24 images are missing", tmp_path)
    path = tmp_path / scene.format("S1") / "img_000006.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"img_000006\.jpg: truncated JPEG"):
        _open(tmp_path, "train")[4]


def test_absurd_labels(tmp_path):
    labels = make_tiny_h36m(tmp_path, num_frames=1, size=64)
    K = labels.K.copy()
    K[1, 2, 0, 0] = np.nan
    _relabel(tmp_path, labels, K=K)
    _fails("camera 58860488 of S9: K holds NaN", tmp_path)
    _index(tmp_path, "train")  # another subject's cameras
    _index(tmp_path, views=[0, 1])
    joints = labels.joints.copy()
    joints[2, 5] = np.nan
    _relabel(tmp_path, labels, joints=joints)
    _fails(r"1 frames have NaN .* joints, such as S9/Greeting-2", tmp_path)
    _relabel(tmp_path, labels, t=labels.t / 1000)  # metres
    _fails("joints project into their boxes", tmp_path)


def test_test_subjects_may_lie_elsewhere(tiny, tmp_path):
    config = _config(tmp_path / "nothing", test_root=str(tiny[0]))
    opened = open_split(config, "test")
    assert len(opened) == 6
    assert torch.equal(opened[0].images, _open(tiny[0])[0].images)
    with pytest.raises(UserError, match="nothing"):
        open_split(config, "train")
