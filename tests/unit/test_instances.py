"""Finding objects by class while other threads make tuples, which a plain list of all objects would break."""

from __future__ import annotations

import threading

import pytest

from tazza.hot import COMPILED

pytestmark = pytest.mark.skipif(not COMPILED, reason="uncompiled: objects are declared not to be looked for")


class Wanted:
    """A class of its own."""


class Derived(Wanted):
    """Counts too."""


def test_objects_of_a_class_and_of_those_derived_from_it_are_found() -> None:
    from tazza.hot.instances import instances_of

    made = [Wanted(), Derived()]
    assert sorted(map(id, instances_of(Wanted))) == sorted(map(id, made))
    assert instances_of(Derived) == made[1:]


def test_other_threads_may_fill_tuples_meanwhile() -> None:
    from tazza.hot.instances import instances_of

    stop, failures = threading.Event(), list[BaseException]()

    def fill() -> None:
        try:
            while not stop.is_set():
                assert len(tuple(number for number in range(1000))) == 1000
        except BaseException as error:  # looked at below, in the thread of the test
            failures.append(error)

    threads = [threading.Thread(target=fill) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        instances_of(Wanted)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not failures
