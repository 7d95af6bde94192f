"""An interpreter of Core ML packages: Core ML itself runs on Apple's systems only.

It reads the saved package (the program in protobuf and the file of weights, MIL's "blob" format),
so that what is checked is what ships. Every result is rounded to the type that the program
declares, float16 as a rule; sums inside one operation are float32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ptri.errors import UserError
from ptri.export.mil_operations import OPERATIONS

PROGRAM = "Data/com.apple.CoreML/model.mlmodel"
_WEIGHTS = "@model_path/"  # what file names in the program are relative to
_BLOB = "<IIQQ"  # mark, type, bytes, offset of the data; a header before each tensor's data
_BLOB_MARK = 0xDEADBEEF
_TYPES = {
    "BOOL": np.bool_,
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
}


class Operation(NamedTuple):
    """One line of a program."""

    kind: str
    inputs: dict[str, str]  # parameter -> name of a value
    constants: dict[str, Any]  # parameter -> value
    outputs: list[tuple[str, Any]]  # names, and NumPy's types


class Program(NamedTuple):
    """A package's main function, whose constants are read."""

    inputs: dict[str, tuple[int, ...]]  # names and shapes
    values: dict[str, Any]  # constants, by name
    operations: list[Operation]
    outputs: list[str]


def read_program(package: str | Path) -> Program:
    """Reads a saved .mlpackage.

    Raises:
        UserError: no such package, coremltools (for its definition of the format) is not installed,
            or something in the program that this interpreter does not know.
    """
    try:
        from coremltools.proto import MIL_pb2, Model_pb2
    except ImportError as error:
        raise UserError(f"{error.name} is missing; make coreml installs it") from None
    package = Path(package)
    try:
        content = (package / PROGRAM).read_bytes()
    except OSError as error:
        raise UserError(f"{package}: no Core ML package ({error.strerror}: {PROGRAM})") from None
    model = Model_pb2.Model()
    model.ParseFromString(content)
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    read = _Reader(package / "Data/com.apple.CoreML", MIL_pb2.DataType.Name)
    values, operations = {}, []
    for line in block.operations:
        if line.type == "const":
            values[line.outputs[0].name] = read.value(line.attributes["val"])
            continue
        if line.type not in OPERATIONS:
            raise UserError(f"{package}: operation {line.type} is not known to ptri/export/mil.py")
        attributes = {k: read.value(v) for k, v in line.attributes.items() if k != "name"}
        names = {k: v.arguments[0].name for k, v in line.inputs.items()}
        outputs = [(part.name, read.kind(part.type)) for part in line.outputs]
        operations.append(Operation(line.type, names, attributes, outputs))
    inputs = {part.name: _shape(part.type.tensorType) for part in function.inputs}
    return Program(inputs, values, operations, list(block.outputs))


def run(
    program: Program,
    image: np.ndarray,
    watch: Callable[[str, np.ndarray], None] | None = None,
) -> list[np.ndarray]:
    """The program's outputs for its one input.

    Args:
        image: of the input's shape. watch: is told the name and the value of every result.
    """
    ((name, shape),) = program.inputs.items()
    values = {**program.values, name: np.asarray(image, np.float32).reshape(shape)}
    for operation in program.operations:
        given = {k: _wide(values[name]) for k, name in operation.inputs.items()}
        constants = {k: _wide(value) for k, value in operation.constants.items()}
        result = OPERATIONS[operation.kind](**given, **constants)
        results = result if isinstance(result, list) else [result]
        for (name, kind), value in zip(operation.outputs, results):
            values[name] = np.asarray(value, kind)
            if watch is not None:
                watch(name, values[name])
    return [values[name] for name in program.outputs]


class _Reader:
    """Values of a program, which may lie in its file of weights."""

    def __init__(self, folder: Path, type_name: Callable[[int], str]) -> None:
        self.folder, self.type_name = folder, type_name
        self.files: dict[str, bytes] = {}

    def kind(self, value_type: Any) -> Any:
        name = self.type_name(value_type.tensorType.dataType)
        if name == "STRING":
            return str
        if name not in _TYPES:
            raise UserError(f"{self.folder}: values of type {name} are not known")
        return _TYPES[name]

    def value(self, value: Any) -> Any:
        """An array; a string or a number where the value has no dimensions."""
        kind, shape = self.kind(value.type), _shape(value.type.tensorType)
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(value.blobFileValue, kind).reshape(shape)
        tensor = value.immediateValue.tensor
        field = tensor.WhichOneof("value")
        raw = getattr(tensor, field).values
        if kind is str:
            return raw[0]
        array = np.frombuffer(raw, kind) if field == "bytes" else np.array(raw, kind)
        return array.reshape(shape)[()]

    def _blob(self, place: Any, kind: Any) -> np.ndarray:
        name = place.fileName.removeprefix(_WEIGHTS)
        if name not in self.files:
            self.files[name] = (self.folder / name).read_bytes()
        content = self.files[name]
        mark, _, size, start = struct.unpack_from(_BLOB, content, place.offset)
        if mark != _BLOB_MARK:
            raise UserError(f"{self.folder / name}: no weights at byte {place.offset}; damaged")
        return np.frombuffer(content, kind, size // np.dtype(kind).itemsize, start)


def _shape(tensor_type: Any) -> tuple[int, ...]:
    return tuple(dimension.constant.size for dimension in tensor_type.dimensions)


def _wide(value: Any) -> Any:
    """float16 as float32, in which all sums are taken."""
    half = isinstance(value, (np.ndarray, np.generic)) and value.dtype == np.float16
    return value.astype(np.float32) if half else value
