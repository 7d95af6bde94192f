"""What rendered people look like, and what scripts/render_people.py writes: its flags and YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_origin

from ptri.errors import UserError
from ptri.fields import Section, build, kinds_of, number
from ptri.people.rigs import family_indices

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
class RenderConfig(Section):
    """What rendered people look like: the section ``render`` of a configuration.

    "Share" and "chance" are of the images. Single images (`ptri/render/single.py`) use all of it;
    the rigs of several cameras use what is not about a single image's camera.
    """

    # Training on the fly (data.kind: rendered)
    pass_images: int = number(16384, 1)  # images of a pass; every pass has new ones
    test_images: int = number(512, 1)  # always the same, of people who are not trained on
    # People
    size: int = number(256, 32)  # px, square images; on the fly data.image_size takes its place
    faces: int = number(6000, 300)  # triangles of a body
    people: int = number(256, 1)  # dressed bodies that single images draw from; colours are new
    # in every image
    children: float = number(0.12, 0, 1)  # share of those bodies younger than adults
    garments: str = ""  # folder of garments bound to MakeHuman's base mesh; "": procedural only
    garment_share: float = number(0.7, 0, 1)  # of the people who wear them; the others wear
    # procedural clothes
    clothed: float = number(1.0, 0, 1)  # share of people in clothes; the others in tight shorts
    # Poses
    motions: tuple[str, ...] = ()  # kinds, see ptri/people/motions.py; []: all, in the proportions
    # of ptri/render/people/poses.py
    mocap: tuple[str, ...] = ()  # motion capture: .npz (ptri/people/mocap.py) or .bvh files, or
    # folders of .bvh files
    mocap_share: float = number(0.4, 0, 1)  # of the poses, where there is motion capture
    mocap_split: Literal["train", "held_out", "all"] = "train"  # trials of the .npz that are used
    # Cameras of single images
    near: float = number(1.3, 0.5)  # m, nearest distance a lens is made for ...
    far: float = number(12.0, 0.5)  # ... and the farthest; log-uniform between them
    roll_deg: float = number(5.0, 0)  # standard deviation
    on_side: float = number(0.02, 0, 1)  # cameras that lie on their side
    fill_low: float = number(0.6, 0.05)  # the person's longer side takes from this share of the
    fill_high: float = number(0.95, 0.05)  # image to this one
    truncated: float = number(0.25, 0, 1)  # share cut by the frame: half figures, missing limbs
    # Places
    backgrounds: str | None = None  # folder of panoramas (2:1) or photographs
    background_share: float = number(0.4, 0, 1)  # share before one of those
    collages: float = number(0.2, 0, 1)  # share of the rest before a random collage, not in a room
    clutter: int = number(8, 0)  # most pieces of furniture in a room
    # Light
    lamps: float = number(0.5, 0, 1)  # chance of a second, near light
    exposure: float = number(0.25, 0)  # log of the factor, standard deviation
    # What is in the way
    occluders: float = number(0.3, 0, 1)  # chance of something between camera and person
    held: float = number(0.15, 0, 1)  # chance of something in a hand
    second_person: float = number(0.25, 0, 1)  # chance of somebody else beside, behind or before
    # Sensor
    metering: float = number(0.7, 0, 1)  # how far the exposure follows the picture's brightness
    samples: int = number(-1, -1, 16)  # multisampling; -1: 4 on a GPU, and in software, where it
    # would double the time, a filter of the finished picture
    sensor: float = number(0.6, 0)  # strength of colour response, noise and blur
    motion_blur: float = number(0.05, 0, 1)  # chance of a limb's motion seen (3 times the time)
    shake: float = number(0.06, 0, 1)  # chance of a shaken camera
    jpeg: float = number(0.5, 0, 1)  # chance of visible compression (quality 25 to 90)

    def __post_init__(self) -> None:
        super().__post_init__()
        for low, high in (("near", "far"), ("fill_low", "fill_high")):
            least, most = getattr(self, low), getattr(self, high)
            if least > most:
                raise UserError(
                    f"render.{low}: {least} is above render.{high}, {most}; exchange them"
                )


@dataclass(frozen=True)
class RenderSettings(RenderConfig):
    """What to write. The factors of the images are those of `RenderConfig`."""

    NAME = "render"

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

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Human3.6M's four, then numbers of our own."""
        count = self.lenses if self.mode == "single" else self.cameras
        extra = tuple(str(70000001 + i) for i in range(count - len(H36M_CAMERAS)))
        return (H36M_CAMERAS + extra)[:count]


def settings_from(
    values: Mapping[str, Any], base: RenderSettings | None = None, where: str = ""
) -> RenderSettings:
    """Settings from a dict of them over others, see `ptri.fields.build`; lists also as "a,b".

    A section ``render`` holds factors, as in a training configuration, whose other sections are
    not looked at.
    """
    if isinstance(values.get("render"), dict):
        values = values["render"]
    given = {} if base is None else dataclasses.asdict(base)
    for key, value in values.items():
        many = get_origin(kinds_of(RenderSettings).get(key)) in (list, tuple)
        given[key] = value.split(",") if many and isinstance(value, str) else value
    return build(RenderSettings, given, where)
