"""What a detector's keypoints made of a recording: the figures that the table shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ptri.evaluation.table import grid
from ptri.recordings.keypoint_files import Recording

HEADS = [
    "recording, keypoints",
    "verdict",
    "rotation, worst; median, deg",
    "direction, deg",
    "in 90 % region",
    "reprojection, px",
    "bones vary",
    "2D, ms a frame",
    "rig, s",
]


def bone_spread(recording: Recording, joints: np.ndarray) -> float:
    """How much the length of a limb changes over the frames: a body's bones do not.

    Args:
        joints: (T, J, 3) of the recording's skeleton, triangulated; NaN = not known.

    Returns:
        Standard deviation over mean, robust (from the quartiles), median over the bones.
    """
    child, parent = np.array(recording.skeleton.bones).T
    length = np.linalg.norm(joints[:, child] - joints[:, parent], axis=-1)  # (T, bones)
    length = length[:, np.isfinite(length).sum(0) >= 4]
    if not length.size:
        return float("nan")
    low, middle, high = np.nanquantile(length, [0.25, 0.5, 0.75], axis=0)
    return float(np.median((high - low) / 1.349 / middle))


def scores(figures: Mapping[str, Any], recording: Recording, joints: np.ndarray) -> dict[str, Any]:
    """Of the figures of metrics.json, those to compare; None where there is no reference."""
    names = recording.names[1:]
    levels = [figures.get(f"reference_in_region/{name}") for name in names]
    known = [level for level in levels if level is not None]
    return {
        "accepted": figures["accepted"],
        "verdict": figures["verdict"],
        "rotation_worst_deg": figures.get("rotation_difference_deg_worst"),
        "rotation_median_deg": figures.get("rotation_difference_deg_median"),
        "direction_median_deg": figures.get("translation_direction_difference_deg_median"),
        "views_in_region90": sum(level <= 0.9 for level in known) if known else None,
        "views": len(names),
        "reprojection_px": figures["reprojection_error_px_median"],
        "reprojection_reference_px": figures.get("reprojection_error_px_median/reference"),
        "bone_spread": bone_spread(recording, joints),
        "seconds_2d_per_frame": figures.get("seconds/2d_per_frame"),
        "seconds_rig": figures["seconds/posterior"],
    }


def row(label: str, values: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    if "error" in values:
        return [label, values["error"], *["-"] * (len(HEADS) - 2)]

    def cell(name: str, form: str = ".1f", factor: float = 1.0) -> str:
        value = values[name]
        return "-" if value is None or not np.isfinite(value) else f"{factor * value:{form}}"

    inside, views = values["views_in_region90"], values["views"]
    return [
        label,
        "accepted" if values["accepted"] else f"rejected: {values['verdict']}"[:48],
        f"{cell('rotation_worst_deg', '.2f')}; {cell('rotation_median_deg', '.2f')}",
        cell("direction_median_deg", ".2f"),
        "-" if inside is None else f"{inside} of {views}",
        f"{cell('reprojection_px')} ({cell('reprojection_reference_px')})",
        f"{cell('bone_spread', '.1f', 100)} %",
        cell("seconds_2d_per_frame", ".0f", 1000),
        cell("seconds_rig", ".1f"),
    ]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """All recordings by all detectors."""
    return grid(HEADS, [row(label, values) for label, values in results.items()])


def summary(results: Mapping[str, Mapping[str, Any]], by: Mapping[str, str]) -> str:
    """Of many recordings, a line for each detector.

    Args:
        by: the detector of each result.
    """
    heads = ["keypoints", "accepted", "rotation, median over recordings, deg", "of accepted"]
    heads += ["views in 90 % regions", "failures accepted (over 10 deg)"]
    rows = []
    for detector in dict.fromkeys(by.values()):
        own = [v for label, v in results.items() if by[label] == detector and "error" not in v]
        known = [v for v in own if v["rotation_worst_deg"] is not None]
        good = [v for v in known if v["accepted"]]
        held, views = (sum(v[name] for v in known) for name in ("views_in_region90", "views"))
        failures = [v for v in known if v["rotation_worst_deg"] > 10]
        missed = sum(v["accepted"] for v in failures)
        rows.append(
            [
                detector,
                f"{sum(v['accepted'] for v in own)} of {list(by.values()).count(detector)}",
                _median([v["rotation_median_deg"] for v in known]),
                _median([v["rotation_median_deg"] for v in good]),
                f"{held} of {views}",
                f"{missed} of {len(failures)}",
            ]
        )
    return grid(heads, rows)


def _median(values: list[float]) -> str:
    return f"{np.median(values):.2f}" if values else "-"
