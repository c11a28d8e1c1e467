"""Numba's arrays and streams. A function under @cuda.jit is code for a GPU and cannot run here; the rest can."""

import numpy as np
import pytest

from cuda_emulator import Emulator

cuda = pytest.importorskip("numba.cuda")


def test_an_array_goes_there_and_back(cuda_emulator: Emulator) -> None:
    stream = cuda.stream()
    with cuda.pinned(source := np.arange(1000.0)):
        there = cuda.to_device(source, stream=stream)
        back = there.copy_to_host(stream=stream)
        stream.synchronize()
    np.testing.assert_array_equal(back, source)
    assert cuda_emulator.live_bytes(0) == source.nbytes
    del there
    cuda.current_context().memory_manager.deallocations.clear()
    assert cuda_emulator.live_bytes(0) == 0


def test_a_program_survives_a_device_that_is_full() -> None:
    total = cuda.current_context().get_memory_info().total
    with pytest.raises(Exception, match="CUDA_ERROR_OUT_OF_MEMORY"):
        cuda.device_array(total + 1, dtype=np.uint8)
    cuda.device_array(total // 2, dtype=np.uint8)
    cuda.current_context().memory_manager.deallocations.clear()
