"""Run by test_mixed_operations.py on four emulated devices: eight threads do a great many things at once.

Each thread has memory of its own on every device, with a copy of what it must hold, and sends some of it to other
threads to be used or freed there. Whatever an operation touches was last touched on some other stream, whose event it
waits for. In the end all data are compared and nothing may be left in the driver.
"""

from __future__ import annotations

import gc
import queue
import random
import sys
import threading
import time
from typing import Any

import cuda_emulator
import numpy as np

import tazza as tz
from tests.cuda.failing import nothing_is_left

T = 60.0
THREADS = 8
MOST = 4000
"""Elements of an array, at most."""

HELD = 12
"""Arrays of a thread, beyond which it frees one first."""


class Held:
    """Device memory, what it must hold, and the event after its last use."""

    def __init__(self, ctx: tz.Context, buffer: tz.Buffer, expected: Any, last: tz.Event) -> None:
        self.ctx, self.buffer, self.expected, self.last = ctx, buffer, expected, last
        self.me: Held | None = None  # set where it is to be found by the collector


class Worker:
    """One thread's operations."""

    def __init__(self, number: int, contexts: list[tz.Context], mailboxes: list[queue.SimpleQueue[Held]]) -> None:
        self.number, self.contexts, self.mailboxes = number, contexts, mailboxes
        self.draw = random.Random(number)
        self.streams: dict[int, list[tz.Stream]] = {id(ctx): [ctx.new_stream(), ctx.new_stream()] for ctx in contexts}
        self.held: list[Held] = []
        self.done: dict[str, int] = {}
        self.count = 0
        self.operations = [
            *(self.allocate, self.allocate, self.fill, self.fill, self.copy_within, self.copy_across, self.copy_across),
            *(self.from_host, self.through_pinned, self.launch, self.launch_elsewhere, self.record_and_wait),
            *(self.fill_strided, self.copy_strided, self.copy_strided_across),
            *(self.look, self.drop, self.drop_in_a_cycle, self.send, self.receive, self.renew_stream, self.exceed),
        ]

    def run(self, count: int) -> None:
        """Do at least so many operations of tazza (a step has several), then compare everything."""
        self.allocate()
        while self.count < count:
            operation = self.draw.choice(self.operations)
            if not self.held:
                operation = self.allocate
            elif len(self.held) > HELD:
                operation = self.drop
            operation()
            self.count += 1
            self.done[operation.__name__] = self.done.get(operation.__name__, 0) + 1
        self.streams.clear()
        while self.held:
            self.compare(self.held.pop())

    # Choices -------------------------------------------------------------------------------------------------------

    def any_context(self) -> tz.Context:
        return self.draw.choice(self.contexts)

    def any_stream(self, ctx: tz.Context) -> tz.Stream:
        return self.draw.choice([ctx.stream, *self.streams[id(ctx)]])

    def any_held(self) -> Held:
        return self.draw.choice(self.held)

    def values(self, count: int) -> Any:
        first = self.draw.randrange(1 << 20)
        return np.arange(first, first + count, dtype="int32")

    def after(self, stream: tz.Stream, *held: Held) -> None:
        self.count += len(held)
        for one in held:
            stream.wait(one.last)

    def used(self, stream: tz.Stream, *held: Held) -> None:
        self.count += 1
        last = stream.record()
        for one in held:
            one.last = last
            one.buffer.used_on(stream)

    def keep(self, ctx: tz.Context, stream: tz.Stream, buffer: tz.Buffer, expected: Any) -> None:
        self.count += 2  # the memory, and the record
        self.held.append(Held(ctx, buffer, expected, stream.record()))

    # Operations ----------------------------------------------------------------------------------------------------

    def allocate(self) -> None:
        ctx, count = self.any_context(), self.draw.randrange(1, MOST)
        stream, value = self.any_stream(ctx), self.draw.randrange(1 << 20)
        with ctx.on(stream):
            buffer = ctx.empty((count,), "int32")
        ctx.fill(buffer, value, stream=stream)
        self.keep(ctx, stream, buffer, np.full(count, value, "int32"))

    def fill(self) -> None:
        one = self.any_held()
        stream, value = self.any_stream(one.ctx), self.draw.randrange(1 << 20)
        begin = self.draw.randrange(len(one.expected))
        self.after(stream, one)
        one.ctx.fill(one.buffer[begin:], value, stream=stream)
        one.expected[begin:] = value
        self.used(stream, one)

    def copy_within(self) -> None:
        one = self.any_held()
        stream, count = self.any_stream(one.ctx), len(one.expected) // 2
        begin = self.draw.randrange(count + 1)  # they overlap unless this is the half
        self.after(stream, one)
        one.ctx.copy(one.buffer[begin : begin + count], one.buffer[:count], stream=stream)
        one.expected[begin : begin + count] = one.expected[:count].copy()
        self.used(stream, one)

    def copy_across(self) -> None:
        dst, src = self.any_held(), self.any_held()
        if dst is src:
            return
        stream, count = self.any_stream(dst.ctx), min(len(dst.expected), len(src.expected))
        self.after(stream, dst, src)
        dst.ctx.copy(dst.buffer[:count], src.buffer[:count], stream=stream)
        dst.expected[:count] = src.expected[:count]
        self.used(stream, dst, src)

    def fill_strided(self) -> None:
        one = self.any_held()
        stream, value = self.any_stream(one.ctx), self.draw.randrange(1 << 20)
        begin, step = self.draw.randrange(len(one.expected)), self.draw.randrange(2, 6)
        self.after(stream, one)
        one.ctx.fill(one.buffer[begin::step], value, stream=stream)
        one.expected[begin::step] = value
        self.used(stream, one)

    def copy_strided(self) -> None:
        one = self.any_held()
        stream, count = self.any_stream(one.ctx), len(one.expected) // 2
        self.after(stream, one)
        one.ctx.copy(one.buffer[: 2 * count : 2], one.buffer[:count], stream=stream)  # through memory between
        one.expected[: 2 * count : 2] = one.expected[:count].copy()
        self.used(stream, one)

    def copy_strided_across(self) -> None:
        dst, src = self.any_held(), self.any_held()
        if dst is src:
            return
        stream, step = self.any_stream(dst.ctx), self.draw.randrange(2, 6)
        count = min(len(dst.expected) // step, len(src.expected))
        self.after(stream, dst, src)
        dst.ctx.copy(dst.buffer[: count * step : step], src.buffer[:count], stream=stream)
        dst.expected[: count * step : step] = src.expected[:count]
        self.used(stream, dst, src)

    def from_host(self) -> None:
        ctx, values = self.any_context(), self.values(self.draw.randrange(1, MOST))
        stream = self.any_stream(ctx)
        with ctx.on(stream):
            buffer = ctx.asarray(values)
        self.keep(ctx, stream, buffer, values.copy())
        values[:] = -1  # the copy was taken when asarray returned

    def through_pinned(self) -> None:
        one = self.any_held()
        stream, count = self.any_stream(one.ctx), len(one.expected)
        pinned = one.ctx.memory.pinned.allocate(4 * count, dtype="int32")
        self.after(stream, one)
        one.ctx.copy(pinned, one.buffer, stream=stream)
        one.ctx.fill(one.buffer, 0, stream=stream)
        one.ctx.copy(one.buffer, pinned, stream=stream)
        self.count += 3
        self.used(stream, one)

    def launch(self) -> None:
        one = self.any_held()
        stream, value = self.any_stream(one.ctx), self.draw.randrange(1 << 20)
        one.ctx.launch(put, one.buffer, value, after=(one.last,), stream=stream)
        one.expected[:] = value
        self.used(stream, one)

    def launch_elsewhere(self) -> None:
        one, ctx = self.any_held(), self.any_context()
        task = one.ctx.launch(doubled, one.buffer, after=(one.last,), stream=(first := self.any_stream(one.ctx)))
        self.used(first, one)
        stream = self.any_stream(ctx)
        moved = ctx.launch(lambda x: x, task, stream=stream)
        self.count += 4  # the second launch, and what the first one did
        if len(one.expected) < MOST:
            self.keep(ctx, stream, moved.result(timeout=T), np.tile(one.expected, 2))

    def record_and_wait(self) -> None:
        first, second = (self.any_stream(self.any_context()) for _ in range(2))
        second.wait(first.record())

    def look(self) -> None:
        self.compare(self.any_held())

    def compare(self, one: Held) -> None:
        stream = self.any_stream(one.ctx) if self.streams else one.ctx.stream
        self.after(stream, one)
        with one.ctx.on(stream):
            found = one.ctx.to_numpy(one.buffer)
        assert np.array_equal(found, one.expected), f"thread {self.number} found other data after {self.done}"

    def drop(self) -> None:
        self.held.pop(self.draw.randrange(len(self.held)))

    def drop_in_a_cycle(self) -> None:
        one = self.held.pop(self.draw.randrange(len(self.held)))
        one.me = one

    def send(self) -> None:
        self.draw.choice(self.mailboxes).put(self.held.pop(self.draw.randrange(len(self.held))))

    def receive(self) -> None:
        try:
            one = self.mailboxes[self.number].get_nowait()
        except queue.Empty:  # nobody has sent anything
            return
        if self.draw.random() < 0.5:
            self.held.append(one)

    def renew_stream(self) -> None:
        ctx = self.any_context()
        self.streams[id(ctx)][self.draw.randrange(2)] = ctx.new_stream(priority=self.draw.randrange(3))

    def exceed(self) -> None:
        ctx = self.any_context()
        limit = ctx.memory.limit
        if limit is not None:
            try:
                ctx.allocate(limit + 1)
            except tz.OutOfMemoryError:
                return
            raise AssertionError("more than the limit")


def put(x: tz.Buffer, value: int) -> None:
    """Enqueue a fill in a task's own order."""
    tz.current().fill(x, value)


def doubled(x: tz.Buffer) -> tz.Buffer:
    """Enqueue two copies that put the buffer twice in a row."""
    here, count = tz.current(), x.shape[0]
    made: tz.Buffer = here.empty((2 * count,), x.dtype)
    here.copy(made[:count], x)
    here.copy(made[count:], x)
    return made


def work(count: int) -> tuple[int, dict[str, int]]:
    """Do so many operations in all; returns how many, and how many steps of each kind."""
    names = [device.name for device in tz.devices("cuda")]
    contexts = [tz.context(name, memory_limit=limit) for name in names for limit in (None, "16MiB")]
    mailboxes: list[queue.SimpleQueue[Held]] = [queue.SimpleQueue() for _ in range(THREADS)]
    workers = [Worker(number, contexts, mailboxes) for number in range(THREADS)]
    failures: list[BaseException] = []

    def run(worker: Worker) -> None:
        try:
            worker.run(count // THREADS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20 * T)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]
    for mailbox in mailboxes:
        while not mailbox.empty():
            workers[0].compare(mailbox.get())
    done: dict[str, int] = {}
    for worker in workers:
        for name, times in worker.done.items():
            done[name] = done.get(name, 0) + times
    for ctx in contexts:
        ctx.close(timeout=T)
        assert ctx.health
    return sum(worker.count for worker in workers), done


def main(count: int) -> None:
    """Work, then ask what is left; prints what was done and how long it took."""
    sys.setswitchinterval(1e-4)
    begin = time.monotonic()
    operations, done = work(count)
    gc.collect()
    nothing_is_left()
    calls = sum(cuda_emulator.start().report()["calls"].values())
    seconds = time.monotonic() - begin
    print(f"{operations} operations and {calls} calls of the driver in {seconds:.0f} s: {done}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
