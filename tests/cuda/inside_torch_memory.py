"""Run by test_contract.py on emulated devices: PyTorch's memory in contexts, by a stand-in that calls what it calls.

PyTorch itself does not run on the emulator, as it stands on the CUDA runtime library: test_torch_memory.py has a test
for a real device.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import cuda_emulator
import numpy as np
import pytest
from cuda.bindings import driver

import tazza as tz
from tazza.adapters import torch_memory
from tazza.adapters.torch import TorchAdapter, own_process
from tazza.errors import ArgumentError, BackendUnavailableError, CleanupWarning, UsageError
from tests.cuda.torch_stand_in import CUDAPluggableAllocator, Torch, build

TIMEOUT = 20.0
LIMIT = 4 << 20
HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class World:
    """PyTorch's stand-in, the contexts that its memory is of, and two streams of its own on each of two devices."""

    def __init__(self, torch: Torch, contexts: list[tz.Context]) -> None:
        self.torch, self.contexts = torch, contexts
        self.streams = [stream(context) for context in contexts for _ in range(2)]
        self.door: Any = torch_memory._state.door
        self._functions: list[Any] = []

    def hold(self, queue: Any) -> threading.Event:
        """Have a stream stand still until the event is set."""
        gate = threading.Event()
        function = HostFunction(lambda _: gate.wait(TIMEOUT) and None)
        self._functions.append(function)
        pointer = driver.CUhostFn(_ptr=ctypes.addressof(function))
        done(driver.cuLaunchHostFunc(queue, pointer, 0))
        return gate


def done(answer: Any) -> Any:
    """The result of a call of the driver."""
    status, *results = answer
    assert not status, status
    return results[0] if results else None


def within(context: tz.Context, call: Callable[[], Any]) -> Any:
    done(driver.cuCtxPushCurrent(driver.CUcontext(context.native.context)))
    try:
        return call()
    finally:
        done(driver.cuCtxPopCurrent())


