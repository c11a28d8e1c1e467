"""Plans of oneDNN: programs that several threads run at once, each call with memory objects of its own."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np

from tazza.dnn.library import Operation, Plan
from tazza.dnn.onednn.recipe import Program
from tazza.dnn.workspace import Lease
from tazza.errors import BackendError, UsageError
from tazza.hot._primitives import PrimitiveSequence

__all__ = ["After", "OnednnPlan", "Runner"]

After = Callable[[tuple[Any, ...], Sequence[Any]], None]
"""What NumPy does at the end, given an operation's options and all arrays."""


@final
class Runner:
    """Runs a program. Memory objects carry the addresses of one call, so each call under way has some of its own."""

    def __init__(self, program: Program, make: Callable[[Program], PrimitiveSequence]) -> None:
        self.program = program
        self._make = make
        self._idle: deque[PrimitiveSequence] = deque()

    def run(self, arrays: Sequence[Any], stream: int, scratch: int) -> None:
        """Run it in the calling thread, without the GIL.

        Raises:
            UsageError: an array does not lie as the program expects.
            BackendError: the library failed.
        """
        for number, offset in self.program.staged:
            self._stage(number, arrays[number], scratch + offset)
        try:
            sequence = self._idle.pop()
        except IndexError:  # all are in use, or there is none yet
            sequence = self._make(self.program)
        try:
            status = sequence.run(arrays, stream, scratch)
        finally:
            self._idle.append(sequence)
        if status:
            raise BackendError("the library failed", backend="onednn", call="dnnl_primitive_execute", code=status)

    def _stage(self, number: int, array: Any, address: int) -> None:
        dtype, shape, _ = self.program.expected[number]
        if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
            raise UsageError(
                f"array {number}: got {array!r:.80}, expected {dtype} of shape {shape}, as the plan was made"
            )
        memory = memoryview((ctypes.c_char * array.nbytes).from_address(address))
        np.copyto(np.ndarray(shape, dtype, memory), array)


@final
class OnednnPlan(Plan):
    """A program of oneDNN behind the interface of plans, and what NumPy does after it."""

    def __init__(
        self, operation: Operation, runner: Runner, packers: Mapping[int, Runner], after: After | None = None
    ) -> None:
        program = runner.program
        self.operation = operation
        self.algorithm = "; ".join(program.names)
        self.packed = program.packed
        self.workspace_bytes = max(
            [program.workspace_bytes, *(one.program.workspace_bytes for one in packers.values())]
        )
        self._runner, self._packers, self._after = runner, packers, after

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        scratch = state.scratch(lease, self.workspace_bytes)
        self._runner.run(arrays, state.handle, scratch)
        if self._after is not None:
            self._after(self.operation.options, arrays)

    def pack(self, state: Any, number: int, array: Any, into: Any, lease: Lease | None) -> None:
        scratch = state.scratch(lease, self.workspace_bytes)
        packer = self._packers.get(number)
        if packer is None:
            raise UsageError(f"input {number} of {self.operation.name} is not packed; plan.packed says which are")
        packer.run((array, into), state.handle, scratch)


@final
class NumpyPlan(Plan):
    """What NumPy does as well, and to the letter."""

    workspace_bytes = 0

    def __init__(self, operation: Operation, algorithm: str, function: After) -> None:
        self.operation, self.algorithm, self._function = operation, algorithm, function
        self.packed = (None,) * len(operation.inputs)

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        state.check_held()
        self._function(self.operation.options, arrays)
