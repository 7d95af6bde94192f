"""Typed configuration: dataclass defaults < YAML file < ``section.key=value`` on the command line.

The settings themselves are in `ptri/config_sections.py` and `ptri/render_config.py`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ptri.config_sections import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    GeneratedConfig,
    InitConfig,
    ModelConfig,
    PosteriorConfig,
    RecordingConfig,
    RunConfig,
    TrainConfig,
)
from ptri.errors import UserError
from ptri.render_config import RenderConfig


@dataclass(frozen=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    init: InitConfig = field(default_factory=InitConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    render: RenderConfig = field(default_factory=RenderConfig)


# Settings of earlier versions, and what to do instead.
_OF_DETECTOR = (
    "what is known of a 2D network is kept in its weights' metadata and comes with "
    "init.checkpoint_2d (ptri.models.weights.write_detector); leave it out"
)
_OF_2D_LOSSES = (
    "the weights of the 2D losses are constants of ptri/training/task2d.py; leave it out"
)
_OF_3D_LOSSES = (
    "the weights of the 3D losses are constants of ptri/training/losses3d.py; leave it out"
)
RETIRED = {
    "posterior.bone_ratio": _OF_DETECTOR,
    "posterior.overstated": _OF_DETECTOR,
    "posterior.frame_worth": _OF_DETECTOR,
    "train.weight_decay": "a constant of ptri/training/optimizer.py; leave it out",
    "train.weight_lift": _OF_3D_LOSSES,
    "train.weight_pose": _OF_3D_LOSSES,
    "train.weight_x3d": _OF_3D_LOSSES,
    "train.weight_joint": _OF_3D_LOSSES,
    "train.weight_x2d": _OF_2D_LOSSES,
    "train.weight_covariance": _OF_2D_LOSSES,
    "train.weight_coverage": _OF_2D_LOSSES,
    "train.weight_confidence": _OF_2D_LOSSES,
    "train.weight_imitation": _OF_2D_LOSSES,
}

_SECTIONS = {item.name: item.default_factory for item in fields(Config)}
_KEYS = {name: [item.name for item in fields(section)] for name, section in _SECTIONS.items()}
# Choices with the word "off", which YAML 1.1 reads as false.
_OFF = {
    (name, item.name)
    for name, section in _SECTIONS.items()
    for item in fields(section)
    if "Literal[" in item.type and "off" in item.type
}


def load(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        path: YAML file with any of the sections; None starts from the defaults.
        overrides: strings ``section.key=value``, the value in YAML syntax; or further YAML files.
            Later ones win.

    Raises:
        UserError: an unreadable file; an unknown key (the nearest one is suggested); a value of the
            wrong type or out of range; a missing value.
    """
    layers = [] if path is None else [(f"{path}: ", _read(path))]
    for text in overrides:
        if "=" not in text and text.endswith((".yaml", ".yml")):
            layers.append((f"{text}: ", _read(text)))
        else:
            layers.append(("command line: ", _override(text)))
    return from_dicts(layers)


def read_section(path: str | Path, name: str) -> dict[str, Any]:
    """What a YAML file sets in one section, checked as `load` does."""
    tree = _read(path)
    whole = from_dicts([("", {"run": {"name": name}}), (f"{path}: ", tree)])  # a run needs a name
    return {key: getattr(getattr(whole, name), key) for key in tree.get(name) or {}}


