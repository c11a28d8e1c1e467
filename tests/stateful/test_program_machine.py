"""Generated programs over several devices mean what a sequential model says, and no wait exceeds its timeout.

The generator adds the order that a program needs: through events, waits, tasks and the host in one variant, through the
dependencies of tasks alone in the other. Gates (HostEvents) hold work back, so that whole chains are still pending
when tasks are cancelled, fail, or are waited for.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.stateful import program_model as model
from tests.stateful.program_model import Copy, Fill, Gate, Operation, Outcome, Record, Run, Upload, Wait
from tests.stateful.program_world import TIMEOUT, Layout, World

FULL = os.environ.get("TAZZA_FULL") == "1"
CROSS = frozenset({"cross_device_wait"})
BOTH = frozenset({"cross_device_wait", "peer_copy"})

CUDAS = st.just(0)
"""How many emulated CUDA devices there may be besides: tests/cuda/inside_programs.py, where there are, says."""

layouts = st.builds(
    Layout,
    cpu_workers=st.integers(1, 2),
    sims=st.integers(0, 3),
    cudas=st.deferred(lambda: CUDAS),
    without=st.sampled_from([frozenset(), CROSS, frozenset({"peer_copy"}), BOTH]),
    lateness=st.sampled_from([0.0, 100e-6, 1e-3]),
    seed=st.integers(0, 2**16),
)


class ProgramMachine(RuleBasedStateMachine):
    """Writes a program operation by operation, runs each at once, and compares every observation with the replay."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.program: list[Operation] = []
        self.waiting: dict[int, bool] = {}  # gates that are still shut, and whether they will fail
        self.cancelled: frozenset[int] = frozenset()
        self.needed: set[int] = set()  # tasks that something waits for, takes or looked at
        self.surfaced: Counter[tuple[str, str]] = Counter()
        self.disproved = False

    @initialize(layout=layouts)
    def start(self, layout: Layout) -> None:
        self.world = World(layout)
        streams = self.world.streams
        self.inline = frozenset(number for number, stream in enumerate(streams) if stream.is_inline)
        self.order = model.Order(len(streams), self.inline)
        self.users: list[set[int]] = [{self._own(home)} for home in self.world.home]

    # Operations ----------------------------------------------------------------------------------------------------

    @rule(data=st.data(), value=st.integers(0, 1000))
    def fill(self, data: st.DataObject, value: int) -> None:
        dst = self._buffer(data)
        self._use(data, Fill(self._stream_of(data, dst), dst, value))

    @rule(data=st.data(), start=st.integers(0, 1000))
    def upload(self, data: st.DataObject, start: int) -> None:
        dst = self._buffer(data)
        self._use(data, Upload(self._stream_of(data, dst), dst, start))

    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        dst, src = self._buffer(data), self._buffer(data)
        if dst != src:
            self._use(data, Copy(self._stream_of(data, data.draw(st.sampled_from([dst, src]))), dst, src))

    @rule(data=st.data(), constant=st.integers(1, 100), fails=st.sampled_from(["", "", "", "before", "after"]))
    def run(self, data: st.DataObject, constant: int, fails: str) -> None:
        self._launch(data, constant, fails)

    @rule(data=st.data(), fails=st.booleans())
    def shut_gate(self, data: st.DataObject, fails: bool) -> None:
        gate = self._submit(Gate(fails))
        self.waiting[gate] = fails
        stream = data.draw(self._streams())
        if stream not in self.inline:
            self._submit(Wait(stream, gate), [gate])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def open_gate(self, data: st.DataObject) -> None:
        self._open({data.draw(st.sampled_from(sorted(self.waiting)))})

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel a task that certainly has not started and that nothing needs yet."""
        pending = [
            index
            for index, operation in enumerate(self.program)
            if isinstance(operation, Run)
            and index not in self.needed | self.cancelled
            and self.order.before[index] & self.waiting.keys()
        ]
        if pending:
            task = data.draw(st.sampled_from(pending))
            assert self._handles[task].cancel(), f"task {task} has not started and could not be cancelled"
            self.cancelled |= {task}

    # Observations --------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def download(self, data: st.DataObject) -> None:
        buffer = self._buffer(data)
        users = self.users[buffer]
        self._open(self.order.may_block(users))
        self._compare(f"buffer {buffer}", self._world.read(buffer), self._replay().memory[buffer])
        self.order.saw(k for k, operation in enumerate(self.program) if buffer in dict(model.accesses(operation)))

    @precondition(lambda self: any(isinstance(operation, Run) for operation in self.program))
    @rule(data=st.data())
    def result(self, data: st.DataObject) -> None:
        tasks = [index for index, operation in enumerate(self.program) if isinstance(operation, Run)]
        self._look_at(data.draw(st.sampled_from(tasks)))

    @rule(data=st.data())
    def synchronize(self, data: st.DataObject) -> None:
        self._synchronize(data.draw(self._streams()))

    def teardown(self) -> None:
        if self.world is None:
            return
        try:
            if not self.disproved:
                self._finish()
        finally:
            self._world.close()

    # How order is added --------------------------------------------------------------------------------------------

    def _ways(self, run: bool, earlier: int) -> list[str]:
        ways = ["event", "host"]
        if isinstance(self.program[earlier], Run):
            ways += ["task"] + ["after"] * 2 * run
        return ways + ["after event"] * run

    def _order_after(self, data: st.DataObject, operation: Operation, earlier: int) -> list[int]:
        """Have the next operation come after an earlier one; returns what it has to name for that."""
        stream, other = operation.stream, self.program[earlier].stream  # type: ignore[union-attr]
        way = data.draw(st.sampled_from(self._ways(isinstance(operation, Run), earlier)))
        match way:
            case "host":
                self._synchronize(other)
            case "after":
                return [earlier]
            case "after event":
                return [self._submit(Record(other))]
            case "task":
                self._submit(Wait(stream, earlier), [earlier])
            case "event":
                event = self._submit(Record(other))
                self._submit(Wait(stream, event), [event])
        return []

    def _conflicts(self, operation: Operation) -> list[int]:
        return [k for k in model.conflicts(self.program, operation) if k not in self.cancelled]

    def _ordered(self, data: st.DataObject, operation: Operation) -> list[int]:
        """Order the next operation after all that it conflicts with; returns what it has to name for that."""
        after: list[int] = []
        for earlier in reversed(self._conflicts(operation)):
            stream = operation.stream  # type: ignore[union-attr]
            known = self.order.on(stream).union(*(self.order.before[need] | {need} for need in after))
            if earlier not in known:
                after += self._order_after(data, operation, earlier)
        return after

    # How operations are submitted ----------------------------------------------------------------------------------

    def _use(self, data: st.DataObject, operation: Fill | Upload | Copy) -> None:
        self._ordered(data, operation)
        sides = frozenset[int]()
        if isinstance(operation, Copy) and self._world.home[operation.dst] != self._world.home[operation.src]:
            sides = frozenset(self.users[operation.dst] | self.users[operation.src])
            for buffer in (operation.dst, operation.src):
                self.users[buffer] |= sides  # any of them may be the one that carries the copy
        self._submit(operation, sides=sides)

    def _launch(self, data: st.DataObject, constant: int, fails: str) -> None:
        writes = data.draw(st.none() | st.integers(0, len(self.users) - 1))
        stream = data.draw(self._streams()) if writes is None else self._stream_of(data, writes)
        here = self._world.device_of[stream]
        local = [buffer for buffer, home in enumerate(self._world.home) if home == here and buffer != writes]
        reads = tuple(data.draw(st.lists(st.sampled_from(local), max_size=2, unique=True)))
        tasks = [index for index, operation in enumerate(self.program) if isinstance(operation, Run)]
        takes = tuple(data.draw(st.lists(st.sampled_from(tasks), max_size=2, unique=True))) if tasks else ()
        elsewhere = tuple(task for task in takes if self._device_of_task(task) != here)
        draft = Run(stream, constant, writes, reads, takes)
        after = self._ordered(data, draft)
        gated = data.draw(st.booleans())
        if gated and self.waiting:
            after.append(data.draw(st.sampled_from(sorted(self.waiting))))
        self._submit(Run(stream, constant, writes, reads, takes, tuple(after), fails, elsewhere), [*after, *takes])

    def _submit(self, operation: Operation, needs: list[int] | None = None, sides: frozenset[int] = frozenset()) -> int:
        stream = None if isinstance(operation, Gate) else operation.stream
        index = self.order.add(stream, needs or (), sides, breaks=self.cancelled)
        self.needed.update(needs or ())
        if stream in self.inline:
            self._open(self.order.perhaps[index])
        for buffer, _ in model.accesses(operation):
            assert stream is not None
            self.users[buffer].add(stream)
        self.program.append(operation)
        raised = self._world.do(operation)
        expected = self._replay().outcomes[index] if isinstance(operation, Wait) and stream in self.inline else None
        self._compare(f"raised by operation {index}, {operation}", raised, expected)
        return index

    def _open(self, wanted: frozenset[int] | set[int]) -> None:
        for gate in sorted(wanted & self.waiting.keys()):
            self._world.open(gate, self.waiting.pop(gate))

    # How observations are compared ---------------------------------------------------------------------------------

    def _look_at(self, task: int) -> None:
        here = self._device_of_task(task)
        reading = {number for number, device in enumerate(self._world.device_of) if device == here}
        reading |= {taker.stream for taker in self.program if isinstance(taker, Run) and task in taker.takes}
        self._open(self.order.perhaps[task] | self.order.may_block(reading))
        self.needed.add(task)
        expected = self._replay().outcomes[task]
        self._compare(f"outcome of task {task}", self._world.outcome(task), expected)
        if task not in self.cancelled:
            self.order.saw([task])

    def _synchronize(self, stream: int) -> None:
        self._open(self.order.may_block([stream]))
        failure = self._world.synchronize(stream)
        self.order.saw_stream(stream)
        if failure is not None:
            self.surfaced[failure.error, failure.cause] += 1

    def _finish(self) -> None:
        self._open(set(self.waiting))
        final = self._replay()
        for stream in range(len(self._world.streams)):
            while (failure := self._world.synchronize(stream)) is not None:
                self.surfaced[failure.error, failure.cause] += 1
        self._check_failures(final)
        for index, operation in enumerate(self.program):
            if not isinstance(operation, Wait | Fill | Upload | Copy) and self._handles[index] is not None:
                self._compare(f"outcome of {index}, {operation}", self._world.outcome(index), final.outcomes[index])
        for buffer, words in enumerate(final.memory):
            self._compare(f"buffer {buffer} at the end", self._world.read(buffer), words)
        self._compare("bytes live at the end", self._world.live_without_handles(), [0] * len(self._world.contexts))

    def _check_failures(self, final: model.Replay) -> None:
        """Every failure that nobody else saw was raised by `synchronize` exactly once; none was made up."""
        least, most = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for index, operation in enumerate(self.program):
            failure = final.failure(index)
            if failure is None or index in self.cancelled or isinstance(operation, Gate):
                continue  # who cancels a task or fails a gate knows
            if self._is_raised_to_caller(operation):
                continue
            key = failure.error, failure.cause
            most[key] += 1
            least[key] += index not in self.needed and not self._is_wait_for_task(operation)
        for key in self.surfaced.keys() | most.keys():
            times, allowed = self.surfaced[key], range(least[key], most[key] + 1)
            if times not in allowed:
                self._compare(f"times that {key} was raised by synchronize", times, allowed)

    def _is_raised_to_caller(self, operation: Operation) -> bool:
        return isinstance(operation, Wait) and operation.stream in self.inline

    def _is_wait_for_task(self, operation: Operation) -> bool:
        # Whether a queued wait sees that a task failed, or the task's own stream tells, depends on who is first.
        return isinstance(operation, Wait) and isinstance(self.program[operation.what], Run)

    def _compare(self, what: str, actual: Any, expected: Any) -> None:
        if not _same(actual, expected):
            self.disproved = True
            listing = "\n".join(f"  {index}: {operation}" for index, operation in enumerate(self.program))
            raise AssertionError(f"{what}: got {actual}, the model says {expected}\n{listing}")

    # Shorthand -----------------------------------------------------------------------------------------------------

    @property
    def _world(self) -> World:
        assert self.world is not None
        return self.world

    @property
    def _handles(self) -> list[Any]:
        return self._world.handles

    def _replay(self) -> model.Replay:
        return model.replay(self.program, len(self.users), self.cancelled)

    def _own(self, device: int) -> int:
        return self._world.device_of.index(device)

    def _device_of_task(self, task: int) -> int:
        operation = self.program[task]
        assert isinstance(operation, Run)
        return self._world.device_of[operation.stream]

    def _buffer(self, data: st.DataObject) -> int:
        return data.draw(st.integers(0, len(self.users) - 1))

    def _streams(self) -> st.SearchStrategy[int]:
        return st.integers(0, len(self._world.streams) - 1)

    def _stream_of(self, data: st.DataObject, buffer: int) -> int:
        home = self._world.home[buffer]
        return data.draw(st.sampled_from([n for n, device in enumerate(self._world.device_of) if device == home]))


class TaskMachine(ProgramMachine):
    """Tasks only, ordered by naming each other and by nothing else, not even by the order of their stream."""

    fill = upload = copy = None  # type: ignore[assignment]

    def _ordered(self, data: st.DataObject, operation: Operation) -> list[int]:
        return self._conflicts(operation)


def _same(actual: Any, expected: Any) -> bool:
    if isinstance(actual, Outcome) and isinstance(expected, Outcome):
        return actual[1:] == expected[1:] and _same(actual.value, expected.value)
    if isinstance(actual, np.ndarray) or isinstance(expected, np.ndarray):
        return bool(np.array_equal(actual, expected))
    return bool(actual == expected)


@pytest.fixture(autouse=True)
def bounded_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits without a timeout of their own end too."""
    monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", str(TIMEOUT))


@pytest.mark.slow
@pytest.mark.timeout(600 if FULL else 120)
@pytest.mark.parametrize("machine", [ProgramMachine, TaskMachine], ids=["any-order", "tasks-only"])
def test_programs_mean_what_the_sequential_model_says(machine: type[ProgramMachine]) -> None:
    examples, steps = (1000, 60) if FULL else (100, 30)
    # No shrinking: whether a race shows depends on the threads too, and the failure prints the whole program.
    chosen = settings(max_examples=examples, stateful_step_count=steps, phases=[Phase.generate])
    run_state_machine_as_test(machine, settings=chosen)
