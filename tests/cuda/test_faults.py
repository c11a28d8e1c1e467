"""What happens when the driver refuses, a device breaks, a process forks or ends; each in a child of its own."""

from __future__ import annotations

import pytest

from tests.cuda.conftest import Child

START = """
import cuda_emulator, numpy as np, pytest, tazza as tz
from tazza.errors import *
emulator = cuda_emulator.start()
T = 20
"""


def test_looking_at_devices_makes_no_context(emulated: Child) -> None:
    emulated(
        START
        + """
import sys
assert [s.usable for s in tz.backends() if s.name == "cuda"] == [True]
assert "cuda.bindings" not in sys.modules
found = tz.devices("cuda")
assert len({one.uuid for one in found}) == 2 and all(one.uuid.startswith("GPU-") for one in found)
assert "cuDevicePrimaryCtxRetain" not in emulator.report()["calls"]
assert tz.device("auto").kind == "cpu"
"""
    )


def test_the_mask_of_visible_devices_is_the_drivers(emulated: Child) -> None:
    emulated(
        START
        + """
import os
os.environ["CUDA_VISIBLE_DEVICES"] = "1"
[only] = tz.devices("cuda")
assert only.name == "cuda:0" and only.uuid.endswith("1"), only.uuid
assert tz.context("cuda").native.ordinal == 0
"""
    )


def test_the_callers_cuda_context_is_put_back(emulated: Child) -> None:
    emulated(
        START
        + """
from cuda.bindings import driver
ctx, other = tz.context("cuda:0"), tz.context("cuda:1")
def current(): return int(driver.cuCtxGetCurrent()[1])
def use():
    x = ctx.asarray(np.ones(4))
    emulator.faults = "cuMemAlloc:*:OUT_OF_MEMORY"
    with pytest.raises(OutOfMemoryError): ctx.allocate(1 << 20)
    emulator.faults = ()
    assert ctx.to_numpy(x).sum() == 4
use()
assert current() == 0
driver.cuCtxPushCurrent(driver.CUcontext(other.cuda_context))
use()
assert current() == other.cuda_context
"""
    )


def test_memory_that_the_driver_refuses_is_named_and_had_later(emulated: Child) -> None:
    emulated(
        START
        + """
with tz.open("cuda") as ctx:
    emulator.faults = "cuMemAlloc:*:OUT_OF_MEMORY"
    with pytest.raises(OutOfMemoryError) as caught: ctx.allocate(4096)
    assert caught.value.requested == 4096 and ctx.health
    with pytest.raises(OutOfMemoryError) as caught: ctx.device.driver.memory_allocate(ctx.device.info, 64)
    assert (caught.value.symbol, caught.value.call) == ("CUDA_ERROR_OUT_OF_MEMORY", "cuMemAlloc"), repr(caught.value)
    emulator.faults = "cuMemAlloc:1:OUT_OF_MEMORY"
    ctx.allocate(4096)  # after relief it is tried once more
    emulator.faults = ()
    with pytest.raises(OutOfMemoryError): ctx.allocate(1 << 40)
    ctx.allocate(4096)
"""
    )


@pytest.mark.parametrize("operation", ["fill", "copy", "kernel"])
def test_a_fault_in_the_queue_poisons_every_context_of_that_device_and_no_other(
    emulated: Child, operation: str
) -> None:
    emulated(
        START
        + f"""
one, two, other = tz.context("cuda:0"), tz.context("cuda:0"), tz.context("cuda:1")
x, y, there = one.allocate(64), one.allocate(64), other.allocate(64)
put = one.compile('extern "C" __global__ void put(char *x) {{ *x = 2; }}', "put")
def late(): tz.current().fill(x, 1); tz.current().copy(y, x); put[1, 1](x)
emulator.faults = "@{operation}:1:ILLEGAL_ADDRESS:device=0"
task = one.launch(late)
with pytest.raises(DeviceLostError): one.synchronize(timeout=T)
emulator.faults = ()
for ctx in (one, two):
    assert not ctx.health and "ILLEGAL_ADDRESS" in str(ctx.health.cause)
    for use in (
        lambda: ctx.allocate(64), lambda: ctx.fill(x, 1), lambda: ctx.launch(print),
        lambda: ctx.launch(put[1, 1], x), lambda: ctx.compile("", "put"),
    ):
        with pytest.raises(DeviceLostError) as caught: use()
        assert "ILLEGAL_ADDRESS" in str(caught.value) and "rebuild" in str(caught.value), caught.value
with pytest.raises(BackendError): task.result(timeout=T)
with pytest.raises(DeviceLostError): tz.context("cuda:0").allocate(8)
other.fill(there, 7)
assert other.to_numpy(there).tolist() == [7] * 64 and other.health
fresh = one.rebuild()
put = fresh.compile('extern "C" __global__ void put(char *x) {{ *x = 2; }}', "put")
z = fresh.allocate(64)
fresh.launch(put[1, 1], z).result(timeout=T)
fresh.copy(z[1:], there[1:]), fresh.synchronize(timeout=T)
assert fresh.to_numpy(z).tolist() == [2] + [7] * 63 and fresh.health and not one.health
del x, y, z, put
for ctx in (one, two, other, fresh): ctx.close(timeout=T)
"""
    )


