"""Programs of streams, events, tasks, copies, fills and failures, and the sequential model that says what they mean.

A program is a list of operations in the order of submission. Where it is well-synchronised its meaning is that of
running the operations one after another, which is what `replay` does. `Order` knows which operations are ordered, so
that whoever writes a program can add what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "LENGTH",
    "PRIME",
    "Copy",
    "Fill",
    "Gate",
    "Operation",
    "Order",
    "Outcome",
    "Record",
    "Replay",
    "Run",
    "Upload",
    "Wait",
    "accesses",
    "blend",
    "replay",
]

Words = npt.NDArray[np.int64]

LENGTH = 5
"""Elements of every buffer, int64."""

PRIME = 1_000_003


@dataclass(frozen=True)
class Fill:
    """``ctx.fill(dst, value)``."""

    stream: int
    dst: int
    value: int


@dataclass(frozen=True)
class Upload:
    """``ctx.copy(dst, array)`` from ordinary host memory, which is overwritten as soon as the call returns."""

    stream: int
    dst: int
    start: int


@dataclass(frozen=True)
class Copy:
    """``ctx.copy(dst, src)`` between any two buffers, one of them on the stream's device."""

    stream: int
    dst: int
    src: int


@dataclass(frozen=True)
class Run:
    """``ctx.launch``: mixes what it reads, what other tasks returned and what it overwrites.

    Attributes:
        writes: the buffer that it overwrites, or None.
        takes: tasks whose results are arguments.
        after: operations (tasks, events, gates) that must be over first.
        fails: empty, or whether the function raises ``"before"`` or ``"after"`` it has written.
        elsewhere: those of `takes` whose results lie in another memory domain; the runner looks at them first.
    """

    stream: int
    constant: int
    writes: int | None = None
    reads: tuple[int, ...] = ()
    takes: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    fails: str = ""
    elsewhere: tuple[int, ...] = ()


@dataclass(frozen=True)
class Record:
    """``stream.record()``."""

    stream: int


@dataclass(frozen=True)
class Wait:
    """``stream.wait(what)`` for an earlier task, event or gate."""

    stream: int
    what: int


@dataclass(frozen=True)
class Gate:
    """A HostEvent, opened later: well, or with a failure."""

    fails: bool


Operation = Fill | Upload | Copy | Run | Record | Wait | Gate


class Outcome(NamedTuple):
    """What became of an operation: a value, or the name of the error and the text of its first cause."""

    value: Words | None = None
    error: str = ""
    cause: str = ""


def accesses(operation: Operation) -> list[tuple[int, bool]]:
    """The buffers that an operation uses, each with whether it writes it."""
    match operation:
        case Fill(dst=dst) | Upload(dst=dst):
            return [(dst, True)]
        case Copy(dst=dst, src=src):
            return [(src, False), (dst, True)]
        case Run(writes=writes, reads=reads):
            return [(buffer, False) for buffer in reads] + ([] if writes is None else [(writes, True)])
    return []


def blend(constant: int, old: Words | None, reads: Iterable[Words], taken: Iterable[Words]) -> Words:
    """Mix arguments so that every one of them, and the order of two such steps, shows in the result."""
    mixed = np.full(LENGTH, constant, np.int64) if old is None else old * 31 + constant
    for factor, words in enumerate([*reads, *taken], start=2):
        mixed = mixed + words * factor
    return np.asarray(mixed % PRIME, np.int64)


@dataclass
class Replay:
    """The meaning of a program so far.

    Attributes:
        memory: contents of each buffer.
        outcomes: of every operation; None stands for success without a value.
    """

    memory: list[Words]
    outcomes: list[Outcome | None] = field(default_factory=list)

    def failure(self, index: int) -> Outcome | None:
        """The outcome of an operation if it failed."""
        outcome = self.outcomes[index]
        return outcome if outcome is not None and outcome.error else None


def replay(program: list[Operation], buffers: int, cancelled: frozenset[int]) -> Replay:
    """Run a program one operation after another; buffers start as zeros."""
    state = Replay([np.zeros(LENGTH, np.int64) for _ in range(buffers)])
    for index, operation in enumerate(program):
        state.outcomes.append(_step(state, index, operation, index in cancelled))
    return state


