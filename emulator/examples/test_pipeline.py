"""What the emulator finds out about the pipeline: its order, its memory, its behaviour when the driver fails."""

import numpy as np
import pytest
from cuda.core import Device, Kernel, ObjectCode
from pipeline import scaled

from cuda_emulator import Emulator, compile_kernels

SCALE = 'extern "C" __global__ void scale(float *x, float factor) { x[threadIdx.x] *= factor; }'

CHUNKS = [np.arange(i, i + 256, dtype=np.float32) for i in range(16)]


@pytest.fixture
def kernel() -> Kernel:
    Device(0).set_current()
    return ObjectCode.from_cubin(compile_kernels(SCALE)).get_kernel("scale")


def test_it_is_right(kernel: Kernel) -> None:
    for chunk, result in zip(CHUNKS, scaled(CHUNKS, 2, kernel), strict=True):
        np.testing.assert_array_equal(result, 2 * chunk)


def test_it_leaves_nothing(kernel: Kernel, cuda_emulator: Emulator) -> None:
    before = cuda_emulator.live_objects()
    scaled(CHUNKS, 2, kernel)
    assert cuda_emulator.live_bytes() == 0
    assert cuda_emulator.live_objects() == before


def test_a_missing_wait_gives_wrong_numbers(kernel: Kernel) -> None:
    # Operations are delayed at random (cuda_jitter_us in pytest.ini): what is not ordered happens in another order.
    results = scaled(CHUNKS, 2, kernel, with_waits=False)
    assert any((result != 2 * chunk).any() for chunk, result in zip(CHUNKS, results, strict=True))


def test_a_full_device_is_an_error_at_the_allocation(kernel: Kernel, cuda_emulator: Emulator) -> None:
    with cuda_emulator.injecting("cuMemAllocFromPoolAsync:3:OUT_OF_MEMORY"):
        with pytest.raises(Exception, match="CUDA_ERROR_OUT_OF_MEMORY"):
            scaled(CHUNKS, 2, kernel)
