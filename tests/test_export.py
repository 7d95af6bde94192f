"""The 2D network for other runtimes: decoding in NumPy, Core ML's operations, whole exports."""

import importlib.util
import struct
from pathlib import Path
from types import SimpleNamespace

import export
import numpy as np
import pytest
import torch
from benchmark.photos.persons import load_network
from torch.nn import functional as F

from ptri.config import ModelConfig
from ptri.errors import UserError
from ptri.export import check, decode, mil, mil_operations, to_coreml, to_onnx
from ptri.export.graph import Exported
from ptri.models.mobileone import merge_batchnorm
from ptri.models.network2d import Network2D

WEIGHTS = str(Path(__file__).resolve().parents[1] / "checkpoints/ptri_2d_s0.pt")


def random_network():
    torch.manual_seed(0)
    return merge_batchnorm(Network2D(ModelConfig(plain_convolutions=True)))


def generator(seed=0):
    return np.random.default_rng(seed)


def close(a, b, tolerance=1e-5):
    scale = np.abs(np.asarray(b)).max()
    return np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * max(scale, 1)


# --- decoding --------------------------------------------------------------------------------


def test_decoding_in_numpy_is_the_networks_own(tmp_path):
    network, _ = load_network(WEIGHTS)
    images = export.pictures(3, 96)
    with torch.no_grad():
        logits, features = Exported(network, decoded=False)(images)
        expected = Exported(network)(images)
    decoder = decode.decoder_of(network.reliability)
    path = tmp_path / "decoder.json"
    decode.write_decoder(path, decoder, 96, ["a"] * 17)
    for weights in (decoder, decode.read_decoder(path)):
        found = decode.decode(logits.numpy(), features.numpy(), weights)
        for ours, theirs, tolerance in zip(found, expected, (1e-5, 1e-3, 1e-4)):
            assert close(ours, theirs, tolerance)
    # The control: other features make other uncertainty and the same keypoints.
    xy, covariance, _ = decode.decode(logits.numpy(), 0 * features.numpy(), decoder)
    assert close(xy, expected[0], 1e-5) and not close(covariance, expected[1], 1e-2)


def test_what_counts_as_the_same():
    same = check.Differences(1e-5, 1e-5, 1e-4, 0.0, 1e-4, 5.0, 0.9)
    jump = same._replace(mean=0.02, p95=0.04, largest=7.0, moved=0.03, largest_of_others=0.1)
    assert same.agrees("float32") and not jump.agrees("float32")
    assert jump.agrees("float16") and not jump._replace(p95=0.06).agrees("float16")
    assert not jump._replace(largest_of_others=0.3).agrees("float16")
    assert jump._replace(mean=2.0).agrees("w8") and not jump._replace(mean=30.0).agrees("w8")


# --- Core ML's operations ----------------------------------------------------------------------


