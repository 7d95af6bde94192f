"""Checkpoints of training runs and shipped weights: atomic, safe to load, strict.

A checkpoint is a dict of the configuration, the states of model, EMA, optimizer and scheduler, and
the place in the run. Shipped weights are a dict of one state dict and "meta", how they were made.
Both say so in "kind" and load with ``weights_only=True``: a file can bring data but no code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptri.errors import UserError

CHECKPOINT, WEIGHTS = "ptri-checkpoint", "ptri-weights"
# Names of weights that serve only while a network is trained.
TRAINING_ONLY = ("imitation.", "orientation.")
_ARCHITECTURE = ("backbone", "plain_convolutions", "head")  # keys of section model
_META = ("config", "epoch", "step", "best", "commit", "detector")  # of a checkpoint's weights


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Writes a training checkpoint."""
    write_tensors(path, CHECKPOINT, {"commit": git_commit(), **state})


def load(path: str | Path) -> dict[str, Any]:
    """Reads a training checkpoint onto the CPU.

    Raises:
        UserError: no such file, a corrupt one, or one that is no training checkpoint.
    """
    return read_tensors(path, CHECKPOINT)


def save_weights(path: str | Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes weights to ship: matrices and convolutions in fp16, vectors and counters as they are.

    Args:
        state: a state dict, normally the EMA one.
        meta: how the weights were made: command, seed, data, metrics; plain values only.

    Raises:
        UserError: a weight is not finite, or too large for fp16.
    """
    small = {}
    for name, value in state.items():
        halved = value.is_floating_point() and value.ndim >= 2
        small[name] = (value.half() if halved else value).detach().cpu().contiguous().clone()
        if value.is_floating_point() and not small[name].isfinite().all():
            raise UserError(f"{path}: weight '{name}' is not finite in {small[name].dtype}")
    write_tensors(path, WEIGHTS, {"meta": dict(meta), "model": small})


def change_meta(path: str | Path, name: str, value: Any) -> None:
    """Sets one of the metadata that `load_weights` returns; the weights stay as they are.

    Raises:
        UserError: no such file or a corrupt one.
    """
    state = read_tensors(path, CHECKPOINT, WEIGHTS)
    (state["meta"] if state["kind"] == WEIGHTS else state)[name] = value
    write_tensors(path, state["kind"], state)


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads weights in float32 from shipped weights or, the evaluated ones, from a checkpoint.

    Returns:
        The state dict without what serves only in training, and the metadata.

    Raises:
        UserError: no such file or a corrupt one.
    """
    state = read_tensors(path, CHECKPOINT, WEIGHTS)
    if state["kind"] == WEIGHTS:
        weights, meta = state["model"], state["meta"]
    else:
        weights = state["ema"]
        meta = {name: state.get(name) for name in _META}
    weights = {k: v for k, v in weights.items() if not k.startswith(TRAINING_ONLY)}
    return {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}, meta


def initialise(module: nn.Module, path: str | Path, prefix: str = "") -> dict[str, Any]:
    """Loads a file's weights, or those under a prefix such as "lifter.", strictly into a module.

    Returns:
        The file's metadata.

    Raises:
        UserError: as `load_weights` and `load_state`.
    """
    weights, meta = load_weights(path)
    part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    load_state(module, part, path)
    return meta


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """`load_state_dict`, which accepts exactly the module's names and shapes.

    Raises:
        UserError: one line that names what differs.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # a headline, then a line for each kind of difference
        differences = [f"{line.strip():.120}" for line in str(error).splitlines()[1:4]]
        made = stored_model(load_weights(path)[1])
        told = [f"model.{key}={json.dumps(made[key])}" for key in _ARCHITECTURE if key in made]
        raise UserError(
            f"{path}: weights of another architecture: {' '.join(differences)}; build the model "
            f"with the settings the file was made with: {' '.join(told) or 'model.*'}"
        ) from None


def stored_model(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``model`` in a file's metadata; {} where there is none."""
    stored = meta.get("model") or (meta.get("config") or {}).get("model") or {}
    return stored if isinstance(stored, dict) else {}  # of other networks: their name


def digest(module: nn.Module) -> str:
    """Tells a module's weights from others."""
    values = (value.cpu().numpy().tobytes() for value in module.state_dict().values())
    return hashlib.blake2b(b"".join(values), digest_size=16).hexdigest()


@functools.cache
def git_commit() -> str | None:
    """The source tree's commit, "-dirty" with local changes; None outside a clone."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file to write to, which takes a file's place when all went well.

    A crash at any moment leaves the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: str | Path, kind: str, content: Mapping[str, Any]) -> None:
    """Writes plain values and tensors."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        torch.save({**content, "kind": kind}, file)


def read_tensors(path: str | Path, *kinds: str) -> dict[str, Any]:
    """Reads what `write_tensors` wrote, one of these kinds.

    Raises:
        UserError: no such file, a corrupt one or one of another kind.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has a dozen ways to fail on a damaged file
        reason = " ".join(str(error).split()).split(". ")[0][:120]
        raise UserError(
            f"{path}: corrupt or not a checkpoint ({type(error).__name__}: {reason}); "
            f"use another file or train again"
        ) from None
    kind = state.get("kind") if isinstance(state, dict) else None
    if kind not in kinds:
        raise UserError(f"{path}: holds {kind or 'something else'}, expected {' or '.join(kinds)}")
    return state
