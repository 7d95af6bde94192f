"""The mistakes: what each does to a case, and by what name it should be met."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmark.mistakes.cases import NUM_FRAMES, Case
from ptri.geometry.rotations import so3_exp
from ptri.skeleton import H36M17

FLIP = list(H36M17.flip)
ALL = slice(None)


class Mistake(NamedTuple):
    """One line of the table."""

    name: str
    spoil: Callable[[Case, int | slice], Case]
    where: str  # "one" view, "all" views, or "last": the choice of the view is the mistake's own
    words: str = ""  # by one of which it is named, "|" between them; "": none is better
    hidden: str = ""  # why it cannot be told in principle; "": it can
    hidden_of_two: str = ""  # the same of two views alone

    def excuse(self, num_views: int) -> str:
        """Why it cannot be told of so many views; "": it can."""
        return self.hidden or (self.hidden_of_two if num_views == 2 else "")

    def __str__(self) -> str:
        return f"{self.name}, {self.where}"


def _size(K: Tensor) -> Tensor:
    """(..., 2) px, of an image whose middle is the principal point."""
    return 2 * K[..., :2, 2] + 1


def _told(spoil: Callable[[Case, int | slice], Case]) -> Callable[[Case, int | slice], Case]:
    """The same mistake where the size of the pictures is given."""
    return lambda case, views: spoil(case, views)._replace(size=_size(case.K))


def _K(change: Callable[[Tensor], None]) -> Callable[[Case, int | slice], Case]:
    """A mistake in K (V, 3, 3) of some views, changed in place."""

    def spoil(case: Case, views: int | slice) -> Case:
        K = case.K.clone()
        change(K[views])
        return case._replace(K=K)

    return spoil


def _xy(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Case, int | slice], Case]:
    """A mistake in xy (T, ..., 17, 2) of some views, from it and their K."""

    def spoil(case: Case, views: int | slice) -> Case:
        xy = case.xy.clone()
        xy[:, views] = change(xy[:, views], case.K[views])
        return case._replace(xy=xy)

    return spoil


def _scaled_focal(factor: float) -> Callable[[Case, int | slice], Case]:
    def change(K: Tensor) -> None:
        K[..., [0, 1], [0, 1]] *= factor

    return _K(change)


def _resized(factor: float) -> Callable[[Case, int | slice], Case]:
    """Keypoints of an image of another size than K's."""
    return _xy(lambda xy, K: factor * (xy + 0.5) - 0.5)


def _exchange_centre(K: Tensor) -> None:
    K[..., :2, 2] = K[..., :2, 2].flip(-1)


def _move_centre(K: Tensor) -> None:
    K[..., 0, 2] += 0.4 * _size(K)[..., 0]


def _exchanged_size(case: Case, views: slice) -> Case:
    return case._replace(size=_size(case.K).flip(-1))


def _centre_at_zero(K: Tensor) -> None:
    K[..., :2, 2] = 0.0


def _normalised_K(K: Tensor) -> None:
    size = _size(K)
    K[..., 0, :] /= size[..., :1]
    K[..., 1, :] /= size[..., 1:]


def _focal_in_mm(K: Tensor) -> None:
    K[..., :2, :] *= 6.0 / 2000.0  # 3 um pixels, as if all of K were in mm


def _mirror(xy: Tensor, K: Tensor) -> Tensor:
    x = _size(K)[..., None, 0] - 1 - xy[..., 0]
    return torch.stack([x, xy[..., 1]], -1)


def _upside_down(xy: Tensor, K: Tensor) -> Tensor:
    y = _size(K)[..., None, 1] - 1 - xy[..., 1]
    return torch.stack([xy[..., 0], y], -1)


def _turned(case: Case, views: int | slice) -> Case:
    """By a quarter, K kept: a telephone's file without its rotation. The camera is rolled then."""
    xy, R = case.xy.clone(), case.R.clone()
    x = _size(case.K)[views][..., None, 1] - 1 - xy[:, views, :, 1]
    xy[:, views] = torch.stack([x, xy[:, views, :, 0]], -1)
    R[views] = R.new_tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]]) @ R[views]
    return case._replace(xy=xy, R=R @ R[0].mT)


def _shares(xy: Tensor, K: Tensor) -> Tensor:
    return xy / _size(K)[..., None, :]


