"""Pictures of a rig: its cameras with their posterior samples, beside the true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from ptri.evaluation.draw import CAMERA_COLOURS, MIDDLE, TRUTH, finish, plot_limbs, quiet, rgb
from ptri.geometry.cameras import centres
from ptri.geometry.rotations import upright_axes
from ptri.posterior.moments import posterior_mean
from ptri.skeleton import H36M17
from ptri.structures import Cameras, RigPosterior, to_device

SHOWN = 120  # samples drawn, by weight, with a fixed seed


def up_direction(R: np.ndarray) -> np.ndarray:
    """Roughly up in the reference frame, (3,): against the mean of the y axes of R (V, 3, 3)."""
    return -R[:, 1].mean(0)


def rig_picture(
    posterior: RigPosterior,
    joints: np.ndarray,
    names: Sequence[str],
    truth: Cameras | None = None,
    title: str = "",
    truth_name: str = "true cameras",
) -> np.ndarray:
    """The rig in perspective and from above: cameras, posterior samples, true cameras in grey.

    All in the reference camera's frame; the true rig is scaled to the estimate's baselines.

    Args:
        posterior: of one rig (B = 1).
        joints: (17, 3) mm, a person to draw. names: of the V cameras.
        truth: R (V, 3, 3), t (V, 3) relative to view 0. truth_name: what they are called.
    """
    posterior = to_device(posterior, torch.device("cpu"))
    R, t = (part[0].double() for part in posterior_mean(posterior))
    centre, R = centres(R, t).numpy(), R.numpy()
    up, (_, down, forward) = up_direction(R), R[0]
    if np.linalg.norm(np.cross(forward, up)) < 1e-3 * np.linalg.norm(up):
        forward = -down  # it looks straight down
    # Rows: right, up, away from the reference camera along the floor.
    axes = upright_axes(*map(torch.from_numpy, (forward, up))).flip(0).numpy()
    size = 0.09 * max(np.linalg.norm(centre - centre.mean(0), axis=1).max(), 300.0)
    figure = Figure(figsize=(10.6, 5.4), dpi=100, facecolor="white")
    space = figure.add_axes([0.0, 0.05, 0.55, 0.86], projection="3d", computed_zorder=False)
    plan = figure.add_axes([0.62, 0.13, 0.36, 0.74])
    plots, shown = (space, plan, axes), [centre, joints]
    notes = ["grid: 1 m", "dots and fans: posterior samples"]
    weights = posterior.log_weights[:, 0].double().exp()
    weights = (weights / weights.sum()).numpy()
    chosen = np.random.default_rng(0).choice(len(weights), SHOWN, p=weights)
    samples = posterior.R[chosen, 0], posterior.t[chosen, 0]
    _samples(*plots, centres(*samples).numpy(), samples[0].numpy(), 2.5 * size)
    if truth is not None:
        notes.append(f"grey: {truth_name}, view 0 and scale aligned")
        centre_true = centres(truth.R, truth.t).cpu().numpy()
        baseline = np.linalg.norm(centre_true, axis=1).sum()
        # 1e-9 mm guards true cameras that all stand in one place.
        centre_true *= np.linalg.norm(centre, axis=1).sum() / max(baseline, 1e-9)
        shown.append(centre_true)
        for place, turn in zip(centre_true, truth.R.cpu().numpy()):
            _frustum(*plots, place, turn, size, TRUTH, 1.6)
    for v, name in enumerate(names):
        colour = CAMERA_COLOURS[v % len(CAMERA_COLOURS)]
        _frustum(*plots, centre[v], R[v], size, colour, 2.2)
        _label(*plots, name, centre[v], centre.mean(0), size, colour)
    person = joints @ axes.T
    plot_limbs(plan, H36M17, person[:, [0, 2]], 2.0, None, "-")
    plot_limbs(space, H36M17, person[:, [0, 2, 1]], 2.2, None, "-")
    points = np.concatenate(shown) @ axes.T
    low, high = np.nanmin(points, 0), np.nanmax(points, 0)
    _frame_space(space, low - 1.5 * size, high + 1.5 * size)
    x, _, y = (low + high) / 2
    reach = (high - low)[[0, 2]].max() / 2 + 4.6 * size
    plan.set(xlim=(x - reach, x + reach), ylim=(y - reach, y + reach))
    quiet(plan, "from above")
    figure.text(0.02, 0.02, "    ".join(notes), color=rgb(MIDDLE), fontsize=10)
    return finish(figure, title)


def _samples(space, plan, axes, centre: np.ndarray, R: np.ndarray, length: float) -> None:
    """Where the cameras' samples (M, V, ...) stand, and a line of that length where they look."""
    ends = np.stack([centre, centre + length * R[:, :, 2]], 2) @ axes.T  # (M, V, 2, 3)
    for v in range(1, R.shape[1]):  # view 0 is the reference: its samples are equal
        colour, line = rgb(CAMERA_COLOURS[v % len(CAMERA_COLOURS)]), ends[:, v]
        plan.plot(line[..., 0].T, line[..., 2].T, color=colour, alpha=0.10, linewidth=0.8)
        space.add_collection3d(Line3DCollection(line[..., [0, 2, 1]], color=(*colour, 0.08)))
        plan.scatter(line[:, 0, 0], line[:, 0, 2], s=7, color=colour, alpha=0.25, lw=0)
        space.scatter(*line[:, 0, [0, 2, 1]].T, s=6, color=colour, alpha=0.25, lw=0)


