"""`Dnn` on device memory: what ``ctx.dnn`` is on a CUDA context, whose arrays are Buffers."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, NoReturn, final

import numpy as np

from tazza.core.borrow import borrow
from tazza.core.context import Context
from tazza.core.generator import Generator
from tazza.core.stream import making
from tazza.dnn.fronts import changed, smaller
from tazza.dnn.interface import Array
from tazza.dnn.library import Algorithm, Choice, Layout, Library, Operation, Plan
from tazza.dnn.operations import OPERATIONS
from tazza.dnn.planned_layers import PlannedLayers
from tazza.dnn.plans import CacheInfo
from tazza.dnn.state import DnnState, states_of
from tazza.dnn.workspace import Lease
from tazza.errors import ArgumentError, ClosedError, OutOfMemoryError, UnsupportedError, WrongDeviceError
from tazza.hot import Buffer

__all__ = ["BufferDnn"]


class _Call(NamedTuple):
    """A plan, None where nothing is to be computed, and the shapes and dtypes of what has to be made for it."""

    plan: Plan | None
    outputs: tuple[tuple[tuple[int, ...], str] | None, ...]


@final
class BufferDnn(PlannedLayers):
    """The operations of `Dnn` that a device's library has, on Buffers with a dtype.

    Arrays are Buffers of the device; anything else with DLPack or ``__cuda_array_interface__`` is borrowed for the call
    (`tazza.borrow`), and ordered with its own stream. Results are fresh Buffers of the context, their axes in memory in
    the order of their shape. A call is asynchronous: it only enqueues, in one of the device's library states, in the
    order of the current stream; inside launched functions as outside. Where something that only the host can resolve
    holds up that stream, the call waits for it. Uses of the arrays on other streams are waited
    for as before any other use: by ``stream.wait``.

    Args:
        ctx: the context.
        library: does the work; ``library.supports(name, dtype=...)`` tells what it has.
        choice: how plans are chosen.
        state: index of the state to use; None takes an idle one.

    Attributes:
        name: the library's.

    >>> import tazza as tz
    >>> try:
    ...     ctx = tz.CUDAContext()
    ...     dnn = ctx.dnn
    ... except ImportError as error:  # a BackendUnavailableError: no device, or no cuDNN; says what to install
    ...     assert "install" in str(error) or "cuda" in str(error)
    ... else:
    ...     x, w = ctx.empty((1, 1, 4, 4), "float32"), ctx.empty((2, 1, 3, 3), "float32")
    ...     assert dnn.conv2d(x, w, padding=1).shape == (1, 2, 4, 4)
    ...     ctx.close()
    """

    def __init__(
        self,
        ctx: Context,
        library: Library,
        choice: Choice = Choice(),  # noqa: B008  a frozen value
        *,
        state: int | None = None,
    ) -> None:
        self._context = weakref.ref(ctx)
        self.library, self.name = library, library.name
        self._choice, self._index = choice, state
        self._states = states_of(ctx.own_stream.runtime, library)

    def configured(
        self,
        *,
        algorithm: Algorithm | None = None,
        max_workspace: int | str | None = None,
        seconds: float | None = None,
        state: int | None = None,
    ) -> BufferDnn:
        """Return the same operations, chosen and done in another way; what is None stays as it is.

        Args:
            algorithm: ``"heuristic"``, the library's own choice; ``"measure"``, which times candidates on made-up
                data when an operation is new, for which that call waits; ``"deterministic"``, only what gives equal
                bits on every run. For `linear` and its gradients, ``"measure"`` is ``"heuristic"``.
            max_workspace: bytes of scratch memory that a call may need.
            seconds: how long measuring one operation may take.
            state: index of the library state to use.

        Raises:
            ArgumentError: a value is none of these.
        """
        ctx, choice = self._ctx(), changed(self._choice, algorithm, max_workspace, seconds)
        if state is not None:
            self._states.at(state)
        return BufferDnn(ctx, self.library, choice, state=self._index if state is None else state)

    def plans(self) -> CacheInfo:
        """How the cache of plans did, for all contexts of the device."""
        return self._states.plans.info()

    def dropout(self, x: Array, rate: float, random: Generator) -> tuple[Array, Array]:
        self._refuse("dropout", "float32")

    # One call ------------------------------------------------------------------------------------------------------

    def _do(
        self, name: str, inputs: Sequence[Array | None], options: tuple[Any, ...], want_first: bool = True
    ) -> list[Array]:
        ctx = self._ctx()
        stream = ctx.stream
        with ExitStack() as loans:
            arrays = [
                None if one is None else self._taken(ctx, stream, argument, one, loans)
                for argument, one in zip(OPERATIONS[name].inputs, inputs, strict=True)
            ]
            call = self._call(name, arrays, options, want_first)
            made = [None if one is None else ctx.empty(*one) for one in call.outputs]
            if call.plan is None:
                for one in made:
                    if one is not None:
                        ctx.fill(one, 0)
                return made
            for array in arrays:
                for event in () if array is None else making(array, stream):
                    stream.wait(event)
            with self._states.entered(stream, self._index) as state:
                self._run(state, call.plan, [*arrays, *made])
            mark = stream.mark()
            for one in made:
                if one is not None:
                    one.block.made = mark  # the first use on another stream comes after this
            return made

    def _run(self, state: DnnState, plan: Plan, arrays: list[Any]) -> None:
        lease: Lease | None = None
        if plan.workspace_bytes:
            try:
                lease = state.workspace.get(plan.workspace_bytes)
            except OutOfMemoryError as error:
                plan, lease = smaller(self._states, self.library, self._choice, state, plan, error)
        try:
            plan.execute(state, arrays, lease)
        finally:
            if lease is not None:
                lease.release()

    def _taken(self, ctx: Any, stream: Any, argument: str, value: Any, loans: ExitStack) -> Buffer:
        """An argument as a Buffer of this device."""
        if not isinstance(value, Buffer):
            lends = hasattr(value, "__dlpack__") or hasattr(value, "__cuda_array_interface__")
            if isinstance(value, np.ndarray | np.generic) or not lends:
                wanted = f"a Buffer, or other memory of {ctx.device}; ctx.asarray makes one"
                raise ArgumentError.of(argument, type(value).__name__, wanted)
            value = loans.enter_context(borrow(value, stream=stream))
        elif not ctx.arrays.reaches(value):
            raise WrongDeviceError(f"{argument}: memory of {value.device}, not of {ctx.device}; ctx.asarray copies it")
        taken: Buffer = value
        if taken.dtype is None:
            raise ArgumentError.of(argument, taken, "a Buffer with a dtype, as x.view('float32', shape) is")
        return taken

    def _call(self, name: str, arrays: Sequence[Buffer | None], options: tuple[Any, ...], want_first: bool) -> _Call:
        layouts = tuple(
            None if one is None else _layout(argument, one)
            for argument, one in zip(OPERATIONS[name].inputs, arrays, strict=True)
        )
        # Options by their text: 1 and True are equal, and one of them may be refused.
        key = name, layouts, repr(options), want_first, self._choice
        found: _Call = self._states.plans.get(key, lambda: self._choose(name, layouts, options, want_first))
        return found

    def _choose(
        self, name: str, layouts: tuple[Layout | None, ...], options: tuple[Any, ...], want_first: bool
    ) -> _Call:
        stands = [None if one is None else np.broadcast_to(np.zeros((), one.dtype), one.shape) for one in layouts]
        described = OPERATIONS[name].describe(stands, options, want_first)
        dtype = next(one.dtype for one in layouts if one is not None)
        if not self.library.supports(name, dtype=dtype):
            self._refuse(name, dtype)
        outputs = tuple(
            None if one is None else Layout(_like(layouts, one.like).dtype, one.shape, _packed(one.shape))
            for one in described.outputs
        )
        makes = tuple(None if one is None else (one.shape, one.dtype) for one in outputs)
        empty = [one is None or 0 in one.shape for one in outputs]
        if all(empty) or (name.endswith(".backward") and 0 in _like(layouts, 0).shape):
            return _Call(None, makes)  # sums over nothing
        operation = Operation(name, layouts, outputs, described.options)
        return _Call(self.library.compile(operation, self._choice), makes)

    def _refuse(self, name: str, dtype: str) -> NoReturn:
        has = [one for one in OPERATIONS if self.library.supports(one, dtype=dtype)]
        raise UnsupportedError(
            f"{self.library.name} {self.library.version} has no {name} of {dtype} here"
            + (f", but {', '.join(has)}" if has else "")
            + "; do it by a kernel of your own (ctx.compile), by a library through ctx.bind(), or in the host: "
            "ctx.to_numpy(x) and the dnn of a CPU context"
        )

    def _ctx(self) -> Any:
        ctx = self._context()
        if ctx is None:
            raise ClosedError("the context of these operations is gone; keep it while they are used")
        return ctx


def _layout(argument: str, array: Buffer) -> Layout:
    kind = array.dtype
    assert kind is not None, "looked at before"
    if any(step % kind.itemsize for step in array.strides):
        raise ArgumentError.of(f"{argument}.strides", array.strides, "whole elements; ctx.asarray(x, copy=True)")
    return Layout(kind.name, tuple(array.shape), tuple(step // kind.itemsize for step in array.strides))


def _like(layouts: Sequence[Layout | None], number: int) -> Layout:
    layout = layouts[number]
    assert layout is not None, "the table of operations names inputs that are there"
    return layout


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)
