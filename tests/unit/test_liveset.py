"""Objects known as long as they live, while other threads and finalisers make more of them."""

from __future__ import annotations

import sys
import threading

from tazza.util.liveset import LiveSet

TIMEOUT = 60


class Thing:
    pass


def test_what_lives_is_listed() -> None:
    things = LiveSet[Thing]()
    one, other = Thing(), Thing()
    for thing in (one, other, one):
        things.add(thing)
    assert set(things.now()) == {one, other}
    del other, thing
    assert things.now() == [one]


def test_listing_while_threads_add_and_drop() -> None:
    things, kept, over = LiveSet[Thing](), Thing(), threading.Event()
    things.add(kept)

    def churn() -> None:
        while not over.is_set():
            mine = [Thing() for _ in range(50)]
            for thing in mine:
                things.add(thing)

    threads = [threading.Thread(target=churn) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(2000):
            assert kept in things.now()
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join(TIMEOUT)
    assert things.now() == [kept]
