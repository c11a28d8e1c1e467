"""Shared segments: named memory of the host that several processes map, and what becomes of it when they die.

A segment is a file in the system's directory for shared memory (``/dev/shm``), the same object that
`multiprocessing.shared_memory` opens by that name. That class is passed by because its resource tracker, which cannot
be turned off before Python 3.13, removes a segment when *any* process that attached it ends.

::

    magic      8 bytes   b"tazzashm"
    version    4 bytes   uint32, all numbers little-endian
    checksum   4 bytes   uint32, CRC-32 of what follows, up to the end of the text
    offset     8 bytes   uint64, where the user's bytes begin: one page after the start
    nbytes     8 bytes   uint64, how many there are
    length     4 bytes   uint32, of the text
    text                 JSON: dtype, shape, strides, label

**Who is there** is known by a lock, not by process numbers, which are reused and differ between containers: every
process that has mapped the segment holds a shared ``flock`` on it, which the system takes back however the process
ends. Whoever gets the exclusive lock knows that nobody is there, and removes the name: the last one to leave a segment
whose creator died, and everybody who makes a new one, for all that the dead left behind (`sweep`). As a lock follows
the creation of the file, a sweeper may come between the two; the creator sees that and takes another name. The lock has
a descriptor of its own, apart from the mapping's, as a forked child keeps its parent's mappings but is not to count.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import stat
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, final

import numpy as np

from tazza.errors import ArgumentError, OutOfMemoryError, SharedMemoryError, UnsupportedError
from tazza.hot import after_fork, generation

try:
    import fcntl
except ImportError:  # Windows: `_lock` says that it is not supported
    fcntl = None  # type: ignore[assignment]

__all__ = ["PAGE", "VERSION", "Header", "Segment", "attach", "create", "forsake", "names", "sweep"]

PAGE: Final = mmap.PAGESIZE
"""Bytes before the user's own in every segment; sizes are whole pages."""

VERSION: Final = 1
"""Raised by one with every change after which an older reader would misread a segment."""

_MAGIC: Final = b"tazzashm"
_HEAD: Final = struct.Struct("<8sIIQQI")
_CHECKED_FROM: Final = 16
_NAME: Final = re.compile(r"tazza-\d+-[0-9a-f]{16}")
_LONGEST_LABEL: Final = 200
_ATTEMPTS: Final = 100
_DIRECTORY: Final = "/dev/shm"


class Header(NamedTuple):
    """What a segment says of itself.

    Attributes:
        nbytes: the user's bytes.
        dtype: of their elements, or None for plain bytes.
        shape, strides: of their elements.
        label: what the creator called them, or None.
    """

    nbytes: int
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    label: str | None

    def pack(self) -> bytes:
        """The bytes at the start of the segment; raises ArgumentError where a page is too small for them."""
        described = None if self.dtype is None else np.lib.format.dtype_to_descr(self.dtype)
        label = None if self.label is None else self.label[:_LONGEST_LABEL]
        fields = {"dtype": described, "shape": self.shape, "strides": self.strides, "label": label}
        import json  # late: importing tazza needs none

        text = json.dumps(fields).encode()
        if _HEAD.size + len(text) > PAGE:
            raise ArgumentError(f"dtype, shape: their description takes more than a page of {PAGE} bytes")
        tail = _HEAD.pack(_MAGIC, VERSION, 0, PAGE, self.nbytes, len(text))[_CHECKED_FROM:] + text
        return struct.pack("<8sII", _MAGIC, VERSION, zlib.crc32(tail)) + tail

    @classmethod
    def unpack(cls, name: str, page: bytes, nbytes: int) -> Header:
        """Read the first page of a segment of `nbytes`; raises SharedMemoryError where it is not whole and ours."""
        if len(page) < _HEAD.size or page[: len(_MAGIC)] != _MAGIC:
            raise SharedMemoryError(f"{name} was not made by tazza, or not finished")
        _, version, checksum, offset, payload, length = _HEAD.unpack_from(page)
        if version != VERSION:
            raise SharedMemoryError(
                f"{name} has the format version {version}, this tazza reads {VERSION}; use one version in all processes"
            )
        if zlib.crc32(page[_CHECKED_FROM : _HEAD.size + length]) != checksum:
            raise SharedMemoryError(f"{name} is damaged: the checksum of its header is wrong")
        if offset != PAGE or offset + payload > nbytes:
            raise SharedMemoryError(f"{name} is too small: {nbytes} bytes for {payload} from {offset} on")
        import json  # late: importing tazza needs none

        try:
            fields = json.loads(page[_HEAD.size : _HEAD.size + length])
            dtype = None if fields["dtype"] is None else np.lib.format.descr_to_dtype(_as_descr(fields["dtype"]))
            return cls(payload, dtype, tuple(fields["shape"]), tuple(fields["strides"]), fields["label"])
        except (KeyError, TypeError, ValueError) as error:
            raise SharedMemoryError(f"{name} is damaged: its header says {error}") from None


