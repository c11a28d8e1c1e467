"""The file format of saved state: a JSON header and named arrays, without pickle.

::

    magic     16 bytes   b"tazza state\\n", format version as a little-endian uint32
    total      8 bytes   uint64, length of the whole file
    index      8 bytes   uint64, length of the JSON text
    digest    32 bytes   SHA-256 of everything else, in the order of the file
    JSON                 {"header": ..., "arrays": [[name, dtype, shape, offset], ...]}
    arrays               C order, little-endian; each starts at a multiple of 64, with zeros before it; offsets count
                         from the first multiple of 64 after the JSON text

A file appears whole or not at all: it is written beside its destination under a name of its own, flushed to the disk,
and moved over the destination, whose directory is flushed in turn. A process that dies in between leaves at most a file
``.NAME.XXXXXXXX.tmp``, which nothing reads and anybody may delete.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from tazza.errors import ArgumentError, CheckpointError
from tazza.util.files import replace_file

__all__ = ["VERSION", "read", "write"]

VERSION: Final = 1
"""Raised by one with every change after which an older reader would misread a file."""

Array = np.ndarray[Any, np.dtype[Any]]

_NAME: Final = b"tazza state\n"
_HEAD: Final = struct.Struct("<12sIQQ32s")
_DIGEST_AT: Final = _HEAD.size - 32
_ALIGNMENT: Final = 64
_KINDS: Final = "biufc"


def write(path: str | os.PathLike[str], header: Mapping[str, object], arrays: Mapping[str, Array]) -> None:
    """Replace the file at `path` by one that holds `header` and `arrays`, in one step.

    Args:
        path: destination; a symbolic link is followed.
        header: anything that JSON can hold.
        arrays: boolean and numeric arrays of any shape and strides, by name.

    Raises:
        ArgumentError: a header that JSON cannot hold, or an array of another dtype.
        OSError: the directory does not exist or cannot be written to; the old file is untouched.
    """
    import hashlib  # late: it loads OpenSSL

    head, pieces = _layout(header, {name: _portable(name, array) for name, array in arrays.items()})
    digest = hashlib.sha256(head)
    for piece in pieces:
        digest.update(piece)
    replace_file(path, [head, digest.digest(), *pieces])


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return header and arrays of the file at `path`; the arrays are fresh and writable.

    Nothing of the file is interpreted before its length and its SHA-256 were found right.

    Raises:
        CheckpointError: the file is foreign, of another version, truncated or damaged; the message says which.
        OSError: there is no such file, or it cannot be read.
    """
    with Path(path).open("rb") as file:
        head = _check(file, os.fspath(path))
        try:
            return _parse(file, *head)
        except (ValueError, TypeError, KeyError, struct.error) as error:
            raise CheckpointError(f"{os.fspath(path)}: the content is not a saved state: {error}") from error


def _portable(name: str, array: Array) -> Array:
    if array.dtype.kind not in _KINDS:
        raise ArgumentError.of(f"arrays[{name!r}]", array.dtype, "an array of a boolean or numeric dtype")
    # `reshape` undoes that ascontiguousarray makes a 0-d array 1-d.
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def _layout(header: Mapping[str, object], arrays: Mapping[str, Array]) -> tuple[bytes, list[bytes | memoryview]]:
    """Return what comes before the digest, and what comes after it in pieces."""
    nbytes = [array.nbytes for array in arrays.values()]
    # Offsets are part of the text whose length they depend on: they are counted from the first array in it.
    starts = [0]
    for size in nbytes:
        starts.append(_aligned(starts[-1] + size))
    table = [
        [name, array.dtype.str, list(array.shape), start]
        for (name, array), start in zip(arrays.items(), starts, strict=False)
    ]
    import json  # late: importing tazza needs none

    try:
        text = json.dumps({"header": header, "arrays": table}, separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"header: JSON cannot hold it ({error}); use dicts, lists, numbers and texts") from None
    first = _aligned(_HEAD.size + len(text))
    head = _HEAD.pack(_NAME, VERSION, first + starts[-1], len(text), b"")[:_DIGEST_AT]
    pieces: list[bytes | memoryview] = [text, bytes(first - _HEAD.size - len(text))]
    for array, size in zip(arrays.values(), nbytes, strict=True):
        pieces += [array.reshape(-1).view(np.uint8).data, bytes(_aligned(size) - size)]
    return head, pieces


def _check(file: BinaryIO, path: str) -> tuple[int, int]:
    """Return lengths of the JSON text and of the file once everything is known to be as it was written."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(_HEAD.size)
    if not head.startswith(_NAME[: len(head)]) or not head:
        raise CheckpointError(f"{path}: not a tazza state file; it was written by something else")
    if len(head) < _HEAD.size:
        raise CheckpointError(f"{path}: truncated: {size} bytes are less than the head of a state file")
    _, version, total, index, expected = _HEAD.unpack(head)
    if version != VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this tazza reads {VERSION}; it is of another release or damaged"
        )
    if size != total:
        what = "truncated" if size < total else "damaged"
        raise CheckpointError(f"{path}: {what}: the file has {size} bytes of {total}")
    import hashlib  # late: it loads OpenSSL

    digest = hashlib.sha256(head[:_DIGEST_AT])
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    if digest.digest() != expected:
        raise CheckpointError(f"{path}: damaged: the SHA-256 of its content is not the one it was written with")
    return index, total


def _parse(file: BinaryIO, index: int, total: int) -> tuple[dict[str, Any], dict[str, Array]]:
    import json  # late: importing tazza needs none

    file.seek(_HEAD.size)
    content = json.loads(file.read(index))
    first = _aligned(_HEAD.size + index)
    arrays: dict[str, Array] = {}
    for name, dtype, shape, start in content["arrays"]:
        kind = np.dtype(dtype)
        nbytes = kind.itemsize * int(np.prod(shape, dtype=object))
        if kind.kind not in _KINDS or start < 0 or nbytes < 0 or first + start + nbytes > total:
            raise ValueError(f"array {name!r} of {dtype} {shape} does not lie in the file")
        file.seek(first + start)
        array = np.empty(nbytes, np.uint8)
        file.readinto(array.data)  # type: ignore[attr-defined]
        arrays[name] = array.view(kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)
    return dict(content["header"]), arrays


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
