"""Programs that are run once for each call of a library that is made to fail: the cases, and what must hold after each.

A first run counts the calls that a program makes, so that a call which the backend learns to make is covered by itself.
Each case is a forked child of a process that has imported everything and not initialised CUDA: counting begins at
`cuInit`, and no case knows of another.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import cuda_emulator
import numpy as np
from cuda.bindings import driver as api

import tazza as tz
from tazza.core.runtime import live_runtimes
from tazza.errors import DeviceLostError, TazzaError

T = 10.0
"""Seconds after which a wait of the program gives up."""

HUNG = 40.0
"""Seconds after which a case counts as hung."""

KINDS = {"plain": ("INVALID_VALUE", ("1", "2", "last", "*")), "sticky": ("LAUNCH_FAILED:sticky", ("1", "2", "last"))}

ANSWERS = {"cuKernelGetParamInfo": "INVALID_HANDLE"}
"""Another error for a call of which INVALID_VALUE is an answer: there are no more parameters."""

AS = {"cuGetProcAddress": "is not found"}
"""What a failure of a call is known by, where it is the bindings that make it."""

WITHOUT = {"cuGetProcAddress:*": "the bindings keep for good that there is no driver, and say so"}
"""Cases that are left out, and why."""

emulator = cuda_emulator.start()


def expect(actual: Any, expected: Any) -> None:
    """Compare; what is wrong is a fault that nobody was told of."""
    assert np.array_equal(np.asarray(actual), np.asarray(expected)), f"wrong data: {actual} for {expected}"


class Suite(NamedTuple):
    """A program, and whose calls fail in it.

    Attributes:
        program: is given the list that it puts its contexts into.
        made: how often each call was made.
        check_left: fails where something is left once all is closed and dropped.
        silent: calls whose failure nobody need hear of, and why.
        unbroken: in the names of calls that touch no device, and so never break one.
    """

    program: Callable[[list[tz.Context]], None]
    made: Callable[[], dict[str, int]]
    check_left: Callable[[], None]
    silent: dict[str, str]
    unbroken: tuple[str, ...]


# A case --------------------------------------------------------------------------------------------------------------


def told(error: BaseException | None) -> Iterator[str]:
    """All that an error says, with what it came from."""
    while error is not None:
        yield f"{error!r} {getattr(error, 'call', '')} {getattr(error, '__notes__', '')}"
        error = error.__cause__ or error.__context__


def run_case(suite: Suite, name: str, fault: str) -> dict[str, Any]:
    """Run the program under a fault, then what must be true afterwards."""
    stray: list[str] = []
    sys.unraisablehook = lambda what: stray.append(f"unraisable: {what.exc_value!r} in {what.object!r}")
    threading.excepthook = lambda what: stray.append(f"in {what.thread}: {what.exc_value!r}")
    emulator.faults = fault
    opened: list[tz.Context] = []
    outcome = "passed"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            suite.program(opened)
        except TazzaError as error:
            outcome, text = type(error).__name__, " | ".join(told(error))
            traceback.clear_frames(error.__traceback__)
            assert AS.get(name, name) in text, f"{name} is not named: {text}"
        met = reached(suite, name, fault.split(":")[1])
        emulator.faults = ()
        if fault.startswith("cuCtxPopCurrent:*"):
            assert outcome != "passed", "nobody was told that the caller's context cannot be put back"
            while int(api.cuCtxPopCurrent()[0]) == 0:
                continue
        after(suite, opened, name)
    assert not stray, stray
    heard = any(AS.get(name, name) in str(one.message) for one in warned)
    lost = any(device.driver.poison(device.info) for device in tz.devices("cuda"))
    assert outcome != "passed" or heard or lost or name in suite.silent or not met, "nobody was told"
    return {"outcome": outcome, "warnings": sorted({type(one.message).__name__ for one in warned})}


def after(suite: Suite, opened: list[tz.Context], name: str) -> None:
    """Contexts work on or say that they are lost, and nothing is left in the driver."""
    if initialised():
        assert int(api.cuCtxGetCurrent()[1]) == 0, "the caller's context was not put back"
    for number in range(len(opened)):
        works_or_says_why(opened[number], name)
    finish(opened)
    lost = [device for device in tz.devices("cuda") if device.driver.poison(device.info)]
    for device in tz.devices("cuda"):
        if device in lost:
            is_refused(device.name, name)
        elif lost:
            with tz.open(device.name) as well:
                works_or_says_why(well, name)
    if not lost:
        suite.program(opened)
        finish(opened)
        suite.check_left()


def initialised() -> bool:
    """Whether CUDA was initialised: where that was made to fail there is no current context."""
    try:
        return not api.cuCtxGetCurrent()[0]
    except RuntimeError:  # the bindings were kept from finding their functions
        return False


def is_refused(device: str, name: str) -> None:
    """A lost device says so to whoever wants a context on it."""
    said = ""
    try:
        tz.context(device)
    except DeviceLostError as error:
        said = str(error)
    assert name in said, said or f"{device} is lost and gives a context"


def works_or_says_why(ctx: tz.Context, name: str) -> None:
    """Use a context."""
    if ctx.health:
        if not ctx.is_closed:
            expect(ctx.to_numpy(ctx.asarray(np.arange(10))), np.arange(10))
        return
    assert name in str(ctx.health.cause), ctx.health.cause
    for use in (lambda: ctx.allocate(64), lambda: ctx.synchronize(T)):
        try:
            use()
        except DeviceLostError:
            continue
        raise AssertionError(f"{ctx!r} is lost and works")


def finish(opened: list[tz.Context]) -> None:
    """Close and drop all; failures that nobody has seen are raised by closing, once."""
    while opened:
        try:
            opened[-1].close(timeout=T)
        except TazzaError:
            opened[-1].close(timeout=T)
        assert opened.pop().is_closed
    gc.collect()


def nothing_is_left(images: int = 0) -> None:
    """Give back what is kept for reuse, and ask the emulator what there is: no more than so many images of kernels."""
    assert emulator.wait_idle()
    for _ in range(3):  # streams that are over are forgotten, then what they held is, then that is given back
        gc.collect()
        for runtime in live_runtimes():
            runtime.reclaim()
            runtime.trim()
            assert runtime.account.live == 0, f"{runtime} has {runtime.account!r}"
    assert emulator.live_bytes() == 0, emulator.report()["allocations"]
    objects = emulator.report()["objects"]
    assert objects.pop("module") <= images, emulator.report()["objects"]
    if images:
        del objects["kernel"]  # they go with their images
    assert not any(objects.values()), objects
    assert emulator.report()["n_hazards"] == 0, emulator.report()["hazards"]


# Children ------------------------------------------------------------------------------------------------------------


def forked(function: Callable[[], Any]) -> tuple[Any, str]:
    """What a function returned in a forked child, or how that ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            answer: Any = {"value": function()}
        except BaseException:  # the child must not go on as its parent
            answer = {"failure": traceback.format_exc()}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writing, data) :]
        os._exit(0)
    os.close(writing)
    data = b""
    while True:
        ready, _, _ = select.select([reading], [], [], HUNG)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            break
        part = os.read(reading, 1 << 16)
        if not part:
            break
        data += part
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not ready:
        return None, f"hung for {HUNG:g} s"
    if status or not data:
        return None, f"ended with {status}"
    answer = json.loads(data)
    return answer.get("value"), answer.get("failure", "")


