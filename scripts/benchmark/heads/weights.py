"""Heads with their weights, and one evaluation of all of them on unseen rigs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmark.heads.unseen import Head, RigSet, Scores, score, solve
from ptri import checkpoint
from ptri.config import Config, from_dicts, load
from ptri.errors import UserError
from ptri.models.pose_model import PoseModel
from ptri.models.weights import build_around, known_detector, model_settings


def load_head(name: str, path: str | Path, config: Config) -> Head:
    """A head from weights that name it in their metadata, with the sizes it was trained with.

    Args:
        path: of a whole model, of lifter and head, or of a head alone (``fusion.*``).
        config: its section model where the metadata have none.

    Raises:
        UserError: a missing or corrupt file, or weights that do not fit their metadata.
    """
    _, meta = checkpoint.load_weights(path)
    made = model_settings(path, meta)
    if made:
        layers = [("", {"run": {"name": "benchmark"}}), (f"{path}: ", {"model": made})]
        config = dataclasses.replace(config, model=from_dicts(layers).model)
    model = PoseModel(config, with_images=False, detector=known_detector(config, False))
    checkpoint.initialise(model.fusion, path, "fusion.")
    return Head(name, model.eval(), str(path))


def make_solver(weights: str, path: str | None, overrides: list[str]) -> tuple[PoseModel, Config]:
    """The model whose lifter and posterior solve the rigs, and its settings.

    Raises:
        UserError: bad settings or weights.
    """
    fixed = ["run.name=benchmark", "data.kind=generated", f"init.checkpoint_3d={weights}"]
    config = load(path, [*fixed, *overrides])
    return build_around(config, "lifter", with_images=False).eval(), config


def evaluate(
    heads: list[Head],
    rig_sets: list[RigSet],
    rigs: dict[int, int],
    solver: PoseModel,
    config: Config,
    seed: int,
    folder: Path,
) -> dict[str, dict[RigSet, Scores]]:
    """Scores of every head on every set of rigs; triangulation without learning among them.

    Args:
        rigs: their number by number of frames.
        folder: keeps the solved rigs for the next run with equal settings.
    """
    for head in heads:  # frames alone lean on the skeletons that the rigs were solved from
        head.model.lifter = solver.lifter
    head_scores: dict[str, dict[RigSet, Scores]] = {head.name: {} for head in heads}
    with tqdm(total=len(rig_sets), unit="set", disable=None) as bar:
        for rig_set in rig_sets:
            bar.set_postfix_str(rig_set.name)
            solved = solve(rig_set, rigs[rig_set.num_frames], solver, config, seed, folder)
            for name, scores in score(heads, rig_set, solved):
                head_scores.setdefault(name, {})[rig_set] = scores
            bar.update()
    return head_scores


def named_heads(chosen: list[str], folder: Path, config: Config) -> list[Head]:
    """Heads from ``name=path`` words, and from every ``*.pt`` of a folder.

    Raises:
        UserError: a word without a path, a name twice, or a bad file.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.pt"))}
    for word in chosen:
        name, equals, path = word.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--heads: {word!r} is not of the form name=path")
        files[name] = Path(path)
    return [load_head(name, path, config) for name, path in files.items()]


def describe(heads: list[Head]) -> dict[str, Any]:
    """What each head is, for the JSON."""
    return {
        head.name: {
            "file": head.source,
            "weights": sum(p.numel() for p in head.model.fusion.parameters()),
            "uses_cameras": head.model.fusion.uses_cameras,
        }
        for head in heads
    }
