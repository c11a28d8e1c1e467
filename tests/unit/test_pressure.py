"""Handlers of memory pressure: who is asked, in what order, and what becomes of those that fail."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import tazza as tz
from tazza.testing import simulate


def test_larger_priorities_come_first_until_it_is_enough() -> None:
    with tz.open("cpu", memory_limit=10_000) as ctx:
        asked: list[str] = []
        held: dict[str, Any] = {name: ctx.allocate(3000) for name in ("a", "b", "c")}

        def handler(name: str) -> Any:
            def free(nbytes: int) -> None:
                asked.append(f"{name} {nbytes}")
                held.pop(name, None)

            return free

        removals = [
            ctx.memory.on_pressure(handler("c")),
            ctx.memory.on_pressure(handler("a"), priority=5),
            ctx.memory.on_pressure(handler("b")),
        ]
        kept = ctx.allocate(3000)
        assert asked == ["a 3008"], "no more were asked than was needed"
        more = ctx.allocate(6000)
        assert asked[1:] == ["a 6016", "c 6016", "b 6016"], "equal priorities in the order of registration"
        for remove in removals:
            remove()
        with pytest.raises(tz.OutOfMemoryError):
            ctx.allocate(3000)
        assert len(asked) == 4
        del kept, more


def test_only_handlers_that_can_help_a_limit_are_asked() -> None:
    with tz.open("cpu", memory_limit=1000) as small, tz.open("cpu") as other:
        asked: list[str] = []
        other.memory.on_pressure(lambda nbytes: asked.append("other"))
        small.memory.on_pressure(lambda nbytes: asked.append("small"))
        with small.memory.budget(100), pytest.raises(tz.OutOfMemoryError):
            small.allocate(500)
        assert asked == ["small"]


def test_a_full_device_asks_everybody() -> None:
    with simulate(devices=1, memory="64KiB"), tz.open("sim:0") as first, tz.open("sim:0") as second:
        held = [second.allocate(60_000)]
        second.memory.on_pressure(lambda nbytes: held.clear())
        assert first.allocate(60_000).nbytes == 60_000


def test_a_failing_handler_is_reported_once_and_the_next_one_asked(caplog: pytest.LogCaptureFixture) -> None:
    with tz.open("cpu", memory_limit=1024) as ctx:
        held = [ctx.allocate(1000)]

        def broken(nbytes: int) -> None:
            raise OSError("disk full")

        ctx.memory.on_pressure(broken, priority=1)
        with pytest.warns(tz.errors.CleanupWarning, match="broken.*OSError: disk full"), pytest.raises(MemoryError):
            ctx.allocate(500)
        ctx.memory.on_pressure(lambda nbytes: held.clear())
        with caplog.at_level(logging.DEBUG, "tazza.memory"):
            assert ctx.allocate(500).nbytes == 500
        steps = [record.message.rpartition(": ")[2] for record in caplog.records]
        assert steps == ["pending", "short wait", "handlers"]


def test_bad_handlers_are_named() -> None:
    with tz.open("cpu") as ctx:
        memory: Any = ctx.memory
        with pytest.raises(tz.errors.ArgumentError, match="^handler: got"):
            memory.on_pressure(5)
        with pytest.raises(tz.errors.ArgumentError, match="^priority: got"):
            memory.on_pressure(print, priority="high")
