"""Plans of NVIDIA's front end, loaded for a device: they execute on Buffers in a `CudnnState`."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from typing import Any, final

from tazza.contexts.cuda_handles import call_library, create_handle
from tazza.core.completion import timeout_or_default
from tazza.core.event import Event
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import Stream, making
from tazza.dnn.cuda.description import identity_of
from tazza.dnn.cuda.execution import ALIGNMENT, using
from tazza.dnn.cuda.front_end import FrontEnd, load_front_end
from tazza.dnn.cuda.serialized import number_of, written_in
from tazza.dnn.cuda.state import CudnnState
from tazza.dnn.cudnn.planner import CudnnPlan
from tazza.dnn.library import Layout, Plan
from tazza.dnn.workspace import Lease
from tazza.drivers.cuda.libraries import NativeLibrary
from tazza.errors import (
    ArgumentError,
    BackendError,
    CleanupWarning,
    UsageError,
    WaitTimeoutError,
    WrongDeviceError,
)
from tazza.hot import Buffer, after_fork, generation, point
from tazza.hot.hooks import Operation, emit
from tazza.util.report import report

__all__ = ["LoadedPlan", "load_plan"]

_ALIGNED = 16
"""Bytes at whose multiples cuDNN's plans expect every array to begin."""


def load_plan(runtime: DeviceRuntime, library: NativeLibrary, plan: CudnnPlan) -> LoadedPlan:
    """Load a plan for its device; see `CudnnWrapper.load`."""
    if not isinstance(plan, CudnnPlan):
        raise ArgumentError.of("plan", plan, "a CudnnPlan, as CudnnPlanner.plan returns it")
    runtime.check()
    written = written_in(plan)
    written.check_version(number_of(library.version))
    written.check_device(identity_of(runtime), runtime.info.title, runtime.name)
    front = load_front_end(library)
    written.check_front_end(front.version)
    graph, nbytes = _loader_of(runtime).load(runtime, front, library, plan.serialized)
    return LoadedPlan(runtime, front, plan, _Graph(runtime, graph), nbytes, written.numbers)


# Loading -------------------------------------------------------------------------------------------------------------


