"""Sightings of one person on end: what links them within a view, and where that ends.

A sighting continues a tracklet only where nobody else could be meant: where two people come so near
to each other that either could have gone to either's place, both tracklets end and new ones begin.
Which of them are the same person is then told by the other views (`ptri.recordings.agreement`),
never by a guess.
"""

from __future__ import annotations

import numpy as np

from ptri.recordings.candidates import Candidates, extents

FEWEST_POINTS = 4  # that are seen of a person who may be followed
# Moves are medians over the joints, in sizes of the larger sighting. People move by up to FREE_MOVE
# between any two frames (jitter, a limb) and by SPEED sizes a second beyond it: walking past a
# camera, seen from the side, is 1.4 m/s, 0.8 sizes of a standing person.
FREE_MOVE, SPEED = 0.15, 1.8
# Another could be meant unless it is more unlike than CLEAR times the one that is believed, and by
# JITTER more. Of 850 tracklets in 50 generated crowds, two or three people 0.4 to 1.2 m apart, 40
# frames at 5 to 30 a second, 4 mix people; at 2 frames a second 14 of 550.
CLEAR, JITTER = 2.0, 0.05
# Two sightings whose clothes' colours (6,) are so far apart are as unlike as by a move of one size.
# On the sample recordings, 0.4 to 0.8 s apart: the same person 20 (median; 95 % of a view: 35 to
# 70), two people 58 to 140 (5 % of a view: 47 to 109).
COLOUR = 100.0
LONGEST_GAP = 0.5  # s, and a frame that is left out, without a sighting: then a tracklet ends
SAME = 0.05  # sightings of one frame nearer than this are one person, found twice


def link(candidates: Candidates, times: np.ndarray) -> np.ndarray:
    """Numbers (N,) of the tracklets that sightings belong to; -1 = too little seen, or a double.

    Args:
        times: (T,) s of the frames.
    """
    labels = np.full(len(candidates.row), -1)
    size = extents(candidates.xy)
    enough = np.isfinite(candidates.xy).all(-1).sum(1) >= FEWEST_POINTS
    count = 0
    for view in np.unique(candidates.view):
        last: dict[int, int] = {}  # of the open tracklets by number, their last sightings
        of_view = np.flatnonzero((candidates.view == view) & enough)
        of_view = of_view[np.argsort(candidates.row[of_view], kind="stable")]
        rows, starts = np.unique(candidates.row[of_view], return_index=True)
        for row, here in zip(rows, np.split(of_view, starts[1:])):
            here = _without_doubles(candidates, size, here)
            last = {k: n for k, n in last.items() if _age(candidates, times, n, row) <= LONGEST_GAP}
            numbers, before = list(last), np.array(list(last.values()), int)
            move = _moves(candidates.xy, size, before, here)  # (tracklets, sightings)
            reach = FREE_MOVE + SPEED * (times[row] - times[candidates.row[before]])
            near = move < reach[:, None]
            colour = _colour_differences(candidates.colours, before, here)
            follows = _clear_matches(np.hypot(move, colour / COLOUR), near)
            for a, c in zip(*np.nonzero(follows)):
                labels[here[c]] = numbers[a]
                last[numbers[a]] = here[c]
            # Lost beside somebody else: whoever comes next there may be either.
            lost = ~follows.any(1) & near.any(1)
            for a in np.flatnonzero(lost):
                del last[numbers[a]]
            for n in here[labels[here] < 0]:
                labels[n] = count
                last[count] = n
                count += 1
    return labels


def _age(candidates: Candidates, times: np.ndarray, sighting: int, row: int) -> float:
    """Seconds from a sighting to a frame; 0 where at most one frame lies between them."""
    before = candidates.row[sighting]
    return 0.0 if row - before <= 2 else times[row] - times[before]


def _moves(xy: np.ndarray, size: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Moves (A, C) between sightings in sizes; infinite where few joints are seen in both."""
    if not len(before) or not len(after):
        return np.zeros((len(before), len(after)))
    distance = np.linalg.norm(xy[before][:, None] - xy[after], axis=-1)  # (A, C, J)
    few = np.isfinite(distance).sum(-1) < FEWEST_POINTS
    distance[few] = np.inf
    return np.nanmedian(distance, -1) / np.maximum(
        np.maximum(size[before][:, None], size[after]), 1
    )


def _colour_differences(colours: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Distances (A, C) between the colours of sightings; 0 where they are not known."""
    return np.nan_to_num(np.linalg.norm(colours[before][:, None] - colours[after], axis=-1))


def _clear_matches(unlike: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Which pairs (A, C) continue each other: they are near, and nobody else could be meant.

    Args:
        unlike: how far each pair is apart, sizes.
    """
    matches = np.zeros(near.shape, bool)
    unlike = np.where(near, unlike, np.inf)
    for a, c in zip(*np.nonzero(near)):
        own = unlike[a, c]
        others = np.concatenate([np.delete(unlike[a], c), np.delete(unlike[:, c], a)])
        matches[a, c] = (others > max(CLEAR * own, own + JITTER)).all()
    return matches


def _without_doubles(candidates: Candidates, size: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Sightings of a frame, the surest of those that are one person; given ones stay."""
    trust = candidates.confidence[here].mean(1) + 10.0 * candidates.given[here]
    here = here[np.argsort(-trust, kind="stable")]
    near = np.tril(_moves(candidates.xy, size, here, here) < SAME, -1)
    kept = np.ones(len(here), bool)
    for n in range(len(here)):
        kept[n] = not (near[n] & kept).any()
    return here[kept]