@pytest.mark.parametrize("jitter", [0, 300, 3000])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_no_data_are_handed_out_that_a_fault_has_kept_from_arriving(emulated: Child, jitter: int, nth: int) -> None:
    emulated(
        START
        + f"""
ctx = tz.context("cuda")
x, pinned = ctx.allocate(64), ctx.memory.pinned.allocate(64)
np.asarray(pinned)[:] = 0
emulator.faults = "@copy:{nth}:ILLEGAL_ADDRESS"
seen = []
with pytest.raises(BackendError):
    ctx.fill(x, 7)
    ctx.copy(ctx.allocate(64), x)
    ctx.copy(pinned, x)
    seen.append(np.asarray(pinned).tolist())
    seen.append(ctx.to_numpy(x).tolist())
assert all(values == [7] * 64 for values in seen), seen
assert not ctx.health
del x, pinned
ctx.close(timeout=T)
""",
        jitter_us=jitter,
    )


def test_a_device_that_falls_off_the_bus_is_lost(emulated: Child) -> None:
    emulated(
        START
        + """
ctx, other = tz.context("cuda:1"), tz.context("cuda:0")
x = ctx.allocate(64)
emulator.lose_device(1)
with pytest.raises(BackendError): ctx.fill(x, 1); ctx.synchronize(timeout=T)
assert not ctx.health and other.health
assert other.to_numpy(other.asarray(np.ones(3))).sum() == 3
del x
ctx.close(timeout=T), other.close(timeout=T)
"""
    )


def test_without_peer_access_copies_go_through_the_host(emulated: Child) -> None:
    emulated(
        START
        + """
with tz.open("cuda:0") as one, tz.open("cuda:1") as two:
    there = two.asarray(one.asarray(np.arange(50_000)))
    assert (two.to_numpy(there) == np.arange(50_000)).all()
    two.copy(there[:10], one.asarray(np.full(10, 5)))
    assert two.to_numpy(there)[:11].tolist() == [5] * 10 + [10]
assert "cuCtxEnablePeerAccess" not in emulator.report()["calls"]
""",
        peers="none",
    )


def test_any_call_may_fail_once_and_everything_works_on(emulated: Child) -> None:
    out = emulated(
        START
        + """
TWICE = cuda_emulator.compile_kernels(  # once, for all the programs below
    'extern "C" __global__ void twice(double *x, int n) { for (int i = 0; i < n; i++) x[i] *= 2; }'
)
def put(x, twice): tz.current().fill(x, 1.5); twice[1, 1](x, 1000); return x
def program():
    with tz.open("cuda:0") as one, tz.open("cuda:1") as two:
        x = one.asarray(np.arange(1000, dtype="float64"))
        one.fill(x[10:20], 2.0)
        y = two.asarray(one.launch(put, x, one.compile(TWICE, "twice")).result(timeout=T))
        two.random.random(100)
        pinned = two.memory.pinned.allocate(8000, dtype="float64")
        two.copy(pinned, y, stream=two.new_stream())
        two.synchronize(timeout=T)
        assert (two.to_numpy(y) == 3.0).all() and (np.asarray(pinned) == 3.0).all()
        del x, y, pinned
        one.memory.trim(), two.memory.trim(), two.memory.pinned.trim()
program()
calls, tried = sorted(emulator.report()["calls"]), 0
for call in calls:
    name = call.split("_v")[0].removesuffix("_ptsz")
    for when in (1, 2, 5):
        emulator.faults = f"{name}:{when}:INVALID_VALUE"
        try:
            program()
        except TazzaError:
            tried += 1
        except AssertionError:
            raise AssertionError(f"wrong data after {name} failed for the {when}. time") from None
        emulator.faults = ()
        program()
print(len(calls), tried)
assert tried > 20
"""
    )
    assert out


