"""A producer of DLPack capsules that can say anything, over memory between guard pages that dies when it is released.

The pages before and after the data, and after the release the data itself, cannot be touched: whoever reads out of
bounds or too late is killed by the system.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Claim", "Guarded", "Producer"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_NOTHING, _READ_WRITE = 0, 3
_PRIVATE_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class DLTensor(ctypes.Structure):
    """DLPack's structure of the name."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class Legacy(ctypes.Structure):
    """``DLManagedTensor``."""

    _fields_ = (("tensor", DLTensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    """``DLManagedTensorVersioned``."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLTensor),
    )


_api = ctypes.pythonapi
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", _api))
# What a capsule points to, for ever: a late or second call of a deleter is to be counted, not to crash the test.
_kept: list[object] = []
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))


class Guarded:
    """Bytes at the end of readable pages, with a page on each side that nobody may touch."""

    def __init__(self, nbytes: int) -> None:
        self._span = max(mmap.PAGESIZE, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        start = _libc.mmap(None, self._span + 2 * mmap.PAGESIZE, _NOTHING, _PRIVATE_ANONYMOUS, -1, 0)
        assert start not in (None, ctypes.c_void_p(-1).value), ctypes.get_errno()
        self._pages = start + mmap.PAGESIZE
        self._protect(_READ_WRITE)
        self.end = self._pages + self._span
        self.address = self.end - nbytes

    def forbid(self) -> None:
        """Let nobody touch the bytes from now on."""
        self._protect(_NOTHING)

    def _protect(self, access: int) -> None:
        assert _libc.mprotect(self._pages, self._span, access) == 0, ctypes.get_errno()


@dataclass
class Claim:
    """What a capsule says, true or not."""

    shape: tuple[int, ...] = (4,)
    strides: tuple[int, ...] | None = None
    code: int = 2
    bits: int = 32
    lanes: int = 1
    ndim: int | None = None
    byte_offset: int = 0
    device: tuple[int, int] = (1, 0)
    version: tuple[int, int] | None = (1, 0)
    flags: int = 0
    name: bytes | None = None
    data: int | None = None
    no_shape: bool = False
    no_deleter: bool = False
    raises: bool = False  # its deleter is a C function that leaves an exception behind


@dataclass
class Producer:
    """Lends guarded memory; counts how often its deleter is called, and by whom.

    Attributes:
        claim: what the capsules say.
        announced: what ``__dlpack_device__`` says.
        knows_versions: it takes the keywords of DLPack 1.0.
        reuses: it hands out the same capsule again and again.
        asked: the keywords of each call.
    """

    claim: Claim = field(default_factory=Claim)
    nbytes: int = 16
    announced: Any = (1, 0)
    knows_versions: bool = True
    reuses: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = Guarded(self.nbytes)
        self._capsule: object = None

    def __dlpack_device__(self) -> Any:
        return self.announced

    def __dlpack__(self, **asked: Any) -> object:
        if not self.knows_versions and set(asked) - {"stream"}:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.asked.append(asked)
        if self._capsule is None or not self.reuses:
            self._capsule = self._make()
        capsule = self._capsule
        if not self.reuses:
            self._capsule = None
        return capsule

    @property
    def floats(self) -> Any:
        """The bytes as a writable ctypes array of floats."""
        return (ctypes.c_float * (self.nbytes // 4)).from_address(self.memory.address)

    def _make(self) -> object:
        claim = self.claim
        shape = (ctypes.c_int64 * len(claim.shape))(*claim.shape)
        strides = None if claim.strides is None else (ctypes.c_int64 * len(claim.strides))(*claim.strides)
        tensor = DLTensor(
            self.memory.address if claim.data is None else claim.data,
            *claim.device,
            len(claim.shape) if claim.ndim is None else claim.ndim,
            claim.code,
            claim.bits,
            claim.lanes,
            None if claim.no_shape else ctypes.addressof(shape),
            None if strides is None else ctypes.addressof(strides),
            claim.byte_offset,
        )
        deleter = _Destructor(self._delete)
        function = _api.PyErr_BadArgument if claim.raises else deleter
        at = None if claim.no_deleter else ctypes.cast(function, ctypes.c_void_p)
        managed = (
            Legacy(tensor, None, at)
            if claim.version is None
            else Versioned(*claim.version, None, at, claim.flags, tensor)
        )
        name = claim.name or (b"dltensor" if claim.version is None else b"dltensor_versioned")
        kept_name = ctypes.create_string_buffer(name)

        def destroy(capsule: int) -> None:  # as every producer's destructor: what was consumed is the consumer's
            if _is_valid(capsule, name) and not name.startswith(b"used_"):
                self._delete(ctypes.addressof(managed))

        destructor = _Destructor(destroy)
        _kept.extend([self, shape, strides, deleter, managed, kept_name, destructor])
        at_destructor = ctypes.cast(destructor, ctypes.c_void_p)
        return _new(ctypes.addressof(managed), kept_name, at_destructor)

    def _delete(self, managed: int) -> None:
        self.deleted.append(threading.get_ident())
        self.memory.forbid()
