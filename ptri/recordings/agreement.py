"""Which tracklets of different views show one body, by epipolar geometry.

Static cameras tie every pair of views by one essential matrix E: a joint seen at the rays ``x_a``
and ``x_b`` obeys ``x_b^T E x_a = 0`` in all frames. Tracklets of one moving body agree with one E,
those of two people with none. So E is fitted to pairs of long tracklets; with those of other views
that agree they are a hypothesis of one body, and the one that explains most is believed first.
Under its matrices short tracklets are told too.

The unit of residuals is 1 % of the person's size in the view; the Sampson distance in it (Hartley
and Zisserman, Multiple View Geometry, 2004, section 11.4.3) is the error of a joint.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from ptri.geometry.epipolar import MIN_POINTS, relative_pose
from ptri.recordings.candidates import Candidates, extents

UNIT = 0.01  # of a person's size (diagonal of the box around the joints)
LEAST_FRAMES = 6  # that two tracklets share before an E of their own says anything
MOST_FRAMES = 20  # of those they share that are looked at, spread evenly
# Tracklets that hypotheses are made of: so many of each view in each stretch of so many frames, the
# largest (size times frames).
MAINS, STRETCH = 4, 50
HYPOTHESES = 3
# Tracklets agree below AGREE times the residual of the hypothesis itself, and always below SURELY
# units. Generated people by two and three, 40 frames, 4 views, against a body of theirs: own
# tracklets of 5 frames and more 1.7 (99 %), of others 4.8 and more; of single frames 2.3 and more.
AGREE, SURELY = 3.0, 2.0
# A pair that is off by more is no beginning of a body: of 12 frames, own 1.4 (95 %).
WORST = 3.0
# A single sighting that far from the median of the other views is somebody else, or as good as. Of
# the same people in tracklets of one frame: own below in 90 %, others above in 70 %.
FAR = 6.0
THRESHOLD = 0.01  # of RANSAC, normalised


class Sights(NamedTuple):
    """The tracklets of a recording, and all sightings as rays."""

    rays: np.ndarray  # (N, J, 2) normalised, NaN = not seen
    sigma: np.ndarray  # (N,) one `UNIT` of the person's size, normalised
    rows: list[np.ndarray]  # of each tracklet, rising, the frames that it is seen in ...
    members: list[np.ndarray]  # ... and its sightings
    view: np.ndarray  # (tracklets,)
    weight: np.ndarray  # (tracklets,) normalised sizes, all frames together


class Pair(NamedTuple):
    """What two tracklets say of their views."""

    residual: float  # units, median
    frames: int  # that they share
    E: np.ndarray | None


def sights_of(candidates: Candidates, labels: np.ndarray, K: np.ndarray) -> Sights:
    """Sorts sightings into their tracklets.

    Args:
        labels: (N,) as `ptri.recordings.tracklets.link` gives them. K: (V, 3, 3) px.
    """
    own = K[candidates.view]  # (N, 3, 3)
    focal = own[:, [0, 1], [0, 1]]
    rays = (candidates.xy - own[:, None, :2, 2]) / focal[:, None]
    size = extents(candidates.xy) / focal.mean(1)
    members = [np.flatnonzero(labels == k) for k in range(labels.max(initial=-1) + 1)]
    members = [part[np.argsort(candidates.row[part])] for part in members]
    rows = [candidates.row[part] for part in members]
    view = np.array([candidates.view[part[0]] for part in members], int)
    weight = np.array([size[part].sum() for part in members])
    return Sights(rays, UNIT * size, rows, members, view, weight)


def shared(sights: Sights, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """Sightings of two tracklets in the frames that both have, at most `MOST_FRAMES`."""
    _, first, second = np.intersect1d(sights.rows[a], sights.rows[b], True, True)
    some = np.unique(np.linspace(0, len(first) - 1, MOST_FRAMES).round().astype(int))
    some = some if len(first) else slice(0)
    return sights.members[a][first[some]], sights.members[b][second[some]]


def sampson(sights: Sights, E: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Residuals (n, J) in units of sightings of one view (n,) and another (n,); NaN = not seen."""
    a = np.insert(sights.rays[first], 2, 1.0, axis=-1)  # (n, J, 3)
    b = np.insert(sights.rays[second], 2, 1.0, axis=-1)
    line_b, line_a = a @ E.T, b @ E
    variance = (line_b[..., :2] ** 2).sum(-1) * sights.sigma[second, None] ** 2
    variance += (line_a[..., :2] ** 2).sum(-1) * sights.sigma[first, None] ** 2
    return np.abs((b * line_b).sum(-1)) / np.sqrt(np.maximum(variance, 1e-30))


