"""Lets torchvision be imported beside a CPU-only torch.

The registry's torchvision wheel is a CUDA build. Its compiled operators do not load beside a
CPU-only torch, and then ``import torchvision`` (hence timm) fails with "operator torchvision::nms
does not exist", because it registers shape functions for two operators that nobody declared.
Declaring their schemas is enough: models and transforms.v2 work; torchvision's own compiled
operators (nms, roi_align) and image input/output stay unavailable, and we use neither.
"""

from __future__ import annotations

import importlib
import sys

import torch

_libraries: list[torch.library.Library] = []  # a library's schemas vanish with it: keep it alive


def prepare_torchvision() -> None:
    """Makes ``import torchvision`` work; does nothing where it works already. Idempotent."""
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # left over from the failed import
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    importlib.import_module("torchvision")
