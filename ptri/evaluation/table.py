"""What an evaluation says: figures by name, the printed tables, the table by action."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from tabulate import tabulate

# The lines of the seed project, in its order.
SEED_LINES = ("loss", "loss/hm", "loss/x3d", "x2d/l1", "x2d/l2", "x3d/l1", "x3d/l2")
METHODS = {
    "single": "each frame alone",
    "pooled": "frames pooled",
    "calibrated": "true cameras",
    "plain": "triangulation",
}
ALIGNED = {"mpjpe": "MPJPE", "n_mpjpe": "N-MPJPE", "pa_mpjpe": "PA-MPJPE"}
JOINT_ERRORS = {**ALIGNED, "absolute": "absolute joint error"}
UNDAMAGED = "without damaged S9 scenes"
ROTATION = "rotation_error_deg_median"
DIRECTION = "translation_direction_error_deg_median"


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

    def methods(self) -> list[str]:
        return [method for method in METHODS if f"{method}/mpjpe" in self]


# --- figures ---------------------------------------------------------------------------------


def metrics_of(scores: Scores, seconds: dict[str, float]) -> dict[str, float]:
    """The figures of metrics.json.

    Args:
        seconds: of the stages "detect", "posterior", "fusion" and "pooled/posterior",
            "pooled/fusion", per frame.
    """
    result = dict.fromkeys(SEED_LINES, 0.0)
    for name in ("loss/hm", "loss/x3d", "x3d/l1", "x3d/l2"):
        result[name] = _mean(scores[name])
    result["loss"] = result["loss/hm"] + result["loss/x3d"]
    weight = scores["x2d/visible"]  # joints, not frames, weigh equally in 2D
    for name in ("x2d/l1", "x2d/l2"):
        there = weight > 0
        result[name] = float((scores[name][there] * weight[there]).sum() / weight.sum())
    for method, prefix in (("single", ""), ("pooled", "pooled/")):
        if method in scores.methods():
            figures = _rig_figures(scores, method)
            result.update({f"{prefix}{name}": value for name, value in figures.items()})
            stages = ("detect", f"{prefix}posterior", f"{prefix}fusion")
            result[f"{prefix}seconds_per_frame"] = sum(seconds[stage] for stage in stages)
    return result


def _rig_figures(scores: Scores, method: str) -> dict[str, float]:
    """The figures of "single" or "pooled" that metrics.json and details.json share."""
    rotation, seen = scores[f"{method}/rotation_deg"], scores[f"{method}/pair_seen"]
    coverage = scores[f"{method}/rotation_coverage"]  # (rigs, V - 1, 2)
    # With temporal context a clip's ceiling is lower than that of its frames.
    ceiling = "pooled/mpjpe_calibrated" if method == "pooled" else "calibrated/mpjpe"
    return {
        **{name: _mean(scores[f"{method}/{name}"]) for name in ALIGNED},
        "mpjpe_calibrated": _mean(scores[ceiling]),
        ROTATION: _median(rotation),
        "rotation_failures": _mean(scores[f"{method}/failed"][seen]),
        "coverage_50": _share(coverage[..., 0]),
        "coverage_90": _share(coverage[..., 1]),
    }


def details_of(
    scores: Scores, seconds: dict[str, float], pair_names: list[str], notes: dict[str, object]
) -> dict[str, object]:
    """Everything that was measured, by method, for details.json.

    Args:
        pair_names: of the pairs of views, in the order of the scores' columns.
        notes: what else the file says, such as "frames".
    """
    details: dict[str, object] = {**notes, "seconds_per_frame": seconds}
    keep = ~scores["damaged"]
    for method in scores.methods():
        errors = {name: scores[f"{method}/{name}"] for name in JOINT_ERRORS}
        coverage = scores[f"{method}/joint_coverage"]  # (frames, 2)
        entry: dict[str, object] = {name: _mean(error) for name, error in errors.items()}
        entry["without_damaged_scenes"] = {n: _mean(error[keep]) for n, error in errors.items()}
        entry["joint_coverage_50"] = _share(coverage[:, 0])
        entry["joint_coverage_90"] = _share(coverage[:, 1])
        if f"{method}/rotation_deg" in scores:
            rotation = scores[f"{method}/rotation_deg"]  # (rigs, pairs)
            direction = scores[f"{method}/direction_deg"]
            entry.update(_rig_figures(scores, method))
            entry["rotation_error_deg_90th"] = float(np.percentile(_finite(rotation), 90))
            entry["rotation_error_deg_worst"] = float(np.max(_finite(rotation)))
            entry[DIRECTION] = _median(direction)
            entry["accepted"] = _mean(scores[f"{method}/accepted"])
            entry["effective_sample_size_median"] = _median(scores[f"{method}/ess"])
            entry["pairs"] = {
                name: {ROTATION: _median(rotation[:, p]), DIRECTION: _median(direction[:, p])}
                for p, name in enumerate(pair_names)
            }
        details[method] = entry
    return details


def action_rows(scores: Scores, action_names: list[str]) -> list[dict[str, object]]:
    """One row per action ("Greeting-1" and "Greeting-2" together), then the means.

    The last rows are the mean over frames, over actions, and over frames without the damaged
    scenes where there are any.
    """
    names = np.array([re.sub(r"[-_ ]\d+$", "", action_names[a]) for a in scores["action"]])
    keys = [f"{method}/{name}" for method in scores.methods() for name in ALIGNED]
    columns = {key: scores[key] for key in keys}
    rotation = scores["single/rotation_deg"]  # (frames, pairs)

    def row(name: str, mask: np.ndarray) -> dict[str, object]:
        values = {key: _mean(value[mask]) for key, value in columns.items()}
        values["single/rotation_error_deg"] = _median(rotation[mask])
        return {"action": name, "frames": int(mask.sum()), **values}

    rows = [row(name, names == name) for name in sorted(set(names))]
    everything = row("all frames", np.ones(len(names), bool))
    means = {key: float(np.mean([r[key] for r in rows])) for key in list(everything)[2:]}
    rows += [everything, {"action": "mean of actions", "frames": len(names), **means}]
    if scores["damaged"].any():
        rows.append(row(UNDAMAGED, ~scores["damaged"]))
    return rows


def _mean(values: np.ndarray) -> float:
    """Plain mean: a NaN frame stays visible."""
    return float(np.mean(values)) if len(values) else float("nan")


def _share(values: np.ndarray) -> float:
    return float(np.mean(_finite(values)))


def _median(values: np.ndarray) -> float:
    return float(np.median(_finite(values)))


def _finite(values: np.ndarray) -> np.ndarray:
    """The values that exist, flat, or one NaN: views that a rig lacks are NaN."""
    finite = values[np.isfinite(values)]
    return finite if len(finite) else np.array([np.nan])


# --- texts -----------------------------------------------------------------------------------


def seed_lines(metrics: dict[str, float]) -> str:
    """The seven lines of the seed project."""
    return "\n".join(f"{name}: {metrics[name]:.4f}" for name in SEED_LINES)


def table(details: dict, damaged: bool) -> str:
    """The printed tables: errors by method, errors by pair of views, time.

    Args:
        details: of `details_of`.
        damaged: also show the errors without the damaged scenes of S9.
    """
    methods = [method for method in METHODS if method in details]
    parts = [
        f"{details['frames']} frames of {details['scenes']} scenes, {details['views']} views, "
        f"network image {details['image_size']} px; 'triangulation' is robust triangulation with "
        "the true cameras",
        _grid(["", *(METHODS[m] for m in methods)], _error_rows(details, methods, damaged)),
    ]
    rigs = [method for method in methods if "pairs" in details[method]]
    rows = []
    for name in details[rigs[0]]["pairs"]:
        pairs = [details[m]["pairs"][name] for m in rigs]
        rows.append([name, *(f"{pair[ROTATION]:.2f} / {pair[DIRECTION]:.2f}" for pair in pairs)])
    heads = [f"{METHODS[m]}: R / t" for m in rigs]
    parts.append(_grid(["pair of views (median error, deg)", *heads], rows))
    seconds = details["seconds_per_frame"]
    time = f"time per frame: 2D {1000 * seconds['detect']:.1f} ms, {_times(seconds, '')}"
    parts.append(time + (f"; pooled: {_times(seconds, 'pooled/')}" if "pooled" in rigs else ""))
    return "\n\n".join(parts)


def _error_rows(details: dict, methods: list[str], damaged: bool) -> list[list[str]]:
    rows = []
    for name, label in JOINT_ERRORS.items():
        rows.append([f"{label}, mm", *(f"{details[m][name]:.1f}" for m in methods)])
        if name == "mpjpe":
            ceiling = details["calibrated"][name]
            ceilings = [details[m].get("mpjpe_calibrated", ceiling) for m in methods]
            ratios = [f"{details[m][name] / best:.2f} x" for m, best in zip(methods, ceilings)]
            rows.append([f"{label} over true cameras", *ratios])
        if damaged and name in ALIGNED:
            without = [details[m]["without_damaged_scenes"][name] for m in methods]
            rows.append([f"{label} {UNDAMAGED}, mm", *(f"{value:.1f}" for value in without)])
    of_rigs = {
        "rotation error, median, deg": "{rotation_error_deg_median:.2f}",
        "rotation error, 90th percentile / worst, deg": (
            "{rotation_error_deg_90th:.2f} / {rotation_error_deg_worst:.1f}"
        ),
        "translation direction, median, deg": "{translation_direction_error_deg_median:.2f}",
        "failures (> 10 deg)": "{rotation_failures:.1%}",
        "accepted by the verdict": "{accepted:.0%}",
        "50 % regions hold the rotation": "{coverage_50:.0%}",
        "50 % regions hold the joint": "{joint_coverage_50:.0%}",
        "90 % regions hold the rotation": "{coverage_90:.0%}",
        "90 % regions hold the joint": "{joint_coverage_90:.0%}",
    }
    for label, form in of_rigs.items():
        shown = [m for m in methods if "pairs" in details[m] or "joint" in form]
        cells = [form.format(**details[m]) if m in shown else "" for m in methods]
        rows.append([label, *(cell.replace("%", " %") for cell in cells)])
    return rows


def _times(seconds: dict[str, float], prefix: str) -> str:
    stages = ("posterior", "fusion")
    return ", ".join(f"{stage} {1000 * seconds[prefix + stage]:.1f} ms" for stage in stages)


def action_table(rows: list[dict[str, object]]) -> str:
    """The rows of `action_rows` as printed: MPJPE by method, rotation error of single frames."""
    methods = [m for m in METHODS if f"{m}/mpjpe" in rows[0]]
    lines = [
        [
            f"{row['action']} ({row['frames']})",
            *(f"{row[f'{m}/mpjpe']:.1f}" for m in methods),
            f"{row['single/rotation_error_deg']:.2f}",
        ]
        for row in rows
    ]
    heads = [*(METHODS[m] for m in methods), "rotation, deg"]
    return _grid(["MPJPE by action, mm", *heads], lines)


def _grid(heads: list[str], rows: list[list[str]]) -> str:
    """A table with its first column on the left and all others on the right."""
    columns = ["left"] + ["right"] * (len(heads) - 1)
    return tabulate(rows, heads, "simple", colalign=columns, disable_numparse=True)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes the rows; errors in mm and deg with three decimals."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()})
