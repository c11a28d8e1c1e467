"""Run by test_contract.py on emulated devices: what CuPy and PyTorch are told, by stand-ins that write it down.

Neither runs on the emulator, as both stand on the CUDA runtime library. The tests marked `gpu` use the real ones.
"""

from __future__ import annotations

import contextlib
import doctest
import gc
import importlib.util
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tazza as tz
import tazza.adapters.cupy
from tazza.adapters.cupy import CupyAdapter, own
from tazza.adapters.torch import TorchAdapter
from tazza.errors import ArgumentError, OutOfMemoryError

TIMEOUT = 20.0


class Told:
    """Writes down which scopes are entered and left."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def scope(self, name: str, *args: Any, **options: Any) -> Any:
        told = self

        class Scope:
            def __enter__(self) -> None:
                told.log.append(f"+{name}")

            def __exit__(self, *error: object) -> None:
                told.log.append(f"-{name}")

        told.log.append(f"{name}{args}{options or ''}")
        return Scope()


@pytest.fixture
def told() -> Told:
    """What the stand-ins were told."""
    return Told()


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the second device."""
    with tz.open("cuda:1", memory_limit="1MiB") as opened:
        yield opened


def fake_cupy(told: Told) -> Any:
    cupy = ModuleType("cupy")
    allocators: list[Any] = []

    @contextlib.contextmanager
    def using_allocator(allocator: Any) -> Iterator[None]:
        allocators.append(allocator)
        yield
        allocators.pop()

    cuda = SimpleNamespace(
        Device=lambda *args: told.scope("Device", *args),
        ExternalStream=lambda *args: told.scope("ExternalStream", *args),
        get_current_stream=lambda: SimpleNamespace(ptr=0),
        using_allocator=using_allocator,
        UnownedMemory=lambda ptr, size, owner, device: SimpleNamespace(ptr=ptr, size=size, owner=owner, device=device),
        MemoryPointer=lambda memory, offset: SimpleNamespace(mem=memory, ptr=memory.ptr + offset),
        alloc=lambda nbytes: allocators[-1](nbytes),
        memory=SimpleNamespace(OutOfMemoryError=type("OutOfMemoryError", (MemoryError,), {})),
    )
    pool = SimpleNamespace(
        used_bytes=lambda: 100, total_bytes=lambda: 300, free_all_blocks=lambda: told.log.append("free_all_blocks")
    )
    vars(cupy).update(cuda=cuda, get_default_memory_pool=lambda: pool)
    return cupy


def fake_torch(told: Told) -> Any:
    torch = ModuleType("torch")
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device=lambda *args: told.scope("cuda.device", *args),
        ExternalStream=lambda handle, device: f"ExternalStream({handle})",
        stream=lambda *args: told.scope("cuda.stream", *args),
        memory_allocated=lambda ordinal: 100,
        memory_reserved=lambda ordinal: 300,
        get_allocator_backend=lambda: "native",
        empty_cache=lambda: told.log.append("empty_cache"),
    )
    vars(torch).update(cuda=cuda, device=lambda *args: told.scope("device", *args))
    return torch


def test_cupy_is_told_device_and_stream(ctx: tz.Context, told: Told) -> None:
    handle = int(ctx.stream.native)  # type: ignore[call-overload]
    undo = CupyAdapter(fake_cupy(told)).bind(ctx)
    assert undo is not None
    assert told.log == ["Device(1,)", "+Device", f"ExternalStream({handle}, 1)", "+ExternalStream"]
    undo()
    assert told.log[4:] == ["-ExternalStream", "-Device"]


def test_torch_is_told_device_and_stream(ctx: tz.Context, told: Told) -> None:
    handle = int(ctx.stream.native)  # type: ignore[call-overload]
    undo = TorchAdapter(fake_torch(told)).bind(ctx)
    assert undo is not None
    entered = [line for line in told.log if line.startswith("+")]
    assert entered == ["+device", "+cuda.device", "+cuda.stream"]
    assert f"cuda.stream('ExternalStream({handle})',)" in told.log
    undo()
    assert told.log[-3:] == ["-cuda.stream", "-cuda.device", "-device"]


