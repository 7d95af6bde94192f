"""Pictures of a run: error against the number of frames, time against sizes."""

from __future__ import annotations

from pathlib import Path

from benchmark.rig.run import Result
from benchmark.rig.scores import summarise

_STYLE = {
    "ours": ("C0", "-", "o"),
    "ours-geometry": ("C0", "--", "o"),
    "opencv": ("C1", "-", "s"),
    "poselib": ("C2", "-", "^"),
    "ba-fivepoint-softl1": ("C3", "--", "v"),
    "ba-fivepoint-cauchy": ("C3", "-", "v"),
    "ba-truth-softl1": ("C4", "--", "d"),
    "ba-truth-cauchy": ("C4", "-", "d"),
    "humancalib": ("C5", "-", "x"),
}


def error_against_frames(results: list[Result], path: Path) -> bool:
    """Draws RMS rotation error over T for every family, one row per kind of cell, with the bound.

    Returns:
        Whether there was anything to draw (two numbers of frames).
    """
    from matplotlib.figure import Figure

    def kind_of(result: Result) -> tuple[str, float, float]:
        return result.cell.errors, result.cell.noise, result.cell.outliers

    drawn = [r for r in results if r.flat and r.method != "calibrated"]
    kinds = sorted(set(map(kind_of, drawn)), key=lambda kind: (kind[0] != "gaussian", kind[1:]))
    families = list(dict.fromkeys(r.cell.family for r in drawn))
    if len({r.cell.num_frames for r in drawn}) < 2:
        return False
    figure = Figure(figsize=(3.4 * len(families) + 1.6, 2.9 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(families), squeeze=False, sharey=True, sharex=True)
    for row, kind in zip(axes, kinds):
        for axis, family in zip(row, families):
            _panel(axis, [r for r in drawn if r.cell.family == family and kind_of(r) == kind])
            axis.set_title(f"{family}, {kind[0]}, {kind[1]:g} px, {100 * kind[2]:g} %", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("frames")
    for axis in axes[:, 0]:
        axis.set_ylabel("median error of pairs, deg")
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    return True


def _panel(axis, results: list[Result]) -> None:
    for method, (colour, line, marker) in _STYLE.items():
        points = sorted(
            (r.cell.num_frames, summarise(r.flat)["median_deg"])
            for r in results
            if r.method == method
        )
        if points:
            axis.plot(*zip(*points), line, color=colour, marker=marker, ms=4, lw=1, label=method)
    bounds = {r.cell.num_frames: summarise(r.flat)["bound_deg"] for r in results}
    axis.plot(*zip(*sorted(bounds.items())), "k:", lw=1.5, label="Cramer-Rao bound (RMS, no body)")
    axis.loglog()
    axis.set_xticks(sorted(bounds), [str(T) for T in sorted(bounds)])
    axis.xaxis.minorticks_off()
    axis.grid(alpha=0.3, which="both", lw=0.4)