@final
class _Loader:
    """A handle to load plans with, bound to no stream: the front end captures what the handle's stream has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while a plan is loaded, which calls nothing of ours
        self._handle: int | None = None

    def load(
        self, runtime: DeviceRuntime, front: FrontEnd, library: NativeLibrary, serialized: bytes
    ) -> tuple[Any, int]:
        seconds = timeout_or_default(None)
        if not self._lock.acquire(timeout=seconds):
            raise WaitTimeoutError(f"another thread still loads a plan on {runtime.name} after {seconds:g} s")
        try:
            if self._handle is None:
                self._handle = create_handle(runtime, library, "cudnnCreate")
            # A load that failed leaves it bound to a stream of the front end's.
            call_library(runtime, library, "cudnnSetStream", ctypes.c_void_p(self._handle), ctypes.c_void_p())
            return front.load(runtime, self._handle, serialized)
        finally:
            self._lock.release()


_loaders: weakref.WeakKeyDictionary[DeviceRuntime, _Loader] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_kept: list[Any] = []
"""Graphs that must not be destroyed, as their device is lost: a leak, and no dangling pointer."""


def _after_fork() -> None:
    global _loaders, _lock
    _loaders, _lock = weakref.WeakKeyDictionary(), threading.Lock()  # the parent's handles are no handles here


after_fork(_after_fork)


def _loader_of(runtime: DeviceRuntime) -> _Loader:
    with _lock:
        found = _loaders.get(runtime)
        if found is None:
            found = _loaders[runtime] = _Loader()
        return found


@final
class _Loaded:
    """A graph until it is destroyed, which the finaliser leaves to the next call: see `DeviceRuntime.loans`."""

    def __init__(self, runtime: DeviceRuntime, graph: Any) -> None:
        self._runtime, self.graph, self._generation = runtime, graph, generation()
        self._uses: weakref.WeakKeyDictionary[Runner, int] = weakref.WeakKeyDictionary()
        self._marks: dict[Runner, Event] = {}
        self._lock = threading.Lock()

    def used_on(self, runner: Runner) -> None:
        """What was submitted to the stream so far runs its kernels."""
        with self._lock:
            self._uses[runner] = runner.submitted

    @property
    def pending(self) -> tuple[()]:
        """Nothing: a graph holds no memory that is worth a wait."""
        return ()

    def _is_over(self, runner: Runner, number: int) -> bool:
        """Look how far a stream is; nothing is added to the uses of a graph that was dropped, so one mark will do."""
        if runner.reached(number):
            return True
        mark = self._marks.get(runner)
        if mark is None:
            mark = self._marks[runner] = runner.mark()
        return mark.poll()

    def end(self) -> bool:
        """Destroy it if no stream runs its kernels any more; tell whether that is so. Never waits."""
        runtime = self._runtime
        if self._generation != generation():
            return False  # the parent's: it stays where it is
        try:
            if runtime.lost() is not None:
                _kept.append(self.graph)
                return True
            if not all(self._is_over(runner, number) for runner, number in list(self._uses.items())):
                return False
            driver: Any = runtime.driver
            with driver.current(runtime.info):  # its kernels are unloaded from there
                self.graph = None
        except BackendError as error:
            _kept.append(self.graph)
            if runtime.lost() is None:
                report(f"a plan of cuDNN stays loaded on {runtime.name}: {error}", CleanupWarning)
        return True


@final
class _Graph:
    """A loaded graph; dropped, it is destroyed once nothing runs its kernels."""

    __slots__ = ("loaded", "runtime")

    def __init__(self, runtime: DeviceRuntime, graph: Any) -> None:
        self.runtime, self.loaded = runtime, _Loaded(runtime, graph)

    def __del__(self) -> None:
        self.runtime.loans.append(self.loaded)


# Execution -----------------------------------------------------------------------------------------------------------


@final
class LoadedPlan(Plan):
    """A plan of the front end on one device, made by `CudnnWrapper.load`; used by several threads, each in its state.

    Attributes:
        plan: what was loaded.
    """

    def __init__(
        self,
        runtime: DeviceRuntime,
        front: FrontEnd,
        plan: CudnnPlan,
        graph: _Graph,
        nbytes: int,
        numbers: tuple[int, ...],
    ) -> None:
        self.plan, self.operation, self.algorithm = plan, plan.operation, plan.algorithm
        self.workspace_bytes = nbytes
        self._runtime, self._front, self._graph, self._numbers = runtime, front, graph, numbers
        self._layouts = *plan.operation.inputs, *plan.operation.outputs

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        if not isinstance(state, CudnnState):
            raise UsageError(f"state: got {state!r}, expected a CudnnState: CudnnWrapper(ctx).lease() gives one")
        if state._runtime is not self._runtime:
            raise WrongDeviceError(f"{state!r} is on another device than {self!r}; use CudnnWrapper of a context there")
        scratch = state.leased(lease, self.workspace_bytes, ALIGNMENT)
        addresses = self._addresses(arrays)
        stream = state.stream
        given = [array for array in arrays if array is not None]
        for array in given:
            for event in making(array, stream):
                stream.wait(event)
        if point.listeners is not None:
            self._tell(stream, arrays)
        handle = state.handle
        try:
            with using(given, state):
                self._front.execute(self._runtime, self._graph.loaded.graph, addresses, scratch, handle)
        finally:
            self._graph.loaded.used_on(stream.runner)

    def _tell(self, stream: Stream, arrays: Sequence[Any]) -> None:
        count, label = len(self.operation.inputs), f"cudnn {self.operation.name}"
        reads, writes = (tuple(one for one in part if one is not None) for part in (arrays[:count], arrays[count:]))
        emit(Operation("kernel", stream=stream, label=label, reads=reads, writes=writes, subject=self))

    def _addresses(self, arrays: Sequence[Any]) -> dict[int, int]:
        """The address of each array that the plan uses, by its number.

        Raises:
            ArgumentError, WrongDeviceError, ClosedError: they are not those that the plan was made for.
        """
        if not isinstance(arrays, Sequence) or len(arrays) != len(self._layouts):
            got = len(arrays) if isinstance(arrays, Sequence) else arrays
            raise ArgumentError.of("arrays", got, f"{len(self._layouts)} arrays, None where one is left out")
        found = {}
        for number, (array, layout) in enumerate(zip(arrays, self._layouts, strict=True), 1):
            used = number in self._numbers
            if array is not None or used:
                address = self._address(f"arrays[{number - 1}]", array, layout)
                if used:
                    found[number] = address
        return found

    def _address(self, argument: str, array: Any, layout: Layout | None) -> int:
        if layout is None:
            raise ArgumentError.of(argument, array, "None, as the operation leaves it out")
        if not isinstance(array, Buffer):
            raise ArgumentError.of(argument, array, f"a Buffer of {layout}")
        array._check()
        if array.device.memory_domain != self._runtime.info.memory_domain:
            here = self._runtime.name
            raise WrongDeviceError(f"{argument}: memory of {array.device}, not of {here}; ctx.asarray copies it there")
        if not _lies_as(array, layout):
            raise ArgumentError.of(argument, _layout_of(array), f"a Buffer of {layout}")
        address: int = array.address
        if address % _ALIGNED:
            raise ArgumentError.of(argument, hex(address), f"memory that begins at a multiple of {_ALIGNED} bytes")
        return address

    def __repr__(self) -> str:
        return f"<LoadedPlan {self.operation.name} on {self._runtime.name}: {self.algorithm}>"


def _layout_of(array: Buffer) -> str:
    kind = "bytes" if array.dtype is None else array.dtype.name
    return f"{kind} {tuple(array.shape)} with strides {tuple(array.strides)}"


def _lies_as(array: Buffer, layout: Layout) -> bool:
    kind = array.dtype
    wanted = "uint16" if layout.dtype == "bfloat16" else layout.dtype  # NumPy has no name for these bits
    if kind is None or kind.name != wanted or tuple(array.shape) != layout.shape:
        return False
    steps = zip(array.shape, array.strides, layout.strides, strict=True)
    return all(extent == 1 or step == wants * kind.itemsize for extent, step, wants in steps)
