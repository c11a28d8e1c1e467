"""ONNX Runtime under a context: sessions that take threads, memory settings and placement from it.

A session is made once and run many times, from any thread, directly or as a task::

    from tazza.adapters import onnxruntime

    with tz.open("cpu", memory_limit="1GiB") as ctx:
        model = onnxruntime.session(ctx, "model.onnx")
        outputs = model.run({"input": image})                       # now, in this thread
        task = ctx.launch(model.run, {"input": image}, stream=ctx.new_stream())
        outputs = task.result(timeout=10)                           # or: await task

What comes from the context:

| setting | from |
|---|---|
| threads inside an operation | ``tz.limit_threads`` in force, else the device's processors and the group's CPU quota |
| processors of those threads | the device, where it is a part of the machine (``cpu:0[2-3]``) |
| threads across operations | one: operations run in order, and parallel work is what streams are for |
| spinning of idle threads | off: the processors belong to the context's other tasks too |
| deterministic computation | ``ctx.spec.deterministic`` |
| memory of outputs | the context's pool, charged to what is current: budgets and limits bind it |
| memory of weights | ONNX Runtime's own; the size of the model is charged while the session is open |

Intermediate results are in ONNX Runtime's own memory, which has no statistics that Python can read: the account shows
them as *other of this process*. A program that knows how much a run takes says so: ``ctx.memory.charge(nbytes)``.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any, Final, Literal, cast, final

import numpy as np

from tazza.core.adapter import Adapter
from tazza.core.charge import Charge
from tazza.core.context import Context
from tazza.errors import (
    ArgumentError,
    BackendError,
    BackendUnavailableError,
    ClosedError,
    OutOfMemoryError,
    UnsupportedError,
)
from tazza.util.threads import thread_limit

__all__ = ["Arena", "OnnxruntimeAdapter", "Port", "Session", "session"]

Arena = Literal["none", "shrink", "keep"]

_BACKEND: Final = "onnxruntime"
_NO_MEMORY: Final = ("Failed to allocate memory", "bad allocation", "bad_alloc", "Available memory of")
_NUMERIC: Final = "biufc"


@final
class OnnxruntimeAdapter(Adapter):
    """What tazza knows of ONNX Runtime: which of its errors mean that there was no memory.

    >>> import types
    >>> OnnxruntimeAdapter(types.ModuleType("onnxruntime")).is_out_of_memory(ValueError("wrong shape"))
    False
    """

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Its errors have no class for this; the message of its allocators tells."""
        return type(error).__module__.startswith(_BACKEND) and any(words in str(error) for words in _NO_MEMORY)


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a model.

    Attributes:
        name: as the model calls it.
        dtype: a NumPy dtype's name, or ONNX's own type where it is no array of numbers.
        shape: extents; None or a text stands for any.

    >>> Port("image", "float32", ("batch", 1, 8, 8)).fits((5, 1, 8, 8))
    True
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether an array's shape can be this one's."""
        return len(shape) == len(self.shape) and all(
            not isinstance(wanted, int) or wanted == extent for wanted, extent in zip(self.shape, shape, strict=True)
        )


def session(
    ctx: Context,
    model: str | os.PathLike[str] | bytes,
    *,
    arena: Arena = "none",
    config: Mapping[str, str] | None = None,
) -> Session:
    """Load a model for a context.

    Args:
        ctx: whose threads, memory and settings are used; held by the session.
        model: path of an ONNX file, or its bytes.
        arena: what ONNX Runtime does with the memory of intermediate results. ``"none"`` gives it back at once, so that
            a process stays flat; ``"shrink"`` keeps it in an arena during a run and gives it back after; ``"keep"``
            holds on to the most that any run needed, which is its own default.
        config: entries of its session configuration, set last: ``{"session.intra_op.allow_spinning": "1"}``.

    Raises:
        BackendUnavailableError: onnxruntime cannot be imported.
        UnsupportedError: the context's device does not run functions of the host.
        ArgumentError: another value of `arena`.
        OutOfMemoryError: there is no room for the model within the limits.
        BackendError: the model cannot be loaded; says why.
    """
    if not ctx.device.capabilities.host_functions:
        raise UnsupportedError(f"{ctx.device} runs no functions of the host; make the session on a CPU context")
    if arena not in ("none", "shrink", "keep"):
        raise ArgumentError.of("arena", arena, "'none', 'shrink' or 'keep'")
    runtime = _import_runtime()
    threads = _threads(ctx)
    options = _options(runtime, ctx, threads, arena, config or {})
    source = model if isinstance(model, bytes) else os.fspath(model)
    charge = ctx.memory.charge(_size(source), label="a model's weights", library=_BACKEND)
    try:
        made = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _failures(runtime) as error:
        charge.close()
        raise _error(error, "load", f"the model cannot be loaded: {error}") from error
    return Session(ctx, made, charge, threads=threads, shrink=arena == "shrink")


@final
class Session:
    """A loaded model on a context; made by `session`. May be run by several threads and tasks at once.

    Attributes:
        inputs, outputs: the model's, by name, in its order.
        threads: how many work on one run, the caller's among them.
    """

    def __init__(self, ctx: Context, native: Any, charge: Charge, *, threads: int, shrink: bool) -> None:
        self._context, self._native, self._charge, self._shrink = ctx, native, charge, shrink
        self.threads: Final = threads
        self.inputs: Final = {port.name: port for port in map(_port, native.get_inputs())}
        self.outputs: Final = {port.name: port for port in map(_port, native.get_outputs())}

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute the model's outputs; over when it returns. Inside a launched function it is part of that task.

        Args:
            inputs: for each of the model's inputs an array of the context's library, a NumPy array, a Buffer, or
                numbers in lists. Arrays must have the model's dtype, as ONNX Runtime converts nothing.
            outputs: names of those that are wanted; None is all of them.

        Returns:
            The outputs by name, in the order asked for or else the model's: arrays of the context's library in its
            pooled memory. What is no array of numbers (texts, sequences, maps) comes as ONNX Runtime gives it.

        Raises:
            ArgumentError: inputs are missing, unknown, or of another dtype or shape than the model's; an output that it
                has not.
            UsageError: eager work is not possible here (a worker stream is current): give ``run`` to ``ctx.launch``.
            OutOfMemoryError: no memory for the outputs within the limits, or ONNX Runtime had none for the run.
            BackendError: the run failed; says why.
            ClosedError: the session or its context is closed.
        """
        native, ctx = self._native, self._context
        if native is None or ctx.is_closed:
            raise ClosedError("this session or its context is closed; make another with session(ctx, model)")
        ctx.arrays.check_eager()
        fed, wanted = self._fed(inputs), self._wanted(outputs)
        runtime = _import_runtime()
        options = runtime.RunOptions()
        if self._shrink:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            results = native.run(wanted, fed, options)
        except _failures(runtime) as error:
            raise _error(error, "run", str(error)) from error
        return {name: self._kept(result) for name, result in zip(wanted, results, strict=True)}

    def close(self) -> None:
        """Let go of the model once runs that are under way are over; idempotent."""
        self._native = None
        self._charge.close()

    @property
    def context(self) -> Context:
        """The context that the session was made for."""
        return self._context

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._native is None else f"{self.threads} threads"
        return f"<Session {list(self.inputs)} -> {list(self.outputs)} on {self._context.device}, {state}>"

    def _fed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(inputs, Mapping):
            raise ArgumentError.of("inputs", inputs, "a mapping from the names of the model's inputs to arrays")
        if set(inputs) != set(self.inputs):
            raise ArgumentError.of("inputs", sorted(inputs), f"exactly {', '.join(self.inputs)}")
        return {name: self._input(port, inputs[name]) for name, port in self.inputs.items()}

    def _wanted(self, outputs: Sequence[str] | None) -> list[str]:
        if outputs is None:
            return list(self.outputs)
        if isinstance(outputs, str) or not all(name in self.outputs for name in outputs) or not outputs:
            raise ArgumentError.of("outputs", outputs, f"names among {', '.join(self.outputs)}, or None for all")
        return list(outputs)

    def _input(self, port: Port, value: Any) -> Any:
        if not hasattr(value, "dtype") and port.dtype in np.sctypeDict:
            try:
                value = np.asarray(value, port.dtype)
            except (TypeError, ValueError) as error:
                raise ArgumentError(f"inputs[{port.name!r}]: this is no {port.dtype}: {error}") from None
        array = np.asarray(self._context.to_numpy(value), order="C")
        if array.dtype.kind in _NUMERIC and array.dtype != np.sctypeDict.get(port.dtype):
            raise ArgumentError.of(f"inputs[{port.name!r}]", array.dtype.name, port.dtype)
        if not port.fits(array.shape):
            raise ArgumentError.of(f"inputs[{port.name!r}]", array.shape, f"shape {port.shape}")
        return array

    def _kept(self, result: Any) -> Any:
        # Copied: an output in ONNX Runtime's memory would be on nobody's account, and keep its arena from shrinking.
        if isinstance(result, np.ndarray) and result.dtype.kind in _NUMERIC:
            return self._context.asarray(result, copy=True)
        return result


