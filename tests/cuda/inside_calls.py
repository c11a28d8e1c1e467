"""Run by test_calls.py on emulated devices: the calls of every day, compiled and through the bindings."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import cuda_emulator
import pytest
from cuda.bindings import driver as api

import tazza as tz
from tazza.drivers.cuda import _calls
from tazza.errors import BackendError
from tazza.hot import COMPILED

INVALID, INJECTED = 400, 304  # INVALID_HANDLE, OPERATING_SYSTEM
NBYTES = 1 << 12


emulator = cuda_emulator.start()
assert not api.cuInit(0)[0]


@contextlib.contextmanager
def failing(call: str, when: int | str = "*") -> Iterator[None]:
    """Have a call of the driver fail inside."""
    emulator.faults = cuda_emulator.Fault(call, when, INJECTED)
    try:
        yield
    finally:
        emulator.faults = ()


class World:
    """A context that is current nowhere, a stream and an event of it, and the calls in one form."""

    def __init__(self, form: str) -> None:
        self.context = answer(api.cuDevicePrimaryCtxRetain(answer(api.cuDeviceGet(0))))
        self.calls: Any = (
            _calls._ThroughBindings(api, self.context) if form == "bindings" else _calls.stream_calls(api, self.context)
        )
        answer(api.cuCtxPushCurrent(self.context))
        self.stream, self.other = answer(api.cuStreamCreate(1)), answer(api.cuStreamCreate(1))
        self.event, self.memory = answer(api.cuEventCreate(2)), answer(api.cuMemAlloc(2 * NBYTES))
        answer(api.cuCtxPopCurrent())


def answer(given: tuple[Any, ...]) -> Any:
    """What a call of the bindings gives beside its status, which is success."""
    assert int(given[0]) == 0, given
    return given[1] if len(given) > 1 else None


@pytest.fixture(params=["compiled", "bindings"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Each form; the thread has no context before and after."""
    if request.param == "compiled" and not COMPILED:
        pytest.skip("tazza is not compiled")
    made = World(request.param)
    assert int(api.cuCtxGetCurrent()[1]) == 0
    yield made
    assert int(api.cuCtxGetCurrent()[1]) == 0, "a context was left in the thread"


def test_the_compiled_form_is_what_a_compiled_install_uses() -> None:
    context = answer(api.cuDevicePrimaryCtxRetain(answer(api.cuDeviceGet(0))))
    assert isinstance(_calls.stream_calls(api, context), _calls._ThroughBindings) is not COMPILED


def test_each_call_does_what_the_driver_does(world: World) -> None:
    calls, memory = world.calls, int(world.memory)
    assert calls.fill(memory, 7, NBYTES, world.stream) is None
    assert calls.record(world.event, world.stream) is None
    assert calls.wait(world.other, world.event) is None
    assert calls.copy(memory + NBYTES, memory, NBYTES, world.other) is None
    answer(api.cuStreamSynchronize(world.other))
    assert calls.query(world.event) is None
    seen = ctypes.create_string_buffer(NBYTES)
    answer(api.cuCtxPushCurrent(world.context))
    answer(api.cuMemcpyDtoH(ctypes.addressof(seen), memory + NBYTES, NBYTES))
    answer(api.cuCtxPopCurrent())
    assert seen.raw == b"\7" * NBYTES


def test_the_status_of_the_call_comes_second(world: World) -> None:
    assert world.calls.record(world.event, api.CUstream(0xBAD)) == (0, INVALID, 0)
    assert world.calls.query(api.CUevent(0xBAD)) == (0, INVALID, 0)


@pytest.mark.parametrize(
    ("call", "statuses"),
    [
        ("cuCtxPushCurrent", (INJECTED, 0, 0)),
        ("cuEventRecord", (0, INJECTED, 0)),
    ],
)
def test_what_fails_is_told_by_its_place(world: World, call: str, statuses: tuple[int, int, int]) -> None:
    with failing(call):
        assert world.calls.record(world.event, world.stream) == statuses
    assert world.calls.record(world.event, world.stream) is None


def test_a_pop_that_fails_is_told_and_made_again() -> None:
    with tz.open("cuda:0") as ctx:
        ctx.stream.record().synchronize(timeout=10)
        with failing("cuCtxPopCurrent", when=1):
            ctx.stream.record().synchronize(timeout=10)
        assert int(api.cuCtxGetCurrent()[1]) == 0


def test_a_driver_that_tells_no_addresses_is_called_through_the_bindings() -> None:
    context = answer(api.cuDevicePrimaryCtxRetain(answer(api.cuDeviceGet(0))))

    class Deaf:
        def __getattr__(self, name: str) -> Any:
            return (lambda *args: (1, 0, 0)) if name == "cuGetProcAddress" else getattr(api, name)

    calls = _calls.stream_calls(Deaf(), context)
    assert isinstance(calls, _calls._ThroughBindings)
    assert calls.query(api.CUevent(0xBAD)) == (0, INVALID, 0)


def test_the_error_names_the_call_and_a_status_that_nobody_knows() -> None:
    with tz.open("cuda:0") as ctx:
        driver: Any = ctx._runtime.driver
        primary = driver.current(ctx._runtime.info)
        with pytest.raises(BackendError, match="no text") as caught:
            primary.refuse("cuEventRecord", (0, 12345, 0))
        assert (caught.value.call, caught.value.code, caught.value.symbol) == ("cuEventRecord", 12345, "CUresult 12345")
