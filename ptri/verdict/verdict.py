"""The verdict on a rig as a value: what was found, in which view. Words are made at the edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ptri.verdict.readings import Reading

if TYPE_CHECKING:
    from ptri.verdict.figures import Figures


class Code(Enum):
    """What a rig is accepted or rejected for."""

    ACCEPTED = "accepted"
    FEW_KEYPOINTS = "few keypoints"  # a view saw next to nothing
    FEW_FRAMES = "few frames"  # there is no frame in which two views see enough
    NO_SAMPLE = "no sample"  # no posterior sample explains the keypoints
    ON_A_LINE = "on a line"  # the keypoints of every view lie on one line
    PARALLAX = "parallax"  # the rays hardly cross
    MISREAD = "misread"  # a view fits the others under another reading
    SHIFTED = "shifted"  # a view fits the others at another time
    MISFIT = "misfit"  # a view fits nowhere
    NOISE = "noise"  # residuals many times larger than stated
    OUTLIERS = "outliers"  # most keypoints are outliers
    SEVERAL_MODES = "several modes"  # far apart, and both explain the keypoints
    UNCERTAIN = "uncertain"  # a rotation is not known well enough
    HALVES = "halves"  # the two halves of a recording give other cameras


class Verdict(NamedTuple):
    """Whether one rig can be trusted, and the reason."""

    code: Code
    view: int | None = None  # that it is about
    other_view: int | None = None  # the second one of a pair
    reading: Reading | None = None  # under which the view fits the others
    lag: float = 0.0  # frames by which what the view shows comes too late
    value: float = math.nan  # the figure that decided ...
    limit: float = math.nan  # ... and what it was held against
    figures: Figures | None = None  # all that was measured; None: nothing was
    rest: Verdict | None = None  # on the views that were solved, where some were not

    @property
    def accepted(self) -> bool:
        return self.code is Code.ACCEPTED

    def of_views(self, views: Sequence[int]) -> Verdict:
        """The same with other numbers for its views: view i becomes ``views[i]``."""
        view, other = (None if v is None else views[v] for v in (self.view, self.other_view))
        return self._replace(view=view, other_view=other)

    def words(self, names: Sequence[str] | None = None) -> str:
        """The verdict in words; "accepted", or why not.

        Args:
            names: of the cameras; None: "view 0" and so on.
        """
        view, other = (
            "" if v is None else f"view {v}" if names is None else f"camera {names[v]}"
            for v in (self.view, self.other_view)
        )
        value, limit = self.value, self.limit
        text = {
            Code.ACCEPTED: "accepted",
            Code.FEW_KEYPOINTS: f"too little evidence: {view} has {value:.0f} keypoints, "
            f"{limit:.0f} are needed",
            Code.FEW_FRAMES: "too little evidence: no frame in which two views see "
            f"{limit:.0f} joints each",
            Code.NO_SAMPLE: "no sample explains the keypoints",
            Code.ON_A_LINE: "too little evidence: in every view all keypoints lie on one line or "
            "point, so that nothing fixes the rotation about it",
            Code.PARALLAX: f"too little evidence: the views' rays meet at {value:.1f} deg "
            f"(median), {limit:.1f} deg are needed to fix depths; do the cameras stand at one "
            "place?",
            Code.MISREAD: f"bad camera: {_READ.get(self.reading, '').format(view)}",
            Code.SHIFTED: f"bad camera: {view} seems shifted by {self.lag:+.0f} frames",
            Code.MISFIT: f"bad camera: {view} disagrees with the others",
            Code.NOISE: f"the keypoints disagree: residuals are {value:.1f} times their stated "
            "uncertainty",
            Code.OUTLIERS: "the keypoints disagree: most of them are outliers",
            Code.SEVERAL_MODES: "several modes explain the keypoints",
            Code.UNCERTAIN: f"too little evidence: rotation between {view} and {other} uncertain "
            f"by {value:.1f} deg",
            Code.HALVES: f"the two halves of the recording disagree: {view} differs by "
            f"{value:.0f} deg between them, so the keypoints err in ways that last; look at the "
            "pictures",
        }[self.code]
        return text if self.rest is None else f"{text}; the others: {self.rest.words(names)}"


_READ = {
    Reading.EXCHANGED: "left and right of {} seem exchanged",
    Reading.ARMS: "left and right arm of {} seem exchanged",
    Reading.LEGS: "left and right leg of {} seem exchanged",
    Reading.MIRRORED: "{} seems mirrored",
    Reading.MIRRORED_EXCHANGED: "{} seems mirrored, its labels with it",
}
