"""Borrowing: foreign memory for the length of a scope, ordered both ways.

On entry the consumer's stream comes after the producer's work, on exit the producer after the consumer's. Who waits:

| producer | on entry | on exit |
|---|---|---|
| a library's host memory | nobody: its calls are over when they return | the caller, for the streams that used it |
| a library's device memory | the producer's own library, which is given our stream | the caller, likewise |
| the same, by an interface that names a stream | our stream, for that | that stream, for ours |
| a Buffer that streams still use | our stream, for those | those streams, for ours |
| a Buffer that no stream uses | nobody | the caller, as for host memory |

The owner is kept until the scope, the last use on any stream, and the last view that the host was given are over. It
is let go by whoever leaves the scope, or, where that was too early, by the next call on the device, never by a
finaliser and never under a lock: what happens then is foreign code.
"""

from __future__ import annotations

import atexit
from types import TracebackType
from typing import Any, NoReturn, final

from tazza.core import registry
from tazza.core.completion import now_ns, timeout_or_default
from tazza.core.current import current
from tazza.core.event import Event
from tazza.core.loan import Loan
from tazza.core.runtime import DeviceRuntime, live_runtimes
from tazza.core.stream import Stream, making
from tazza.errors import (
    ArgumentError,
    BackendError,
    ClosedError,
    LeakWarning,
    TaskError,
    UsageError,
    WaitTimeoutError,
    WrongDeviceError,
)
from tazza.hot import Block, Buffer, generation, top
from tazza.hot.buffer import lent_buffer
from tazza.util.report import report

__all__ = ["Borrow", "borrow"]


def borrow(obj: Any, *, stream: Stream | None = None) -> Borrow:
    """Use the memory of another library, or of another context, as a Buffer inside ``with tz.borrow(obj) as x:``.

    `x` has the object's dtype, shape and strides and is its memory, never a copy. Inside the scope it goes wherever a
    Buffer goes; afterwards its use raises `ClosedError`, and views of it that are still there (``np.asarray(x)``) keep
    the owner alive, which is reported as one `LeakWarning`. Writing is possible where the owner allows it
    (``x.readonly``). Borrowed memory is charged to nobody.

    On entry what is queued on `stream` from now on comes after the producer's work so far. On exit the producer comes
    after everything queued on `stream` and every use of `x` on other streams: where the producer is host code, the
    exit waits for that, for at most ``TAZZA_WAIT_TIMEOUT``; where it is a stream, that stream does. ``async with``
    awaits instead of blocking.

    Args:
        obj: a Buffer, a NumPy array, or an object with DLPack (torch, JAX, Arrow, cuda.core), the buffer protocol,
            ``__array_interface__``, or on a CUDA device ``__cuda_array_interface__`` (Numba).
        stream: the consumer; None is the current stream of the current context.

    Raises:
        NoCurrentContextError: no stream was given and no context is current.
        WrongDeviceError: on entry; the memory is another device's, and borrowing never copies.
        UnsupportedError: on entry; the device lacks the dtype. Names the nearest one.
        ArgumentError: on entry; the object has no memory to lend, refuses to, or describes what cannot be.
        WaitTimeoutError: on exit; a stream still uses the memory, which stays held until it does not.
        DeadlockError: on exit, inside a task; uses of the memory are queued behind that task.

    >>> import numpy as np
    >>> import tazza as tz
    >>> ticks = np.arange(4.0)
    >>> with tz.open("cpu") as ctx, tz.borrow(ticks) as x:
    ...     ctx.fill(x[:2], 7.0)
    >>> ticks
    array([7., 7., 2., 3.])
    """
    if stream is None:
        stream = current().stream
    elif not isinstance(stream, Stream):
        raise ArgumentError.of("stream", stream, "a Stream, or None for the current one")
    return Borrow(obj, stream)


