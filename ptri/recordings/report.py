"""What is said and drawn about a solved recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptri.config import Config
from ptri.evaluation import draw as pictures
from ptri.evaluation import metrics
from ptri.evaluation.draw_rig import rig_picture, up_direction
from ptri.evaluation.pictures import rotation_words, spread
from ptri.evaluation.table import grid
from ptri.geometry.cameras import centres, project
from ptri.geometry.triangulation import robust_triangulation
from ptri.recordings.detections import Detections
from ptri.recordings.keypoint_files import Recording, distort
from ptri.recordings.known import moved_text
from ptri.recordings.solve import Solution, advice_of, camera_spread
from ptri.recordings.video_files import videos_by_camera
from ptri.recordings.videos import read_frame
from ptri.rig.check import default_covariance
from ptri.rig.lenses import GIVEN_STD
from ptri.rig.result import RigEstimate
from ptri.structures import Cameras, Keypoints, take
from ptri.verdict.verdict import Code

CLEAR = 0.3  # keypoints of at least this confidence count in the reprojection error
SURE = 2.0  # deviations by which a clock that drifts is told
HALVED_AT = 0.02  # of the person's extent in the view: so far off, a keypoint counts half


def reprojection_error(
    recording: Recording, R: Tensor, t: Tensor, K: Tensor | None = None
) -> Tensor:
    """How far clear keypoints lie from their joints' projections, (T, V, J) px.

    The joints are triangulated from these keypoints with the given cameras, without any prior, so
    that two sets of cameras compare fairly. The triangulation is robust (Cauchy weights), because
    a detector now and then takes one side for the other. NaN where a keypoint is less confident
    than `CLEAR`, or fewer than three views (of two: two) see its joint clearly.

    Args:
        R, t: (V, 3, 3), (V, 3) mm. K: (V, 3, 3) px; None: as given.
    """
    clear = torch.tensor(recording.confidence >= CLEAR)
    clear &= clear.sum(1, keepdim=True) >= min(3, len(recording.cameras))
    xy = torch.where(clear[..., None], torch.tensor(recording.xy), torch.nan)
    keypoints = Keypoints(xy, default_covariance(xy, HALVED_AT), torch.ones_like(xy[..., 0]))
    rig = Cameras(torch.tensor(recording.K) if K is None else K, R, t)
    batch = Cameras(rig.K.expand(1, len(xy), -1, -1, -1), R[None], t[None])
    joints = robust_triangulation(take(keypoints, None), batch, cauchy=1.0)[0].joints3d[0]
    return (project(joints, rig) - xy).norm(dim=-1)


# --- figures and text ------------------------------------------------------------------------


def figures_of(solution: Solution) -> dict[str, object]:
    """The figures of metrics.json: differences from the reference where there is one."""
    recording, estimate = solution.recording, solution.estimate
    error = reprojection_error(recording, estimate.R, estimate.t, estimate.K)
    figures: dict[str, object] = {
        "views": len(recording.cameras),
        "frames": len(recording.frames),
        "frames_pooled": len(estimate.frames),
        "accepted": estimate.accepted,
        "verdict": estimate.verdict.words(recording.names),
        "scale": estimate.scale.words(recording.names),
        "effective_sample_size": estimate.ess,
        "reprojection_error_px_median": float(error.nanmedian()),
    }
    for v, name in enumerate(recording.names):
        figures[f"reprojection_error_px_median/{name}"] = float(error[:, v].nanmedian())
    for v, name in enumerate(recording.names):
        figures[f"focal_length_px/{name}"] = float(estimate.K[v, 0, 0])
        figures[f"focal_length_std/{name}"] = float(estimate.focal_std[v])
    if estimate.moved is not None:
        figures |= {f"moved/{n}": chance for n, chance in zip(recording.names, estimate.moved)}
    if recording.late is not None:
        for name, (late, std) in zip(recording.names, recording.late.tolist()):
            figures |= {f"late_frames/{name}": late, f"late_std_frames/{name}": std}
    if recording.drift is not None:
        for name, (drift, std) in zip(recording.names, recording.drift.tolist()):
            figures |= {f"clock_drift/{name}": drift, f"clock_drift_std/{name}": std}
    if recording.reference is not None:
        figures.update(_differences(recording, estimate))
    figures |= {f"seconds/{stage}": value for stage, value in solution.seconds.items()}
    if solution.halves_deg is not None:
        for name, value in zip(recording.names, solution.halves_deg.tolist()):
            figures[f"halves_rotation_difference_deg/{name}"] = value
    return figures


def _differences(recording: Recording, estimate: RigEstimate) -> dict[str, object]:
    """How the cameras differ from the reference calibration's."""
    names, (_, R, t) = recording.names, recording.reference
    values = {
        "rotation": metrics.rotation_error_deg(estimate.R, R),
        "translation_direction": metrics.translation_direction_error_deg(
            estimate.R, estimate.t, R, t
        ),
    }
    figures: dict[str, object] = {}
    for kind, angles in values.items():
        figures[f"{kind}_difference_deg_median"] = float(angles.median())
        figures[f"{kind}_difference_deg_worst"] = float(angles.max())
    baselines = [centres(*rig).norm(dim=-1).sum() for rig in ((estimate.R, estimate.t), (R, t))]
    figures["scale_over_reference"] = float(baselines[0] / baselines[1])
    error = reprojection_error(recording, R, t)
    figures["reprojection_error_px_median/reference"] = float(error.nanmedian())
    level = metrics.rotation_level(estimate.posterior, R[None])[0]
    for name, value in zip(names[1:], level):
        figures[f"reference_in_region/{name}"] = float(value)
    for pair, (i, j) in enumerate(metrics.view_pairs(len(names))):
        for kind, angles in values.items():
            figures[f"{kind}_difference_deg/{names[i]}-{names[j]}"] = float(angles[pair])
    return figures


