"""``with ctx.bind():`` with planted libraries: what is set, in which order it is set back, and what is refused."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

import tazza as tz
from tazza.core import adapter as adapter_module
from tazza.core import registry
from tazza.core.adapter import Adapter
from tazza.errors import ClosedError, UsageError
from tests.process.children import in_fork


class Library(ModuleType):
    """A library that keeps a device per thread and writes down what happens to it."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__(name)
        self.here, self.log = threading.local(), log
        self.fail_binding = self.fail_undoing = False

    @property
    def device(self) -> str:
        return str(getattr(self.here, "device", "its own"))


class Planted(Adapter):
    """Sets the planted library's device."""

    def bind(self, context: Any) -> Callable[[], None] | None:
        library: Library = self.library
        if library.fail_binding:
            raise RuntimeError(f"{library.__name__} cannot be bound")
        before, library.here.device = library.device, context.device.name
        library.log.append(f"bind {library.__name__}")

        def undo() -> None:
            library.here.device = before
            library.log.append(f"undo {library.__name__}")
            if library.fail_undoing:
                raise RuntimeError(f"{library.__name__} cannot be set back")

        return undo


class Silent(Adapter):
    """Of a library that keeps nothing per thread."""


class World:
    """Two libraries that keep a device, one that does not, one that nobody imported."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.a, self.b = Library("planted_a", self.log), Library("planted_b", self.log)
        places = {"planted_a": Planted, "planted_b": Planted, "planted_silent": Silent, "planted_absent": Planted}
        monkeypatch.setattr(registry._table, "adapters", {name: f"{__name__}:{name}" for name in places})
        monkeypatch.setattr(registry, "load_adapter", places.__getitem__)
        monkeypatch.setattr(adapter_module, "_loaded", adapter_module._Loaded())
        for library in (self.a, self.b, ModuleType("planted_silent")):
            monkeypatch.setitem(sys.modules, library.__name__, library)

    @property
    def devices(self) -> tuple[str, str]:
        return self.a.device, self.b.device


OWN = ("its own", "its own")
BOUND = ("cpu:0", "cpu:0")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    made = tz.context("cpu")
    yield made
    made.close()


def test_libraries_are_bound_and_set_back_in_reverse_order(world: World, ctx: tz.Context) -> None:
    with ctx.bind() as bound:
        assert bound is tz.current() is ctx
        assert world.devices == BOUND
    assert world.devices == OWN
    assert world.log == ["bind planted_a", "bind planted_b", "undo planted_b", "undo planted_a"]
    with pytest.raises(tz.errors.NoCurrentContextError):
        tz.current()


def test_the_stream_and_budget_stay_those_that_are_current(world: World, ctx: tz.Context) -> None:
    def task() -> tuple[Any, tuple[str, str]]:
        with tz.current().bind():
            return tz.current().stream, world.devices

    stream = ctx.new_stream()
    assert ctx.launch(task, stream=stream).result(10) == (stream, BOUND)
    with ctx.on(stream), pytest.raises(UsageError, match="launch"):
        with ctx.bind():
            pytest.fail("eager work would not queue on a worker stream")
    assert (world.devices, world.log.count("bind planted_a")) == (OWN, 1)
    with tz.open("sim:0") as sim, pytest.raises(UsageError, match="launch"):
        sim.bind().__enter__()


def test_a_library_that_is_still_being_imported_is_left_alone(world: World, ctx: tz.Context) -> None:
    world.a.__spec__ = spec = ModuleSpec("planted_a", None)
    spec._initializing = True  # type: ignore[attr-defined]  # what Python's import system sets
    with ctx.bind():
        assert world.devices == ("its own", "cpu:0")
    del spec._initializing  # type: ignore[attr-defined]
    with ctx.bind():
        assert world.devices == BOUND


def test_it_nests_and_is_entered_again(world: World, ctx: tz.Context) -> None:
    binding = ctx.bind()
    with binding, binding, ctx.bind():
        assert world.devices == BOUND
    assert world.devices == OWN
    assert [line.split()[0] for line in world.log] == ["bind"] * 6 + ["undo"] * 6


def test_threads_are_bound_by_themselves(world: World, ctx: tz.Context) -> None:
    binding, seen = ctx.bind(), []

    def work() -> None:
        seen.append(world.devices)
        with binding:
            seen.append(world.devices)
        seen.append(world.devices)

    with binding:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(10)
        assert world.devices == BOUND
    assert seen == [OWN, BOUND, OWN]


def test_a_closed_context_is_refused(world: World) -> None:
    closed = tz.context("cpu")
    closed.close()
    with pytest.raises(ClosedError):
        closed.bind().__enter__()
    assert world.log == []


# Failures ----------------------------------------------------------------------------------------------------------


def test_the_bodys_error_goes_on(world: World, ctx: tz.Context) -> None:
    world.a.fail_undoing = True
    with pytest.raises(ZeroDivisionError) as caught, ctx.bind():
        _ = 1 / 0
    assert world.devices == OWN
    assert caught.value.__notes__ == ["leaving ctx.bind() also failed: RuntimeError: planted_a cannot be set back"]


def test_a_library_that_cannot_be_bound_leaves_nothing_set(world: World, ctx: tz.Context) -> None:
    world.b.fail_binding = world.a.fail_undoing = True
    with pytest.raises(RuntimeError, match="planted_b cannot be bound") as caught, ctx.bind():
        pytest.fail("this does not run")
    assert world.devices == OWN
    assert caught.value.__notes__ == ["leaving ctx.bind() also failed: RuntimeError: planted_a cannot be set back"]
    with pytest.raises(tz.errors.NoCurrentContextError):
        tz.current()


def test_the_first_failure_of_several_is_raised(world: World, ctx: tz.Context) -> None:
    world.a.fail_undoing = world.b.fail_undoing = True
    with pytest.raises(RuntimeError, match="planted_b cannot be set back") as caught, ctx.bind():
        pass
    assert world.devices == OWN
    assert caught.value.__notes__ == ["leaving ctx.bind() also failed: RuntimeError: planted_a cannot be set back"]


def test_what_the_context_makes_of_the_bodys_error_goes_on(
    world: World, ctx: tz.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = type(ctx).__exit__

    def translating(self: tz.Context, *exception: Any) -> None:
        leave(self, *exception)
        raise tz.OutOfMemoryError("the account") from exception[1]

    monkeypatch.setattr(type(ctx), "__exit__", translating)
    world.a.fail_undoing = True
    with pytest.raises(tz.OutOfMemoryError, match="the account") as caught, ctx.bind():
        raise MemoryError
    assert len(caught.value.__notes__) == 1


# Where it is left --------------------------------------------------------------------------------------------------


def test_leaving_in_another_thread_is_refused(world: World, ctx: tz.Context) -> None:
    binding, caught = ctx.bind(), []
    binding.__enter__()

    def leave() -> None:
        try:
            binding.__exit__(None, None, None)
        except UsageError as error:
            caught.append(str(error))

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join(10)
    assert "was not entered in this thread" in caught[0]
    assert world.devices == BOUND
    binding.__exit__(None, None, None)
    assert world.devices == OWN


def test_leaving_in_another_order_is_refused_and_libraries_are_set_back(world: World, ctx: tz.Context) -> None:
    binding, inner = ctx.bind(), ctx.bind()
    binding.__enter__()
    inner.__enter__()
    with pytest.raises(UsageError, match="not the innermost active scope"):
        binding.__exit__(None, None, None)
    assert world.devices == BOUND  # those of the inner one
    inner.__exit__(None, None, None)
    assert world.devices == OWN
    assert world.log[-4:] == ["undo planted_b", "undo planted_a"] * 2
    ctx.__exit__(None, None, None)  # the frame that the refused exit left
    with pytest.raises(tz.errors.NoCurrentContextError):
        tz.current()


def test_generators_that_are_well_nested_are_fine(world: World, ctx: tz.Context) -> None:
    def fixture() -> Iterator[tuple[str, str]]:
        with ctx.bind():
            yield world.devices

    assert list(fixture()) == [BOUND]
    assert world.devices == OWN


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_leaves_quietly(world: World, ctx: tz.Context) -> None:
    def child() -> None:
        binding.__exit__(None, None, None)
        assert world.devices == OWN

    binding = ctx.bind()
    with binding:
        in_fork(child)
        assert world.devices == BOUND


# asyncio -----------------------------------------------------------------------------------------------------------


def run(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, 10))


def test_it_may_be_used_between_awaits(world: World, ctx: tz.Context) -> None:
    async def worker() -> None:
        for _ in range(5):
            with ctx.bind():
                assert world.devices == BOUND
            assert world.devices == OWN
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(worker() for _ in range(5)))

    run(main())


def test_an_await_that_does_not_suspend_is_none(world: World, ctx: tz.Context) -> None:
    async def nothing() -> None:
        pass

    async def main() -> None:
        with ctx.bind():
            await nothing()

    run(main())


@pytest.mark.parametrize("how", ["sleep", "future", "executor"])
def test_an_await_inside_is_refused_on_exit(world: World, ctx: tz.Context, how: str) -> None:
    async def suspend() -> None:
        loop = asyncio.get_running_loop()
        if how == "sleep":
            await asyncio.sleep(0)
        elif how == "executor":
            await loop.run_in_executor(None, int)
        else:
            future: asyncio.Future[None] = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    async def main() -> None:
        with ctx.bind():
            pass  # leaves a witness that the next scope takes over
        with pytest.raises(UsageError, match="awaited"), ctx.bind():
            await suspend()
        assert world.devices == OWN
        with ctx.bind():
            pass

    run(main())


def test_an_await_inside_is_a_note_on_the_bodys_error(world: World, ctx: tz.Context) -> None:
    async def main() -> None:
        with ctx.bind():
            await asyncio.sleep(0)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        run(main())
    assert "awaited" in caught.value.__notes__[0]


def test_tasks_that_interleave_are_both_told_and_everything_is_set_back(world: World, ctx: tz.Context) -> None:
    entered = []

    async def worker(turns: int) -> None:
        with ctx.bind():
            entered.append(turns)
            for _ in range(turns):
                await asyncio.sleep(0)

    async def main() -> list[Any]:
        return list(await asyncio.gather(worker(2), worker(5), return_exceptions=True))

    first, second = run(main())
    assert entered == [2, 5]
    assert "awaited" in str(first)
    assert "awaited" in str(second)
    assert world.devices == OWN
    assert [line.split()[0] for line in world.log] == ["bind"] * 4 + ["undo"] * 4


def test_many_scopes_do_not_fill_the_loop(world: World, ctx: tz.Context) -> None:
    async def main() -> int:
        loop: Any = asyncio.get_running_loop()
        before = len(loop._ready)
        for _ in range(100):
            with ctx.bind():
                pass
        return len(loop._ready) - before

    assert run(main()) <= 1


def test_a_loop_inside_the_scope_is_synchronous_code(world: World, ctx: tz.Context) -> None:
    async def main() -> tuple[str, str]:
        await asyncio.sleep(0)
        return world.devices

    with ctx.bind():
        assert run(main()) == BOUND


def test_async_with_says_what_to_write(ctx: tz.Context) -> None:
    async def main() -> None:
        async with ctx.bind():
            pytest.fail("this does not run")

    with pytest.raises(UsageError, match=r"use `with ctx.bind\(\):`"):
        run(main())
    assert "binding of <CPUContext" in repr(ctx.bind())
