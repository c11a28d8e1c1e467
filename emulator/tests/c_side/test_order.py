"""Order between operations: random programs under jitter against a sequential model, and the rules one by one.

The model knows for each stream, by a clock, which operations come before its next one: by the stream itself, by events
waited for, by the legacy default stream, by the host. A random program waits for an event only where the model says
that nothing else gives the order, so each rule that the emulator does not keep shows as wrong data.
"""

import ctypes
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cuda.bindings import driver
from programs import Child, context, event, fails, hold, host, kernels, launch, live, ok, pinned, read, stream

WORDS = 16
INT = ctypes.c_int
UINT = ctypes.c_uint


class Lane:
    """A stream of the random program, and what comes before its next operation: lane to number of operations."""

    def __init__(self, name: int, device: int, handle: Any, kind: str) -> None:
        self.name, self.device, self.handle, self.kind = name, device, handle, kind
        self.before: dict[int, int] = {}
        self.count = 0


class Slot:
    """A piece of device memory, its contents by the model, and who has used it since: lane to number of operations."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.address = int(ok(driver.cuMemAlloc(4 * WORDS)))
        self.words = [0] * WORDS
        self.uses: dict[int, int] = {}
        ok(driver.cuMemsetD32(self.address, 0, WORDS))


def _wrap(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


class RandomProgram:
    def __init__(self, seed: int, devices: int, share_legacy: bool) -> None:
        self.random = random.Random(seed)
        self.contexts = [context(device) for device in range(devices)]
        self.lanes: list[Lane] = []
        self.slots: list[Slot] = []
        for device, current in enumerate(self.contexts):
            ok(driver.cuCtxSetCurrent(current))
            ok(driver.cuCtxSynchronize())
            for other in self.contexts:
                if other is not current:
                    driver.cuCtxEnablePeerAccess(other, 0)  # may be there already
            kinds = ["non-blocking", "non-blocking", "blocking", "blocking", "own"] + ["legacy"] * share_legacy
            for kind in kinds:
                handle = {"own": driver.CU_STREAM_PER_THREAD, "legacy": driver.CU_STREAM_LEGACY}.get(kind)
                made = driver.CUstream(handle) if handle else stream(blocking=kind == "blocking")
                self.lanes.append(Lane(len(self.lanes), device, made, kind))
            self.slots += [Slot(device) for _ in range(4)]
            ok(driver.cuCtxSynchronize())
        self.add, self.affine = kernels("add", "affine")
        self.staging = pinned(4 * WORDS)

    def run(self, steps: int) -> None:
        actions = [
            self.fill,
            self.copy,
            self.kernel,
            self.change,
            self.upload,
            self.scratch,
            self.check,
            self.host_wait,
        ]
        for _ in range(steps):
            self.random.choice(actions)()
        for slot in self.slots:
            self.expect(slot)
        self.close()

    def close(self) -> None:
        for slot in self.slots:
            ok(driver.cuCtxSetCurrent(self.contexts[slot.device]))
            ok(driver.cuMemFree(slot.address))
        for lane in self.lanes:
            if lane.kind in ("blocking", "non-blocking"):
                ok(driver.cuStreamDestroy(lane.handle))
        ok(driver.cuMemFreeHost(ctypes.addressof(self.staging)))

    def pick(self, *slots: Slot) -> Lane:
        """A lane, in order behind every use of the slots; its context is current."""
        lane = self.random.choice(self.lanes)
        ok(driver.cuCtxSetCurrent(self.contexts[lane.device]))
        for slot in slots:
            for user, number in slot.uses.items():
                if self.clock(lane).get(user, 0) < number:
                    self.wait(lane, self.lanes[user])
        for source in self.implicit(lane):
            _join(lane.before, source)
        lane.count += 1
        lane.before[lane.name] = lane.count
        for slot in slots:
            slot.uses[lane.name] = lane.count
        return lane

    def implicit(self, lane: Lane) -> list[dict[int, int]]:
        """What the default streams' rules put before the next operation."""
        others = [other for other in self.lanes if other.device == lane.device and other is not lane]
        if lane.kind == "legacy":
            return [other.before for other in others if other.kind != "non-blocking"]
        return [other.before for other in others if other.kind == "legacy" and lane.kind != "non-blocking"]

    def clock(self, lane: Lane) -> dict[int, int]:
        joined = dict(lane.before)
        for source in self.implicit(lane):
            _join(joined, source)
        return joined

    def wait(self, lane: Lane, other: Lane) -> None:
        ok(driver.cuCtxSetCurrent(self.contexts[other.device]))
        made = event()
        ok(driver.cuEventRecord(made, other.handle))
        recorded = self.clock(other)
        ok(driver.cuCtxSetCurrent(self.contexts[lane.device]))
        ok(driver.cuStreamWaitEvent(lane.handle, made, 0))
        ok(driver.cuEventDestroy(made))
        # The record is an operation as well, and so is the wait, in the eyes of default streams.
        _join(other.before, recorded)
        _join(lane.before, self.clock(lane))
        _join(lane.before, recorded)

    def some(self) -> Slot:
        return self.random.choice(self.slots)

    def fill(self) -> None:
        slot, value = self.some(), self.random.randrange(1 << 30)
        lane = self.pick(slot)
        ok(driver.cuMemsetD32Async(slot.address, value, WORDS, lane.handle))
        slot.words = [value] * WORDS

    def copy(self) -> None:
        target, source = self.random.sample(self.slots, 2)
        lane = self.pick(target, source)
        ok(driver.cuMemcpyAsync(target.address, source.address, 4 * WORDS, lane.handle))
        target.words = list(source.words)

    def kernel(self) -> None:
        a, b, c = self.random.sample(self.slots, 3)
        lane = self.pick(a, b, c)
        launch(self.add, lane.handle, (a.address, b.address, c.address, WORDS), (None, None, None, UINT), WORDS)
        c.words = [_wrap(x + y) for x, y in zip(a.words, b.words, strict=True)]

    def change(self) -> None:
        slot, factor, term = self.some(), self.random.randrange(5), self.random.randrange(100)
        lane = self.pick(slot)
        launch(self.affine, lane.handle, (slot.address, factor, term, WORDS), (None, INT, INT, UINT), WORDS)
        slot.words = [_wrap(word * factor + term) for word in slot.words]

    def upload(self) -> None:
        """From pageable memory that is overwritten as soon as the call has returned."""
        slot = self.some()
        words = [self.random.randrange(1 << 30) for _ in range(WORDS)]
        source = (ctypes.c_int * WORDS)(*words)
        lane = self.pick(slot)
        ok(driver.cuMemcpyHtoDAsync(slot.address, source, 4 * WORDS, lane.handle))
        ctypes.memset(source, 0x55, 4 * WORDS)
        slot.words = words

    def scratch(self) -> None:
        """Through memory that is allocated and freed in the stream's order."""
        target, source = self.random.sample(self.slots, 2)
        lane = self.pick(target, source)
        between = int(ok(driver.cuMemAllocAsync(4 * WORDS, lane.handle)))
        ok(driver.cuMemcpyAsync(between, source.address, 4 * WORDS, lane.handle))
        ok(driver.cuMemcpyAsync(target.address, between, 4 * WORDS, lane.handle))
        ok(driver.cuMemFreeAsync(between, lane.handle))
        target.words = list(source.words)

    def check(self) -> None:
        self.expect(self.some())

    def expect(self, slot: Slot) -> None:
        lane = self.pick(slot)
        ok(driver.cuMemcpyDtoHAsync(ctypes.addressof(self.staging), slot.address, 4 * WORDS, lane.handle))
        ok(driver.cuStreamSynchronize(lane.handle))
        found = list((ctypes.c_int * WORDS).from_buffer_copy(bytes(self.staging)))
        assert found == [_wrap(word) for word in slot.words], (lane.kind, found, slot.words)

    def host_wait(self) -> None:
        """What the host has waited for comes before everything that is submitted later."""
        lane = self.random.choice(self.lanes)
        ok(driver.cuCtxSetCurrent(self.contexts[lane.device]))
        done = self.clock(lane) if lane.kind == "legacy" else dict(lane.before)
        ok(driver.cuStreamSynchronize(lane.handle))
        for other in self.lanes:
            _join(other.before, done)


