"""Scores of keypoints on photographs: PCK, sides, stated ellipses, and the targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import chi2

from benchmark.figures import Figure, Judged, bootstrap, mean, median
from benchmark.photos.persons import Crops, Guess
from ptri.data.annotations import JOINTS
from ptri.evaluation import metrics
from ptri.evaluation.table import grid

MIRROR = [
    JOINTS.index(name.replace("left", "?").replace("right", "left").replace("?", "right"))
    for name in JOINTS
]
PARTS = tuple(dict.fromkeys(name.split("_")[1] for name in JOINTS))
LEVELS = (0.1, 0.2)
SMALL = 128.0  # px of the photograph; longer side of the box
_SIDES = ("left", "right")


TARGET = ("PCK@0.2 of the torso", "pck20_torso", 0.75)  # label, figure, at least


def errors(crops: Crops, guess: Guess) -> np.ndarray:
    """Distances (N, 12) px of the crops; infinite where nothing was found, NaN if not labelled."""
    distance = np.linalg.norm(guess.xy - crops.xy, axis=-1)
    distance = np.where(np.isnan(distance), np.inf, distance)
    return np.where(crops.labelled, distance, np.nan)


def score(crops: Crops, guess: Guess, seed: int = 0) -> dict[str, Any]:
    """All figures of a method; shares are 0 to 1 of labelled joints, hidden ones included.

    Returns:
        "pck10_torso", "pck20_torso", "pck10_box", "pck20_box": share within 0.1 or 0.2 of the torso
        (`torso_length`) or of the box's longer side; "interval": 5 % and 95 % of pck20_torso over
        2000 draws of the photographs with replacement; "pck20_visible" and "pck20_hidden", of the
        torso, by COCO's flag; "median_box": median error over the box's longer side;
        "nearer_mirror": share nearer to the mirror joint's truth, of joints whose mirror is
        labelled; "swapped": those of them within 0.2 torso of it and not of their own;
        "pck20_sides": pck20_torso if each pair could be exchanged; "persons_half": persons with
        over half of their joints right (0.2 torso); "found": persons with any keypoint, and
        "pck20_found": pck20_torso of those;
        "pck20_whole" and "pck20_cut": pck20_torso of persons with and without a labelled ankle;
        "pck20_small": of boxes under 128 px of the photograph; "coverage90": share of truths inside
        the 90 % ellipse; "confidence_auc": chance that a joint within 0.2 torso has a higher
        confidence than one that is not (0.5: all are, or none); "joints": pck10_torso, pck20_torso
        and median_box by joint; "count".
    """
    distance, labelled = errors(crops, guess), crops.labelled
    torso, box = crops.torso[:, None], crops.box[:, None]
    right = {
        f"pck{100 * level:.0f}_{name}": distance <= level * length
        for level in LEVELS
        for name, length in (("torso", torso), ("box", box))
    }
    good = right["pck20_torso"]
    figures: dict[str, Any] = {name: _share(hits, labelled) for name, hits in right.items()}
    figures["interval"] = _interval(good, labelled, crops.photos, seed)
    figures["pck20_visible"] = _share(good, crops.visible)
    figures["pck20_hidden"] = _share(good, labelled & ~crops.visible)
    figures["median_box"] = median((distance / box)[labelled])
    figures |= _sides(crops, guess, distance, good)
    share = (good & labelled).sum(1) / labelled.sum(1).clip(1)
    figures["persons_half"] = float((share > 0.5).mean())
    somebody = np.isfinite(guess.xy).all(-1).any(1)
    figures["found"] = float(somebody.mean())
    figures["pck20_found"] = _share(good, labelled & somebody[:, None])
    ankle = labelled[:, [JOINTS.index(f"{side}_ankle") for side in _SIDES]].any(1)[:, None]
    figures["pck20_whole"] = _share(good, labelled & ankle)
    figures["pck20_cut"] = _share(good, labelled & ~ankle)
    figures["pck20_small"] = _share(good, labelled & (crops.source < SMALL)[:, None])
    if guess.confidence is not None:
        said = torch.from_numpy(guess.confidence[labelled])
        figures["confidence_auc"] = metrics.ranking(said, torch.from_numpy(good[labelled]))
    if guess.covariance is not None:
        off, covariance = map(torch.tensor, (crops.xy - guess.xy, guess.covariance))
        square = metrics.mahalanobis_square(off, covariance.to(off)).numpy()
        figures["coverage90"] = _share(square <= chi2.ppf(0.9, 2), labelled)
    figures["joints"] = {
        name: {
            "pck10_torso": _share(right["pck10_torso"][:, j], labelled[:, j]),
            "pck20_torso": _share(good[:, j], labelled[:, j]),
            "median_box": median((distance / box)[:, j][labelled[:, j]]),
            "count": int(labelled[:, j].sum()),
        }
        for j, name in enumerate(JOINTS)
    }
    figures["count"] = int(labelled.sum())
    return figures


def _sides(crops: Crops, guess: Guess, distance: np.ndarray, good: np.ndarray) -> dict[str, float]:
    """Left and right taken for each other."""
    both = crops.labelled & crops.labelled[:, MIRROR]
    other = np.linalg.norm(guess.xy - crops.xy[:, MIRROR], axis=-1)
    other = np.where(np.isnan(other), np.inf, other)
    near = other <= 0.2 * crops.torso[:, None]
    # A pair's better order: the number of right joints as named, or exchanged.
    hits = (np.stack([good, near]) & both).astype(int)
    paired = (hits + hits[..., MIRROR]).max(0)  # (N, 12), each pair twice
    best = np.where(both, paired / 2, good & crops.labelled).sum()
    return {
        "nearer_mirror": _share(other < distance, both),
        "swapped": _share(near & ~good, both),
        "pck20_sides": float(best / crops.labelled.sum()),
    }


def _share(hits: np.ndarray, of: np.ndarray) -> float:
    return mean(hits[of])


def _interval(
    hits: np.ndarray, of: np.ndarray, photos: list[str], seed: int
) -> tuple[float, float]:
    """5 % and 95 % of a share when whole photographs are drawn again: their persons are alike."""
    _, group = np.unique(photos, return_inverse=True)
    counts = tuple(np.bincount(group, part.sum(1)) for part in (hits & of, of))
    return bootstrap([counts], seed, (0.05, 0.95), 2000)[1:]


def person_errors(crops: Crops, guess: Guess) -> np.ndarray:
    """Mean error (N,) over a person's labelled joints, each at most one torso; in torsos."""
    ratio = np.minimum(errors(crops, guess) / crops.torso[:, None], 1.0)
    return np.where(crops.labelled, ratio, 0).sum(1) / crops.labelled.sum(1).clip(1)