@pytest.mark.parametrize("groups, inputs, outputs", [(1, 3, 8), (8, 8, 8), (2, 4, 6)])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1)])
def test_convolution(groups, inputs, outputs, kernel, stride):
    rng = generator()
    x = rng.normal(size=(1, inputs, 10, 12)).astype(np.float32)
    weight = rng.normal(size=(outputs, inputs // groups, kernel, kernel)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    pad = kernel // 2
    found = mil_operations.conv(
        x, weight, bias, (stride, stride), "custom", (pad, pad, pad, pad), (1, 1), groups
    )
    tensors = (torch.from_numpy(value) for value in (x, weight, bias))
    assert close(found, F.conv2d(*tensors, stride, pad, 1, groups))


def test_other_operations():
    rng, run = generator(), mil_operations.OPERATIONS
    x = rng.normal(size=(2, 5, 8)).astype(np.float32)
    gamma, beta = rng.normal(size=(2, 8)).astype(np.float32)
    weight = rng.normal(size=(3, 8)).astype(np.float32)
    tensor = torch.from_numpy(x)
    normed = F.layer_norm(tensor, (8,), torch.from_numpy(gamma), torch.from_numpy(beta), 1e-5)
    assert close(run["layer_norm"](x, [-1], gamma, beta, 1e-5), normed)
    assert close(run["softmax"](x, -1), tensor.softmax(-1))
    assert close(run["linear"](x, weight, gamma[:3]), x @ weight.T + gamma[:3])
    assert close(run["matmul"](x, x, transpose_y=True), tensor @ tensor.transpose(1, 2))
    assert close(run["matmul"](x, x, transpose_x=True), tensor.transpose(1, 2) @ tensor)
    up = F.interpolate(tensor[None], scale_factor=2.0, mode="nearest")
    assert close(run["upsample_nearest_neighbor"](x[None], 2.0, 2.0), up)
    assert [part.shape[1] for part in run["split"](x, [2, 3], 1)] == [2, 3]


def test_compressed_values():
    rng = generator()
    integers = rng.integers(-128, 128, (4, 3), np.int8)
    scale = np.array([0.5, 1, 2, 4], np.float32)
    found = mil_operations.constexpr_affine_dequantize(integers, scale, np.int8(3), 0)
    assert close(found, (integers.astype(float) - 3) * scale[:, None])
    # Palettes of 6 bits: the third index lies across two bytes.
    lut = rng.normal(size=64).astype(np.float32)
    index = rng.integers(0, 64, 10)
    number = sum(int(value) << 6 * place for place, value in enumerate(index))
    packed = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    found = mil_operations.constexpr_lut_to_dense(packed, lut, np.array([2, 5]))
    assert np.array_equal(found, lut[index].reshape(2, 5))
    x = np.array([-100, -0.26, 0.24, 0.26, 100], np.float32)
    steps = mil_operations.quantize(x, np.float32(0.5), "int8", np.int8(0))
    assert steps.tolist() == [-128, -1, 0, 1, 127]
    assert close(mil_operations.dequantize(steps, np.float32(0.5)), [-64, -0.5, 0, 0.5, 63.5])


def test_a_program_is_rounded_after_each_line():
    def line(kind, inputs, output, dtype):
        return mil.Operation(kind, inputs, {}, [(output, dtype)])

    def program(dtype):
        lines = [
            line("add", {"x": "image", "y": "one"}, "sum", dtype),
            line("sub", {"x": "sum", "y": "one"}, "back", dtype),
        ]
        return mil.Program({"image": (1,)}, {"one": np.float16(1)}, lines, ["back"])

    seen = {}
    image = np.array([1 / 4096])  # too little for a half of 1
    (result,) = mil.run(program(np.float16), image, seen.__setitem__)
    assert result == 0 and result.dtype == np.float16 and seen["sum"] == 1
    assert mil.run(program(np.float32), image)[0] == 1 / 4096


def test_weights_are_found_in_their_file(tmp_path):
    values = np.arange(6, dtype=np.float16)
    header = struct.pack("<IIQQ", 0xDEADBEEF, 1, values.nbytes, 128)
    (tmp_path / "weight.bin").write_bytes(bytes(64) + header.ljust(64, b"\0") + values.tobytes())
    reader = mil._Reader(tmp_path, lambda number: "FLOAT16")
    place = SimpleNamespace(fileName="@model_path/weight.bin", offset=64)
    assert np.array_equal(reader._blob(place, np.float16), values)
    with pytest.raises(UserError, match="no weights at byte 0; damaged"):
        reader._blob(SimpleNamespace(fileName="@model_path/weight.bin", offset=0), np.float16)


# --- the command -------------------------------------------------------------------------------


def installed(name):
    return importlib.util.find_spec(name) is not None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            [WEIGHTS.replace("2d_s0", "3d"), "--to", "coreml"],
            "weights of train3d.py; expected",
        ),
        (["absent.pt", "--to", "coreml"], "absent.pt: no such checkpoint file"),
        ([WEIGHTS, "--to", "litert", "--size", "100"], "--size 100: expected a multiple of 32"),
        ([WEIGHTS, "--to", "litert", "--precision", "w4"], "can float32, float16, w8, w8a8, or"),
        ([WEIGHTS, "--to", "onnx", "--precision", "w8"], "--to onnx writes float32 only"),
        ([WEIGHTS, "--to", "executorch", "--flip"], "for --to onnx only, not executorch"),
        ([WEIGHTS, "--to", "coreml", "--images", "absent"], "absent"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, capsys, arguments, message):
    assert export.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


RUNTIMES = {"coreml": "coremltools", "executorch": "executorch", "litert": "litert_torch"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_runtime_names_its_make_target(tmp_path, capsys, runtime):
    if installed(RUNTIMES[runtime]):
        pytest.skip(f"{RUNTIMES[runtime]} is installed")
    arguments = [WEIGHTS, "--to", runtime, "--size", "32", "--out", str(tmp_path), "--every", "20"]
    assert export.main(arguments) == 2
    assert f"is missing; make {runtime} makes an environment" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_export_runs_and_agrees(tmp_path, capsys, runtime):
    pytest.importorskip(RUNTIMES[runtime])
    arguments = [WEIGHTS, "--to", runtime, "--out", str(tmp_path), "--every", "20"]
    assert export.main(arguments) == 0
    assert "distances in px to PyTorch" in capsys.readouterr().out
    assert export.main(arguments) == 2  # exists
    assert "exists; choose another --out or give --overwrite" in capsys.readouterr().err


@pytest.mark.slow
def test_the_interpreter_reads_what_coremltools_saved(tmp_path):
    pytest.importorskip("coremltools")
    network, _ = load_network(WEIGHTS)
    images = export.pictures(1, 64)
    pixels = images.numpy().astype(np.uint8)
    with torch.no_grad():
        expected = Exported(network, decoded=False)(torch.from_numpy(pixels).float())
    target = tmp_path / "network.mlpackage"
    to_coreml.write(Exported(network, decoded=False), target, 64, "float32", pixels)
    found = to_coreml.run(target)(pixels)
    assert all(close(ours, theirs, 1e-4) for ours, theirs in zip(found, expected))
    # The control: the file of weights is what is read.
    weights = target / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[256:1024] = bytes(768)
    weights.write_bytes(content)
    assert not close(to_coreml.run(target)(pixels)[0], expected[0], 1e-2)


@pytest.mark.slow
def test_onnx_graph_equals_the_network(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    arguments = [WEIGHTS, "--to", "onnx", "--out", str(tmp_path), "--size", "64"]
    assert export.main(arguments) == 0
    assert "largest differences" in capsys.readouterr().out
    assert export.main(arguments) == 2  # exists
    # The control: another network's graph does not pass for this one.
    (target,) = tmp_path.glob("*.onnx")
    assert to_onnx.compare(Exported(random_network()), target, export.pictures(2, 64))["xy"] > 1
