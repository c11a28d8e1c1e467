"""Borrowing from other libraries and lending to them: torch, JAX and Arrow, with lifetimes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, LeakWarning, UnsupportedError
from tazza.hot import HAS_BUFFER_PROTOCOL

pytestmark = pytest.mark.interop


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu") as made:
        yield made


def values(ctx: tz.Context, x: tz.Buffer) -> Any:
    return ctx.launch(lambda v: v.tolist(), x).result()


# PyTorch -----------------------------------------------------------------------------------------------------------


def test_torch_lends_and_sees_what_was_written(ctx: tz.Context) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0).reshape(2, 3)
    loan = tz.borrow(tensor.T)
    with loan as x:
        assert (loan.protocol, x.shape, x.strides, x.readonly) == ("DLPack", (3, 2), (4, 12), False)
        assert x.address == tensor.data_ptr()
        ctx.launch(lambda v: v.__imul__(2), x)
    assert tensor.tolist() == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
    with tz.borrow(tensor[1, 1:]) as x:
        assert values(ctx, x) == [8.0, 10.0]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "int64", "float16", "float64", "complex64"])
def test_torch_dtypes_and_empty_shapes(ctx: tz.Context, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    for shape in ((), (0,), (2, 0), (3,)):
        tensor = torch.ones(shape, dtype=getattr(torch, dtype))
        with tz.borrow(tensor) as x:
            assert (x.dtype, x.shape) == (np.dtype(dtype), shape)
            assert values(ctx, x) == tensor.tolist()


def test_torch_tensors_that_cannot_be_lent() -> None:
    torch = pytest.importorskip("torch")
    with tz.open("cpu"):
        with pytest.raises(ArgumentError, match=r"torch\.Tensor does not lend its memory: .*gradient"):
            tz.borrow(torch.ones(3, requires_grad=True)).__enter__()
        with pytest.raises(UnsupportedError, match="the nearest is float32"):
            tz.borrow(torch.ones(3, dtype=torch.bfloat16)).__enter__()


def test_torch_keeps_its_memory_until_the_scope_is_over(ctx: tz.Context) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(4.0)
    gone = weakref.ref(tensor.untyped_storage())
    with tz.borrow(tensor) as x:
        storage = tensor.data_ptr()
        del tensor
        gc.collect()
        others = [torch.zeros(4) for _ in range(10)]
        assert storage not in [other.data_ptr() for other in others]
        assert values(ctx, x) == [0.0, 1.0, 2.0, 3.0]
    del gone


def test_torch_sees_our_buffers_and_keeps_them(ctx: tz.Context) -> None:
    torch = pytest.importorskip("torch")
    buffer = ctx.allocate(32, dtype="float64", shape=(2, 2))
    ctx.fill(buffer, 3.0)
    tensor = torch.from_dlpack(buffer)
    tensor += 1
    assert ctx.to_numpy(buffer).tolist() == [[4.0, 4.0], [4.0, 4.0]]
    part = tensor[1]
    buffer.close()
    del buffer, tensor
    gc.collect()
    assert ctx.memory.stats().live == 64
    assert part.tolist() == [4.0, 4.0]
    del part
    gc.collect()
    assert ctx.memory.stats().live == 0


def test_torch_sees_borrowed_memory(ctx: tz.Context) -> None:
    torch = pytest.importorskip("torch")
    source = np.zeros(3)
    with tz.borrow(source) as x:
        torch.from_dlpack(x).add_(5)
    assert source.tolist() == [5.0] * 3
    with pytest.warns(LeakWarning, match="1 view"):
        with tz.borrow(source) as x:
            tensor = torch.from_dlpack(x)
    gone = weakref.ref(source)
    del source, x
    gc.collect()
    assert gone() is not None
    assert tensor.tolist() == [5.0] * 3
    del tensor
    gc.collect()
    ctx.synchronize()
    assert gone() is None


def test_torch_work_on_a_worker_stream(ctx: tz.Context) -> None:
    torch = pytest.importorskip("torch")
    tensor, worker = torch.zeros(1000), ctx.new_stream()
    with tz.borrow(tensor, stream=worker) as x:
        for _ in range(10):
            ctx.launch(lambda v: v.__iadd__(1), x, stream=worker)
    assert tensor.sum().item() == 10_000


# JAX ---------------------------------------------------------------------------------------------------------------


def test_jax_lends_read_only(ctx: tz.Context) -> None:
    jnp = pytest.importorskip("jax.numpy")
    array = jnp.arange(6.0).reshape(2, 3)
    with tz.borrow(array) as x:
        assert (x.shape, x.readonly) == ((2, 3), True)
        with pytest.raises(ArgumentError, match="expected writable memory"):
            ctx.fill(x, 0)
        assert values(ctx, x) == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert array.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_what_jax_still_computes_is_waited_for(ctx: tz.Context) -> None:
    jax = pytest.importorskip("jax")
    work = jax.jit(lambda a: jax.lax.fori_loop(0, 60, lambda _, b: b @ a / 300.0, a))
    array = work(jax.numpy.ones((300, 300), dtype="float32"))
    with tz.borrow(array) as x:
        seen = ctx.launch(lambda v: float(v.sum()), x).result()
    assert seen == pytest.approx(float(array.sum()))


def test_jax_sees_our_buffers_and_keeps_them(ctx: tz.Context) -> None:
    jnp = pytest.importorskip("jax.numpy")
    buffer = ctx.allocate(64, dtype="float32")
    ctx.fill(buffer, 3.0)
    array = jnp.from_dlpack(buffer)
    assert array.sum() == 48.0
    shares = array.unsafe_buffer_pointer() == buffer.address
    buffer.close()
    del buffer
    gc.collect()
    assert ctx.memory.stats().live == 64 * shares
    assert array.sum() == 48.0
    del array
    gc.collect()
    assert ctx.memory.stats().live == 0


def test_jax_keeps_its_memory_until_the_scope_is_over(ctx: tz.Context) -> None:
    jnp = pytest.importorskip("jax.numpy")
    array = jnp.arange(4)
    with tz.borrow(array) as x:
        del array
        gc.collect()
        assert values(ctx, x) == [0, 1, 2, 3]


# Arrow -------------------------------------------------------------------------------------------------------------


def test_arrow_lends_arrays_and_buffers(ctx: tz.Context) -> None:
    pa = pytest.importorskip("pyarrow")
    for source, protocol in ((pa.array([1, 2, 3]), "DLPack"), (pa.array([0, 1, 2, 3])[1:], "DLPack")):
        loan = tz.borrow(source)
        with loan as x:
            assert (loan.protocol, x.readonly, x.dtype) == (protocol, True, np.dtype("int64"))
            assert values(ctx, x) == [1, 2, 3]
    with tz.borrow(pa.py_buffer(b"abc")) as x:
        assert (x.readonly, bytes(ctx.to_numpy(x))) == (True, b"abc")


def test_arrow_arrays_that_cannot_be_lent(ctx: tz.Context) -> None:
    pa = pytest.importorskip("pyarrow")
    cases = [(pa.array([1, None]), "no nulls"), (pa.array([True]), "[Bb]ool"), (pa.array(["text"]), "string")]
    for source, why in cases:
        with pytest.raises(ArgumentError, match=rf"pyarrow\.lib\.\w+ does not lend its memory: .*{why}"):
            tz.borrow(source).__enter__()
    for source in (pa.chunked_array([[1]]), pa.table({"a": [1]})):
        with pytest.raises(ArgumentError, match="expected a Buffer, a NumPy array"):
            tz.borrow(source).__enter__()


def test_arrow_keeps_its_memory_until_the_scope_is_over(ctx: tz.Context) -> None:
    pa = pytest.importorskip("pyarrow")
    gc.collect()
    before = pa.total_allocated_bytes()
    array = pa.concat_arrays([pa.array(range(1000)), pa.array(range(1000))])
    assert pa.total_allocated_bytes() > before
    with tz.borrow(array) as x:
        del array
        gc.collect()
        assert pa.total_allocated_bytes() > before
        assert values(ctx, x)[1] > 0
    assert pa.total_allocated_bytes() == before


def test_arrow_sees_our_buffers_and_keeps_them(ctx: tz.Context) -> None:
    pa = pytest.importorskip("pyarrow")
    buffer = ctx.allocate(64, dtype="int64")
    ctx.fill(buffer, 7)
    source: Any = buffer if HAS_BUFFER_PROTOCOL else np.asarray(buffer)
    wrapped = pa.py_buffer(source)
    column = pa.Array.from_buffers(pa.int64(), 8, [None, wrapped])
    same = pa.array(np.asarray(buffer))
    address = buffer.address
    buffer.close()
    del buffer, source, wrapped
    gc.collect()
    assert ctx.memory.stats().live == 64
    assert (column.to_pylist(), same.to_pylist()) == ([7] * 8, [7] * 8)
    assert column.buffers()[1].address == address
    del column, same
    gc.collect()
    assert ctx.memory.stats().live == 0


def test_from_library_to_library_without_a_copy(ctx: tz.Context) -> None:
    torch = pytest.importorskip("torch")
    pa = pytest.importorskip("pyarrow")
    tensor = torch.arange(3.0)
    with tz.borrow(tensor) as x:
        column = pa.array(np.asarray(x))
        assert column.buffers()[1].address == tensor.data_ptr()
        with tz.borrow(column) as y:
            assert (y.address, y.readonly) == (tensor.data_ptr(), True)
            assert values(ctx, y) == [0.0, 1.0, 2.0]
        del column
