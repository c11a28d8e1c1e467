"""Kernels in a device's own language: programs that are loaded once, and launches of their kernels."""

from __future__ import annotations

import hashlib
import math
import struct
import threading
import weakref
from typing import Any, NamedTuple, final

import numpy as np

from tazza.core.event import Event
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import Stream, making
from tazza.core.submission import Submission
from tazza.errors import ArgumentError, BackendError, CleanupWarning, UnsupportedError, UsageError, WrongDeviceError
from tazza.hot import Buffer, generation, point, top
from tazza.hot.hooks import Operation, emit
from tazza.spi import Handle, KernelInfo
from tazza.util.report import report

__all__ = ["CompiledKernel", "compiled"]

_FLOATS = {2: "<e", 4: "<f", 8: "<d"}
_INTEGERS = (1, 2, 4, 8)
_TOO_MANY = 2**31
_NUMBERS = "biufcV"  # kinds of NumPy's scalars that are bytes of their own


class _Shape(NamedTuple):
    """Blocks in the grid, threads in a block, bytes of shared memory that each block gets beside its own."""

    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


@final
class _Loaded:
    """A program on a device until it is unloaded, which its finaliser leaves to the device's next call."""

    def __init__(self, runtime: DeviceRuntime, handle: Handle) -> None:
        self._runtime, self._handle, self._generation = runtime, handle, generation()
        self._uses: weakref.WeakKeyDictionary[Runner, int] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def used_on(self, runner: Runner) -> None:
        """What was submitted to the stream so far runs its kernels."""
        with self._lock:
            self._uses[runner] = runner.submitted

    @property
    def pending(self) -> tuple[()]:
        """Nothing: a program holds no memory that is worth a wait."""
        return ()

    def end(self) -> bool:
        """Unload it if no stream runs its kernels any more; tell whether that is so. Never waits."""
        if self._generation != generation():
            return True
        runtime = self._runtime
        try:
            if not all(runner.reached(number) for runner, number in list(self._uses.items())):
                return False
            runtime.driver.program_unload(runtime.info, self._handle)
        except BackendError as error:
            # A lost device runs nothing, and has nothing to unload. Else the program stays loaded: a leak, no danger.
            if runtime.lost() is None:
                report(f"a program of compiled kernels stays loaded on {runtime.name}: {error}", CleanupWarning)
        return True


@final
class Program:
    """A loaded program; dropped, it is unloaded once nothing runs its kernels. Internal: kernels hold it."""

    __slots__ = ("__weakref__", "handle", "loaded", "runtime")

    def __init__(self, runtime: DeviceRuntime, handle: Handle) -> None:
        self.runtime, self.handle = runtime, handle
        self.loaded = _Loaded(runtime, handle)

    def __del__(self) -> None:
        self.runtime.loans.append(self.loaded)


def compiled(runtime: DeviceRuntime, code: object, name: str) -> CompiledKernel:
    """Compile and load what the device has not loaded yet, and find a kernel in it; see `Context.compile`."""
    if not runtime.capabilities.kernel_language:
        raise UnsupportedError(
            f"{runtime.name} compiles no kernels; launch a Python function there, ctx.launch(fn, ...), or compile on "
            "a device that has a kernel language, such as cuda:0"
        )
    if not isinstance(name, str) or not name:
        raise ArgumentError.of("name", name, "the name of a kernel")
    program = _program(runtime, runtime.driver.program_code(runtime.info, code))
    return CompiledKernel(program, name, runtime.driver.kernel_find(runtime.info, program.handle, name))


def _program(runtime: DeviceRuntime, code: str | bytes) -> Program:
    kind, data = ("text", code.encode()) if isinstance(code, str) else ("image", code)
    key = f"{kind} {hashlib.sha256(data).hexdigest()}"
    found: Program | None = runtime.programs.get(key)
    if found is None:
        # Without a lock, as compilers take their time: of two threads that make the same, one is used by both.
        made = Program(runtime, runtime.driver.program_load(runtime.info, code))
        found = runtime.programs.setdefault(key, made)
    return found


