"""Anti-aliasing of a finished picture, where multisampling in software would cost too much.

FXAA (Lottes 2009, the console version): near an edge, a pixel becomes a mean of samples along it.
"""

from __future__ import annotations

import cv2
import numpy as np

_LEAST_RANGE = 10  # grey levels between neighbours that count as an edge
_RELATIVE_SHIFT = 3  # an eighth of the brightest neighbour does too
_REACH = 8.0  # px, furthest sample
_ROW = 1024  # columns of the map of samples (cv2.remap admits 32767 at most)


def smooth_edges(image: np.ndarray) -> np.ndarray:
    """A smoothed copy of an (h, w, 3) uint8 image."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    # Means of 2 x 2 pixels around each of the (h + 1, w + 1) corners of pixels.
    corner = cv2.boxFilter(cv2.copyMakeBorder(grey, 1, 1, 1, 1, cv2.BORDER_REPLICATE), -1, (2, 2))
    corner = np.ascontiguousarray(corner[1:, 1:])
    nw, ne, sw, se = corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]
    lowest = cv2.min(cv2.min(cv2.min(nw, ne), cv2.min(sw, se)), grey)
    highest = cv2.max(cv2.max(cv2.max(nw, ne), cv2.max(sw, se)), grey)
    edge = highest - lowest > np.maximum(highest >> _RELATIVE_SHIFT, _LEAST_RANGE)
    place = np.flatnonzero(edge)
    if len(place) == 0:
        return image.copy()
    width = grey.shape[1]
    y, x = np.divmod(place, width)
    first = place + y  # of the four corners, in rows of width + 1
    around = corner.ravel()[first + np.array([[0], [1], [width + 1], [width + 2]])]
    nw, ne, sw, se = around.astype(np.float32)
    lowest, highest = lowest.ravel()[place], highest.ravel()[place]
    along = np.stack([sw + se - nw - ne, nw + sw - ne - se])  # (2, n), x and y
    # 0.125 of the mean brightness guards flat corners, as in the original.
    guard = np.maximum((nw + ne + sw + se) * 0.25 * 0.125, 1e-3)
    along = np.clip(along / (np.abs(along).min(0) + guard), -_REACH, _REACH)
    share = np.array([-1 / 6, 1 / 6, -0.5, 0.5], np.float32)[:, None]
    samples = _sample(image, x + share * along[0], y + share * along[1])  # (4, n, 3)
    near = (samples[0] + samples[1]) / 2
    wide = near / 2 + (samples[2] + samples[3]) / 4
    grey = wide @ np.array([0.299, 0.587, 0.114], np.float32)
    outside = (grey < lowest) | (grey > highest)
    result = image.copy()
    result.reshape(-1, 3)[place] = np.where(outside[:, None], near, wide) + 0.5
    return result


def _sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples (..., 3) float32 at pixel positions."""
    shape, count = x.shape, x.size
    rows = -(-count // _ROW)
    places = np.zeros((2, rows * _ROW), np.float32)
    places[:, :count] = x.ravel(), y.ravel()
    places = places.reshape(2, rows, _ROW)
    pixels = cv2.remap(image, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return pixels.reshape(-1, 3)[:count].reshape(*shape, 3).astype(np.float32)
