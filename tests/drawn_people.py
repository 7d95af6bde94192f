"""A miniature data set in the Human3.6M layout: generated people, drawn limb by limb.

Bodies, motions and rigs are those of `ptri.people.scenes`, another person in every scene and
another rig for every subject. The right side is drawn in warm colours and the left in cold ones, so
that a network learns the sides from a thousand images; on photographs that takes far more.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from h36m_fixture import CAMERA_NAMES

from ptri.config import GeneratedConfig
from ptri.data.labels import NPY_NAME, Labels, write_npy
from ptri.data.transforms import project
from ptri.people.draws import Draws
from ptri.people.rigs import family_indices, sample_rigs
from ptri.people.scenes import SceneNumbers, people
from ptri.skeleton import H36M17

SIDE = 256  # px of an image
RADIUS = 55.0  # mm of a limb; the trunk is thicker
MOTIONS = ("walk", "stand")
_WARM, _COLD, _MIDDLE = (60, 90, 220), (220, 140, 50), (90, 190, 90)  # BGR


def make_drawn_people(
    root: Path, subjects: tuple[str, ...], num_scenes: int, num_frames: int, seed: int = 0
) -> None:
    """Writes images and labels of four cameras under ``root``.

    Args:
        num_scenes: of each subject. num_frames: of each scene, 2.5 a second.
        seed: of people, rigs and drawing.
    """
    S, A, T, V = len(subjects), num_scenes, num_frames, len(CAMERA_NAMES)
    actions = tuple(f"Walking-{number}" for number in range(1, A + 1))
    numbers = SceneNumbers(fps=2.5, motions=MOTIONS, area=600.0)
    draws = Draws.from_seeds([(seed, s, a) for s in range(S) for a in range(A)])
    joints = people(draws, GeneratedConfig(), T, "train", numbers).reshape(S, A * T, 17, 3)
    family = family_indices(["h36m_ring"]).expand(S)
    rig = sample_rigs(Draws.from_seeds([(seed, s) for s in range(S)]), family, joints, V, 0.0)
    scaled = rig.cameras.K.clone()
    scaled[..., :2, :] *= (SIDE / rig.size)[..., None]  # the family's images are square
    K, R, t = (part.double().numpy() for part in (scaled, rig.cameras.R, rig.cameras.t))
    joints = joints.double().numpy()
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 6, (2 * SIDE, 2 * SIDE, 3)).astype(np.float32)
    boxes = np.zeros((S, A * T, V, 4), np.int16)
    for s, v in np.ndindex(S, V):
        backdrop = backdrop_of(rng)
        for n in range(A * T):
            placed = project(joints[s, n], K[s, v], R[s, v], t[s, v])
            xy, depth = placed[:, :2], placed[:, 2]
            folder = "imageSequence-undistorted"
            path = root / "processed" / subjects[s] / actions[n // T] / folder / CAMERA_NAMES[v]
            path.mkdir(parents=True, exist_ok=True)
            scale = K[s, v, 0, 0] / depth
            image = draw_person(backdrop, xy, depth, scale, grain, rng)
            file = path / f"img_{20 * (n % T) + 1:06d}.jpg"
            cv2.imwrite(str(file), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
            margin = 120 * scale.max()  # mm around the joints
            left, top = np.floor(xy.min(0) - margin)
            right, bottom = np.ceil(xy.max(0) + margin)
            boxes[s, n, v] = top, left, bottom, right
    names = {"subject_names": subjects, "camera_names": CAMERA_NAMES, "action_names": actions}
    labels = Labels(
        **names,
        **{"K": K, "dist": np.zeros((S, V, 5)), "R": R, "t": t},
        subject=np.repeat(np.arange(S, dtype=np.int16), A * T),
        action=np.tile(np.repeat(np.arange(A, dtype=np.int16), T), S),
        frame=np.tile(20 * np.arange(T, dtype=np.int32), S * A),
        joints=joints.reshape(-1, 17, 3).astype(np.float32),
        boxes=boxes.reshape(-1, V, 4),
    )
    write_npy(root / "extra" / NPY_NAME, labels)


def backdrop_of(rng: np.random.Generator) -> np.ndarray:
    """A wall and a floor with a few boxes, of grey and brown."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    horizon = int(rng.uniform(0.4, 0.7) * SIDE)
    image[:horizon], image[horizon:] = rng.uniform(60, 200), rng.uniform(40, 160)
    for _ in range(6):
        x, y = rng.uniform(0, SIDE, 2)
        size = rng.uniform(10, 70, 2)
        color = tuple(float(c) for c in rng.uniform(40, 200) + rng.uniform(-15, 15, 3))
        corners = [tuple(np.rint((x, y) + sign * size).astype(int).tolist()) for sign in (-1, 1)]
        cv2.rectangle(image, *corners, color, -1)
    return cv2.GaussianBlur(image, (0, 0), 2.0)


def draw_person(backdrop, xy, depth, scale, grain, rng) -> np.ndarray:
    """Limbs as thick lines, the far ones first; light and grain differ from image to image."""
    image = backdrop * np.float32(rng.uniform(0.8, 1.15))
    for child, parent in sorted(H36M17.bones, key=lambda bone: -depth[list(bone)].mean()):
        name = H36M17.joints[child]
        color = _MIDDLE
        if name.startswith(("left", "right")):
            color = _COLD if name.startswith("left") else _WARM
        trunk = name in ("spine", "thorax")
        thickness = 2 * RADIUS * (1.8 if trunk else 1.0) * scale[[child, parent]].mean()
        shade = 0.75 + 0.5 * (child % 4) / 3
        ends = [tuple(np.rint(16 * xy[joint]).astype(int).tolist()) for joint in (child, parent)]
        width = max(round(thickness), 1)
        color = tuple(float(shade * c) for c in color)
        cv2.line(image, *ends, color, width, cv2.LINE_AA, 4)
    x, y = rng.integers(0, SIDE, 2)
    image += grain[y : y + SIDE, x : x + SIDE]
    return image.clip(0, 255).astype(np.uint8)
