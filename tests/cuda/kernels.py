"""What litmus programs and generated programs compute, as compiled kernels: for devices whose arrays are Buffers."""

from __future__ import annotations

import math
from typing import Any

import tazza as tz

__all__ = ["SOURCE", "add", "full", "kernel", "matmul", "plus"]

SOURCE = """
typedef long long Word;
#define I (blockIdx.x * blockDim.x + threadIdx.x)
extern "C" __global__ void put(Word n, Word value, Word *x) { if (I < n) x[I] = value; }
extern "C" __global__ void add(Word n, Word value, Word *x) { if (I < n) x[I] += value; }
extern "C" __global__ void plus(Word n, Word value, const Word *x, Word *to) { if (I < n) to[I] = x[I] + value; }
extern "C" __global__ void matmul(int rows, int inner, int columns, const float *a, const float *b, float *to) {
    int row = I / columns, column = I % columns;
    if (row >= rows) return;
    float sum = 0;
    for (int k = 0; k < inner; k++) sum += a[row * inner + k] * b[k * columns + column];
    to[I] = sum;
}
extern "C" __global__ void accumulate(Word n, const float *x, float *to) { if (I < n) to[I] += x[I]; }
extern "C" __global__ void scale(Word n, Word by, Word plus, Word *x) { if (I < n) x[I] = x[I] * by + plus; }
extern "C" __global__ void blend(Word n, Word factor, const Word *x, Word *to) { if (I < n) to[I] += x[I] * factor; }
extern "C" __global__ void remain(Word n, Word divisor, Word *x) { if (I < n) x[I] %= divisor; }
"""

_kernels: dict[tuple[int, str], Any] = {}


def kernel(name: str) -> Any:
    """A kernel for the device of the current context, kept as long as that driver is."""
    here = tz.current()
    key = id(here.device.driver), f"{here.device.name} {name}"
    if key not in _kernels:
        _kernels[key] = here.device.driver, here.compile(SOURCE, name)
    return _kernels[key][1]


def run(name: str, count: int, *args: Any) -> None:
    """Enqueue a kernel over so many elements."""
    kernel(name)[max(1, -(-count // 32)), 32](*args)


def count_of(x: tz.Buffer) -> int:
    """Elements of an array."""
    return math.prod(x.shape)


def add(x: tz.Buffer, value: Any) -> None:
    """Read, add and write."""
    run("add", count_of(x), count_of(x), int(value), x)


def plus(x: tz.Buffer, value: Any) -> tz.Buffer:
    """Return the sum."""
    made: tz.Buffer = tz.current().empty(x.shape, "int64")
    run("plus", count_of(x), count_of(x), int(value), x, made)
    return made


def full(count: int, value: int) -> tz.Buffer:
    """Make an array of int64 in a task."""
    made: tz.Buffer = tz.current().empty(count, "int64")
    run("put", count, count, value, made)
    return made


def matmul(a: tz.Buffer, b: tz.Buffer) -> tz.Buffer:
    """The product of two matrices of float32."""
    rows, inner, columns = *a.shape, b.shape[1]
    made: tz.Buffer = tz.current().empty((rows, columns), "float32")
    run("matmul", rows * columns, rows, inner, columns, a, b, made)
    return made