def test_on_hardware_a_lost_device_wants_a_new_process(emulated: Child) -> None:
    emulated(
        START
        + """
from tazza.drivers.cuda import driver
driver.is_emulated = lambda: False  # the driver is taken for a real one
ctx = tz.context("cuda:0")
assert not ctx.device.info.emulated and not ctx.device.capabilities.rebuild
emulator.lose_device(0)
with pytest.raises(DeviceLostError): ctx.synchronize(T), ctx.allocate(1 << 20)
with pytest.raises(DeviceLostError, match="new process"): ctx.launch(len, ())
with pytest.raises(UnsupportedError, match="new process"): ctx.rebuild()
"""
    )


def test_what_the_driver_refuses_to_take_back_is_tried_again(emulated: Child) -> None:
    emulated(
        START
        + """
with tz.open("cuda", pool="direct") as ctx:
    x = ctx.allocate(4096)
    with emulator.injecting("cuMemFree:*:INVALID_VALUE"):
        x.close()
        with pytest.raises(BackendError) as caught: ctx.memory.trim()
    assert caught.value.call == "cuMemFree" and emulator.live_bytes() == 4096
    ctx.memory.trim()
    assert emulator.live_bytes() == 0
    stream = ctx.new_stream()
    with emulator.injecting("cuStreamDestroy:1:INVALID_VALUE"), pytest.warns(CleanupWarning, match="cuStreamDestroy"):
        del stream
        ctx.synchronize(T), ctx.allocate(1)
    streams = emulator.report()["objects"]["stream"]
    ctx.memory.trim()
    assert emulator.report()["objects"]["stream"] == streams - 1
    x = ctx.asarray(np.arange(100))
    with emulator.injecting("cuMemFreeAsync:1:INVALID_VALUE"), pytest.raises(BackendError, match="cuMemFreeAsync"):
        ctx.copy(x[1:], x[:-1])
    ctx.synchronize(T)
    del x
    ctx.memory.trim()
    assert emulator.live_bytes() == 0
"""
    )


def test_trimming_waits_for_no_queue_and_gives_back_what_it_has_done_with(emulated: Child) -> None:
    emulated(
        START
        + """
import ctypes, threading
from cuda.bindings import driver
gate = threading.Event()
held = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: gate.wait(T) and None)
with tz.open("cuda", pool="direct") as ctx:
    x = ctx.asarray(np.arange(100))
    before = emulator.live_bytes()
    status, = driver.cuLaunchHostFunc(int(ctx.stream.native), ctypes.cast(held, ctypes.c_void_p).value, 0)
    assert not status
    with emulator.injecting("cuMemFreeAsync:1:INVALID_VALUE"), pytest.raises(BackendError, match="cuMemFreeAsync"):
        ctx.copy(x[1:], x[:-1])
    kept = emulator.live_bytes()
    assert kept > before
    with emulator.injecting("cuEventQuery:1:INVALID_VALUE"), pytest.raises(BackendError, match="cuEventQuery"):
        ctx.memory.trim()
    ctx.memory.trim()
    assert emulator.live_bytes() == kept  # the queue stands still before it
    gate.set()
    ctx.synchronize(T)
    ctx.memory.trim()
    assert emulator.live_bytes() == before
"""
    )


