"""What the battery computes: by operators where arrays have them, by compiled kernels where arrays are Buffers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import tazza as tz
from tazza.core.compiled import CompiledKernel

__all__ = ["Functions", "functions_of"]

_THREADS = 64
_CUDA = """
#define I (blockIdx.x * blockDim.x + threadIdx.x)
extern "C" __global__ void twice(unsigned n, const float *x, float *to) { if (I < n) to[I] = 2 * x[I]; }
extern "C" __global__ void increase(unsigned n, float by, float *x) { if (I < n) x[I] += by; }
extern "C" __global__ void sum(unsigned n, const float *x, const float *y, float *to) {
    if (I < n) to[I] = x[I] + y[I];
}
"""
SOURCES = {"CUDA C++": _CUDA}
"""The kernels ``twice``, ``increase`` and ``sum`` on float32, in each language of which a backend is known."""


class Functions(NamedTuple):
    """Functions to launch, on arrays of float32.

    Attributes:
        double: returns twice an array.
        increase: adds one in place.
        add: returns the sum of two.
    """

    double: Callable[[Any], Any]
    increase: Callable[[Any], None]
    add: Callable[[Any, Any], Any]


def _double(x: Any) -> Any:
    return x * 2


def _increase(x: Any) -> None:
    x += 1


_OPERATORS = Functions(_double, _increase, operator.add)


def functions_of(ctx: tz.Context) -> Functions:
    """The functions for a context, as its arrays and its device's kernel language say."""
    if ctx.spec.arrays != "buffers":
        return _OPERATORS
    language = ctx.device.capabilities.kernel_language
    if language not in SOURCES:
        pytest.fail(
            f"{ctx.device} computes by kernels alone, and the battery has none in {language or 'no language'!r}"
        )
    twice, increase, total = (ctx.compile(SOURCES[language], name) for name in ("twice", "increase", "sum"))

    def filled(kernel: CompiledKernel, *read: Any) -> Any:
        made = tz.current().empty(read[0].shape, "float32")
        kernel[_blocks(made), _THREADS](_count(made), *read, made)
        return made

    return Functions(
        lambda x: filled(twice, x),
        lambda x: increase[_blocks(x), _THREADS](_count(x), 1.0, x),
        lambda x, y: filled(total, x, y),
    )


def _count(x: Any) -> int:
    return math.prod(x.shape)


def _blocks(x: Any) -> int:
    return max(1, -(-_count(x) // _THREADS))
