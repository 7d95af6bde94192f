"""Checkpoints: round trip, atomic writing, strict and safe loading."""

import pytest
import torch
from torch import nn

from ptri import checkpoint
from ptri.errors import UserError


def small_model(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def full_state(model):
    return {
        "config": {"run": {"name": "a"}}, "model": model.state_dict(), "ema": model.state_dict(),
        "optimizer": {}, "scheduler": {}, "epoch": 2, "step": 9, "best": 0.5,
    }  # fmt: skip


def refused(message, action, *args):
    with pytest.raises(UserError, match=message) as caught:
        action(*args)
    assert "\n" not in str(caught.value)


def test_round_trip(tmp_path):
    model = small_model()
    checkpoint.save(tmp_path / "last.pt", full_state(model))
    state = checkpoint.load(tmp_path / "last.pt")
    assert (state["epoch"], state["step"], state["best"]) == (2, 9, 0.5)
    torch.testing.assert_close(state["model"], dict(model.state_dict()), rtol=0, atol=0)
    weights, meta = checkpoint.load_weights(tmp_path / "last.pt")
    assert weights.keys() == model.state_dict().keys() and meta["step"] == 9


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, full_state(small_model()))
    before = path.read_bytes()

    def torn_save(content, file):
        file.write(b"half of a ")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn_save)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, full_state(small_model()))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_corrupt_missing_and_foreign_files(tmp_path):
    path, model = tmp_path / "last.pt", small_model()
    checkpoint.save(path, full_state(model))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(model[0].weight.detach().numpy().tobytes())] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], bytes(range(256)) * 9, b"", flipped):
        path.write_bytes(damaged)
        refused(r"last\.pt.*corrupt", checkpoint.load, path)
    path.unlink()
    refused("no such", checkpoint.load, path)
    torch.save(model.state_dict(), tmp_path / "foreign.pt")
    refused(r"foreign\.pt", checkpoint.load_weights, tmp_path / "foreign.pt")


class Malicious:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('ptri_was_here').touch()",))


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"kind": checkpoint.CHECKPOINT, "model": Malicious()}, tmp_path / "evil.pt")
    refused(r"evil\.pt", checkpoint.load, tmp_path / "evil.pt")
    assert not (tmp_path / "ptri_was_here").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)  # the control: it would have
    assert (tmp_path / "ptri_was_here").exists()


def test_another_architecture(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save_weights(path, small_model(4).state_dict(), {})
    deeper = nn.Sequential(*small_model(4), nn.Linear(2, 2))
    for model, text in (
        (small_model(5), r"(?=.*a\.pt).*another architecture.*size mismatch for 0\.weight"),
        (deeper, r'Missing key\(s\) in state_dict: "3\.weight", "3\.bias"'),
        (small_model(4)[:2], "Unexpected key"),
    ):
        refused(text, checkpoint.initialise, model, path)


def test_shipped_weights(tmp_path):
    path, model = tmp_path / "a.pt", small_model(64)
    meta = {"command": "train2d.py configs/a.yaml", "seed": 3, "metrics": {"x2d/l2": 4.5}}
    checkpoint.save_weights(path, model.state_dict(), meta)
    other = small_model(64)
    nn.init.zeros_(other[0].weight)
    assert checkpoint.initialise(other, path) == meta
    assert torch.equal(other[0].weight, model[0].weight.half().float())
    assert torch.equal(other[0].bias, model[0].bias)  # vectors keep their precision
    assert other[0].weight.dtype == torch.float32
    refused("holds ptri-weights, expected ptri-checkpoint", checkpoint.load, path)


def test_weights_too_large_for_fp16_are_refused(tmp_path):
    model = small_model()
    nn.init.constant_(model[0].weight, 1e6)
    refused(r"0\.weight", checkpoint.save_weights, tmp_path / "a", model.state_dict(), {})
    assert not (tmp_path / "a").exists()


def test_a_part_of_a_model(tmp_path):
    whole = nn.ModuleDict({"detector": small_model(), "lifter": nn.Linear(2, 2)})
    checkpoint.save_weights(tmp_path / "a.pt", whole.state_dict(), {})
    part = small_model()
    nn.init.zeros_(part[2].weight)
    checkpoint.initialise(part, tmp_path / "a.pt", prefix="detector.")
    assert part[2].weight.abs().sum() > 0
    refused("Missing", checkpoint.initialise, part, tmp_path / "a.pt", "detectr.")
