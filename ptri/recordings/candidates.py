"""Everybody who was seen in a recording, before it is known who is who."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Candidates(NamedTuple):
    """N sightings of people in T frames of V views, each of one person in one frame and view."""

    row: np.ndarray  # (N,) int64 place of the frame among the T
    view: np.ndarray  # (N,) int64
    xy: np.ndarray  # (N, J, 2) px, undistorted to the same K; NaN = not seen
    covariance: np.ndarray  # (N, J, 2, 2) px^2
    confidence: np.ndarray  # (N, J)
    crops: np.ndarray  # (N, 4) centre x, y and side px, turn rad; NaN: of a keypoint file
    colours: np.ndarray  # (N, 6) of trunk and thighs, 0 to 255; NaN: of a keypoint file
    given: np.ndarray  # (N,) bool, a box of the user's shows the person

    def rows(self, index) -> Candidates:
        """Some of the sightings."""
        return Candidates(*(part[index] for part in self))

    def surely(self, min_confidence: float) -> Candidates:
        """The same; less confident keypoints are not seen."""
        unsure = ~(self.confidence >= min_confidence) | ~np.isfinite(self.xy).all(-1)
        xy = np.where(unsure[..., None], np.nan, self.xy)
        return self._replace(xy=xy, confidence=np.where(unsure, 0.0, self.confidence))


def join(parts: Sequence[Candidates]) -> Candidates:
    """All of several sets."""
    return Candidates(*map(np.concatenate, zip(*parts)))


def extents(xy: np.ndarray) -> np.ndarray:
    """Diagonals (N,) px of the boxes around the points (N, J, 2) that are seen; 0 of fewer than
    two."""
    low = np.where(np.isnan(xy), np.inf, xy).min(1)
    high = np.where(np.isnan(xy), -np.inf, xy).max(1)
    return np.linalg.norm(np.maximum(high - low, 0), axis=1)