def text_of(solution: Solution, figures: dict) -> str:
    """The printed report."""
    recording, estimate, seconds = solution.recording, solution.estimate, solution.seconds
    names, frames, error = recording.names, recording.frames, "reprojection_error_px_median"
    rows = []
    places = centres(estimate.R, estimate.t).tolist()
    for name, (x, y, z), angle, distance in zip(names, places, *camera_spread(estimate)):
        place = f"{round(x)}, {round(y)}, {round(z)}"
        reprojection = f"{figures[f'{error}/{name}']:.1f}"
        rows.append([name, place, f"{distance:.0f}", f"{angle:.2f}", reprojection])
    rows += [[name, "not solved: too few keypoints"] for name in solution.left_out]
    where = f"centre x, y, z in the frame of {names[0]}, mm"
    parts = [
        f"{len(frames)} frames ({frames[0]} to {frames[-1]}), {len(names)} cameras, "
        f"{recording.skeleton.name} keypoints; the cameras come from {len(estimate.frames)} frames",
        f"verdict: {'' if estimate.accepted else 'REJECTED: '}{figures['verdict']}",
        f"scale: {figures['scale']}",
        "",
        grid(["camera", where, "+- mm", "rotation +- deg", "reprojection, px"], rows),
        "",
    ]
    text = f"{figures[error]:.1f} px"
    if recording.reference is not None:
        text += f"; of the reference {figures[f'{error}/reference']:.1f} px"
        pairs = [(names[i], names[j]) for i, j in metrics.view_pairs(len(names))]
        keys = {f"{a} - {b}": f"/{a}-{b}" for a, b in pairs}
        rows = []
        for label, key in (keys | {"median": "_median", "worst": "_worst"}).items():
            kinds = ("rotation_difference_deg", "translation_direction_difference_deg")
            rows.append([label, *(f"{figures[kind + key]:.2f}" for kind in kinds)])
        regions = [f"{100 * figures[f'reference_in_region/{name}']:.1f} %" for name in names[1:]]
        parts += [
            grid(["difference from the reference, deg", "rotation", "direction"], rows),
            f"the reference's rotations lie in the stated regions of {', '.join(regions)} "
            f"({', '.join(names[1:])})",
            f"scale over the reference: {figures['scale_over_reference']:.3f}",
            "",
        ]
    parts += [
        f"reprojection error, median of keypoints of confidence >= {CLEAR:g} after robust "
        f"triangulation: {text}",
        f"time: rig posterior {seconds['posterior']:.2f} s, joints "
        f"{1000 * seconds['joints'] / len(frames):.1f} ms a frame",
        solution.halves,
        recording.who,
    ]
    advice = advice_of(solution)
    if advice is not None:
        parts.append(f"advice: {advice.words(names)}")
    if recording.late is not None:
        parts.insert(3, clock_text(recording))
    if estimate.moved is not None:
        parts.insert(3, moved_text(names, estimate.moved))
    named = estimate.verdict.code in (Code.FOCAL_LENGTH, Code.FOCAL_LENGTHS)
    if named or max(camera.K_std for camera in recording.cameras) > GIVEN_STD:
        parts.insert(3, lens_text(recording, estimate))
    return "\n".join(parts)


def lens_text(recording: Recording, estimate: RigEstimate) -> str:
    """The focal lengths that were found, beside what was known of them."""
    words = []
    for v, camera in enumerate(recording.cameras):
        words.append(
            f"{camera.name} {estimate.K[v, 0, 0]:.0f} +- {100 * estimate.focal_std[v]:.1f} % "
            f"({camera.K[0, 0]:.0f} +- {100 * camera.K_std:.0f} %)"
        )
    return f"focal lengths, px (in brackets what was known before): {', '.join(words)}"


