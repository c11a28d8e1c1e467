"""Strided copies and fills on a device that copies boxes and runs no host functions, as CUDA devices do, in memory."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import tazza as tz
from tazza.core.device import device
from tazza.drivers.sim.driver import SimConfig, SimDriver
from tazza.errors import UnsupportedError
from tazza.spi import Address, Box, Capabilities, CopyKind, DeviceInfo, Handle, Level
from tazza.testing.contract.battery import Array, Target
from tazza.testing.contract.level_1_strided import *  # noqa: F403
from tazza.testing.contract.level_1_strided import numbers, stored
from tazza.testing.contract.level_1_transport import (
    test_boxes_of_rows_are_copied_between_devices as test_boxes_of_rows_are_copied_between_devices,
)
from tazza.testing.contract.level_1_transport import (
    test_boxes_of_rows_are_copied_within_the_device as test_boxes_of_rows_are_copied_within_the_device,
)
from tazza.testing.contract.level_1_transport import (
    test_boxes_of_rows_go_to_the_device_and_back as test_boxes_of_rows_go_to_the_device_and_back,
)
from tazza.testing.simulation import installed

TIMEOUT = 20.0


class BoxDriver(SimDriver):
    """Simulated devices that copy boxes, and whose launched functions may only enqueue."""

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        return (
            super()
            .capabilities(device)
            ._replace(
                level=Level.TRANSPORT,
                host_functions=False,
                boxes=True,
                array_libraries=("buffers",),
            )
        )

    def copy_boxes(
        self,
        device: DeviceInfo,
        queue: Handle | None,
        box: Box,
        starts: Sequence[tuple[Address, Address]],
        kind: CopyKind,
    ) -> None:
        def run() -> None:
            for (dst, src), z, y in itertools.product(starts, range(box.slices), range(box.rows)):
                to = dst + (z * box.dst_rows + y) * box.dst_pitch
                of = src + (z * box.src_rows + y) * box.src_pitch
                target = to if kind is CopyKind.TO_HOST else self._locate_anywhere(to, box.width)[0]
                source = of if kind is CopyKind.FROM_HOST else self._locate_anywhere(of, box.width)[0]
                ctypes.memmove(target, source, box.width)

        self._submit(device, queue, "copy_boxes", run)


@pytest.fixture(params=[frozenset[str](), frozenset({"peer_copy"})], ids=["peers", "no-peers"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The device under test."""
    with installed("sim", BoxDriver(SimConfig(without=request.param))):
        yield Target(device("sim:0"))


def test_few_rows_of_a_wide_array_come_without_the_rest(target: Target) -> None:
    values = np.arange(50 * 100, dtype="float64").reshape(50, 100)
    with target.open() as ctx:
        x = stored(ctx, values)
        for shape, strides in (((50, 2), (800, 8)), ((50, 3, 2), (800, 160, 8)), ((7, 2, 3), (1600, 240, 40))):
            view = x.view("float64", shape, strides)
            assert np.array_equal(ctx.to_numpy(view), np.lib.stride_tricks.as_strided(values, shape, strides))


def test_bytes_go_to_columns_and_come_from_them(target: Target) -> None:
    values = numbers(target)
    with target.open() as ctx:
        x, raw = stored(ctx, np.zeros_like(values)), ctx.allocate(120)
        columns = x.view("float32", (6, 5), (40, 8))
        ctx.copy(raw, np.ascontiguousarray(values[:, ::2]).view("uint8").reshape(-1))
        ctx.copy(columns, raw)
        assert np.array_equal(ctx.to_numpy(columns), values[:, ::2])
        ctx.fill(raw, 0)
        ctx.copy(raw, columns)
        assert np.array_equal(ctx.to_numpy(raw.view("float32", (6, 5))), values[:, ::2])
        # Bytes that meet the columns: they are taken through memory between.
        ctx.copy(columns, x.view("uint8", (240,))[0:120].view("float32", (6, 5)))
        flat = replaced_by_bytes(values)
        assert np.array_equal(ctx.to_numpy(columns), flat)


def replaced_by_bytes(values: Array) -> Array:
    """The first 30 elements of the array whose every other column holds the values, and zeros between."""
    whole = np.zeros_like(values)
    whole[:, ::2] = values[:, ::2]
    return whole.reshape(-1)[:30].reshape(6, 5)


def test_what_would_take_too_many_copies_is_refused(target: Target) -> None:
    with target.open() as ctx:
        x = stored(ctx, np.arange(2000, dtype="float32"))
        y = ctx.allocate(8000, dtype="float32")
        with pytest.raises(UnsupportedError, match="2000 copies"):
            ctx.copy(y, x[::-1])
        assert ctx.to_numpy(x[::-1])[0] == 1999


def test_results_of_tasks_move_out_of_columns(target: Target) -> None:
    values = numbers(target)
    other = target.driver.devices()[1].name
    with target.open() as ctx, tz.open(other) as second, tz.open("cpu") as host:
        task = ctx.launch(lambda x: x.view("float32", (6, 5), (40, 8)), stored(ctx, values))
        moved = second.launch(lambda x: x, task).result(timeout=TIMEOUT)
        assert np.array_equal(second.to_numpy(moved), values[:, ::2])
        assert np.array_equal(host.launch(np.copy, task).result(timeout=TIMEOUT), values[:, ::2])
