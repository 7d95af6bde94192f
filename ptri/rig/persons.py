"""Several persons before one rig's cameras: in turns, or together in its frames.

To the solver a frame shows one person. People who are in the pictures together are as many frames
of the same moment, those of one person after those of the other; cameras are shared, and each
person has bone lengths of his own (`ptri.posterior.body`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ptri.errors import UserError
from ptri.posterior.body import NUM_BONES
from ptri.posterior.modes import Evidence
from ptri.rig.check import RigInput, check_input
from ptri.rig.lenses import Lenses
from ptri.structures import cat, take

if TYPE_CHECKING:
    from ptri.rig.result import Solved

GAP = 1_000_000  # frames between the times of two persons: nothing passes from one to the other


class Person(NamedTuple):
    """Somebody who was filmed."""

    label: Hashable
    height: float  # mm, standing, from the joints; NaN: legs or trunk were not seen
    # By how much the rig would grow if its millimetres came from this person's bones alone, and
    # the standard deviation of that factor. Persons who disagree by many of them: a child, or two
    # bodies under one label.
    scale: float
    scale_std: float


def check_persons(
    xy, K, confidence, covariance, skeleton, device, lenses: Lenses, person: Sequence | None
) -> RigInput:
    """`check_input` of one person, of several in turns, or of several together: keypoints
    (T, V, P, J, ...) become those of P T frames, one person's after the other's."""
    parts = xy, confidence, covariance
    rest = skeleton, device, lenses
    if getattr(xy, "ndim", 4) != 5:
        given = check_input(xy, K, confidence, covariance, *rest)
        if person is None:
            return given
        labels, numbers = person_numbers(person, len(given.K))
        numbers = numbers.to(given.K.device)[:, None].expand(given.K.shape[:2])
        return given._replace(persons=numbers, labels=tuple(labels))
    labels = range(xy.shape[2]) if person is None else person
    names, _ = person_numbers(labels, xy.shape[2], "persons of xy")
    if len(names) != xy.shape[2] or not names:
        raise UserError(f"person: {person!r:.80}; expected one label for each person of xy")
    each_one = []
    for number, label in enumerate(names):
        own = [part if part is None else part[:, :, number] for part in parts]
        try:
            each = check_input(own[0], K, *own[1:], *rest)
        except UserError as error:
            raise UserError(f"person {label}: {error}") from None
        each_one.append(each)
    return one_after_another(each_one, names)


def one_after_another(each_one: Sequence[RigInput], labels: Sequence[Hashable]) -> RigInput:
    """Of persons who are in the same T frames, each given alone, all P T frames."""
    parts = []
    for number, each in enumerate(each_one):
        numbers = torch.full(each.K.shape[:2], number, device=each.K.device)
        parts.append(each._replace(persons=numbers, labels=tuple(labels)))
    return cat(parts)


def of_first(solved: Solved, num_frames: int) -> Solved:
    """What was solved from persons in the same T frames, as of the first one's alone."""
    places = [place for place, frame in enumerate(solved.frames) if frame < num_frames]
    sides = solved.sides
    if sides is not None:
        sides = take(sides, (slice(None), places))
    frames = [solved.frames[place] for place in places]
    return solved._replace(frames=frames, sides=sides, persons=solved.persons[:1])


def times_of(persons: Tensor | None, num_frames: int) -> Tensor:
    """When frames were (T,), by persons (T, V): one person's and the next one's are far apart,
    unless they take turns again and again, so that time does not go back."""
    times = torch.arange(num_frames)
    if persons is None or bool((persons[1:, 0] < persons[:-1, 0]).any()):
        return times
    return times + GAP * persons[:, 0].cpu()


def person_numbers(
    person: Sequence[Hashable], count: int, of: str = "frames"
) -> tuple[list[Hashable], Tensor]:
    """Labels of P persons in order of appearance, and the number among them of each of ``count``.

    Raises:
        UserError: not one label for each.
    """
    if isinstance(person, Tensor) or hasattr(person, "tolist"):
        person = person.tolist()
    if isinstance(person, str) or not isinstance(person, Sequence) or len(person) != count:
        raise UserError(f"person: {person!r:.80}; expected one label for each of the {count} {of}")
    try:
        labels = list(dict.fromkeys(person))
    except TypeError:
        raise UserError(f"person: {person!r:.80}; a label is a text or a number") from None
    if any(label is None or label != label for label in labels):  # NaN
        raise UserError(f"person: {person!r:.80}; leave out frames of which it is not known")
    number = {label: index for index, label in enumerate(labels)}
    return labels, torch.tensor([number[label] for label in person])


def shown(persons: Tensor | None, num_persons: int) -> Tensor | None:
    """What `ptri.structures.Observations` holds of persons (T, V): (1, T, P); None: one."""
    if persons is None:
        return None
    return torch.nn.functional.one_hot(persons[:, 0], num_persons).double()[None]


def rows_by_person(persons: Tensor | None, num_frames: int, num_persons: int) -> list[Tensor]:
    """The frames' numbers of each person, by persons (T, V); None: one."""
    if persons is None:
        return [torch.arange(num_frames)]
    first = persons[:, 0].cpu()
    return [(first == number).nonzero()[:, 0] for number in range(num_persons)]


def persons_of(
    labels: Sequence[Hashable], evidence: Evidence | None, factor: float
) -> tuple[Person, ...]:
    """The persons of a rig (B = 1), whose own scales come from their bones by generalised least
    squares under the bones' law; heights are not known yet.

    Args:
        evidence: None: nothing is known.
        factor: from the bones' scale to that of the rig.
    """
    if evidence is None:
        return tuple(Person(label, math.nan, math.nan, math.inf) for label in labels)
    body = evidence.body
    log_lengths = evidence.best.shared[0, : len(body.mean)]
    law = body.precision[:NUM_BONES, :NUM_BONES]
    away = (body.mean - log_lengths).unflatten(0, (-1, NUM_BONES))  # (P, bones)
    own = ((away @ law).sum(1) / law.sum()).exp() / factor
    std = own / law.sum().sqrt()
    each = zip(labels, own.tolist(), std.tolist())
    return tuple(Person(label, math.nan, *scale) for label, *scale in each)