def _as_descr(described: Any) -> Any:
    """JSON's lists as the tuples of a structured dtype's description."""
    if isinstance(described, str):
        return described
    return [(name, _as_descr(kind), *map(tuple, shape)) for name, kind, *shape in described]


@final
class Segment:
    """One mapping of a shared segment by this process; made by `create` and `attach`.

    Attributes:
        name: under which others attach it, and `multiprocessing.shared_memory` opens it.
        address: of the first byte of the mapping, the header's.
        nbytes: mapped bytes, the header's page included.
        header: what it says of itself.
        owned: made here: its name goes with this mapping.
        readonly: the system refuses writing through this mapping.
    """

    def __init__(
        self, name: str, lock: int, memory: int, nbytes: int, header: Header, *, owned: bool, readonly: bool
    ) -> None:
        self.name, self.nbytes, self.header = name, nbytes, header
        self.owned, self.readonly = owned, readonly
        self.address = _map(memory, nbytes, readonly, present=owned)
        self._descriptor, self._generation = lock, generation()
        with _open.lock:
            _open.segments[id(self)] = self

    def close(self) -> None:
        """Unmap it; the owner removes the name, and so does the last of those whose owner died. Idempotent.

        In a forked child it does nothing: arrays of the parent's stay readable there.
        """
        if self._generation != generation():
            return
        with _open.lock:
            if _open.segments.pop(id(self), None) is None:
                return
        _libc().munmap(self.address, self.nbytes)
        self._leave()

    def forsake(self) -> None:
        """Remove the name of a segment that this process made, and keep the memory for all who have it."""
        if self.owned and self._generation == generation():
            _unlink(self.name)

    def _leave(self) -> None:
        try:
            if self.owned or _lock(self._descriptor, exclusive=True):
                _unlink_same(self.name, self._descriptor)
        finally:
            os.close(self._descriptor)

    def __repr__(self) -> str:
        role = "made here" if self.owned else "attached"
        return f"<Segment {self.name}, {role}: {self.header.nbytes} bytes>"


class _Open:
    """The segments that this process has mapped."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant: the collector may close a segment while one is added
        self.segments: dict[int, Segment] = {}
        self.at_exit = False  # whether somebody runs `forsake` at the end of a worker of `multiprocessing`


_open = _Open()


@after_fork
def _in_child() -> None:
    # The child has its parent's memory but is nobody who is there: its copies of the locks would outlive the parent.
    for segment in _open.segments.values():
        os.close(segment._descriptor)
    _open.__init__()  # type: ignore[misc]


def create(header: Header) -> Segment:
    """Make a segment with the given header, its bytes zero, and the memory behind them taken from the system.

    Raises:
        OutOfMemoryError: there is no room in the directory for shared memory.
        UnsupportedError: this system has no such directory.
    """
    sweep()  # which looks whether this system has what it takes
    _forsake_at_exit()
    packed = header.pack()
    nbytes = PAGE + -(-header.nbytes // PAGE) * PAGE
    name, lock = _new_file(nbytes)
    try:
        with _opened(name, os.O_RDWR) as memory:
            _fill_file(memory, nbytes)
            os.pwrite(memory, packed, 0)
            return Segment(name, lock, memory, nbytes, header, owned=True, readonly=False)
    except BaseException:
        _unlink(name)
        os.close(lock)
        raise


def attach(name: str, *, readonly: bool = False) -> Segment:
    """Map a segment that another process, or this one, has made.

    Raises:
        ArgumentError: no name of a segment.
        SharedMemoryError: there is none of that name, or it is not whole and ours.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArgumentError.of("name", name, "a name like 'tazza-123-0123456789abcdef', as spec.name has it")
    _check_system()
    try:
        lock = os.open(_path(name), os.O_RDONLY | _FLAGS)
        try:
            if not _lock(lock):
                raise FileNotFoundError  # a sweeper has it
            with _opened(name, os.O_RDONLY if readonly else os.O_RDWR) as memory:
                state = os.fstat(memory)
                if not stat.S_ISREG(state.st_mode):
                    raise SharedMemoryError(f"{name} is no shared memory but another kind of file")
                header = Header.unpack(name, os.pread(memory, PAGE, 0), state.st_size)
                return Segment(name, lock, memory, state.st_size, header, owned=False, readonly=readonly)
        except BaseException:
            os.close(lock)
            raise
    except FileNotFoundError:
        raise SharedMemoryError(f"no segment {name}: its creator has closed it, or has died") from None
    except OSError as error:  # another user's, or something that is no file
        raise SharedMemoryError(f"{name} cannot be attached: {error.strerror}") from None


