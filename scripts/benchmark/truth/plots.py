"""Reliability: the level that is stated against the share of truths that its regions hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmark.truth.figures import Pool, inside
from benchmark.truth.tables import Row
from benchmark.truth.targets import HELD_OUT_FAMILIES, POOLED, held_out, title

LEVELS = np.linspace(0.05, 0.95, 19)
PANELS = {"level": "rotation of a view", "joints": "joint, triangulated", "body": "joint, fused"}


def reliability(rows: Sequence[Row], path: Path) -> None:
    """Draws a panel for each number of frames and each kind of region, a line for each detector.

    Args:
        rows: of all families; the pooled ones and those held out (dashed) are drawn.
    """
    from matplotlib.figure import Figure

    drawn = [r for r in rows if not r.kind and r.family in (POOLED, *HELD_OUT_FAMILIES)]
    frames = list(dict.fromkeys(row.num_frames for row in drawn))
    colours = {name: f"C{n}" for n, name in enumerate(dict.fromkeys(r.detector for r in drawn))}
    figure = Figure(figsize=(3.2 * len(frames) + 2.2, 3 * len(PANELS)), layout="constrained")
    axes = figure.subplots(len(PANELS), len(frames), squeeze=False, sharex=True, sharey=True)
    for line, (name, heading) in zip(axes, PANELS.items()):
        for axis, T in zip(line, frames):
            axis.plot([0, 1], [0, 1], "k:", lw=1)
            for row in (row for row in drawn if row.num_frames == T):
                levels = Pool(row.results).array(name)[0]
                held = [np.nanmean(inside(levels, level)) for level in LEVELS]
                style = "--" if held_out(row.detector, row.family) else "-"
                label = title(row.detector, row.family)
                axis.plot(LEVELS, held, style, color=colours[row.detector], lw=1.2, label=label)
            axis.set_title(f"{heading}, T = {T}", fontsize=9)
            axis.grid(alpha=0.3, lw=0.4)
    for axis in axes[-1]:
        axis.set_xlabel("stated level")
    for axis in axes[:, 0]:
        axis.set_ylabel("share of truths held")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=110)