def _distort(xy: Tensor, K: Tensor) -> Tensor:
    """A wide lens's barrel distortion, which nobody took out: k1 = -0.25."""
    focal, centre = K.diagonal(dim1=-2, dim2=-1)[..., None, :2], K[..., None, :2, 2]
    ray = (xy - centre) / focal
    return centre + focal * ray * (1 - 0.25 * ray.square().sum(-1, keepdim=True))


def _swap_labels(case: Case, views: int | slice) -> Case:
    xy, confidence = case.xy.clone(), case.confidence.clone()
    xy[:, views], confidence[:, views] = xy[:, views][..., FLIP, :], confidence[:, views][..., FLIP]
    return case._replace(xy=xy, confidence=confidence)


def _mirror_and_swap(case: Case, views: int | slice) -> Case:
    return _swap_labels(_xy(_mirror)(case, views), views)


def _roll_K(case: Case, views: int | slice) -> Case:
    return case._replace(K=case.K.roll(1, 0))


def _copied(case: Case, view: int) -> Case:
    xy, confidence = case.xy.clone(), case.confidence.clone()
    source = (view + 1) % xy.shape[1]
    xy[:, view], confidence[:, view] = xy[:, source], confidence[:, source]
    return case._replace(xy=xy, confidence=confidence)


def _other_person(case: Case, view: int) -> Case:
    return _from_frames(case, view, torch.arange(NUM_FRAMES), case.other)


def _from_frames(
    case: Case, view: int | slice, frames: Tensor, source: tuple[Tensor, Tensor] | None = None
) -> Case:
    """A view that shows other frames of the clip, or of another source."""
    xy, confidence = case.xy.clone(), case.confidence.clone()
    for value, long in zip((xy, confidence), source or case.later):
        value[:, view] = long[frames][:, view]
    return case._replace(xy=xy, confidence=confidence)


def _late(lag: int) -> Callable[[Case, int], Case]:
    return lambda case, view: _from_frames(case, view, torch.arange(NUM_FRAMES) + lag)


def _all_late(case: Case, views: slice) -> Case:
    for view in range(1, len(case.K)):
        case = _from_frames(case, view, torch.arange(NUM_FRAMES) + 3 * view * (-1) ** view + 9)
    return _from_frames(case, 0, torch.arange(NUM_FRAMES) + 9)


def _half_rate(case: Case, view: int) -> Case:
    return _from_frames(case, view, 2 * torch.arange(NUM_FRAMES))


def _reversed(case: Case, view: int) -> Case:
    return _from_frames(case, view, torch.arange(NUM_FRAMES).flip(0))


def _repeated(case: Case, views: slice) -> Case:
    return _from_frames(case, views, torch.zeros(NUM_FRAMES, dtype=torch.int64))