def fit(sights: Sights, first: np.ndarray, second: np.ndarray) -> np.ndarray | None:
    """The essential matrix that sightings (n,) of two views agree on best; None: too few."""
    a, b = sights.rays[first].reshape(-1, 2), sights.rays[second].reshape(-1, 2)
    both = np.isfinite(a).all(1) & np.isfinite(b).all(1)
    if both.sum() < MIN_POINTS:
        return None
    pose = relative_pose(a[both], b[both], THRESHOLD)
    if pose is None:
        return None
    R, (x, y, z), _ = pose
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ R


def compare(sights: Sights, a: int, b: int, E: np.ndarray | None = None) -> Pair:
    """How well two tracklets of different views agree, under a given E or the one of their own."""
    if not _overlap(sights, a, b):
        return Pair(np.inf, 0, None)
    first, second = shared(sights, a, b)
    frames = len(np.intersect1d(sights.rows[a], sights.rows[b]))
    own = E is None
    if own and frames >= LEAST_FRAMES:
        E = fit(sights, first, second)
    if E is None or not frames:
        return Pair(np.inf, frames, None)
    residual = sampson(sights, E, first, second)
    seen = np.isfinite(residual)
    return Pair(np.median(residual[seen]) if seen.any() else np.inf, frames, E)


# --- bodies ------------------------------------------------------------------------------------

Matrices = dict[tuple[int, int], np.ndarray]  # E of views a < b


class Body(NamedTuple):
    """Tracklets of one person, and what ties the views by them."""

    tracklets: list[int]
    matrices: Matrices  # none of a tracklet that agrees with no other
    explained: int = 0  # frames that its tracklets share and agree in


def find_bodies(sights: Sights) -> list[Body]:
    """All tracklets sorted into bodies: that first which explains most, then those of the rest.

    Each body has matrices of its own. The cameras are the same, but what is known of them is known
    where a body was.
    """
    pairs = {}
    for a, b in combinations(sorted(_mains(sights), key=lambda k: sights.view[k]), 2):
        if sights.view[a] != sights.view[b]:
            pair = compare(sights, a, b)
            if pair.residual < WORST:
                pairs[a, b] = pair
    free, bodies = set(range(len(sights.view))), []
    while True:
        inside = {pair: pairs[pair] for pair in pairs if set(pair) <= free}
        starts = sorted(inside, key=lambda pair: inside[pair].residual)[:HYPOTHESES]
        if not starts:
            return bodies + [Body([k], {}) for k in sorted(free)]
        grown = (_grown(sights, inside, start, free) for start in starts)
        bodies.append(max(grown, key=lambda body: body.explained))
        free -= set(bodies[-1].tracklets)


def _mains(sights: Sights) -> set[int]:
    """The largest tracklets of each view in each stretch of time."""
    last = max(rows[-1] for rows in sights.rows)
    chosen: set[int] = set()
    for start in range(0, last + 1, STRETCH):
        inside = [((rows >= start) & (rows < start + STRETCH)).sum() for rows in sights.rows]
        size = np.array(inside) * sights.weight / [len(rows) for rows in sights.rows]
        for view in np.unique(sights.view):
            there = np.flatnonzero((sights.view == view) & (size > 0))
            chosen.update(there[np.argsort(-size[there])][:MAINS].tolist())
    return chosen


