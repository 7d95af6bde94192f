"""The tables of `benchmark.py truth`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from benchmark.figures import Figure
from benchmark.truth.cases import GOOD
from benchmark.truth.cells import Result
from benchmark.truth.figures import (
    GOOD_DEG,
    WORSE_DEG,
    WORSE_LEVEL,
    by_difficulty,
    codes,
    summarise,
)
from benchmark.truth.targets import POOLED, stands_alone, title
from ptri.evaluation.table import grid

PERCENT, NUMBER = (".0f", " %"), (".2f", "")
REGIONS = {
    "rigs": ("rigs", (".0f", "")),
    "clips": ("clips", (".0f", "")),
    "level50": ("R in 50 %", PERCENT),
    "level90": ("R in 90 %", PERCENT),
    "too_small": ("sd too small by", NUMBER),
    "joints50": ("joints in 50 %", PERCENT),
    "joints90": ("joints in 90 %", PERCENT),
    "body50": ("fused in 50 %", PERCENT),
    "body90": ("fused in 90 %", PERCENT),
}
VERDICTS = {
    "rigs": ("rigs", (".0f", "")),
    "accepted": ("accepted", PERCENT),
    "failed_of_accepted": ("> 10 deg of accepted", PERCENT),
    "rejected_of_good": ("good rejected", PERCENT),
    "blamed": ("good views blamed", (".1f", " %")),
    "worse": ("worse than plain", (".1f", " %")),
    "better": ("better", PERCENT),
}
ERRORS = {
    "rigs": ("rigs", (".0f", "")),
    "angle_median": ("median deg", NUMBER),
    "angle_95": ("95th percentile", (".1f", "")),
    "plain_angle_median": ("plain: median", NUMBER),
    "plain_angle_95": ("95th", (".1f", "")),
    "cauchy_angle_median": ("Cauchy: median", NUMBER),
    "cauchy_angle_95": ("95th", (".1f", "")),
    "over_calibrated": ("MPJPE over true cameras", NUMBER),
}
SUMMARY = {  # heading, form, factor
    "level50": ("R in 50 %", ".0f", 100),
    "level90": ("R in 90 %", ".0f", 100),
    "joints90": ("joints in 90 %", ".0f", 100),
    "body90": ("fused in 90 %", ".0f", 100),
    "failed_of_accepted": ("> 10 deg of accepted", ".0f", 100),
    "rejected_of_good": ("good rejected", ".0f", 100),
    "blamed": ("blamed", ".0f", 100),
    "worse": ("worse than plain", ".0f", 100),
    "angle_median": ("median deg", ".2f", 1),
    "angle_95": ("95th", ".1f", 1),
}
NOTES = f"""\
#: held out, nothing was chosen on it. Intervals: 95 %, bootstrap over clips. R: rotation of a view
relative to view 0. sd too small by: factor at which half of the true rotations lie within the
middle of the stated covariance. joints: the detector's own, triangulated, in view 0's frame; fused:
Human3.6M's about the root. > 10 deg of accepted: of the accepted rigs, those with a pair of views
so far off. good rejected: of the rigs with every pair within {GOOD_DEG:g} deg. good views blamed:
rigs whose verdict finds fault with a view half of whose keypoints lie where they should, but for
{100 * GOOD:g} % of the person's extent. worse than plain: rigs in which a view ends
{WORSE_DEG:g} deg worse than by the plain solve and outside its own stated {100 * WORSE_LEVEL:g} %
region. better: in which a view ends {WORSE_DEG:g} deg better, whatever the region says."""


class Row(NamedTuple):
    """A detector and a family of rigs, or several."""

    detector: str
    family: str
    num_frames: int
    kind: str
    results: Sequence[Result]


def make_rows(results: Sequence[Result]) -> list[Row]:
    """By kind, number of frames and detector: each family, and those that are pooled together."""
    groups: dict[tuple[str, int, str], list[Result]] = {}
    for result in results:
        cell = result.cell
        groups.setdefault((cell.kind, cell.num_frames, cell.detector), []).append(result)
    rows = []
    for (kind, T, detector), part in groups.items():
        families = dict.fromkeys(result.cell.family for result in part)
        for family in families:
            members = [result for result in part if result.cell.family == family]
            rows.append(Row(detector, family, T, kind, members))
        known = [result for result in part if not stands_alone(result.cell.family)]
        if known:
            rows.append(Row(detector, POOLED, T, kind, known))
    return rows


def text_of(rows: Sequence[Row], figures: Sequence[Mapping[str, Figure]]) -> str:
    """All tables but that of the targets."""
    blocks = [_summary(rows, figures)]
    plain = [number for number, row in enumerate(rows) if not row.kind]
    for T in dict.fromkeys(rows[number].num_frames for number in plain):
        chosen = [number for number in plain if rows[number].num_frames == T]
        for head, columns in (("regions", REGIONS), ("verdict", VERDICTS), ("errors", ERRORS)):
            blocks.append(_table(f"T = {T}: {head}", rows, figures, chosen, columns, _name))
        pooled = [number for number in chosen if rows[number].family == POOLED]
        blocks.append(_difficulty(f"T = {T}: R by quartile of the stated width", rows, pooled))
    judged = [n for n, row in enumerate(rows) if row.family == POOLED or stands_alone(row.family)]
    thinned = [number for number in judged if rows[number].kind]
    if thinned:
        head = "keypoints as users have them: a view that sees seldom, upper bodies"
        blocks.append(_table(head, rows, figures, thinned, VERDICTS, _full_name))
    blocks.append(_codes([rows[number] for number in judged]))
    return "\n\n".join([*blocks, NOTES])


def _summary(rows: Sequence[Row], figures: Sequence[Mapping[str, Figure]]) -> str:
    """A line for each detector, and its figures at each number of frames in one cell."""
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if not row.kind and (row.family == POOLED or stands_alone(row.family)):
            groups.setdefault(_name(row), []).append(number)
    lines = []
    for name, numbers in groups.items():
        cells = []
        for key, (_, form, factor) in SUMMARY.items():
            parts = [factor * figures[n][key].value for n in numbers]
            cells.append(" / ".join("-" if math.isnan(p) else f"{p:{form}}" for p in parts))
        lines.append([name, *cells])
    frames = " / ".join(map(str, dict.fromkeys(row.num_frames for row in rows if not row.kind)))
    head = f"summary: T = {frames}; %, deg"
    return f"{head}\n{grid(['', *(heading for heading, _, _ in SUMMARY.values())], lines)}"


def _name(row: Row) -> str:
    return title(row.detector, row.family)


def _full_name(row: Row) -> str:
    return ", ".join(part for part in (_name(row), row.kind, f"T = {row.num_frames}") if part)


def _table(
    head: str,
    rows: Sequence[Row],
    figures: Sequence[Mapping[str, Figure]],
    chosen: Sequence[int],
    columns: Mapping[str, tuple[str, tuple[str, str]]],
    name: Callable[[Row], str],
) -> str:
    shown = {key: value for key, value in columns.items() if any(key in figures[n] for n in chosen)}
    lines = [
        [name(rows[n])]
        + [figures[n].get(key, Figure()).text(*form) for key, (_, form) in shown.items()]
        for n in chosen
    ]
    return f"{head}\n{grid(['', *(heading for heading, _ in shown.values())], lines)}"


def _difficulty(head: str, rows: Sequence[Row], chosen: Sequence[int]) -> str:
    lines = []
    for row in (rows[number] for number in chosen):
        for part in by_difficulty(row.results):
            forms = {"width": NUMBER, "level50": PERCENT, "level90": PERCENT, "too_small": NUMBER}
            lines.append([_name(row), *(part[key].text(*form) for key, form in forms.items())])
    return f"{head}\n{grid(['', 'sd deg', 'R in 50 %', 'R in 90 %', 'sd too small by'], lines)}"


def _codes(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        counts = ", ".join(f"{name} {count}" for name, count in codes(row.results).items())
        lines.append(f"{_full_name(row)}: {counts}")
    return "\n".join(["verdicts", *lines])


def to_json(rows: Sequence[Row], figures: Sequence[Mapping[str, Figure]]) -> list[dict]:
    """Every row's figures, verdicts and quartiles."""
    content = []
    for row, part in zip(rows, figures):
        values = {key: figure._asdict() for key, figure in part.items()}
        entry = {**row._asdict(), "figures": values, "verdicts": codes(row.results)}
        del entry["results"]
        if not row.kind:
            entry["quartiles"] = [
                {key: figure._asdict() for key, figure in quartile.items()}
                for quartile in by_difficulty(row.results)
            ]
        content.append(entry)
    return content


def summaries(rows: Sequence[Row]) -> list[dict[str, Figure]]:
    return [summarise(row.results) for row in rows]
