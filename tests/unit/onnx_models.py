"""Small ONNX models, written as protobuf by hand, so that tests need neither the ``onnx`` package nor files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["FLOAT", "INT64", "STRING", "model", "node"]

FLOAT, INT64, STRING = 1, 7, 8
_INTS = 7  # an attribute's type

Ports = Sequence[tuple[str, int, Sequence[int | str]]]
"""Name, element type and extents of inputs or outputs."""


def model(
    inputs: Ports,
    nodes: Sequence[bytes],
    outputs: Ports,
    constants: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]] | None = None,
) -> bytes:
    """Return a model of these nodes (opset 13), and of float32 constants by name."""
    graph = b"".join(_field(1, one) for one in nodes) + _field(2, b"graph")
    graph += b"".join(_field(5, _constant(name, value)) for name, value in (constants or {}).items())
    graph += b"".join(_field(11, _port(*port)) for port in inputs)
    graph += b"".join(_field(12, _port(*port)) for port in outputs)
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 13))


def node(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, Sequence[int]] | None = None
) -> bytes:
    """Return one operation, with attributes that are lists of integers."""
    names = [_field(1, name.encode()) for name in inputs] + [_field(2, name.encode()) for name in outputs]
    lists = [_field(5, _attribute(name, values)) for name, values in (attributes or {}).items()]
    return b"".join(names) + _field(4, operator.encode()) + b"".join(lists)


def _attribute(name: str, values: Sequence[int]) -> bytes:
    return _field(1, name.encode()) + b"".join(_number(8, value) for value in values) + _number(20, _INTS)


def _constant(name: str, value: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    extents = b"".join(_number(1, extent) for extent in value.shape)
    return extents + _number(2, FLOAT) + _field(8, name.encode()) + _field(9, value.astype("<f4").tobytes())


def _port(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    extents = [_number(1, one) if isinstance(one, int) else _field(2, one.encode()) for one in shape]
    tensor = _number(1, kind) + _field(2, b"".join(_field(1, extent) for extent in extents))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
