"""Renders data/panoptic_mini, a miniature of CMU Panoptic's layout (needs `make render`).

python tests/render_panoptic.py data/panoptic_mini

Two sequences of one person each, in some frames beside a second one, on the 15 HD cameras of the
sets CMU0 to CMU4. Files are as the panoptic-toolbox leaves them, but for the size of the images:
calibration and joints in cm, y down, joints as a 2D detector sees them (COCO's), lens distortion.
All is drawn from a seed: bodies of Anny (MakeHuman's, CC0), procedural clothes, motions and rooms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from panoptic_fixture import CAMERAS, TO_FILES, dome_cameras, write_bodies, write_calibration

from ptri.data.panoptic import CAMERA_SETS
from ptri.data.panoptic_files import COCO19
from ptri.data.transforms import resize_intrinsics
from ptri.render.clips import sample_clip
from ptri.render.draw import sensor
from ptri.render.draw.gl import Renderer
from ptri.render.people.person import make_rng, sample_person
from ptri.render.settings import RenderConfig
from ptri.render.stage.room import sample_place
from ptri.skeleton import COCO17, linear_map, map_joints

SIZE = (256, 144)  # px; Panoptic's: 1920 x 1080
FOCAL = 0.9  # in widths
DISTORTION = np.array([-0.24, 0.13, 0.0004, -0.0003, -0.02])
SEQUENCES = {"171026_pose1": 4, "171204_pose5": 6}  # frames of each
CROWDED = (1, 4)  # frames with a second person
IDS = (7, 3)  # of the first person and the second
FIRST = 139  # number of the first frame
ASIDE = np.array([1.0, 0.3, 0.0])  # m, where the second person stands
FINER = 2  # the renderer draws so many times finer
MARGIN = 80  # px around a finer picture: barrel distortion sees more than a pinhole
QUALITY = 80  # of JPEG
LOOKS = RenderConfig(clutter=4, sensor=0.3, shake=0, jpeg=0, lamps=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the sequences; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out}: exists; remove it, or name another folder")
    width, height = (FINER * side + 2 * MARGIN for side in SIZE)
    renderer = Renderer(width, height, LOOKS.samples)
    for number, (name, num_frames) in enumerate(SEQUENCES.items()):
        render_sequence(renderer, args.out / name, num_frames, (args.seed, number))
    files = [path for path in args.out.rglob("*") if path.is_file()]
    print(f"{args.out}: {len(files)} files, {sum(f.stat().st_size for f in files) / 1000:.0f} kB")


def render_sequence(
    renderer: Renderer, folder: Path, num_frames: int, key: tuple[int, int]
) -> None:
    """Writes calibration, bodies and images of a sequence."""
    rng = make_rng(*key)
    K, R, t = rig = dome_cameras(SIZE, FOCAL)
    (folder / "hdPose3d_stage1_coco19").mkdir(parents=True)
    write_calibration(folder / f"calibration_{folder.name}.json", DISTORTION, 1.0, SIZE, rig)
    people = [sample_person(rng, LOOKS) for _ in IDS]
    clips = [
        sample_clip(person, kind, num_frames, 2.5, int(rng.integers(2**31)))
        for person, kind in zip(people, ("walk", "gesture"))
    ]
    places = np.stack([np.zeros(3), ASIDE])
    centres = -np.einsum("vji,vj->vi", R, t) / 1000
    room, _ = sample_place(rng, centres, LOOKS, [], rng)
    for slot, person in enumerate(people):
        renderer.set_person(person.dressed, slot)
    chosen = sorted({number for numbers in CAMERA_SETS.values() for number in numbers})
    lenses = {c: Lens(K[c], DISTORTION) for c in chosen}
    sensors = {c: sensor.sample_sensor(rng, LOOKS) for c in chosen}
    to_coco19 = linear_map(COCO17, COCO19)
    for frame in range(num_frames):
        shown = range(2 if frame in CROWDED else 1)
        posed, bodies = {}, {}
        for slot in shown:
            points, normals = people[slot].skin(clips[slot].transforms[frame])
            posed[slot] = points + places[slot], normals
            joints = 1000 * (clips[slot].coco[frame] + places[slot])
            bodies[IDS[slot]] = map_joints(joints, to_coco19) @ TO_FILES.T
        file = f"hdPose3d_stage1_coco19/body3DScene_{frame + FIRST:08d}.json"
        write_bodies(folder / file, bodies)
        renderer.pose(posed, room)
        for c in chosen:
            image = lenses[c].bend(renderer.draw(lenses[c].K, R[c], t[c] / 1000))
            image = sensor.expose(image, sensors[c], rng)
            path = folder / f"hdImgs/{CAMERAS[c]}/{CAMERAS[c]}_{frame + FIRST:08d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
            cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
        renderer.end_pose()


class Lens:
    """A camera with distortion: K of a finer and wider pinhole picture, and how that is bent."""

    def __init__(self, K: np.ndarray, dist: np.ndarray) -> None:
        finer = resize_intrinsics(K, FINER)
        self.K = finer + np.array([[0, 0, MARGIN], [0, 0, MARGIN], [0, 0, 0]])
        width, height = (FINER * side for side in SIZE)
        pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
        pinhole = cv2.undistortPoints(pixels.reshape(-1, 1, 2).astype(float), finer, dist, P=self.K)
        self.map = pinhole.reshape(height, width, 2).astype(np.float32)

    def bend(self, image: np.ndarray) -> np.ndarray:
        """The camera's image, of `SIZE`."""
        bent = cv2.remap(image, self.map, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return cv2.resize(bent, SIZE, interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
