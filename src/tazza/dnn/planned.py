"""`Dnn` through a library's plans: what ``ctx.dnn`` is."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import array_api_compat.numpy as xp
import numpy as np

from tazza.core.context import Context
from tazza.core.generator import Generator
from tazza.dnn.autograd_torch import tracked
from tazza.dnn.checks import check_dropout
from tazza.dnn.fronts import changed, smaller
from tazza.dnn.interface import Array
from tazza.dnn.library import Algorithm, Choice, Layout, Library, Operation, Plan
from tazza.dnn.operations import OPERATIONS, Output
from tazza.dnn.planned_layers import PlannedLayers
from tazza.dnn.plans import CacheInfo, PlanCache
from tazza.dnn.reference_layers import kept_from
from tazza.dnn.reference_library import ReferenceLibrary
from tazza.dnn.state import DnnState, DnnStates, states_of
from tazza.dnn.weights import TensorWeights, Weights
from tazza.dnn.workspace import Lease
from tazza.errors import ArgumentError, ClosedError, OutOfMemoryError, UnsupportedError
from tazza.hot._primitives import call_key
from tazza.util.log import info
from tazza.util.threads import thread_limit

__all__ = ["PlannedDnn"]

_CHANNELS_LAST = (0, 2, 3, 1)
_reference = ReferenceLibrary()


class _Kind(NamedTuple):
    """An operation as calls need it: how its keys begin, the names of its inputs, and which of them is the weights."""

    key: bytes
    names: tuple[str, ...]
    weights: int | None


class _Call(NamedTuple):
    """A plan with what has to be made around it."""

    plan: Plan
    states: DnnStates
    outputs: tuple[tuple[tuple[int, ...], Any, bool] | None, ...]  # shape, dtype, channels last


@final
class PlannedDnn(PlannedLayers):
    """The operations of `Dnn` on a context's arrays, done by a library in one of the device's states.

    Results are fresh arrays of the context's library, in memory of its pool, with the order of axes in memory that the
    first input has. On the CPU, and inside launched functions, a call is over when it returns.

    Args:
        ctx: the context.
        library: does the work.
        choice: how plans are chosen.
        fallback: operations that the library lacks are done by the reference, with one line in the log
            ``tazza.dnn`` for each; else they raise.
        state: index of the state to use; None takes an idle one.

    Attributes:
        name: the library's.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     x, w = ctx.xp.ones((1, 1, 4, 4), dtype="float32"), ctx.xp.ones((2, 1, 3, 3), dtype="float32")
    ...     ctx.dnn.conv2d(x, w, padding=1, activation="relu")[0, 0, 0]
    array([4., 6., 6., 4.], dtype=float32)
    """

    def __init__(
        self,
        ctx: Context,
        library: Library,
        choice: Choice = Choice(),  # noqa: B008  a frozen value
        *,
        fallback: bool = False,
        state: int | None = None,
    ) -> None:
        self._context = weakref.ref(ctx)
        self.library, self.name = library, library.name
        self._choice, self._fallback, self._index = choice, fallback, state
        chosen = repr((choice.algorithm, choice.max_workspace, choice.seconds, fallback))
        self._kinds = {
            name: _Kind(
                f"{name} {chosen}".encode(), kind.inputs, kind.inputs.index("w") if "w" in kind.inputs else None
            )
            for name, kind in OPERATIONS.items()
        }
        runtime = ctx.own_stream.runtime
        self._states = states_of(runtime, library)
        self._cache: PlanCache[_Call] = self._states.plans
        self._cores = max(1, len(ctx.device.cores))
        self._tensors = TensorWeights() if ctx.arrays.name == "torch" else None

    def configured(
        self,
        *,
        algorithm: Algorithm | None = None,
        max_workspace: int | str | None = None,
        seconds: float | None = None,
        fallback: bool | None = None,
        state: int | None = None,
    ) -> PlannedDnn:
        """Return the same operations, chosen and done in another way; what is None stays as it is.

        Args:
            algorithm: ``"heuristic"``, the library's own choice; ``"measure"``, which times candidates on made-up
                data when an operation is new; ``"deterministic"``, only what gives equal bits on every run.
            max_workspace: bytes of scratch memory that a call may need.
            seconds: how long measuring one operation may take.
            fallback: let the reference do what the library lacks.
            state: index of the library state to use.

        Raises:
            ArgumentError: a value is none of these.
        """
        ctx, choice = self._ctx(), changed(self._choice, algorithm, max_workspace, seconds)
        if state is not None:
            self._states.at(state)
        return PlannedDnn(
            ctx,
            self.library,
            choice,
            fallback=self._fallback if fallback is None else bool(fallback),
            state=self._index if state is None else state,
        )

    def plan(self, name: str, *inputs: Array | None, want_first: bool = True, **options: Any) -> Plan:
        """Return the plan that a call with these arguments uses, made if need be; nothing is computed.

        Args:
            name: of the operation, as in `tazza.dnn.operations`.
            inputs: in that table's order.
            want_first: whether an optional first output (``dx``) is wanted.
            options: in that table's names, all of them.
        """
        kind = OPERATIONS.get(name)
        if kind is None:
            raise ArgumentError.of("name", name, f"one of {', '.join(OPERATIONS)}")
        if set(options) != set(kind.options) or len(inputs) != len(kind.inputs):
            raise ArgumentError(f"{name} takes {', '.join(kind.inputs)} and the options {', '.join(kind.options)}")
        ctx = self._ctx()
        arrays, _ = self._inputs(ctx, ctx.stream, self._kinds[name], inputs)
        return self._call(name, arrays, tuple(options[one] for one in kind.options), want_first).plan

    def weights(self, w: Array) -> Weights:
        """Return weights that `conv2d`, `linear` and their gradients take in place of `w`, packed once for many calls.

        PyTorch's tensors need it less: they count their changes, and are packed when they come unchanged a third time.
        Changes that PyTorch does not count (through ``w.data``, ``w.numpy()`` or below ``torch.from_numpy``) are not
        seen: there use this and `Weights.changed`, or write in ``torch.no_grad()``.

        Args:
            w: the array; after a change in place call ``changed()`` of what this returns.
        """
        ctx = self._ctx()
        self._plain(ctx, w, "w")
        return Weights(ctx, w)

    def plans(self) -> CacheInfo:
        """How the cache of plans did, for all contexts of the device."""
        return self._cache.info()

    # Operations ----------------------------------------------------------------------------------------------------

    def dropout(self, x: Array, rate: float, random: Generator) -> tuple[Array, Array]:
        ctx = self._ctx()
        plain = self._plain(ctx, x, "x")
        rate = check_dropout(xp, plain, rate, random)  # before a draw, which a wrong call must not use up
        draws = self._plain(ctx, random.random(plain.size, dtype="float32"), "draws")
        mask, kept = ctx.arrays.empty_with_view(plain.shape, np.dtype(bool))
        np.greater_equal(draws.reshape(plain.shape), kept_from(rate), out=kept)
        return self._do("dropout", (x, mask), (rate,))[0], mask

    # One call ------------------------------------------------------------------------------------------------------

    def _do(
        self, name: str, inputs: Sequence[Array | None], options: tuple[Any, ...], want_first: bool = True
    ) -> list[Array]:
        # While the library computes, the processor's caches forget this code: a line then takes up to a microsecond.
        ctx = self._ctx()
        library, stream, kind = ctx.arrays, ctx.stream, self._kinds[name]
        if library.tracks(inputs):
            return tracked(self._do, name, inputs, options)
        arrays, weights = self._inputs(ctx, stream, kind, inputs)
        call = self._call(name, arrays, options, want_first, weights is not None)
        results: list[Array] = []
        for output in call.outputs:
            made = plain = None
            if output is not None:
                shape, dtype, last = output
                made, plain = _make_last(library, shape, dtype) if last else library.empty_with_view(shape, dtype)
            results.append(made)
            arrays.append(plain)
        with call.states.entered(stream, self._index) as state:
            self._run(ctx, state, call, arrays, weights)
        return results

    def _run(self, ctx: Context, state: DnnState, call: _Call, arrays: list[Any], weights: Weights | None) -> None:
        plan = call.plan
        lease: Lease | None = None
        if plan.workspace_bytes:
            try:
                lease = state.workspace.get(plan.workspace_bytes)
            except OutOfMemoryError as error:
                plan, lease = smaller(self._states, self.library, self._choice, state, plan, error)
        try:
            if weights is not None:
                for number in plan.operation.packed:
                    arrays[number] = weights.packed(ctx, plan, number, arrays[number], state, lease)
            plan.execute(state, arrays, lease)
        finally:
            if lease is not None:
                lease.release()

    def _call(
        self,
        name: str,
        arrays: list[Any],
        options: tuple[Any, ...],
        want_first: bool,
        packed: bool = False,
    ) -> _Call:
        threads = thread_limit() or self._cores
        try:
            key = call_key(self._kinds[name].key, arrays, options, threads << 2 | want_first << 1 | packed)
        except (TypeError, OverflowError):  # such an option is none: the checks say what it should be
            return self._choose(name, arrays, options, want_first, threads, packed)
        call = self._cache.find(key)
        if call is None:
            call = self._cache.get(key, lambda: self._choose(name, arrays, options, want_first, threads, packed))
        return call

    def _choose(
        self,
        name: str,
        arrays: Sequence[Any],
        options: tuple[Any, ...],
        want_first: bool,
        threads: int,
        packed: bool,
    ) -> _Call:
        for argument, array in zip(OPERATIONS[name].inputs, arrays, strict=True):
            if array is not None and any(step % array.itemsize for step in array.strides):
                raise ArgumentError.of(
                    f"{argument}.strides", array.strides, "whole elements; ctx.asarray(x, copy=True) makes such"
                )
        described = OPERATIONS[name].describe(arrays, options, want_first)
        outputs = tuple(
            None if one is None else (one.shape, arrays[one.like].dtype, _is_channels_last(arrays[one.like], one))
            for one in described.outputs
        )
        operation = Operation(
            name,
            tuple(None if one is None else _layout(one.dtype, one.shape, one.strides) for one in arrays),
            tuple(None if one is None else _planned_layout(*one) for one in outputs),
            described.options,
            threads,
        )
        dtype = next(one.dtype for one in operation.inputs if one is not None)
        if self.library.supports(name, dtype=dtype):
            plan = self.library.compile(operation, self._choice)
            if packed and any(plan.packed):
                numbers = tuple(number for number, one in enumerate(plan.packed) if one is not None)
                plan = self.library.compile(operation._replace(packed=numbers), self._choice)
            return _Call(plan, self._states, outputs)
        if not self._fallback or not _reference.supports(name, dtype=dtype):
            raise UnsupportedError(
                f"{self.library.name} {self.library.version} has no {name} for {dtype}; convert the arrays, or allow "
                "the reference with ctx.dnn.configured(fallback=True)"
            )
        info("tazza.dnn", "%s for %s is done by the reference: %s lacks it", name, dtype, self.library.name)
        ctx = self._ctx()
        return _Call(
            _reference.compile(operation, self._choice), states_of(ctx.own_stream.runtime, _reference), outputs
        )

    def _inputs(
        self, ctx: Context, stream: Any, kind: _Kind, inputs: Sequence[Any]
    ) -> tuple[list[Any], Weights | None]:
        """The inputs as NumPy arrays over the same memory, and the weights among them if they may be packed."""
        library = ctx.arrays
        if not stream.runner.is_inline:
            library.check_eager()
        weights: Weights | None = None
        arrays = list(inputs)
        for number, array in enumerate(inputs):
            if array is None or type(array) is np.ndarray:
                continue
            if type(array) is Weights and number == kind.weights:
                array.check_of(ctx)
                weights, array = array, array.array
            elif self._tensors is not None and number == kind.weights:
                weights = self._tensors.of(ctx, array)
            arrays[number] = array if type(array) is np.ndarray else _plain(library, array, kind.names[number])
        return arrays, weights

    def _plain(self, ctx: Context, value: Any, name: str) -> Any:
        [plain], _ = self._inputs(ctx, ctx.stream, _Kind(b"", (name,), None), (value,))
        return plain

    def _ctx(self) -> Any:
        ctx = self._context()
        if ctx is None:
            raise ClosedError("the context of these operations is gone; keep it while they are used")
        return ctx


def _plain(library: Any, value: Any, name: str) -> Any:
    array = library.plain(value)
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise ArgumentError(
            f"{name}: got {type(array).__name__}, expected an array of {library.name}; ctx.asarray makes one"
        )
    return array if type(array) is np.ndarray else array.view(np.ndarray)  # as memmap


def _is_channels_last(array: Any, output: Output) -> bool:
    """Tell whether an output of images should lie in memory as its input does: channels innermost."""
    if array.ndim != 4 or len(output.shape) != 4 or array.flags.c_contiguous:
        return False
    return bool(array.transpose(0, 2, 3, 1).flags.c_contiguous)


def _make_last(library: Any, shape: tuple[int, ...], dtype: Any) -> tuple[Array, Any]:
    """Make an array of images with channels innermost, and its NumPy view."""
    count, channels, height, width = shape
    made, plain = library.empty_with_view((count, height, width, channels), dtype)
    turned = plain.transpose(0, 3, 1, 2)
    return turned if made is plain else made.permute(0, 3, 1, 2), turned


def _layout(dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Layout:
    return Layout(dtype.name, shape, tuple(step // dtype.itemsize for step in strides))


def _planned_layout(shape: tuple[int, ...], dtype: Any, channels_last: bool) -> Layout:
    order = _CHANNELS_LAST if channels_last else range(len(shape))
    strides, step = [0] * len(shape), 1
    for axis in reversed(tuple(order)):
        strides[axis] = step
        step *= max(1, shape[axis])
    return Layout(dtype.name, shape, tuple(strides))
