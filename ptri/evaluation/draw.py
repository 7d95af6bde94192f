"""Pictures: keypoints over images, heatmaps, skeletons in 3D (rigs: `ptri.evaluation.draw_rig`).

Every function returns an RGB picture (H, W, 3) uint8; `save` writes one. Left limbs are orange,
right limbs blue, the middle and all truths grey; cameras keep one colour each in all pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from torch import Tensor

from ptri.data.transforms import denormalise
from ptri.geometry.rotations import upright_axes
from ptri.skeleton import H36M17, Skeleton

LEFT, RIGHT, MIDDLE, TRUTH = (235, 110, 40), (40, 125, 215), (95, 95, 105), (150, 150, 158)
CAMERA_COLOURS = (
    (213, 62, 79), (50, 136, 189), (77, 157, 66), (142, 84, 178),
    (230, 150, 30), (30, 160, 160), (200, 80, 150), (120, 100, 60),
)  # fmt: skip
INK, PAPER = (40, 42, 48), (255, 255, 255)
HEIGHT = 420  # px of an image drawn over, without its title
# Mahalanobis radius of the 90 % region: sqrt(chi2_2(0.9)) for every drawn 2D ellipse.
RADIUS_90 = 2.146
# Ellipses wider than this are drawn as rims, so that they do not hide the picture.
WIDE_MM, WIDE_SHARE = 250.0, 0.12  # in 3D; of the height of an image


def save(picture: np.ndarray, path: str | Path) -> None:
    """Writes a picture (H, W, 3) uint8 RGB as PNG or JPEG, making the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"{path}: cannot be written")


def joint_colour(name: str) -> tuple[int, int, int]:
    """RGB of a joint by its side."""
    return LEFT if name.startswith("left_") else RIGHT if name.startswith("right_") else MIDDLE


def overlay(
    image: np.ndarray,
    skeleton: Skeleton,
    xy: np.ndarray,
    covariance: np.ndarray | None = None,
    reprojected: np.ndarray | None = None,
    title: str = "",
    height: int = HEIGHT,
) -> np.ndarray:
    """One view: keypoints with their 90 % ellipses, and the 3D estimate's projection over them.

    Args:
        image: (H, W, 3) uint8 RGB. xy: (J, 2) px, NaN = not seen. covariance: (J, 2, 2) px^2.
        reprojected: (J, 2) px of the same joints, drawn as the coloured skeleton; without it the
            keypoints themselves are. title: one line. height: px of the picture without title.
    """
    canvas, place = _enlarged(image, height)
    canvas = cv2.addWeighted(canvas, 0.8, np.full_like(canvas, 255), 0.2, 0)
    colours = [joint_colour(name) for name in skeleton.joints]
    thick = max(2, round(height / 150))
    if covariance is not None:
        layer = canvas.copy()
        for centre, matrix, colour in zip(_fixed(place(xy)), covariance, colours):
            _ellipse(layer, centre, matrix * (height / image.shape[0]) ** 2, colour)
        canvas = cv2.addWeighted(layer, 0.5, canvas, 0.5, 0)
    _limbs(canvas, skeleton, place(xy if reprojected is None else reprojected), thick)
    for centre, colour in zip(_fixed(place(xy)), colours):
        if centre:
            cv2.circle(canvas, centre, (thick + 1) << 4, PAPER, -1, cv2.LINE_AA, 4)
            cv2.circle(canvas, centre, thick << 4, colour, -1, cv2.LINE_AA, 4)
    return _titled(canvas, title)