def stream(context: tz.Context) -> Any:
    """A stream as PyTorch has: one that does not wait for the legacy default stream."""
    return within(context, lambda: done(driver.cuStreamCreate(1)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A process whose PyTorch has tazza's memory, for good."""
    door, caller = build(tmp_path_factory.mktemp("door"))
    contexts = [tz.context(device.name, memory_limit=LIMIT) for device in tz.devices("cuda")[:2]]
    torch = Torch(caller)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch.module())
        patch.setattr(torch_memory, "library_path", lambda: door)
        own_process(*contexts)
        own_process(*contexts)  # the same: nothing is done
        with pytest.raises(UsageError, match="for as long as this process lives"):
            own_process(contexts[1])
    yield World(torch, contexts)
    for context in contexts:
        context.close(timeout=TIMEOUT)


def settled(ctx: tz.Context) -> int:
    """Bytes that are live once what was dropped has come back."""
    gc.collect()
    ctx.synchronize(TIMEOUT)  # marks how far the streams are
    within(ctx, lambda: done(driver.cuCtxSynchronize()))
    ctx.synchronize(TIMEOUT)  # sees that they are so far
    ctx.synchronize(TIMEOUT)
    return ctx.memory.stats().live


@pytest.fixture
def ctx(world: World) -> Iterator[tz.Context]:
    """The context of the first device, which has to be empty again at the end of each test."""
    assert settled(world.contexts[0]) == 0
    hazards = cuda_emulator.start().report()["n_hazards"]
    yield world.contexts[0]
    assert settled(world.contexts[0]) == 0
    assert not world.torch.metadata
    assert cuda_emulator.start().report()["n_hazards"] == hazards


# The account ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in Python's thread", "in a thread of C++"])
def test_memory_is_in_the_account_and_comes_back(world: World, ctx: tz.Context, elsewhere: bool) -> None:
    address = world.torch.allocate(10_000, 0, world.streams[0], elsewhere=elsewhere)
    assert address
    assert 10_000 <= ctx.memory.stats().live < 11_000
    assert ctx.memory.holders()[0][0] == "torch"
    there = world.torch.allocate(500, 1, world.streams[2], elsewhere=elsewhere)
    assert world.contexts[1].memory.stats().live >= 500
    world.torch.free(address, elsewhere=elsewhere)
    world.torch.free(there, elsewhere=elsewhere)
    assert settled(world.contexts[1]) == 0


def test_no_bytes_are_no_memory(world: World, ctx: tz.Context) -> None:
    assert world.torch.allocate(0, 0, world.streams[0]) == 0
    world.torch.free(0)
    assert ctx.memory.stats().live == 0


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in Python's thread", "in a thread of C++"])
def test_a_refusal_is_thrown_through_cpp_and_names_the_context(world: World, ctx: tz.Context, elsewhere: bool) -> None:
    with pytest.raises(RuntimeError) as caught:
        world.torch.allocate(LIMIT + 1, 0, world.streams[0], elsewhere=elsewhere)
    text = str(caught.value)
    assert text.startswith(torch_memory.REFUSED)
    assert f"holds 0 bytes of its limit of {LIMIT}" in text
    assert "cuda:0" in text
    assert ctx.memory.stats().num_ooms
    world.torch.free(world.torch.allocate(100, 0, world.streams[0]))  # and it goes on


def test_an_error_that_leaves_a_context_has_its_account(world: World, ctx: tz.Context) -> None:
    adapter = TorchAdapter(library())
    with pytest.raises(RuntimeError) as caught:
        world.torch.allocate(LIMIT + 1, 0, world.streams[0])
    assert adapter.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as caught:
        world.torch.allocate(1, 7, 0)
    assert not adapter.is_out_of_memory(caught.value)


def library(**members: Any) -> Any:
    """A module to stand for PyTorch's."""
    module = ModuleType("torch")
    vars(module).update(members, OutOfMemoryError=type("OutOfMemoryError", (RuntimeError,), {}))
    return module


def test_what_was_dropped_makes_room_below_the_limit(world: World, ctx: tz.Context) -> None:
    for number in range(20):
        address = world.torch.allocate(LIMIT * 2 // 3, 0, world.streams[number % 2])  # one at a time fits
        world.torch.free(address)


def test_the_current_context_and_its_budgets_are_charged(world: World, ctx: tz.Context) -> None:
    with tz.open("cuda:0") as other:
        with other.memory.budget("1MiB", name="PyTorch's"):
            address = world.torch.allocate(8000, 0, world.streams[0])
            assert other.memory.stats().live >= 8000
            there = world.torch.allocate(8000, 1, world.streams[2])  # another device: not its
            assert world.contexts[1].memory.stats().live >= 8000
            with pytest.raises(RuntimeError, match="PyTorch's"):
                world.torch.allocate(2 << 20, 0, world.streams[0])
            elsewhere = world.torch.allocate(1000, 0, world.streams[0], elsewhere=True)  # nothing is current there
        assert ctx.memory.stats().live >= 1000
        for one in (address, there, elsewhere):
            world.torch.free(one)
        assert settled(other) == 0
        assert settled(world.contexts[1]) == 0


def test_with_a_budget_that_waits_memory_comes_back_without_an_allocation(world: World, ctx: tz.Context) -> None:
    with ctx.memory.budget(1 << 20, name="patient", on_full="wait", timeout=TIMEOUT):
        first = world.torch.allocate(700_000, 0, world.streams[0])
        gate = world.hold(world.streams[0])
        world.torch.free(first)
        timer = threading.Timer(0.2, gate.set)
        timer.start()
        second = world.torch.allocate(700_000, 0, world.streams[1])
        timer.join()
        world.torch.free(second)


# Order ---------------------------------------------------------------------------------------------------------------


def test_memory_is_not_given_out_before_the_stream_that_uses_it_is_so_far(world: World, ctx: tz.Context) -> None:
    mine, other = world.streams[:2]
    first = world.torch.allocate(3 << 20, 0, mine)
    gate = world.hold(mine)
    world.torch.free(first)
    ctx.synchronize(TIMEOUT)
    assert ctx.memory.stats().live >= 3 << 20
    small = world.torch.allocate(100_000, 0, other)
    assert not first <= small < first + (3 << 20)
    gate.set()
    done(driver.cuStreamSynchronize(mine))
    again = world.torch.allocate(3 << 20, 0, other)  # now there is room for it
    world.torch.free(again)
    world.torch.free(small)


def test_a_recorded_stream_keeps_it_too(world: World, ctx: tz.Context) -> None:
    mine, other = world.streams[:2]
    first = world.torch.allocate(3 << 20, 0, mine)
    for one in (mine, other, other):
        world.torch.record(first, one)
    gate = world.hold(other)
    world.torch.free(first)
    ctx.synchronize(TIMEOUT)
    done(driver.cuStreamSynchronize(mine))
    ctx.synchronize(TIMEOUT)
    assert ctx.memory.stats().live >= 3 << 20
    gate.set()
    done(driver.cuStreamSynchronize(other))
    world.torch.free(world.torch.allocate(3 << 20, 0, mine))


def test_memory_comes_after_what_tazza_has_queued_on_it(world: World, ctx: tz.Context) -> None:
    mine = world.streams[0]
    ctx.synchronize(TIMEOUT)
    ours = ctx.empty((1 << 19,), "float32")
    gate = world.hold(driver.CUstream(int(ctx.stream.native)))  # type: ignore[call-overload]
    ctx.fill(ours, -1.0)
    where = ours.address
    del ours
    theirs = world.torch.allocate(2 << 20, 0, mine)
    assert theirs == where, "the pool gives out the memory whose fill still waits"
    done(driver.cuMemsetD32Async(theirs, 7, 1 << 19, mine))
    assert driver.cuStreamQuery(mine)[0] == driver.CUresult.CUDA_ERROR_NOT_READY
    gate.set()
    found = np.empty(1 << 19, "int32")
    done(driver.cuMemcpyDtoHAsync(found.ctypes.data, theirs, found.nbytes, mine))
    done(driver.cuStreamSynchronize(mine))
    assert (found == 7).all()
    world.torch.free(theirs)


def test_memory_changes_hands_all_the_time(world: World, ctx: tz.Context) -> None:
    """Between tazza's stream, two of PyTorch's and the legacy default stream, while all have work queued on it."""
    count, found = 50_000, [np.empty(50_000, "int32") for _ in range(40)]
    queues = [world.streams[0], world.streams[1], driver.CUstream(0)]
    for number, host in enumerate(found):
        ctx.fill(ctx.empty((count,), "float32"), -1.0)
        queue = queues[number % 3]
        theirs = world.torch.allocate(4 * count, 0, queue)

        def work(queue: Any = queue, theirs: int = theirs, number: int = number, host: Any = host) -> None:
            done(driver.cuMemsetD32Async(theirs, number, count, queue))
            done(driver.cuMemcpyDtoHAsync(host.ctypes.data, theirs, host.nbytes, queue))

        within(ctx, work)
        world.torch.free(theirs, elsewhere=bool(number % 2))
        ctx.fill(ctx.empty((count,), "float32"), -2.0)
    within(ctx, lambda: done(driver.cuCtxSynchronize()))
    for number, host in enumerate(found):
        assert (host == number).all(), host[host != number][:5]


def test_inside_a_launched_function(world: World, ctx: tz.Context) -> None:
    def step() -> int:
        native: Any = ctx.stream.native
        return world.torch.allocate(1000, 0, int(native))

    world.torch.free(ctx.launch(step).result(timeout=TIMEOUT))


def test_in_a_capture_it_is_refused(world: World, ctx: tz.Context) -> None:
    before = world.torch.allocate(1000, 0, world.streams[0])
    x = ctx.asarray(np.zeros(10, "float32"))
    with ctx.stream.capture() as graph:
        ctx.fill(x, 2.0)
        with pytest.raises(RuntimeError, match="UnsupportedError: PyTorch's allocations cannot be captured"):
            world.torch.allocate(1000, 0, world.streams[0])
        world.torch.free(before)  # its memory is looked at after the capture
    graph.replay()
    assert (ctx.to_numpy(x) == 2).all()
    graph.close()


# Threads, finalisers, mistakes ---------------------------------------------------------------------------------------


def test_threads_that_python_does_not_know(world: World, ctx: tz.Context) -> None:
    assert world.torch.allocate_from_many(world.streams, 4, 100) == 0
    assert settled(world.contexts[1]) == 0


class Watched:
    """The lock of a look; says when this thread comes to it."""

    def __init__(self, lock: Any) -> None:
        self.lock, self.asked, self.thread = lock, threading.Event(), threading.get_ident()

    def acquire(self, timeout: float) -> bool:
        if threading.get_ident() == self.thread:
            self.asked.set()
        return bool(self.lock.acquire(timeout=max(timeout, TIMEOUT)))

    def release(self) -> None:
        self.lock.release()


def test_memory_that_another_thread_is_taking_back_is_waited_for(
    world: World, ctx: tz.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.torch.allocate(3 << 20, 0, world.streams[0])
    returns: Any = world.door.lent[first].returns
    lock, looking, take_back = Watched(returns._lock), threading.Event(), world.door.take_back

    def late() -> None:
        take_back()
        if threading.get_ident() != lock.thread:
            looking.set()
            assert lock.asked.wait(TIMEOUT)

    world.torch.free(first)
    monkeypatch.setattr(returns, "_lock", lock)
    monkeypatch.setattr(world.door, "take_back", late)
    thread = threading.Thread(target=lambda: ctx.synchronize(TIMEOUT))
    thread.start()
    assert looking.wait(TIMEOUT)
    world.torch.free(world.torch.allocate(3 << 20, 0, world.streams[0]))
    thread.join(TIMEOUT)


def test_what_the_collector_finds_is_freed_inside_the_pool(world: World, ctx: tz.Context) -> None:
    class Tensor:
        def __init__(self) -> None:
            self.address = world.torch.allocate(1000, 0, world.streams[0])
            self.me = self

        def __del__(self) -> None:
            world.torch.free(self.address)

    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(300):
            Tensor()
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()


def test_a_pointer_that_nobody_knows(world: World, ctx: tz.Context) -> None:
    world.torch.record(0x1234, world.streams[0])  # memory that PyTorch got elsewhere
    world.torch.free_unknown(0x1234)
    with pytest.warns(CleanupWarning, match="freed 0x1234, which it did not have from tazza"):
        ctx.synchronize(TIMEOUT)


def test_the_per_thread_default_stream_is_refused(world: World, ctx: tz.Context) -> None:
    address = world.torch.allocate(100, 0, world.streams[0])
    for call in (lambda: world.torch.allocate(100, 0, 2), lambda: world.torch.record(address, 2)):
        with pytest.raises(RuntimeError, match="tazza: UnsupportedError: the per-thread default stream"):
            call()
    world.torch.free(address)


def test_a_device_without_a_context_is_refused(world: World, ctx: tz.Context) -> None:
    with pytest.raises(
        RuntimeError, match=r"UsageError: PyTorch allocates on cuda:7, .* it has \['cuda:0', 'cuda:1'\]"
    ):
        world.torch.allocate(100, 7, 0)


def test_graphs_pools_and_fractions_of_pytorch_are_refused(world: World) -> None:
    with pytest.raises(RuntimeError, match="UnsupportedError: CUDA graphs and memory pools"):
        world.torch.begin_pool()
    with pytest.raises(RuntimeError, match=r"a fraction limits nothing; set ctx\.memory\.limit"):
        world.torch.set_per_process_memory_fraction()


def test_a_stream_that_is_gone_keeps_the_memory_for_good(world: World) -> None:
    with tz.open("cuda:0") as other:
        gone = stream(other)
        address = world.torch.allocate(100, 0, gone)
        done(driver.cuStreamDestroy(gone))
        world.torch.free(address)
        with pytest.warns(CleanupWarning, match="a stream that used them was destroyed"):
            other.synchronize(TIMEOUT)
        assert other.memory.stats().live >= 100
        with pytest.raises(RuntimeError, match="tazza: "):
            world.torch.allocate(100, 0, 0x123456)


def test_a_stream_of_a_capture_that_was_recorded_keeps_it_for_good(world: World) -> None:
    """Replays of the graph may use the memory, and the queue of the capture is gone when it could be asked."""
    with tz.open("cuda:0") as other:
        address = world.torch.allocate(100, 0, world.streams[0])
        x = other.asarray(np.zeros(10, "float32"))
        with other.stream.capture() as graph:
            other.fill(x, 1.0)
            world.torch.record(address, int(other.stream.native))  # type: ignore[call-overload]
            world.torch.free(address)
            other.fill(x, 2.0)  # looks at what was freed, and leaves the capture alone
        with pytest.warns(CleanupWarning, match="a stream that used them was destroyed"):
            other.synchronize(TIMEOUT)
        graph.replay()
        assert (other.to_numpy(x) == 2).all()
        assert other.memory.stats().live >= 100
        graph.close()


def test_very_many_streams_of_one_block(world: World, ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_memory, "_ROOM", 3)
    blocks = [world.torch.allocate(100, 0, world.streams[0]) for _ in range(3)]
    world.torch.record(blocks[1], world.streams[1])
    world.torch.record(blocks[1], 0)
    for address in blocks:
        world.torch.free(address)


def test_other_libraries_figures_are_not_asked_for(world: World, ctx: tz.Context) -> None:
    answers = {"is_available": True, "is_initialized": True, "get_allocator_backend": "pluggable"}
    cuda = library(**{name: partial(answers.get, name) for name in answers})
    assert TorchAdapter(library(cuda=cuda)).memory(ctx.device) is None


def test_what_is_no_context_is_refused(world: World) -> None:
    wrong: Any
    with tz.open("cpu") as cpu:
        for wrong in ((), (None,), (cpu,), (world.contexts[0], world.contexts[0])):
            with pytest.raises(ArgumentError, match="contexts"):
                own_process(*wrong)


def test_the_stand_in_has_pytorchs_signatures(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    real = torch.cuda.memory
    given, taken = (inspect.signature(one.__init__) for one in (CUDAPluggableAllocator, real.CUDAPluggableAllocator))
    assert list(given.parameters) == list(taken.parameters)
    assert list(inspect.signature(real.change_current_allocator).parameters) == ["allocator"]
    assert list(inspect.signature(real.CUDAPluggableAllocator.allocator).parameters) == ["self"]
    if torch.version.cuda is not None:
        for name in ("set_record_stream_fn", "set_begin_allocate_to_pool", "set_memory_fraction_fn"):
            assert hasattr(torch._C._CUDAPluggableAllocator, name)
    else:
        monkeypatch.setattr(torch_memory._state, "door", None)
        with pytest.raises(BackendUnavailableError, match="has no CUDA"):
            own_process(world.contexts[0])


def test_pytorch_without_cuda_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_memory._state, "door", None)
    monkeypatch.setitem(sys.modules, "torch", world.torch.module(cuda=None))
    with pytest.raises(BackendUnavailableError, match="PyTorch 2.13.0 has no CUDA.*its build for CUDA"):
        own_process(world.contexts[0])
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailableError, match="pip install torch"):
        own_process(world.contexts[0])
