"""oneDNN called with nothing in between: a few `ctypes` calls, for programs that ask what the library itself can do.

Memory, arguments and primitives are made beforehand, so that a run is one C call for each step. Constants are those of
``dnnl_types.h``, version 3; the library is the one in the wheel ``onednn-cpu-gomp``.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ACDB", "ANY", "NCHW", "BlockedC8", "Engine", "Program", "Refused"]

ANY, NCHW, ACDB, BlockedC8 = 1, 5, 22, 102
"""Layouts of images: the library's choice, plain, channels last, channels in blocks of eight."""

_A, _AB, _ABC, _F32, _INFERENCE, _DIRECT, _USER = 2, 3, 4, 3, 96, 1, 1
_PLAIN = {1: _A, 2: _AB, 3: _ABC, 4: NCHW}
_SRC, _DST, _WEIGHTS, _SCRATCHPAD = 1, 17, 33, 80
_IMPL, _SRC_MD, _WEIGHTS_MD, _DST_MD, _SCRATCH_MD = 8, 129, 131, 133, 136

Pointer = ctypes.c_void_p
Array = np.ndarray[Any, np.dtype[Any]]


class Refused(Exception):
    """The library has no implementation for these layouts."""


class _Argument(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int), ("memory", ctypes.c_void_p))


class Engine:
    """The library with an engine, a stream and what was made on them, which lives as long as the process.

    Args:
        path: of ``libdnnl.so.3``; None is the one in the interpreter's prefix, where the wheel puts it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.library = ctypes.CDLL(str(path or Path(sys.prefix, "lib", "libdnnl.so.3")))
        self.library.dnnl_primitive_desc_query_md.restype = Pointer
        self.library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self.engine, self.stream = Pointer(), Pointer()
        self.call("engine_create", ctypes.byref(self.engine), 1, ctypes.c_size_t(0))
        self.call("stream_create", ctypes.byref(self.stream), self.engine, 1)
        self.attributes = Pointer()
        self.call("primitive_attr_create", ctypes.byref(self.attributes))
        self.call("primitive_attr_set_scratchpad_mode", self.attributes, _USER)

    def call(self, name: str, *arguments: Any) -> None:
        """Call ``dnnl_<name>``.

        Raises:
            Refused: it is unimplemented.
            RuntimeError: any other status.
        """
        status = getattr(self.library, f"dnnl_{name}")(*arguments)
        if status == 3:
            raise Refused(name)
        if status:
            raise RuntimeError(f"dnnl_{name} returned {status}")

    def limit_threads(self, count: int) -> None:
        """Set OpenMP's threads for primitives that the calling thread makes and runs."""
        ctypes.CDLL("libgomp.so.1").omp_set_num_threads(count)

    def layout(self, shape: Sequence[int], tag: int) -> Pointer:
        """Describe a float32 array."""
        made = Pointer()
        self.call("memory_desc_create_with_tag", ctypes.byref(made), len(shape), _dims(shape), _F32, tag)
        return made

    def nbytes(self, layout: Pointer) -> int:
        """Bytes that memory of a layout takes."""
        return int(self.library.dnnl_memory_desc_get_size(layout))


