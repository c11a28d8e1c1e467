"""Page-locked memory from the operating system."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Any, Final

from tazza.errors import OutOfMemoryError

__all__ = ["AVAILABLE", "lock", "locked_limit"]


def _library() -> Any:
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "mlock"):
        return None
    library.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


_LIBC: Final = _library()

AVAILABLE: Final = _LIBC is not None
"""Whether this system locks pages on request: Linux and macOS do."""


def lock(address: int, nbytes: int, locked: int) -> None:
    """Keep pages where they are until they are unmapped.

    Args:
        address: first byte, at the start of a page.
        nbytes: how many from there.
        locked: bytes that the caller has locked so far, for the error.

    Raises:
        OutOfMemoryError: the system locks no more for this process; nothing was locked.
    """
    if _LIBC.mlock(address, nbytes) == 0:
        return
    code = ctypes.get_errno()
    limit = locked_limit()
    bound = "" if limit is None else f"; RLIMIT_MEMLOCK is {limit} bytes, of which {locked} are locked here"
    raise OutOfMemoryError(
        f"the system does not lock {nbytes} bytes more: {os.strerror(code)}{bound}",
        requested=nbytes,
        limit=limit,
        live=locked,
        backend="cpu",
        call="mlock",
        code=code,
        symbol=errno.errorcode.get(code, ""),
        hint=f"raise RLIMIT_MEMLOCK (ulimit -l), or lock less; pages have {mmap.PAGESIZE} bytes",
    )


def locked_limit() -> int | None:
    """How many bytes this process may lock, or None where that is not bounded or not known."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return None
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if soft == resource.RLIM_INFINITY else soft
