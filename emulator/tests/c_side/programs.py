"""What the programs of the tests share: calls that raise, a current context, kernels, host memory."""

import ctypes
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from cuda.bindings import driver

from cuda_emulator import started
from cuda_emulator.kernels import compile_kernels

Child = Callable[..., subprocess.CompletedProcess[str]]

KERNELS = """
extern "C" __global__ void add(const int *a, const int *b, int *c, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}
extern "C" __global__ void affine(int *x, int factor, int term, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = x[i] * factor + term;
}
extern "C" __global__ void poke(char *x, long offset, int value) { x[offset] = (char)value; }
extern "C" __global__ void peek(const char *x, long offset, char *y) { *y = x[offset]; }
extern "C" __global__ void follow(long address) { *(volatile char *)address = 1; }
__device__ int table[4] = {1, 2, 3, 4};
extern "C" __global__ void read_table(int *x) { x[threadIdx.x] = table[threadIdx.x]; }
"""


class Failed(Exception):
    def __init__(self, code: Any) -> None:
        super().__init__(code.name)
        self.code = code


def ok(result: tuple[Any, ...]) -> Any:
    """The answer of a driver call; raises ``Failed`` with its code."""
    if result[0] != driver.CUresult.CUDA_SUCCESS:
        raise Failed(result[0])
    return result[1] if len(result) == 2 else result[1:]


def fails(result: tuple[Any, ...], error: str) -> None:
    """The call must have failed with ``CUDA_ERROR_<error>``."""
    assert result[0].name == f"CUDA_ERROR_{error}", result


def context(device: int = 0) -> Any:
    """The device's primary context, retained and current."""
    ok(driver.cuInit(0))
    retained = ok(driver.cuDevicePrimaryCtxRetain(device))
    ok(driver.cuCtxSetCurrent(retained))
    return retained


def stream(*, blocking: bool = False) -> Any:
    flags = driver.CUstream_flags
    return ok(driver.cuStreamCreate(flags.CU_STREAM_DEFAULT if blocking else flags.CU_STREAM_NON_BLOCKING))


def event() -> Any:
    return ok(driver.cuEventCreate(0))


def kernels(*names: str) -> tuple[Any, ...]:
    library = ok(driver.cuLibraryLoadData(compile_kernels(KERNELS), [], [], 0, [], [], 0))
    return tuple(ok(driver.cuLibraryGetKernel(library, name.encode())) for name in names)


def launch(kernel: Any, on: Any, arguments: tuple[Any, ...], types: tuple[Any, ...], n: int = 1) -> None:
    """One block of ``n`` threads; a pointer's type is None."""
    function = driver.CUfunction(int(kernel))
    values = tuple(int(value) for value in arguments)
    real = tuple(kind or ctypes.c_void_p for kind in types)
    ok(driver.cuLaunchKernel(function, 1, 1, 1, n, 1, 1, 0, on, (values, real), 0))


def pinned(size: int) -> Any:
    """Pinned bytes as a ctypes array; ``ctypes.addressof`` is its address."""
    return (ctypes.c_ubyte * size).from_address(int(ok(driver.cuMemHostAlloc(size, 0))))


def read(address: Any, size: int) -> bytes:
    target = ctypes.create_string_buffer(size)
    ok(driver.cuMemcpyDtoH(target, address, size))
    return target.raw


def hazards() -> list[str]:
    """The kinds of the hazards that the emulator has found."""
    emulator = started()
    assert emulator is not None
    return [hazard["kind"] for hazard in emulator.report()["hazards"]]


def live() -> tuple[int, int]:
    """Live bytes and live objects."""
    emulator = started()
    assert emulator is not None
    return emulator.live_bytes(), emulator.live_objects()


_HOST = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_kept: list[Any] = []


def host(body: Callable[[], object]) -> Any:
    """A host function for the driver, which calls ``body``."""
    function = _HOST(lambda _: body() and None)
    _kept.append(function)
    return driver.CUhostFn(ctypes.cast(function, ctypes.c_void_p).value)


def hold(gate: threading.Event) -> Any:
    """A host function that waits until the gate is open."""
    return host(lambda: gate.wait(30))
