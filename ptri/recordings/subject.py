"""Who is followed: one person, in every view in which the others' rays say that it is the same.

The same way for keypoint files with several people in them and for videos.
"""

from __future__ import annotations

import logging
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
from ptri.recordings.tracklets import link

log = logging.getLogger(__name__)

# A view's second choice has to be off by so many times as much, or who is followed there is unsure.
TELLING = 2.0


class Followed(NamedTuple):
    """The subject among all sightings."""

    sighting: np.ndarray  # (T, V) number among the N sightings; -1 = not there
    words: str  # who was followed in each view, and how sure that is


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
    if person == "box":
        body = _boxed(candidates, sights, bodies, names)
    else:
        body = max(bodies, key=lambda body: _value(sights, body, person))
    followed = body.tracklets + _alone(sights, bodies, body, len(K))
    sighting = np.full((len(times), len(K)), -1)
    for k in followed:
        sighting[sights.rows[k], sights.view[k]] = sights.members[k]
    sighting[strays(sights, body, sighting)] = -1
    return Followed(sighting, _words(sights, bodies, body, sighting, names, person))


def _value(sights: Sights, body: Body, person: str) -> tuple[bool, float]:
    """By how much a body is the one that is wanted; one that two views see before any other."""
    several = bool(body.matrices)
    if person == "largest":
        return several, float(sights.weight[body.tracklets].sum())
    total = 0.0
    for view in set(sights.view[body.tracklets]):
        own = [sights.members[k] for k in body.tracklets if sights.view[k] == view]
        members = np.concatenate(own)
        rays = np.ma.masked_invalid(sights.rays[members])  # (n, J, 2); joints may be seen never
        spread = np.median(rays.std(0).filled(0.0)[~rays.mask.all(0).any(-1)].max(-1))
        total += len(members) * float(spread / np.median(sights.sigma[members]))
    return several, total


def _boxed(
    candidates: Candidates, sights: Sights, bodies: list[Body], names: Sequence[str]
) -> Body:
    """The body that the user's boxes show.

    Raises:
        UserError: boxes of different views show different bodies.
    """
    given = [int(candidates.given[members].sum()) for members in sights.members]
    if not sum(given):
        raise UserError("recording.boxes: nobody is seen in any box")
    body = max(bodies, key=lambda body: sum(given[k] for k in body.tracklets))
    for other in bodies:
        stray = [k for k in other.tracklets if given[k]]
        if other is not body and other.matrices and stray:
            views = (next(k for k in part if given[k]) for part in (body.tracklets, stray))
            first, second = (f"{names[sights.view[k]]}.csv" for k in views)
            raise UserError(
                f"recording.boxes: {first} and {second} show different people, as the rays of "
                "all views say; correct one of them, or keep the surer one only"
            )
    # A box is the user's word, also where no other view agrees with it.
    rest = [k for k in range(len(given)) if given[k] and k not in body.tracklets]
    return body._replace(tracklets=body.tracklets + rest)


def _alone(sights: Sights, bodies: list[Body], body: Body, num_views: int) -> list[int]:
    """In views that do not know the body, the largest tracklet of nobody else's.

    A camera that is given wrongly (mirrored, late, another's K) agrees with no other, and it is the
    verdict that says so.
    """
    nobody = [part.tracklets[0] for part in bodies if not part.matrices]
    result = []
    for view in set(range(num_views)) - set(sights.view[body.tracklets]):
        there = [k for k in nobody if sights.view[k] == view]
        if there:
            result.append(max(there, key=lambda k: sights.weight[k]))
    return result


_WHOM = {"largest": "seen largest", "moving": "who moves most", "box": "in the boxes"}


def _words(
    sights: Sights,
    bodies: list[Body],
    body: Body,
    sighting: np.ndarray,
    names: Sequence[str],
    person: str,
) -> str:
    """Who was followed in each view, and how sure that is."""
    people = sum(bool(part.matrices) for part in bodies)
    lines = [f"followed: the person {_WHOM[person]}, of {people} whom two views or more see"]
    for view, name in enumerate(names):
        share = (sighting[:, view] >= 0).mean()
        if not share:
            lines.append(f"  {name}: not seen")
            continue
        text = f"  {name}: in {100 * share:.0f} % of the frames"
        there = np.flatnonzero(sights.view == view).tolist()
        own = [k for k in there if np.isin(sights.members[k], sighting[:, view]).any()]
        residual = residual_of(sights, body, own)
        together = np.flatnonzero(sighting[:, view] >= 0)
        others = [
            residual_of(sights, body, [k])
            for k in there
            if k not in own and np.isin(sights.rows[k], together).sum() >= LEAST_FRAMES
        ]
        if not np.isfinite(residual):
            text += ", as the largest there; no other view tells whether it is the same person"
        else:
            text += f", {residual:.1f} % of the person's size off the other views' rays"
            rival = min(others, default=np.inf)
            if np.isfinite(rival):
                text += f" (the next person there {rival:.1f} %)"
            if rival < TELLING * residual:
                text += f": UNSURE who it is; give boxes/{name}.csv"
        lines.append(text)
    return "\n".join(lines)