@final
class Borrow:
    """What `borrow` returns: a scope that can be entered once, with ``with`` or ``async with``.

    Attributes:
        protocol: how the memory was found: ``tazza``, ``NumPy``, ``DLPack``, ``buffer``, ``array interface`` or ``CUDA
            array interface``; empty before the entry.
        is_copied: the producer made a copy although none was asked for; the Buffer is read-only then, as what is
            written would be lost.

    >>> import tazza as tz
    >>> with tz.open("cpu"):
    ...     loan = tz.borrow(b"read-only")
    ...     with loan as x:
    ...         loan.protocol, x.readonly
    ('buffer', True)
    """

    def __init__(self, obj: Any, stream: Stream) -> None:
        self._obj, self._what, self._stream = obj, type(obj).__qualname__, stream
        self._loan: Loan | None = None
        self._behind: list[Event] = []  # what the stream has to come after
        self._followers: list[Any] | None = None  # what has to come after the stream; None: the host itself
        self._is_left = False
        self.protocol = ""
        self.is_copied = False

    def __repr__(self) -> str:
        state = "over" if self._is_left else f"through {self.protocol}" if self._loan else "not entered"
        return f"<tazza.borrow of {self._what} for {self._stream!r}, {state}>"

    def __enter__(self) -> Buffer:
        x = self._begin()
        try:
            for event in self._behind:
                if self._is_inside:
                    event.synchronize()
                else:
                    self._stream.wait(event)
        except BaseException as error:  # nobody gets to use it; the memory goes back as on any exit
            self._abort(error)
            raise
        return x

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loan = self._leave()
        if loan is None:
            return
        failure: BaseException | None = None
        try:
            self._outlast(self._order_producer(loan))
        except BaseException as error:  # raised below, once the memory is in safe hands
            failure = error
        self._settle(loan, exc, failure)

    async def __aenter__(self) -> Buffer:
        """Enter, awaiting where ``with`` blocks."""
        x = self._begin()
        try:
            if self._is_inside or self._stream.is_inline:
                await self._await(self._behind)
            if not self._is_inside:
                for event in self._behind:
                    self._stream.wait(event)
        except BaseException as error:  # cancelled, too late, or the producer failed
            self._abort(error)
            raise
        return x

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave, awaiting where ``with`` blocks; where that is cancelled the memory stays held until it is unused."""
        loan = self._leave()
        if loan is None:
            return
        failure: BaseException | None = None
        try:
            await self._await(self._order_producer(loan))
        except BaseException as error:  # raised below, once the memory is in safe hands
            failure = error
        self._settle(loan, exc, failure)

    def __reduce__(self) -> NoReturn:
        raise UsageError("a borrow cannot be pickled; send a copy of the data")

    def __del__(self) -> None:
        # One append: what ends a loan is foreign code, and a finaliser may run anywhere.
        loan = getattr(self, "_loan", None)
        if loan is not None and not self._is_left:
            loan.abandoned = True
            self._stream.runtime.loans.append(loan)

    # Entry ---------------------------------------------------------------------------------------------------------

    def _begin(self) -> Buffer:
        stream = self._stream
        if self._loan is not None:
            raise UsageError(f"{self!r} was entered before; call tz.borrow(obj) again")
        stream.runtime.check()
        if stream.is_closed:
            raise ClosedError(f"{stream!r} is closed; borrow for a stream of an open context")
        return self._share(self._obj) if isinstance(self._obj, Buffer) else self._take()

    def _take(self) -> Buffer:
        """Lend memory of another library, in a block that no pool knows."""
        stream, what = self._stream, self._what
        found = registry.load("foreign.describe")(self._obj, stream)  # late, as most programs borrow nothing
        layout = found.layout
        block = Block(found.address, 0, stream.lane, _NoPool(stream.runtime))
        block.requested, block.label = layout.nbytes, f"borrowed {what}"
        self.protocol, self.is_copied = found.protocol, found.copied
        if found.producer is not None:
            self._behind, self._followers = [stream.runtime.exports.point(found.producer)], [found.producer]
        loan = Loan(what, found.owner, block, stream, release=found.release)
        steps = layout.shape, layout.strides
        x = lent_buffer(block, None, found.address, layout.nbytes, found.dtype, steps, found.readonly, loan.watch)
        return self._opened(loan, x)

    def _share(self, lender: Buffer) -> Buffer:
        """Lend a Buffer with its block, so that each side knows of the other's uses."""
        stream, block = self._stream, lender.block
        lender._check()
        if lender.device.memory_domain != stream.device.memory_domain:
            raise WrongDeviceError(
                f"obj: {lender!r} is memory of {lender.device}, not of {stream.device}, and borrowing never copies; "
                f"ctx.asarray(obj) of a context on {stream.device} makes a copy there"
            )
        self._behind = list(making(lender, stream))
        self._followers = self._producers(block)
        for producer in self._followers or ():
            if producer is not stream.runner and not producer.reached(producer.submitted):
                self._behind.append(producer.mark())
        self.protocol = "tazza"
        steps = None if lender.dtype is None else (lender.shape, lender.strides)
        loan = Loan(self._what, lender, block, stream, pooled=True)
        x = lent_buffer(block, lender, lender.address, lender.nbytes, lender.dtype, steps, lender.readonly, loan.watch)
        return self._opened(loan, x)

    def _producers(self, block: Block) -> list[Any] | None:
        """The streams whose memory this is, or that work on it; None where both are the host's."""
        home = None if block.lane.home is None else block.lane.home()
        busy = [user.runner for user, number in block.users or () if not user.reached(number)]
        if home is None and not busy:
            return None
        return list(dict.fromkeys(busy if home is None else [home, *busy]))

    def _opened(self, loan: Loan, x: Buffer) -> Buffer:
        loan.remember(x)
        self._loan = loan
        return x

    @property
    def _is_inside(self) -> bool:
        """Whether a task of the stream asks, whose code runs now: what is queued here would come behind it."""
        frame, stream = top(), self._stream
        inside = frame is not None and frame.task is not None and frame.task.runs_on(stream)
        return inside and stream.runtime.capabilities.host_functions

    def _abort(self, error: BaseException) -> None:
        loan = self._leave()
        if loan is not None:
            loan.close()
            self._settle(loan, error, None)

    # Exit ----------------------------------------------------------------------------------------------------------

    def _leave(self) -> Loan | None:
        """Take the loan out of the scope; None where there is nothing to do, as in a forked child."""
        loan = self._loan
        if loan is None:
            raise UsageError(f"{self!r} was never entered")
        was_left, self._is_left, self._obj = self._is_left, True, None
        return None if was_left or loan.generation != generation() else loan

    def _order_producer(self, loan: Loan) -> list[Event]:
        """Order the producer after the consumer where the device can; returns what the host has to wait for."""
        ends = loan.close()
        if self._followers is None:
            return ends
        for follower in self._followers:
            for end in ends:
                if end.stream is not follower:
                    follower.follow(end)
        # What another library puts there next comes after us only once its queue has been told.
        told = [one.undefer(timeout_or_default(None)) for one in self._followers if one.runtime.exports_to(one)]
        return [] if all(told) else ends

    def _outlast(self, events: list[Event]) -> None:
        if not events:
            return
        seconds = timeout_or_default(None)
        deadline = now_ns() + int(seconds * 1e9)
        for event in events:
            try:
                event.synchronize(max(0.0, (deadline - now_ns()) * 1e-9))
            except WaitTimeoutError:
                raise self._too_late(seconds) from None
            except (BackendError, TaskError):  # it will never run, as its stream and the device's health say themselves
                continue

    async def _await(self, events: list[Event]) -> None:
        import asyncio  # late: only programs that use it pay for it

        seconds = timeout_or_default(None)
        try:
            async with asyncio.timeout(seconds):
                for event in events:
                    await event
        except TimeoutError:
            raise self._too_late(seconds) from None
        except (BackendError, TaskError):  # as in `_outlast`
            return

    def _too_late(self, seconds: float) -> WaitTimeoutError:
        return WaitTimeoutError(
            f"{self!r}: streams still use the memory after {seconds:g} s; nothing was cancelled, and its owner is kept "
            "until they do not"
        )

    def _settle(self, loan: Loan, error: BaseException | None, failure: BaseException | None) -> None:
        """Let the owner go, or leave that to a later call; then raise, unless the scope itself failed first."""
        if not loan.end():
            self._stream.runtime.loans.append(loan)
        if error is None and failure is None and (views := loan.views) and not loan.is_used:
            report(
                f"{views} view(s) of borrowed memory outlive the scope of {self!r} and keep its owner; "
                "copy what has to stay, as in np.array(x)",
                LeakWarning,
            )
        if failure is None:
            return
        if error is None:
            raise failure
        error.add_note(f"Leaving {self!r} failed too: {type(failure).__name__}: {failure}")


class _NoPool:
    """Takes the place of the pool in a block that belongs to none."""

    __slots__ = ("owner",)

    def __init__(self, owner: DeviceRuntime) -> None:
        self.owner = owner


def _end_all() -> None:
    for runtime in live_runtimes():
        runtime.end_loans()


atexit.register(_end_all)  # runs after contexts were drained, whose hook is registered later
