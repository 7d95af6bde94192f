"""Who is followed: one person, in every view in which the others' rays say that it is the same.

The same way for keypoint files with several people in them and for videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptri.errors import UserError
from ptri.recordings.agreement import (
    LEAST_FRAMES,
    Body,
    Sights,
    find_bodies,
    residual_of,
    sights_of,
    strays,
)
from ptri.recordings.candidates import Candidates
from ptri.recordings.pieces import persons
from ptri.recordings.tracklets import link

# A view's second choice has to be off by so many times as much, or who is followed there is unsure.
TELLING = 2.0


class Followed(NamedTuple):
    """The subject among all sightings."""

    sighting: np.ndarray  # (T, V) number among the N sightings; -1 = not there
    words: str  # who was followed in each view, and how sure that is
    others: tuple[np.ndarray, ...] = ()  # the same of all others whom two views see


def follow(
    candidates: Candidates,
    times: np.ndarray,
    K: np.ndarray,
    names: Sequence[str],
    person: str = "auto",
) -> Followed:
    """Chooses the same person in every view.

    Args:
        candidates: what is too unsure to count is not seen in them (`Candidates.surely`).
        times: (T,) s of the frames. K: (V, 3, 3) px. names: of the V cameras.
        person: "largest": whose size, over all frames and views, is the largest; "moving": whose
            joints move most, in sizes; "box": whom the user's boxes show; "auto": "box" where there
            are boxes, else "largest". Of people whom two views see, where there are any.

    Raises:
        UserError: person is "box", and the boxes show different people, or nobody.
    """
    if person == "auto":
        person = "box" if candidates.given.any() else "largest"
    labels = link(candidates, times)
    sights = sights_of(candidates, labels, K)
    if not len(sights.view):
        return Followed(np.full((len(times), len(K)), -1), "nobody was seen")
    bodies = find_bodies(sights)
    seen_alike = [body for body in bodies if body.matrices]
    found = persons(seen_alike, sights, candidates.colours) or [[body] for body in bodies]
    if person == "box":
        pieces = _boxed(candidates, sights, bodies, found, names)
    else:
        pieces = max(found, key=lambda pieces: sum(_value(sights, b, person) for b in pieces))
    sighting = np.full((len(times), len(K)), -1)
    for k in _alone(sights, bodies, pieces, len(K)):
        sighting[sights.rows[k], sights.view[k]] = sights.members[k]
    sighting = _sightings(sights, pieces, sighting)
    nobody = np.full_like(sighting, -1)
    others = [
        _sightings(sights, other, nobody)
        for other in found
        if other is not pieces and not any(body in pieces for body in other)
    ]
    together = [((other >= 0).sum(1) >= 2).sum() for other in others]
    others = tuple(o for o, count in zip(others, together) if count >= LEAST_FRAMES)
    words = _words(sights, bodies, pieces, sighting, names, person)
    return Followed(sighting, words, others)


def _sightings(sights: Sights, pieces: list[Body], sighting: np.ndarray) -> np.ndarray:
    """Sightings (T, V) of the bodies that are one person, over those that are there."""
    for body in pieces:
        own = np.full_like(sighting, -1)
        for k in body.tracklets:
            own[sights.rows[k], sights.view[k]] = sights.members[k]
        own[strays(sights, body, own)] = -1
        sighting = np.where(own >= 0, own, sighting)
    return sighting


def _value(sights: Sights, body: Body, person: str) -> float:
    """By how much a body is the one that is wanted."""
    if person == "largest":
        return float(sights.weight[body.tracklets].sum())
    total = 0.0
    for view in set(sights.view[body.tracklets]):
        own = [sights.members[k] for k in body.tracklets if sights.view[k] == view]
        members = np.concatenate(own)
        rays = np.ma.masked_invalid(sights.rays[members])  # (n, J, 2); joints may be seen never
        spread = np.median(rays.std(0).filled(0.0)[~rays.mask.all(0).any(-1)].max(-1))
        total += len(members) * float(spread / np.median(sights.sigma[members]))
    return total


def _boxed(
    candidates: Candidates,
    sights: Sights,
    bodies: list[Body],
    found: list[list[Body]],
    names: Sequence[str],
) -> list[Body]:
    """The bodies that the user's boxes show.

    Args:
        found: bodies that are one person.

    Raises:
        UserError: boxes of different views show different bodies.
    """
    given = [int(candidates.given[members].sum()) for members in sights.members]
    if not sum(given):
        raise UserError("recording.boxes: too little of a person is seen in any box; draw others")
    pieces = max(found, key=lambda pieces: sum(given[k] for b in pieces for k in b.tracklets))
    own = [k for body in pieces for k in body.tracklets if given[k]]
    pieces = pieces if own else []  # the boxes show somebody whom no other view knows
    for other in bodies:
        stray = [k for k in other.tracklets if given[k]]
        beside = any(np.isin(sights.rows[a], sights.rows[b]).any() for a in own for b in stray)
        if other.matrices and beside and not set(stray) & set(own):
            views = own[0], stray[0]
            first, second = (f"{names[sights.view[k]]}.csv" for k in views)
            raise UserError(
                f"recording.boxes: {first} and {second} show different people, as the rays of "
                "all views say; correct one of them, or keep the surer one only"
            )
    # A box is the user's word, also where no other view agrees with it.
    rest = [k for k in range(len(given)) if given[k] and k not in own]
    return [*pieces, Body(rest, {})] if rest else pieces


def _alone(sights: Sights, bodies: list[Body], pieces: list[Body], num_views: int) -> list[int]:
    """In views that do not know the person, the largest tracklet of nobody else's.

    A camera that is given wrongly (mirrored, late, another's K) agrees with no other, and it is the
    verdict that says so.
    """
    nobody = [part.tracklets[0] for part in bodies if not part.matrices]
    result = []
    known = {view for body in pieces for view in sights.view[body.tracklets].tolist()}
    for view in set(range(num_views)) - known:
        there = [k for k in nobody if sights.view[k] == view]
        if there:
            result.append(max(there, key=lambda k: sights.weight[k]))
    return result


_WHOM = {"largest": "seen largest", "moving": "who moves most", "box": "in the boxes"}


def _words(
    sights: Sights,
    bodies: list[Body],
    pieces: list[Body],
    sighting: np.ndarray,
    names: Sequence[str],
    person: str,
) -> str:
    """Who was followed in each view, and how sure that is."""
    alike = [body for body in pieces if body.matrices]
    others = sum(bool(body.matrices) for body in bodies) - len(alike)
    people = others + bool(alike)
    lines = [f"followed: the person {_WHOM[person]}, of {people} whom two views or more see"]
    if len(alike) > 1:
        lines[0] += (
            f"; lost by all views and found again {len(alike) - 1} times, by the clothes or since "
            "nobody else could be meant"
        )
    for view, name in enumerate(names):
        share = (sighting[:, view] >= 0).mean()
        if not share:
            lines.append(f"  {name}: not seen")
            continue
        text = f"  {name}: in {100 * share:.0f} % of the frames"
        there = np.flatnonzero(sights.view == view).tolist()
        own = [k for k in there if np.isin(sights.members[k], sighting[:, view]).any()]
        residual = _mean_residual(sights, alike, own)
        together = np.flatnonzero(sighting[:, view] >= 0)
        rivals = [
            _mean_residual(sights, alike, [k])
            for k in there
            if k not in own and np.isin(sights.rows[k], together).sum() >= LEAST_FRAMES
        ]
        if not np.isfinite(residual):
            text += ", as the largest there; no other view tells whether it is the same person"
        else:
            text += f", {residual:.1f} % of the person's size off the other views' rays"
            rival = min(rivals, default=np.inf)
            if np.isfinite(rival):
                text += f" (the next person there {rival:.1f} %)"
            if rival < TELLING * residual:
                text += f": UNSURE who it is; give boxes/{name}.csv"
        lines.append(text)
    return "\n".join(lines)


def _mean_residual(sights: Sights, pieces: list[Body], tracklets: list[int]) -> float:
    """Median residual of tracklets of a view against the bodies of a person, their mean, units."""
    values = [residual_of(sights, body, tracklets) for body in pieces]
    values = [value for value in values if np.isfinite(value)]
    return float(np.mean(values)) if values else np.inf