def heatmap_picture(image: Tensor, logits: Tensor, xy: Tensor, title: str = "") -> np.ndarray:
    """Heatmaps laid over their image, each joint's scaled to its own peak.

    Args:
        image: (3, H, W), normalised. logits: (J, h, w) of the heatmaps.
        xy: (J, 2) px of the image, true keypoints, drawn as crosses.
    """
    canvas, place = _enlarged(denormalise(image.cpu().numpy()), HEIGHT)
    grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)[..., None] * 0.6
    heat = (logits - logits.amax((1, 2), keepdim=True)).exp().amax(0).float().cpu().numpy()
    strength = cv2.resize(heat, canvas.shape[1::-1])[..., None].clip(0, 1)
    colours = cv2.applyColorMap((strength * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = 0.85 * strength**0.5
    canvas = grey * (1 - opacity) + colours[..., ::-1] * opacity
    canvas = np.ascontiguousarray(canvas.clip(0, 255).astype(np.uint8))
    for centre in _fixed(place(xy.cpu()), bits=0):
        if centre:
            cv2.drawMarker(canvas, centre, (90, 220, 255), cv2.MARKER_CROSS, 11, 1, cv2.LINE_AA)
    return _titled(canvas, title)


def skeleton_sides(
    joints: np.ndarray,
    covariance: np.ndarray | None = None,
    truth: np.ndarray | None = None,
    up: np.ndarray = (0.0, -1.0, 0.0),
    title: str = "",
) -> np.ndarray:
    """Human3.6M's 3D skeleton from the front and the side (orthographic), with 90 % ellipses.

    Args:
        joints: (17, 3) mm. covariance: (17, 3, 3) mm^2. truth: (17, 3) mm, drawn in grey, moved so
            that the mean joints coincide. up: (3,) direction in the joints' frame.
    """
    axes = _body_axes(joints, np.asarray(up, np.float64))  # rows: right, up, front
    origin = np.nanmean(joints, 0)
    figure = Figure(figsize=(7.6, 5.6), dpi=100, facecolor="white")
    local = (joints - origin) @ axes.T
    shown, notes = [local], ["ellipses: 90 %"] if covariance is not None else []
    if truth is not None:
        notes.append("grey: truth")
        both = np.isfinite(joints).all(-1) & np.isfinite(truth).all(-1)
        shown.append((truth - truth[both].mean(0) + joints[both].mean(0) - origin) @ axes.T)
    low = np.nanmin(np.concatenate(shown), 0) - 90
    high = np.nanmax(np.concatenate(shown), 0) + 90
    middle, tall = (low + high) / 2, (high - low)[1] / 2
    wide = max(0.75 * tall, (high - low)[[0, 2]].max() / 2)
    tall = max(tall, 0.7 * wide)
    for index, (horizontal, side) in enumerate(((0, "from the front"), (2, "from the side"))):
        plot = figure.add_subplot(1, 2, index + 1)
        pick = [horizontal, 1]
        if truth is not None:
            plot_limbs(plot, H36M17, shown[1][:, pick], 2.0, TRUTH, "--")
        if covariance is not None:
            for joint, name in enumerate(H36M17.joints):
                flat = (axes @ covariance[joint] @ axes.T)[np.ix_(pick, pick)]
                _plot_ellipse(plot, local[joint, pick], flat, joint_colour(name))
        plot_limbs(plot, H36M17, local[:, pick], 3.2, None, "-")
        x, y = middle[pick]
        plot.set(xlim=(x - wide, x + wide), ylim=(y - tall, y + tall))
        quiet(plot, side)
    figure.text(0.02, 0.015, "left", color=rgb(LEFT), fontsize=10, weight="bold")
    figure.text(0.075, 0.015, "right", color=rgb(RIGHT), fontsize=10, weight="bold")
    figure.text(0.15, 0.015, "   ".join(notes), color=rgb(TRUTH), fontsize=10)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.87, bottom=0.13, wspace=0.2)
    return finish(figure, title)


def beside(pictures: Sequence[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Pictures in a grid on white, each row as high as its highest picture."""
    columns = columns or len(pictures)
    strips = []
    for start in range(0, len(pictures), columns):
        row = pictures[start : start + columns]
        height = max(len(picture) for picture in row)
        pads = [((0, height - len(picture)), (4, 4), (0, 0)) for picture in row]
        strips.append(np.hstack(list(map(_padded, row, pads))))
    width = max(strip.shape[1] for strip in strips)
    spare = [width - strip.shape[1] for strip in strips]
    pads = [((4, 4), (each // 2, each - each // 2), (0, 0)) for each in spare]
    return np.vstack(list(map(_padded, strips, pads)))


# --- on images -------------------------------------------------------------------------------


def _enlarged(
    image: np.ndarray, height: int
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The image at another height, and a function that takes points (n, 2) px there."""
    scale = height / image.shape[0]
    size = (round(image.shape[1] * scale), height)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = cv2.resize(image, size, interpolation=kind)
    return canvas, lambda points: (np.asarray(points, np.float64) + 0.5) * scale - 0.5


def _padded(picture: np.ndarray, pad: tuple) -> np.ndarray:
    return np.pad(picture, pad, constant_values=255)


def _fixed(points: np.ndarray, bits: int = 4) -> list[tuple[int, ...] | None]:
    """OpenCV's fixed-point coordinates with some fractional bits; None: nothing can be drawn."""
    inside = (np.abs(points) < 1e4).all(-1)  # not so where NaN
    return [tuple(map(int, p)) if ok else None for p, ok in zip((points * 2**bits).round(), inside)]


def _limbs(canvas: np.ndarray, skeleton: Skeleton, points: np.ndarray, thick: int) -> None:
    ends = _fixed(points)
    for width, fixed in ((thick + 2, PAPER), (thick, None)):  # a white rim, then the colour
        for child, parent in skeleton.bones:
            if ends[child] and ends[parent]:
                colour = fixed or joint_colour(skeleton.joints[child])
                cv2.line(canvas, ends[child], ends[parent], colour, width, cv2.LINE_AA, 4)


def _ellipse(canvas: np.ndarray, centre: tuple | None, covariance: np.ndarray, colour) -> None:
    if centre is None or not np.isfinite(covariance).all():
        return
    axes, angle = _ellipse_90(covariance)
    if axes.max() > 1e3:
        return
    lengths = [max(1, int(length * 16)) for length in axes]
    filled = -1 if axes.max() < WIDE_SHARE * canvas.shape[0] else 1
    cv2.ellipse(canvas, centre, lengths, angle, 0, 360, colour, filled, cv2.LINE_AA, 4)


def _ellipse_90(covariance: np.ndarray) -> tuple[np.ndarray, float]:
    """The 90 % ellipse of a covariance (2, 2): half axes (2,), the longer first; its angle, deg."""
    values, vectors = np.linalg.eigh(covariance)
    axes = RADIUS_90 * np.sqrt(values[::-1].clip(0))
    return axes, float(np.degrees(np.arctan2(vectors[1, 1], vectors[0, 1])))


def _titled(canvas: np.ndarray, title: str) -> np.ndarray:
    if not title:
        return canvas
    strip = np.full((26, canvas.shape[1], 3), 255, np.uint8)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.48
    width = cv2.getTextSize(title, font, scale, 1)[0][0]
    scale *= min(1.0, (canvas.shape[1] - 8) / max(width, 1))
    cv2.putText(strip, title, (4, 18), font, scale, INK, 1, cv2.LINE_AA)
    return np.concatenate([strip, canvas], 0)


# --- on Matplotlib's plots -------------------------------------------------------------------


def rgb(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    return tuple(value / 255 for value in colour)  # type: ignore[return-value]


def finish(figure: Figure, title: str) -> np.ndarray:
    """The figure with its title as a picture."""
    figure.suptitle(title, fontsize=11, color=rgb(INK))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def quiet(plot, title: str) -> None:
    """A plot in mm with a faint grid and no frame."""
    plot.set(aspect="equal", xlabel="mm")
    plot.set_title(title, fontsize=10, color=rgb(INK))
    plot.grid(True, color=(0.92, 0.92, 0.93), linewidth=0.8)
    plot.set_axisbelow(True)
    plot.tick_params(labelsize=8, colors=rgb(MIDDLE), length=0)
    plot.xaxis.label.set(fontsize=8, color=rgb(MIDDLE))
    for side in plot.spines.values():
        side.set_visible(False)


def plot_limbs(plot, skeleton: Skeleton, points: np.ndarray, width: float, colour, style) -> None:
    """Draws the bones of joints (J, 2), or (J, 3) in a 3D plot; colour None: by side."""
    for child, parent in skeleton.bones:
        pair = points[[child, parent]]
        shade = rgb(colour or joint_colour(skeleton.joints[child]))
        plot.plot(*pair.T, style, color=shade, lw=width, solid_capstyle="round")


def _plot_ellipse(plot, centre: np.ndarray, covariance: np.ndarray, colour) -> None:
    if not (np.isfinite(centre).all() and np.isfinite(covariance).all()):
        return
    axes, angle = _ellipse_90(covariance)
    filled = 0.22 if axes.max() < WIDE_MM else 0.0  # a joint hardly known: a rim only
    style = {"facecolor": (*rgb(colour), filled), "edgecolor": (*rgb(colour), 0.6), "lw": 0.8}
    plot.add_patch(Ellipse(centre, *(2 * axes), angle=angle, **style))


def _body_axes(joints: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Rows: image-right when facing the person (the person's left), up, towards the viewer."""
    place = H36M17.joints.index
    pairs = [(place(f"left_{part}"), place(f"right_{part}")) for part in ("hip", "shoulder")]
    across = np.nansum([joints[left] - joints[right] for left, right in pairs], 0, np.float64)
    if np.linalg.norm(np.cross(across, up)) < 1e-6:  # neither hips nor shoulders
        across = np.cross(up, [0.0, 0.0, 1.0]) + 1e-9
    return upright_axes(torch.from_numpy(across), torch.from_numpy(up)).numpy()
