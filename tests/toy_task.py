"""A tiny task for the engine's tests: regression with a small network and dropout."""

import json
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ptri import checkpoint, config
from ptri.training import engine
from ptri.training.state import Task

SAMPLES = 96


class Batch(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    subject: torch.Tensor
    frame: torch.Tensor


class Net(nn.Module):
    def __init__(self, width: int = 8, dropout: float = 0.0, idle: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, 1)
        )
        self.idle = nn.Linear(3, 1) if idle else None

    def forward(self, x, with_idle):
        return self.layers(x) + (self.idle(x) if with_idle else 0.0)


class ToyTask(Task):
    """With ``idle``, a layer takes part in every third step alone."""

    monitor = "error"

    def __init__(self, config, width=8, dropout=0.0, bad_frame=None, hook=None, idle=False):
        super().__init__(config)
        self.width, self.dropout, self.bad_frame, self.hook = width, dropout, bad_frame, hook
        self.idle_weights = idle
        self.seen = []
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(SAMPLES, 3, generator=generator)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3

    def build_model(self):
        return Net(self.width, self.dropout, self.idle_weights)

    def parameter_groups(self, model):
        return [{"params": list(model.parameters())}]

    def steps_per_epoch(self):
        return SAMPLES // self.config.train.batch_size

    def batches(self, first, end, rank=0, world=1):
        size, share = self.config.train.batch_size, self.config.train.batch_size // world
        for step in range(first, end):
            epoch, number = divmod(step, self.steps_per_epoch())
            order = np.random.default_rng([self.config.run.seed, epoch]).permutation(SAMPLES)
            rows = torch.from_numpy(order[number * size + rank * share :][:share].copy())
            self.seen.append(rows.tolist())
            y = self.y[rows].clone()
            if self.bad_frame is not None:
                y[rows == self.bad_frame] = float("nan")
            yield Batch(self.x[rows], y, torch.full_like(rows, 9), rows)

    def training_step(self, model, batch, step):
        if self.hook is not None:
            self.hook(step)
        with_idle = self.idle_weights and step % 3 == 2
        error = (model(batch.x, with_idle) - batch.y).square().mean(dim=1)
        return {"loss": error, "absolute": (error + 1e-12).sqrt()}

    def validate(self, model):
        assert not model.training
        x, y = (value.to(next(model.parameters()).device) for value in (self.x, self.y))
        return {"error": float((model(x, self.idle_weights) - y).square().mean())}

    def pictures(self, model):
        return {"toy/grey": np.full((8, 8, 3), 128, np.uint8)}


def toy_config(folder, *overrides):
    base = [
        "run.name=toy", f"run.out={folder}", "run.device=cpu", "train.epochs=3",
        "train.batch_size=12", "train.warmup_steps=4", "train.log_every_steps=1",
        "train.ema_decay=0.9", "train.lr=0.02", "train.amp=off",
    ]  # fmt: skip
    return config.load(None, base + list(overrides))


def read_lines(out, *splits):
    """The lines of the metrics of the one run below a folder; what they say of time is left out."""
    (path,) = out.glob("*/metrics.jsonl")
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k != "samples_per_second"} for row in rows]
    return [row for row in rows if not splits or row["split"] in splits]


def load_last(out, name="last.pt"):
    """A checkpoint of the one run below a folder."""
    (path,) = out.glob(f"*/{name}")
    return checkpoint.load(path)


def assert_same_run(first, second):
    """The last checkpoints and the logged curves agree to the bit."""
    one, other = load_last(first), load_last(second)
    assert str(one["optimizer"]) == str(other["optimizer"])
    for part in ("step", "epoch", "best", "model", "ema"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
    assert read_lines(first) == read_lines(second)


def run(folder, log, options, *overrides):
    """Trains in a process of its own, which may kill or signal itself; errors go to ``log``.

    Args:
        options: "flags" for `engine.fit`; "strike": (step, signal) that rank 0 sends to itself;
            "rank", "world", "port"; "dropout", "bad_frame", "idle" of the task.
    """
    stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stderr, 2)
    if "world" in options:
        os.environ |= {
            "RANK": str(options["rank"]), "LOCAL_RANK": str(options["rank"]),
            "WORLD_SIZE": str(options["world"]), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(options["port"]), "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
    torch.set_num_threads(1)

    def hook(step):
        if options["rank"] == 0 and "strike" in options and step == options["strike"][0]:
            os.kill(os.getpid(), options["strike"][1])

    of_task = {key: options[key] for key in ("dropout", "bad_frame", "idle") if key in options}
    task = ToyTask(toy_config(folder, *overrides), hook=hook, **{"dropout": 0.2, **of_task})
    engine.fit(task, **options.get("flags", {}))
