"""The verdict on a rig as a value: what was found, in which view. Words are made at the edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from ptri.verdict.figures import Figures
from ptri.verdict.readings import Reading


class Code(Enum):
    """What a rig is accepted or rejected for, and how that is said."""

    ACCEPTED = "accepted"
    FEW_KEYPOINTS = "too little evidence: {view} has {value:.0f} keypoints, {limit:.0f} are needed"
    FEW_FRAMES = "too little evidence: no frame in which two views see {limit:.0f} joints each"
    NO_SAMPLE = "no sample explains the keypoints"
    ON_A_LINE = (
        "too little evidence: in every view all keypoints lie on one line or point, so that "
        "nothing fixes the rotation about it"
    )
    PARALLAX = (
        "too little evidence: the views' rays meet at {value:.1f} deg (median), {limit:.1f} deg "
        "are needed to fix depths; do the cameras stand at one place?"
    )
    FOCAL_UNKNOWN = (
        "too little evidence: two views whose rays meet at {value:.0f} deg (median) do not tell "
        "focal lengths, {limit:.0f} deg are needed: film from farther apart, or name the cameras"
    )
    SAME_KEYPOINTS = (
        "bad input: {view} and {other_view} hold the same keypoints; was one file read for both?"
    )
    PRINCIPAL_POINT = (
        "bad input: the principal point of {view} ({place}) is far from the middle of its picture; "
        "are width and height exchanged, or is K of another picture?"
    )
    OUTSIDE = (
        "bad input: {value:.0%} of the keypoints of {view} lie outside its picture ({place}); are "
        "they of a larger picture than K, or are cx and cy exchanged?"
    )
    CORNER = (
        "bad input: all keypoints of {view} lie in the upper left quarter of its picture "
        "({place}); are they of a picture of half the size?"
    )
    # These are `value` over those of K, less one.
    FOCAL_LENGTH = (
        "bad input: the focal length of {view} seems {value:.0%} {than} what it was taken for; it "
        "is solved as unknown here: correct K or the device, or say how well it is known (K_std)"
    )
    FOCAL_LENGTHS = (
        "bad input: the focal lengths of all views seem {value:.0%} {than} what they were taken "
        "for; they are solved as unknown here: is K of pictures of another size? Correct it or the "
        "devices, or say how well they are known (K_std)"
    )
    ELSEWHERE_ONE = (
        "bad input: {view} stands elsewhere than the exact cameras say that were given; calibrate "
        "it again, or give them as known roughly"
    )
    ELSEWHERE = (
        "bad input: several cameras stand elsewhere than the exact ones say that were given; "
        "calibrate again, or give them as known roughly"
    )
    UPSIDE_DOWN = (
        "bad input: the person stands upside down in every view; is y counted upwards? If the "
        "cameras hang, turn their pictures"
    )
    MISREAD = "bad camera: {reading} ({value:.0f} nats)"  # it fits the others under another reading
    SHIFTED = "bad camera: {view} seems shifted by {lag:+.0f} frames ({value:.0f} nats)"
    CLOCK = "bad camera: {view} seems to run {speed} ({value:.0f} nats)"
    MOVED = "bad camera: {view} seems to have moved in the middle ({value:.0f} nats)"
    MISFIT = "bad camera: {view} disagrees with the others"  # it fits nowhere
    NOISE = "the keypoints disagree: residuals are {value:.1f} times their stated uncertainty"
    OUTLIERS = "the keypoints disagree: most of them are outliers"
    SEVERAL_MODES = "several modes explain the keypoints"
    UNCERTAIN = (
        "too little evidence: rotation between {view} and {other_view} uncertain by {value:.1f} deg"
    )
    HALVES = (  # of a recording
        "the two halves of the recording disagree: {view} differs by {value:.0f} deg between them, "
        "so the keypoints err in ways that last; look at the pictures"
    )


class Verdict(NamedTuple):
    """Whether one rig can be trusted, and the reason."""

    code: Code
    view: int | None = None  # that it is about
    other_view: int | None = None  # the second one of a pair
    reading: Reading | None = None  # under which the view fits the others
    lag: float = 0.0  # frames by which what the view shows comes too late
    rate: float = 1.0  # frames of the others for one of the view
    value: float = math.nan  # the figure that decided ...
    limit: float = math.nan  # ... and what it was held against
    place: tuple[float, float] | None = None  # px, of the principal point, or the picture's size
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
        parts = self._asdict()
        for key in ("view", "other_view"):
            if parts[key] is not None:
                parts[key] = f"camera {names[parts[key]]}" if names else f"view {parts[key]}"
        if self.reading is not None:
            parts["reading"] = self.reading.value.format(**parts)
        if self.place is not None:
            parts["place"] = "{:.0f} x {:.0f} px".format(*self.place)
        backwards, slow = "backwards", f"at {1 / self.rate:g} times the others' frame rate"
        if self.code in (Code.FOCAL_LENGTH, Code.FOCAL_LENGTHS):
            than = "longer than" if self.value > 0 else "shorter than"
            parts |= {"value": abs(self.value), "than": than}
        parts["speed"] = backwards if self.rate < 0 else slow
        text = self.code.value.format(**parts)
        return text if self.rest is None else f"{text}; the others: {self.rest.words(names)}"
