"""DLPack capsules, read by hand: whatever a producer puts into one is checked before any of its memory is touched.

NumPy's reader would take them too, but only those that it can show as an array, without their flags, and it trusts
their sizes. The structures are C's, of DLPack 0.x (``dltensor``) and 1.x (``dltensor_versioned``).
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final, NamedTuple, final

import numpy as np

from tazza.errors import ArgumentError, CleanupWarning, UnsupportedError
from tazza.hot.process import process
from tazza.util.report import report

__all__ = ["DEVICE_KINDS", "HOST_TYPES", "VERSION", "ManagedTensor", "Tensor", "redirect", "take"]

VERSION: Final = (1, 1)
"""What is asked of producers; other minor versions of 1 are read too."""

HOST_TYPES: Final = frozenset({1, 3, 11})
"""Device types whose memory is the host's: ordinary, and pinned for CUDA and ROCm."""

DEVICE_KINDS: Final = {
    1: "cpu",
    2: "cuda",
    3: "cpu",
    4: "opencl",
    7: "vulkan",
    8: "metal",
    10: "rocm",
    11: "cpu",
    13: "cuda",
    14: "sycl",
    15: "webgpu",
}
"""What tazza calls the devices that DLPack numbers."""

_LARGEST_RANK = 64  # of NumPy, through which the host sees the memory
_READ_ONLY, _IS_COPIED = 1, 2
_TENSOR = struct.Struct(
    "@PiiiBBHPPQ"
)  # data, device type and id, rank, dtype code, bits and lanes, shape, strides, offset
_LEGACY_TAIL = struct.Struct("@PP")  # manager, deleter
_VERSIONED_HEAD = struct.Struct("@IIPPQ")  # major, minor, manager, deleter, flags
_DTYPES: dict[tuple[int, int], np.dtype[Any]] = {
    **{(0, bits): np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{(1, bits): np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{(2, bits): np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    **{(5, bits): np.dtype(f"c{bits // 8}") for bits in (64, 128)},
    (6, 8): np.dtype(bool),
}
_NEAREST = {0: "int8", 1: "uint8", 2: "float32", 4: "float32", 5: "complex64", 6: "bool"}

_api = ctypes.pythonapi
# Prototypes of our own: those that ctypes.pythonapi keeps are shared with everybody in the process.
_name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", _api))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(("PyCapsule_SetName", _api))
# With the lock of the interpreter held, as NumPy calls it: a deleter that takes that itself can have it twice.
_Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)


def _immortal(text: bytes) -> int:
    """Address of a C string that outlives the interpreter, as a producer may keep the capsule that bears the name."""
    kept = ctypes.create_string_buffer(text)
    _api.Py_IncRef(ctypes.py_object(kept))
    return ctypes.addressof(kept)


_USED = {name: _immortal(b"used_" + name) for name in (b"dltensor", b"dltensor_versioned")}


@final
class ManagedTensor:
    """What a consumed capsule leaves to its consumer: the duty to call the deleter, once."""

    __slots__ = ("_address", "_deleter")

    def __init__(self, address: int, deleter: int) -> None:
        self._address, self._deleter = address, deleter

    def release(self) -> None:
        """Call the producer's deleter; what it raises becomes a `CleanupWarning`. Later calls do nothing."""
        address, self._address = self._address, 0
        if address and self._deleter:
            try:
                _Deleter(self._deleter)(address)
            except Exception as error:  # a deleter may be Python code; the memory counts as given back all the same
                report("the deleter of a DLPack tensor failed", CleanupWarning, error=error)


class Tensor(NamedTuple):
    """What a capsule says.

    Attributes:
        managed: the duty to give the memory back.
        address: first byte of element ``[0, 0, ...]``, the byte offset included.
        shape: elements along each axis.
        strides: *elements* from one to the next along each axis; None for C order.
        readonly: the producer forbids writing, or its version of DLPack could not have said so.
        copied: the producer made this memory for the capsule.
    """

    managed: ManagedTensor
    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    readonly: bool
    copied: bool


def take(capsule: object, device: tuple[int, int]) -> Tensor:
    """Consume a capsule. One that is refused stays as it was: its own destructor calls the deleter.

    Args:
        device: type and number that the producer announced.

    Raises:
        ArgumentError: no capsule, used before, of an unknown version, of another device, or with impossible sizes.
        UnsupportedError: a dtype that NumPy does not have; names the nearest one.
    """
    with process.lock:  # between looking at the name and changing it
        name = _usable_name(capsule)
        address = _pointer_of(capsule, name)
        size = _TENSOR.size + (_VERSIONED_HEAD.size if name == b"dltensor_versioned" else _LEGACY_TAIL.size)
        tensor = _read((ctypes.c_char * size).from_address(address).raw, address, name, device)
        _rename(capsule, _USED[name])
    return tensor


def redirect(capsule: object, device: tuple[int, int]) -> None:
    """Say in an unused capsule that its memory is another device's."""
    name = _usable_name(capsule)
    at = _pointer_of(capsule, name) + (_VERSIONED_HEAD.size if name == b"dltensor_versioned" else 0)
    (ctypes.c_int32 * 2).from_address(at + ctypes.sizeof(ctypes.c_void_p))[:] = list(device)


def _usable_name(capsule: object) -> bytes:
    try:
        name = _name_of(capsule)
    except ValueError:
        raise ArgumentError.of("obj.__dlpack__()", capsule, "a capsule") from None
    if name in _USED:
        return bytes(name)
    if name is not None and name.removeprefix(b"used_") in _USED:
        raise ArgumentError("obj.__dlpack__(): the capsule was consumed before; its memory has another owner")
    raise ArgumentError.of("obj.__dlpack__()", name, "a capsule named 'dltensor' or 'dltensor_versioned'")


def _read(raw: bytes, address: int, name: bytes, device: tuple[int, int]) -> Tensor:
    if name == b"dltensor_versioned":
        major, minor, _, deleter, flags = _VERSIONED_HEAD.unpack_from(raw)
        if major != VERSION[0]:  # nothing behind the version can be relied on
            raise ArgumentError.of("obj.__dlpack__()", f"DLPack {major}.{minor}", "a capsule of DLPack 1.x")
        tensor = _TENSOR.unpack_from(raw, _VERSIONED_HEAD.size)
    else:
        tensor = _TENSOR.unpack_from(raw)
        _, deleter = _LEGACY_TAIL.unpack_from(raw, _TENSOR.size)
        flags = _READ_ONLY
    data, kind, number, rank, code, bits, lanes, shape_at, strides_at, offset = tensor
    if kind != device[0] or (kind not in HOST_TYPES and number != device[1]):
        raise ArgumentError.of(
            "obj.__dlpack__()", f"memory of device {(kind, number)}", f"device {device} as announced"
        )
    if not 0 <= rank <= _LARGEST_RANK or (rank and not shape_at):
        raise ArgumentError.of("obj.__dlpack__()", f"{rank} axes", f"0 to {_LARGEST_RANK} axes and their lengths")
    if data == 0 and offset:
        raise ArgumentError.of("obj.__dlpack__()", f"byte_offset {offset} without data", "an address")
    return Tensor(
        ManagedTensor(address, deleter),
        data + offset,
        _dtype(code, bits, lanes),
        _integers(shape_at, rank),
        _integers(strides_at, rank) if strides_at else None,
        bool(flags & _READ_ONLY),
        bool(flags & _IS_COPIED),
    )


def _integers(address: int, count: int) -> tuple[int, ...]:
    return tuple((ctypes.c_int64 * count).from_address(address)) if count else ()


def _dtype(code: int, bits: int, lanes: int) -> np.dtype[Any]:
    if lanes != 1:
        raise UnsupportedError(f"obj has elements of {lanes} lanes; export it with one more axis instead")
    dtype = _DTYPES.get((code, bits))
    if dtype is not None:
        return dtype
    nearest = _NEAREST.get(code, "float16")  # what is left are floats of 8 bits and less
    raise UnsupportedError(
        f"obj has elements of DLPack type {code} and {bits} bits, which NumPy does not have; the nearest is {nearest}: "
        "convert it with the library that made it"
    )
