"""Makes the shipped MoveNet weights of Google's TensorFlow.js graph models (JSON and one .bin).

python scripts/convert_movenet.py thunder movenet-thunder.json checkpoints/movenet_thunder.pt
python scripts/convert_movenet.py multipose movenet-multipose.json checkpoints/movenet_multipose.pt

The graph models are those of https://tfhub.dev/google/movenet (singlepose/thunder/4 and
multipose/lightning/1, Apache-2.0), as converted for TensorFlow.js in float16.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptri import checkpoint
from ptri.detectors.centernet import STAGES, CenterNet
from ptri.detectors.movenet import MoveNet
from ptri.detectors.multipose import Multipose
from ptri.errors import UserError, exit_status

MODELS = {"thunder": MoveNet, "multipose": Multipose}
SOURCES = {
    "thunder": "https://tfhub.dev/google/movenet/singlepose/thunder/4",
    "multipose": "https://tfhub.dev/google/tfjs-model/movenet/multipose/lightning/1",
}
_DTYPES = {"float16": "<f2", "float32": "<f4", "int32": "<i4"}
_ROOT = "StatefulPartitionedCall/"
_FPN = _ROOT + "center_net_mobile_net_v2fpn_feature_extractor/model_1/"
_WEIGHT, _BIAS = "/Conv2D/ReadVariableOp", "/BiasAdd/ReadVariableOp"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("graph", type=Path, help="the model's JSON file; its .bin lies beside it")
    parser.add_argument("target", type=Path, help="file to write")
    args = parser.parse_args(arguments)

    def work() -> None:
        weights = convert(MODELS[args.model]().network, read_graph(args.graph), args.graph)
        meta = {"model": f"movenet_{args.model}", "source": SOURCES[args.model]}
        meta["licence"] = "Apache-2.0, Copyright Google LLC"
        if args.target.is_file():  # what was measured of its errors stays
            before = checkpoint.load_weights(args.target)[1]
            meta = {**before, **meta}
        checkpoint.save_weights(args.target, weights, meta)
        print(f"{args.target}: {sum(value.numel() for value in weights.values())} weights")

    return exit_status(work)


def read_graph(path: Path) -> dict[str, np.ndarray]:
    """The constants of a TensorFlow.js graph model, by name.

    Raises:
        UserError: a missing file, or one that is no graph model.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))["weightsManifest"]
        constants = {}
        for group in manifest:
            data = b"".join((path.parent / name).read_bytes() for name in group["paths"])
            start = 0
            for entry in group["weights"]:
                stored = entry.get("quantization", {}).get("dtype", entry["dtype"])
                count = int(np.prod(entry["shape"]))
                values = np.frombuffer(data, _DTYPES[stored], count, start)
                constants[entry["name"]] = values.reshape(entry["shape"])
                start += values.nbytes
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a TensorFlow.js graph model with its .bin ({error!r:.100})"
        ) from None
    return constants


def convert(
    network: CenterNet, constants: dict[str, np.ndarray], path: str | Path
) -> dict[str, Tensor]:
    """The network's state dict of a graph's constants.

    Raises:
        UserError: a constant is missing or of another shape.
    """
    state = {}
    for name, value in network.state_dict().items():
        source = _source(name, constants)
        if source not in constants:
            raise UserError(f"{path}: no constant {source!r} for {name}; another model?")
        array = torch.tensor(constants[source].astype(np.float32))
        if array.ndim == 4:
            # TensorFlow: (height, width, inputs, outputs); depthwise (height, width, inputs, 1).
            order = (2, 3, 0, 1) if "depthwise" in name else (3, 2, 0, 1)
            array = array.permute(order)
        if array.shape != value.shape:
            raise UserError(f"{path}: {source}: {tuple(array.shape)}, not {tuple(value.shape)}")
        state[name] = array.contiguous()
    return state


def _source(name: str, constants: dict[str, np.ndarray]) -> str:
    """The graph's name of one of the network's weights."""
    module, _, kind = name.rpartition(".")
    part, *rest = module.split(".")
    if part in ("stem", "top"):
        return _FPN + f"model/{'Conv1' if part == 'stem' else 'Conv_1'}/" + _merged("Conv2D", kind)
    if part == "stages":
        stage, block, layer = rest[0], rest[1], rest[2]
        return (
            _FPN
            + f"model/{_block(int(stage), int(block))}_{layer}/"
            + _merged("depthwise" if layer == "depthwise" else "Conv2D", kind)
        )
    if part == "laterals":
        number = 3 - int(rest[0])  # Google's count from the coarsest
        return _FPN + _numbered("conv2d", number) + (_WEIGHT if kind == "weight" else _BIAS)
    if part == "refine":
        layer = _FPN + _numbered("separable_conv2d", 2 - int(rest[0])) + "/separable_conv2d"
        if rest[1] == "depthwise":
            return f"{layer}/ReadVariableOp"
        return layer + ("_weights" if kind == "weight" else "_bn_offset")
    endings = {
        ("depthwise", "weight"): r"separable_conv2d_\d+/separable_conv2d/ReadVariableOp",
        ("pointwise", "weight"): r"separable_conv2d_\d+/separable_conv2d/ReadVariableOp_1",
        ("pointwise", "bias"): r"separable_conv2d_\d+/BiasAdd/ReadVariableOp",
        ("1", "weight"): r"conv2d_\d+" + _WEIGHT,
        ("1", "bias"): r"conv2d_\d+" + _BIAS,
    }
    pattern = re.escape(f"{_ROOT}{rest[0]}_0/") + endings[rest[-1], kind]
    return next((name for name in constants if re.fullmatch(pattern, name)), pattern)


def _block(stage: int, block: int) -> str:
    """Keras's name of a block of MobileNetV2."""
    number = sum(count for _, _, count, _ in STAGES[:stage]) + block
    return f"block_{number}" if number else "expanded_conv"


def _merged(operation: str, kind: str) -> str:
    return f"{operation}_weights" if kind == "weight" else f"{operation}_bn_offset"


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


if __name__ == "__main__":
    sys.exit(main())
