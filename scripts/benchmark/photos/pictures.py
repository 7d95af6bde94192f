"""Pictures of keypoints on photographs: a contact sheet, and the worst above their truth."""

from __future__ import annotations

import cv2
import numpy as np

from benchmark.photos.persons import Crops, Guess
from benchmark.photos.scores import errors, person_errors
from ptri.data.annotations import JOINTS, OUR_ROWS
from ptri.evaluation import draw
from ptri.skeleton import H36M17

HEIGHT = 300  # px of one person


def contact_sheet(crops: Crops, guess: Guess, count: int = 24, columns: int = 6) -> np.ndarray:
    """Persons evenly spread over the file, with the predicted skeleton; truth as crosses.

    Left is orange and right blue, of skeleton and crosses alike.
    """
    chosen = np.linspace(0, len(crops.names) - 1, min(count, len(crops.names))).round().astype(int)
    return draw.beside([_drawn(crops, guess, index) for index in chosen], columns)


def worst(crops: Crops, guess: Guess, count: int = 10, columns: int = 5) -> np.ndarray:
    """The persons with the largest errors, each above the same crop with the labelled joints."""
    order = np.argsort(-person_errors(crops, guess), kind="stable")[:count]
    pairs = [
        draw.beside([_drawn(crops, guess, index), _drawn(crops, _truth(crops), index)], 1)
        for index in order
    ]
    return draw.beside(pairs, columns)


def _truth(crops: Crops) -> Guess:
    return Guess(np.where(crops.labelled[..., None], crops.xy, np.nan))


def _drawn(crops: Crops, guess: Guess, index: int) -> np.ndarray:
    full = np.full((len(H36M17.joints), 2), np.nan)
    full[OUR_ROWS] = guess.xy[index]
    body = full if guess.skeleton is None else guess.skeleton[index]
    distance = errors(crops, guess)[index]
    right = int((distance <= 0.2 * crops.torso[index]).sum())
    title = f"{crops.names[index]}: {right} of {int(crops.labelled[index].sum())}"
    covariance = None
    if guess.covariance is not None:
        covariance = np.full((len(full), 2, 2), np.nan)
        covariance[OUR_ROWS] = guess.covariance[index]
    if np.isnan(full).all():
        title += ", nobody found"
    picture = draw.overlay(
        crops.images[index], _without_middle(full, body), body, covariance, None, title, HEIGHT
    )
    scale = HEIGHT / crops.size
    top = picture.shape[0] - HEIGHT
    for joint, name in enumerate(JOINTS):
        if crops.labelled[index, joint]:
            x, y = ((crops.xy[index, joint] + 0.5) * scale - 0.5).round().astype(int)
            for colour, thick in (((0, 0, 0), 4), (draw.joint_colour(name), 2)):
                place, cross = (int(x), int(y) + top), cv2.MARKER_TILTED_CROSS
                cv2.drawMarker(picture, place, colour, cross, 11, thick, cv2.LINE_AA)
    return picture


def _without_middle(full: np.ndarray, body: np.ndarray):
    """Human3.6M's bones; where only COCO's joints are known, thigh, shank and arms and no spine."""
    if body is not full:
        return H36M17
    joined = {f"{side}_hip": f"{side}_shoulder" for side in ("left", "right")}
    joined["left_shoulder"] = "right_shoulder"
    parents = tuple(
        H36M17.joints.index(joined[name]) if name in joined else parent
        for name, parent in zip(H36M17.joints, H36M17.parents)
    )
    return H36M17._replace(parents=parents)
