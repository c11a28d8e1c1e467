"""DnnWrapper: a context's way to the library states of its device."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, final

from tazza.core.context import Context
from tazza.dnn.library import Library
from tazza.dnn.state import DnnState, Entered, StateInfo, states_of
from tazza.errors import ArgumentError, UsageError

__all__ = ["DnnWrapper", "StateLease"]

T = TypeVar("T")


class DnnWrapper:
    """A DNN library on a context's device: handles, and states that all contexts of the device share.

    Concrete, and the base of the form for one library (`tazza.dnn.CudnnWrapper`).

    Args:
        ctx: whose current stream calls are ordered with.
        library: default is the one of ``ctx.dnn``.

    >>> import tazza as tz
    >>> from tazza.dnn import DnnWrapper
    >>> with tz.open("cpu") as ctx:
    ...     wrapper = DnnWrapper(ctx)
    ...     wrapper.with_state(3, lambda state: state.index)
    ...     3 in [info.number for info in wrapper.states()]
    ...     wrapper.close()
    3
    True
    """

    def __init__(self, ctx: Context, library: Library | None = None) -> None:
        if not isinstance(ctx, Context):
            raise ArgumentError.of("ctx", ctx, "a Context")
        self._ctx = ctx
        self.library: Library = ctx.dnn.library if library is None else library
        self._states = states_of(ctx.own_stream.runtime, self.library)

    @property
    def handle(self) -> Any:
        """The calling thread's own handle of the library, made on first use: no state, no workspace, no checks.

        For calls that need nothing else. It must not be given to another thread.
        """
        self._check()
        return self._states.handle()

    def with_state(self, index: int, fn: Callable[[DnnState], T], timeout: float | None = None) -> T:
        """Call ``fn(state)`` in the order of the current stream, nobody else being in that state; returns its result.

        What was submitted to the current stream comes before what `fn` submits to ``state.stream``, which is the
        current stream inside, and what is submitted later comes after it, also where `fn` raises. On the CPU's inline
        stream and inside a launched function, that is the caller's own order. Asynchronous to the host as `fn` is.

        Args:
            index: of the state, any number of 0 or more; each is made when it is first used.
            fn: is given the `DnnState`, which it may use until it returns, in its own thread.
            timeout: seconds to wait for others that are in it; None is ``TAZZA_WAIT_TIMEOUT``.

        Raises:
            DeadlockError: this thread is in that state already.
            WaitTimeoutError: others stayed in it.
        """
        self._check()
        return self._states.at(index).with_state(self._ctx.stream, fn, timeout)

    def lease(self, timeout: float | None = None) -> StateLease:
        """``with wrapper.lease() as state:`` is `with_state` for an idle state, whichever it is."""
        self._check()
        return StateLease(self, timeout)

    def states(self) -> tuple[StateInfo, ...]:
        """The states of the device that were used, by index."""
        found = [one.state for one in self._states.all()]
        return tuple(
            StateInfo(one.index, one.workspace.nbytes, one.workspace.peak, one.workspace.leased, one.calls)
            for one in found
            if one is not None
        )

    def trim(self) -> int:
        """Give back the workspace memory that is not leased now, of all states; returns bytes."""
        return sum(one.state.workspace.trim() for one in self._states.all() if one.state is not None)

    def close(self, timeout: float | None = None) -> None:
        """Close all states of the device: wait for who is inside and for their queues, then destroy their handles.

        Whoever uses one later makes it anew. Nothing needs this: states that are left end with the process.

        Raises:
            WaitTimeoutError: one stayed in use; those before it are closed.
        """
        for one in self._states.all():
            one.close(timeout)

    def _check(self) -> None:
        self._ctx.own_stream.runtime.check()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.library.name} for {self._ctx!r}>"


@final
class StateLease:
    """What `DnnWrapper.lease` returns: inside ``with`` the state belongs to this thread."""

    __slots__ = ("_entered", "_timeout", "_wrapper")

    def __init__(self, wrapper: DnnWrapper, timeout: float | None) -> None:
        self._wrapper, self._timeout = wrapper, timeout
        self._entered: Entered | None = None

    def __enter__(self) -> DnnState:
        wrapper = self._wrapper
        if self._entered is not None:
            raise UsageError("this lease is entered already, and is for one use; ask the wrapper for another")
        self._entered = wrapper._states.entered(wrapper._ctx.stream, timeout=self._timeout)
        return self._entered.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._entered is not None, "who leaves has entered"
        self._entered.__exit__(exc_type, exc, traceback)
