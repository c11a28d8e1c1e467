"""Handles of NVIDIA's libraries: one for each thread and device, bound to a stream whenever it is asked for.

A handle must not be in two threads at once, so each thread has its own; a thread that ends leaves it for the next one.
None is destroyed: at the interpreter's exit the library may be gone before it. What is left is the driver's to free.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, final

import numpy as np

from tazza.core.pool import pool_of
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import Stream
from tazza.drivers.cuda.libraries import NativeLibrary, load_library
from tazza.errors import BackendError, UsageError
from tazza.hot import Buffer, after_fork
from tazza.hot.buffer import make_buffer

__all__ = ["DeviceHandles", "call_library", "create_handle", "handles_of"]

CUBLAS_WORKSPACE = 4 << 20
"""Bytes of scratch memory for each thread and stream: https://docs.nvidia.com/cuda/cublas/ (cublasSetWorkspace)."""

_PHILOX = 161  # CURAND_RNG_PSEUDO_PHILOX4_32_10


def call_library(runtime: DeviceRuntime, library: NativeLibrary, name: str, *args: Any) -> None:
    """Call a library with the device's primary context current; a failure of the device makes it lost.

    Raises:
        DeviceLostError: the call failed, and so does the device.
        BackendError: the call failed.
    """
    driver: Any = runtime.driver
    primary = driver.current(runtime.info)
    primary.check(name)
    with primary:
        try:
            library.call(name, *args)
        except BackendError:
            primary.check_whole(name)  # else the error stays what the library says
            raise


def create_handle(runtime: DeviceRuntime, library: NativeLibrary, call: str, *args: Any) -> int:
    """Make a handle by a function that writes it to its first argument; `call_library`'s errors."""
    made = ctypes.c_void_p()
    call_library(runtime, library, call, ctypes.byref(made), *args)
    assert made.value is not None, "success means a handle"
    return made.value


@final
class _Held:
    """A handle as long as its thread has it; what else belongs to it there."""

    __slots__ = ("_free", "handle", "scratch")

    def __init__(self, handle: int, free: deque[int]) -> None:
        self.handle, self._free = handle, free
        self.scratch: weakref.WeakKeyDictionary[Stream, Buffer] = weakref.WeakKeyDictionary()

    def __del__(self) -> None:
        # One append, as in any finaliser: the next thread takes it.
        self._free.append(self.handle)


class _Here(threading.local):
    """What the calling thread has: by library, and for generators by context."""

    def __init__(self) -> None:
        self.held: dict[str, _Held] = {}
        self.generators: weakref.WeakKeyDictionary[Any, _Held] = weakref.WeakKeyDictionary()
        self.numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


