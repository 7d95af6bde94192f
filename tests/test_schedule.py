import argparse
import math
import re
from pathlib import Path

import pytest
import torch
from benchmark import command_schedule, schedule
from benchmark.schedule import Plan, Step
from benchmark.speed2d import matrix_rate

from ptri import config
from ptri.data.h36m import open_split
from ptri.errors import UserError

IMAGES = ["data.image_size=64", "data.train_subjects=[1]", "data.test_subjects=[9]"]


def settings(name, *overrides):
    return config.load(f"configs/{name}.yaml", ["model.pretrained=false", *IMAGES, *overrides])


def test_schedules_of_one_and_eight_gpus_see_the_same_images():
    two, three = settings("h36m_2d"), settings("h36m_3d")
    assert schedule.is_2d(two) and not schedule.is_2d(three)
    one, eight = (schedule.plan(two, gpus) for gpus in (1, 8))
    assert one.lr == two.train.lr and eight.lr == pytest.approx(two.train.lr * math.sqrt(8))
    assert eight.batch == 8 * one.batch and one.steps // 8 - 20 <= eight.steps <= one.steps // 8
    assert one.images / two.train.epochs == pytest.approx(1_559_752 / 5, rel=1e-3)
    # 3D draws 2 to 4 views of a frame.
    whole = schedule.plan(three, 1)
    assert whole.images / three.train.epochs == pytest.approx(389_938 / 5 * 3, rel=1e-3)


def test_estimated_seconds_add_arithmetic_and_operators():
    step = Step(images=8, giga=2.0, operators=1000, megabytes=0.0, seconds=0.0)
    plan = Plan(gpus=4, batch=64, lr=1e-3, steps=100, images=6400)
    # 12.8 T operations on 4 x 1 T/s, and 100 x 1000 operators of 10 microseconds
    assert schedule.gpu_seconds(step, plan, 1.0, 0.0) == pytest.approx(3.2)
    assert schedule.gpu_seconds(step, plan, 1.0, 1e-5) == pytest.approx(4.2)


def test_a_measured_step_grows_with_pixels_and_has_a_backward_pass():
    torch.set_num_threads(1)
    small = schedule.measure(settings("h36m_2d"), "data/demo", 2, repeats=1)
    large = schedule.measure(settings("h36m_2d", "data.image_size=128"), "data/demo", 2, repeats=1)
    assert small.images == large.images == 2
    assert large.giga / small.giga == pytest.approx(4, rel=0.03)
    assert large.megabytes / small.megabytes == pytest.approx(4, rel=0.1)
    assert large.operators == small.operators > 500
    # A core does no more than a matrix product makes of it.
    assert large.giga / large.seconds < 2 * matrix_rate(1)


def test_enlarged_images_keep_their_joints(tmp_path):
    root = Path("data/demo")
    schedule.enlarge(root, tmp_path, "S1")
    own = settings("h36m_2d", "data.train_every=1", "data.test_every=1", "data.test_subjects=[1]")
    pair = [
        open_split(config.replace(own, data__root=str(folder)), "test", True)[3]
        for folder in (root, tmp_path)
    ]
    # Boxes are whole pixels of the large and of the small image.
    assert torch.allclose(pair[0].joints2d, pair[1].joints2d, atol=0.3)
    assert float((pair[0].images - pair[1].images).abs().mean()) < 0.1


def test_the_command_prints_schedule_and_estimate():
    parser = argparse.ArgumentParser()
    command_schedule.add_arguments(parser)
    words = ["configs/h36m_2d.yaml", "--sizes", "64", "--gpus", "8", "--share", "1", "1"]
    text = command_schedule.run(parser.parse_args([*words, "--peak", "0.1", "--launch", "0", "0"]))
    giga = float(re.search(r"([\d.]+) G operations \(", text).group(1))
    minutes = int(re.search(r"estimated (\d+) to \1 min on the GPU", text).group(1))
    # All images at 8 x 10^11 operations a second
    assert minutes == pytest.approx(giga * 1_559_752 / 5 * 20 / 800 / 60, rel=0.03)
    assert "8 GPUs: 20 epochs, 6,080 steps of 1024 samples, train.lr=2.8e-03" in text


def test_bad_guesses_are_refused():
    parser = argparse.ArgumentParser()
    command_schedule.add_arguments(parser)
    with pytest.raises(UserError, match="--share"):
        command_schedule.run(parser.parse_args(["--share", "0.5", "0.1"]))
    with pytest.raises(UserError, match=r"data\.kind"):
        command_schedule.run(parser.parse_args(["configs/generated_keypoints.yaml"]))


@pytest.mark.parametrize("name", ["h36m_2d", "h36m_3d"])
def test_commands_in_the_yaml_are_those_of_the_schedule(name):
    path = f"configs/{name}.yaml"
    text = re.sub(r" \\\n#\s+", " ", Path(path).read_text().partition("\nrun:")[0])
    found = re.findall(r"(\d+) px, (\d) GPUs?, ([\d,]+) steps:\s+(.*)", text)
    assert [row[:2] for row in found] == [("256", "1"), ("256", "8"), ("384", "1"), ("384", "8")]
    for size, gpus, steps, command in found:
        own = config.load(path, [word for word in command.split() if "=" in word])
        plan = schedule.plan(config.load(path), int(gpus))
        assert ("torchrun --nproc-per-node 8" in command) == (gpus == "8")
        assert own.data.image_size == int(size) and own.train.batch_size == plan.batch
        assert plan.steps == int(steps.replace(",", ""))
        assert own.train.lr == pytest.approx(plan.lr, rel=0.02)
        assert own.train.warmup_steps < 0.12 * plan.steps
