"""The adapter for PyTorch: what it binds, which memory it counts, which errors it knows."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.adapters.torch import TorchAdapter, generator
from tazza.errors import ArgumentError
from tazza.hot import COMPILED
from tests.interop import need

torch = need("torch")
pytestmark = pytest.mark.interop

MIB = 1 << 20


@pytest.fixture
def adapter() -> TorchAdapter:
    return TorchAdapter(torch)


def live(adapter: TorchAdapter) -> int:
    if not COMPILED:
        pytest.skip("uncompiled: what PyTorch holds is declared unknown")
    found = adapter.memory(tz.device("cpu"))
    assert found is not None
    assert "autograd" in found.note
    return found.live


@pytest.fixture(params=["numpy", "torch"])
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    with tz.open("cpu", seed=3, arrays=request.param) as made:
        yield made


def test_another_default_device_is_set_back_to_the_cpu_for_the_scope(ctx: tz.Context) -> None:
    with torch.device("meta"):
        with ctx.bind():
            assert torch.empty(2).device.type == "cpu"
            assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
        assert torch.empty(2).device.type == "meta"
    assert torch.empty(2).device.type == "cpu"


def test_a_default_that_is_the_cpu_costs_no_mode(ctx: tz.Context) -> None:
    modes = torch._C._len_torch_function_stack()
    with ctx.bind():
        assert torch._C._len_torch_function_stack() == modes


def test_other_threads_and_process_wide_state_are_left_alone(ctx: tz.Context) -> None:
    seen: list[str] = []

    def look() -> None:
        with torch.device("meta"):
            seen.append(torch.empty(1).device.type)

    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.initial_seed()
    with torch.device("meta"), ctx.bind():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(10)
        assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.initial_seed())
    assert seen == ["meta"]


def test_grad_mode_is_the_users(ctx: tz.Context) -> None:
    with torch.no_grad(), ctx.bind():
        assert not torch.is_grad_enabled()


def test_memory_counts_each_storage_once(adapter: TorchAdapter) -> None:
    before = live(adapter)
    x = torch.zeros(MIB // 4)
    views = [x[1:], x.reshape(4, -1), x.detach(), torch.nn.Parameter(x)]
    assert live(adapter) - before == MIB
    del x, views
    assert live(adapter) == before


def test_memory_of_others_is_not_counted(adapter: TorchAdapter) -> None:
    before = live(adapter)
    with tz.open("cpu", arrays="torch") as ctx:
        array = np.zeros(MIB, np.uint8)
        kept = [
            ctx.empty(MIB, "uint8"),
            ctx.random.random(1000),
            torch.from_numpy(array),
            torch.frombuffer(array, dtype=torch.uint8),
            torch.empty(MIB, device="meta"),
            torch.zeros(4, 4).to_sparse().coalesce().indices()[:0],
        ]
        assert live(adapter) - before < 1024
    del kept


def test_gradients_are_counted(adapter: TorchAdapter) -> None:
    before = live(adapter)
    w = torch.zeros(MIB // 4, requires_grad=True)
    (w * 2).sum().backward()
    assert live(adapter) - before == 2 * MIB
    del w


def test_only_the_hosts_devices_have_it(adapter: TorchAdapter) -> None:
    assert adapter.memory(tz.device("sim:0")) is None
    with tz.open("sim:0") as sim:
        assert adapter.bind(sim) is None


def test_looking_runs_no_code_of_other_objects(adapter: TorchAdapter) -> None:
    class Trap:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"a proxy was asked for {name}")

    trap = Trap()
    assert live(adapter) >= 0
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(MIB)
    functional: list[int] = []

    def look(one: Any) -> Any:
        functional.append(live(adapter))
        return one

    torch.func.vmap(look)(torch.ones(3, 2))
    assert functional
    assert weakref.ref(fake)() is fake
    del trap


def test_out_of_memory_is_recognised(adapter: TorchAdapter) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert adapter.is_out_of_memory(caught.value)
    assert adapter.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not adapter.is_out_of_memory(RuntimeError("shapes differ"))
    assert not adapter.is_out_of_memory(MemoryError("can't allocate memory"))


def test_its_out_of_memory_errors_carry_the_account(ctx: tz.Context) -> None:
    held = ctx.allocate(4096, label="weights")
    for scope in (ctx, ctx.bind()):
        with pytest.raises(RuntimeError, match="can't allocate memory") as caught, scope:
            torch.empty(1 << 50)
        (note,) = caught.value.__notes__
        assert "weights 4.0 KiB" in note
    held.close()


def test_a_generator_seeded_from_ours(ctx: tz.Context) -> None:
    before = ctx.random.state()
    first = torch.randn(5, generator=generator(ctx.random))
    assert ctx.random.state() != before
    ctx.random.restore(before)
    assert torch.equal(first, torch.randn(5, generator=generator(ctx.random)))
    assert not torch.equal(first, torch.randn(5, generator=generator(ctx.random)))
    seeds = {generator(ctx.random.for_purpose(name)).initial_seed() for name in ("a", "b", "a")}
    assert len(seeds) == 2
    bad: Any = torch.Generator()
    with pytest.raises(ArgumentError, match="random: got"):
        generator(bad)


def test_a_missing_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(tz.errors.BackendUnavailableError, match="pip install torch"):
        generator(tz.Generator(1))
