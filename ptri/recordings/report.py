"""What is said and drawn about a solved recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptri.config import Config
from ptri.evaluation import draw as visualize
from ptri.evaluation import metrics
from ptri.evaluation.draw_rig import rig_picture
from ptri.evaluation.evaluate import spread
from ptri.evaluation.pictures import rig_of, up_direction
from ptri.geometry.cameras import centres, normalised_to_pixel
from ptri.geometry.robust import robust_triangulation
from ptri.recordings.keypoint_files import Recording, distort
from ptri.recordings.solve import Solution, camera_spread, reference_cameras
from ptri.recordings.video_files import read_frame, videos_by_camera
from ptri.rig.check import default_covariance
from ptri.skeleton import H36M17
from ptri.structures import Cameras, Keypoints

CLEAR = 0.3  # keypoints of at least this confidence count in the reprojection error
HALVED_AT = 0.02  # of the person's extent in the view: so far off, a keypoint counts half


def reprojection_error(recording: Recording, views: list[int], R: Tensor, t: Tensor) -> Tensor:
    """How far clear keypoints lie from their joints' projections, (T, V, J) px.

    The joints are triangulated from these keypoints with the given cameras, without any prior, so
    that two sets of cameras compare fairly. The triangulation is robust (Cauchy weights), because
    a detector now and then takes one side for the other. NaN where a keypoint is less confident
    than `CLEAR`, or fewer than three views (of two: two) see its joint clearly.

    Args:
        R, t: (V, 3, 3), (V, 3) mm of the views.
    """
    clear = torch.tensor(recording.confidence[:, views] >= CLEAR)
    clear &= clear.sum(1, keepdim=True) >= min(3, len(views))
    xy = torch.where(clear[..., None], torch.tensor(recording.xy[:, views]), torch.nan)
    keypoints = Keypoints(xy, default_covariance(xy, HALVED_AT), torch.ones_like(xy[..., 0]))
    K, R, t = torch.tensor(recording.K[views]), R.double(), t.double()
    rig = Cameras(K.expand(1, len(xy), -1, -1, -1), R[None], t[None])
    batch = Keypoints(*(part[None] for part in keypoints))
    joints = robust_triangulation(batch, rig, cauchy=1.0)[0].joints3d[0]  # (T, J, 3)
    camera = torch.einsum("vik,tjk->tvji", R, joints) + t[:, None]
    return (normalised_to_pixel(camera[..., :2] / camera[..., 2:], K) - xy).norm(dim=-1)


def figures_of(recording: Recording, solution: Solution) -> dict[str, object]:
    """The figures of metrics.json."""
    views, posterior = solution.views, solution.posterior
    error = reprojection_error(recording, views, solution.R, solution.t)
    figures: dict[str, object] = {
        "views": len(views),
        "frames": len(recording.frames),
        "frames_pooled": len(solution.pooled),
        "accepted": bool(posterior.accepted[0]),
        "verdict": posterior.reason[0],
        "scale": solution.scale_source,
        "effective_sample_size": float(posterior.ess[0]),
        "reprojection_error_px_median": _median(error),
    }
    for v, view in enumerate(views):
        figures[f"reprojection_error_px_median/{recording.names[view]}"] = _median(error[:, v])
    figures.update(_against_reference(recording, solution))
    for stage, value in solution.seconds.items():
        figures[f"seconds/{stage}"] = value
    return figures


def _against_reference(recording: Recording, solution: Solution) -> dict[str, object]:
    reference = reference_cameras(recording, solution.views)
    if reference is None:
        return {}
    R, t = solution.R.double(), solution.t.double()
    rotation = metrics.rotation_error_deg(R, reference.R)
    direction = metrics.translation_direction_error_deg(R, t, reference.R, reference.t)
    error = reprojection_error(recording, solution.views, reference.R, reference.t)
    level = metrics.rotation_level(solution.posterior, reference.R[None].double())[0]
    ratio = centres(R, t)[1:].norm(dim=-1).sum() / centres(*reference[1:])[1:].norm(dim=-1).sum()
    result: dict[str, object] = {
        "rotation_difference_deg_median": float(rotation.median()),
        "rotation_difference_deg_worst": float(rotation.max()),
        "translation_direction_difference_deg_median": float(direction.median()),
        "translation_direction_difference_deg_worst": float(direction.max()),
        "scale_over_reference": float(ratio),
        "reprojection_error_px_median/reference": _median(error),
    }
    names = [recording.names[v] for v in solution.views]
    for name, value in zip(names[1:], level):
        result[f"reference_in_region/{name}"] = float(value)
    for (i, j), a, b in zip(metrics.view_pairs(len(names)), rotation, direction):
        result[f"rotation_difference_deg/{names[i]}-{names[j]}"] = float(a)
        result[f"translation_direction_difference_deg/{names[i]}-{names[j]}"] = float(b)
    return result


def text_of(recording: Recording, solution: Solution, figures: dict) -> str:
    """The printed report."""
    views = solution.views
    names = [recording.names[v] for v in views]
    pairs = metrics.view_pairs(len(names))
    position = centres(solution.R, solution.t).numpy()
    rotation_std, centre_std = camera_spread(solution)
    first, last = recording.frames[0], recording.frames[-1]
    lines = [
        f"{len(recording.frames)} frames ({first} to {last}), {len(names)} cameras, "
        f"{recording.skeleton.name} keypoints; the cameras come from {len(solution.pooled)} frames",
        f"verdict: {'accepted' if figures['accepted'] else 'REJECTED: ' + figures['verdict']}",
        f"scale: {solution.scale_source}",
        "",
        f"{'camera':<12}{'centre x, y, z in the frame of ' + names[0] + ', mm':>48}"
        f"{'+- mm':>8}{'rotation +- deg':>18}{'reprojection, px':>18}",
    ]
    for v, name in enumerate(names):
        x, y, z = position[v]
        error = figures[f"reprojection_error_px_median/{name}"]
        lines.append(
            f"{name:<12}{f'{x:.0f}, {y:.0f}, {z:.0f}':>48}{centre_std[v]:>8.0f}"
            f"{rotation_std[v]:>18.2f}{error:>18.1f}"
        )
    left_out = [name for v, name in enumerate(recording.names) if v not in views]
    lines += [f"{name:<12}{'not solved: too few keypoints':>48}" for name in left_out]
    lines.append("")
    reference = "rotation_difference_deg_median" in figures
    if reference:
        lines.append(f"{'difference from the reference, deg':<36}{'rotation':>12}{'direction':>12}")
        for i, j in pairs:
            pair = f"{names[i]}-{names[j]}"
            rotation = figures[f"rotation_difference_deg/{pair}"]
            direction = figures[f"translation_direction_difference_deg/{pair}"]
            lines.append(f"  {names[i] + ' - ' + names[j]:<34}{rotation:>12.2f}{direction:>12.2f}")
        for word in ("median", "worst"):
            rotation = figures[f"rotation_difference_deg_{word}"]
            direction = figures[f"translation_direction_difference_deg_{word}"]
            lines.append(f"  {word:<34}{rotation:>12.2f}{direction:>12.2f}")
        levels = [f"{100 * figures[f'reference_in_region/{name}']:.1f} %" for name in names[1:]]
        text = f"the reference's rotations lie in the stated regions of {', '.join(levels)}"
        lines += [f"  {text} ({', '.join(names[1:])})"]
        lines += [f"  scale over the reference: {figures['scale_over_reference']:.3f}", ""]
    error = f"{figures['reprojection_error_px_median']:.1f} px"
    if reference:
        error += f"; of the reference {figures['reprojection_error_px_median/reference']:.1f} px"
    lines += [
        f"reprojection error, median of keypoints of confidence >= {CLEAR:g} after robust "
        f"triangulation: {error}",
        "",
    ]
    seconds = solution.seconds
    each = 1000 * seconds["fusion"] / len(recording.frames)
    lines.append(f"time: rig posterior {seconds['posterior']:.2f} s, fusion {each:.1f} ms a frame")
    return "\n".join(lines)


# --- pictures --------------------------------------------------------------------------------


def draw(folder: Path, recording: Recording, solution: Solution, config: Config) -> None:
    """Draws the rig, and overlays and skeletons of evenly spread frames."""
    names = [recording.names[v] for v in solution.views]
    R, t = solution.R.double(), solution.t.double()
    up = up_direction(R.numpy())
    seen = torch.isfinite(solution.prediction.joints3d).all(-1).any(-1).nonzero()[:, 0].tolist()
    chosen = [seen[i] for i in spread(len(seen), max(config.evaluate.pictures, 1))]
    reference = reference_cameras(recording, solution.views)
    truth, title = (None, None), f"{len(solution.pooled)} frames pooled"
    if reference is not None:
        truth = (reference.R.numpy(), reference.t.numpy())
        error = metrics.rotation_error_deg(R, reference.R)
        title += (
            f": rotation differs from the reference by {error.median():.1f} deg (median), "
            f"{error.max():.1f} deg (worst)"
        )
    sample_R, sample_t, weights = rig_of(solution.posterior, 0)[1]
    joints = solution.prediction.joints3d[chosen[len(chosen) // 2]].numpy()
    picture = rig_picture(
        R.numpy(),
        t.numpy(),
        sample_t,
        sample_R,
        weights,
        *truth,
        H36M17,
        joints,
        names,
        up,
        title,
        "reference",
    )
    visualize.save(picture, folder / "rig.png")
    if not config.evaluate.pictures:
        return
    videos = find_videos(recording, config)
    for row in chosen:
        frame = int(recording.frames[row])
        views = [_overlay(recording, solution, row, v, videos) for v in range(len(solution.views))]
        visualize.save(visualize.beside(views), folder / f"frame_{frame:06d}_views.jpg")
        side = visualize.skeleton_sides(
            H36M17, solution.prediction.joints3d[row].numpy(),
            solution.prediction.covariance[row].numpy(), None, up, f"frame {frame}",
        )  # fmt: skip
        visualize.save(side, folder / f"frame_{frame:06d}_skeleton.png")


def _overlay(recording: Recording, solution: Solution, row: int, v: int, videos) -> np.ndarray:
    """One view: the video's frame, the detector's points, its joints' projection; cropped."""
    view = solution.views[v]
    name, K, dist = recording.names[view], recording.K[view], recording.dist[view]
    size = recording.size[view]
    frame = int(recording.frames[row])
    image = read_frame(videos[name], frame) if name in videos else None
    if image is None:
        image = np.full((size[1], size[0], 3), 225, np.uint8)
    joints = solution.native.joints3d[row].double()
    camera = joints @ solution.R[v].double().T + solution.t[v].double()
    projected = distort((camera[:, :2] / camera[:, 2:]).numpy() @ K[:2, :2].T + K[:2, 2], K, dist)
    points = distort(recording.xy[row, view], K, dist)
    error = np.linalg.norm(projected - points, axis=1)
    error = error[np.isfinite(error)]
    text = f"median {np.median(error):.1f} px" if len(error) else "not seen"
    left, top, right, bottom = _crop(np.concatenate([projected, points]), image.shape)
    return visualize.overlay(
        np.ascontiguousarray(image[top:bottom, left:right]),
        recording.skeleton, points - [left, top], None, projected - [left, top],
        f"{name}, frame {frame}: {text}", 620,
    )  # fmt: skip


def _crop(points: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A 3:4 window around the points, inside the image: left, top, right, bottom."""
    points = points[np.isfinite(points).all(1)]
    height, width = shape[:2]
    if not len(points):
        return 0, 0, width, height
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    tall = max(high[1] - low[1], (high[0] - low[0]) / 0.75, 60) * 1.25
    half = np.array([0.75 * tall, tall]) / 2
    start = np.clip(middle - half, 0, [width - 2, height - 2]).astype(int)
    end = np.clip(middle + half, start + 2, [width, height]).astype(int)
    return start[0], start[1], end[0], end[1]


def find_videos(recording: Recording, config: Config) -> dict[str, Path]:
    """One video per camera, by name; cameras without one are missing."""
    return videos_by_camera(recording.names, config.data.root, config.recording.videos)


def _median(values: Tensor) -> float:
    """Median of what is not NaN."""
    return float(torch.nanmedian(values))
