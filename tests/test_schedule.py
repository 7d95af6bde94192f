"""The commands that the YAML files of Human3.6M name, held against the files' own numbers."""

import math
import re
from pathlib import Path

import pytest

from ptri import config

FRAMES, VIEWS = 389_938, 4  # of the training subjects, at 50 frames a second


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
        own = config.load(path, [word for word in command.split() if "=" in word])
        assert ("torchrun --nproc-per-node 8" in command) == (gpus == "8")
        assert own.data.image_size == int(size)
        assert own.train.batch_size == int(gpus) * plain.train.batch_size
        assert own.train.epochs * (samples // own.train.batch_size) == int(steps.replace(",", ""))
        assert own.train.lr == pytest.approx(plain.train.lr * math.sqrt(int(gpus)), rel=0.02)
        assert own.train.warmup_steps < 0.12 * int(steps.replace(",", ""))
