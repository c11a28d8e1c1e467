"""Runs the operations of `tests.stateful.program_model` on tazza, one at a time, and tells what became of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

import tazza as tz
from tazza.core.stream import Stream
from tazza.errors import TazzaError
from tazza.testing import jitter, simulate
from tests.stateful.program_model import (
    LENGTH,
    PRIME,
    Copy,
    Fill,
    Gate,
    Operation,
    Outcome,
    Record,
    Run,
    Upload,
    Wait,
    blend,
)

__all__ = ["TIMEOUT", "BoomError", "GateError", "Layout", "World"]

TIMEOUT = 10.0
"""Seconds that any single wait may take before the test fails."""


class BoomError(Exception):
    """What a failing function raises."""


class GateError(Exception):
    """What a failing gate gives to those who wait for it."""


@dataclass(frozen=True)
class Layout:
    """Which devices a program runs on.

    Attributes:
        cpu_workers: worker streams of the CPU context, besides its inline stream.
        sims: number of simulated devices, each with two streams.
        cudas: number of emulated CUDA devices, each with two streams; where the emulator runs.
        without: abilities that they lack.
        lateness: longest delay of one simulated operation in seconds.
        seed: of lateness and thread jitter.
    """

    cpu_workers: int = 2
    sims: int = 2
    cudas: int = 0
    without: frozenset[str] = frozenset()
    lateness: float = 100e-6
    seed: int = 0


class World:
    """The contexts, streams and buffers of one layout, and the handles of the operations so far.

    Attributes:
        streams: all of them; each context's own stream is its first.
        device_of: for each stream, the number of its context.
        buffers: two for each context, zero at the start.
        home: for each buffer, the number of its context.
        handles: Task, Event or HostEvent of each operation, else None.
    """

    def __init__(self, layout: Layout) -> None:
        self._stack = ExitStack()
        self._stack.enter_context(jitter(layout.seed))
        if layout.sims:
            self._stack.enter_context(
                simulate(layout.sims, seed=layout.seed, lateness=layout.lateness, without=layout.without)
            )
        names = ["cpu", *(f"sim:{ordinal}" for ordinal in range(layout.sims))]
        names += [f"cuda:{ordinal}" for ordinal in range(layout.cudas)]
        self.contexts = [tz.context(name, seed=0) for name in names]
        self.streams: list[Stream] = []
        self.device_of: list[int] = []
        for number, ctx in enumerate(self.contexts):
            extra = layout.cpu_workers if number == 0 else 1
            self.streams += [ctx.stream, *(ctx.new_stream() for _ in range(extra))]
            self.device_of += [number] * (1 + extra)
        self.home = [number for number in range(len(self.contexts)) for _ in range(2)]
        self.buffers = [self._zeros(self.contexts[number]) for number in self.home]
        self.handles: list[Any] = []

    def _zeros(self, ctx: tz.Context) -> Any:
        buffer = ctx.allocate(LENGTH * 8, dtype="int64")
        ctx.fill(buffer, 0)
        ctx.synchronize(TIMEOUT)
        return buffer

    def do(self, operation: Operation) -> Outcome | None:
        """Submit an operation; returns the failure where the call itself raised one, as waits of inline streams do."""
        try:
            self.handles.append(self._submit(operation))
        except (BoomError, GateError, TazzaError) as error:
            self.handles.append(None)
            return failure_of(error)
        return None

    def _submit(self, operation: Operation) -> Any:
        match operation:
            case Fill(stream, dst, value):
                self._context(stream).fill(self.buffers[dst], value, stream=self.streams[stream])
            case Upload(stream, dst, start):
                words = np.arange(start, start + LENGTH, dtype=np.int64)
                self._context(stream).copy(self.buffers[dst], words, stream=self.streams[stream])
                words[:] = -1  # host sources may change as soon as the call returns
            case Copy(stream, dst, src):
                self._context(stream).copy(self.buffers[dst], self.buffers[src], stream=self.streams[stream])
            case Run():
                return self._launch(operation)
            case Record(stream):
                return self.streams[stream].record()
            case Wait(stream, what):
                self.streams[stream].wait(self.handles[what])
            case Gate():
                return tz.HostEvent(f"gate {len(self.handles)}")
        return None

    def _launch(self, run: Run) -> tz.Task:
        return self._context(run.stream).launch(
            function_of(run, f"task {len(self.handles)}"),
            [] if run.writes is None else [self.buffers[run.writes]],
            [self.buffers[buffer] for buffer in run.reads],
            [self.handles[task] for task in run.takes],
            after=[self.handles[need] for need in run.after],
            stream=self.streams[run.stream],
            label=f"task {len(self.handles)}",
        )

    def open(self, gate: int, fails: bool) -> None:
        """Let those who wait for a gate go on, or fail."""
        first = self.handles[gate].fail(GateError(f"gate {gate}")) if fails else self.handles[gate].succeed()
        assert first, f"gate {gate} was opened before"

    def outcome(self, index: int) -> Outcome | None:
        """Wait for a task or an event and tell what became of it."""
        handle = self.handles[index]
        try:
            if not isinstance(handle, tz.Task):
                handle.synchronize(TIMEOUT)
                return None
            return Outcome(value=np.array(handle.context.to_numpy(handle.result(TIMEOUT))))
        except (BoomError, GateError, TazzaError) as error:
            return failure_of(error)

    def read(self, buffer: int) -> Any:
        """Download a buffer, which waits for the streams that used it."""
        return np.array(self.contexts[self.home[buffer]].to_numpy(self.buffers[buffer]))

    def synchronize(self, stream: int) -> Outcome | None:
        """Wait for a stream; returns the failure that nobody had seen yet."""
        try:
            self.streams[stream].synchronize(TIMEOUT)
        except (BoomError, GateError, TazzaError) as error:
            return failure_of(error)
        return None

    def live_without_handles(self) -> list[int]:
        """Forget every handle and buffer; returns the bytes that each context still counts as live."""
        self.handles.clear()
        self.buffers.clear()
        for ctx in self.contexts:
            ctx.memory.stats()  # records events on streams that may still use what was dropped; they are over below
        for ctx in self.contexts:
            ctx.synchronize(TIMEOUT)
        return [ctx.memory.stats().live for ctx in self.contexts]

    def close(self) -> None:
        """Close every context, whatever happened."""
        for ctx in self.contexts:
            self._stack.callback(ctx.close, abandon=True)
        self._stack.close()

    def _context(self, stream: int) -> tz.Context:
        return self.contexts[self.device_of[stream]]


def function_of(run: Run, name: str) -> Callable[[list[Any], list[Any], list[Any]], Any]:
    """The function that a Run stands for."""
    constant, fails = run.constant, run.fails

    def function(writes: list[Any], reads: list[Any], taken: list[Any]) -> Any:
        if fails == "before":
            raise BoomError(name)
        if tz.current().device.kind == "cuda":
            words = blended_on_device(constant, writes, [*reads, *taken])
        else:
            words = blend(constant, writes[0] if writes else None, reads, taken)
            if writes:
                writes[0][...] = words
        if fails == "after":
            raise BoomError(name)
        return words

    return function


def blended_on_device(constant: int, writes: list[Any], used: list[Any]) -> Any:
    """Enqueue what `blend` means, for arrays that are Buffers."""
    from tests.cuda.kernels import run

    here = tz.current()
    words = here.empty(LENGTH, "int64")
    if writes:
        here.copy(words, writes[0])
        run("scale", LENGTH, LENGTH, 31, constant, words)
    else:
        here.fill(words, constant)
    for factor, one in enumerate(used, start=2):
        run("blend", LENGTH, LENGTH, factor, one, words)
    run("remain", LENGTH, LENGTH, PRIME, words)
    if writes:
        here.copy(writes[0], words)
    return words


def failure_of(error: BaseException) -> Outcome:
    """Describe a failure as the model does: the kind of error, and the task or gate that it began with."""
    cause = error.cause if isinstance(error, tz.errors.UpstreamError) else error
    named = re.search(r"(?:task|gate) \d+", str(cause))
    return Outcome(error=type(error).__name__, cause=named[0] if named else str(cause))
