"""What scripts/render_people.py writes: its flags, which are the keys of its YAML too."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from ptri.errors import UserError
from ptri.fields import number
from ptri.people.rigs import family_indices
from ptri.render_config import RenderConfig

H36M_CAMERAS = ("54138969", "55011271", "58860488", "60457274")
# What people do in Human3.6M's actions, as motion kinds of ptri.people.motions.
ACTION_KINDS = {
    "Directions": ("reach", "gesture"),
    "Discussion": ("gesture", "stand"),
    "Eating": ("sit", "stand"),
    "Greeting": ("gesture", "reach"),
    "Phoning": ("stand", "walk"),
    "Photo": ("reach", "bend"),
    "Posing": ("stand", "lunge", "gesture"),
    "Purchases": ("bend", "squat", "reach"),
    "Sitting": ("sit", "sit_crossed"),
    "SittingDown": ("sit_floor", "kneel", "kneel_one"),
    "Smoking": ("sit", "stand"),
    "Waiting": ("stand", "gesture"),
    "WalkDog": ("walk", "reach"),
    "WalkTogether": ("walk", "run"),
    "Walking": ("walk",),
    "Exercise": ("dance", "random", "random", "climb", "squat", "crawl"),  # ours
}


@dataclass(frozen=True)
class RenderSettings(RenderConfig):
    """What to write. The factors of the images are those of `RenderConfig`."""

    out: str = "data/rendered"  # root of the Human3.6M layout, or folder of the shards
    mode: Literal["rig", "single"] = "rig"  # rigs of cameras around people who move, or images
    # each with a person, pose, place, light and camera of its own
    subjects: tuple[str, ...] = ("S1", "S5", "S6", "S7", "S8")
    size: int = number(512, 32)  # px, square images
    quality: int = number(80, 1, 100)  # of the JPEGs
    seed: int = number(0, 0)
    workers: int = number(1, 1)
    masks: bool = False  # single: also write the person's visible pixels, as PNG
    # mode: single
    images: int = number(1000, 1)  # of each subject
    lenses: int = number(48, 1)  # different intrinsics of each subject
    shard_size: int = number(0, 0)  # images of a WebDataset shard; 0: the Human3.6M layout
    # mode: rig
    actions: tuple[str, ...] = ("Walking-1", "Posing-1", "Greeting-1")  # Human3.6M names
    frames: int = number(10, 1)  # per action
    fps: float = number(5.0, above=0)  # of the frames rendered; numbered as at 50 fps
    cameras: int = number(4, 1)  # views of each subject's rig
    rig: str = "h36m_ring"  # family of ptri.people.rigs; "dome+ring" gives half the views to each
    reach: float = number(1.0, above=0)  # m around the origin that every camera has to see
    tight: bool = False  # zoom in until only that fits (for training on crops)
    variety: Literal["subject", "action"] = "subject"  # who changes person, clothes and light

    def __post_init__(self) -> None:
        super().__post_init__()
        for action in self.actions:
            if action.split("-")[0] not in ACTION_KINDS:
                raise UserError(
                    f"--actions {action}: unknown; expected NAME or NAME-number with NAME among "
                    f"{', '.join(ACTION_KINDS)}"
                )
        parts = family_indices(self.rig.split("+"), "--rig")
        if self.cameras % len(parts):
            raise UserError(f"--cameras {self.cameras}: not a multiple of the parts of {self.rig}")
        for name, choices in (
            ("variety", ("subject", "action")),
            ("mode", ("rig", "single")),
            ("mocap_split", ("train", "held_out", "all")),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: expected "
                    f"{' or '.join(choices)}"
                )

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Human3.6M's four, then numbers of our own."""
        count = self.lenses if self.mode == "single" else self.cameras
        extra = tuple(str(70000001 + i) for i in range(count - len(H36M_CAMERAS)))
        return (H36M_CAMERAS + extra)[:count]


def read_settings(path: str | Path) -> dict:
    """The keys and values of a YAML file, for `settings_from`.

    Raises:
        UserError: unreadable, or something else than keys and values.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected keys and values")
    return values


def settings_from(values: dict, base: RenderSettings | None = None) -> RenderSettings:
    """Settings from a dict of fields.

    A section ``render`` holds factors, as in a training configuration, whose other sections are
    not looked at.

    Raises:
        UserError: an unknown key or a value of the wrong type.
    """
    base = base or RenderSettings()
    if isinstance(values.get("render"), dict):
        values = values["render"]
    known = {field.name: field for field in dataclasses.fields(RenderSettings)}
    changes = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{key}: unknown key; expected one of {', '.join(known)}")
        kind = type(getattr(base, key))
        try:
            if kind is bool and isinstance(value, str):
                value = {"true": True, "false": False}[value.lower()]
            elif kind in (tuple, list):
                value = kind(value.split(",") if isinstance(value, str) else map(str, value))
            elif value is not None and kind in (int, float, str):
                value = kind(value)
        except (TypeError, ValueError, KeyError):
            raise UserError(f"{key}: {value!r} is not of type {kind.__name__}") from None
        changes[key] = value
    return dataclasses.replace(base, **changes)
