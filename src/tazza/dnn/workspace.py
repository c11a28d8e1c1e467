"""Scratch memory of a library state: leases that cannot overlap, and cannot be used once they are over."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, final

from tazza.core.pool import pool_of
from tazza.errors import ClosedError, ForkedError, OutOfMemoryError, UsageError
from tazza.hot import Account, Buffer, Lane, process
from tazza.hot._layout import whole_nbytes
from tazza.hot.buffer import make_buffer

__all__ = ["DnnWorkspace", "Lease", "check_lease"]

_STEPS = 4  # sizes between two powers of two
_LEAST = 64 << 10


@final
class Lease:
    """Scratch bytes for one call, made by `DnnWorkspace.get`; a context manager that ends it.

    Attributes:
        nbytes: the bytes that may be used.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     workspace = DnnWorkspace(ctx.stream.runtime, ctx.stream.lane, "workspace of an example")
    ...     with workspace.get(1000) as lease:
    ...         lease.nbytes, lease.address % 64
    ...     lease.is_over, workspace.nbytes
    ...     workspace.reset()
    (1000, 0)
    (True, 65536)
    65536
    """

    __slots__ = ("_chunk", "_workspace", "generation", "nbytes")

    def __init__(self, workspace: DnnWorkspace, chunk: Buffer, nbytes: int) -> None:
        self._workspace, self.nbytes = workspace, nbytes
        self._chunk: Buffer | None = chunk
        self.generation = process.generation

    @property
    def address(self) -> int:
        """First byte, in the device's memory domain.

        Raises:
            ClosedError: the lease is over.
        """
        return self.chunk.address

    @property
    def chunk(self) -> Buffer:
        """The memory, at least `nbytes` of it. Internal; the errors of `address`."""
        chunk = self._chunk
        if self.generation != process.generation:
            raise ForkedError("this lease was made before the process was forked; get one from a new context here")
        if chunk is None:
            raise ClosedError("this lease is over, and its memory another call's; get a new one inside with_state")
        return chunk

    @property
    def is_over(self) -> bool:
        """Whether the memory went back."""
        return self._chunk is None

    def release(self) -> None:
        """Give the memory back for the next call; idempotent. Work queued so far may still use it, in order."""
        chunk, self._chunk = self._chunk, None
        if chunk is not None:
            self._workspace._returned.append(chunk)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        # One append, as in any finaliser.
        if getattr(self, "_chunk", None) is not None:
            self.release()

    def __repr__(self) -> str:
        return f"<Lease of {self.nbytes} bytes{', over' if self.is_over else ''}>"


@final
class DnnWorkspace:
    """Scratch memory that a state keeps between calls: chunks, each leased to one call at a time.

    Chunks grow in steps of a quarter of a power of two, so that sizes that vary a little share them. They are charged
    to the device, under a label of their own, and count under the heading "workspaces" of the account. Memory that is
    not leased goes back on `trim`, and where the device runs short.

    Args:
        runtime: the device's.
        lane: of the queue whose work uses the memory; freed memory is reused in its order.
        label: in reports; begins with ``"workspace"``.
        cap: bytes that may be held at most, or None.

    Attributes:
        peak: the most that was held at once.
    """

    def __init__(self, runtime: Any, lane: Lane, label: str, *, cap: int | None = None) -> None:
        self._runtime, self._lane, self._label = runtime, lane, label
        self.cap = cap
        self.peak = 0
        self._account: Account = runtime.account
        self._lock = threading.Lock()  # never held while memory is allocated
        self._free: list[Buffer] = []
        self._returned: deque[Buffer] = deque()  # an append is all that a finaliser may do
        self._held = 0
        runtime.workspaces.add(self)

    @property
    def nbytes(self) -> int:
        """Bytes held, leased or not."""
        return self._held

    @property
    def leased(self) -> int:
        """Bytes that are leased now."""
        with self._lock:
            self._take_back()
            return self._held - sum(one.nbytes for one in self._free)

    def get(self, nbytes: int) -> Lease:
        """Lease at least `nbytes` bytes, aligned for the device; uninitialised.

        Two leases never overlap. A chunk that is too small is given up once a larger one was had.

        Raises:
            OutOfMemoryError: the cap, or the device, has no room for it.
        """
        nbytes = whole_nbytes(nbytes)
        if len(self._returned) == 1 and not self._free:  # as after a call that was alone: nothing could fit better
            try:
                last = self._returned.pop()
            except IndexError:  # another thread was faster
                return Lease(self, self._fit(nbytes), nbytes)
            if last.nbytes >= nbytes:
                return Lease(self, last, nbytes)
            self._returned.append(last)
        return Lease(self, self._fit(nbytes), nbytes)

    def _fit(self, nbytes: int) -> Buffer:
        """The smallest free chunk that is large enough, or a new one."""
        best: Buffer | None = None
        with self._lock:
            self._take_back()
            for chunk in self._free:
                if chunk.nbytes >= nbytes and (best is None or chunk.nbytes < best.nbytes):
                    best = chunk
            if best is not None:
                self._free.remove(best)
        return self._grow(nbytes) if best is None else best

    def reset(self) -> int:
        """Give back all that is not leased, in the order of the queue that used it; returns bytes. As `trim`."""
        return self.trim()

    def trim(self, keep: int = 0) -> int:
        """Give back what is not leased while more than `keep` bytes are held, largest first; returns bytes given back.

        Does not wait for a lock: where another thread is at it, that thread's call decides.
        """
        if not self._lock.acquire(blocking=False):
            return 0
        try:
            self._take_back()
            given = []
            for chunk in sorted(self._free, key=lambda one: -one.nbytes):
                if self._held <= keep:
                    break
                given.append(chunk)
                self._free.remove(chunk)
                self._held -= chunk.nbytes
        finally:
            self._lock.release()
        for chunk in given:
            chunk.close()
        return sum(chunk.nbytes for chunk in given)

    def _grow(self, nbytes: int) -> Buffer:
        size = self._count(_stepped(nbytes), nbytes)
        try:
            pool = pool_of(self._runtime, "caching").pool
            chunk = make_buffer(pool.take(size, self._lane, self._account, self._label))
        except BaseException:
            with self._lock:
                self._held -= size
            raise
        with self._lock:
            self._drop_below(size)
        return chunk

    def _count(self, size: int, least: int) -> int:
        """Count `size` bytes as held, or what the cap leaves if that is enough; returns how many."""
        with self._lock:
            if self.cap is not None:
                self._take_back()
                self._drop_below(size)  # under a cap the old goes before the new is had
                room = self.cap - self._held
                if room < least:
                    raise OutOfMemoryError(
                        f"no room for {least} bytes: {self._label} holds {self._held} of its cap of {self.cap}; "
                        "raise the cap, or choose a plan that needs less (max_workspace=)",
                        requested=least,
                        limit=self.cap,
                        live=self._held,
                    )
                size = min(size, room)
            self._held += size
            self.peak = max(self.peak, self._held)
        return size

    def _drop_below(self, size: int) -> None:
        """Give up the free chunks that the larger one stands for from now on."""
        for chunk in [one for one in self._free if one.nbytes < size]:
            self._free.remove(chunk)
            self._held -= chunk.nbytes

    def _take_back(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())

    def __repr__(self) -> str:
        return f"<DnnWorkspace {self._label!r}: {self._held} bytes, {len(self._free)} chunk(s) free>"


def _stepped(nbytes: int) -> int:
    """Round up to a quarter of a power of two, at least `_LEAST`."""
    if nbytes <= _LEAST:
        return _LEAST
    step = 1 << max(0, (nbytes - 1).bit_length() - 1 - _STEPS.bit_length() + 1)
    return -(-nbytes // step) * step


def check_lease(lease: Lease | None, workspace: DnnWorkspace, nbytes: int, alignment: int) -> int:
    """Return the address of a lease that a call may use, before anything is called.

    Raises:
        UsageError: there is none, it is of another workspace, too small or not aligned.
        ClosedError: it is over.
        ForkedError: it was made before this process was forked.
    """
    if lease is None:
        raise UsageError(f"this plan needs a lease of {nbytes} bytes; get one with state.workspace.get(nbytes)")
    if not isinstance(lease, Lease):
        raise UsageError(f"lease: got {lease!r}, expected what state.workspace.get(nbytes) returned")
    address = lease.chunk.address
    if lease._workspace is not workspace:
        raise UsageError(f"{lease!r} is of another state's workspace; get one from this state's")
    if lease.nbytes < nbytes:
        raise UsageError(f"{lease!r} is too small for this plan, which needs {nbytes} bytes (plan.workspace_bytes)")
    if address % alignment:
        raise UsageError(f"{lease!r} is at {address:#x}, which is not aligned to the {alignment} bytes of this plan")
    return address
