"""A library whose plans fill their scratch memory with a pattern, and find out whether anybody else wrote there."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, final

from tazza.dnn import Choice, Lease, Library, Operation, Plan

__all__ = ["PatternLibrary", "PatternPlan", "next_mark", "settle"]

TIMEOUT = 60.0


_marks = itertools.count()


def next_mark() -> int:
    """A byte that is not 0, another one each time."""
    return next(_marks) % 251 + 1


def settle(condition: Callable[[], bool], what: str) -> None:
    """Look at a condition until it holds, for at most `TIMEOUT`."""
    deadline, pause = time.monotonic() + TIMEOUT, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, what
        pause.wait(0.002)


@final
class PatternLibrary(Library):
    """Counts its handles; `failing` makes `open` fail so many times."""

    version = "1"

    def __init__(self, name: str = "pattern") -> None:
        self.name = name
        self.opened = self.closed = self.failing = 0
        self._lock = threading.Lock()

    def supports(self, feature: str, *, dtype: str = "float32") -> bool:
        return dtype == "float32"

    def compile(self, operation: Operation, choice: Choice) -> Plan:
        return PatternPlan(self, operation.options[0])

    def open(self) -> Any:
        with self._lock:
            if self.failing:
                self.failing -= 1
                raise OSError("no handle")
            self.opened += 1
            return f"handle {self.opened}"

    def close(self, handle: Any) -> None:
        with self._lock:
            self.closed += 1


@final
class PatternPlan(Plan):
    """Writes a byte everywhere in the lease, calls `between`, and looks twice whether it is still there."""

    algorithm = "pattern"

    def __init__(self, library: PatternLibrary, nbytes: int) -> None:
        self.operation = Operation("pattern", (), (), (nbytes,))
        self.workspace_bytes = nbytes
        self.library = library
        self.overwritten = self.calls = 0
        self.between: Callable[[], object] = lambda: None

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        address = state.scratch(lease, self.workspace_bytes)
        self.calls += 1
        mark = next_mark()
        ctypes.memset(address, mark, self.workspace_bytes)
        self.between()
        for _ in range(2):
            found = ctypes.string_at(address, self.workspace_bytes)
            self.overwritten += found.count(mark) != len(found)
