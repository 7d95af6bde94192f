"""What rendered people look like: the section ``render`` and the factors of render_people.py.

"Share" and "chance" are of the images. Single images (`ptri/render/single.py`) use all of it; the
rigs of several cameras use what is not about a single image's camera.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ptri.errors import UserError
from ptri.fields import Section, number


@dataclass(frozen=True)
class RenderConfig(Section):
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
    motions: list[str] = field(default_factory=list)  # kinds, see ptri/people/motions.py; []: all,
    # in the proportions of ptri/render/poses.py
    mocap: list[str] = field(default_factory=list)  # motion capture: .npz (ptri/people/mocap.py) or
    # .bvh files, or folders of .bvh files
    mocap_share: float = number(0.4, 0, 1)  # of the poses, where there is motion capture
    mocap_split: Literal["train", "held_out", "all"] = "train"  # trials of the .npz that are used
    # Cameras of single images
    near: float = number(1.3, 0.5)  # m, nearest distance a lens is made for ...
    far: float = number(12.0, 0.5)  # ... and the farthest; log-uniform between them
    high_share: float = number(0.2, 0, 1)  # cameras 30 to 75 degrees above the person
    low_share: float = number(0.08, 0, 1)  # cameras near the floor
    roll_deg: float = number(5.0, 0)  # standard deviation
    on_side: float = number(0.02, 0, 1)  # cameras that lie on their side
    off_axis: float = number(0.25, 0)  # principal point off the image's middle, share of its side
    fill_low: float = number(0.6, 0.05)  # the person's longer side takes from this share of the
    fill_high: float = number(0.95, 0.05)  # image to this one
    truncated: float = number(0.25, 0, 1)  # share cut by the frame: half figures, missing limbs
    # Places
    backgrounds: str | None = None  # folder of panoramas (2:1) or photographs
    background_share: float = number(0.4, 0, 1)  # share before one of those
    collages: float = number(0.2, 0, 1)  # share of the rest before a random collage, not in a room
    clutter: int = number(8, 0)  # most pieces of furniture in a room
    # Light
    shadows: float = number(0.8, 0, 1)  # chance that the main light casts them
    lamps: float = number(0.5, 0, 1)  # chance of a second, near light
    exposure: float = number(0.25, 0)  # log of the factor, standard deviation
    white_balance: float = number(0.06, 0)  # log of red over blue, standard deviation
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
            if getattr(self, low) > getattr(self, high):
                raise UserError(
                    f"render.{low}: {getattr(self, low)} is above render.{high}, "
                    f"{getattr(self, high)}; exchange them"
                )
