"""Typed configuration: dataclass defaults < YAML files < ``section.key=value``, later ones winning.

The settings themselves are in `ptri/config_sections.py`; how one is declared, in `ptri/fields.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ptri.config_sections import (
    AugmentConfig,
    DataConfig,
    DetectorConfig,
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
from ptri.fields import Table, build, kinds_of, nearest, parse_yaml, read_yaml


@dataclass(frozen=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    init: InitConfig = field(default_factory=InitConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    render: Table = field(default_factory=dict)  # see ptri/render/settings.py


SECTIONS = {item.name: item.default_factory for item in fields(Config) if item.name != "render"}
_KINDS = {name: kinds_of(section) for name, section in SECTIONS.items()}
# Settings of earlier versions, and what became of them; CHANGELOG.md says more.
_GONE = {
    "the turn of the person's trunk, as it is seen; leave it out": "recording.max_roll_deg",
    "a constant of the code, since nobody set it; leave it out": """
        posterior.adjust_iterations posterior.random_starts posterior.df posterior.inflation
        posterior.outlier_chi2 posterior.frame_correlation posterior.bone_spread
        data.max_views model.freeze_norm model.heatmap_window model.confidence_radius
        model.volume_side model.volume_features augment.hue generated.max_truncated
        generated.motions generated.fps generated.area generated.bone_spread
        train.weight_decay train.final_lr train.grad_clip train.heatmap_sigma
        train.posterior_samples train.weight_lift train.weight_pose train.weight_x3d
        train.weight_joint train.weight_x2d train.weight_covariance train.weight_coverage
        train.weight_confidence train.weight_imitation render.high_share render.low_share
        render.off_axis render.shadows render.white_balance
    """,
    "no longer a choice; leave it out": """
        run.deterministic data.images data.actions augment.shuffle_views augment.channels
        generated.crop_size generated.independent generated.truncate
    """,
    "a check of `scripts/prepare_h36m.py check --read`; leave it out": "data.check_images",
    "data.views": "data.cameras",
    "evaluate.pool_frames, for recordings too; 0 pools nothing": """
        recording.pool_frames evaluate.pooled
    """,
    "sources of data.mix, where {} is data.root itself: data.mix=[{}, {root: data/more}]": """
        data.more_roots
    """,
    "train.new=lifter; instead of false: train.new=nothing": "train.new_lifter",
    "train.new=head; instead of false: train.new=nothing": "train.new_head",
    "known of a 2D network, kept in its weights' metadata, and comes with init.checkpoint_2d "
    "(ptri.models.weights.write_detector); leave it out": """
        posterior.bone_ratio posterior.overstated posterior.frame_worth
    """,
}
# Those that moved into tables of their own.
_MOVED = {
    "generated.errors": """
        noise joint_noise clip_spread view_spread noise_spread steady_spread anisotropy
        hidden_noise correlated_share correlation_s definition_mm definition_mean view_bias
        bias_follows misreport overstate joint_stated rounding outlier_rate outlier_size
        confident_outliers gross_rate drop_rate flat_views body_swap_rate limb_swap_rate
        limb_copy_rate profile_copies confident_swaps fault_s missing_rate missing_hidden_rate
        missing_view_rate confidence_noise confidence_logit confidence_slope
    """,
    "model.sizes": """
        head_channels context lifter_width lifter_blocks fusion_width fusion_layers fusion_frames
        volume_size volume_width fixed_views fixed_width
    """,
}
RETIRED = {name: what for what, names in _GONE.items() for name in names.split()}
RETIRED |= {
    f"{table.partition('.')[0]}.{key}": f"{table}.{key}, or a key of its file"
    for table, keys in _MOVED.items()
    for key in keys.split()
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
    layers = [] if path is None else [(f"{path}: ", read_yaml(path))]
    for text in overrides:
        if "=" not in text and text.endswith((".yaml", ".yml")):
            layers.append((f"{text}: ", read_yaml(text)))
        else:
            layers.append(("command line: ", _override(text)))
    return from_dicts(layers)


def from_dicts(layers: Sequence[tuple[str, dict[str, Any]]]) -> Config:
    """Merges (source, nested dict) pairs over the defaults, later ones winning.

    Raises:
        UserError: as `load`; the message starts with the source's text.
    """
    merged: dict[str, dict[str, Any]] = {name: {} for name in (*SECTIONS, "render")}
    source: dict[str, str] = {}  # of every value that is given
    for where, tree in layers:
        for name, part in tree.items():
            for key, value in _checked_part(name, part, where).items():
                merged[name][key] = _merge(merged[name].get(key), value)
                source[f"{name}.{key}"] = where
    first = layers[0][0] if layers else ""
    parts = {name: build(kind, merged[name], first, source) for name, kind in SECTIONS.items()}
    return Config(**parts, render=merged["render"])


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


def _override(text: str) -> dict[str, Any]:
    path, equals, value = text.partition("=")
    *sections, key = path.split(".")
    if not equals or not all(path.split(".")) or not (sections or key == "render"):
        raise UserError(f"command line: {text!r} is neither section.key=value nor a YAML file")
    tree = {key: parse_yaml(value, f"command line: {text!r}")}
    for name in reversed(sections):
        tree = {name: tree}
    return tree


def _checked_part(name: str, part: Any, where: str) -> dict[str, Any]:
    """The keys and values of a section in one source; UserError for keys that do not exist."""
    if part is None and (name in _KINDS or name == "render"):
        return {}  # a section left empty
    if name == "render" and isinstance(part, str):
        return read_yaml(part)
    if name not in _KINDS and name != "render":
        raise UserError(f"{where}unknown key '{name}'{_suggestion(str(name), None)}")
    if not isinstance(part, dict):
        raise UserError(f"{where}{name}: expected a section of keys, found {part!r}")
    for key in part:
        why = RETIRED.get(f"{name}.{key}")
        if why is not None:
            raise UserError(f"{where}{name}.{key}: now {why}")
        if name != "render" and key not in _KINDS[name]:
            raise UserError(f"{where}unknown key '{name}.{key}'{_suggestion(str(key), name)}")
    return part


def _merge(old: Any, new: Any) -> Any:
    """Keys of a `Table` go over those that are there; anything else takes the old one's place."""
    if not isinstance(new, dict):
        return new
    old = read_yaml(old) if isinstance(old, str) else old or {}
    return {**old, **new}


def _suggestion(word: str, section: str | None) -> str:
    """The same key elsewhere, else the nearest in the section, else anywhere."""
    elsewhere = [f"{name}.{word}" for name, keys in _KINDS.items() if word in keys]
    if elsewhere:
        return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    inside = nearest(word, _KINDS[section] if section else _KINDS)
    if inside:
        return f"; did you mean '{section}.{inside}'?" if section else f"; did you mean '{inside}'?"
    anywhere = {key: f"{name}.{key}" for name, keys in _KINDS.items() for key in keys}
    close = nearest(word, anywhere)
    return f"; did you mean '{anywhere[close]}'?" if close else ""
