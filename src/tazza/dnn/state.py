"""Library states: one handle, one queue and one workspace of a device, used by one caller at a time.

Caffe2's CuDNNState and SyncedCuDNNState, without what was wrong with them: `docs/design/0013-library-states.md`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, TypeVar, final

import numpy as np

from tazza.core.completion import timeout_or_default
from tazza.core.failures import Failures
from tazza.core.pool import pool_of
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import Stream, make_runner
from tazza.dnn.library import Library
from tazza.dnn.plans import PlanCache
from tazza.dnn.workspace import DnnWorkspace, Lease, check_lease
from tazza.errors import (
    ArgumentError,
    ClosedError,
    DeadlockError,
    ForkedError,
    TazzaError,
    UsageError,
    WaitTimeoutError,
)
from tazza.hot import process, top
from tazza.util.hostmemory import address_of

__all__ = ["DnnState", "DnnStates", "Entered", "StateInfo", "SyncedDnnState", "states_of"]

T = TypeVar("T")

_MOST_QUEUED = 1024
_MOST = 32  # states that calls which name none spread over


class DnnState:
    """A library's handle on one device with its own queue and workspace; not serialised, see `SyncedDnnState`.

    Concrete, and the base of what a library adds to its states (`tazza.dnn.CudnnState`).

    Attributes:
        library: the `Library`.
        index: its number on the device.
        workspace: scratch memory of calls in this state.
        calls: how often it was used.
    """

    def __init__(self, library: Library, runtime: DeviceRuntime, index: int) -> None:
        self.library, self.index, self.calls = library, index, 0
        self._runtime = runtime
        self._failures = Failures()
        self._runner: Runner | None = None
        pool = pool_of(runtime, "caching").pool
        self._lane = pool.new_lane() if runtime.capabilities.queues else runtime.shared_lane("caching")
        self.workspace = DnnWorkspace(runtime, self._lane, f"workspace of {library.name} state {index}")
        self._handle = library.open()
        self._inside: dict[int, Stream] = {}  # threads that are inside: who holds it, and its queue at its turn
        self._generation = process.generation

    @property
    def handle(self) -> Any:
        """What ``library.open()`` returned; None once it is closed."""
        return self._handle

    @property
    def stream(self) -> Stream:
        """Where calls in this state belong, a stream of the caller's context: its own inside a task or on the CPU's
        inline stream, else one over the state's queue.

        Raises:
            UsageError: nobody is inside, or it is another thread.
        """
        self.check_held()
        return self._inside[threading.get_ident()]

    @property
    def runner(self) -> Runner | None:
        """The state's queue, once there is one. Internal."""
        return self._runner

    def check_held(self) -> None:
        """Raise unless the calling thread is inside `execute`, or is the state's own queue at one of its tasks.

        Raises:
            ForkedError: the state is another process's.
            UsageError: the calling thread does not hold it.
        """
        if self._generation != process.generation:
            raise ForkedError(f"{self!r} was made before this process was forked; use a context made here")
        if threading.get_ident() not in self._inside:
            raise UsageError(f"{self!r} is not held by this thread; use it inside with_state(index, fn) or lease()")

    def scratch(self, lease: Lease | None, nbytes: int, alignment: int = 64) -> int:
        """Return where the host sees the bytes of a lease, for a call that needs `nbytes`; 0 where it needs none.

        For libraries that compute on the host: on devices whose memory it cannot address, inside a launched function.

        Raises:
            UsageError: the state is not held here, or the lease is none of this workspace's, too small or misaligned,
                or this is no place from which the host sees the memory. Nothing was called.
            ClosedError: the lease is over.
        """
        address = self.leased(lease, nbytes, alignment)
        runtime = self._runtime
        if runtime.host_addressable or not nbytes:
            return address
        return address_of(runtime.driver.view(runtime.info, address, np.dtype(np.uint8), (nbytes,), None, False))

    def leased(self, lease: Lease | None, nbytes: int, alignment: int = 64) -> int:
        """Return where the device sees the bytes of a lease, for a call that needs `nbytes`; 0 where it needs none.

        For libraries that compute on the device. The errors of `scratch`.
        """
        self.check_held()
        return check_lease(lease, self.workspace, nbytes, alignment) if nbytes else 0

    def execute(self, stream: Stream, fn: Callable[[DnnState], T]) -> T:
        """Call ``fn(self)`` after all work of `stream` so far, and order its later work after what `fn` queues.

        Asynchronous to the host as far as `fn` is. Where the caller is inline, `fn` runs once the state's own queue is
        empty, and nothing else is done. The order holds also where `fn` raises.

        Raises:
            DeadlockError: called from inside itself.
        """
        with self.entered(stream):
            return fn(self)

    def entered(self, stream: Stream) -> Entered:
        """The same as a scope, ``with state.entered(stream):``."""
        return Entered(self, stream, None)

    def close(self) -> None:
        """Wait for its queue, give its memory back and destroy the handle. Idempotent; not while somebody is inside.

        Raises:
            WaitTimeoutError: its queue still has work after ``TAZZA_WAIT_TIMEOUT``.
        """
        if self._generation != process.generation:
            return
        if self._runner is not None and self._runtime.lost() is None:
            self._runner.settle(timeout_or_default(None))
        self._close_others()
        if self._handle is not None:
            self.library.close(self._handle)  # first: where it fails the state is whole, and may be closed again
            self._handle = None
        if self._runner is not None:
            self._runner.close()
        self.workspace.reset()

    def _close_others(self) -> None:
        """Destroy what a library's own class of states has beside the handle; may be called twice."""

    def _queue(self) -> Runner:
        """The state's queue, made by the first caller that has one itself."""
        if self._runner is None:
            self._runner = make_runner(
                self._runtime,
                self._lane,
                self._failures,
                label=f"{self._runtime.name} {self.library.name} state {self.index}",
                priority=0,
                max_queued=_MOST_QUEUED,
                worker=True,
            )
        return self._runner

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.index} of {self.library.name} on {self._runtime.name}>"