class Program:
    """Primitives that run one after the other on memory that they keep.

    Attributes:
        implementations: the library's name of each step.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.implementations: list[str] = []
        self._steps: list[tuple[Pointer, int, Any]] = []
        self._kept: list[Any] = []
        self._execute = engine.library.dnnl_primitive_execute
        self._stream = engine.stream

    def run(self) -> None:
        """Do all steps; they are over when this returns."""
        for primitive, count, arguments in self._steps:
            if self._execute(primitive, self._stream, count, arguments):
                raise RuntimeError("dnnl_primitive_execute failed")

    def sampled(self, x: Array, w: Array, y: Array, stride: int, inner: int) -> Program:
        """Convolve plain images with filters of 1 x 1: what the stride does not skip is copied to `inner` first."""
        engine, (count, channels, height, width) = self.engine, x.shape
        shape, strides = (count, channels, height // stride, width // stride), [step // 4 for step in x.strides]
        taken, made = Pointer(), Pointer()
        steps = _dims((*strides[:2], strides[2] * stride, strides[3] * stride))
        engine.call("memory_desc_create_with_strides", ctypes.byref(taken), 4, _dims(shape), _F32, steps)
        layout = engine.layout(shape, inner)
        copy = self._memory(layout)
        self._reorder(taken, layout, self._memory(taken, x), copy)
        layouts = layout, engine.layout(w.shape, ANY), engine.layout(y.shape, inner)
        none, ones = _dims((0, 0)), _dims((1, 1))
        engine.call(
            "convolution_forward_primitive_desc_create",
            *(ctypes.byref(made), engine.engine, _INFERENCE, _DIRECT, layouts[0], layouts[1], None, layouts[2]),
            *(ones, none, none, none, engine.attributes),
        )
        plain, result = engine.layout(w.shape, NCHW), self._memory(engine.layout(y.shape, NCHW), y)
        packed = self._packed(plain, self._query(made, _WEIGHTS_MD), self._memory(plain, w))
        outcome = result if inner == NCHW else self._memory(layouts[2])
        self._add(made, {_SRC: copy, _WEIGHTS: packed, _DST: outcome})
        if inner != NCHW:
            self._reorder(layouts[2], engine.layout(y.shape, NCHW), outcome, result)
        return self

    def convolution(self, x: Array, w: Array, y: Array, stride: int, padding: int, outer: int, inner: int) -> Program:
        """Convolve images that lie as `outer` says in memory, in the layout `inner`; weights are packed here.

        Args:
            x: memory of (N, C, H, W), in whichever order.
            w: (O, C, KH, KW), plain.
            y: memory of the result.
            stride: of both axes.
            padding: at all borders.
            outer: layout of `x` and `y`.
            inner: layout that the convolution gets; differs from `outer`: reorders come before and after it.
        """
        engine, made = self.engine, Pointer()
        layouts = (
            engine.layout(x.shape, inner),
            engine.layout(w.shape, ANY),
            engine.layout(y.shape, inner),
        )
        pads, no_dilation = _dims((padding, padding)), _dims((0, 0))
        engine.call(
            "convolution_forward_primitive_desc_create",
            *(ctypes.byref(made), engine.engine, _INFERENCE, _DIRECT, layouts[0], layouts[1], None, layouts[2]),
            *(_dims((stride, stride)), no_dilation, pads, pads, engine.attributes),
        )
        self._around(made, x, w, y, outer)
        return self

    def matmul(self, a: Array, b: Array, y: Array, *, packed: str = "b") -> Program:
        """Multiply plain arrays of equal rank; the one named by `packed` is put into the library's layout here."""
        engine, made = self.engine, Pointer()
        layouts = [
            engine.layout(one.shape, ANY if name == packed else _PLAIN[one.ndim])
            for name, one in zip("aby", (a, b, y), strict=True)
        ]
        engine.call(
            "matmul_primitive_desc_create",
            *(ctypes.byref(made), engine.engine, layouts[0], layouts[1], None, layouts[2], engine.attributes),
        )
        held = {}
        for name, number, query, one in (("a", _SRC, _SRC_MD, a), ("b", _WEIGHTS, _WEIGHTS_MD, b)):
            plain = self._memory(engine.layout(one.shape, _PLAIN[one.ndim]), one)
            wanted = self._query(made, query)
            held[number] = (
                self._packed(engine.layout(one.shape, _PLAIN[one.ndim]), wanted, plain) if (name == packed) else plain
            )
        held[_DST] = self._memory(layouts[2], y)
        self._add(made, held)
        return self

    def inner_product(self, x: Array, w: Array, y: Array) -> Program:
        """Multiply (N, I) with the transpose of the packed (O, I)."""
        engine, made = self.engine, Pointer()
        layouts = [engine.layout(x.shape, _AB), engine.layout(w.shape, ANY), engine.layout(y.shape, _AB)]
        engine.call(
            "inner_product_forward_primitive_desc_create",
            *(ctypes.byref(made), engine.engine, _INFERENCE, layouts[0], layouts[1], None, layouts[2]),
            engine.attributes,
        )
        self._around(made, x, w, y, _AB)
        return self

    def _around(self, made: Pointer, x: Array, w: Array, y: Array, outer: int) -> None:
        """Add a primitive with reorders where it wants another layout than `outer`."""
        engine = self.engine
        own = [engine.layout(one.shape, outer) for one in (x, y)]
        source, result = self._memory(own[0], x), self._memory(own[1], y)
        inside = source
        if not self._equal(own[0], self._query(made, _SRC_MD)):
            inside = self._memory(self._query(made, _SRC_MD))
            self._reorder(own[0], self._query(made, _SRC_MD), source, inside)
        plain = engine.layout(w.shape, _PLAIN[w.ndim])
        packed = self._packed(plain, self._query(made, _WEIGHTS_MD), self._memory(plain, w))
        turned = not self._equal(own[1], self._query(made, _DST_MD))
        outcome = self._memory(self._query(made, _DST_MD)) if turned else result
        self._add(made, {_SRC: inside, _WEIGHTS: packed, _DST: outcome})
        if turned:
            self._reorder(self._query(made, _DST_MD), own[1], outcome, result)

    def _packed(self, plain: Pointer, wanted: Pointer, memory: Pointer) -> Pointer:
        """Return a copy in another layout, made now."""
        if self._equal(plain, wanted):
            return memory
        packed = self._memory(wanted)
        once = Program(self.engine)
        once._reorder(plain, wanted, memory, packed)
        once.run()
        return packed

    def _reorder(self, before: Pointer, after: Pointer, source: Pointer, result: Pointer) -> None:
        made, engine = Pointer(), self.engine
        engine.call(
            "reorder_primitive_desc_create",
            *(ctypes.byref(made), before, engine.engine, after, engine.engine, engine.attributes),
        )
        self._add(made, {_SRC: source, _DST: result})

    def _add(self, made: Pointer, held: dict[int, Pointer]) -> None:
        engine, primitive, name = self.engine, Pointer(), ctypes.c_char_p()
        engine.call("primitive_create", ctypes.byref(primitive), made)
        engine.call("primitive_desc_query", made, _IMPL, 0, ctypes.byref(name))
        scratch = self._query(made, _SCRATCH_MD)
        if engine.nbytes(scratch):
            held[_SCRATCHPAD] = self._memory(scratch)
        arguments = (_Argument * len(held))(*(_Argument(number, memory.value) for number, memory in held.items()))
        self.implementations.append((name.value or b"").decode())
        self._steps.append((primitive, len(held), arguments))

    def _memory(self, layout: Pointer, array: Array | None = None) -> Pointer:
        """Memory over an array, or fresh and aligned to a page."""
        made, engine = Pointer(), self.engine
        if array is None:
            space = np.empty(engine.nbytes(layout) + 4096, np.uint8)
            offset = -space.ctypes.data % 4096
            array = space[offset : space.size - 4096 + offset]
            array[:] = 0
        self._kept.append(array)
        engine.call("memory_create", ctypes.byref(made), layout, engine.engine, Pointer(array.ctypes.data))
        return made

    def _query(self, made: Pointer, what: int) -> Pointer:
        return Pointer(self.engine.library.dnnl_primitive_desc_query_md(made, what, 0))

    def _equal(self, one: Pointer, other: Pointer) -> bool:
        return bool(self.engine.library.dnnl_memory_desc_equal(one, other))


def _dims(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * 12)(*values)
