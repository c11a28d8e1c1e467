"""Compiled kernels where nothing compiles them; what they do elsewhere is tested on emulated devices (tests/cuda)."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import pytest

import tazza as tz
from tazza.core import compiled
from tazza.errors import ClosedError, CompileError, UnsupportedError
from tazza.testing import simulate


@pytest.mark.parametrize("name", ["cpu", "sim"])
def test_a_device_that_compiles_nothing_says_what_to_do(name: str) -> None:
    with simulate(devices=1), tz.open(name) as ctx:
        with pytest.raises(UnsupportedError, match=r"ctx\.launch\(fn"):
            ctx.compile("source", "kernel")
        driver, info = ctx.device.driver, ctx.device.info
        calls: list[Callable[[], object]] = [
            lambda: driver.program_code(info, ""),
            lambda: driver.program_load(info, ""),
            lambda: driver.program_unload(info, None),
            lambda: driver.kernel_find(info, None, ""),
            lambda: driver.kernel_launch(info, None, None, (1, 1, 1), (1, 1, 1), 0, ()),
        ]
        for call in calls:
            with pytest.raises(UnsupportedError):
                call()


def test_a_closed_context_compiles_nothing() -> None:
    ctx = tz.context("cpu")
    ctx.close()
    with pytest.raises(ClosedError):
        ctx.compile("source", "kernel")


def test_a_compilers_log_is_in_the_message_and_beside_it() -> None:
    error = CompileError("code: refused", "line 3: what?")
    assert str(error) == "code: refused:\nline 3: what?"
    assert error.log == "line 3: what?"


def test_the_examples_run() -> None:
    assert doctest.testmod(compiled).failed == 0
