"""Which cells are run, with how many cases, and by which methods."""

from __future__ import annotations

from typing import NamedTuple

from benchmark.rig.cases import Cell
from ptri.errors import UserError

FRAMES = (1, 10, 50)
NOISE = (1.0, 3.0, 8.0)  # px
OUTLIERS = (0.0, 0.05, 0.2)
OURS = ("ours", "ours-geometry")
CLASSICAL = (
    "opencv",
    "poselib",
    "ba-fivepoint-softl1",
    "ba-fivepoint-cauchy",
    "ba-truth-softl1",
    "ba-truth-cauchy",
    "humancalib",
)
METHODS = (*OURS, *CLASSICAL, "calibrated")
GRIDS = ("targets", "sweep", "full")


class Part(NamedTuple):
    """A cell with the methods that its question is put to."""

    cell: Cell
    methods: tuple[str, ...]


def make_grid(
    families: list[str],
    frames: tuple[int, ...],
    methods: tuple[str, ...],
    kind: str,
    fps: float | None = None,
) -> list[Part]:
    """The cells of a run.

    "targets": the table of targets: 3 px and 5 % outliers with independent errors (all methods)
    and with detector-like ones; Gaussian noise only (against the bound). "sweep" adds 1 and 8 px,
    and 0 and 20 % outliers, one at a time; "full" all of their combinations.

    Raises:
        UserError: an unknown method or kind.
    """
    for name in methods:
        if name not in METHODS:
            raise UserError(f"unknown method '{name}'; expected some of {', '.join(METHODS)}")
    if kind not in GRIDS:
        raise UserError(f"unknown grid '{kind}'; expected one of {', '.join(GRIDS)}")
    cells: dict[Cell, tuple[str, ...]] = {}
    for family in families:
        for T in frames:
            cells[Cell(family, T, fps=fps)] = METHODS
            clean = ("ours-geometry", *CLASSICAL, "calibrated")
            cells[Cell(family, T, outliers=0.0, fps=fps)] = clean
            wrong = ("ours", "ba-fivepoint-softl1", "ba-fivepoint-cauchy", "calibrated")
            cells[Cell(family, T, errors="detector", fps=fps)] = wrong
            if kind == "targets":
                continue
            for noise in NOISE:
                for outliers in OUTLIERS:
                    if kind == "full" or noise == 3.0 or outliers == 0.05:
                        cells[Cell(family, T, noise, outliers, fps=fps)] = METHODS
    return [
        Part(cell, tuple(name for name in METHODS if name in methods and name in asked))
        for cell, asked in cells.items()
    ]


def num_cases(count: int, num_frames: int) -> int:
    """Cases of a cell: fewer of many frames, which take longer and scatter less."""
    return max(count // (1 if num_frames < 5 else 2 if num_frames < 30 else 4), 2)
