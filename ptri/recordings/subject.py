"""The subject of a recording: the largest person that can be followed through a camera's frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST_POINTS = 4  # that are seen of a person who may be followed
# A move between two detections is measured in sizes of the larger one.
FREE_MOVE = 0.15  # costs nothing, jitter included
MOVE_COST = 20.0  # of every size more; the gain of a detection of full size is 1
JUMP_COST = 15.0  # the most that a move can cost
LOOK_BACK = 60  # detections from which a move is measured; a move from earlier ones is a jump


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
    rows = []
    for frame, persons in enumerate(people):
        for index, points in enumerate(persons):
            seen = points[(points[:, 2] >= min_confidence) & np.isfinite(points).all(1)]
            if len(seen) >= FEWEST_POINTS:
                size = np.linalg.norm(np.ptp(seen[:, :2], axis=0))  # px, the box's diagonal
                gain = size * seen[:, 2].sum() / len(points)
                rows.append((frame, index, np.median(seen[:, :2], 0), max(size, 1.0), gain))
    if not rows:
        return subject
    # N persons who may be followed, in order of their frames: (N,), the centre (N, 2) px
    frame, person, centre, size, gain = (np.array(column) for column in zip(*rows))
    score, before = gain / gain.max(), np.full(len(gain), -1)
    for n, first in enumerate(np.searchsorted(frame, frame)):
        if first == 0:
            continue
        distance = np.linalg.norm(centre[:first] - centre[n], axis=1)
        move = distance / np.maximum(size[:first], size[n])
        cost = np.minimum(MOVE_COST * np.maximum(move - free_move, 0), JUMP_COST)
        cost[: max(0, n - LOOK_BACK)] = JUMP_COST
        chain = score[:first] - cost
        best = int(chain.argmax())
        if chain[best] > 0:
            score[n] += chain[best]
            before[n] = best
    n = int(score.argmax())
    while n >= 0:
        subject[frame[n]] = person[n]
        n = before[n]
    return subject
