"""What a DNN library implements: plans for operations on arrays of one device. It sees no lock, stream or cache."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tazza.dnn.workspace import Lease

__all__ = ["Algorithm", "Choice", "Layout", "Library", "Operation", "Packing", "Plan"]

Algorithm = Literal["heuristic", "measure", "deterministic"]
"""How a plan is chosen: by the library's own rules, by timing candidates, or only among those with equal bits."""


class Layout(NamedTuple):
    """How an array lies in memory: the name of its dtype, its extents, and its strides in elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Packing(NamedTuple):
    """A library's own layout of an input: a value that says which, to look copies up by, and the bytes of a copy."""

    key: tuple[Any, ...]
    nbytes: int


class Operation(NamedTuple):
    """Everything that a plan depends on, as a value to look it up by.

    Attributes:
        name: as in the table of `docs/guides/dnn.md`, for example ``"conv2d"`` or ``"conv2d.backward"``.
        inputs: the arrays that it reads, in the table's order; None for one that is left out.
        outputs: those that it writes, the same way.
        options: values in the table's order: windows, activation and the like.
        threads: native threads that it may use; 0 where that has no meaning.
        packed: numbers of the inputs that come packed, as ``plan.packed`` says; `inputs` has them as they were before.
    """

    name: str
    inputs: tuple[Layout | None, ...]
    outputs: tuple[Layout | None, ...]
    options: tuple[Any, ...] = ()
    threads: int = 0
    packed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """What to choose a plan by.

    Attributes:
        algorithm: see `Algorithm`.
        max_workspace: bytes of workspace that a plan may need; None: any.
        seconds: how long ``"measure"`` may take for one operation.
    """

    algorithm: Algorithm = "heuristic"
    max_workspace: int | None = None
    seconds: float = 1.0


class Plan(abc.ABC):
    """One way to do one operation. Immutable; used by several threads at once, each with its own state and lease.

    Attributes:
        operation: what it does.
        algorithm: the library's name for how.
        workspace_bytes: the size of the lease that `execute` needs; 0 is none.
        packed: for each input the library's own layout of it, where a packed copy saves work, else None.
    """

    operation: Operation
    algorithm: str
    workspace_bytes: int
    packed: tuple[Packing | None, ...] = ()

    @abc.abstractmethod
    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        """Do it: on a host in the caller, which holds `state`; on a queue in the order of ``state.stream``.

        Args:
            state: a `DnnState` that this thread holds.
            arrays: inputs, then outputs, in the operation's order and of exactly its layouts; None where left out.
            lease: at least `workspace_bytes` from the state's workspace; None where none is needed.

        Raises:
            UsageError: the state or the lease is not held here, or over, or too small. Nothing was called.
            BackendError: the library failed.
        """

    def pack(self, state: Any, number: int, array: Any, into: Any, lease: Lease | None) -> None:
        """Write input `number` to `into` in the layout that ``packed`` says.

        A plan for the same operation with `number` in ``operation.packed`` takes `into` in place of the array.

        Args:
            state: as for `execute`.
            number: of the input.
            array: the input, as the operation's layout says.
            into: bytes, as many as ``packed`` says, on a boundary of 64.
            lease: as for `execute`.
        """
        raise NotImplementedError(f"{type(self).__name__} packs nothing")


class Library(abc.ABC):
    """One DNN library on one device.

    Attributes:
        name: for reports, specs and checkpoints.
        version: of the library itself.
        survives_fork: whether it can be used in a child of a process that used it.
        was_used: whether a handle was ever opened.
        state_class: makes its states, where they are more than `DnnState`; called as that is.
    """

    name: str
    version: str
    survives_fork: bool = True
    was_used: bool = False
    state_class: Callable[[Library, Any, int], Any] | None = None

    @abc.abstractmethod
    def supports(self, feature: str, *, dtype: str = "float32") -> bool:
        """Tell whether it has an operation, by the name in `Operation`, for a dtype."""

    @abc.abstractmethod
    def compile(self, operation: Operation, choice: Choice) -> Plan:
        """Choose a plan. Asks the library, which may take long; holds no lock.

        Raises:
            UnsupportedError: it has none for this operation, or none within ``choice.max_workspace``.
        """

    @abc.abstractmethod
    def open(self) -> Any:
        """Make a handle, for one state."""

    @abc.abstractmethod
    def close(self, handle: Any) -> None:
        """Destroy a handle that nothing uses any more."""
