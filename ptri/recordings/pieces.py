"""Bodies that are one person: seen, lost by all views, and seen again.

The views' rays tell who is the same at one time, and nothing of who comes back. A body is taken for
one that was seen before where nobody else can be meant: all others were there beside both, or their
clothes are clearly less alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ptri.recordings.agreement import Body, Sights
from ptri.recordings.tracklets import CLEAR

# Distance of the clothes' colours (6,), medians of two bodies, beyond which they are two people: of
# single sightings the same person's are 35 to 70 (95 % of a view), two people's 47 to 140.
UNLIKE = 60.0


def persons(bodies: Sequence[Body], sights: Sights, colours: np.ndarray) -> list[list[Body]]:
    """For each body, the largest first, itself and those that are the same person.

    Args:
        bodies: that two views see or more. colours: (N, 6) of all sightings, NaN = not known.
    """
    bodies = sorted(bodies, key=lambda body: -sights.weight[body.tracklets].sum())
    rows = [np.concatenate([sights.rows[k] for k in body.tracklets]) for body in bodies]
    there = np.zeros((len(bodies), 1 + max(map(np.max, rows), default=0)))
    for part, own in zip(there, rows):
        part[own] = 1
    beside = there @ there.T > 0  # (bodies, bodies)
    unlike = _unlike(bodies, sights, colours)
    return [[bodies[k] for k in _chain(n, beside, unlike)] for n in range(len(bodies))]


def _chain(first: int, beside: np.ndarray, unlike: np.ndarray) -> list[int]:
    """A body and others that are the same person, by who was beside whom and how alike they are."""
    chain = [first]
    for body in range(len(beside)):
        if body == first or beside[body, chain].any():
            continue
        # Who was there beside only one of them may be the other.
        with_chain = beside[chain].any(0)
        rivals = np.flatnonzero(with_chain ^ beside[body])
        rivals = rivals[(rivals != body) & ~np.isin(rivals, chain)]
        own = unlike[body, chain].mean()
        theirs = np.where(
            with_chain[rivals], unlike[body, rivals], unlike[rivals][:, chain].mean(1)
        )
        known = own <= UNLIKE and (theirs > CLEAR * own).all()
        if known or (np.isnan(own) and not len(rivals)):
            chain.append(body)
    return chain


def _unlike(bodies: Sequence[Body], sights: Sights, colours: np.ndarray) -> np.ndarray:
    """Distances (bodies, bodies) of colours in the views that both are seen in; NaN = not known."""
    usual = np.full((len(bodies), sights.view.max() + 1, colours.shape[1]), np.nan)
    for part, body in zip(usual, bodies):
        for view in set(sights.view[body.tracklets]):
            own = [sights.members[k] for k in body.tracklets if sights.view[k] == view]
            part[view] = np.median(colours[np.concatenate(own)], axis=0)
    distance = np.linalg.norm(usual[:, None] - usual, axis=-1)  # (bodies, bodies, views)
    both = np.isfinite(distance).sum(-1)
    return np.where(both, np.nansum(distance, -1) / np.maximum(both, 1), np.nan)