def test_the_first_cause_is_told_once_and_later_calls_say_what_it_was(emulated: Child) -> None:
    emulated(
        START
        + """
ctx = tz.context("cuda")
driver, info = ctx.device.driver, ctx.device.info
with emulator.injecting("cuMemAlloc:1:LAUNCH_FAILED:sticky"), pytest.raises(DeviceLostError) as first:
    driver.memory_allocate(info, 64)
assert (first.value.call, first.value.symbol) == ("cuMemAlloc", "CUDA_ERROR_LAUNCH_FAILED")
text = str(first.value)
assert (text.count("cuMemAlloc"), text.count("LAUNCH_FAILED")) == (1, 1), text
assert driver.poison(info) == text
with pytest.raises(DeviceLostError) as later: driver.memory_info(info)
assert later.value.call == "cuMemGetInfo" and str(later.value) == f"cuda.cuMemGetInfo: {text}", later.value
assert text in str(ctx.health.cause)
"""
    )


def test_an_event_of_which_the_driver_cannot_tell_is_neither_over_nor_failed(emulated: Child) -> None:
    emulated(
        START
        + """
import asyncio
ctx = tz.context("cuda")
stream, gate = ctx.new_stream(), tz.HostEvent()
x = ctx.allocate(1 << 20)
ctx.fill(x, 7, stream=stream)
event = stream.record()
with emulator.injecting("cuEventQuery:*:INVALID_VALUE"):
    async def awaits(): await stream.record()
    with pytest.raises(BackendError): asyncio.run(awaits())
    x.close()
    for ask in (lambda: event.is_done, event.synchronize, ctx.synchronize, stream.synchronize, ctx.close):
        with pytest.raises(BackendError, match="cuEventQuery"): ask()
assert event.status in (tz.EventStatus.SCHEDULED, tz.EventStatus.SUCCESS)
event.synchronize(T)
ctx.synchronize(T)
ctx.close(timeout=T)
assert ctx.health and ctx.memory.stats().live == 0
""",
        jitter_us=2000,
    )


def test_a_context_that_was_not_taken_off_is_taken_off_again(emulated: Child) -> None:
    emulated(
        START
        + """
from cuda.bindings import driver
ctx = tz.context("cuda")
with emulator.injecting("cuCtxPopCurrent:1:INVALID_VALUE"):
    ctx.allocate(1 << 20)
assert int(driver.cuCtxGetCurrent()[1]) == 0
with emulator.injecting("cuCtxPopCurrent:*:INVALID_VALUE"), pytest.raises(BackendError, match="stays current"):
    ctx.allocate(64 << 10), ctx.allocate(2 << 20)
"""
    )


def test_a_forked_child_is_told_and_the_parent_goes_on(emulated: Child) -> None:
    emulated(
        START
        + """
from tests.process.children import in_fork
ctx = tz.context("cuda")
x = ctx.asarray(np.ones(4))
def child():
    with pytest.raises(ForkedError): ctx.fill(x, 1.0)
    with pytest.raises(ForkedError): ctx.launch(print)
    with pytest.raises(BackendUnavailableError, match="spawn"): tz.context("cuda")
    assert tz.device("auto").kind == "cpu"
    with tz.open("cpu") as cpu: assert cpu.asarray(np.ones(4)).sum() == 4
    ctx.close(); repr(ctx)
in_fork(child)
assert ctx.to_numpy(x).sum() == 4
ctx.close(timeout=T)
"""
    )


def test_the_process_may_end_with_work_in_the_queue(emulated: Child) -> None:
    out = emulated(
        START
        + """
import sys, atexit
sys.stderr = sys.stdout
ctx = tz.context("cuda")
x = ctx.allocate(1 << 20)
kept = [ctx.launch(lambda x=x: tz.current().fill(x, 1)) for _ in range(20)]
leaked = tz.context("cuda:1").allocate(64)
""",
        jitter_us=2000,
    )
    assert not out


def test_memory_runs_out_while_a_dropped_kernel_still_runs(emulated: Child) -> None:
    """Relief takes the program for one of the things that are not back yet."""
    emulated(
        START
        + """
from tests.cuda.kernels import SOURCE
with tz.open("cuda") as ctx:
    put, x = ctx.compile(SOURCE, "put"), ctx.allocate(64, dtype="int64")
    for _ in range(20):
        ctx.launch(put[1, 8], 8, 3, x)
    del put
    with pytest.raises(OutOfMemoryError): ctx.allocate(1 << 40)
""",
        jitter_us=20_000,
    )
