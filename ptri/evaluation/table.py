"""What an evaluation says: metrics by name, the printed table, the table by action."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

# The lines of the seed project, in its order.
SEED_LINES = ("loss", "loss/hm", "loss/x3d", "x2d/l1", "x2d/l2", "x3d/l1", "x3d/l2")
METHODS = ("single", "pooled", "calibrated", "plain")
JOINT_ERRORS = ("mpjpe", "n_mpjpe", "pa_mpjpe", "absolute")


class Scores:
    """Values per frame and per rig, gathered batch by batch.

    Names are "<method>/<value>"; the rows of a method's frames are in the order of ``frames``. Rigs
    are one per frame for "single" and one per scene for "pooled".
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, method: str, values: dict[str, np.ndarray]) -> None:
        for name, value in values.items():
            self._parts[f"{method}/{name}" if method else name].append(np.asarray(value))

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def __getitem__(self, name: str) -> np.ndarray:
        return np.concatenate(self._parts[name])


def metrics_of(scores: Scores, seconds: dict[str, float], weight_x3d: float) -> dict[str, float]:
    """The figures of metrics.json.

    Args:
        seconds: of the stages "detect", "posterior", "fusion" and "pooled/posterior",
            "pooled/fusion", per frame.
        weight_x3d: of the 3D loss beside the heatmap loss, in "loss".
    """
    result = {name: _mean(scores[name]) for name in SEED_LINES if name in scores}
    result["loss"] = result["loss/hm"] + weight_x3d * result["loss/x3d"]
    weight = scores["x2d/visible"]  # joints, not frames, weigh equally in 2D
    for name in ("x2d/l1", "x2d/l2"):
        there = weight > 0
        result[name] = float((scores[name][there] * weight[there]).sum() / weight.sum())
    result = {name: result[name] for name in SEED_LINES}
    for method, prefix in (("single", ""), ("pooled", "pooled/")):
        if f"{method}/mpjpe" in scores:
            result.update(_geometry(scores, method, prefix))
            stages = ("detect", f"{prefix}posterior", f"{prefix}fusion")
            result[f"{prefix}seconds_per_frame"] = sum(seconds[stage] for stage in stages)
    return result


def _geometry(scores: Scores, method: str, prefix: str) -> dict[str, float]:
    rotation = scores[f"{method}/rotation_deg"]
    there = scores[f"{method}/pair_seen"]
    coverage = scores[f"{method}/rotation_coverage"]  # (rigs, V - 1, 2)
    # With temporal context a clip's ceiling is lower than that of its frames.
    ceiling = "pooled/mpjpe_calibrated" if method == "pooled" else "calibrated/mpjpe"
    return {
        f"{prefix}mpjpe": _mean(scores[f"{method}/mpjpe"]),
        f"{prefix}n_mpjpe": _mean(scores[f"{method}/n_mpjpe"]),
        f"{prefix}pa_mpjpe": _mean(scores[f"{method}/pa_mpjpe"]),
        f"{prefix}mpjpe_calibrated": _mean(scores[ceiling]),
        f"{prefix}rotation_error_deg_median": _median(rotation[there]),
        f"{prefix}rotation_failures": float(np.mean(scores[f"{method}/failed"][there])),
        f"{prefix}coverage_50": _nanmean(coverage[..., 0]),
        f"{prefix}coverage_90": _nanmean(coverage[..., 1]),
    }


