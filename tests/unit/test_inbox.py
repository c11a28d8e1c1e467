"""The queue of helper threads: nothing is lost, and a short wait ends."""

from __future__ import annotations

import doctest
import threading
import time

from tazza.util import inbox
from tazza.util.inbox import Inbox

TIMEOUT = 20.0


def test_nothing_is_lost_between_short_waits() -> None:
    box, count, writers, taken = Inbox(), 3000, 3, list[int]()
    done = threading.Event()

    def read() -> None:
        while len(taken) < count * writers:
            taken.extend(box.take(1e-6))
        done.set()

    def write(first: int) -> None:
        for number in range(count):
            box.put(first + number)

    threads = [threading.Thread(target=read, daemon=True)]
    threads += [threading.Thread(target=write, args=(count * writer,), daemon=True) for writer in range(writers)]
    for thread in threads:
        thread.start()
    assert done.wait(TIMEOUT)
    assert sorted(taken) == list(range(count * writers))
    for writer in range(writers):  # each writer's own order
        mine = [number for number in taken if number // count == writer]
        assert mine == sorted(mine)


def test_a_wait_ends_after_something_was_taken_without_waiting() -> None:
    box, start = Inbox(), time.monotonic()
    for number in range(2000):
        box.put(number)
        assert box.take(1e-6) == [number]
        assert box.take(1e-6) == []
    assert time.monotonic() - start < TIMEOUT


def test_the_example_runs() -> None:
    assert doctest.testmod(inbox).failed == 0
