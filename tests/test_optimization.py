"""Muon: what becomes of a gradient, which weights take it, exact resume; schedules in the YAML."""

import copy
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from ptri import config
from ptri.training.optimizer import Muon, make_optimizer, orthogonal

TRAIN = config.load(None, ["run.name=test", "train.optimizer=muon", "train.lr=0.01"]).train
FRAMES, VIEWS = 389_938, 4  # of Human3.6M's training subjects, at 50 frames a second


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 32, 3, groups=32), nn.Flatten(),
        nn.Linear(32 * 4, 20), nn.BatchNorm1d(20),
    )  # fmt: skip


def train(network, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 16, 4, 4, generator=generator)
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(40, 17), (17, 40), (64, 64)])
def test_orthogonal_keeps_directions_and_evens_their_sizes(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    large = sizes > 0.1 * sizes[0]  # tiny ones take more steps
    found = torch.einsum("mk,mn,kn->k", left, orthogonal(matrix), right)[large]
    assert found.min() > 0.6 and found.max() < 1.25  # measured: 0.68 to 1.14
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def test_matrices_and_kernels_take_muon_the_rest_adamw():
    network = small_network()
    plain = copy.deepcopy(network)
    before = [weight.detach().clone() for weight in network.parameters()]
    groups = [{"params": list(network.parameters()), "weight_decay": 0.0}]
    train(network, make_optimizer(groups, TRAIN), 1)
    train(plain, torch.optim.AdamW(plain.parameters(), lr=TRAIN.lr, weight_decay=0.0), 1)
    for number, (own, other) in enumerate(zip(network.parameters(), plain.parameters())):
        taken = number in (0, 4)  # the first kernel and the matrix; depthwise kernels are too thin
        assert torch.equal(own, other) != taken, number
        if taken:
            update = (own - before[number]).flatten(1) / TRAIN.lr
            assert 0.1 < update.square().mean().sqrt() < 0.25  # AdamW's first step is 1
        assert own.grad is not None


def test_muon_goes_on_to_the_bit_from_its_state():
    network = small_network()
    optimizer = make_optimizer([{"params": list(network.parameters())}], TRAIN)
    assert isinstance(optimizer, Muon)
    train(network, optimizer, 3)
    again, state = copy.deepcopy((network, optimizer.state_dict()))
    train(network, optimizer, 3, seed=1)
    resumed = make_optimizer([{"params": list(again.parameters())}], TRAIN)
    resumed.load_state_dict(state)
    train(again, resumed, 3, seed=1)
    torch.testing.assert_close(again.state_dict(), network.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["h36m_2d", "h36m_3d"])
def test_commands_in_the_yaml_see_all_images(name):
    """Eight GPUs: eight times the batch at sqrt(8) times the rate, an eighth of the steps."""
    path = f"configs/{name}.yaml"
    text = re.sub(r" \\\n#\s+", " ", Path(path).read_text().partition("\nrun:")[0])
    found = re.findall(r"(\d+) px, (\d) GPUs?, ([\d,]+) steps:\s+(.*)", text)
    assert [row[:2] for row in found] == [("256", "1"), ("256", "8"), ("384", "1"), ("384", "8")]
    plain = config.load(path)
    frames = math.ceil(FRAMES / plain.data.train_every)
    samples = frames if plain.init.checkpoint_3d else frames * VIEWS
    for size, gpus, steps, command in found:
        own = config.load(path, command.partition(path)[2].split())
        assert ("torchrun --nproc-per-node 8" in command) == (gpus == "8")
        assert own.data.image_size == int(size)
        assert own.train.batch_size == int(gpus) * plain.train.batch_size
        assert own.train.epochs * (samples // own.train.batch_size) == int(steps.replace(",", ""))
        assert own.train.lr == pytest.approx(plain.train.lr * math.sqrt(int(gpus)), rel=0.02)
        assert own.train.warmup_steps < 0.12 * int(steps.replace(",", ""))
