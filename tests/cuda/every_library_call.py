"""Run by test_every_library_call.py: the same for cuBLAS, cuDNN and cuRAND, on the emulator's own libraries.

A first run counts the calls that tazza makes of the libraries: one which it learns to make is covered by itself.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import c_void_p
from functools import partial
from typing import Any

import numpy as np

import tazza as tz
from tazza.contexts.cuda_handles import call_library
from tazza.core.runtime import live_runtimes
from tazza.dnn import CudnnWrapper
from tazza.dnn.cuda.calls import destroy_dropped
from tazza.drivers.cuda.libraries import load_library
from tests.cuda import front_end
from tests.cuda.failing import Suite, T, emulator, expect, main, nothing_is_left
from tests.cuda.front_end_cases import CASES, executed, read
from tests.dnn.cudnn_calls import backward, conv2d

LIBRARIES = ("cublas", "cudnn", "curand")

HOSTS = ("Descriptor", "Property", "GroupCount", "MathType", "GetStream")
"""In the names of calls that touch no device, and so break none."""

front_end.install()

draws = np.random.default_rng(6)
X, W, BIAS, DY, A, B = (
    draws.integers(-3, 4, shape).astype("float32")  # so that sums are exact in any order
    for shape in ((2, 3, 5, 4), (4, 3, 3, 3), (4,), (2, 4, 5, 4), (5, 7), (7, 3))
)


def program(opened: list[tz.Context]) -> None:
    """Make contexts on two devices, use all that tazza asks of the libraries, and look at every result."""
    contexts = [tz.CUDAContext(device=device.name, seed=3) for device in tz.devices("cuda")[:2]]
    opened += contexts
    wrappers = [CudnnWrapper(ctx) for ctx in contexts]
    for ctx, wrapper in zip(contexts, wrappers, strict=True):
        use_products(ctx)
        use_layers(ctx)
        use_convolutions(ctx, wrapper)
        use_front_end(ctx, wrapper)
    first, second = (drawn(ctx) for ctx in contexts)
    expect(first, second)  # both are the first generators of the seed
    assert (first != drawn(contexts[0])).any()
    forget_plans()
    for wrapper in wrappers:
        wrapper.close(T)
    for ctx in contexts:
        ctx.close(timeout=T)


def use_products(ctx: tz.CUDAContext) -> None:
    """A product by cuBLAS in a launched function, which may only enqueue; and linear layers of ``ctx.dnn``."""
    expect(ctx.to_numpy(ctx.launch(product, ctx.asarray(A), ctx.asarray(B)).result(timeout=T)), A @ B)


def use_layers(ctx: tz.CUDAContext) -> None:
    """A linear layer and its gradients by ``ctx.dnn``, in a state."""
    x, w, bias, dy = (ctx.asarray(one) for one in (A, B.T.copy(), BIAS[:3], A[:, :3].copy()))
    with tz.open("cpu", dnn="reference") as cpu:
        expected = cpu.dnn.linear(A, B.T, BIAS[:3], activation="relu")
        gradients = cpu.dnn.linear_backward(A[:, :3], A, B.T, y=expected, activation="relu")
    y = ctx.dnn.linear(x, w, bias, activation="relu")
    expect(ctx.to_numpy(y), expected)
    for one, other in zip(ctx.dnn.linear_backward(dy, x, w, y=y, activation="relu"), gradients, strict=True):
        expect(ctx.to_numpy(one), other)


def product(a: tz.Buffer, b: tz.Buffer) -> tz.Buffer:
    """The product of two matrices; column by column it is that of the transposed ones."""
    here = tz.current()
    assert isinstance(here, tz.CUDAContext)
    c: tz.Buffer = here.empty((5, 3), "float32")
    one, zero = ctypes.byref(ctypes.c_float(1)), ctypes.byref(ctypes.c_float(0))
    handle, sent = c_void_p(here.cublas_handle()), (c_void_p(b.address), 3, c_void_p(a.address), 7)
    call(here, "cublas", "cublasSgemm_v2", handle, 0, 0, 3, 5, 7, one, *sent, zero, c_void_p(c.address), 3)
    return c


def call(ctx: tz.CUDAContext, library: str, name: str, *args: Any) -> None:
    """A call that is this program's, made as tazza makes its own."""
    call_library(ctx.own_stream.runtime, load_library(library), name, *args)


def use_convolutions(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    """A convolution with bias and relu, and its gradients, in two states; the bare handle; and algorithms timed."""
    x, w, bias, dy = (ctx.asarray(one) for one in (X, W, BIAS, DY))
    options: dict[str, Any] = {"padding": 1, "activation": "relu"}
    with tz.open("cpu", dnn="reference") as cpu:
        expected = cpu.dnn.conv2d(X, W, BIAS, **options)
        gradients = cpu.dnn.conv2d_backward(DY, X, W, y=expected, **options)
    y = ctx.launch(partial(conv2d, wrapper, index=1, **options), x, w, bias).result(timeout=T)
    expect(ctx.to_numpy(y), expected)
    found = ctx.launch(partial(backward, wrapper, **options), dy, x, w, y).result(timeout=T)
    for one, other in zip(found, gradients, strict=True):
        expect(ctx.to_numpy(one), other)
    assert wrapper.handle == ctx.cudnn_handle()
    measured = ctx.dnn.configured(algorithm="measure", seconds=0)
    expect(ctx.to_numpy(measured.conv2d(x, w, bias, **options)), expected)
    for one, other in zip(measured.conv2d_backward(dy, x, w, y=y, **options), gradients, strict=True):
        expect(ctx.to_numpy(one), other)


def use_front_end(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    """A plan of the front end that stands for NVIDIA's, loaded and executed."""
    case = CASES["linear-bias-relu"]
    plan = wrapper.load(front_end.planned(case.operation, wrapper.description))
    [y] = executed(ctx, wrapper, plan, case)
    assert y is not None
    expect(read(ctx, y), case.outputs[0])


def drawn(ctx: tz.CUDAContext) -> Any:
    """Uniform numbers of the context's generator."""
    made = ctx.empty((100,), "float32")

    def draw(x: tz.Buffer) -> tz.Buffer:
        generator, count = c_void_p(ctx.curand_generator()), ctypes.c_size_t(100)
        call(ctx, "curand", "curandGenerateUniform", generator, c_void_p(x.address), count)
        return x

    return ctx.to_numpy(ctx.launch(draw, made).result(timeout=T))


def forget_plans() -> None:
    """Drop the plans of all devices, with their descriptors."""
    for runtime in live_runtimes():
        for states in runtime.libraries.values():
            states.plans.clear()
            states.smaller.clear()


def check_left() -> None:
    """As for the driver, and of the libraries: handles are the thread's for good, all else is gone."""
    forget_plans()
    nothing_is_left(images=len(LIBRARIES) + 1)  # each has its kernels as long as it has handles, the front end its own
    destroy_dropped()
    alive = emulator.report()["libraries"]["objects"]
    assert alive.pop("cudnnDescriptor") == 0, alive
    assert alive.pop("cudnnHandle") == 6, "for each device the thread's, one that loads plans and one for searches"
    assert alive == dict.fromkeys(("cublasHandle", "curandGenerator"), 2), "one for each device"
    assert front_end.alive[0] == 0


def made() -> dict[str, int]:
    """How often each call was made."""
    return dict(emulator.report()["libraries"]["calls"])


SUITE = Suite(program, made, check_left, {}, HOSTS)

if __name__ == "__main__":
    sys.exit(main(SUITE, *sys.argv[1:]))
