"""Graphs: captured work, replayed as one submission, and what has to live as long as it can be."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Any, final

from tazza.core.event import Event
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import Stream, making
from tazza.core.submission import Submission
from tazza.core.task import InFlight
from tazza.errors import ArgumentError, BackendError, CleanupWarning, ClosedError, UsageError, WrongDeviceError
from tazza.hot import Account, Block, Buffer, Lane, generation, point
from tazza.hot.hooks import Operation, emit
from tazza.hot.process import process
from tazza.spi import Handle
from tazza.util.report import report

__all__ = ["Executable", "Graph", "Replay", "Replays", "claimed"]


def claimed(lane: Lane, account: Account, label: str) -> list[Block]:
    """Allocate all that is free in a lane, so that it counts as live for the graph whose work uses it again.

    Raises:
        OutOfMemoryError: the account refuses it, after all relief.
    """
    pool, taken = lane.pool, list[Block]()
    pool.drain()
    free = lane.empty()
    try:
        while free:
            block = free.pop()
            lane.kept = block  # the one that is handed out next
            lane.stacked_nbytes += block.nbytes
            taken.append(pool.take(block.nbytes, lane, account, label))
    except BaseException:
        for block in free:
            lane.restore(block)
        for block in taken:
            pool.give(block)
        raise
    return taken


@final
class Replays:
    """How far the replays of a graph are, for the pool and for whoever waits for users of its memory.

    Blocks know it, which the graph holds, so it holds nothing of the graph. It is the pool's ticket for memory that the
    graph uses: nothing that a wait could end.

    Attributes:
        over: there will be no further one.
        after: what the next one comes after.
    """

    def __init__(self) -> None:
        self.over = False
        self.after: list[Event] = []
        self.runners: list[Runner] = []  # that stand for it among the users of blocks
        self.lock = threading.RLock()
        self._last: tuple[Runner, int] | None = None
        # The driver failed when the last one was submitted: it may run, and nothing marks its end.
        self._is_unsure = False
        self._others: list[tuple[Runner, int]] = []

    @property
    def last(self) -> Runner | None:
        """The stream on which the last replay is under way; None where it is over, and those before it."""
        last = self._last
        if last is None or last[0].reached(last[1]) or (self._is_unsure and last[0].mark().poll()):
            return None
        return last[0]

    @property
    def is_done(self) -> bool:
        """Whether no work uses the graph's memory any more, and none ever will."""
        if not self.over or self.last is not None:
            return False
        self._others = [use for use in self._others if not (use[0].reached(use[1]) or use[0].mark().poll())]
        return not self._others

    def synchronize(self, timeout: float | None = None) -> None:
        """Return at once: what ends it is the end of the graph."""

    def also_after(self, runner: Runner) -> None:
        """Other threads may have used the stream that was captured at the very moment when that began."""
        self._others.append((runner, runner.submitted))

    def forget(self, buffers: Iterable[Buffer]) -> None:
        """Strike it off the users of memory that lives on."""
        for buffer in buffers:
            block = buffer.block
            with process.lock:
                users = [use for use in block.users or () if use[0] not in self.runners]
                block.users = users or None

    def finish(self) -> bool:
        """Let no further replay begin if the last one is over; tell whether that is so. Never waits."""
        if not self.lock.acquire(blocking=False):
            return False  # one is being submitted
        try:
            self.over = self.over or self.last is None
            return self.over
        finally:
            self.lock.release()

    def submit(self, stream: Stream, replay: Replay) -> None:
        """Submit one, after the one before, whose launch the device may not overtake on another stream."""
        runner = stream.runner
        with self.lock:
            if self.over:
                raise ClosedError(f"{replay.label!r} is closed; capture it again")
            before, last = self._last, self.last
            if last is not None and last is not runner:
                replay.needs = (*replay.needs, last.mark())
            replay.needs, taken = (*replay.needs, *self.after), self.after
            # Until its number is known: it is over when all of the stream is.
            self._last, self.after = (runner, runner.submitted + 1), []
            try:
                stream.submit(replay)
            except BackendError:
                self._last, self._is_unsure = (runner, runner.submitted), True
                stream.runtime.lost()  # while it counts as in flight
                raise
            except BaseException:
                self._last, self.after = before, [*taken, *self.after]
                raise
            self._last, self._is_unsure = (runner, runner.submitted), False


@final
class Executable:
    """A graph of the device with all that its work uses, until no replay runs; one of ``DeviceRuntime.loans`` then."""

    def __init__(self, runtime: DeviceRuntime, handle: Handle, replays: Replays, lane: Lane) -> None:
        self.runtime, self.handle, self.replays, self.lane = runtime, handle, replays, lane
        self.holds: list[object] = []
        self.buffers: list[Buffer] = []
        self.blocks: list[Block] = []  # what the captured work frees, and uses again on each replay
        self._generation = generation()

    @property
    def pending(self) -> list[Event]:
        """What its memory is kept for."""
        last = self.replays.last
        return [] if last is None else [last.mark()]

    def end(self) -> bool:
        """Give everything back if no replay is under way; tell whether that is so. Never waits."""
        if self._generation != generation():
            return True
        runtime = self.runtime
        if runtime.lost() is not None:
            self.replays.over = True
        elif not self.replays.finish():
            return False
        if self.handle is not None:
            self._destroy()
        self.replays.forget(self.buffers)
        self.holds, self.buffers = [], []
        pool = self.lane.pool
        while self.blocks:
            pool.give(self.blocks.pop())
        pool.close_lane(self.lane)
        return True

    def _destroy(self) -> None:
        handle, self.handle = self.handle, None
        try:
            self.runtime.driver.graph_destroy(self.runtime.info, handle)
        except BackendError as error:
            # A lost device has nothing to give back. Else the driver tries again when it trims.
            if self.runtime.lost() is None:
                report(f"a graph of {self.runtime.name} could not be given back", CleanupWarning, error=error)


