"""The instrumentation point and the process generation."""

from __future__ import annotations

import sys

import pytest

from tazza.errors import CleanupWarning
from tazza.hot import Operation, emit, listen, point
from tazza.hot.process import after_fork, generation, locked
from tests.unit.hot_fakes import FakeContext, make_pool


def test_nobody_listens_at_first_and_after_the_last_one_left() -> None:
    assert point.listeners is None
    first, second = listen(lambda op: None), listen(lambda op: None)
    assert point.listeners is not None
    first()
    first()
    assert point.listeners is not None
    second()
    assert point.listeners is None


def test_allocation_and_free_are_told() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)
    seen: list[Operation] = []
    stop = listen(seen.append)
    try:
        buffer = context.allocate(100, label="x")
        block = buffer.block
        assert seen[0].kind == "allocate"
        assert seen[0].subject is buffer
        assert seen[0].stream is context.stream0
        seen.clear()
        del buffer
        pool.drain()
    finally:
        stop()
    assert [(op.kind, op.label, op.nbytes, op.subject) for op in seen] == [("free", "x", 100, block)]
    assert not block.live


def test_a_listener_that_raises_is_reported_once_and_stays() -> None:
    seen: list[str] = []

    def bad(operation: Operation) -> None:
        seen.append(operation.kind)
        raise ValueError("no")

    stop = listen(bad)
    try:
        with pytest.warns(CleanupWarning, match="bad.*stays subscribed.*no"):
            emit(Operation("record"))
        emit(Operation("wait"))
    finally:
        stop()
    assert seen == ["record", "wait"]


def test_generation_and_locks() -> None:
    assert generation() >= 0
    assert locked("hot/pool.py")
    assert locked("hot/pool.so") is not getattr(sys, "_is_gil_enabled", lambda: True)()
    assert after_fork(_nothing) is _nothing


def _nothing() -> None:
    pass
