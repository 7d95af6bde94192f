"""Pictures of a rig: its cameras with their posterior samples, beside the true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from mpl_toolkits.mplot3d.art3d import Line3DCollection

from ptri.evaluation.draw import (
    CAMERA_COLOURS,
    INK,
    MIDDLE,
    TRUTH,
    joint_colour,
    plot_limbs,
    quiet,
    render,
    rgb,
)
from ptri.skeleton import Skeleton


def rig_picture(
    R: np.ndarray,
    t: np.ndarray,
    samples_t: np.ndarray | None = None,
    samples_R: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    R_true: np.ndarray | None = None,
    t_true: np.ndarray | None = None,
    skeleton: Skeleton | None = None,
    joints: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    up: np.ndarray = (0.0, -1.0, 0.0),
    title: str = "",
    truth_name: str = "true cameras",
    num_shown: int = 120,
) -> np.ndarray:
    """The rig in perspective and from above: cameras, posterior samples, true cameras in grey.

    All in the reference camera's frame; the true rig is scaled to the estimate's baselines.

    Args:
        R, t: (V, 3, 3), (V, 3) mm, the estimate. samples_R, samples_t: (M, V, 3, 3), (M, V, 3).
        weights: (M,) summing to one. R_true, t_true: true extrinsics relative to view 0.
        joints: (J, 3) mm, a person to draw. up: (3,) direction in the reference frame.
        truth_name: what the grey cameras are called.
        num_shown: samples drawn (by weight, with a fixed seed).
    """
    axes = _level_axes(np.asarray(up, np.float64), R)
    centre = -np.einsum("vij,vi->vj", R, t)
    names = list(names) if names is not None else [f"view {v}" for v in range(len(R))]
    size = 0.09 * max(np.linalg.norm(centre - centre.mean(0), axis=1).max(), 300.0)
    figure = Figure(figsize=(10.6, 5.4), dpi=100, facecolor="white")
    space = figure.add_axes([0.0, 0.05, 0.55, 0.86], projection="3d", computed_zorder=False)
    plan = figure.add_axes([0.62, 0.13, 0.36, 0.74])
    cloud = None
    if samples_t is not None:
        chosen = np.random.default_rng(0).choice(len(samples_t), num_shown, p=weights)
        cloud = -np.einsum("mvij,mvi->mvj", samples_R[chosen], samples_t[chosen])
        looks = samples_R[chosen][:, :, 2]  # viewing directions
    everything = [centre] + ([joints] if joints is not None else [])
    if R_true is not None:
        true_centre = -np.einsum("vij,vi->vj", R_true, t_true)
        baseline = np.linalg.norm(true_centre, axis=1).sum()
        ratio = np.linalg.norm(centre, axis=1).sum() / max(baseline, 1e-9)
        everything.append(true_centre * ratio)
        for v in range(len(R)):
            _frustum(space, plan, axes, true_centre[v] * ratio, R_true[v], size, TRUTH, 1.6)
    for v in range(len(R)):
        colour = CAMERA_COLOURS[v % len(CAMERA_COLOURS)]
        if cloud is not None and v > 0:
            points = cloud[:, v] @ axes.T
            ends = points + (looks[:, v] @ axes.T) * 2.5 * size
            style = {"color": rgb(colour), "alpha": 0.10, "linewidth": 0.8}
            for a, b in zip(points, ends):
                plan.plot([a[0], b[0]], [a[2], b[2]], **style)
            segments = np.stack([points, ends], 1)[..., [0, 2, 1]]
            space.add_collection3d(Line3DCollection(segments, colors=[(*rgb(colour), 0.08)]))
            plan.scatter(points[:, 0], points[:, 2], s=7, color=rgb(colour), alpha=0.25, lw=0)
            space.scatter(*points[:, [0, 2, 1]].T, s=6, color=rgb(colour), alpha=0.25, lw=0)
        _frustum(space, plan, axes, centre[v], R[v], size, colour, 2.2)
        x, y, z = axes @ centre[v]
        label = {"color": rgb(colour), "fontsize": 9, "weight": "bold"}
        space.text(x, z, y + 1.6 * size, names[v], ha="center", **label)
        outward = np.array([x, z]) - (axes @ np.mean(everything[0], 0))[[0, 2]]
        outward = outward / max(np.linalg.norm(outward), 1e-9) * 2.6 * size
        plan.text(x + outward[0], z + outward[1], names[v], ha="center", va="center", **label)
    if joints is not None:
        person = joints @ axes.T
        plot_limbs(plan, skeleton, person[:, [0, 2]], 2.0, None, "-")
        for child, parent in skeleton.bones:
            pair = person[[child, parent]]
            colour = rgb(joint_colour(skeleton.joints[child]))
            space.plot(pair[:, 0], pair[:, 2], pair[:, 1], color=colour, lw=2.2)
    _frame_space(space, np.concatenate(everything) @ axes.T, size)
    points = (np.concatenate(everything) @ axes.T)[:, [0, 2]]
    low, high = np.nanmin(points, 0), np.nanmax(points, 0)
    middle, reach = (low + high) / 2, (high - low).max() / 2
    reach += 4.6 * size
    plan.set(
        xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach)
    )
    plan.set(aspect="equal", xlabel="mm", title="from above")
    plan.title.set_fontsize(10)
    quiet(plan)
    notes = "grid: 1 m" + ("    dots and fans: posterior samples" if cloud is not None else "")
    notes += f"    grey: {truth_name}, view 0 and scale aligned" if R_true is not None else ""
    figure.text(0.02, 0.02, notes, color=rgb(MIDDLE), fontsize=10)
    figure.suptitle(title, fontsize=11, color=rgb(INK))
    return render(figure)


def _level_axes(up: np.ndarray, R: np.ndarray) -> np.ndarray:
    """Rows: right, up, away from the reference camera along the floor."""
    up = up / np.linalg.norm(up)
    forward = R[0, 2] - (R[0, 2] @ up) * up
    if np.linalg.norm(forward) < 1e-3:  # it looks straight down
        forward = -R[0, 1] + (R[0, 1] @ up) * up
    forward = forward / np.linalg.norm(forward)
    return np.stack([np.cross(up, forward) * -1, up, forward])


def _frustum(space, plan, axes, centre, R, size, colour, width) -> None:
    """A camera's pyramid in both plots; plot coordinates are (right, away, up)."""
    corners = np.array([[-0.7, -0.7, 1.8], [0.7, -0.7, 1.8], [0.7, 0.7, 1.8], [-0.7, 0.7, 1.8]])
    corners = (centre + size * corners @ R) @ axes.T
    tip = axes @ centre
    segments = [(tip, corner) for corner in corners]
    segments += [(corners[i], corners[(i + 1) % 4]) for i in range(4)]
    lines = np.array(segments)[..., [0, 2, 1]]
    space.add_collection3d(Line3DCollection(lines, colors=[rgb(colour)], linewidths=width))
    for a, b in segments:
        plan.plot([a[0], b[0]], [a[2], b[2]], color=rgb(colour), lw=width * 0.7)


def _frame_space(space, points: np.ndarray, size: float) -> None:
    low, high = np.nanmin(points, 0) - 1.5 * size, np.nanmax(points, 0) + 1.5 * size
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
