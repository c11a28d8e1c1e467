"""oneDNN as a `Library`: the operations that it has, and the choice among the ways to do each."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, final

import numpy as np

from tazza.dnn.library import Choice, Layout, Library, Operation, Plan
from tazza.dnn.measuring import fastest, span
from tazza.dnn.onednn import binding, convolution, elementwise, loss, normalisation, pooling, products
from tazza.dnn.onednn.plan import After, NumpyPlan, OnednnPlan, Runner
from tazza.dnn.onednn.recipe import ALIGNMENT, Owned, Program, Recipe, Slot, Strategy, UnavailableError, grouped
from tazza.dnn.reference_library import ReferenceLibrary
from tazza.errors import ForkedError, UnsupportedError
from tazza.hot import generation
from tazza.hot._primitives import PrimitiveSequence

__all__ = ["OnednnLibrary"]

_MOST_SKIPPED: Final = 8
_PLAIN: Final = ("ref", "simple")  # how the names of loops begin that were not made fast
_IN_ORDER: Final = 1  # flags of a stream


class _Way(NamedTuple):
    """How an operation is put together: its strategies, best first, its steps, and what NumPy does after them."""

    strategies: Callable[[Operation], tuple[Strategy, ...]]
    steps: Callable[[Recipe], None]
    after: After | None = None


_WAYS: Final = {
    "conv2d": _Way(convolution.strategies, convolution.conv2d),
    "conv2d.backward": _Way(convolution.strategies, convolution.conv2d_backward),
    "linear": _Way(products.linear_strategies, products.linear),
    "linear.backward": _Way(products.linear_strategies, products.linear_backward),
    "matmul": _Way(products.matmul_strategies, products.matmul),
    "matmul.backward": _Way(products.matmul_strategies, products.matmul_backward),
    "activate": _Way(elementwise.strategies, elementwise.activate),
    "activate.backward": _Way(elementwise.strategies, elementwise.activate_backward),
    "max_pool2d": _Way(pooling.strategies, pooling.max_pool2d),
    "max_pool2d.backward": _Way(pooling.strategies, pooling.max_pool2d_backward),
    "avg_pool2d": _Way(pooling.strategies, pooling.avg_pool2d),
    "avg_pool2d.backward": _Way(pooling.strategies, pooling.avg_pool2d_backward),
    "batch_norm": _Way(normalisation.strategies, normalisation.batch_norm),
    "batch_norm.backward": _Way(normalisation.strategies, normalisation.batch_norm_backward),
    "batch_norm_inference": _Way(normalisation.strategies, normalisation.batch_norm_inference),
    "batch_norm_inference.backward": _Way(normalisation.strategies, normalisation.batch_norm_inference_backward),
    "layer_norm": _Way(normalisation.strategies, normalisation.layer_norm),
    "layer_norm.backward": _Way(normalisation.strategies, normalisation.layer_norm_backward),
    "softmax": _Way(elementwise.strategies, elementwise.softmax),
    "softmax.backward": _Way(elementwise.strategies, elementwise.softmax_backward),
    "softmax_cross_entropy": _Way(loss.strategies, loss.log_softmax, loss.to_loss),
}


def _relu(_: tuple[Any, ...], arrays: Any) -> None:
    np.maximum(arrays[0], np.zeros((), arrays[0].dtype), out=arrays[1])


_IMAGES: Final = Layout("float32", (1, 16, 8, 8), (1024, 64, 8, 1))
_FILTERS: Final = Layout("float32", (16, 16, 1, 1), (16, 1, 1, 1))
_MATRIX: Final = Layout("float32", (16, 16), (16, 1))
_ROW: Final = Layout("float32", (16,), (1,))
_WINDOW: Final = ((1, 1), (0, 0), (1, 1), 1, None)
_SAMPLES: Final = {
    "conv2d": Operation("conv2d", (_IMAGES, _FILTERS, None), (_IMAGES,), _WINDOW),
    "conv2d.backward": Operation(
        "conv2d.backward", (_IMAGES, _IMAGES, _FILTERS, None), (_IMAGES, _FILTERS, _ROW), _WINDOW
    ),
    "linear": Operation("linear", (_MATRIX, _MATRIX, None), (_MATRIX,), (None,)),
    "linear.backward": Operation(
        "linear.backward", (_MATRIX, _MATRIX, _MATRIX, None), (_MATRIX, _MATRIX, _ROW), (None,)
    ),
    "matmul": Operation("matmul", (_MATRIX, _MATRIX, None), (_MATRIX,), (None,)),
}
"""What is asked for to find out about a dtype other than float32."""


@final
class OnednnLibrary(Library):
    """oneDNN 3 on the CPU, from the wheel ``onednn-cpu-gomp``, for float32 (and what else the processor has).

    It executes in the caller and lets other Python threads run meanwhile. Scratch memory is the lease's alone. Threads
    are OpenMP's: each call uses as many as its operation says, and leaves the caller's setting as it was.

    Where this differs from `ReferenceDnn`: sums are made in another order; a fused ReLU, SiLU and GELU give NaN, not 0,
    for minus infinity, and a fused ReLU may lose what is below 3e-39; max-pooling passes over NaN; gradients of
    activations are not zero but NaN where the one from above is infinite or NaN.

    Raises:
        BackendUnavailableError: the wheel is not there, or not for this machine.

    >>> from tazza.errors import BackendUnavailableError
    >>> try:
    ...     supported = OnednnLibrary().supports("conv2d")
    ... except BackendUnavailableError:  # it is optional
    ...     supported = True
    >>> supported
    True
    """

    name = "onednn"
    survives_fork = False

    def __init__(self) -> None:
        self._dnnl = binding.load()
        self.version = self._dnnl.version
        self._engine = self._dnnl.make("dnnl_engine_create", binding.CPU, 0)
        self._graveyard: deque[list[tuple[str, int]]] = deque()
        self._generation = generation()

    def supports(self, feature: str, *, dtype: str = "float32") -> bool:
        if feature not in _WAYS or dtype not in binding.DTYPES:
            return False
        return dtype == "float32" or self._has(feature, dtype)

    def compile(self, operation: Operation, choice: Choice) -> Plan:
        self._check()
        if any(one is not None and 0 in one.shape for one in (*operation.inputs, *operation.outputs)):
            return ReferenceLibrary().compile(operation, choice)  # nothing to compute, at most zeros to write
        if operation.name == "activate" and operation.options == ("relu",):
            return NumpyPlan(operation, "numpy maximum", _relu)  # the library's own turns NaN to 0
        way = _WAYS.get(operation.name)
        if way is None:
            raise UnsupportedError(f"onednn {self.version} has no {operation.name}")
        with self._threads(operation.threads):
            program = self._choose(way, operation, choice)
            packers = {
                number: self._packer(operation, number, program)
                for number, packing in enumerate(program.packed)
                if packing is not None
            }
        return OnednnPlan(operation, self._runner(program, operation.threads), packers, way.after)

    def open(self) -> Any:
        self._check()
        self.was_used = True
        return self._dnnl.make("dnnl_stream_create", self._engine, _IN_ORDER)

    def close(self, handle: Any) -> None:
        self._check()
        self._dnnl.do("dnnl_stream_destroy", handle)

    def _has(self, feature: str, dtype: str) -> bool:
        """Ask for an operation in a short dtype, which depends on the processor; plain loops do not count."""
        operation = _SAMPLES.get(feature)
        if operation is None:
            return False
        self._check()
        short = operation._replace(
            inputs=tuple(one and one._replace(dtype=dtype) for one in operation.inputs),
            outputs=tuple(one and one._replace(dtype=dtype) for one in operation.outputs),
        )
        way = _WAYS[feature]
        found = [self._build(way.steps, short, strategy) for strategy in way.strategies(short)]
        return any(one is not None and not any(name.startswith(_PLAIN) for name in one.names) for one in found)

    # Making plans --------------------------------------------------------------------------------------------------

    def _choose(self, way: _Way, operation: Operation, choice: Choice) -> Program:
        """Pick a program: the first or the fastest that fits, and one of the library's plain loops only at the last.

        Raises:
            UnsupportedError: there is none.
        """
        most, least = choice.max_workspace, None
        slow: Program | None = None
        found: list[Program] = []
        for strategy in _all(way.strategies(operation), further=most is not None):
            program = self._build(way.steps, operation, strategy)
            if program is None:
                continue
            if most is not None and program.workspace_bytes > most:
                least = min(program.workspace_bytes, least or program.workspace_bytes)
            elif any(name.startswith(_PLAIN) for name in program.names):
                slow = slow or program
            elif choice.algorithm == "measure":
                found.append(program)
            else:
                return program
        if found:
            return self._fastest(found, operation, choice.seconds)
        if slow is not None:
            return slow
        if least is None:
            raise UnsupportedError(f"onednn {self.version} has no {operation.name} for {operation.inputs}")
        raise UnsupportedError(
            f"{operation.name} needs at least {least} bytes of workspace with onednn {self.version}, "
            f"and max_workspace is {most}"
        )

    def _build(self, steps: Callable[[Recipe], None], operation: Operation, strategy: Strategy) -> Program | None:
        try:
            recipe = Recipe(self._dnnl, self._engine, operation, strategy, self._graveyard)
            steps(recipe)
        except UnavailableError:
            return None
        return recipe.finish()

    def _packer(self, operation: Operation, number: int, program: Program) -> Runner:
        """What packs an input: the reorder that the program would begin with."""
        given = operation.inputs[number]
        packing, layout = program.packed[number], program.wanted[number]
        assert given is not None
        assert packing is not None
        shape = self._dnnl.shape(layout)
        into = Layout("uint8", (packing.nbytes,), (1,))
        recipe = Recipe(
            self._dnnl,
            self._engine,
            Operation("pack", (given,), (into,), threads=operation.threads),
            Strategy(),
            self._graveyard,
        )
        recipe.copy(recipe.array(0, shape, grouped(recipe.given(0), shape)), Slot(layout, 1))
        return self._runner(recipe.finish(keep=program), operation.threads)

    def _runner(self, program: Program, threads: int) -> Runner:
        def make(program: Program) -> PrimitiveSequence:
            self._check()
            owned = Owned(self._graveyard)
            memories = [
                owned.keep(
                    "dnnl_memory_destroy", self._dnnl.make("dnnl_memory_create", slot.layout, self._engine, None)
                )
                for slot in program.slots
            ]
            return PrimitiveSequence(
                self._dnnl.functions,
                threads,
                [(memory, slot.array, slot.offset) for memory, slot in zip(memories, program.slots, strict=True)],
                [(made, [(name, memories[slot]) for name, slot in arguments]) for made, arguments in program.steps],
                program.expected,
                (owned, program),
            )

        return Runner(program, make)

    def _fastest(self, programs: list[Program], operation: Operation, seconds: float) -> Program:
        """Time each on made-up data and scratch of its own; the shortest time of each counts, as others only add."""
        arrays = [None if one is None else _made_up(one) for one in (*operation.inputs, *operation.outputs)]
        stream = self.open()
        try:
            candidates = []
            for program in programs:
                given = [
                    np.zeros(packing.nbytes, np.uint8) if packing is not None and number in operation.packed else array
                    for number, (array, packing) in enumerate(
                        zip(arrays, [*program.packed, *[None] * len(operation.outputs)], strict=True)
                    )
                ]
                scratch = np.empty(program.workspace_bytes + ALIGNMENT, np.uint8)
                candidates.append(partial(_timed, self._runner(program, operation.threads), given, stream, scratch))
            number = fastest(candidates, seconds, min)
        finally:
            self.close(stream)
        assert number is not None, "a program that could be made runs"
        return programs[number]

    @contextmanager
    def _threads(self, count: int) -> Iterator[None]:
        """Have the calling thread's OpenMP use `count` threads: a primitive is made for as many as it finds."""
        before = self._dnnl.get_threads()
        self._dnnl.set_threads(count)
        try:
            yield
        finally:
            self._dnnl.set_threads(before)

    def _check(self) -> None:
        """Refuse another process's library, and give back what nothing uses any more.

        Raises:
            ForkedError: the process was forked.
        """
        if self._generation != generation():
            raise ForkedError(
                "oneDNN was loaded before this process was forked, and hangs in a child; use a spawned one"
            )
        while self._graveyard:
            try:
                objects = self._graveyard.popleft()
            except IndexError:  # another thread was faster
                return
            for destroy, made in reversed(objects):
                self._dnnl.do(destroy, made)


def _all(strategies: tuple[Strategy, ...], *, further: bool) -> Iterator[Strategy]:
    """The strategies, and with a cap on the workspace more of the library's own choices."""
    yield from strategies
    if further:
        for skip in range(2, _MOST_SKIPPED):
            yield from (one._replace(skip=skip) for one in strategies if one.skip == 0)


def _timed(runner: Runner, given: Sequence[Any], stream: int, scratch: Any) -> float:
    """Seconds of one run."""
    start = scratch.ctypes.data
    begin = time.perf_counter()
    runner.run(given, stream, start + -start % ALIGNMENT)
    return time.perf_counter() - begin


def _made_up(layout: Layout) -> Any:
    """An array of a layout, filled with what multiplies at full speed."""
    dtype, (count, first) = np.dtype(layout.dtype), span(layout)
    strides = tuple(step * dtype.itemsize for step in layout.strides)
    return np.ndarray(layout.shape, dtype, np.ones(count, dtype), first * dtype.itemsize, strides)
