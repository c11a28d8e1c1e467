"""The forms in which the state tests run: on CPU and simulated devices, or, in a child on the emulator, with cuDNN.

Run with ``CUDA_EMULATOR_LIBRARIES=on`` on emulated devices, the same tests take cuDNN's classes and real handles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import numpy as np

import tazza as tz
from tazza.dnn import Choice, CudnnLibrary, CudnnState, CudnnWrapper, DnnWrapper, Lease, Library, Operation, Plan
from tazza.testing import simulate
from tests.dnn import cudnn_calls
from tests.dnn.pattern import PatternLibrary, PatternPlan, next_mark

__all__ = [
    "CUDA",
    "DEVICES",
    "LIBRARIES",
    "OTHER",
    "QUEUED",
    "added",
    "convolve",
    "doomed",
    "gradient",
    "library_of",
    "node",
    "ones_like",
    "pattern_plan",
    "wrapper_of",
]

CUDA = os.environ.get("CUDA_EMULATOR_LIBRARIES") == "on"
DEVICES = ["cuda:0"] if CUDA else ["cpu", "sim:0"]
LIBRARIES = ["auto"] if CUDA else ["auto", "reference"]
OTHER = "cuda:1" if CUDA else "sim:1"
QUEUED = "cuda:0" if CUDA else "sim:0"


@final
class CudnnPatternLibrary(Library):
    """`PatternLibrary` with cuDNN's handles."""

    version = "1"
    survives_fork = False
    state_class = CudnnState

    def __init__(self, ctx: tz.Context, name: str) -> None:
        self.name = name
        self._cudnn = CudnnLibrary.of(ctx.device)
        self._counts = PatternLibrary(name)

    opened = property(lambda self: self._counts.opened)
    closed = property(lambda self: self._counts.closed, lambda self, value: setattr(self._counts, "closed", value))
    failing = property(lambda self: self._counts.failing, lambda self, value: setattr(self._counts, "failing", value))

    def supports(self, feature: str, *, dtype: str = "float32") -> bool:
        return self._counts.supports(feature, dtype=dtype)

    def compile(self, operation: Operation, choice: Choice) -> Plan:
        return CudnnPatternPlan(operation.options[0])

    def open(self) -> Any:
        self._counts.open()
        return self._cudnn.open()

    def close(self, handle: Any) -> None:
        self._cudnn.close(handle)
        self._counts.close(handle)


@final
class CudnnPatternPlan(Plan):
    """`PatternPlan` on a queue: fills the lease, calls `between`, copies the lease out twice; see `overwritten`."""

    algorithm = "pattern"

    def __init__(self, nbytes: int) -> None:
        self.operation = Operation("pattern", (), (), (nbytes,))
        self.workspace_bytes = nbytes
        self.calls = 0
        self.between: Callable[[], object] = lambda: None
        self._copies: list[tuple[int, tz.Buffer]] = []

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        state.leased(lease, self.workspace_bytes)
        assert lease is not None, "leased() has checked"
        self.calls += 1
        mark, here = next_mark(), tz.current()
        assert state.handle, "bound to the stream that the copies go to"
        part = lease.chunk[: self.workspace_bytes]
        with here.on(state.stream):
            here.fill(part, mark)
            self.between()
            for _ in range(2):
                copy = here.memory.pinned.allocate(self.workspace_bytes)
                here.copy(copy, part)
                self._copies.append((mark, copy))

    @property
    def overwritten(self) -> int:
        """Copies that have something else than was written."""
        found, self._copies = self._copies, []
        return sum(bool((np.asarray(copy) != mark).any()) for mark, copy in found)


def library_of(ctx: tz.Context, name: str) -> Any:
    """A library that counts its handles."""
    return CudnnPatternLibrary(ctx, name) if CUDA else PatternLibrary(name)


def wrapper_of(ctx: tz.Context, library: Library | None = None) -> DnnWrapper:
    """The wrapper of the context's device."""
    return CudnnWrapper(ctx, library) if ctx.device.kind == "cuda" else DnnWrapper(ctx, library)


def pattern_plan(library: Any, nbytes: int) -> Any:
    """A plan of the form that `PatternPlan` is one of."""
    return CudnnPatternPlan(nbytes) if CUDA else PatternPlan(library, nbytes)


# What launched functions compute: each takes the wrapper, and arrays or Buffers of the context that is current.


def convolve(wrapper: DnnWrapper, x: Any, w: Any, activation: Literal["relu"] | None = None) -> Any:
    """A convolution by 3 x 3 weights that keeps the size."""
    if isinstance(wrapper, CudnnWrapper):
        return cudnn_calls.conv2d(wrapper, x, w, None, padding=1, activation=activation)
    return tz.current().dnn.conv2d(x, w, padding=1, activation=activation)


def node(wrapper: DnnWrapper, x: Any, w: Any) -> Any:
    """The same with relu."""
    return convolve(wrapper, x, w, "relu")


def gradient(wrapper: DnnWrapper, dy: Any, x: Any, w: Any, y: Any) -> Any:
    """The gradient of the weights of a `node`."""
    if isinstance(wrapper, CudnnWrapper):
        return cudnn_calls.backward(wrapper, dy, x, w, y, padding=1, activation="relu")[1]
    dx, dw, _ = tz.current().dnn.conv2d_backward(dy, x, w, y=y, padding=1, activation="relu")
    assert dx is not None
    return dw


def added(wrapper: DnnWrapper, a: Any, b: Any) -> Any:
    """A sum."""
    return cudnn_calls.added(wrapper, a, b) if isinstance(wrapper, CudnnWrapper) else a + b


def ones_like(wrapper: DnnWrapper, given: Any) -> Any:
    """Ones."""
    if not isinstance(wrapper, CudnnWrapper):
        return np.ones_like(given)
    here = tz.current()
    made = here.empty(given.shape, "float32")
    here.fill(made, 1.0)
    return made


@contextmanager
def doomed() -> Iterator[tuple[tz.Context, Callable[[], None]]]:
    """A context on a device that no other test uses, and what loses the device."""
    if not CUDA:
        with simulate() as sim, tz.open("sim:0") as ctx:
            yield ctx, lambda: sim.lose(0, "unplugged")
        return
    import cuda_emulator

    emulator = cuda_emulator.start()
    last = emulator.settings.devices - 1
    ctx = tz.context(f"cuda:{last}")
    yield ctx, lambda: emulator.lose_device(last)
    ctx.close(abandon=True)
