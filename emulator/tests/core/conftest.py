"""Programs of cuda.core, in this process: pytest was started on the emulator (pyproject.toml)."""

from collections.abc import Generator

import pytest

core = pytest.importorskip("cuda.core")

from cuda.core import Device, LegacyPinnedMemoryResource, ObjectCode, Stream  # noqa: E402

from cuda_emulator import Emulator, compile_kernels  # noqa: E402

SOURCE = """
extern "C" __global__ void scale(float *x, float factor, size_t n) {
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    if (i < n) x[i] *= factor;
}
extern "C" __global__ void add_one(int *x) { atomicAdd(x, 1); }
extern "C" __global__ void block_sums(const int *x, int *sums) {
    extern __shared__ int part[];
    part[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = part[0];
}
"""


@pytest.fixture
def device(cuda_emulator: Emulator) -> Generator[Device, None, None]:
    """Device 0, current; the test ends with the memory it began with, and without a hazard."""
    device = Device(0)
    device.set_current()
    before, hazards = cuda_emulator.live_bytes(), cuda_emulator.report()["n_hazards"]
    yield device
    device.set_current()
    device.default_stream.sync()
    assert cuda_emulator.live_bytes() == before
    assert cuda_emulator.report()["n_hazards"] == hazards


@pytest.fixture
def stream(device: Device) -> Generator[Stream, None, None]:
    """A stream of device 0."""
    stream = device.create_stream()
    yield stream
    stream.sync()
    stream.close()


@pytest.fixture(scope="session")
def image() -> bytes:
    """The kernels above, compiled."""
    return compile_kernels(SOURCE)


@pytest.fixture
def kernels(device: Device, image: bytes) -> ObjectCode:
    """The kernels above, ready to be loaded."""
    return ObjectCode.from_cubin(image)


@pytest.fixture
def pinned() -> LegacyPinnedMemoryResource:
    """Memory that host and device may use."""
    return LegacyPinnedMemoryResource()