def clock_text(recording: Recording) -> str:
    """By how much each camera was late against the first one whose clock is known."""
    std = recording.late[:, 1]
    reference = int(np.flatnonzero(std == 0)[0]) if (std == 0).any() else 0
    words = []
    for v, name in enumerate(recording.names):
        if v == reference:
            continue
        late = recording.late[v, 0] - recording.late[reference, 0]
        text = f"{name} {late:+.2f}"
        if std[v] > 0:
            text += f" +- {std[v]:.2f}"
        if recording.fps:
            text += f" ({late / recording.fps:+.3f} s)"
        if recording.drift is not None:
            span = int(recording.frames[-1] - recording.frames[0])
            drift, doubt = span * recording.drift[v]
            if abs(drift) > SURE * doubt > 0:
                text += f" and from the first frame to the last {drift:+.2f} +- {doubt:.2f} more"
        words.append(text + " NOT FOUND" * bool(np.isnan(std[v])))
    return (
        "clocks: frames by which what a camera shows comes later than "
        f"{recording.names[reference]} shows it, used so much earlier: {', '.join(words)}"
    )


def detection_text(detections: Detections, config: Config) -> str:
    """A line on how the keypoints were found in videos."""
    milliseconds, reuse = 1000 * detections.seconds, config.recording.reuse
    if reuse is None:
        text = f"2D: {milliseconds:.0f} ms a frame of all views, reading included"
    else:
        text = f"2D: detections of {reuse}, made in {milliseconds:.0f} ms a frame"
    return text


# --- pictures --------------------------------------------------------------------------------


def draw(folder: Path, solution: Solution, config: Config) -> None:
    """Draws the rig, and overlays and skeletons of evenly spread frames."""
    recording, estimate = solution.recording, solution.estimate
    joints, covariance = (part.numpy() for part in estimate.body)
    seen = np.flatnonzero(np.isfinite(joints).all(-1).any(-1))
    rows = seen[spread(len(seen), max(config.evaluate.pictures, 1))]
    title, reference = f"{len(estimate.frames)} frames pooled", recording.reference
    if reference is not None:
        words = rotation_words(estimate.R, reference.R)
        title += f": rotation differs from the reference by {words}"
    person = joints[rows[len(rows) // 2]]
    rig = (estimate.posterior, person, recording.names, reference, title, "reference")
    pictures.save(rig_picture(*rig), folder / "rig.png")
    if not config.evaluate.pictures:
        return
    videos = videos_by_camera(recording.names, config.data.root, config.recording.videos)
    cameras = Cameras(estimate.K, estimate.R, estimate.t)
    projected = project(estimate.joints3d, cameras).numpy()  # (T, V, J, 2)
    up = up_direction(estimate.R.numpy())
    for row in rows:
        frame = int(recording.frames[row])
        views = [
            _overlay(recording, row, v, projected[row, v], videos.get(name))
            for v, name in enumerate(recording.names)
        ]
        pictures.save(pictures.beside(views), folder / f"frame_{frame:06d}_views.jpg")
        person = (joints[row], covariance[row], None, up, f"frame {frame}")
        pictures.save(pictures.skeleton_sides(*person), folder / f"frame_{frame:06d}_skeleton.png")


def _overlay(
    recording: Recording, row: int, v: int, projected: np.ndarray, video: Path | None
) -> np.ndarray:
    """One view: the video's frame, the detector's points, its joints' projection; cropped."""
    camera, frame = recording.cameras[v], int(recording.frames[row])
    shown = max(frame + round(recording.late_at(frame)[v]), 0)
    image = None if video is None else read_frame(video, shown, recording.fps)
    if image is None:
        image = np.full((*camera.size[::-1], 3), 225, np.uint8)
    projected = distort(projected, camera.K, camera.dist)
    points = distort(recording.xy[row, v], camera.K, camera.dist)
    error = np.linalg.norm(projected - points, axis=1)
    seen = np.isfinite(error)
    text = f"median {np.median(error[seen]):.1f} px" if seen.any() else "not seen"
    left, top, right, bottom = _window(np.concatenate([projected, points]), image.shape)
    return pictures.overlay(
        np.ascontiguousarray(image[top:bottom, left:right]),
        recording.skeleton,
        points - [left, top],
        reprojected=projected - [left, top],
        title=f"{camera.name}, frame {frame}: {text}",
        height=620,
    )


def _window(points: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A 3:4 window around the points, inside the image: left, top, right, bottom."""
    points = points[np.isfinite(points).all(1)]
    height, width = shape[:2]
    if not len(points):
        return 0, 0, width, height
    low, high = points.min(0), points.max(0)
    tall = max(high[1] - low[1], (high[0] - low[0]) / 0.75, 60) * 1.25
    middle, half = (low + high) / 2, np.array([0.75 * tall, tall]) / 2
    start = np.clip(middle - half, 0, [width - 2, height - 2]).astype(int)
    end = np.clip(middle + half, start + 2, [width, height]).astype(int)
    return *start, *end