def _size(model: str | bytes) -> int:
    """Bytes of a model; 0 for a file that is not there, which loading it will say. External data is not counted."""
    if isinstance(model, bytes):
        return len(model)
    return os.path.getsize(model) if os.path.isfile(model) else 0


def _threads(ctx: Context) -> int:
    """How many threads one run may use."""
    cores = len(ctx.device.cores) or os.cpu_count() or 1
    quota = ctx.device.info.extra.get("cpu_quota")
    if isinstance(quota, int | float):
        cores = min(cores, max(1, math.ceil(quota)))
    limit = thread_limit()
    return cores if limit is None else min(cores, limit)


def _options(runtime: ModuleType, ctx: Context, threads: int, arena: str, config: Mapping[str, str]) -> Any:
    options: Any = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = arena != "none"
    options.use_deterministic_compute = ctx.spec.deterministic
    options.log_severity_level = 4  # errors are raised, and would be printed besides
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads > 1 and ctx.device.info.part:
        # Processors count from 1 there; one entry for each thread but the caller's.
        processors = ",".join(str(core + 1) for core in ctx.device.cores)
        options.add_session_config_entry("session.intra_op_thread_affinities", ";".join([processors] * (threads - 1)))
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def _port(described: Any) -> Port:
    """Read one input or output as ONNX Runtime describes it: ``tensor(float)``, ``[None, 'n', 3]``."""
    inner = str(described.type).removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(inner, inner)
    return Port(str(described.name), dtype, tuple(described.shape))


def _import_runtime() -> ModuleType:
    loaded = sys.modules.get(_BACKEND)
    if loaded is not None:
        return loaded
    try:
        import onnxruntime
    except (ImportError, OSError) as error:  # OSError: its library does not load
        raise BackendUnavailableError(
            _BACKEND, f"{type(error).__name__}: {error}", "pip install onnxruntime"
        ) from error
    return cast(ModuleType, onnxruntime)


def _failures(runtime: Any) -> tuple[type[Exception], ...]:
    """Its exceptions have no common base; its Python layer raises built-in ones besides."""
    own = vars(runtime.capi.onnxruntime_pybind11_state).values()
    kinds = [kind for kind in own if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*kinds, RuntimeError, ValueError, MemoryError)


def _error(error: Exception, call: str, message: str) -> BackendError:
    symbol = type(error).__name__
    if any(words in str(error) for words in _NO_MEMORY) or isinstance(error, MemoryError):
        return OutOfMemoryError(message, backend=_BACKEND, call=call, symbol=symbol)
    return BackendError(message, backend=_BACKEND, call=call, symbol=symbol)