@final
class CompiledKernel:
    """A kernel in the device's own language, made by `Context.compile`; outlives the context, not a lost device.

    ``kernel[grid, block]``, and ``kernel[grid, block, shared_bytes]``, is a function for ``ctx.launch``. Called in a
    function that is launched already it enqueues one launch on the current stream. Grid and block are an integer or up
    to three. It takes

    - Buffers of the device, whose address it gets, and which count as used by the stream;
    - Python's int, bool and float, made as wide as the parameter; the device does not tell integers from floats, so
      that a float parameter wants ``2.0``, not ``2``;
    - NumPy scalars as they are, which have to be as wide as the parameter.

    Attributes:
        name: of the kernel.
        parameters: bytes of each parameter, in order.
        most_threads: in one block.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     try:
    ...         ctx.compile('extern "C" __global__ void scale(float *x) {}', "scale")
    ...     except tz.errors.UnsupportedError as error:
    ...         "launch a Python function" in str(error)
    True
    """

    __slots__ = ("_program", "handle", "most_threads", "name", "parameters")

    def __init__(self, program: Program, name: str, info: KernelInfo) -> None:
        self._program, self.name = program, name
        self.handle, self.parameters, self.most_threads = info

    def __getitem__(self, shape: object) -> _Shaped:
        if not isinstance(shape, tuple) or len(shape) not in (2, 3):
            raise ArgumentError.of("shape", shape, "kernel[grid, block] or kernel[grid, block, shared_bytes]")
        grid, block = _extents("grid", shape[0]), _extents("block", shape[1])
        if math.prod(block) > self.most_threads:
            raise ArgumentError.of("block", shape[1], f"at most the {self.most_threads} threads of {self.name}")
        shared = shape[2] if len(shape) == 3 else 0
        if isinstance(shared, bool) or not isinstance(shared, int) or not 0 <= shared < _TOO_MANY:
            raise ArgumentError.of("shared_bytes", shared, "a number of bytes, of what a block can have")
        return _Shaped(self, _Shape(grid, block, shared))

    @property
    def device(self) -> Any:
        """The device that it was compiled for."""
        return self._program.runtime.device

    def __repr__(self) -> str:
        return f"<CompiledKernel {self.name} on {self._program.runtime.name}, {len(self.parameters)} parameter(s)>"

    def enqueue(self, shape: _Shape, args: tuple[Any, ...]) -> None:
        """Put one launch into the current stream of the task that calls. Internal."""
        stream = self._stream()
        packed = self._packed(args)
        buffers = [value for value in args if isinstance(value, Buffer)]
        if point.listeners is not None:
            emit(
                Operation("kernel", stream=stream, label=self.name, reads=(*buffers,), writes=(*buffers,), subject=self)
            )
        needs: list[Event] = []
        for buffer in buffers:
            needs += making(buffer, stream)
        stream.submit(_Launch(stream, self, shape, packed, tuple(needs)))
        self._program.loaded.used_on(stream.runner)
        for buffer in buffers:
            buffer.used_on(stream)

    def _stream(self) -> Stream:
        """The current stream of the running task."""
        frame, runtime = top(), self._program.runtime
        context: Any = None if frame is None else frame.context
        if context is None or not context.inside_task:
            raise UsageError(
                f"the kernel {self.name!r} runs in a launched function: ctx.launch({self.name}[grid, block], ...)"
            )
        stream: Stream = context.stream
        if stream.runtime is not runtime:
            raise WrongDeviceError(
                f"the kernel {self.name!r} was compiled for {runtime.name} and {context!r} is current; compile it "
                f"there: ctx.compile(...) of a context on {context.device}"
            )
        return stream

    def _packed(self, args: tuple[Any, ...]) -> tuple[bytes, ...]:
        if len(args) != len(self.parameters):
            raise ArgumentError(f"args: the kernel {self.name!r} takes {len(self.parameters)}, got {len(args)}")
        return tuple(map(self._bytes_of, range(len(args)), args, self.parameters))

    def _bytes_of(self, number: int, value: Any, size: int) -> bytes:
        """An argument as the bytes of its parameter."""
        if isinstance(value, Buffer):
            value._check()
            if value.device.memory_domain != self._program.runtime.info.memory_domain:
                raise WrongDeviceError(
                    f"{self._argument(number)} is memory of {value.device}; move it here with ctx.asarray(x)"
                )
            if size == 8:
                return value.address.to_bytes(8, "little")
            expected = f"a value of {size} bytes, as the parameter has; a pointer has 8"
        elif isinstance(value, np.generic) and value.dtype.kind in _NUMBERS:
            if value.nbytes == size:
                return value.tobytes()
            expected = f"a value of {size} bytes, as the parameter has, not {value.nbytes}"
        else:
            packed = _plain(value, size)
            if packed is not None:
                return packed
            expected = f"a Buffer, or a Python number or NumPy scalar that fits the {size} bytes of the parameter"
        raise ArgumentError.of(self._argument(number), value, expected)

    def _argument(self, number: int) -> str:
        return f"args[{number}] of {self.name}"