def from_dicts(layers: Sequence[tuple[str, dict[str, Any]]]) -> Config:
    """Merges (source, nested dict) pairs over the defaults, later ones winning.

    Raises:
        UserError: as `load`; the message starts with the source's text.
    """
    merged = OmegaConf.structured(Config)
    asked: dict[tuple[str, str], bool] = {}  # "???": OmegaConf would keep the default below it
    for where, tree in layers:
        _check_keys(tree, where)
        asked |= {(name, k): v == MISSING for name, part in tree.items() for k, v in part.items()}
        try:
            merged = OmegaConf.merge(merged, tree)
        except OmegaConfBaseException as error:
            raise _mendable(error, where) from None
    for name, keys in _KEYS.items():
        for key in keys:
            if OmegaConf.is_missing(merged[name], key) or asked.get((name, key)):
                raise UserError(
                    f"{_source(layers, f'{name}.{key}')}{name}.{key}: no value; set it in the YAML "
                    f"file or with {name}.{key}=... on the command line"
                )
    try:
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except UserError as error:  # a value out of range
        raise UserError(f"{_source(layers, str(error).partition(':')[0])}{error}") from None
    except OmegaConfBaseException as error:
        raise _mendable(error, _source(layers, str(error.full_key))) from None


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dict of plain values, for checkpoints."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML that `load` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def replace(config: Config, **changes: Any) -> Config:
    """A copy with changes such as ``train__epochs=2``; for tests and scripts."""
    for name, value in changes.items():
        section, key = name.split("__", 1)
        part = dataclasses.replace(getattr(config, section), **{key: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def _read(path: str | Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None or tree == {}:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected sections such as 'run:' and 'data:', found a list")
    return tree


def _override(text: str) -> dict[str, Any]:
    key, equals, _ = text.partition("=")
    if not equals or key.count(".") != 1 or not all(key.split(".")):
        raise UserError(f"command line: {text!r} is neither section.key=value nor a YAML file")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([text]))  # type: ignore[return-value]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"command line: {text!r}: {' '.join(str(error).split())}") from None


def _check_keys(tree: dict[str, Any], where: str) -> None:
    """Raises for keys that do not exist; mends what YAML makes of empty sections and of off."""
    for name in [name for name, part in tree.items() if part is None and name in _KEYS]:
        del tree[name]  # a section left empty
    for name, key in _OFF:
        if isinstance(tree.get(name), dict) and tree[name].get(key) is False:
            tree[name][key] = "off"
    for name, part in tree.items():
        if name not in _KEYS:
            raise UserError(f"{where}unknown key '{name}'{_nearest(str(name), None)}")
        if not isinstance(part, dict):
            raise UserError(f"{where}{name}: expected a section of keys, found {part!r}")
        for key in part:
            why = RETIRED.get(f"{name}.{key}")
            if why is not None:
                raise UserError(f"{where}{name}.{key}: no longer a setting: {why}")
            if key not in _KEYS[name]:
                raise UserError(f"{where}unknown key '{name}.{key}'{_nearest(str(key), name)}")


def _nearest(word: str, section: str | None) -> str:
    """A suggestion: the same key elsewhere, else the nearest in the section, else anywhere."""
    elsewhere = [f"{name}.{word}" for name, keys in _KEYS.items() if word in keys]
    if elsewhere:
        return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    own = {key: f"{section}.{key}" for key in _KEYS[section]} if section else {}
    names = {} if section else {name: name for name in _KEYS}
    every = {key: f"{name}.{key}" for name, keys in _KEYS.items() for key in keys}
    for candidates in (own, names, every):
        close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
        if close:
            return f"; did you mean {candidates[close[0]]!r}?"
    return ""


def _source(layers: Sequence[tuple[str, dict[str, Any]]], full_key: str) -> str:
    """The text of the last layer that sets the key, else of the first layer."""
    name, _, key = full_key.partition(".")
    for where, tree in reversed(layers):
        if key.partition("[")[0] in (tree.get(name) or {}):
            return where
    return layers[0][0] if layers else ""


def _mendable(error: OmegaConfBaseException, where: str) -> UserError:
    reason = str(error.msg or error).splitlines()[0]
    name, _, key = str(error.full_key).partition("[")[0].partition(".")
    annotations = {f.name: f.type for f in fields(_SECTIONS[name])} if name in _SECTIONS else {}
    expected = f"; expected {annotations[key]}" if key in annotations else ""
    return UserError(f"{where}{error.full_key}: {reason}{expected}")
