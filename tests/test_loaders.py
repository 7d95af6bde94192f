import os

import cv2
import numpy as np
import pytest
import torch
from h36m_fixture import make_tiny_h36m

from ptri.config import AugmentConfig, DataConfig
from ptri.data.loaders import EvaluationLoader, TrainLoader, epoch_order, num_batches
from ptri.data.multiview import MultiView, SampleKey, build_index
from ptri.errors import UserError


class Numbers(torch.utils.data.Dataset):
    """Items that tell what was asked of them."""

    def __init__(self, num_views, scene=None) -> None:
        self.num_views = np.asarray(num_views)
        self.scene = np.zeros(len(num_views)) if scene is None else np.asarray(scene)

    def __len__(self) -> int:
        return len(self.num_views)

    def __getitem__(self, key):
        key = key if isinstance(key, SampleKey) else SampleKey(key)
        views = key.num_views or self.num_views[key.index]
        assert views <= self.num_views[key.index]
        return torch.tensor([key.index, key.epoch, views])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    make_tiny_h36m(root, size=64)
    data = DataConfig(root=str(root), train_subjects=[1, 9], test_subjects=[9], image_size=32)
    return build_index(data, "train"), data


def test_epoch_order():
    order = epoch_order(103, 10, seed=1, epoch=2)
    assert order.shape == (10, 10) and len(np.unique(order)) == 100
    assert (order == epoch_order(103, 10, 1, 2)).all()
    assert (order != epoch_order(103, 10, 1, 3)).any()
    assert (order != epoch_order(103, 10, 2, 2)).any()
    # a small data set is repeated to fill the batch
    assert sorted(epoch_order(3, 6, 0, 0)[0].tolist()) == [0, 0, 1, 1, 2, 2]


def test_ranks_share_every_global_batch():
    numbers = Numbers([4] * 50)
    whole = list(TrainLoader(numbers, 12, seed=3).between(2, 10))  # four make a pass
    parts = [TrainLoader(numbers, 12, 3, rank, 3).between(2, 10) for rank in range(3)]
    assert len(whole) == 8 == 2 * num_batches(numbers, 12)
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch, torch.cat(shares))


def test_batches_do_not_depend_on_where_a_run_begins():
    loader = TrainLoader(Numbers([4] * 40), 8, seed=0, num_views=(2, 0))
    whole = list(loader.between(0, 12))
    for number in (0, 1):  # each pass has every item once
        passed = torch.cat(whole[5 * number : 5 * number + 5])
        assert sorted(passed[:, 0].tolist()) == list(range(40))
        assert (passed[:, 1] == number).all()
    for first in (3, 5, 11, 12):
        rest = list(loader.between(first, 12))
        assert len(rest) == 12 - first
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[first:]))


def test_number_of_views_is_one_per_batch():
    views = np.random.default_rng(0).integers(3, 5, 400)
    counts = []
    for batch in TrainLoader(Numbers(views), 4, seed=0, num_views=(2, 0)).between(0, 100):
        assert len(batch[:, 2].unique()) == 1
        counts.append(int(batch[0, 2]))
        assert counts[-1] <= views[batch[:, 0]].min()
    assert set(counts) == {2, 3, 4}
    for limits, expected in (((2, 2), {2}), ((4, 4), {3, 4}), ((3, 0), {3, 4}), ((9, 0), {3, 4})):
        loader = TrainLoader(Numbers(views), 4, seed=0, num_views=limits)
        assert {int(batch[0, 2]) for batch in loader.between(0, 100)} == expected
    # every rank draws the same number
    ranks = [TrainLoader(Numbers(views), 4, 0, rank, 2, num_views=(2, 0)) for rank in (0, 1)]
    for a, b in zip(*(loader.between(0, 100) for loader in ranks)):
        assert a[0, 2] == b[0, 2]


def test_training_is_independent_of_workers(tiny):
    index, data = tiny
    dataset = MultiView(index, data, AugmentConfig(noise=0.5, blur=0.5, occluder=0.5), seed=4)
    loaders = [TrainLoader(dataset, 4, 4, workers=w, num_views=(2, 0)) for w in (0, 2)]
    for first in (0, 4):  # the second time with the same worker processes
        pairs = list(zip(*(loader.between(first, first + 4) for loader in loaders), strict=True))
        assert len(pairs) == 4
        for a, b in pairs:
            assert torch.equal(a.images, b.images) and torch.equal(a.joints2d, b.joints2d)
            assert torch.equal(a.cameras.R, b.cameras.R) and torch.equal(a.frame, b.frame)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_evaluation_covers_every_item_once_and_in_order_scene_by_scene(batch_size):
    lengths = [9, 3, 14, 1]
    numbers = Numbers([4] * 27, np.repeat([0, 1, 0, 2], lengths))
    loader = EvaluationLoader(numbers, batch_size)
    scenes = [list(scene) for scene in loader.scenes()]
    assert len(loader) == len(list(loader)) == sum(map(len, scenes))
    order = []
    for length, scene in zip(lengths, scenes, strict=True):
        assert all(batch[:, 0].tolist() == items for items, batch in scene)
        # no batch reaches into the next scene, and only a scene's last is smaller than the others
        sizes = [len(items) for items, _ in scene]
        assert sum(sizes) == length and set(sizes[:-1]) <= {batch_size} and max(sizes) <= batch_size
        order += [item for items, _ in scene for item in items]
    assert order == list(range(27))


def test_scenes_of_human36m_end_where_the_set_of_views_changes(tiny):
    index, data = tiny
    assert MultiView(index, data).scene.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    seen = index.seen.copy()
    seen[1, 2] = False
    index = index._replace(seen=seen)
    assert MultiView(index, data).scene.tolist() == [0, 1, 2] + [3] * 3 + [4] * 3 + [5] * 3
    views = MultiView(index, data, single_view=True)  # of a frame's views each
    assert np.bincount(views.scene).tolist() == [4, 3, 4, 12, 12, 12]


class Broken(Numbers):
    def __getitem__(self, key):
        raise UserError("img_000001.jpg: truncated")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_in_workers_stay_one_line(workers):
    broken = Broken([4, 4])
    train = TrainLoader(broken, 2, 0, workers=workers).between(0, 1)
    for loader in (EvaluationLoader(broken, 2, workers), train):
        with pytest.raises(UserError, match=r"^img_000001\.jpg: truncated$"):
            list(loader)


class Threads(Numbers):
    def __getitem__(self, key):
        return torch.tensor([torch.get_num_threads(), cv2.getNumThreads(), os.getpid()])


def test_workers_use_one_thread():
    threads = torch.cat(list(EvaluationLoader(Threads([4] * 6), 1, workers=2)))
    assert (threads[:, :2] <= 1).all()
    assert os.getpid() not in threads[:, 2] and len(threads[:, 2].unique()) == 2


def test_processes_share_whole_scenes():
    scene = np.repeat(np.arange(7), [5, 1, 9, 3, 3, 2, 6])
    numbers = Numbers([4] * len(scene), scene)
    whole = list(EvaluationLoader(numbers, 4).scenes())
    parts = [EvaluationLoader(numbers, 4, 0, rank, 3) for rank in range(3)]
    assert sorted(part.num_items for part in parts) == [9, 10, 10]
    batches = [[items for items, _ in scene] for part in parts for scene in part.scenes()]
    assert sorted(batches) == [[items for items, _ in scene] for scene in whole]
    assert EvaluationLoader(numbers, 4, 0, 8, 9).num_items == 0  # more processes than scenes