def _join(into: dict[int, int], other: dict[int, int]) -> None:
    for lane, number in other.items():
        into[lane] = max(into.get(lane, 0), number)


def _threads(n: int, body: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            body(number)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    assert not failures, failures


def one_thread() -> None:
    from cuda_emulator import started

    emulator = started()
    assert emulator is not None
    RandomProgram(emulator.settings.seed, 2, share_legacy=True).run(400)
    ok(driver.cuCtxSynchronize())
    assert emulator.report()["n_hazards"] == 0


@pytest.mark.parametrize("seed", range(8))
def test_random_program_equals_the_sequential_model(child: Child, seed: int) -> None:
    child(one_thread, devices=2, seed=seed, jitter_us=(0, 20, 200)[seed % 3])


def eight_threads() -> None:
    _threads(8, lambda number: RandomProgram(number, 4, share_legacy=False).run(150))
    for device in range(4):
        context(device)
        ok(driver.cuCtxSynchronize())
    assert live()[0] == 0


@pytest.mark.parametrize("seed", range(2))
def test_eight_threads_on_four_devices(child: Child, seed: int) -> None:
    child(eight_threads, devices=4, seed=seed, jitter_us=50)


def without_the_wait() -> None:
    """The same program as a right one, but for the wait: prints whether the data was right."""
    context()
    first, second = stream(), stream()
    data = int(ok(driver.cuMemAlloc(4)))
    ok(driver.cuMemsetD32(data, 1, 1))
    ok(driver.cuCtxSynchronize())
    target = pinned(4)
    ok(driver.cuMemsetD32Async(data, 2, 1, first))
    ok(driver.cuMemcpyDtoHAsync(ctypes.addressof(target), data, 4, second))
    ok(driver.cuCtxSynchronize())
    print(int.from_bytes(bytes(target), "little"))


def test_a_missing_wait_shows_under_some_seed(child: Child) -> None:
    seen = {child(without_the_wait, seed=seed, jitter_us=20_000).stdout.strip() for seed in range(8)}
    assert seen == {"1", "2"}


def legacy_stream() -> None:
    context()
    gate = threading.Event()
    blocking, free = stream(blocking=True), stream()
    ok(driver.cuLaunchHostFunc(blocking, hold(gate), 0))
    ok(driver.cuMemsetD8(int(ok(driver.cuMemAlloc(1))), 1, 1))  # on the legacy stream: behind the blocking one
    fails(driver.cuStreamQuery(driver.CU_STREAM_LEGACY), "NOT_READY")
    ok(driver.cuStreamSynchronize(free))
    made = event()
    ok(driver.cuEventRecord(made, free))
    ok(driver.cuEventSynchronize(made))  # a non-blocking stream does not care
    other = stream(blocking=True)
    ok(driver.cuEventRecord(made, other))
    fails(driver.cuEventQuery(made), "NOT_READY")  # behind the legacy stream, so behind the gate
    gate.set()
    ok(driver.cuEventSynchronize(made))
    ok(driver.cuStreamQuery(driver.CU_STREAM_LEGACY))


def test_the_legacy_stream_joins_blocking_streams_and_no_others(child: Child) -> None:
    child(legacy_stream)


def events_are_snapshots() -> None:
    context()
    gate = threading.Event()
    one, two = stream(), stream()
    made = event()
    ok(driver.cuEventRecord(made, one))
    ok(driver.cuEventSynchronize(made))
    ok(driver.cuLaunchHostFunc(one, hold(gate), 0))
    ok(driver.cuStreamWaitEvent(two, made, 0))  # what was recorded, not what came later
    ok(driver.cuStreamSynchronize(two))
    ok(driver.cuEventRecord(made, one))
    ok(driver.cuStreamWaitEvent(two, made, 0))
    fails(driver.cuStreamQuery(two), "NOT_READY")
    ok(driver.cuEventRecord(made, two))  # recorded again: the wait before it is not changed
    ok(driver.cuEventDestroy(made))
    fails(driver.cuStreamQuery(two), "NOT_READY")
    gate.set()
    ok(driver.cuStreamSynchronize(two))


def test_an_event_is_a_snapshot(child: Child) -> None:
    child(events_are_snapshots)


def destroyed_with_work() -> None:
    context()
    gate = threading.Event()
    data = int(ok(driver.cuMemAlloc(1)))
    doomed = stream()
    ok(driver.cuLaunchHostFunc(doomed, hold(gate), 0))
    ok(driver.cuMemsetD8Async(data, 7, 1, doomed))
    ok(driver.cuStreamDestroy(doomed))
    fails(driver.cuStreamQuery(doomed), "INVALID_HANDLE")
    fails(driver.cuMemsetD8Async(data, 8, 1, doomed), "INVALID_HANDLE")
    gate.set()
    ok(driver.cuCtxSynchronize())
    assert read(data, 1) == b"\7"


def test_a_destroyed_stream_ends_its_work_and_is_no_handle(child: Child) -> None:
    child(destroyed_with_work)


def calls_in_host_function() -> None:
    context()
    codes: list[str] = []
    ok(driver.cuLaunchHostFunc(0, host(lambda: codes.append(driver.cuMemAlloc(1)[0].name)), 0))
    ok(driver.cuCtxSynchronize())
    assert codes == ["CUDA_ERROR_NOT_PERMITTED"]


def test_a_host_function_must_not_call_the_driver(child: Child) -> None:
    child(calls_in_host_function)


def timing() -> None:
    context()
    gate = threading.Event()
    on, first, second = stream(), event(), event()
    ok(driver.cuEventRecord(first, on))
    ok(driver.cuEventSynchronize(first))
    ok(driver.cuLaunchHostFunc(on, hold(gate), 0))
    ok(driver.cuEventRecord(second, on))
    fails(driver.cuEventElapsedTime(first, second), "NOT_READY")
    gate.set()
    ok(driver.cuEventSynchronize(second))
    assert 0 < ok(driver.cuEventElapsedTime(first, second)) < 60_000
    untimed = ok(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
    ok(driver.cuEventRecord(untimed, on))
    fails(driver.cuEventElapsedTime(first, untimed), "INVALID_HANDLE")


def test_elapsed_time(child: Child) -> None:
    child(timing)


def too_long() -> None:
    context()
    gate = threading.Event()
    ok(driver.cuLaunchHostFunc(0, hold(gate), 0))
    fails(driver.cuCtxSynchronize(), "UNKNOWN")
    gate.set()
    ok(driver.cuCtxSynchronize())


def test_a_wait_ends_by_its_time_limit_and_says_what_it_waited_for(child: Child) -> None:
    assert "unfinished: stream" in child(too_long, timeout_s=1).stderr
