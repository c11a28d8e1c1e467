"""How the operating system keeps the pages of memory: locked, and huge."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tazza.errors import OutOfMemoryError

__all__ = ["AVAILABLE", "lock", "locked_limit", "map_private"]


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


def _huge_page() -> int:
    """The size of a huge page; 0 where the system has none, or tells nothing of them."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return 0
    try:
        return int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
    except OSError:  # a kernel without them has no such file
        return 0


_HUGE_PAGE: Final = _huge_page()
# Python's default is shared between a process and its forked children: what a child writes would be its parent's.
_PRIVATE: Final = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


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


def map_private(nbytes: int) -> mmap.mmap:
    """Map memory, zero until touched, under huge pages as far as it fills them and the system has them.

    Arrays of megabytes need more small pages than a processor remembers addresses of. The map is as long as whole
    huge pages, for which Linux aligns it; what is more than asked for is not touched, and takes no memory.
    https://docs.kernel.org/admin-guide/mm/transhuge.html

    Raises:
        OSError: the system has no such memory.
        OverflowError: no system has.
    """
    filled = nbytes // _HUGE_PAGE * _HUGE_PAGE if _HUGE_PAGE else 0
    memory = mmap.mmap(-1, filled + _HUGE_PAGE if 0 < filled < nbytes else nbytes, **_PRIVATE)
    if filled:
        with suppress(OSError):  # it was a wish: a kernel that has none refuses it, and small ones serve as well
            memory.madvise(mmap.MADV_HUGEPAGE, 0, filled)
    return memory
