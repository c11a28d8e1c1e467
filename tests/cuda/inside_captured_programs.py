"""Run by test_contract.py on emulated devices: a generated program, captured, leaves what running it leaves."""

from __future__ import annotations

from typing import NamedTuple

import hypothesis
import numpy as np
from hypothesis import strategies

import tazza as tz
from tests.cuda.kernels import add, plus

TIMEOUT = 20.0
COUNT, CELLS, STREAMS = 32, 4, 3


class Step(NamedTuple):
    """One operation of a program.

    Attributes:
        kind: what is done,
        stream: on which stream,
        to, source: with which of the cells,
        value: and which number.
    """

    kind: str
    stream: int
    to: int
    source: int
    value: int


KINDS = ("add", "copy", "part", "overlap", "fill", "pattern", "host", "pinned", "between", "passed on", "kept")

steps = strategies.builds(
    Step,
    strategies.sampled_from(KINDS),
    strategies.integers(0, STREAMS - 1),
    strategies.integers(0, CELLS - 1),
    strategies.integers(0, CELLS - 1),
    strategies.integers(1, 100),
)


class World:
    """A context with streams, cells that a program works on, and what it keeps."""

    def __init__(self, ctx: tz.Context) -> None:
        self.ctx = ctx
        self.streams = [ctx.stream, *(ctx.new_stream() for _ in range(STREAMS - 1))]
        self.cells = [ctx.asarray(np.arange(COUNT) + 1000 * number) for number in range(CELLS)]
        self.pinned = [ctx.memory.pinned.allocate(8 * COUNT, dtype="int64") for _ in range(CELLS)]
        for number, one in enumerate(self.pinned):
            np.asarray(one)[:] = np.arange(COUNT) - number
        self.kept: list[tz.Buffer] = []
        ctx.synchronize(timeout=TIMEOUT)

    def run(self, program: list[Step]) -> None:
        """Submit a program, each step after the one before, whatever streams they are on; ends on the first one."""
        self.kept.clear()
        last = self.streams[0]
        for step in [*program, None]:
            stream = self.streams[0 if step is None else step.stream]
            stream.wait(last)
            last = stream
            if step is not None:
                with self.ctx.on(stream):
                    self.do(step)

    def do(self, step: Step) -> None:
        """Submit one step to the current stream."""
        ctx, (kind, _, number, other, value) = self.ctx, step
        to, source = self.cells[number], self.cells[other]
        if kind == "add":
            ctx.launch(add, to, value)
        elif kind == "copy" and to is not source:
            ctx.copy(to, source)
        elif kind == "part" and to is not source:
            ctx.copy(to[: COUNT // 2], source[COUNT // 2 :])
        elif kind == "overlap":
            ctx.copy(to[1:], to[:-1])
        elif kind == "fill":
            ctx.fill(to[value % COUNT :], value)
        elif kind == "pattern":
            ctx.fill(to, np.arange(value, value + 4).tobytes())
        elif kind == "host":
            ctx.copy(to, np.arange(value, value + COUNT))
        elif kind == "pinned":
            ctx.copy(to, self.pinned[other])
            ctx.copy(self.pinned[number], to)
        elif kind == "between":
            between = ctx.asarray(source, copy=True)
            ctx.launch(add, between, value)
            ctx.copy(to, between)
        elif kind == "passed on":
            ctx.launch(ctx.copy, to, ctx.launch(plus, ctx.launch(plus, source, value), 1))
        elif kind == "kept":
            self.kept.append(ctx.asarray(source, copy=True))

    def state(self) -> list[list[int]]:
        """What the program has left."""
        here = [self.ctx.to_numpy(one).tolist() for one in (*self.cells, *self.kept)]
        return [*here, *(np.asarray(one).tolist() for one in self.pinned)]


@hypothesis.settings(max_examples=25, deadline=None, database=None)
@hypothesis.given(program=strategies.lists(steps, max_size=12), replays=strategies.integers(1, 3))
def test_a_captured_program_replayed_leaves_what_running_it_leaves(program: list[Step], replays: int) -> None:
    with tz.open("cuda:0") as one, tz.open("cuda:0") as two:
        direct, captured = World(one), World(two)
        with two.stream.capture() as graph:
            captured.run(program)
        for number in range(replays):
            direct.run(program)
            graph.replay(captured.streams[number % STREAMS])
            assert captured.state() == direct.state()
        graph.close()
        two.synchronize(timeout=TIMEOUT)
        assert captured.state() == direct.state()