def details_of(
    scores: Scores, seconds: dict[str, float], pair_names: list[str], notes: dict[str, object]
) -> dict[str, object]:
    """Everything else that was measured, for details.json."""
    details: dict[str, object] = dict(notes)
    details["seconds_per_frame"] = seconds
    keep = ~scores["damaged"]
    for method in METHODS:
        if f"{method}/mpjpe" not in scores:
            continue
        entry: dict[str, object] = {
            name: _mean(scores[f"{method}/{name}"]) for name in JOINT_ERRORS
        }
        entry["without_damaged_scenes"] = {
            name: _mean(scores[f"{method}/{name}"][keep]) for name in JOINT_ERRORS
        }
        coverage = scores[f"{method}/joint_coverage"]
        entry["joint_coverage_50"], entry["joint_coverage_90"] = (
            _nanmean(coverage[:, level]) for level in range(2)
        )
        if f"{method}/rotation_deg" in scores:
            rotation = scores[f"{method}/rotation_deg"]
            direction = scores[f"{method}/direction_deg"]
            entry.update(_geometry(scores, method, ""))
            entry["rotation_error_deg_90th"] = _percentile(rotation, 90)
            entry["rotation_error_deg_worst"] = _percentile(rotation, 100)
            entry["translation_direction_error_deg_median"] = _median(direction)
            entry["accepted"] = _mean(scores[f"{method}/accepted"])
            entry["effective_sample_size_median"] = _median(scores[f"{method}/ess"])
            entry["pairs"] = {
                name: {
                    "rotation_error_deg_median": _median(rotation[:, p]),
                    "translation_direction_error_deg_median": _median(direction[:, p]),
                }
                for p, name in enumerate(pair_names)
            }
        details[method] = entry
    return details


def seed_lines(metrics: dict[str, float]) -> str:
    """The seven lines of the seed project."""
    return "\n".join(f"{name}: {metrics[name]:.4f}" for name in SEED_LINES)


def table(details: dict, damaged: bool) -> str:
    """The table of the evaluation (design, section 8)."""
    pooled = "pooled" in details
    methods = [method for method in METHODS if method in details]
    heads = {
        "single": "each frame alone",
        "pooled": "frames pooled",
        "calibrated": "true cameras",
        "plain": "triangulation",
    }
    heads = [heads[method] for method in methods]
    lines = [
        f"{details['frames']} frames of {details['scenes']} scenes, {details['views']} views, "
        f"network image {details['image_size']} px; 'triangulation' is robust triangulation with "
        "the true cameras",
        _row("", heads),
        "-" * (38 + 18 * len(heads)),
    ]
    names = {"mpjpe": "MPJPE", "n_mpjpe": "N-MPJPE", "pa_mpjpe": "PA-MPJPE"}
    for name, label in {**names, "absolute": "absolute joint error"}.items():
        lines.append(_row(f"{label}, mm", [f"{details[m][name]:.1f}" for m in methods]))
        if name == "mpjpe":
            single = details["calibrated"][name]
            ceilings = [details[m].get("mpjpe_calibrated", single) for m in methods]
            ratios = [f"{details[m][name] / best:.2f} x" for m, best in zip(methods, ceilings)]
            lines.append(_row("  over true cameras", ratios))
        if damaged and name in names:
            without = [f"{details[m]['without_damaged_scenes'][name]:.1f}" for m in methods]
            lines.append(_row("  without damaged S9 scenes", without))
    rigs = [method for method in methods if method in ("single", "pooled")]
    for label, text in _RIG_ROWS:
        lines.append(_row(label, [text(details[m]) if m in rigs else "" for m in methods]))
    for level in ("50", "90"):
        cells = [_percent(details[m][f"coverage_{level}"]) if m in rigs else "" for m in methods]
        lines.append(_row(f"{level} % regions hold the rotation", cells))
        cells = [_percent(details[m][f"joint_coverage_{level}"]) for m in methods]
        lines.append(_row(f"{level} % regions hold the joint", cells))
    lines.append("")
    lines += _pair_lines(details, rigs)
    seconds = details["seconds_per_frame"]
    lines.append("")
    lines.append(
        "time per frame: "
        + _times(seconds, "")
        + (f"; pooled: {_times(seconds, 'pooled/')}" if pooled else "")
    )
    return "\n".join(lines)


_RIG_ROWS = (
    ("rotation error, median, deg", lambda d: f"{d['rotation_error_deg_median']:.2f}"),
    (
        "  90th percentile / worst",
        lambda d: f"{d['rotation_error_deg_90th']:.2f} / {d['rotation_error_deg_worst']:.1f}",
    ),
    (
        "translation direction, median, deg",
        lambda d: f"{d['translation_direction_error_deg_median']:.2f}",
    ),
    ("failures (> 10 deg)", lambda d: f"{100 * d['rotation_failures']:.1f} %"),
    ("accepted by the verdict", lambda d: _percent(d["accepted"])),
)


