"""Many mixed operations from many threads: nothing is left, nothing is wrong, nothing hangs."""

import ctypes
import os
import random
import threading
from typing import Any

import pytest
from cuda.bindings import driver
from programs import Child, context, hazards, live, ok, read, stream

N_THREADS, N_DEVICES = 8, 4
N_OPERATIONS = int(os.environ.get("CUDA_EMULATOR_TEST_OPERATIONS", "4000"))  # of each thread


class Worker:
    """Its own streams on every device; blocks of memory with a byte that the model knows."""

    def __init__(self, number: int, contexts: list[Any]) -> None:
        self.random = random.Random(number)
        self.contexts = contexts
        self.streams: list[Any] = []
        for current in contexts:
            ok(driver.cuCtxSetCurrent(current))
            self.streams.append(stream())
        self.blocks: list[tuple[int, int, int, int]] = []  # device, address, size, value
        self.events: list[tuple[int, Any]] = []

    def run(self, operations: int) -> None:
        actions = [self.allocate, self.free, self.refill, self.copy, self.check, self.record, self.wait]
        for _ in range(operations):
            self.random.choice(actions)()
        while self.blocks:
            self.free()
        for device, made in self.events:
            self.use(device)
            ok(driver.cuEventDestroy(made))
        for device, on in enumerate(self.streams):
            self.use(device)
            ok(driver.cuStreamSynchronize(on))
            ok(driver.cuStreamDestroy(on))

    def use(self, device: int) -> Any:
        ok(driver.cuCtxSetCurrent(self.contexts[device]))
        return self.streams[device]

    def allocate(self) -> None:
        if len(self.blocks) > 40:
            return
        device, size, value = (
            self.random.randrange(N_DEVICES),
            self.random.randrange(1, 20_000),
            self.random.randrange(256),
        )
        on = self.use(device)
        address = int(ok(driver.cuMemAllocAsync(size, on)))
        ok(driver.cuMemsetD8Async(address, value, size, on))
        self.blocks.append((device, address, size, value))

    def pop(self) -> tuple[int, int, int, int] | None:
        return self.blocks.pop(self.random.randrange(len(self.blocks))) if self.blocks else None

    def free(self) -> None:
        if block := self.pop():
            ok(driver.cuMemFreeAsync(block[1], self.use(block[0])))

    def refill(self) -> None:
        if block := self.pop():
            device, address, size, _ = block
            value = self.random.randrange(256)
            ok(driver.cuMemcpyHtoDAsync(address, bytes([value]) * size, size, self.use(device)))
            self.blocks.append((device, address, size, value))

    def copy(self) -> None:
        """From one device to another, ordered by events both ways."""
        source, target = self.pop(), self.pop()
        if source and target:
            size = min(source[2], target[2])
            made = self.mark(source[0])
            on = self.use(target[0])
            ok(driver.cuStreamWaitEvent(on, made, 0))
            ok(driver.cuMemcpyAsync(target[1], source[1], size, on))
            if size < target[2]:
                ok(driver.cuMemsetD8Async(target[1] + size, source[3], target[2] - size, on))
            back = self.mark(target[0])
            ok(driver.cuStreamWaitEvent(self.use(source[0]), back, 0))
            ok(driver.cuEventDestroy(made))
            ok(driver.cuEventDestroy(back))
            target = (*target[:3], source[3])
        self.blocks += [block for block in (source, target) if block]

    def mark(self, device: int) -> Any:
        on = self.use(device)
        made = ok(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        ok(driver.cuEventRecord(made, on))
        return made

    def check(self) -> None:
        if block := self.pop():
            device, address, size, value = block
            found = ctypes.create_string_buffer(size)
            ok(driver.cuMemcpyDtoHAsync(found, address, size, self.use(device)))
            assert found.raw == bytes([value]) * size
            self.blocks.append(block)

    def record(self) -> None:
        device = self.random.randrange(N_DEVICES)
        self.events.append((device, self.mark(device)))

    def wait(self) -> None:
        if self.events:
            device, made = self.events.pop(0)
            ok(driver.cuStreamWaitEvent(self.use(self.random.randrange(N_DEVICES)), made, 0))
            self.use(device)
            ok(driver.cuEventDestroy(made))


def mixed() -> None:
    contexts = [context(device) for device in range(N_DEVICES)]
    failures: list[BaseException] = []

    def body(number: int) -> None:
        try:
            Worker(number, contexts).run(N_OPERATIONS)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=body, args=(number,)) for number in range(N_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
        assert not thread.is_alive()
    assert not failures
    for current in contexts:
        ok(driver.cuCtxSetCurrent(current))
        ok(driver.cuCtxSynchronize())
        free, total = ok(driver.cuMemGetInfo())
        assert free == total
    assert live() == (0, 0)
    assert hazards() == []


@pytest.mark.parametrize("jitter_us", [0, 30])
def test_mixed_operations_from_eight_threads(child: Child, jitter_us: int) -> None:
    child(mixed, devices=N_DEVICES, memory="64MiB", jitter_us=jitter_us)


def destroyed_under_way() -> None:
    """Threads that end with work in their default streams, streams destroyed with work, contexts reset under it."""
    for round_ in range(30):
        current = context()
        data = int(ok(driver.cuMemAlloc(800)))

        def body(part: int, current: Any = current) -> None:
            ok(driver.cuCtxSetCurrent(current))
            for value in range(5):
                ok(driver.cuMemsetD8Async(part, value, 100, driver.CU_STREAM_PER_THREAD))
            doomed = stream()
            ok(driver.cuMemsetD8Async(part + 100, 9, 100, doomed))
            ok(driver.cuStreamDestroy(doomed))

        threads = [threading.Thread(target=body, args=(data + 200 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        if round_ % 2:
            ok(driver.cuDevicePrimaryCtxReset(0))
        else:
            ok(driver.cuCtxSynchronize())
            assert read(data, 800) == (b"\4" * 100 + b"\t" * 100) * 4
        ok(driver.cuDevicePrimaryCtxRelease(0))
        assert live() == (0, 0)


def test_threads_streams_and_contexts_end_with_work_queued(child: Child) -> None:
    child(destroyed_under_way, jitter_us=200)