def sweep() -> tuple[str, ...]:
    """Remove every segment of this user that no living process has mapped; returns their names."""
    with _open.lock:
        ours = {segment.name for segment in _open.segments.values()}
    removed = []
    for name in names():
        if name in ours:
            continue
        try:
            descriptor = os.open(_path(name), os.O_RDONLY | _FLAGS)
        except OSError:  # gone meanwhile, or another user's, who sweeps for himself
            continue
        try:
            alone = os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor, exclusive=True)
            if alone and _unlink_same(name, descriptor):
                removed.append(name)
        finally:
            os.close(descriptor)
    return tuple(removed)


def names() -> list[str]:
    """The names of all segments on this machine, of the living and of the dead."""
    _check_system()
    return sorted(entry.name for entry in os.scandir(_DIRECTORY) if _NAME.fullmatch(entry.name))


def forsake() -> None:
    """Remove the names of all segments that this process made, as it ends; what others have mapped stays theirs."""
    with _open.lock:
        segments = list(_open.segments.values())
    for segment in segments:
        segment.forsake()


def _forsake_at_exit() -> None:
    # Workers of `multiprocessing` that were forked end without `atexit`; where there is none, nobody has loaded it.
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None and not _open.at_exit:
        _open.at_exit = True
        util.Finalize(None, forsake, exitpriority=0)


# The system ---------------------------------------------------------------------------------------------------------

_FLAGS: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def _check_system() -> None:
    if fcntl is None or not os.path.isdir(_DIRECTORY):
        raise UnsupportedError(f"shared memory by name needs Linux's {_DIRECTORY}; send ctx.to_numpy(buffer) instead")


def _path(name: str) -> str:
    return f"{_DIRECTORY}/{name}"


@contextmanager
def _opened(name: str, flags: int) -> Iterator[int]:
    descriptor = os.open(_path(name), flags | _FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, exclusive: bool = False) -> bool:
    """Take the lock that says "somebody is there", or prove that nobody is; never waits."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _new_file(nbytes: int) -> tuple[str, int]:
    """Make an empty file that this process is known to have; returns its name and descriptor."""
    for _ in range(_ATTEMPTS):
        name = f"tazza-{os.getpid()}-{os.urandom(8).hex()}"
        try:
            descriptor = os.open(_path(name), os.O_RDONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        except OSError as error:
            raise _no_room(nbytes, "open", error) from None
        if _lock(descriptor) and os.fstat(descriptor).st_nlink:
            return name, descriptor
        _unlink(name)  # a sweeper has it, or had it: it saw a file that nobody held
        os.close(descriptor)
    raise OutOfMemoryError(f"no new segment in {_ATTEMPTS} attempts", requested=nbytes, backend="host", call="flock")


def _fill_file(descriptor: int, nbytes: int) -> None:
    """Take the memory now: a page that is not there when it is first touched would end the process."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, nbytes)
        else:
            os.ftruncate(descriptor, nbytes)
    except OSError as error:
        raise _no_room(nbytes, "posix_fallocate", error) from None


def _no_room(nbytes: int, call: str, error: OSError) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"{_DIRECTORY} has no room for {nbytes} bytes: {error.strerror}",
        requested=nbytes,
        backend="host",
        call=call,
        code=error.errno,
        symbol=errno.errorcode.get(error.errno or 0, ""),
    )


def _unlink(name: str) -> bool:
    try:
        os.unlink(_path(name))
    except FileNotFoundError:  # somebody else's resource tracker was faster
        return False
    return True


def _unlink_same(name: str, descriptor: int) -> bool:
    """Remove a name if it still stands for the open file."""
    mine = os.fstat(descriptor)
    if not mine.st_nlink or not stat.S_ISREG(mine.st_mode):
        return False
    return _unlink(name)


class _Libc:
    """Two calls of the C library; `mmap.mmap` would keep a descriptor of its own for each mapping."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self.mmap: Callable[..., int | None] = library.mmap
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.munmap: Callable[..., int] = library.munmap
        library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


_loaded: list[_Libc] = []


def _libc() -> _Libc:
    if not _loaded:
        _loaded.append(_Libc())
    return _loaded[0]


def _map(descriptor: int, nbytes: int, readonly: bool, *, present: bool) -> int:
    """Map a file; with its memory in the figures of this process, where it is `present`, before it is touched."""
    protection = mmap.PROT_READ | (0 if readonly else mmap.PROT_WRITE)
    flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if present else 0)
    address = _libc().mmap(None, nbytes, protection, flags, descriptor, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise _no_room(nbytes, "mmap", OSError(code, os.strerror(code)))
    return address
