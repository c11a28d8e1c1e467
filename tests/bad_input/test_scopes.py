"""Unbalanced ``with``: refused where it happens, in the thread that did it, and nothing stays current."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

import tazza as tz
from tazza.errors import NoCurrentContextError, UsageError
from tests.bad_input.health import TIMEOUT


@pytest.fixture
def contexts() -> Iterator[tuple[tz.Context, tz.Context]]:
    with ExitStack() as stack:
        made = tz.context("cpu"), tz.context("sim:0")
        for ctx in made:
            stack.callback(ctx.close, TIMEOUT)
        yield made


def test_exit_without_entry(contexts: tuple[tz.Context, tz.Context]) -> None:
    ctx, _ = contexts
    for _ in range(2):
        with pytest.raises(UsageError, match="not the innermost .*no scope is active here"):
            ctx.__exit__(None, None, None)


def test_exit_in_the_wrong_order_changes_nothing(contexts: tuple[tz.Context, tz.Context]) -> None:
    outer, inner = contexts
    with outer:
        with inner:
            with pytest.raises(UsageError, match="leave scopes in the reverse order"):
                outer.__exit__(None, None, None)
            assert tz.current() is inner
        assert tz.current() is outer


def test_exit_in_another_thread(contexts: tuple[tz.Context, tz.Context]) -> None:
    ctx, _ = contexts
    caught: list[BaseException] = []

    def leave() -> None:
        try:
            ctx.__exit__(None, None, None)
        except UsageError as error:
            caught.append(error)

    with ctx:
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        assert tz.current() is ctx
    assert "not the innermost" in str(caught[0])


def test_exit_in_another_asyncio_context_names_both_ways_out(contexts: tuple[tz.Context, tz.Context]) -> None:
    """The trap of async fixtures: entered in one task, left in a copy of its context."""
    ctx, _ = contexts

    async def leave() -> None:
        with pytest.raises(UsageError, match="another thread or asyncio context.*its own `with`"):
            ctx.__exit__(None, None, None)

    async def main() -> None:
        with ctx:
            await asyncio.wait_for(asyncio.create_task(leave()), TIMEOUT)
            assert tz.current() is ctx

    asyncio.run(main())


def test_generator_left_open_between_scopes(contexts: tuple[tz.Context, tz.Context]) -> None:
    """A suspended generator's scope leaks out until it is resumed; a crossed exit is seen, a nested one is fine."""
    outer, inner = contexts

    def scoped() -> Iterator[None]:
        with inner:
            yield

    nested = scoped()
    with outer:
        next(nested)
        assert next(nested, "over") == "over"
        assert tz.current() is outer

    crossed = scoped()
    outer.__enter__()
    next(crossed)
    with pytest.raises(UsageError, match="reverse order"):
        outer.__exit__(None, None, None)
    assert next(crossed, "over") == "over"
    outer.__exit__(None, None, None)


def test_exit_never_swallows_the_exception_of_its_body(contexts: tuple[tz.Context, tz.Context]) -> None:
    for ctx in contexts:
        with pytest.raises(KeyError, match="mine"):
            with ctx:
                raise KeyError("mine")
        with pytest.raises(KeyError, match="mine"):
            with ctx.on(ctx.new_stream()):
                raise KeyError("mine")


def test_new_threads_start_with_nothing_current(contexts: tuple[tz.Context, tz.Context]) -> None:
    ctx, _ = contexts
    with ctx, ThreadPoolExecutor(1) as executor:
        with pytest.raises(NoCurrentContextError, match=r"tz\.carry\(fn\)"):
            executor.submit(tz.current).result(TIMEOUT)
        assert executor.submit(tz.carry(tz.current)).result(TIMEOUT) is ctx
