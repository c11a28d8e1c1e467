"""The same convolutions and matrix products in PyTorch and ONNX Runtime, as calls without arguments.

Weights are packed once on every side that can: ONNX Runtime does when it loads a model, PyTorch in the calls
``packed``, which are what its own compiler makes of frozen weights. Their results lie channels last, so they stand
beside images that do.

Whoever waits for work spins: OpenMP's threads for 6 milliseconds, those of ONNX Runtime 1.32 for up to 50, and longer
where they have no core of their own. With as many threads as cores they take half of the machine from who comes next,
so `settled` waits until the others have gone to sleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks.dnn_shapes import Convolution, Matmul
from tests.unit.onnx_models import FLOAT, model, node

__all__ = ["LAYOUTS", "SETTLE", "THREADS", "Arrays", "Call", "arrays_of", "onnxruntime_calls", "settled", "torch_calls"]

LAYOUTS: Final = ("nchw", "nhwc")
"""Plain images, and images with the channels innermost in memory; logically both are (N, C, H, W)."""
THREADS: Final = 2
SETTLE: Final = 0.5
"""Seconds that others may spin, at most."""
_LOOK: Final = 0.02  # what a running thread used is counted at ticks of the kernel's clock, up to 10 ms apart
_WARM: Final = 0.01

HostArray = np.ndarray[Any, np.dtype[np.float32]]
Call = Callable[[], Any]


class Arrays(NamedTuple):
    """What one operation reads: images or rows by layout, and the weight."""

    x: Mapping[str, HostArray]
    w: HostArray


def settled(call: Call) -> None:
    """Wait until no other thread of the process computes, then run a call for a while, at least once."""
    end = time.perf_counter() + SETTLE
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(_LOOK)  # while this thread uses no processor, what the process uses is the others'
        if time.process_time() - used < _LOOK / 4:
            break
    end = time.perf_counter() + min(_WARM, SETTLE)
    while True:
        call()
        if time.perf_counter() >= end:
            return


def arrays_of(work: Convolution | Matmul, batch: int = 1) -> Arrays:
    """Numbers between -0.5 and 0.5, equal on each call; operations with inputs of one shape share them."""
    if isinstance(work, Matmul):
        return Arrays({"nchw": _numbers((work.rows, work.inner), 1)}, _numbers((work.inner, work.columns), 2))
    filters = _numbers((work.filters, work.channels, work.kernel, work.kernel), 2)
    return Arrays(_images((batch, work.channels, work.size, work.size)), filters)


def _numbers(shape: tuple[int, ...], seed: int) -> HostArray:
    found = np.random.default_rng(seed).random(shape, dtype=np.float32)
    found -= np.float32(0.5)
    return found


@cache
def _images(shape: tuple[int, ...]) -> Mapping[str, HostArray]:
    plain = _numbers(shape, 1)
    last = np.ascontiguousarray(plain.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return dict(zip(LAYOUTS, (plain, last), strict=True))


def torch_calls(torch: Any, work: Convolution | Matmul, arrays: Arrays) -> dict[str, Call]:
    """Calls by layout, and ``"packed"`` for channels last; to be made inside ``torch.inference_mode()``.

    Their threads are PyTorch's at the time of a call.
    """
    w = torch.from_numpy(arrays.w)
    if isinstance(work, Matmul):
        a = torch.from_numpy(arrays.x["nchw"])
        return {"nchw": lambda: torch.mm(a, w)}
    plain, last = (torch.from_numpy(arrays.x[layout]) for layout in LAYOUTS)
    last_w = w.to(memory_format=torch.channels_last)
    conv2d, window = torch.nn.functional.conv2d, {"stride": work.stride, "padding": work.padding}
    steps = [work.padding] * 2, [work.stride] * 2, [1, 1], 1
    packed = torch._C._nn.mkldnn_reorder_conv2d_weight(w.to_mkldnn(), *steps, list(plain.shape))
    pointwise = torch.ops.mkldnn._convolution_pointwise
    return {
        "nchw": lambda: conv2d(plain, w, **window),
        "nhwc": lambda: conv2d(last, last_w, **window),
        "packed": lambda: pointwise(last, packed, None, *steps, "none", [], ""),
    }


def onnxruntime_calls(
    onnxruntime: Any, work: Convolution | Matmul, arrays: Arrays, threads: int = THREADS
) -> dict[str, Call]:
    """Calls by layout: ONNX has the plain one only. Results are ONNX Runtime's own, not copied to NumPy."""
    x = arrays.x["nchw"]
    shape: tuple[int, ...]
    if isinstance(work, Matmul):
        one, shape = node("MatMul", ["x", "w"], ["y"]), (work.rows, work.columns)
    else:
        window = {"strides": [work.stride] * 2, "pads": [work.padding] * 4, "kernel_shape": [work.kernel] * 2}
        one, size = node("Conv", ["x", "w"], ["y"], window), work.result_size
        shape = (len(x), work.filters, size, size)
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    file = model([("x", FLOAT, x.shape)], [one], [("y", FLOAT, shape)], {"w": arrays.w})
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")

    def call() -> Any:
        session.run_with_iobinding(binding)
        return binding

    return {"nchw": call}
