"""``tazza bench``: time an operation on each device, the way there and back, and from which size on it pays.

OPERATION is matmul, copy, random, or a function of your own as module:function. It is launched on each device with
float32 arrays; where it returns arrays, their way back is timed too. A device breaks even at the smallest measured
size from which on it takes less time than the first device, with and without moving the data.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import tazza as tz
from tazza.cli.exits import ExitCode, find_device
from tazza.cli.operations import Operation, parse_shape, resolve
from tazza.cli.output import build, show_json, show_table, show_text, versions
from tazza.errors import ArgumentError
from tazza.util.text import format_nbytes, format_seconds

__all__ = ["Timing", "add_arguments", "break_even", "execute", "measure"]

_MOST_REPEATS = 1000


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians for one operation of one size on one device, in seconds.

    Attributes:
        device: its name.
        size: the N of the operation's shapes.
        nbytes: of the arguments.
        to_device: moving the arguments there.
        compute: from launch to end, arguments resident.
        to_host: moving the result back.
        repeats: how often it was timed.
    """

    device: str
    size: int
    nbytes: int
    to_device: float
    compute: float
    to_host: float
    repeats: int

    @property
    def total(self) -> float:
        """Seconds with both ways."""
        return self.to_device + self.compute + self.to_host


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the benchmark."""
    parser.add_argument("operation", nargs="?", default="matmul", metavar="OPERATION", help="default: matmul")
    parser.add_argument("--device", action="append", metavar="D", help="may be repeated; default: every device")
    parser.add_argument("--sizes", metavar="N,N,...", help="sizes to measure, the N of the shapes")
    parser.add_argument(
        "--shape", action="append", default=[], metavar="S", help="of one argument of your function, as N, N,N or N,64"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.2, metavar="T", help="for each measurement, about (default %(default)s)"
    )


def execute(options: argparse.Namespace) -> ExitCode:
    """Measure every device and print a table."""
    if not 0 < options.seconds < float("inf"):
        raise ArgumentError.of("--seconds", options.seconds, "a positive number")
    operation = resolve(options.operation, tuple(parse_shape(text) for text in options.shape))
    sizes = operation.sizes if options.sizes is None else _sizes(options.sizes)
    devices = [find_device(name) for name in options.device] if options.device else list(tz.devices())
    timings = [timing for device in devices for timing in measure(operation, device, sizes, seconds=options.seconds)]
    pays = [asdict(one) for one in break_even(timings)]
    if options.json:
        results = [asdict(timing) | {"total": timing.total} for timing in timings]
        head = {"operation": operation.name, "versions": versions(), "build": build()}
        show_json(head | {"timings": results, "break_even": pays})
    else:
        _print(operation, timings, pays)
    return ExitCode.OK


def measure(operation: Operation, device: tz.Device, sizes: Sequence[int], *, seconds: float) -> list[Timing]:
    """Time one operation on one device, each part for about `seconds`."""
    timings = []
    with tz.open(device, seed=0) as ctx:
        for size in sizes:
            host = operation.arguments(size)
            first = [size] if operation.takes_size else []

            def move(host: list[Any] = host) -> list[Any]:
                moved = [ctx.asarray(array, copy=True) for array in host]
                ctx.stream.synchronize()
                return moved

            resident = move()

            def compute(arguments: list[Any] = first + resident) -> Any:
                return ctx.launch(operation.function, *arguments, label=operation.name).result()

            outcome = compute()  # also the warm-up
            results = [one for one in (outcome if isinstance(outcome, tuple | list) else [outcome]) if _is_array(one)]

            def fetch(results: list[Any] = results) -> list[Any]:
                return [np.array(ctx.to_numpy(array), copy=True) for array in results]

            there, computed, back = (_median(part, seconds) for part in (move, compute, fetch))
            timings.append(
                Timing(device.name, size, operation.nbytes(size), there[0], computed[0], back[0], computed[1])
            )
    return timings


@dataclass(frozen=True, slots=True)
class BreakEven:
    """From which measured size on a device takes less time than the first one; None where it never does.

    Attributes:
        device: its name.
        against: the first device's name.
        moved: size with the data moved there and back.
        resident: size with the data already there.
    """

    device: str
    against: str
    moved: int | None
    resident: int | None


def break_even(timings: Sequence[Timing]) -> list[BreakEven]:
    """Compare every device with the first; sizes are those of `timings`."""
    names = list(dict.fromkeys(timing.device for timing in timings))
    table = {name: {timing.size: timing for timing in timings if timing.device == name} for name in names}
    if not names:
        return []
    base = table[names[0]]
    return [
        BreakEven(
            device=name,
            against=names[0],
            moved=_first_faster([(size, one.total, base[size].compute) for size, one in table[name].items()]),
            resident=_first_faster([(size, one.compute, base[size].compute) for size, one in table[name].items()]),
        )
        for name in names[1:]
    ]


def _first_faster(compared: list[tuple[int, float, float]]) -> int | None:
    """Return the smallest size from which on the first time is always the smaller one."""
    found = None
    for size, ours, theirs in sorted(compared, reverse=True):
        if ours >= theirs:
            break
        found = size
    return found


def _median(part: Callable[[], Any], seconds: float) -> tuple[float, int]:
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or (time.perf_counter() < end and len(samples) < _MOST_REPEATS):
        start = time.perf_counter()
        part()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples), len(samples)


def _is_array(value: object) -> bool:
    return isinstance(value, tz.Buffer | np.ndarray)


def _sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ArgumentError.of("--sizes", text, "positive integers, separated by commas")
    return tuple(sorted({int(part) for part in parts}))


def _print(operation: Operation, timings: list[Timing], pays: list[dict[str, Any]]) -> None:
    rows = [
        (
            timing.device,
            timing.size,
            format_nbytes(timing.nbytes),
            *map(format_seconds, (timing.to_device, timing.compute, timing.to_host, timing.total)),
        )
        for timing in timings
    ]
    columns = ("device", "N", "data", "to device", "compute", "to host", "total")
    show_table(f"{operation.name}, {build()}", columns, rows)
    for one in pays:
        moved, resident = (one[key] or "no measured size" for key in ("moved", "resident"))
        show_text(f"{one['device']} pays against {one['against']} from: {moved} (data moved), {resident} (resident)")
