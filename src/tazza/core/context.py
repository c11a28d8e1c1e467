"""The one object: a device, its streams, memory, random numbers, library handles and progress."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from tazza.core import registry, transfer
from tazza.core.arraylib import array_library, is_array
from tazza.core.binding import Binding
from tazza.core.completion import timeout_or_default
from tazza.core.device import Device, device
from tazza.core.event import Waitable
from tazza.core.failures import Failures
from tazza.core.generator import Generator
from tazza.core.health import Health
from tazza.core.kernel import accesses
from tazza.core.launching import launched, running_task
from tazza.core.memory import Memory
from tazza.core.pool import pool_of
from tazza.core.runner import Runner
from tazza.core.runtime import runtime_of
from tazza.core.scope import StreamScope
from tazza.core.shortage import explain, report_leaks
from tazza.core.spec import Spec
from tazza.core.states import State
from tazza.core.stream import Stream, make_runner
from tazza.core.task import Task
from tazza.errors import (
    ArgumentError,
    ClosedError,
    DeadlockError,
    ForkedError,
    UnsupportedError,
    UsageError,
    WaitTimeoutError,
    WrongDeviceError,
)
from tazza.hot import HOOKED, Account, Buffer, ContextCore, Gate, frame_of, generation, top

if TYPE_CHECKING:
    from tazza.core.compiled import CompiledKernel

__all__ = ["Context"]

_OPEN, _CLOSING, _CLOSED = range(3)
_numbers = itertools.count(1)


class Context(ContextCore):
    """One device with everything that work on it needs; make one per device and process.

    Made by `tazza.context` and `tazza.open`. Entering it with ``with`` makes it current and never closes it; it may be
    entered by several threads and asyncio tasks at once. Creating one changes no global or thread state. All contexts
    of a device share its caches and its health; each has its own streams, account, limit and generator.

    >>> import tazza as tz
    >>> with tz.open("cpu", seed=7, memory_limit="64MiB") as ctx:
    ...     x = ctx.asarray([1.0, 2.0, 3.0])
    ...     y = ctx.launch(lambda v: v * 2, x).result()
    ...     ctx.to_numpy(y).tolist(), tz.current() is ctx
    ([2.0, 4.0, 6.0], True)
    """

    def __init__(self, spec: Spec, chosen: Device, above: Account | None = None) -> None:
        super().__init__()
        self._runtime = runtime = runtime_of(chosen)
        runtime.check()
        self.arrays = array_library(self, chosen, spec.arrays)
        self._generator = Generator(spec.seed, sink=self.arrays.sink(), threads=max(1, len(chosen.cores)))
        self.spec = replace(spec, device=chosen.name, seed=self._generator.seed)
        self.gate = Gate(self, f"context on {chosen.name}")
        self.failures = Failures()
        self._runners: list[Runner] = []
        self._lock = threading.Lock()
        self._pool = pool_of(runtime, spec.pool)
        self.pool = self._pool.pool
        self.account = Account(f"context on {chosen.name}", spec.memory_limit, above or runtime.account)
        self.account.pool = self.pool
        self.account.hosted = HOOKED and runtime.host_addressable
        self.task_lane = runtime.shared_lane(spec.pool) if runtime.capabilities.queues else None
        self.task_enqueues = not runtime.capabilities.host_functions
        self.stream0 = self._make_stream(f"{chosen.name} own stream", worker=False)
        self._memory = Memory(self, self._pool, self.account)
        #: Counters (epoch, step), the generator and registered objects, as `save` writes them.
        self.state = State(self._generator, self.arrays.stored, self.arrays.restored, spec=self.spec.as_dict())
        self._last_saved: str | None = None
        self._dnn: Any = None
        runtime.add_context(self)

    # Streams and order ---------------------------------------------------------------------------------------------

    @property
    def own_stream(self) -> Stream:
        """The stream that the context was made with; inline on the CPU."""
        return cast(Stream, self.stream0)

    @property
    def stream(self) -> Stream:
        """The current stream of this context: the innermost ``ctx.on(stream)``'s, else the context's own."""
        frame = frame_of(self)
        return self.stream0 if frame is None else frame.stream  # type: ignore[return-value]

    def new_stream(self, *, priority: int = 0, label: str | None = None) -> Stream:
        """Make another stream: a worker thread on the CPU, a queue elsewhere.

        Args:
            priority: larger is more urgent; a hint, clamped to what the device has.
            label: its name in errors and reports.
        """
        self._check_open()
        return self._make_stream(label, priority=priority)

    def adopt_stream(self, native: object, *, label: str | None = None) -> Stream:
        """Use a queue that another library made; that library keeps it alive and destroys it.

        Raises:
            UnsupportedError: this device has no native queues.
        """
        self._check_open()
        if native is None:
            raise ArgumentError.of("native", native, "a queue of the device's own library")
        if not self._runtime.capabilities.queues:
            raise UnsupportedError(f"{self.device} has no native queues; use ctx.new_stream()")
        return self._make_stream(label, native=native)

    def on(self, stream: Stream) -> StreamScope:
        """Make `stream` the current one inside ``with ctx.on(stream):``; makes this context current too."""
        if not isinstance(stream, Stream) or stream.context is not self:
            raise ArgumentError.of("stream", stream, "a stream of this context")
        self._check_open()
        return StreamScope(self, stream)

    def synchronize(self, timeout: float | None = None) -> None:
        """Wait for everything submitted on this context's streams, then raise the first failure nobody has seen.

        Raises:
            WaitTimeoutError: not over after `timeout` seconds for all streams together (None: ``TAZZA_WAIT_TIMEOUT``).
            DeadlockError: called from a task of one of these streams.
        """
        self._runtime.check()
        if self.stream.runner.capture is not None:
            self.stream.runner.capture.refuse_waiting()
        self._drain(time.monotonic() + timeout_or_default(timeout))
        self._runtime.check()  # what a lost device had queued is over, and was not done
        self.failures.raise_first()

    # Work ----------------------------------------------------------------------------------------------------------

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        after: Waitable | Iterable[Waitable] = (),
        stream: Stream | None = None,
        label: str | None = None,
        reads: Iterable[str] | None = None,
        writes: Iterable[str] | None = None,
    ) -> Task:
        """Call ``function(*args)`` at its turn in a stream, with this context current.

        Asynchronous to the host, except on the CPU context's own stream, where the returned task is over. Buffers
        among the arguments, also inside lists, tuples and dicts, are seen as arrays of the device's array library;
        tasks are waited for and replaced by their results, moved to this device where they are elsewhere (see
        ``Spec.transfer``). Arrays returned where the host cannot address the device are kept as Buffers.

        Args:
            after: events and tasks that must be over first, without using their results.
            stream: default is the current one of this context.
            label: name in errors and reports; default is the function's.
            reads: parameters that the function reads, and
            writes: those that it writes, where no `tazza.kernel` says so; only the checker and the trace use it.

        Raises:
            ArgumentError, WrongDeviceError: an argument cannot be used here. Nothing else is raised for the function:
                its failure is the task's.
            ClosedError, DeviceLostError, QueueFullError: no work is taken.
        """
        if not callable(function):
            raise ArgumentError.of("function", function, "a callable")
        target = self._own_stream(stream)
        return launched(self, target, function, args, after=after, label=label, said=accesses(function, reads, writes))

    def compile(self, code: object, name: str) -> CompiledKernel:
        """Make a kernel of the device's own language; ``kernel[grid, block]`` is a function to launch.

        Takes as long as the compiler does, where the device has not loaded the same code yet. Makes no work.

        Args:
            code: the source as text, or what was compiled before: PTX, a cubin as bytes, a cuda.core ``ObjectCode``.
            name: of the kernel in it.

        Raises:
            UnsupportedError: the device has no such language.
            CompileError: the compiler refuses the source, and says why.
            ArgumentError: the code is of another kind, or has no kernel of that name.
        """
        from tazza.core.compiled import compiled  # few programs compile, and every import pays for what is imported

        self._check_open()
        return compiled(self._runtime, code, name)

    def copy(self, dst: object, src: object, *, stream: Stream | None = None) -> None:
        """Copy bytes of `src` into `dst`, between any two memory domains, one of them this context's.

        Each side is a Buffer, an array of the context's library, a NumPy array or an object with the buffer protocol,
        of equal bytes, and of equal dtype and shape where both have them. In the stream's order and asynchronous to the
        host, except: an ordinary host array as source may be changed when the call returns, and as destination is
        complete. Inside a launched function, without `stream`, it happens at once.

        Raises:
            ArgumentError: sizes, dtypes or shapes differ, or `dst` is read-only.
            WrongDeviceError: neither side is on this device.
            UnsupportedError: memory with gaps that the device does not move like that; an ordinary array takes it all.
        """
        dst, src = self.arrays.plain(dst, writes=True), self.arrays.plain(src)
        if stream is None and self.inside_task and transfer.copy_here(self.arrays, dst, src):
            return
        transfer.copy(self._own_stream(stream), dst, src)

    def fill(self, dst: object, value: object, *, stream: Stream | None = None) -> None:
        """Fill `dst` with one value of its dtype (a byte where it has none), or repeat `value` if it is bytes.

        In the stream's order, asynchronous to the host; inside a launched function, without `stream`, at once.
        """
        dst, value = self.arrays.plain(dst, writes=True), self.arrays.cell(dst, value)
        if stream is None and self.inside_task and transfer.fill_here(self.arrays, dst, value):
            return
        transfer.fill(self._own_stream(stream), dst, value)

    def bind(self) -> Binding:
        """Scope for code that calls PyTorch, JAX and the like directly: sets their device and stream in this thread.

        ``with ctx.bind():`` also makes the context current; all is set back on the way out. Nothing in it may await.

        Raises:
            UsageError: on entry, where eager work is not possible; on exit, in another thread or frame, or after an
                await inside.
        """
        return Binding(self)

    # Arrays --------------------------------------------------------------------------------------------------------

    @property
    def xp(self) -> Any:
        """The Array API namespace of the context's array library.

        Raises:
            UsageError: eager operations are impossible here: outside a launched function on a device whose memory the
                host cannot address, or while a worker stream is current.
        """
        return self.arrays.namespace()

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "float64") -> Any:
        """Make an uninitialised array in pooled memory; a typed Buffer where the host cannot address the device."""
        extents = (shape,) if isinstance(shape, int) else tuple(shape)
        return self.arrays.empty(extents, self.arrays.dtype(dtype, self.device))

    def asarray(self, obj: object, dtype: Any = None, copy: bool | None = None) -> Any:
        """Bring data onto this device: host data, arrays of other contexts, nested lists.

        Args:
            dtype: convert to it; None keeps the data's.
            copy: True always makes a private copy; None only where it must; False raises where it must.
        """
        return self.arrays.asarray(obj, None if dtype is None else self.arrays.dtype(dtype, self.device), copy)

    def to_numpy(self, x: object) -> Any:
        """Return `x` as a NumPy array, after everything queued on it; on the CPU without a copy."""
        return self.arrays.to_numpy(x.result() if isinstance(x, Task) else x)

    def private_copy(self, leaf: Any) -> Any:
        """Copy an array or a Buffer of any device onto this one; other values pass. Internal."""
        if isinstance(leaf, Buffer) and leaf.device.memory_domain != self.device.memory_domain:
            return self.arrays.receive(leaf)
        return self.asarray(leaf, copy=True) if isinstance(leaf, Buffer) or is_array(leaf) else leaf

    @property
    def random(self) -> Generator:
        """The context's generator; inside a task, the task's own child of it."""
        frame = top()
        task = None if frame is None else frame.task
        if task is None or task.context is not self:
            return self._generator
        if task.generator is None:
            child = self._generator.child(*task.key)
            on_host = self._runtime.capabilities.host_functions and not self._runtime.host_addressable
            task.generator = child.on_host() if on_host else child
        return cast(Generator, task.generator)

    @property
    def dnn(self) -> Any:
        """Deep-learning operations on this context's arrays, by the library that the spec names.

        With ``dnn="auto"`` that is the best one installed for the device, the plain reference at the last. On a CUDA
        device it is cuDNN, which takes Buffers (`tazza.dnn.BufferDnn`).

        Raises:
            BackendUnavailableError: the library is not there, or is for other devices; says what to install.
        """
        if self._dnn is None:
            self._dnn = registry.load("dnn")(self)
        return self._dnn

    # Memory, state, health -----------------------------------------------------------------------------------------

    @property
    def memory(self) -> Memory:
        """What the context holds: statistics, limit, holders, trim; and the host memory beside the device's."""
        return self._memory

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write counters, generator and registered objects atomically, without pickle."""
        self.state.save(path)
        self._last_saved = os.fspath(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restore what `save` wrote; on any error the context is unchanged.

        Raises:
            CheckpointError: the file is damaged, foreign, or does not fit this context.
        """
        self.state.load(path)
        self._last_saved = os.fspath(path)

    @property
    def health(self) -> Health:
        """Whether the device can still be used, and if not, the first cause."""
        return Health(self._runtime.lost())

    def rebuild(self) -> Context:
        """Make a new context from this one's spec and last saved state, also after the device was lost.

        Counters and generator continue from the last `save`; a registered object gets its saved part when it is
        registered with the new context. This context stays as it is.

        Raises:
            UnsupportedError: the driver demands a new process.
        """
        kind = self.device.kind
        self._runtime.check_process()
        if self._runtime.lost() is not None and registry.driver(kind) is self._runtime.driver:
            registry.install_driver(kind, self._runtime.driver.rebuild())  # unless another context has done so
        above = self.account.parent
        fresh = type(self)(self.spec, device(self.spec.device), None if above is self._runtime.account else above)
        if self._last_saved is not None:
            fresh.state.resume(self._last_saved)
            fresh._last_saved = self._last_saved
        return fresh

    # Life ----------------------------------------------------------------------------------------------------------

    def close(self, timeout: float | None = None, *, abandon: bool = False) -> None:
        """Refuse new work, drain this context's own, and raise the first failure nobody has seen. Idempotent.

        Arrays and buffers made from it stay valid. After a timeout it stays closing and may be called again.

        Args:
            timeout: seconds for the draining; None is ``TAZZA_WAIT_TIMEOUT``.
            abandon: do not drain; what has not started is cancelled.

        Raises:
            WaitTimeoutError: work is still under way.
            DeadlockError: called from inside one of its own tasks.
        """
        if self.phase == _CLOSED or self.generation != generation():
            return
        running = running_task()
        if running is not None and running.belongs_to(self):
            raise DeadlockError(f"{self!r} cannot be closed from inside its own task {running.label!r}")
        self.phase = _CLOSING
        self.gate.shut()
        if abandon or self._runtime.lost() is not None:
            for runner in self._live_runners():
                runner.abandon()
        else:
            deadline = time.monotonic() + timeout_or_default(timeout)
            self._drain(deadline)
            if not self.gate.wait_empty(max(0.0, deadline - time.monotonic())):
                raise WaitTimeoutError(f"{self!r} still has calls under way in other threads; close it again later")
            self._drain(deadline)  # what those calls submitted
        self.gate.close()
        self.phase = _CLOSED
        report_leaks(self)
        for runner in self._live_runners():
            runner.close()
        if abandon or self._runtime.lost() is not None:
            self.failures.forget()  # whoever abandons knows, and the health tells of a lost device
        else:
            self.failures.raise_first()

    def _drain(self, deadline: float) -> None:
        """Wait for all streams, of dropped handles too, until none of them got more work meanwhile."""
        while busy := [runner for runner in self._live_runners() if not runner.reached(runner.submitted)]:
            for runner in busy:
                runner.settle(max(0.0, deadline - time.monotonic()))
            if self._runtime.lost() is not None:
                return

    def _live_runners(self) -> list[Runner]:
        with self._lock:
            self._runners = [runner for runner in self._runners if not runner.is_over]
            return list(self._runners)

    @property
    def is_closed(self) -> bool:
        """Whether `close` has finished."""
        return bool(self.phase == _CLOSED)

    @property
    def native(self) -> Any:
        """What the backend itself offers on this device, for methods that no other kind of device has.

        Raises:
            UnsupportedError: it has nothing of the kind.
        """
        return self._runtime.driver.native(self._runtime.info)

    @property
    def device(self) -> Device:
        """The context's device."""
        return self._runtime.device

    def __repr__(self) -> str:
        word = ("open", "closing", "closed", "lost")[self.phase]
        return f"<{type(self).__name__} on {self.spec.device}, {word}, seed {self.spec.seed}>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a context cannot be pickled; send ctx.spec and make one there with tz.context(spec)")

    # Internal ------------------------------------------------------------------------------------------------------

    def _explain(self, error: BaseException) -> None:
        explain(self, error)

    def _refuse(self, action: str) -> None:
        if self.generation != generation():
            raise ForkedError(f"{self!r} was made before this process was forked; make a new context here")
        self._runtime.check()
        running = running_task()
        if self.phase == _CLOSED or running is None or not running.belongs_to(self):
            raise ClosedError(f"{self!r} takes no new work ({action}); make another with tz.context(...)")

    def _check_open(self) -> None:
        self._runtime.check()
        if self.phase != _OPEN:
            self._refuse("new stream")

    def _make_stream(
        self, label: str | None, *, worker: bool = True, priority: int = 0, native: object = None
    ) -> Stream:
        runtime = self._runtime
        if runtime.capabilities.queues:
            lane = self._pool.pool.new_lane()
        else:
            lane = runtime.shared_lane(self.spec.pool)
        runner = make_runner(
            runtime,
            lane,
            self.failures,
            label=label or f"{runtime.name} stream {next(_numbers)}",
            priority=priority,
            max_queued=self.spec.max_queued,
            worker=worker,
            native=native,
        )
        with self._lock:
            self._runners.append(runner)
        return Stream(self, runner, own=not worker)

    def _own_stream(self, stream: Stream | None) -> Stream:
        self._runtime.check()
        if stream is None:
            return self.stream
        if not isinstance(stream, Stream):
            raise ArgumentError.of("stream", stream, "a Stream of this context")
        if stream.context is not self:
            raise WrongDeviceError(f"{stream!r} belongs to another context; use a stream of {self!r}")
        return stream

    def next_key(self, outer: Task | None) -> tuple[int, ...]:
        """The key of the next launch, in `outer` where that is this context's. Internal."""
        if outer is not None and outer.context is self:
            return outer.next_child_key()
        with self._lock:
            self.state.launches += 1
            return (self.state.launches,)

    @property
    def inside_task(self) -> bool:
        """Whether the calling thread runs one of this context's tasks. Internal."""
        running = running_task()
        return running is not None and running.context is self
