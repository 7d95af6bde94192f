"""The subject of a recording: the largest person that can be followed through a camera's frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST_POINTS = 4  # that are seen of a person who may be followed
# A move between two detections is measured in sizes of the larger one.
FREE_MOVE = 0.15  # costs nothing, jitter included
MOVE_COST = 20.0  # of every size more; the gain of a detection of full size is 1
JUMP_COST = 15.0  # the most that a move can cost
LOOK_BACK = 60  # detections from which a move is measured; a move from earlier ones is a jump


class _Candidates(NamedTuple):
    """N persons who may be followed, in order of their frames."""

    frame: np.ndarray  # (N,)
    person: np.ndarray  # (N,) index in the frame
    centre: np.ndarray  # (N, 2) px
    size: np.ndarray  # (N,) px, diagonal of the box around the seen points
    gain: np.ndarray  # (N,) size times mean confidence, over the largest


def follow_subject(
    people: Sequence[np.ndarray], min_confidence: float = 0.1, free_move: float = FREE_MOVE
) -> np.ndarray:
    """Chooses the same, largest person in every frame of one camera.

    It is the best chain of detections: each gains its size (over the largest) times its confidence,
    and a move between two costs its length. So a person who is larger for a moment does not take
    over, and a frame without the subject stays empty rather than jump to a bystander.

    Args:
        people: T arrays (persons, J, 3) of x, y (px) and confidence; NaN = not seen.
        min_confidence: points below it are not seen.
        free_move: sizes between two detections that cost nothing.

    Returns:
        Index (T,) of the subject among the people of each frame; -1 = not there.
    """
    subject = np.full(len(people), -1)
    candidates = _candidates(people, min_confidence)
    if candidates is None:
        return subject
    score, before = candidates.gain.copy(), np.full(len(candidates.gain), -1)
    for n, frame in enumerate(candidates.frame):
        num_earlier = int(np.searchsorted(candidates.frame, frame))
        if num_earlier == 0:
            continue
        options = []
        near = np.arange(max(0, n - LOOK_BACK), num_earlier)
        if len(near):
            distance = np.linalg.norm(candidates.centre[near] - candidates.centre[n], axis=1)
            move = distance / np.maximum(candidates.size[near], candidates.size[n])
            cost = np.minimum(MOVE_COST * np.maximum(move - free_move, 0), JUMP_COST)
            chain = score[near] - cost
            options.append((chain.max(), int(near[chain.argmax()])))
        best = int(score[:num_earlier].argmax())
        options.append((score[best] - JUMP_COST, best))
        if max(options)[0] > 0:
            chain, before[n] = max(options)
            score[n] += chain
    n = int(score.argmax())
    while n >= 0:
        subject[candidates.frame[n]] = candidates.person[n]
        n = before[n]
    return subject


def _candidates(people: Sequence[np.ndarray], min_confidence: float) -> _Candidates | None:
    """Who may be followed; None: nobody."""
    rows = []
    for frame, persons in enumerate(people):
        for index, points in enumerate(persons):
            seen = points[(points[:, 2] >= min_confidence) & np.isfinite(points).all(1)]
            if len(seen) >= FEWEST_POINTS:
                size = np.linalg.norm(np.ptp(seen[:, :2], axis=0))
                gain = size * seen[:, 2].sum() / len(points)
                rows.append((frame, index, np.median(seen[:, :2], 0), max(size, 1.0), gain))
    if not rows:
        return None
    candidates = _Candidates(*(np.array(column) for column in zip(*rows)))
    return candidates._replace(gain=candidates.gain / candidates.gain.max())