@final
class _Shaped:
    """A kernel with the shape of its launches: a function that enqueues one."""

    __slots__ = ("__name__", "__qualname__", "_kernel", "_shape")

    def __init__(self, kernel: CompiledKernel, shape: _Shape) -> None:
        self._kernel, self._shape = kernel, shape
        self.__name__ = self.__qualname__ = kernel.name  # what the task is called

    def __call__(self, *args: Any) -> None:
        """Enqueue one launch on the current stream of the running task."""
        self._kernel.enqueue(self._shape, args)

    def __repr__(self) -> str:
        return f"{self._kernel!r}[{self._shape.grid}, {self._shape.block}, {self._shape.shared_bytes}]"


@final
class _Launch(Submission):
    """One launch by the device's queue."""

    __slots__ = ("_arguments", "_kernel", "_shape")

    def __init__(
        self, stream: Stream, kernel: CompiledKernel, shape: _Shape, args: tuple[bytes, ...], needs: tuple[Any, ...]
    ) -> None:
        super().__init__(stream, kernel.name, needs=needs)
        self._kernel, self._shape, self._arguments = kernel, shape, args

    @property
    def kept(self) -> tuple[object, ...]:
        return (self._kernel,)

    def run(self) -> None:
        self.hand_over(None)

    def hand_over(self, queue: Handle | None) -> None:
        for need in self.needs:
            need.raise_outcome()  # what never arrived is not passed on
        runtime = self.stream.runtime
        runtime.driver.kernel_launch(runtime.info, queue, self._kernel.handle, *self._shape, self._arguments)


def _extents(argument: str, value: object) -> tuple[int, int, int]:
    given = value if isinstance(value, tuple) else (value,)
    fits = all(
        isinstance(one, (int, np.integer)) and not isinstance(one, bool) and 0 < one < _TOO_MANY for one in given
    )
    if not fits or not 1 <= len(given) <= 3:
        raise ArgumentError.of(argument, value, "a positive integer below 2**31, or a tuple of up to three")
    first, second, third = (*map(int, given), 1, 1)[:3]
    return first, second, third


def _plain(value: Any, size: int) -> bytes | None:
    """A Python number as the bytes of a parameter, or None where it is none or does not fit."""
    try:
        if isinstance(value, int) and size in _INTEGERS:
            return value.to_bytes(size, "little", signed=value < 0)
        if isinstance(value, float) and size in _FLOATS:
            return struct.pack(_FLOATS[size], value)
    except OverflowError:  # too large for the parameter
        return None
    return None
