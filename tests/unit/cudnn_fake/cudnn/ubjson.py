"""Write Universal Binary JSON as cuDNN's front end does: what the planner's process has to read."""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["encoded"]


def encoded(value: Any) -> bytes:
    """One value with its marker."""
    constants = {id(None): b"Z", id(True): b"T", id(False): b"F"}
    if id(value) in constants:
        return constants[id(value)]
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"S" + _integer(len(text)) + text
    if isinstance(value, list):
        return b"[" + b"".join(map(encoded, value)) + b"]"
    pairs = ((key.encode(), encoded(item)) for key, item in value.items())
    return b"{" + b"".join(_integer(len(key)) + key + item for key, item in pairs) + b"}"


def _integer(value: int) -> bytes:
    for marker, size in (("i", 1), ("U", 1), ("I", 2), ("l", 4), ("L", 8)):
        signed = marker != "U"
        low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, 255)
        if low <= value <= high:
            return marker.encode() + value.to_bytes(size, "big", signed=signed)
    raise OverflowError(value)
