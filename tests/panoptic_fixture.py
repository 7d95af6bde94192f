"""A miniature of CMU Panoptic's layout: generated people, drawn limb by limb, on 31 HD cameras.

Files are as the panoptic-toolbox leaves them: centimetres, y down, images with lens distortion.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from drawn_people import MOTIONS, SIDE, backdrop_of, draw_person

from ptri.config import GeneratedConfig
from ptri.people.draws import Draws
from ptri.people.scenes import SceneNumbers, people
from ptri.skeleton import H36M17

CAMERAS = tuple(f"00_{number:02d}" for number in range(31))
DISTORTION = (-0.2, 0.08, 0.001, -0.001, 0.0)
# Our world (mm, z up) to the files' (cm, y down).
TO_FILES = 0.1 * np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
_SIDES = ("left", "right")
_LIMBS = ("shoulder", "elbow", "wrist", "hip", "knee", "foot")


def dome_cameras(
    size: tuple[int, int] = (SIDE, SIDE), focal: float = 1.25, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K, R, t of 31 cameras around people at the origin: world mm, z up.

    Args:
        size: px, width and height. focal: in widths, in the mean.
    """
    rng = np.random.default_rng(seed)
    K, R, t = np.zeros((31, 3, 3)), np.zeros((31, 3, 3)), np.zeros((31, 3))
    for c in range(31):
        f = size[0] * focal * rng.uniform(0.96, 1.04)
        K[c] = [[f, 0, size[0] / 2 + 2], [0, 0.998 * f, size[1] / 2 - 3], [0, 0, 1]]
        angle, height = 2 * np.pi * (7 * c % 31) / 31, rng.uniform(900, 2600)
        centre = np.array([3600 * np.cos(angle), 3600 * np.sin(angle), height])
        forward = np.array([0, 0, 900.0]) - centre
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        R[c] = [right, np.cross(forward, right), forward]
        t[c] = -R[c] @ centre
    return K, R, t


def to_coco19(joints: np.ndarray) -> np.ndarray:
    """Human3.6M's joints (17, 3) mm as CMU's 19, of which ours come out again."""
    place = H36M17.joints.index
    limbs = [joints[place(f"{side}_{part}")] for side in _SIDES for part in _LIMBS]
    shoulders = (limbs[0] + limbs[6]) / 2
    left = (limbs[0] - limbs[6]) / np.linalg.norm(limbs[0] - limbs[6])
    ears = 3 * joints[place("thorax")] - 2 * shoulders
    nose = 2 * joints[place("nose")] - ears
    face = [nose + 30 * left, ears + 70 * left, nose - 30 * left, ears - 70 * left]
    return np.stack([shoulders, nose, joints[place("hip")], *limbs, *face])


def write_calibration(
    path: Path, dist=DISTORTION, scale: float = 1.0, size=(SIDE, SIDE), rig=None
) -> None:
    """The HD cameras, and one of another kind; scale: of t, 1 for cm; rig: K, R, t."""
    K, R, t = rig or dome_cameras()
    cameras = [{"name": "01_01", "type": "vga", "resolution": [640, 480], "panel": 1, "node": 1}]
    for c, name in enumerate(CAMERAS):
        cameras.append(
            {
                "name": name,
                "type": "hd",
                "resolution": list(size),
                "panel": 0,
                "node": c,
                "K": K[c].round(4).tolist(),
                "distCoef": list(dist),
                "R": (R[c] @ TO_FILES.T * 10).round(9).tolist(),
                "t": (0.1 * scale * t[c]).round(6)[:, None].tolist(),
            }
        )
    path.write_text(json.dumps({"calibDataSource": "test", "cameras": cameras}))


