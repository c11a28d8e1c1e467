"""Wrong names, sizes, dtypes, layouts, objects and memory: a typed error that says what came and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import (
    ArgumentError,
    ClosedError,
    NoCurrentContextError,
    OutOfMemoryError,
    TazzaError,
    UnsupportedError,
    UsageError,
    WrongDeviceError,
)


@dataclass
class Things:
    """What a user has at hand when he gets something wrong."""

    cpu: tz.Context
    sim: tz.Context
    other: tz.Context
    host: tz.Buffer
    device: tz.Buffer


@pytest.fixture
def has() -> Iterator[Things]:
    with tz.open("cpu") as cpu, tz.open("sim:0") as sim, tz.open("sim:1") as other:
        yield Things(cpu, sim, other, cpu.allocate(8), sim.allocate(8, dtype="float64"))


Case = tuple[Callable[[Things], Any], type[TazzaError], str]

_DEVICES: list[Case] = [
    (lambda has: tz.device("tpu:0"), ArgumentError, "a backend among .*cpu"),
    (lambda has: tz.devices("tpu"), ArgumentError, "a backend among .*cpu"),
    (lambda has: tz.open("tpu"), ArgumentError, "a backend among .*cpu"),
    (lambda has: tz.device("sim:99"), ArgumentError, "an index below .*sim:0"),
    (lambda has: tz.device("cpu:-1"), ArgumentError, "a name like 'cpu', 'sim:1'"),
    (lambda has: tz.device(""), ArgumentError, "a name like"),
    (lambda has: tz.device(3), ArgumentError, "a name like 'cpu:0' or a Device"),  # type: ignore[arg-type]
    (lambda has: tz.device("cpu:0[900]"), ArgumentError, "processors of this process"),
    (lambda has: tz.device("sim:0[1]"), UnsupportedError, "use the whole device"),
    (lambda has: tz.device("cpu").split(0), ArgumentError, "count: got 0 .*from 1 to"),
    (lambda has: tz.device("cpu").split(10**6), ArgumentError, "from 1 to"),
    (lambda has: tz.device("sim:0").split(1), UnsupportedError, "use the whole device"),
]

_OPTIONS: list[Case] = [
    (lambda has: tz.context("cpu", sed=1), ArgumentError, "unknown option sed; the options are seed"),
    (lambda has: tz.context("cpu", arrays="cupy"), ArgumentError, "an array library of cpu:0: numpy, torch"),
    (lambda has: tz.context("cpu", pool="weird"), ArgumentError, "one of caching, direct"),
    (lambda has: tz.context("cpu", transfer="maybe"), ArgumentError, "one of allow, log, disallow"),
    (lambda has: tz.context("cpu", max_queued=0), ArgumentError, "max_queued: got 0 .*positive"),
    (lambda has: tz.context("cpu", memory_limit="2 miles"), ArgumentError, "text like '512MiB'"),
    (lambda has: tz.context("cpu", memory_limit=-1), ArgumentError, "non-negative"),
    (lambda has: tz.context("cpu", seed=-1), ArgumentError, "seed: got -1 .*non-negative"),
    (lambda has: tz.context("cpu", seed="x"), ArgumentError, "seed: got 'x'"),
    (lambda has: tz.context("cpu", deterministic=1), ArgumentError, "True or False"),
    (lambda has: tz.CPUContext(device="sim:0"), WrongDeviceError, r"use tz.context\('sim:0'\)"),
    (lambda has: setattr(has.cpu.memory, "limit", "x"), ArgumentError, "limit: got 'x' .*like '512MiB'"),
    (lambda has: setattr(has.cpu.memory, "limit", 1), ArgumentError, "bytes that are live; drop some"),
]

_SIZES: list[Case] = [
    (lambda has: has.cpu.allocate(-1), ArgumentError, "nbytes: got -1 .*from 0 to"),
    (lambda has: has.sim.allocate(-1), ArgumentError, "nbytes: got -1"),
    (lambda has: has.cpu.allocate(2**80), ArgumentError, r"from 0 to 2\*\*62"),
    (lambda has: has.cpu.allocate(1.5), ArgumentError, "nbytes: got 1.5"),  # type: ignore[arg-type]
    (lambda has: has.cpu.allocate("8"), ArgumentError, "nbytes: got '8'"),  # type: ignore[arg-type]
    (lambda has: has.cpu.allocate(2**61), OutOfMemoryError, "Largest holders: .*smaller batches"),
    (lambda has: has.sim.allocate(2**61), OutOfMemoryError, "Largest holders: .*smaller batches"),
    (lambda has: has.cpu.allocate(8, label=3), ArgumentError, "label: got 3"),  # type: ignore[arg-type]
    (lambda has: has.cpu.allocate(8, shape=(8,)), ArgumentError, "need a dtype"),
    (lambda has: has.cpu.allocate(8, dtype="f8", shape=(2,)), ArgumentError, "outside 0 to 8"),
    (lambda has: has.cpu.allocate(8, dtype="f8", shape=(-1,)), ArgumentError, "shape: got -1"),
    (lambda has: has.cpu.allocate(16, dtype="f8", shape=(2,), strides=(0,)), ArgumentError, "overlap"),
    (lambda has: has.cpu.empty((-1,)), ArgumentError, r"shape: got \(-1,\) .*non-negative"),
    (lambda has: has.sim.empty((2, 1.5)), ArgumentError, "shape: .*non-negative"),  # type: ignore[arg-type]
    (lambda has: has.host[3], ArgumentError, "a slice, as in"),
    (lambda has: has.host.view("float64", (2,)), ArgumentError, "outside 0 to 8"),
]

_DTYPES: list[Case] = [
    (lambda has: has.cpu.empty(3, "float128"), UnsupportedError, "no float128; the nearest is float64"),
    (lambda has: has.cpu.empty(3, "nonsense"), ArgumentError, "a dtype such as 'float32'"),
    (lambda has: has.sim.asarray(np.array(["a"])), UnsupportedError, "the nearest is"),
    (lambda has: has.cpu.asarray("abc", dtype="float64"), ArgumentError, "cannot become an array"),
    (lambda has: has.cpu.copy(has.host.view("f8"), np.zeros(8, "u1")), ArgumentError, "use view.*to reinterpret"),
    (lambda has: has.cpu.fill(has.host, 300), ArgumentError, "value: 300 is no uint8"),
    (lambda has: has.cpu.fill(has.host, "x"), ArgumentError, "value: 'x' is no uint8"),
    (lambda has: has.cpu.fill(has.host, [1, 2]), ArgumentError, "one uint8, or bytes"),
    (lambda has: has.cpu.fill(has.host, b"123"), ArgumentError, "whose number divides 8"),
]

_OBJECTS: list[Case] = [
    (lambda has: has.cpu.copy(has.host, 3), ArgumentError, "src: got 3 .*a Buffer, a NumPy array"),
    (lambda has: has.cpu.copy(has.host, np.zeros(3)), ArgumentError, "dst has 8 bytes and src 24; slice"),
    (lambda has: has.cpu.copy(b"12345678", has.host), ArgumentError, "writable"),
    (lambda has: has.cpu.fill(3, 1), ArgumentError, "dst: got 3 .*a Buffer"),
    (lambda has: has.cpu.launch(3), ArgumentError, "function: got 3 .*a callable"),  # type: ignore[arg-type]
    (lambda has: has.cpu.launch(print, after=3), ArgumentError, "after: got 3"),  # type: ignore[arg-type]
    (lambda has: has.cpu.launch(print, after=[3]), ArgumentError, "after: "),  # type: ignore[list-item]
    (lambda has: has.cpu.launch(print, stream=3), ArgumentError, "a Stream of this context"),  # type: ignore[arg-type]
    (lambda has: has.cpu.stream.wait(3), ArgumentError, "an Event, HostEvent, Task or Stream"),  # type: ignore[arg-type]
    (lambda has: has.cpu.adopt_stream(3), UnsupportedError, r"use ctx.new_stream\(\)"),
    (lambda has: has.sim.adopt_stream(3), ArgumentError, "native: got 3"),
    (lambda has: has.cpu.stream.native, UnsupportedError, "launch a function on the stream instead"),
    (lambda has: tz.wait(3), ArgumentError, "tasks: got 3"),  # type: ignore[arg-type]
    (lambda has: tz.wait([3]), ArgumentError, "tasks: "),  # type: ignore[list-item]
    (lambda has: tz.use(3), ArgumentError, "a Context, or None"),  # type: ignore[arg-type]
    (lambda has: tz.carry(3), ArgumentError, "a function"),  # type: ignore[type-var]
    (lambda has: tz.context_of(3), UsageError, "bring it into one with ctx.asarray"),
    (lambda has: tz.context_of(np.zeros(2)), UsageError, "bring it into one with ctx.asarray"),
    (lambda has: tz.HostEvent().fail("x"), UsageError, "takes an exception"),  # type: ignore[arg-type]
    (lambda has: tz.HostEvent().synchronize("x"), ArgumentError, "timeout: got 'x'"),  # type: ignore[arg-type]
    (lambda has: tz.HostEvent().synchronize(math.nan), ArgumentError, "timeout: got nan .*seconds"),
    (lambda has: tz.kernel(reads=("zz",))(lambda x: x), ArgumentError, "reads/writes: got 'zz' .*: x"),
]

_DOMAINS: list[Case] = [
    (lambda has: has.cpu.launch(len, has.device), WrongDeviceError, "sim:0; move it with ctx.asarray"),
    (lambda has: has.other.launch(len, has.device), WrongDeviceError, "on sim:1 was given memory of sim:0"),
    (lambda has: has.sim.launch(len, has.host), WrongDeviceError, "cpu:0; move it with ctx.asarray"),
    (lambda has: has.sim.launch(len, np.zeros(2)), WrongDeviceError, "a NumPy array of the host; move it"),
    (lambda has: has.sim.launch(len, {"deep": [has.host]}), WrongDeviceError, "move it with ctx.asarray"),
    (lambda has: has.cpu.fill(has.device, 1), WrongDeviceError, "call fill on a context there"),
    (lambda has: has.cpu.copy(has.device, has.other.allocate(8)), WrongDeviceError, "call copy on a context of one"),
    (lambda has: has.cpu.launch(print, stream=has.sim.stream), WrongDeviceError, "use a stream of"),
    (lambda has: has.cpu.on(has.sim.stream), ArgumentError, "a stream of this context"),
    (lambda has: np.asarray(has.device), WrongDeviceError, r"ctx.to_numpy\(buffer\) copies it to the host"),
    (lambda has: has.device.__dlpack__(), WrongDeviceError, r"ctx.to_numpy\(buffer\)"),
    (lambda has: has.sim.xp, UsageError, "give that to ctx.launch"),
]


_CASES = [*_DEVICES, *_OPTIONS, *_SIZES, *_DTYPES, *_OBJECTS, *_DOMAINS]


@pytest.mark.parametrize(("call", "error", "words"), _CASES, ids=[words for _, _, words in _CASES])
def test_bad_input_is_refused_with_advice(
    has: Things, call: Callable[[Things], Any], error: type[TazzaError], words: str
) -> None:
    with pytest.raises(error) as caught:
        call(has)
    assert re.search(words, str(caught.value)), f"{str(caught.value)!r} does not say {words!r}"
    assert has.cpu.memory.stats().live <= 128, "a refused call must leave nothing behind"


def test_nothing_is_current_by_itself() -> None:
    with pytest.raises(NoCurrentContextError, match=r"with ctx:.*tz\.use\(ctx\).*tz\.carry\(fn\)"):
        tz.current()
    with pytest.raises(NoCurrentContextError, match="use it inside `with ctx:`"):
        tz.carry(lambda: None)


@pytest.mark.parametrize("name", ["cpu", "sim:0"])
@pytest.mark.parametrize(
    "use",
    [
        lambda ctx: ctx.allocate(8),
        lambda ctx: ctx.launch(lambda: None),
        lambda ctx: ctx.new_stream(),
        lambda ctx: ctx.stream.record(),
        lambda ctx: ctx.__enter__(),
        lambda ctx: ctx.empty(3),
    ],
    ids=["allocate", "launch", "new_stream", "record", "with", "empty"],
)
def test_closed_context_takes_no_work_and_names_the_way_on(name: str, use: Callable[[tz.Context], Any]) -> None:
    ctx = tz.context(name)
    kept = ctx.asarray(np.arange(4.0), copy=True)
    ctx.close()
    with pytest.raises(ClosedError, match=r"tz\.context\(|ctx\.new_stream\(\)"):
        use(ctx)
    ctx.close()
    assert (ctx.is_closed, ctx.health.status, ctx.spec.device) == (True, "ok", f"{name.partition(':')[0]}:0")
    assert ctx.memory.stats().live > 0
    assert "closed" in repr(ctx)
    del kept


@pytest.mark.parametrize("name", ["cpu", "sim:0"])
def test_closed_buffer_is_refused(name: str) -> None:
    with tz.open(name) as ctx:
        buffer = ctx.allocate(8)
        part = buffer[:4]
        buffer.close()
        buffer.close()
        for closed in (buffer, part):
            with pytest.raises(ClosedError, match="its memory may hold other data"):
                ctx.launch(len, closed)
            with pytest.raises(ClosedError, match="is closed"):
                closed.view("uint8")
