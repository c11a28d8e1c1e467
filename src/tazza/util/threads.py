"""How many threads the native libraries of this process (BLAS, OpenMP) may use.

Their pools belong to the process, so a limit does too: every thread sees it. Finding the libraries costs 0.6 ms, so one
controller is kept and made anew only when modules were imported since. A library loaded later than the last call is
covered from the next call on.

OpenMP keeps its count per calling thread. Libraries on top of it are therefore set in every thread that asks, even
where the same limit is already in force, and set back in that thread.

PyTorch has a count of its own, for the process, which it gives OpenMP in each thread that computes for the first time,
and the linear algebra inside it another that no tool sees. So it is asked for the former, which settles it in the
calling thread, and told the limit itself.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from types import TracebackType
from typing import Any, Final, final

from tazza.errors import ArgumentError, UsageError

__all__ = ["ThreadLimit", "limit_threads", "thread_limit"]

_Counts = list[tuple[Any, int]]
"""Libraries (threadpoolctl controllers), each with the count it had before."""


def limit_threads(n: int) -> ThreadLimit:
    """Let each native thread pool of this process use at most `n` threads, from now on or inside a ``with``.

    A plain call holds until the next one; ``with limit_threads(n):`` ends with its block. Of several limits in force
    the one that came last holds, whichever thread made it, and when it ends the one before it holds again.

    Args:
        n: number of threads, 1 or more.

    Raises:
        ArgumentError: `n` is not an integer of 1 or more.

    Example:
        >>> import tazza as tz
        >>> with tz.limit_threads(1):
        ...     pass  # a matrix product here gives the same bits on every number of cores
    """
    if type(n) is not int or n < 1:
        raise ArgumentError.of("n", n, "a number of threads, 1 or more")
    return ThreadLimit(n)


def thread_limit() -> int | None:
    """The limit that holds now, for libraries that must be told when they start; None where there is none."""
    return _pools.limit


@final
class ThreadLimit:
    """A limit in force; made by `limit_threads`, and a context manager that ends it. Entered at most once.

    Example:
        >>> import tazza as tz
        >>> limit = tz.limit_threads(2)
        >>> with limit:
        ...     limit.count
        2
    """

    def __init__(self, count: int) -> None:
        self.count: Final = count
        self._entered = False
        self._own = _pools.push(self)

    def __enter__(self) -> ThreadLimit:
        if self._entered:
            raise UsageError("this limit was entered before; call tz.limit_threads(n) again for another block")
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _pools.pop(self, self._own)

    def __repr__(self) -> str:
        return f"<limit of {self.count} native threads>"


class _Pools:
    """The native pools of the process and the limits on them, oldest first.

    Attributes:
        limit: the one that came last, or None; read without a lock.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self._lock = threading.Lock()
        # Weak: a plain call drops its limit at once, which is how it can be told from one whose block still runs.
        self._limits: dict[weakref.ref[ThreadLimit], int] = {}
        self._shared: list[Any] = []
        self._per_thread: list[Any] = []
        self._torch: _Torch | None = None
        self._here = threading.local()  # knows whether PyTorch has settled in this thread
        self._found: dict[str, int] = {}
        self._modules = -1
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def push(self, limit: ThreadLimit) -> _Counts:
        """Put `limit` in force and return the counts that OpenMP had in the calling thread."""
        with self._lock:
            self._look()
            for library in self._shared:
                # With no limit in force the counts are the user's own, and may have changed since we looked last.
                if not self._limits or library.filepath not in self._found:
                    self._found[library.filepath] = library.get_num_threads()
            before = self._own_counts()
            dropped = [known for known in self._limits if known() is None]
            for known in dropped[:-1]:  # no block can end that would bring these back
                del self._limits[known]
            self._limits[weakref.ref(limit)] = limit.count
            self._apply()
            for library in self._per_thread:
                library.set_num_threads(limit.count)
            return before

    def pop(self, limit: ThreadLimit, own: _Counts) -> None:
        """Take `limit` back and set the calling thread's OpenMP to what it had before."""
        with self._lock:
            del self._limits[weakref.ref(limit)]
            self._apply()
            for library, count in own:
                library.set_num_threads(count)

    def _own_counts(self) -> _Counts:
        """What OpenMP has in the calling thread, which no limit may have changed without setting it back."""
        torch, settled = self._torch, getattr(self._here, "settled", False)
        if torch is None:
            return [(library, library.get_num_threads()) for library in self._per_thread]
        self._here.settled = True
        torch.get_num_threads()
        if settled or not self._limits:
            return [(library, library.get_num_threads()) for library in self._per_thread]
        # A thread that is new to PyTorch got another thread's limit just now, and no count of its own to go back to.
        own = self._found[torch.filepath]
        return [(library, own if torch.brings(library) else library.get_num_threads()) for library in self._per_thread]

    def _look(self) -> None:
        if self._modules == len(sys.modules):
            return
        import threadpoolctl  # late: only programs that limit threads pay for it

        libraries = threadpoolctl.ThreadpoolController().lib_controllers
        self._per_thread = [library for library in libraries if _is_openmp(library)]
        self._shared = [library for library in libraries if not _is_openmp(library)]
        torch = sys.modules.get("torch")
        if hasattr(torch, "set_num_threads"):  # not while another thread is importing it
            self._torch = _Torch(torch)
            self._shared.append(self._torch)
        self._modules = len(sys.modules)

    def _apply(self) -> None:
        """Set every shared pool to the last limit or, with none left, to the count it was found with."""
        self.limit = last = next(reversed(self._limits.values()), None)
        for library in self._shared:
            count = self._found[library.filepath] if last is None else last
            if library.get_num_threads() != count:
                library.set_num_threads(count)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


@final
class _Torch:
    """PyTorch as one more pool; where linear algebra is linked into it, this is all that reaches that."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.filepath = os.path.dirname(torch.__file__)

    def get_num_threads(self) -> int:
        """The calling thread's count, given to it now where it had none."""
        return int(self._torch.get_num_threads())

    def set_num_threads(self, count: int) -> None:
        """Set the process's count, and the calling thread's."""
        self._torch.set_num_threads(count)

    def brings(self, library: Any) -> bool:
        """Tell whether a library came with PyTorch."""
        return str(library.filepath).startswith(self.filepath + os.sep)


def _is_openmp(library: Any) -> bool:
    return library.user_api == "openmp" or getattr(library, "threading_layer", "") == "openmp"


_pools: Final = _Pools()