def write_bodies(path: Path, bodies: dict[int, np.ndarray]) -> None:
    """One frame's file of CMU's joints (19, 3) cm by id; NaN = missing."""
    entries = []
    for number, joints in bodies.items():
        missing = np.isnan(joints).any(1)
        table = np.where(missing[:, None], 0.0, joints)
        table = np.column_stack([table, np.where(missing, -1.0, 0.6)])
        entries.append({"id": number, "joints19": table.round(4).ravel().tolist()})
    path.write_text(json.dumps({"version": 0.7, "univTime": 0.0, "bodies": entries}))


def make_panoptic(
    root: Path,
    sequences: tuple[str, ...] = ("171026_pose1", "171204_pose5"),
    cameras: tuple[int, ...] = (1, 2, 3, 4, 6, 7, 10),
    num_frames: int = 4,
    crowded: tuple[int, ...] = (),
    videos: bool = False,
    dist=DISTORTION,
    first: int = 2,
    seed: int = 0,
) -> np.ndarray:
    """Writes calibration, bodies and images of some cameras; returns the joints.

    Args:
        crowded: frames (from 0) with a second person, whose id is 3; the first one's is 7.
        videos: write hdVideos/ instead of hdImgs/.
        first: number of the first frame that has bodies; images begin at 0.

    Returns:
        (sequences, frames, 17, 3) mm of the first person, world z up.
    """
    numbers = SceneNumbers(fps=2.5, motions=MOTIONS, area=300.0)
    draws = Draws.from_seeds([(seed, s, p) for s in range(len(sequences)) for p in range(2)])
    joints = people(draws, GeneratedConfig(), num_frames, "train", numbers).double().numpy()
    joints = joints.reshape(len(sequences), 2, num_frames, 17, 3)
    joints[:, 1, ..., 0] += 900.0  # the second one stands aside
    K, R, t = dome_cameras()
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 6, (2 * SIDE, 2 * SIDE, 3)).astype(np.float32)
    for s, name in enumerate(sequences):
        folder = root / name
        (folder / "hdPose3d_stage1_coco19").mkdir(parents=True)
        write_calibration(folder / f"calibration_{name}.json", dist)
        shown = [[7, 3] if f in crowded else [7] for f in range(num_frames)]
        for f, ids in enumerate(shown):
            file = folder / f"hdPose3d_stage1_coco19/body3DScene_{f + first:08d}.json"
            bodies = {i: to_coco19(joints[s, int(i == 3), f]) @ TO_FILES.T for i in ids}
            write_bodies(file, bodies)
        for c in cameras:
            backdrop = backdrop_of(rng)
            frames = [backdrop.clip(0, 255).astype(np.uint8)] * first
            for f, ids in enumerate(shown):
                picture = backdrop
                for i in ids:
                    body = joints[s, int(i == 3), f]
                    pose = cv2.Rodrigues(R[c])[0], t[c], K[c], np.array(dist, np.float64)
                    xy = cv2.projectPoints(body, *pose)[0][:, 0]
                    depth = (body @ R[c].T + t[c])[:, 2]
                    scale = K[c, 0, 0] / depth
                    picture = draw_person(picture, xy, depth, scale, grain, rng)
                    picture = picture.astype(np.float32)
                frames.append(picture.astype(np.uint8))
            write_images(folder, CAMERAS[c], frames, videos)
    return joints[:, 0]


def write_images(folder: Path, camera: str, frames: list[np.ndarray], videos: bool) -> None:
    """A camera's frames, as a folder of JPEG files or a video."""
    if videos:
        path = folder / f"hdVideos/hd_{camera}.mp4"
        path.parent.mkdir(exist_ok=True)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 29.97, (SIDE, SIDE))
        for frame in frames:
            writer.write(frame)
        writer.release()
        return
    (folder / "hdImgs" / camera).mkdir(parents=True)
    for number, frame in enumerate(frames):
        path = folder / f"hdImgs/{camera}/{camera}_{number:08d}.jpg"
        cv2.imwrite(str(path), frame, [cv2.IMWRITE_JPEG_QUALITY, 95])
