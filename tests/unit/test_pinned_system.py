"""Pinned host memory as the system grants it: locks, limits, drivers that refuse or fail."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

import tazza as tz
from tazza.drivers.cpu import pages
from tazza.errors import BackendError, UnsupportedError
from tazza.testing import Fault, inject, simulate
from tests.process.children import in_fork

PAGE = os.sysconf("SC_PAGE_SIZE")
TIMEOUT = 20.0


def page_locked() -> int:
    """Bytes that this process has locked, as the system counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmLck")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")
def test_the_cpu_locks_pages_and_unlocks_them() -> None:
    with tz.open("cpu") as ctx:
        ctx.memory.pinned.trim()
        before = page_locked()
        buffer = ctx.memory.pinned.allocate(3 * PAGE)
        assert page_locked() - before == 3 * PAGE
        buffer.close()
        assert page_locked() - before == 3 * PAGE  # kept for reuse
        ctx.memory.pinned.trim()
        assert page_locked() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_the_systems_limit_is_an_error_that_says_what_to_do() -> None:
    def child() -> None:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * PAGE, hard))
        if os.geteuid() == 0:
            os.seteuid(65534)  # a process that may lock anything has no limit
        with tz.open("cpu") as ctx:
            kept = ctx.memory.pinned.allocate(6 * PAGE, label="staging")
            with pytest.raises(tz.OutOfMemoryError, match="ulimit -l") as caught:
                ctx.memory.pinned.allocate(3 * PAGE)
            cause = caught.value.__cause__
            assert isinstance(cause, tz.OutOfMemoryError)
            assert (cause.call, cause.limit, cause.live) == ("mlock", 8 * PAGE, 6 * PAGE)
            assert cause.symbol in ("ENOMEM", "EAGAIN")
            assert caught.value.holders[0] == ("staging", 6 * PAGE, 1)
            assert ctx.memory.pinned.reserved == 6 * PAGE  # the refusal left nothing behind
            kept.close()
            assert ctx.memory.pinned.allocate(3 * PAGE).nbytes == 3 * PAGE  # the cache makes room

    in_fork(child)


def test_what_is_not_free_is_refused_before_anything_is_locked() -> None:
    with tz.open("cpu") as ctx:
        with pytest.raises(tz.OutOfMemoryError) as caught:
            ctx.memory.pinned.allocate(2**50)
        assert "free" in str(caught.value.__cause__)


def test_a_simulated_host_pins_as_much_as_a_device_has() -> None:
    with simulate(memory=16 * PAGE), tz.open("sim:0") as one, tz.open("sim:1") as other:
        kept = one.memory.pinned.allocate(10 * PAGE)
        with pytest.raises(tz.OutOfMemoryError, match="page-locked") as caught:
            other.memory.pinned.allocate(10 * PAGE)
        assert "6" in str(caught.value.__cause__)
        kept.close()
        one.memory.pinned.trim()
        assert other.memory.pinned.allocate(10 * PAGE).nbytes == 10 * PAGE


def test_every_handler_is_asked_for_pinned_memory_until_there_is_some() -> None:
    """The device's own free memory says nothing about it."""
    with simulate(memory=16 * PAGE), tz.open("sim:0") as ctx:
        caches = [[ctx.memory.pinned.allocate(8 * PAGE)] for _ in range(2)]
        asked: list[int] = []

        def give_back(index: int) -> None:
            asked.append(index)
            caches[index].clear()

        for index in range(2):
            ctx.memory.on_pressure(lambda nbytes, index=index: give_back(index), priority=-index)  # type: ignore[misc]
        assert ctx.memory.pinned.allocate(16 * PAGE).nbytes == 16 * PAGE
        assert asked == [0, 1]


def test_a_limit_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert pages.locked_limit() is None
    monkeypatch.setattr(pages, "_LIBC", type("Refuses", (), {"mlock": staticmethod(lambda address, nbytes: -1)}))
    with pytest.raises(tz.OutOfMemoryError, match="does not lock") as caught:
        pages.lock(0, PAGE, 0)
    assert "RLIMIT_MEMLOCK is" not in str(caught.value)


def test_a_system_without_page_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    assert pages._library() is None
    monkeypatch.setattr(os, "name", "posix")
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **options: object())
    assert pages._library() is None
    monkeypatch.setitem(__import__("sys").modules, "resource", None)
    assert pages.locked_limit() is None


def test_a_device_without_it_says_so() -> None:
    with simulate(without={"pinned"}) as sim, tz.open("sim:0") as ctx:
        assert not ctx.device.capabilities.pinned
        with pytest.raises(UnsupportedError, match="no page-locked host memory"):
            ctx.memory.pinned.allocate(8)
        with pytest.raises(UnsupportedError, match="no page-locked host memory"):
            sim.driver.pinned_allocate(ctx.device.info, 8)


def test_a_driver_that_fails_leaves_nothing_behind() -> None:
    faults = [Fault("pinned_allocate", 1, BackendError("injected", call="pinned_allocate"))]
    with inject("cpu", faults), tz.open("cpu") as ctx:
        with pytest.raises(BackendError, match="injected"):
            ctx.memory.pinned.allocate(100)
        assert (ctx.memory.pinned.live, ctx.memory.pinned.reserved) == (0, 0)
        assert ctx.memory.pinned.allocate(100).nbytes == 100
