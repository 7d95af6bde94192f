"""WebDataset shards of single images: tar files that the `webdataset` package streams.

A sample has a JPEG (``jpg``), its truth (``json``: K px, R, t mm, ``h36m17`` and ``coco17`` joints
in mm, world, and their visibility, box as top, left, bottom, right px, kind of pose) and, where
asked for, the person's visible pixels (``png``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ptri.render.single import Shot


def write_shard(
    path: Path, keys: Sequence[tuple[int, int, int]], shots: Sequence[Shot], quality: int
) -> None:
    """Writes a shard; it has its name only when it is complete.

    Raises:
        ImportError: the package `webdataset` is not installed.
    """
    import webdataset

    temporary = path.with_suffix(".tmp")
    with webdataset.TarWriter(str(temporary), mtime=0) as writer:
        for key, shot in zip(keys, shots):
            truth = {
                "K": np.round(shot.K, 4),
                "R": np.round(shot.R, 7),
                "t": np.round(shot.t, 3),
                "h36m17": np.round(shot.joints, 2),
                "coco17": np.round(shot.coco, 2),
                "h36m17_visible": shot.visible.astype(int),
                "coco17_visible": shot.coco_visible.astype(int),
                "box": shot.boxes,
            }
            truth = {name: values.tolist() for name, values in truth.items()}
            options = [cv2.IMWRITE_JPEG_QUALITY, quality]
            sample = {
                "__key__": "_".join(f"{part:07d}" for part in key),
                "jpg": _encode(".jpg", shot.image[..., ::-1], options),
                "json": truth | {"kind": shot.kind},
            }
            if shot.mask is not None:
                sample["png"] = _encode(".png", 255 * shot.mask.astype(np.uint8), [])
            writer.write(sample)
    temporary.replace(path)


def _encode(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    return cv2.imencode(suffix, np.ascontiguousarray(image), options)[1].tobytes()