def _grown(
    sights: Sights, pairs: dict[tuple[int, int], Pair], start: tuple[int, int], free: set[int]
) -> Body:
    """The body of a pair of tracklets: all that agree with the matrices that the pair leads to."""
    limit = max(SURELY, AGREE * pairs[start].residual)
    matrices = _hypothesis(sights, pairs, start)
    body = list(start)
    for again in (False, True):
        if again:  # with matrices from all that agreed
            matrices = _refitted(sights, matrices, body)
            body = list(start)
        explained = pairs[start].frames
        # Long tracklets first; a short one may agree by chance.
        for k in sorted(free - set(start), key=lambda k: -len(sights.rows[k])):
            if any(sights.view[k] == sights.view[a] and _together(sights, a, k) for a in body):
                continue
            known = [between for a in body if (between := _under(sights, matrices, a, k)).frames]
            if known and max(pair.residual for pair in known) <= limit:
                body.append(k)
                explained += sum(pair.frames for pair in known)
    return Body(body, matrices, explained)


def _hypothesis(
    sights: Sights, pairs: dict[tuple[int, int], Pair], start: tuple[int, int]
) -> Matrices:
    """Matrices of the views from one tracklet each: a pair's, then those that agree best."""
    chosen = list(start)
    rest = set(sights.view) - set(sights.view[chosen])
    while rest:
        cost = {}
        for k in {k for pair in pairs for k in pair if sights.view[k] in rest}:
            known = [
                pairs[pair].residual for pair in pairs if k in pair and set(pair) & set(chosen)
            ]
            if known:
                cost[k] = float(np.mean(known))
        if not cost:
            break
        chosen.append(min(cost, key=cost.get))
        rest.discard(sights.view[chosen[-1]])
    inside = [pair for pair in pairs if set(pair) <= set(chosen)]
    return {(sights.view[a], sights.view[b]): pairs[a, b].E for a, b in inside}


def _overlap(sights: Sights, a: int, b: int) -> bool:
    """Whether two tracklets may be there in one frame; quick, since long recordings have many."""
    first, second = sights.rows[a], sights.rows[b]
    return bool(first[0] <= second[-1] and second[0] <= first[-1])


def _together(sights: Sights, a: int, b: int) -> bool:
    """Whether two tracklets are there in one frame."""
    return _overlap(sights, a, b) and bool(np.isin(sights.rows[a], sights.rows[b]).any())


def _under(sights: Sights, matrices: Matrices, a: int, b: int) -> Pair:
    """How well two tracklets agree under the matrix of their views, where there is one."""
    a, b = sorted((a, b), key=lambda k: sights.view[k])
    E = matrices.get((sights.view[a], sights.view[b]))
    return Pair(np.inf, 0, None) if E is None else compare(sights, a, b, E)


def _refitted(sights: Sights, matrices: Matrices, body: list[int]) -> Matrices:
    """The matrices of the views from all tracklets of a body."""
    result = {}
    for views in combinations(sorted(set(sights.view[body])), 2):
        shares = [
            shared(sights, a, b)
            for a in body if sights.view[a] == views[0]
            for b in body if sights.view[b] == views[1]
        ]  # fmt: skip
        E = fit(sights, *map(np.concatenate, zip(*shares)))
        E = matrices.get(views) if E is None else E
        if E is not None:
            result[views] = E
    return result


def strays(sights: Sights, body: Body, sighting: np.ndarray) -> np.ndarray:
    """Which sightings (T, V) of a body lie `FAR` from where the other views see it; bool.

    Args:
        sighting: (T, V) number among the N sightings; -1 = none.
    """
    away = np.full((*sighting.shape, sighting.shape[1]), np.nan)  # (T, V, V)
    for (a, b), E in body.matrices.items():
        rows = np.flatnonzero((sighting[:, [a, b]] >= 0).all(1))
        residual = sampson(sights, E, sighting[rows, a], sighting[rows, b])
        seen = np.isfinite(residual).any(1)
        away[rows[seen], a, b] = away[rows[seen], b, a] = np.nanmedian(residual[seen], 1)
    known = np.isfinite(away).any(2)
    result = np.zeros(sighting.shape, bool)
    result[known] = np.nanmedian(away[known], 1) > FAR
    return result


def residual_of(sights: Sights, body: Body, tracklets: list[int]) -> float:
    """Median residual, units, of tracklets of one view against a body in the other views."""
    known = [_under(sights, body.matrices, a, b) for a in tracklets for b in body.tracklets]
    known = [pair for pair in known if pair.frames and np.isfinite(pair.residual)]
    if not known:
        return np.inf
    return float(np.average([p.residual for p in known], weights=[p.frames for p in known]))