def counted(suite: Suite) -> dict[str, int]:
    """The calls that the program makes."""
    suite.program([])
    return counts(suite)


def reached(suite: Suite, name: str, when: str) -> bool:
    """Whether a fault has been due; how often events are looked at differs from run to run."""
    return counts(suite).get(name, 0) >= (int(when) if when.isdigit() else 1)


def counts(suite: Suite) -> dict[str, int]:
    """How often each call was made, by the name under which it can be made to fail."""
    calls: dict[str, int] = {}
    for call, count in suite.made().items():
        name = call.split("_v")[0].removesuffix("_ptsz").removesuffix("_ptds")
        calls[name] = calls.get(name, 0) + count
    return calls


def main(suite: Suite, kind: str, part: str = "1/1", *only: str) -> int:
    """Run a part of the cases of a kind, print a line for each, and end with the number of those that failed."""
    os.environ["TAZZA_WAIT_TIMEOUT"] = str(T)
    calls, failure = forked(partial(counted, suite))
    assert not failure, failure
    error, occurrences = KINDS[kind]
    failed, (number, parts) = 0, map(int, part.split("/"))
    unbroken = suite.unbroken if kind == "sticky" else ()
    names = [name for name in only or calls if not any(part in name for part in unbroken)]
    for name in sorted(names)[number - 1 :: parts]:
        for when in dict.fromkeys(str(calls[name]) if one == "last" else one for one in occurrences):
            if (when.isdigit() and int(when) > calls[name]) or f"{name}:{when}" in WITHOUT:
                continue
            fault = f"{name}:{when}:{ANSWERS.get(name, error) if kind == 'plain' else error}"
            value, failure = forked(partial(run_case, suite, name, fault))
            failed += bool(failure)
            print(fault, failure or value, flush=True)
    print(f"{len(calls)} calls, {failed} cases failed: {' '.join(calls)}")
    return min(failed, 100)
