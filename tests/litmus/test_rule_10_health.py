"""Rule 10: health belongs to the device. A sticky fault is met by all its contexts and by no other device."""

from __future__ import annotations

from typing import Any

import tazza as tz
from tazza.errors import DeviceLostError
from tests.litmus.harness import SEVERAL, SIM, TIMEOUT, World, attempt, litmus, put


@litmus(10, only="the other device is well", allowed={(False, DeviceLostError, True, 1)}, worlds=SEVERAL)
def test_poison_leaves_other_devices_well(w: World) -> tuple[bool, Any, bool, int]:
    """Lose one of the devices, then use both."""
    here, there = w.here, w.there
    w.lose(0)
    healthy, refused = bool(here.health), attempt(here.allocate, 64)
    return healthy, refused, bool(there.health), w.read(w.cell(1, there))


@litmus(10, only="every context of the device is lost", allowed={(False, False, DeviceLostError)}, worlds=SIM)
def test_poison_is_met_by_every_context(w: World) -> tuple[bool, bool, Any]:
    """Lose a device with two contexts; make a third."""
    one, two = w.here, w.open()
    w.lose(0)
    return bool(one.health), bool(two.health), attempt(tz.context, one.device)


@litmus(
    10,
    only="all are refused, from the first that reaches the driver on",
    allowed={frozenset({DeviceLostError})},
    worlds=SIM,
)
def test_every_call_fails_after_poison(w: World) -> frozenset[Any]:
    """Lose a device and try everything."""
    ctx, x, (a,) = w.here, w.cell(), w.streams(1)
    w.lose(0)
    calls = (
        lambda: ctx.fill(x, 1),
        lambda: ctx.allocate(64),
        lambda: ctx.copy(x, bytes(8)),
        lambda: ctx.launch(int),
        lambda: ctx.new_stream(),
        lambda: ctx.synchronize(timeout=TIMEOUT),
        lambda: ctx.to_numpy(x),
        lambda: ctx.random.random(4),
        lambda: a.record(),
        lambda: a.synchronize(timeout=TIMEOUT),
        lambda: a.wait(w.here.stream),
    )
    return frozenset(attempt(call) for call in calls)


@litmus(10, only="the first cause, with what was in flight", allowed={(True, False, True)}, worlds=SIM)
def test_the_first_cause_stays(w: World) -> tuple[bool, bool, bool]:
    """Lose a device twice while a task is held back."""
    gate, (a,) = tz.HostEvent(), w.streams(1)
    a.wait(gate)
    task = w.here.launch(int, stream=a, label="held back")
    first, second = w.lose(0, "first reason"), w.lose(0, "second reason")
    cause = w.here.health.cause
    gate.succeed()
    attempt(task.result, timeout=TIMEOUT)
    assert cause is not None
    return first in str(cause), second in str(cause), "held back" in cause.in_flight


@litmus(10, only="the wait ends with the loss", allowed={DeviceLostError}, worlds=SIM)
def test_a_wait_on_a_lost_device_ends(w: World) -> Any:
    """A task is queued; the device is lost; ask for its result."""
    gate, (a,) = tz.HostEvent(), w.streams(1)
    a.wait(gate)
    task = w.here.launch(int, stream=a)
    w.lose(0)
    gate.succeed()
    return attempt(task.result, timeout=TIMEOUT)


@litmus(10, only="the new context works, the old one stays lost", allowed={(True, 1, False)}, worlds=SIM)
def test_rebuild_after_poison(w: World) -> tuple[bool, int, bool]:
    """Lose a device, rebuild a context on it and use that."""
    old = w.here
    w.lose(0)
    fresh = old.rebuild()
    x = fresh.allocate(8, dtype="int64")
    fresh.launch(put, x, 1)
    value = int(fresh.to_numpy(x)[0])
    healthy = bool(fresh.health) and fresh.spec == old.spec
    fresh.close(timeout=TIMEOUT)
    return healthy, value, bool(old.health)


@litmus(10, only="the data arrives, moved from the old driver's memory", allowed={(5, True)}, worlds=SEVERAL)
def test_rebuilding_one_device_leaves_the_memory_of_others(w: World) -> tuple[int, bool]:
    """Lose and rebuild one device; a new context on the other takes over a buffer of an old one there."""
    x, old = w.cell(5, w.there), w.here
    w.lose(0)
    old.rebuild().close(timeout=TIMEOUT)
    with tz.open(w.there.device.name) as fresh:
        return int(fresh.to_numpy(fresh.asarray(x))[0]), bool(w.there.health)


@litmus(10, only="closing it neither hangs nor raises", allowed={None}, worlds=SIM)
def test_closing_a_lost_context(w: World) -> Any:
    """Lose a device with work held back, then close its context."""
    ctx, gate = w.open(), tz.HostEvent()
    (a,) = w.streams(1, ctx)
    a.wait(gate)
    ctx.launch(int, stream=a)
    w.lose(0)
    closed = attempt(ctx.close, timeout=TIMEOUT, abandon=True)
    gate.succeed()
    return closed