def _moved(degrees: float) -> Callable[[Case, int], Case]:
    """The camera is knocked in the middle of the clip: turned about an axis of its own."""

    def spoil(case: Case, view: int) -> Case:
        xy, K = case.xy.clone(), case.K[view]
        axis = torch.tensor([0.6, 0.7, 0.4], dtype=torch.float64)
        turn = so3_exp(torch.deg2rad(torch.tensor(degrees)) * axis / axis.norm())
        half = xy[NUM_FRAMES // 2 :, view]
        ray = torch.cat([half, torch.ones_like(half[..., :1])], -1) @ (K @ turn @ K.inverse()).mT
        xy[NUM_FRAMES // 2 :, view] = ray[..., :2] / ray[..., 2:]
        return case._replace(xy=xy)

    return spoil


# Why a mistake may pass: docs/mistakes.md, "What cannot be told".
WORLD = "a mirrored person with mirrored labels is a person"
AXIS = "where the optical axis meets the picture looks like a turn of the camera"
FOCAL = "a focal length looks like a distance"
BEHIND = "a mirrored picture with its labels kept looks as from behind the person"
CORNER = "a person may stay in a corner of the picture"
ONCE = "it counts once, and how wide one frame is stated is no matter of mistakes"
PAIR = "only the residual tells, and a detector leaves as much"
STILL = "who hardly moves looks the same at another time, and errors that last leave as much"

MISTAKES = (
    Mistake("none", lambda case, view: case, "all"),
    Mistake("keypoints of half the size", _resized(0.5), "one", "K|size|focal", CORNER),
    Mistake("keypoints of half the size", _resized(0.5), "all", "K|size|focal"),
    Mistake("keypoints of double the size", _resized(2.0), "one", "K|size|focal"),
    Mistake("keypoints of double the size", _resized(2.0), "all", "K|size|focal"),
    Mistake("cx and cy exchanged", _K(_exchange_centre), "one", "K|principal", AXIS),
    Mistake("cx and cy exchanged", _K(_exchange_centre), "all", "K|principal", AXIS),
    Mistake(
        "cx and cy exchanged, size given", _told(_K(_exchange_centre)), "one", "K|principal", AXIS
    ),
    Mistake("size exchanged", _exchanged_size, "all", "K|principal"),
    Mistake("picture turned by a quarter", _turned, "one", "K|principal|turned", AXIS),
    Mistake("picture turned by a quarter", _turned, "all", "K|principal|turned", AXIS),
    Mistake("principal point 0, 0", _K(_centre_at_zero), "one", "K|principal"),
    Mistake("principal point 0, 0", _K(_centre_at_zero), "all", "K|principal"),
    Mistake("principal point off by 0.4 widths", _K(_move_centre), "one", "K|principal", AXIS),
    Mistake("principal point off by 0.4 widths", _K(_move_centre), "all", "K|principal", AXIS),
    Mistake("principal point off, size given", _told(_K(_move_centre)), "one", "K|principal"),
    Mistake("K in shares of the picture", _K(_normalised_K), "one", "K|focal"),
    Mistake("K in shares of the picture", _K(_normalised_K), "all", "K|focal"),
    Mistake("K in mm", _K(_focal_in_mm), "one", "K|focal"),
    Mistake("K in mm", _K(_focal_in_mm), "all", "K|focal"),
    Mistake("focal length x 0.7", _scaled_focal(0.7), "one", "K|focal", FOCAL),
    Mistake("focal length x 0.7", _scaled_focal(0.7), "all", "K|focal", FOCAL),
    Mistake("focal length x 1.4", _scaled_focal(1.4), "one", "K|focal", FOCAL),
    Mistake("focal length x 1.4", _scaled_focal(1.4), "all", "K|focal", FOCAL),
    Mistake("focal length x 1.1", _scaled_focal(1.1), "one", "K|focal", FOCAL),
    Mistake("focal length x 1.1", _scaled_focal(1.1), "all", "K|focal", FOCAL),
    Mistake("K in another order", _roll_K, "all", "K|principal|focal", AXIS),
    Mistake("keypoints in 0..1", _xy(_shares), "one", "0 and 1"),
    Mistake("keypoints in 0..1", _xy(_shares), "all", "0 and 1"),
    Mistake("y counted upwards", _xy(_upside_down), "one", "upwards|mirrored", BEHIND),
    Mistake("y counted upwards", _xy(_upside_down), "all", "upwards|mirrored"),
    Mistake("mirrored", _xy(_mirror), "one", "mirrored", BEHIND),
    Mistake("mirrored", _xy(_mirror), "all", "mirrored", BEHIND),
    Mistake("mirrored, labels too", _mirror_and_swap, "one", "mirrored"),
    Mistake("mirrored, labels too", _mirror_and_swap, "all", "mirrored", WORLD),
    Mistake("labels exchanged", _swap_labels, "one", "exchanged"),
    Mistake("labels exchanged", _swap_labels, "all", "exchanged"),
    Mistake("copy of another view", _copied, "one", "same|copy"),
    Mistake("another person", _other_person, "one", "disagree|another"),
    Mistake("late by 3 frames", _late(3), "one", "shifted", STILL),
    Mistake("late by 10 frames", _late(10), "one", "shifted", STILL),
    Mistake("late by 30 frames", _late(30), "one", "shifted|disagree", STILL),
    Mistake("all late by different amounts", _all_late, "all", "shifted|disagree", STILL),
    Mistake("half the frame rate", _half_rate, "one", "shifted|disagree|rate", STILL),
    Mistake("time reversed", _reversed, "one", "shifted|disagree|backwards", STILL),
    Mistake(
        *("camera moved by 3 deg in the middle", _moved(3.0), "one", "moved|halves|disagree"),
        hidden_of_two=PAIR,
    ),
    Mistake("camera moved by 20 deg in the middle", _moved(20.0), "one", "moved|halves|disagree"),
    Mistake("one frame repeated", _repeated, "all", "too little", ONCE),
    Mistake("distortion ignored", _xy(_distort), "one", "K|distort", AXIS),
    Mistake("distortion ignored", _xy(_distort), "all", "K|distort", AXIS),
)