@final
class Entered:
    """What ``state.entered(stream)`` returns: the five steps around what is done inside.

    Args:
        state: which is entered.
        stream: the caller's.
        held: is let go at the end, also where the state cannot be entered.
    """

    __slots__ = ("_before", "_held", "_own", "_scope", "_state", "_stream")

    def __init__(self, state: DnnState, stream: Stream, held: SyncedDnnState | None) -> None:
        self._state, self._stream, self._held = state, stream, held
        self._own: Stream | None = None  # over the state's queue; None: the caller is inline
        self._scope: Any = None
        self._before: Stream | None = None  # where the thread was inside already: as its task, which is at its turn

    def __enter__(self) -> DnnState:
        state, stream, me = self._state, self._stream, threading.get_ident()
        try:
            self._before = state._inside.get(me)
            if self._before is not None and not (state._runner is not None and _runs_on(state._runner)):
                raise DeadlockError(
                    f"{state!r} is in use by this very call; do what follows in the same fn, or after it"
                )
            context = stream.context
            if context is None:
                raise ClosedError(f"the context of {stream!r} is gone; keep it while its streams are used")
            if stream.runner.is_inline or (context.inside_task and self._ends_here()):
                if state._runner is not None and not _runs_on(state._runner):
                    state._runner.settle(timeout_or_default(None))
                state._inside[me] = stream
            else:
                self._follow(context, me)
            state.calls += 1
        except BaseException:
            self._let_go()
            raise
        return state

    def _ends_here(self) -> bool:
        """Whether what the calling task does is done when it returns, or is in the order of the state's queue anyway.

        On a device that calls no functions a task has only enqueued: the next caller would share handle and scratch
        memory with work that is still to come.
        """
        state = self._state
        own = state._runner is not None and _runs_on(state._runner)
        return own or state._runtime.capabilities.host_functions

    def _follow(self, context: Any, me: int) -> None:
        """Make the state's queue wait for the caller's stream, and current."""
        self._own = own = Stream(context, self._state._queue(), lent=True)
        own.wait(self._stream)
        self._scope = context.on(own)
        self._scope.__enter__()
        self._state._inside[me] = own

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        me = threading.get_ident()
        if self._before is None:
            self._state._inside.pop(me, None)
        else:
            self._state._inside[me] = self._before
        try:
            if self._own is not None:
                self._leave(self._own, exc_type, exc, traceback)
        finally:
            self._let_go()

    def _leave(
        self,
        own: Stream,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.__exit__(exc_type, exc, traceback)
        try:
            self._stream.wait(own)
        except TazzaError as second:
            if exc is None:
                raise
            exc.add_note(f"ordering {self._stream!r} after {self._state!r} also failed: {second}")

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.let_go()


def _runs_on(runner: Runner) -> bool:
    """Tell whether the caller is a task of that queue, and so in its turn."""
    frame = top()
    task = None if frame is None else frame.task
    return task is not None and any(one.stream.runner is runner for one in task.chain())


@final
class SyncedDnnState:
    """One `DnnState`, made when it is first used, that serves one caller at a time.

    The lock is held while `fn` runs in the host, not while the device works: what it queued is ordered by the queue.
    """

    def __init__(self, make: Callable[[], DnnState]) -> None:
        self._make = make
        self._state: DnnState | None = None
        self._lock = threading.Lock()
        self._owner = 0

    def with_state(self, stream: Stream, fn: Callable[[DnnState], T], timeout: float | None = None) -> T:
        """Call ``fn(state)`` in the order of `stream`, see `DnnState.execute`.

        Args:
            timeout: seconds to wait for others that are inside; None is ``TAZZA_WAIT_TIMEOUT``.

        Raises:
            DeadlockError: this thread is inside already.
            WaitTimeoutError: somebody else stayed inside.
        """
        with self.held(timeout) as state:
            return state.execute(stream, fn)

    def held(self, timeout: float | None = None) -> _Held:
        """Scope that holds the state for the calling thread; the errors of `with_state`."""
        return _Held(self, timeout)

    @property
    def state(self) -> DnnState | None:
        """The state, or None before its first use."""
        return self._state

    def hold_idle(self) -> bool:
        """Hold the state if nobody is inside and its queue has nothing left; `let_go` ends it."""
        if not self._lock.acquire(False):
            return False
        state = self._state
        if state is None:
            self._enter()
        elif state._runner is None or state._runner.is_idle:
            self._owner = threading.get_ident()
        else:
            self._lock.release()
            return False
        return True

    def hold(self, timeout: float | None) -> DnnState:
        """Hold the state; `let_go` ends it. The errors of `with_state`."""
        if self._owner == threading.get_ident():
            raise DeadlockError(
                f"{self!r} is held by this thread already; do what follows in the same fn, or use another index"
            )
        seconds = timeout_or_default(timeout)
        if not self._lock.acquire(timeout=seconds):
            raise WaitTimeoutError(f"{self!r} was held by another thread for {seconds:g} s; use another index")
        return self._enter()

    def let_go(self) -> None:
        """End what `hold` or `hold_idle` began."""
        self._owner = 0
        self._lock.release()

    def _enter(self) -> DnnState:
        self._owner = threading.get_ident()
        try:
            if self._state is None:
                self._state = self._make()
            return self._state
        except BaseException:
            self.let_go()
            raise

    def close(self, timeout: float | None = None) -> None:
        """Close the state, when nobody is inside; the next use makes a new one."""
        with self.held(timeout) as state:
            state.close()
            self._state = None

    def __repr__(self) -> str:
        return "<SyncedDnnState, not used yet>" if self._state is None else f"<Synced{repr(self._state)[1:]}"


@final
class _Held:
    def __init__(self, synced: SyncedDnnState, timeout: float | None) -> None:
        self._synced, self._timeout = synced, timeout

    def __enter__(self) -> DnnState:
        return self._synced.hold(self._timeout)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._synced.let_go()


class StateInfo(NamedTuple):
    """What is known of one state: bytes that its workspace holds, held at most and leases now, and its calls so far."""

    number: int
    workspace_bytes: int
    workspace_peak: int
    leased_bytes: int
    calls: int


@final
class DnnStates:
    """All states and plans of one library on one device; `DnnWrapper` is what users see of it."""

    def __init__(self, library: Library, runtime: DeviceRuntime) -> None:
        self.library, self._runtime = library, runtime
        self.plans: PlanCache[Any] = PlanCache()
        self.smaller: PlanCache[Any] = PlanCache(64)  # asked for where memory was short
        self._states: dict[int, SyncedDnnState] = {}
        self._lock = threading.Lock()
        self._handles = threading.local()

    def at(self, index: int) -> SyncedDnnState:
        """The state of an index, any number of 0 or more."""
        synced = self._states.get(index)
        if synced is None:
            if type(index) is not int or index < 0:
                raise ArgumentError.of("index", index, "the number of a state, 0 or more")
            with self._lock:
                synced = self._states.setdefault(index, SyncedDnnState(lambda: self._make(index)))
        return synced

    def handle(self) -> Any:
        """The calling thread's own handle, in no state and unchecked; it lives as long as the thread."""
        handle = getattr(self._handles, "handle", None)
        if handle is None:
            handle = self._handles.handle = self.library.open()
        return handle

    def entered(self, stream: Stream, index: int | None = None, timeout: float | None = None) -> Entered:
        """Scope of a state that serves the caller alone: of an index, or the first that is idle; see `hold_idle`.

        Raises:
            DeadlockError: this thread is inside the state of that index already.
            WaitTimeoutError: others stayed inside.
        """
        frame = top()
        if frame is not None and frame.task is not None and (state := self._in_turn()) is not None:
            return Entered(state, stream, None)
        if index is None:
            held = self._states.get(0)
            if held is None or not held.hold_idle():
                held = self.hold_idle(timeout)
        else:
            held = self.at(index)
            held.hold(timeout)
        assert held._state is not None, "who holds one has made it"
        return Entered(held._state, stream, held)

    def _in_turn(self) -> DnnState | None:
        """The state of whose queue the caller is a task, which needs no lock: it is at its turn."""
        for synced in list(self._states.values()):
            state = synced.state
            if state is not None and state.runner is not None and _runs_on(state.runner):
                return state
        return None

    def hold_idle(self, timeout: float | None = None) -> SyncedDnnState:
        """Hold the first state that is idle, or a new one; where there are `_MOST` of them, wait for the first.

        Raises:
            WaitTimeoutError: all stayed in use.
        """
        for index in range(_MOST):
            synced = self.at(index)
            if synced.hold_idle():
                return synced
        synced = self.at(0)
        synced.hold(timeout)
        return synced

    def all(self) -> list[SyncedDnnState]:
        """The states that were used, by index."""
        return [one for _, one in sorted(self._states.items()) if one.state is not None]

    def _make(self, index: int) -> DnnState:
        made: DnnState = (self.library.state_class or DnnState)(self.library, self._runtime, index)
        return made


def states_of(runtime: DeviceRuntime, library: Library) -> DnnStates:
    """The states of a library on a device, one collection per process and device."""
    with runtime.lock:
        found = runtime.libraries.get(library.name)
        if found is None:
            found = runtime.libraries[library.name] = DnnStates(library, runtime)
        states: DnnStates = found
        return states