def test_their_pools_are_listed_and_asked_to_give_back(ctx: tz.Context, told: Told) -> None:
    with tz.open("cpu") as cpu:
        for adapter in (CupyAdapter(fake_cupy(told)), TorchAdapter(fake_torch(told))):
            assert adapter.memory(ctx.device) == (100, 200, "")
            adapter.trim(ctx.device)
            adapter.trim(cpu.device)
        assert CupyAdapter(fake_cupy(told)).bind(cpu) is None
        assert CupyAdapter(fake_cupy(told)).memory(cpu.device) is None
    assert [line for line in told.log if "Device" not in line] == ["free_all_blocks", "empty_cache"]
    library = fake_cupy(told)
    assert CupyAdapter(library).is_out_of_memory(library.cuda.memory.OutOfMemoryError())


def test_cupys_memory_is_a_contexts_and_comes_back(
    ctx: tz.Context, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy = fake_cupy(told)
    monkeypatch.setitem(__import__("sys").modules, "cupy", cupy)
    with own(ctx) as entered:
        assert entered is tz.current() is ctx
        pointer = cupy.cuda.alloc(1000)
        assert (pointer.mem.size, pointer.mem.device) == (1000, 1)
        assert ctx.memory.holders()[0][0] == "cupy"
        with pytest.raises(OutOfMemoryError):
            cupy.cuda.alloc(2 << 20)
    assert ctx.memory.stats().live >= 1000
    del pointer
    gc.collect()
    ctx.synchronize(TIMEOUT)
    tz_wait_for_return(ctx)
    assert ctx.memory.stats().live == 0


def tz_wait_for_return(ctx: tz.Context) -> None:
    """Let what was dropped come back: the legacy default stream is asked for its end, then looked at."""
    from cuda.bindings import driver

    driver.cuCtxPushCurrent(driver.CUcontext(ctx.native.context))
    driver.cuStreamSynchronize(driver.CUstream(1))
    driver.cuCtxPopCurrent()
    ctx.synchronize(TIMEOUT)


def test_what_is_no_cuda_context_is_refused() -> None:
    with tz.open("cpu") as cpu, pytest.raises(ArgumentError, match="context"), own(cpu):
        raise AssertionError("entered")


def test_the_example_runs() -> None:
    result = doctest.testmod(tazza.adapters.cupy, extraglobs={"tz": tz})
    assert result.attempted
    assert not result.failed


def real(library: str) -> Any:
    """A library on a real device, or a skip with the reason."""
    if tz.device("cuda:0").info.emulated:
        pytest.skip(f"{library} stands on the CUDA runtime library, which needs a real device")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    return importlib.import_module(library)


@pytest.mark.gpu
def test_cupy_itself_works_on_our_stream_and_in_our_memory() -> None:
    cupy = real("cupy")
    with tz.open("cuda:0") as ctx:
        with ctx.bind():
            assert cupy.cuda.get_current_stream().ptr == int(ctx.stream.native)  # type: ignore[call-overload]
        with ctx.bind(), own(ctx):
            x = cupy.arange(1000, dtype="float32") * 2
            assert ctx.memory.stats().live >= 4000
        ctx.synchronize(TIMEOUT)
        assert (cupy.asnumpy(x) == 2 * np.arange(1000)).all()
        with tz.borrow(x, stream=ctx.stream) as lent:
            ctx.fill(lent, 3.0)
        assert (cupy.asnumpy(x) == 3).all()
        del x
        gc.collect()
        ctx.synchronize(TIMEOUT)


@pytest.mark.gpu
def test_torch_itself_works_on_our_stream() -> None:
    torch = real("torch")
    with tz.open("cuda:0") as ctx, ctx.bind():
        assert torch.cuda.current_stream().cuda_stream == int(ctx.stream.native)  # type: ignore[call-overload]
        assert torch.empty(3).device == torch.device("cuda", 0)
        x = torch.arange(1000.0)
        with tz.borrow(x, stream=ctx.stream) as lent:
            ctx.fill(lent, 3.0)
        assert bool((x == 3).all())
        seen = torch.from_dlpack(ctx.asarray(np.arange(1000, dtype="float32")))
        assert float(seen.sum()) == 499500.0