def _step(state: Replay, index: int, operation: Operation, cancelled: bool) -> Outcome | None:
    memory = state.memory
    match operation:
        case Fill(dst=dst, value=value):
            memory[dst] = np.full(LENGTH, value, np.int64)
        case Upload(dst=dst, start=start):
            memory[dst] = np.arange(start, start + LENGTH, dtype=np.int64)
        case Copy(dst=dst, src=src):
            memory[dst] = memory[src].copy()
        case Run():
            return _run(state, index, operation, cancelled)
        case Wait(what=what):
            return state.failure(what)
        case Gate(fails=True):
            return Outcome(error="GateError", cause=f"gate {index}")
    return None


def _run(state: Replay, index: int, run: Run, cancelled: bool) -> Outcome:
    if cancelled:
        return Outcome(error="CancelledTaskError", cause=f"task {index}")
    for need in (*run.elsewhere, *run.after, *(taken for taken in run.takes if taken not in run.elsewhere)):
        failure = state.failure(need)
        if failure is not None:
            return Outcome(error="UpstreamError", cause=failure.cause)
    if run.fails == "before":
        return Outcome(error="BoomError", cause=f"task {index}")
    old = None if run.writes is None else state.memory[run.writes]
    taken = [outcome.value for need in run.takes if (outcome := state.outcomes[need]) and outcome.value is not None]
    words = blend(run.constant, old, [state.memory[buffer] for buffer in run.reads], taken)
    if run.writes is not None:
        state.memory[run.writes] = words
    return Outcome(error="BoomError", cause=f"task {index}") if run.fails else Outcome(value=words)


class Order:
    """Which operations are over before which.

    `before[i]` holds what certainly precedes operation i; `perhaps[i]` also holds what an implementation may wait for,
    because copies between memory domains are ordered on both sides.
    """

    def __init__(self, streams: int, inline: frozenset[int]) -> None:
        self.before: list[frozenset[int]] = []
        self.perhaps: list[frozenset[int]] = []
        self.host: frozenset[int] = frozenset()
        self._inline = inline
        self._last: list[frozenset[int]] = [frozenset()] * streams
        self._perhaps: list[frozenset[int]] = [frozenset()] * streams

    def on(self, stream: int) -> frozenset[int]:
        """What certainly precedes the next operation of a stream."""
        return self.host | self._last[stream]

    def may_block(self, streams: Iterable[int]) -> frozenset[int]:
        """What the end of everything submitted to some streams may depend on."""
        return frozenset().union(*(self._perhaps[stream] for stream in streams))

    def add(
        self, stream: int | None, needs: Iterable[int], both_sides: frozenset[int], *, breaks: frozenset[int]
    ) -> int:
        """Append an operation.

        Args:
            stream: where it runs; None for a gate.
            needs: operations that it waits for explicitly.
            both_sides: streams of the other side of a copy between memory domains.
            breaks: cancelled tasks, which end before what precedes them does.
        """
        index = len(self.before)
        explicit = [need for need in needs if need not in breaks]
        before = self.host.union(*({need} | self.before[need] for need in explicit))
        perhaps = before.union(*(self.perhaps[need] for need in explicit), self.may_block(both_sides))
        if stream is not None:
            before, perhaps = before | self._last[stream], perhaps | self._perhaps[stream]
        self.before.append(before)
        self.perhaps.append(perhaps)
        for other in both_sides:
            self._perhaps[other] |= perhaps | {index}
        if stream in self._inline:
            self.host |= before | {index}
        elif stream is not None:
            self._last[stream] = before | {index}
            self._perhaps[stream] = perhaps | {index}
        return index

    def saw(self, indices: Iterable[int]) -> None:
        """The host waited for these: they and what precedes them come before everything that is submitted later."""
        for index in indices:
            self.host |= self.before[index] | {index}

    def saw_stream(self, stream: int) -> None:
        """The host waited for everything on a stream."""
        self.host |= self._last[stream]


def conflicts(program: list[Operation], operation: Operation) -> Iterator[int]:
    """Earlier operations that use a buffer of `operation`, one of the two writing it."""
    wanted = dict(accesses(operation))
    for index, earlier in enumerate(program):
        for buffer, writes in accesses(earlier):
            if buffer in wanted and (writes or wanted[buffer]):
                yield index
                break