def _frustum(space, plan, axes, centre, R, size, colour, width) -> None:
    """A camera's pyramid in both plots; plot coordinates are (right, away, up)."""
    corners = np.array([[-0.7, -0.7, 1.8], [0.7, -0.7, 1.8], [0.7, 0.7, 1.8], [-0.7, 0.7, 1.8]])
    corners = (centre + size * corners @ R) @ axes.T
    tips = np.broadcast_to(axes @ centre, (4, 3))
    starts, ends = [tips, corners], [corners, np.roll(corners, -1, 0)]
    edges = np.stack([np.concatenate(starts), np.concatenate(ends)], 1)  # (8, 2, 3)
    lines = Line3DCollection(edges[..., [0, 2, 1]], color=rgb(colour), linewidth=width)
    space.add_collection3d(lines)
    plan.plot(edges[..., 0].T, edges[..., 2].T, color=rgb(colour), lw=width * 0.7)


def _label(space, plan, axes, name, centre, middle, size, colour) -> None:
    """A camera's name above it, and from above on the side away from the rig's middle."""
    style = {"color": rgb(colour), "fontsize": 9, "weight": "bold", "ha": "center"}
    x, z, y = axes @ centre
    space.text(x, y, z + 1.6 * size, name, **style)
    outward = (axes @ (centre - middle))[[0, 2]]
    # 1e-9 mm guards a camera in the rig's middle.
    outward *= 2.6 * size / max(np.linalg.norm(outward), 1e-9)
    plan.text(x + outward[0], y + outward[1], name, va="center", **style)


def _frame_space(space, low: np.ndarray, high: np.ndarray) -> None:
    space.set(xlim=(low[0], high[0]), ylim=(low[2], high[2]), zlim=(low[1], high[1]))
    space.set_box_aspect((high - low)[[0, 2, 1]], zoom=1.3)
    space.view_init(elev=22, azim=-62)
    for axis in (space.xaxis, space.yaxis, space.zaxis):
        axis.set_pane_color((0.965, 0.967, 0.972, 1.0))
        axis._axinfo["grid"].update(color=(0.88, 0.88, 0.9, 1.0), linewidth=0.6)
        axis.line.set_color((0.85, 0.85, 0.87, 1.0))
        axis.set_major_locator(MultipleLocator(1000))
        axis.set_ticklabels([])
        axis.set_tick_params(length=0, color=(1, 1, 1, 0))
