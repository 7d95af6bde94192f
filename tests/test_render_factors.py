"""`benchmark.py factors`: rows with images and training of their own, and one table."""

import argparse
import json

import numpy as np
import pytest
from test_photos import ROOT, write_photos

pytest.importorskip("anny")
pytest.importorskip("moderngl")

from benchmark import command_factors

from ptri.errors import UserError


@pytest.mark.slow
def test_two_rows_share_a_table_and_refuse_other_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    photos = tmp_path / "photos"
    photos.mkdir()
    small = ["--images", "8", "--test-images", "8", "--epochs", "1", "--size", "64"]
    out = tmp_path / "out"
    options = [str(write_photos(photos)), *small, "--render", "people=3", "--out", str(out)]

    def run(*more):
        parser = argparse.ArgumentParser()
        command_factors.add_arguments(parser)
        return command_factors.run(parser.parse_args([*options, *more]))

    first = run("--rows", "colours")
    assert (
        "no colour augmentation" in first and "all factors" not in first.split("renders:")[1][20:]
    )
    text = run("--rows", "all", "clothes")
    assert sum(row[0] in text for row in command_factors.ROWS.values()) >= 3
    # Rows that differ in augmentation alone train on the same images.
    assert sorted(path.name for path in (out / "images").iterdir()) == ["all", "clothes", "test"]
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in ("all", "clothes")}
    assert found["all"]["held_out"] != found["clothes"]["held_out"]
    hits = np.array(found["all"]["right"])[np.array(found["all"]["labelled"])]
    assert abs(hits.mean() - found["all"]["photos"]["pck20_torso"]) < 1e-9
    # A second call trains nothing.
    monkeypatch.setattr(command_factors, "_train", None)
    assert run("--rows", "all").partition("written")[0] == text.partition("written")[0]
    with pytest.raises(UserError, match="made with epochs 1, now 2"):
        run("--rows", "all", "--epochs", "2")
    with pytest.raises(UserError, match="expected key=value"):
        command_factors._render(
            out / "other", argparse.Namespace(seed=0, render=["people"]), {}, (1,), 1
        )