def _pair_lines(details: dict, rigs: list[str]) -> list[str]:
    titles = {"single": "alone", "pooled": "pooled"}
    heads = [f"{titles[m]}: R / t" for m in rigs]
    lines = [_row("pair of views (median error, deg)", heads)]
    for name in details[rigs[0]]["pairs"]:
        cells = []
        for method in rigs:
            pair = details[method]["pairs"][name]
            rotation = pair["rotation_error_deg_median"]
            cells.append(f"{rotation:.2f} / {pair['translation_direction_error_deg_median']:.2f}")
        lines.append(_row(f"  {name}", cells))
    return lines


def action_rows(scores: Scores, action_names: list[str]) -> list[dict[str, object]]:
    """One row per action ("Greeting-1" and "Greeting-2" together), then the means.

    The last rows are the mean over frames, over actions, and over frames without the damaged
    scenes where there are any.
    """
    names = np.array([re.sub(r"[-_ ]\d+$", "", action_names[a]) for a in scores["action"]])
    methods = [method for method in METHODS if f"{method}/mpjpe" in scores]
    columns = {
        f"{method}/{name}": scores[f"{method}/{name}"]
        for method in methods
        for name in ("mpjpe", "n_mpjpe", "pa_mpjpe")
    }
    columns["single/rotation_error_deg"] = _row_median(scores["single/rotation_deg"])

    def row(name: str, mask: np.ndarray) -> dict[str, object]:
        values = {key: _mean(value[mask]) for key, value in columns.items()}
        values["single/rotation_error_deg"] = _median(scores["single/rotation_deg"][mask])
        return {"action": name, "frames": int(mask.sum()), **values}

    rows = [row(name, names == name) for name in sorted(set(names))]
    means = {key: float(np.mean([r[key] for r in rows])) for key in columns}
    everything = np.ones(len(names), bool)
    result = [*rows, row("all frames", everything)]
    result.append({"action": "mean of actions", "frames": len(names), **means})
    if scores["damaged"].any():
        result.append(row("without damaged S9 scenes", ~scores["damaged"]))
    return result


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes the rows; errors in mm and deg with three decimals."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()})


def action_table(rows: list[dict[str, object]]) -> str:
    """The rows as printed: MPJPE of every method, rotation error of single frames."""
    methods = [m for m in METHODS if f"{m}/mpjpe" in rows[0]]
    heads = {"single": "alone", "pooled": "pooled", "calibrated": "true cameras"}
    heads["plain"] = "triangulation"
    lines = [_row("MPJPE by action, mm", [*(heads[m] for m in methods), "rotation, deg"])]
    for row in rows:
        cells = [f"{row[f'{m}/mpjpe']:.1f}" for m in methods]
        cells.append(f"{row['single/rotation_error_deg']:.2f}")
        lines.append(_row(f"  {row['action']} ({row['frames']})", cells))
    return "\n".join(lines)


def _row(label: str, cells: list[str]) -> str:
    return f"{label:<38}" + "".join(f"{cell:>18}" for cell in cells)


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _times(seconds: dict[str, float], prefix: str) -> str:
    stages = {"2D": seconds["detect"]} if not prefix else {}
    stages["posterior"] = seconds[f"{prefix}posterior"]
    stages["fusion"] = seconds[f"{prefix}fusion"]
    return ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in stages.items())


def _mean(values: np.ndarray) -> float:
    """Plain mean: a NaN frame stays visible."""
    return float(np.mean(values)) if len(values) else float("nan")


def _nanmean(values: np.ndarray) -> float:
    """Mean of what exists: views that a rig lacks are NaN."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _percentile(values: np.ndarray, percent: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, percent)) if len(finite) else float("nan")


def _row_median(values: np.ndarray) -> np.ndarray:
    return np.array([_median(row) for row in values])