@final
class DeviceHandles:
    """The handles on one device, for all its contexts."""

    def __init__(self, runtime: DeviceRuntime) -> None:
        self._runtime = runtime
        self._here = _Here()
        self._free: dict[str, deque[int]] = {name: deque() for name in ("cublas", "cudnn", "curand")}
        self._lock = threading.Lock()
        self._numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def cublas(self, stream: Stream) -> int:
        """The thread's cublasHandle_t, bound to the stream and to scratch memory of the thread's in that stream."""
        if stream.runner.capture is not None:
            raise UsageError(
                f"{stream!r} is being captured, and cuBLAS's scratch memory serves other calls too: make a handle of "
                "your own, and bind it to stream.native inside the capture"
            )
        library, native, held = self._of("cublas", stream, "cublasCreate_v2")
        scratch = held.scratch.get(stream)
        if scratch is None:
            scratch = held.scratch[stream] = self._scratch(stream)
        handle, size = ctypes.c_void_p(held.handle), ctypes.c_size_t(CUBLAS_WORKSPACE)
        call_library(self._runtime, library, "cublasSetStream_v2", handle, native)  # drops the workspace
        address = ctypes.c_void_p(scratch.address)
        call_library(self._runtime, library, "cublasSetWorkspace_v2", handle, address, size)
        return held.handle

    def cudnn(self, stream: Stream | None) -> int:
        """The thread's cudnnHandle_t, bound to the stream; with none as it was, for questions that queue nothing."""
        library, native, held = self._of("cudnn", stream, "cudnnCreate")
        if native is not None:
            call_library(self._runtime, library, "cudnnSetStream", ctypes.c_void_p(held.handle), native)
        return held.handle

    def spare_cudnn(self) -> _Held:
        """A cudnnHandle_t that is the caller's as long as it keeps this, beside the thread's; bound to nothing."""
        self._runtime.check()
        library = load_library("cudnn")
        return self._take("cudnn", lambda: create_handle(self._runtime, library, "cudnnCreate"))

    def curand(self, context: Any, stream: Stream) -> int:
        """The thread's curandGenerator_t for a context, seeded by the context's seed, bound to the stream."""
        self._runtime.check()
        library, native = load_library("curand"), ctypes.c_void_p(int(stream.native))  # type: ignore[call-overload]
        held = self._here.generators.get(context)
        if held is None:
            held = self._take("curand", lambda: create_handle(self._runtime, library, "curandCreateGenerator", _PHILOX))
            self._seed(library, held.handle, context)
            self._here.generators[context] = held
        call_library(self._runtime, library, "curandSetStream", ctypes.c_void_p(held.handle), native)
        return held.handle

    def _seed(self, library: NativeLibrary, generator: int, context: Any) -> None:
        """Give each thread's generator of a context a seed of its own, by the order in which they are made."""
        number = self._here.numbers.get(context)
        if number is None:  # else it was given when the library failed, and a second try draws the same numbers
            with self._lock:
                number = self._numbers[context] = self._numbers.get(context, -1) + 1
            self._here.numbers[context] = number
        [seed] = np.random.SeedSequence(context.spec.seed, spawn_key=(number,)).generate_state(1, np.uint64).tolist()
        handle = ctypes.c_void_p(generator)
        call_library(self._runtime, library, "curandSetPseudoRandomGeneratorSeed", handle, ctypes.c_ulonglong(seed))
        call_library(self._runtime, library, "curandSetGeneratorOffset", handle, ctypes.c_ulonglong(0))

    def _of(self, name: str, stream: Stream | None, create: str) -> tuple[NativeLibrary, ctypes.c_void_p | None, _Held]:
        """The library, the stream's native queue and the thread's handle, made if need be."""
        self._runtime.check()
        library = load_library(name)
        native = None if stream is None else ctypes.c_void_p(int(stream.native))  # type: ignore[call-overload]
        held = self._here.held.get(name)
        if held is None:
            held = self._take(name, lambda: create_handle(self._runtime, library, create))
            self._here.held[name] = held
        return library, native, held

    def _take(self, name: str, make: Callable[[], int]) -> _Held:
        free = self._free[name]
        try:
            handle = free.pop()
        except IndexError:  # no thread has left one
            handle = make()
        return _Held(handle, free)

    def _scratch(self, stream: Stream) -> Buffer:
        """Scratch memory in the order of the stream; counted for the device, as other contexts' calls use it too."""
        runtime, lane = self._runtime, stream.lane
        assert lane is not None, "streams of devices with queues have one"
        pool = pool_of(runtime, "caching").pool
        return make_buffer(pool.take(CUBLAS_WORKSPACE, lane, runtime.account, "workspace of cublas"))


_all: weakref.WeakKeyDictionary[DeviceRuntime, DeviceHandles] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _after_fork() -> None:
    global _all, _lock
    # The parent's handles are no handles here, and its finalisers would call nothing: both are only dropped.
    _all, _lock = weakref.WeakKeyDictionary(), threading.Lock()


after_fork(_after_fork)


def handles_of(runtime: DeviceRuntime) -> DeviceHandles:
    """The handles of a device, one collection per process and device."""
    with _lock:
        found = _all.get(runtime)
        if found is None:
            found = _all[runtime] = DeviceHandles(runtime)
        return found