# --- tables ----------------------------------------------------------------------------------

_COLUMNS = {
    "pck20_torso": ("PCK@.2 torso", "{:.1f}"),
    "interval": ("(90 % int.)", "{:.0f}-{:.0f}"),
    "pck10_torso": ("PCK@.1 torso", "{:.1f}"),
    "pck20_box": ("PCK@.2 box", "{:.1f}"),
    "pck10_box": ("PCK@.1 box", "{:.1f}"),
    "pck20_visible": ("visible", "{:.1f}"),
    "pck20_hidden": ("hidden", "{:.1f}"),
    "pck20_whole": ("ankle labelled", "{:.1f}"),
    "pck20_cut": ("no ankle", "{:.1f}"),
    "pck20_small": ("box < 128 px", "{:.1f}"),
    "pck20_sides": ("sides free", "{:.1f}"),
    "nearer_mirror": ("nearer mirror", "{:.1f}"),
    "swapped": ("swapped", "{:.1f}"),
    "median_box": ("median % box", "{:.2f}"),
    "coverage90": ("in 90 % ell.", "{:.1f}"),
    "confidence_auc": ("confidence AUC", "{:.1f}"),
    "found": ("persons found", "{:.0f}"),
    "pck20_found": ("PCK@.2 of found", "{:.1f}"),
}

_BY_JOINT = (
    ("pck20_torso", "PCK@.2 torso", "{:.0f}"),
    ("median_box", "median error, % of the box", "{:.1f}"),
)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Figures of all methods, in percent, a column each; the first lines name the columns."""
    letters = [chr(ord("A") + index) for index in range(len(results))]
    names = [f"{letter}: {name}" for letter, name in zip(letters, results)]
    rows = [
        [head, *(_cell(figures.get(key), form) for figures in results.values())]
        for key, (head, form) in _COLUMNS.items()
    ]
    tables = [grid(["", *letters], rows)]
    for key, head, form in _BY_JOINT:
        rows = []
        for part in PARTS:
            both = [f"{side}_{part}" for side in _SIDES]
            pairs = [[figures["joints"][name] for name in both] for figures in results.values()]
            cells = [", ".join(_cell(side[key], form) for side in pair) for pair in pairs]
            rows.append([f"{part} ({sum(side['count'] for side in pairs[0])})", *cells])
        tables.append(f"{head}, by joint (left, right)\n" + grid(["", *letters], rows))
    return "\n".join(names) + "\n" + "\n\n".join(tables)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    values = [100 * v for v in (value if isinstance(value, tuple) else (value,))]
    return "-" if any(v != v for v in values) else form.format(*values)


def check(networks: dict[str, dict], peers: dict[str, dict]) -> list[Judged]:
    """The target, then what each peer reaches, beside what the detectors reach."""
    label, figure, least = TARGET
    aims = {
        label: least,
        **{f"{label}: {name}": round(peer[figure], 3) for name, peer in peers.items()},
    }
    return [
        Judged(aim, Figure(figures[figure]), least, column=method, form=".1f", unit=" %")
        for method, figures in networks.items()
        for aim, least in aims.items()
    ]
