"""Filters of 1 x 1 on oneDNN: images are left as they lie, and of those that a stride skips nothing is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest

import tazza as tz
from tazza.dnn import PlannedDnn, ReferenceDnn
from tazza.dnn.choosing import library_named
from tazza.errors import BackendUnavailableError

try:
    library_named("onednn")
except BackendUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def dnn() -> Iterator[PlannedDnn]:
    with tz.open("cpu", dnn="onednn") as ctx:
        yield ctx.dnn


def numbers(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def turned(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def workspace(dnn: PlannedDnn, x: Array, w: Any, stride: tuple[int, int]) -> int:
    options: dict[str, Any] = {"stride": stride, "padding": 0, "dilation": 1, "groups": 1, "activation": None}
    return dnn.plan("conv2d", x, w, None, **options).workspace_bytes


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3), (1, 3)])
@pytest.mark.parametrize("size", [(12, 18), (13, 17), (24, 24), (2, 3), (6, 6), (1, 3)])
@pytest.mark.parametrize("groups", [1, 4])
def test_results_are_those_of_the_formula(
    dnn: PlannedDnn, size: tuple[int, int], stride: tuple[int, int], groups: int
) -> None:
    x, w, bias = numbers(2, 16, *size), numbers(8, 16 // groups, 1, 1), numbers(8)
    options: dict[str, Any] = {"stride": stride, "groups": groups, "activation": "relu"}
    expected = ReferenceDnn(xp).conv2d(*(one.astype(np.float64) for one in (x, w, bias)), **options)
    for images in (x, turned(x), np.concatenate([x, x], 3)[..., : size[1]], x[:, ::-1][:, ::-1]):
        for filters in (w, dnn.weights(w)):
            np.testing.assert_allclose(dnn.conv2d(images, filters, bias, **options), expected, rtol=1e-5, atol=1e-5)


def test_plain_images_are_not_turned(dnn: PlannedDnn) -> None:
    x, w = numbers(2, 16, 24, 24), numbers(32, 16, 1, 1)
    packed = w.nbytes + 64  # filters may be, where they are not `Weights`
    assert workspace(dnn, x, w, (1, 1)) <= packed < x.nbytes


def test_what_a_stride_skips_is_not_copied(dnn: PlannedDnn) -> None:
    x, w = numbers(2, 16, 24, 24), numbers(32, 16, 1, 1)
    assert workspace(dnn, x, w, (2, 2)) <= x.nbytes // 4 + w.nbytes + 128
