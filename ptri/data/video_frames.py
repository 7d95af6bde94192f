"""Single frames of videos, read forwards as long as that is possible."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import cv2
import numpy as np

from ptri.data import transforms
from ptri.errors import UserError

MAX_OPEN = 32  # videos that a process keeps open
# A frame so far ahead is reached by reading on: a key frame stands every second or so.
READ_ON = 60


class Video:
    """An open video; the next frame costs one decoding, any other a search for its key frame."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        # One thread: each loader process decodes its own videos.
        options = [cv2.CAP_PROP_N_THREADS, 1]
        self.capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG, options)
        self.next = 0  # number of the frame that would be read next

    def read(self, number: int) -> np.ndarray:
        """Frame ``number``, counted from 0, as BGR (H, W, 3) uint8.

        Raises:
            UserError: it cannot be read.
        """
        if not self.next <= number <= self.next + READ_ON:
            self.capture.set(cv2.CAP_PROP_POS_FRAMES, number)
            self.next = number
            if round(self.capture.get(cv2.CAP_PROP_POS_FRAMES)) != number:
                self._open()  # no exact search in this file: from its beginning
        while self.next < number and self.capture.grab():
            self.next += 1
        there, image = self.capture.read() if self.next == number else (False, None)
        if not there:
            self._open()
            raise UserError(
                f"{self.path}: frame {number} cannot be read; the video is damaged, or shorter "
                "than the labels"
            )
        self.next += 1
        return image


def read_video_frame(path: Path, number: int, reduction: int = 1) -> np.ndarray:
    """A frame of a video as `ptri.data.transforms.read_image` reads images."""
    return transforms.reduce_image(_video(path, os.getpid()).read(number), reduction)


def num_frames(path: Path) -> int:
    """The number of frames that a video says it has; 0 where it cannot be opened."""
    return max(0, int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)))


@functools.lru_cache(maxsize=MAX_OPEN)
def _video(path: Path, process: int) -> Video:
    """The open video; a process that was forked opens its own."""
    return Video(path)