@final
class Replay(Submission):
    """All of a graph, by the device's queue."""

    __slots__ = ("_executable",)

    def __init__(self, stream: Stream, label: str, executable: Executable, needs: tuple[Event, ...]) -> None:
        super().__init__(stream, label, needs=needs)
        self._executable = executable
        self.holds = executable, InFlight(stream.runtime.in_flight, label)

    def run(self) -> None:
        self.hand_over(None)

    def hand_over(self, queue: Handle | None) -> None:
        for need in self.needs:
            need.raise_outcome()  # what never arrived is not passed on
        runtime = self.stream.runtime
        runtime.driver.graph_launch(runtime.info, queue, self._executable.handle)


@final
class Graph:
    """Work that `Stream.capture` took note of; each `replay` runs all of it. Outlives its context, not a lost device.

    It holds the memory, the kernels and the host data that the work uses. Memory that was allocated inside the capture
    is the graph's: a Buffer of it that was kept shows what the last replay has written. Replays of one graph run one
    after the other, on whatever streams.

    Attributes:
        label: name in errors and reports.

    >>> import tazza as tz
    >>> def steps(ctx, x):
    ...     with ctx.stream.capture() as graph:
    ...         ctx.fill(x, 1.0)
    ...     graph.replay()  # on the current stream of ctx
    ...     return ctx.to_numpy(x)
    >>> with tz.open("cpu") as ctx:
    ...     try:
    ...         steps(ctx, ctx.empty(4))
    ...     except tz.errors.UnsupportedError:
    ...         "needs a device that captures, such as cuda:0"
    'needs a device that captures, such as cuda:0'
    """

    __slots__ = ("__weakref__", "_closed", "_context", "_executable", "_runtime", "label")

    def __init__(self, context: Any, runtime: DeviceRuntime, label: str) -> None:
        self._context: weakref.ref[Any] = weakref.ref(context)
        self._runtime, self.label = runtime, label
        self._executable: Executable | None = None
        self._closed = False

    def made(self, executable: Executable) -> None:
        """Take what the capture has come to. Internal."""
        self._executable = executable

    def replay(self, stream: Stream | None = None) -> None:
        """Run the captured work once more, at its turn in a stream. Asynchronous to the host.

        Args:
            stream: of any context on the device; default is the current one of the context that captured.

        Raises:
            ClosedError: the graph is closed, or a buffer is that the work uses.
            UsageError: its capture has not ended, or gave no graph; or the stream is being captured.
            WrongDeviceError: the stream is of another device.
            DeviceLostError, ForkedError: the device, or the process, is another.
        """
        self._runtime.check()
        executable = self._usable()
        target = self._target(stream)
        needs = [event for buffer in executable.buffers for event in self._order(buffer, target)]
        replay = Replay(target, self.label, executable, tuple(needs))
        if point.listeners is not None:
            buffers = tuple(executable.buffers)
            emit(Operation("kernel", stream=target, label=self.label, reads=buffers, writes=buffers, subject=self))
        executable.replays.submit(target, replay)

    def close(self) -> None:
        """Give back the graph and its memory as soon as its last replay is over. Idempotent, never blocks."""
        executable = self._executable
        if self._closed or self._runtime.generation != generation():
            return
        if executable is None:
            raise UsageError(f"{self!r} is what a capture under way will come to; close it after that")
        self._closed = True
        self._runtime.loans.append(executable)
        self._executable = None
        del executable
        self._runtime.end_loans()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def device(self) -> Any:
        """The device whose work it is."""
        return self._runtime.device

    def __del__(self) -> None:
        # One append: its end calls the driver, and a finaliser may run anywhere.
        executable = getattr(self, "_executable", None)
        if executable is not None:
            self._runtime.loans.append(executable)

    def __repr__(self) -> str:
        word = "closed" if self._closed else "captured" if self._executable is not None else "not captured"
        return f"<Graph {self.label!r} on {self._runtime.name}, {word}>"

    def _usable(self) -> Executable:
        executable = self._executable
        if self._closed:
            raise ClosedError(f"{self!r} is closed; capture it again")
        if executable is None:
            raise UsageError(f"{self!r}: its capture is still under way, or failed; replay it after the `with` block")
        for buffer in executable.buffers:
            if buffer.is_closed:
                raise ClosedError(f"{self!r} uses {buffer!r}, which is closed; its memory may hold other data by now")
        return executable

    def _target(self, stream: Stream | None) -> Stream:
        if stream is None:
            context = self._context()
            if context is None:
                raise ClosedError(f"the context that captured {self!r} is gone; name a stream: graph.replay(stream)")
            target: Stream = context.stream
        elif isinstance(stream, Stream):
            target = stream
        else:
            raise ArgumentError.of("stream", stream, f"a Stream of a context on {self._runtime.name}")
        if target.runtime is not self._runtime:
            raise WrongDeviceError(f"{target!r} is not on {self._runtime.name}; capture the work on a stream there")
        if target.runner.capture is not None:
            raise UsageError(f"{target!r} is being captured, and graphs hold no graphs; capture what {self!r} does")
        return target

    def _order(self, buffer: Buffer, target: Stream) -> tuple[Event, ...]:
        """What a replay comes after, for memory from outside: its making; for the host's, all that uses it."""
        if buffer.device.memory_domain == self._runtime.info.memory_domain:
            return making(buffer, target)
        users = [one for one in buffer._streams() if one is not target.runner and not one.reached(one.submitted)]
        return tuple(one.mark() for one in users)
