"""What an evaluation says: figures by name, the printed tables, the table by action."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
from tabulate import tabulate

# The lines of the seed project, in its order.
SEED_LINES = ("loss", "loss/hm", "loss/x3d", "x2d/l1", "x2d/l2", "x3d/l1", "x3d/l2")
METHODS = {
    "single": "each frame alone",
    "studio": "alone, known studio",
    "pooled": "frames pooled",
    "calibrated": "true cameras",
    "plain": "triangulation",
}
ALIGNED = {"mpjpe": "MPJPE", "n_mpjpe": "N-MPJPE", "pa_mpjpe": "PA-MPJPE"}
JOINT_ERRORS = {**ALIGNED, "absolute": "absolute joint error"}
MAX_PAIRS = 45  # of views that are printed, those of ten; details.json has them all
UNDAMAGED = "without damaged S9 scenes"
ROTATION = "rotation_error_deg_median"
DIRECTION = "translation_direction_error_deg_median"
# What metrics.json says of frames alone and, under "pooled/", of frames pooled.
FIGURES = (
    *ALIGNED,
    "mpjpe_calibrated",
    ROTATION,
    "rotation_failures",
    "coverage_50",
    "coverage_90",
)

# Names are "<method>/<value>"; a row is a frame, of "pooled/accepted" and "pooled/ess" a scene.
Scores = dict[str, np.ndarray]


# --- figures ---------------------------------------------------------------------------------


def metrics_of(scores: Scores, details: dict) -> dict[str, float]:
    """The figures of metrics.json; details: of `details_of`, with "seconds_per_frame"."""
    result = dict.fromkeys(SEED_LINES, 0.0)
    for name in ("loss/hm", "loss/x3d", "x3d/l1"):
        result[name] = _mean(scores[name])
    result["x3d/l2"] = _mean(scores["single/mpjpe"])
    result["loss"] = result["loss/hm"] + result["loss/x3d"]
    weight = scores["x2d/visible"]  # joints, not frames, weigh equally in 2D
    for name in ("x2d/l1", "x2d/l2"):
        there = weight > 0
        result[name] = float((scores[name][there] * weight[there]).sum() / weight.sum())
    seconds = details["seconds_per_frame"]
    for method, prefix in (("single", ""), ("studio", "studio/"), ("pooled", "pooled/")):
        if method in details:
            result |= {f"{prefix}{name}": details[method][name] for name in FIGURES}
            stages = ("detect", f"{prefix}posterior", f"{prefix}fusion")
            result[f"{prefix}seconds_per_frame"] = sum(seconds[stage] for stage in stages)
    return result


def details_of(scores: Scores, keep: np.ndarray, pair_names: list[str]) -> dict[str, dict]:
    """Everything that was measured, by method, for details.json.

    Args:
        keep: (frames,) False in scenes whose truth is damaged.
        pair_names: of the pairs of views, in the order of the scores' columns.
    """
    details = {}
    for method in _methods(scores):
        of = {
            name.partition("/")[2]: v for name, v in scores.items() if name.startswith(f"{method}/")
        }
        entry = {name: _mean(of[name]) for name in JOINT_ERRORS}
        entry["without_damaged_scenes"] = {name: _mean(of[name][keep]) for name in JOINT_ERRORS}
        for index, level in enumerate(("50", "90")):
            entry[f"joint_coverage_{level}"] = _share(of["joint_coverage"][:, index])
        if "rotation_deg" in of:
            rotation, direction = of["rotation_deg"], of["direction_deg"]  # (rigs, pairs)
            # With temporal context a clip's ceiling is lower than that of its frames.
            ceiling = of.get("mpjpe_calibrated", scores["calibrated/mpjpe"])
            entry |= {
                "mpjpe_calibrated": _mean(ceiling),
                ROTATION: _median(rotation),
                "rotation_failures": _share(of["failed"]),
                "coverage_50": _share(of["rotation_coverage"][..., 0]),
                "coverage_90": _share(of["rotation_coverage"][..., 1]),
                "rotation_error_deg_90th": float(np.percentile(_finite(rotation), 90)),
                "rotation_error_deg_worst": float(np.max(_finite(rotation))),
                DIRECTION: _median(direction),
                "accepted": _mean(of["accepted"]),
                "mpjpe_accepted": _mean(_finite(of["mpjpe_accepted"])),
                "effective_sample_size_median": _median(of["ess"]),
                "pairs": {
                    name: {ROTATION: _median(rotation[:, p]), DIRECTION: _median(direction[:, p])}
                    for p, name in enumerate(pair_names)
                },
            }
        details[method] = entry
    return details


def action_rows(
    scores: Scores, actions: list[str], keep: np.ndarray, by: str = "action"
) -> list[dict[str, object]]:
    """One row per action ("Greeting-1" and "Greeting-2" together), then the means.

    The last rows are the mean over frames, over actions, and over frames without the damaged
    scenes where there are any.

    Args:
        actions: names, of each frame. keep: (frames,) False in damaged scenes.
        by: what the names are: "action", or the "sequence" of a data set without actions.
    """
    if by == "action":
        actions = [re.sub(r"[-_ ]\d+$", "", action) for action in actions]
    names = np.array(actions)
    keys = [f"{method}/{name}" for method in _methods(scores) for name in ALIGNED]

    def row(name: str, mask: np.ndarray) -> dict[str, object]:
        values = {key: _mean(scores[key][mask]) for key in keys}
        values["single/rotation_error_deg"] = _median(scores["single/rotation_deg"][mask])
        return {by: name, "frames": int(mask.sum()), **values}

    rows = [row(name, names == name) for name in sorted(set(names))]
    everything = row("all frames", np.ones(len(names), bool))
    means = {key: float(np.mean([r[key] for r in rows])) for key in list(everything)[2:]}
    rows += [everything, {by: f"mean of {by}s", "frames": len(names), **means}]
    return rows if keep.all() else [*rows, row(UNDAMAGED, keep)]


def _methods(names: dict) -> list[str]:
    """Those that were measured, of scores or of rows by action."""
    return [method for method in METHODS if f"{method}/mpjpe" in names]


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
    rigs = [method for method in methods if "pairs" in details[method]]
    rows = []
    for name in details["single"]["pairs"]:
        of = [details[m]["pairs"][name] for m in rigs]
        rows.append([name, *(f"{pair[ROTATION]:.2f} / {pair[DIRECTION]:.2f}" for pair in of)])
    heads = ["pair of views (median error, deg)", *(f"{METHODS[m]}: R / t" for m in rigs)]
    pairs = [grid(heads, rows)] if len(rows) <= MAX_PAIRS else []
    seconds = details["seconds_per_frame"]
    time = f"time per frame: 2D {1000 * seconds['detect']:.1f} ms, {_times(seconds, '')}"
    return "\n\n".join(
        [
            f"{details['frames']} frames of {details['scenes']} scenes, {details['views']} views, "
            f"network image {details['image_size']} px; 'triangulation' is robust triangulation "
            "with the true cameras",
            grid(["", *(METHODS[m] for m in methods)], _error_rows(details, methods, damaged)),
            *pairs,
            time + (f"; pooled: {_times(seconds, 'pooled/')}" if "pooled" in rigs else ""),
        ]
    )


def _error_rows(details: dict, methods: list[str], damaged: bool) -> list[list[str]]:
    forms = {}  # of a row's cells, by its label
    for name, label in JOINT_ERRORS.items():
        forms[f"{label}, mm"] = f"{{{name}:.1f}}"
        if name == "mpjpe":
            forms[f"{label} over true cameras"] = "{ratio:.2f} x"
        if damaged and name in ALIGNED:
            forms[f"{label} {UNDAMAGED}, mm"] = f"{{without_damaged_scenes[{name}]:.1f}}"
    forms |= {
        "rotation error, median, deg": "{rotation_error_deg_median:.2f}",
        "rotation error, 90th percentile / worst, deg": (
            "{rotation_error_deg_90th:.2f} / {rotation_error_deg_worst:.1f}"
        ),
        "translation direction, median, deg": "{translation_direction_error_deg_median:.2f}",
        "failures (> 10 deg)": "{rotation_failures:.1%}",
        "accepted by the verdict": "{accepted:.0%}",
        "MPJPE where accepted, mm": "{mpjpe_accepted:.1f}",
        "50 % regions hold the rotation": "{coverage_50:.0%}",
        "50 % regions hold the joint": "{joint_coverage_50:.0%}",
        "90 % regions hold the rotation": "{coverage_90:.0%}",
        "90 % regions hold the joint": "{joint_coverage_90:.0%}",
    }
    ceiling = details["calibrated"]["mpjpe"]
    rows = []
    for label, form in forms.items():
        row = [label]
        for method in methods:
            figures = details[method]
            ratio = figures["mpjpe"] / figures.get("mpjpe_calibrated", ceiling)
            try:
                row.append(form.format(ratio=ratio, **figures).replace("%", " %"))
            except KeyError:
                if "pairs" in figures:
                    raise
                row.append("")  # it was given the cameras, and has no errors of them
        rows.append(row)
    return rows


def _times(seconds: dict[str, float], prefix: str) -> str:
    stages = ("posterior", "fusion")
    return ", ".join(f"{stage} {1000 * seconds[prefix + stage]:.1f} ms" for stage in stages)


def action_table(rows: list[dict[str, object]], by: str = "action") -> str:
    """The rows of `action_rows` as printed: MPJPE by method, rotation error of single frames."""
    methods = _methods(rows[0])
    lines = [
        [
            f"{row[by]} ({row['frames']})",
            *(f"{row[f'{m}/mpjpe']:.1f}" for m in methods),
            f"{row['single/rotation_error_deg']:.2f}",
        ]
        for row in rows
    ]
    heads = [*(METHODS[m] for m in methods), "rotation, deg"]
    return grid([f"MPJPE by {by}, mm", *heads], lines)


def set_table(details: dict[str, dict]) -> str:
    """MPJPE by set of cameras and method, and rotation errors; details: by the sets' names."""
    methods = [method for method in METHODS if method in next(iter(details.values()))]
    rows = []
    for name, figures in details.items():
        of = [figures[method] for method in methods]
        turned = " / ".join(f"{part[ROTATION]:.2f}" for part in of if "pairs" in part)
        row = [f"{name} ({figures['views']} views, {figures['frames']} frames)"]
        rows.append([*row, *(f"{part['mpjpe']:.1f}" for part in of), turned])
    turned = "rotation alone / pooled, deg" if "pooled" in methods else "rotation, deg"
    heads = ["MPJPE by set of cameras, mm", *(METHODS[method] for method in methods)]
    return grid([*heads, turned], rows)


def grid(heads: list[str], rows: list[list[str]]) -> str:
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
