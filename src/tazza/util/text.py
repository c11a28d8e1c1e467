"""Sizes and durations as people write and read them."""

from __future__ import annotations

import re

from tazza.errors import ArgumentError

__all__ = ["format_nbytes", "format_seconds", "parse_nbytes"]

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[_letter + "ib"] = 1024**_power
    _UNITS[_letter + "b"] = 1000**_power
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_nbytes(value: int | str, *, argument: str) -> int:
    """Bytes of ``"2GiB"``, ``"512 MB"``, ``"64k"`` (binary) or of an integer.

    >>> parse_nbytes("1.5KiB", argument="limit")
    1536
    """
    expected = "bytes as a non-negative integer or a text like '512MiB', '2GB', '64k'"
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or match[2].lower() not in _UNITS:
            raise ArgumentError.of(argument, value, expected)
        return int(float(match[1]) * _UNITS[match[2].lower()])
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArgumentError.of(argument, value, expected)
    return value


def format_nbytes(nbytes: int) -> str:
    """Write bytes with a binary unit.

    >>> format_nbytes(1536)
    '1.5 KiB'
    """
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Write a duration with a fitting unit.

    >>> format_seconds(0.00123)
    '1.23 ms'
    """
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
