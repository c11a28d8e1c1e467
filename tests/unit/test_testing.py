"""The test tools themselves: simulated devices, jitter, faults."""

from __future__ import annotations

import sys
import threading

import pytest

import tazza as tz
from tazza.core import registry
from tazza.errors import ArgumentError, BackendError, DeviceLostError, OutOfMemoryError
from tazza.hot import point
from tazza.spi import Driver
from tazza.testing import Fault, FaultyDriver, inject, jitter, random_faults, simulate

TIMEOUT = 20.0


# Simulated devices -------------------------------------------------------------------------------------------------


def test_simulate_replaces_the_devices_and_restores_them() -> None:
    before = registry.driver("sim")
    with simulate(devices=3, memory="1MiB", without={"timing", "peer_copy"}) as sim:
        assert [device.name for device in tz.devices("sim")] == ["sim:0", "sim:1", "sim:2"]
        assert [device.memory_total for device in sim.devices] == [2**20] * 3
        assert not sim.devices[0].capabilities.timing
        assert not sim.devices[0].capabilities.peer_copy
        assert sim.devices[0].capabilities.cross_device_wait
        assert "3 device(s), seed 0" in repr(sim)
    assert registry.driver("sim") is before


def test_simulate_nests() -> None:
    with simulate(devices=1) as outer:
        with simulate(devices=4):
            assert len(tz.devices("sim")) == 4
        assert registry.driver("sim") is outer.driver
        with tz.open("sim:0") as ctx:
            assert ctx.launch(int, 1).result(timeout=TIMEOUT) == 1


def test_simulate_decorates() -> None:
    @simulate(devices=5)
    def count() -> int:
        return len(tz.devices("sim"))

    assert count() == 5


def test_simulated_devices_are_fresh_each_time() -> None:
    for _ in range(2):
        with simulate(devices=1) as sim, tz.open("sim:0") as ctx:
            assert ctx.health
            sim.lose(0, "injected")
            with pytest.raises(DeviceLostError, match="injected"):
                ctx.synchronize(timeout=TIMEOUT)


def test_the_devices_come_back_after_a_failure() -> None:
    before = registry.driver("sim")
    with pytest.raises(KeyError), simulate():
        raise KeyError("body")
    assert registry.driver("sim") is before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": 0}, "devices: got 0"),
        ({"without": {"gravity"}}, "gravity"),
        ({"memory": "much"}, "memory"),
    ],
)
def test_simulate_refuses_what_cannot_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(ArgumentError, match=words), simulate(**options):  # type: ignore[arg-type]
        pytest.fail("must not be entered")


def test_losing_a_device_that_is_not_there() -> None:
    with simulate(devices=2) as sim, pytest.raises(ArgumentError, match="index below 2"):
        sim.lose(2, "injected")


# Jitter ------------------------------------------------------------------------------------------------------------


def test_jitter_is_gone_afterwards() -> None:
    before = sys.getswitchinterval()
    listeners = point.listeners
    with pytest.raises(KeyError), jitter(seed=1):
        assert point.listeners != listeners
        raise KeyError("body")
    assert sys.getswitchinterval() == before
    assert point.listeners == listeners


def test_jitter_lets_other_threads_in() -> None:
    came = threading.Event()
    with jitter(seed=2, chance=1.0), tz.open("cpu") as ctx:
        thread = threading.Thread(target=came.set)
        thread.start()
        for _ in range(10_000):
            ctx.launch(int)
            if came.is_set():
                break
        thread.join(TIMEOUT)
    assert came.is_set()


# Faults ------------------------------------------------------------------------------------------------------------


def test_the_nth_call_fails_and_the_others_do_not() -> None:
    error = BackendError("injected", call="fill")
    with inject("cpu", [Fault("fill", 2, error)]) as driver, tz.open("cpu") as ctx:
        x = ctx.allocate(8)
        ctx.fill(x, 1)
        with pytest.raises(BackendError, match="injected"):
            ctx.fill(x, 2)
        assert ctx.to_numpy(x).tolist() == [1] * 8
        ctx.fill(x, 3)
        assert ctx.to_numpy(x).tolist() == [3] * 8
    assert [fault.nth for fault in driver.fired] == [2]
    assert "1 of 1 faults met" in repr(driver)


def test_the_plan_keeps_no_frame_of_who_met_the_fault() -> None:
    """A frame keeps its callers, and what they hold: memory of a call that went on after relief."""
    error = OutOfMemoryError("injected")
    with inject("cpu", [Fault("memory_allocate", 1, error)]) as driver, tz.open("cpu", pool="direct") as ctx:
        kept = ctx.allocate(64)
        assert [fault.error for fault in driver.fired] == [error]
        assert error.__traceback__ is None
        del kept
        assert ctx.memory.stats().live == 0


def test_an_injected_driver_is_taken_out_again() -> None:
    before = registry.driver("cpu")
    with inject("cpu", ()) as driver:
        assert registry.driver("cpu") is driver
    assert registry.driver("cpu") is before


def test_every_primitive_is_forwarded() -> None:
    driver = FaultyDriver(registry.driver("cpu"), ())
    assert isinstance(driver, Driver)
    info = driver.devices()[0]
    assert driver.capabilities(info) == registry.driver("cpu").capabilities(info)
    primitives = [name for name, member in vars(Driver).items() if callable(member) and name[0] != "_"]
    assert all(getattr(FaultyDriver, name) is not getattr(Driver, name) for name in primitives)
    assert len(primitives) > 20


def test_a_fault_on_a_device_queue_is_a_failure_and_not_a_hang() -> None:
    with simulate(devices=1), inject("sim", [Fault("enqueue", 1, BackendError("injected"))]):
        with tz.open("sim:0") as ctx:
            failed, fine = ctx.launch(int, 1), ctx.launch(int, 2)
            with pytest.raises(BackendError, match="injected"):
                failed.result(timeout=TIMEOUT)
            assert fine.result(timeout=TIMEOUT) == 2


def test_random_faults_repeat_with_the_seed() -> None:
    calls = ("copy", "fill")
    error = BackendError("injected")
    plan = random_faults(7, calls, rate=0.1, error=error)
    assert plan == random_faults(7, calls, rate=0.1, error=error)
    assert plan != random_faults(8, calls, rate=0.1, error=error)
    assert {fault.call for fault in plan} == set(calls)
    assert 100 < len(plan) < 300
    assert not random_faults(7, calls, rate=0.0)


@pytest.mark.parametrize(("call", "nth", "words"), [("teleport", 1, "a primitive of Driver"), ("copy", 0, "1 for")])
def test_impossible_faults_are_refused(call: str, nth: int, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Fault(call, nth, BackendError("injected"))
