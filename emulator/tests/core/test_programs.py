"""ObjectCode, Kernel, LaunchConfig and launch, with kernels that the host compiled."""

import numpy as np
import pytest
from cuda.core import Device, Kernel, LaunchConfig, LegacyPinnedMemoryResource, ObjectCode, Stream, launch


def test_a_kernel_knows_its_arguments(kernels: ObjectCode) -> None:
    kernel = kernels.get_kernel("scale")
    assert kernel.num_arguments == 3
    assert [(info.offset, info.size) for info in kernel.arguments_info] == [(0, 8), (8, 4), (16, 8)]
    assert kernel.attributes.max_threads_per_block == 1024
    assert kernel.occupancy.max_active_blocks_per_multiprocessor(128, 0) > 0
    assert Kernel.from_handle(int(kernel.handle)).num_arguments == 3


def test_a_grid_covers_its_data(
    device: Device, stream: Stream, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource
) -> None:
    n = 1000
    host = pinned.allocate(4 * n, stream=stream)
    values = np.from_dlpack(host).view(np.float32)
    values[:] = np.arange(n)
    buffer = device.allocate(4 * n, stream=stream)
    buffer.copy_from(host, stream=stream)
    config = LaunchConfig(grid=(n + 255) // 256, block=256)
    launch(stream, config, kernels.get_kernel("scale"), buffer, np.float32(2), np.uint64(n))
    buffer.copy_to(host, stream=stream)
    stream.sync()
    assert (values == 2 * np.arange(n)).all()
    buffer.close(stream=stream)
    host.close()


def test_threads_of_a_block_meet_at_barriers(
    device: Device, stream: Stream, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource
) -> None:
    host, sums = pinned.allocate(4 * 1024, stream=stream), pinned.allocate(4 * 4, stream=stream)
    np.from_dlpack(host).view(np.int32)[:] = np.arange(1024)
    config = LaunchConfig(grid=4, block=256, shmem_size=4 * 256)
    launch(stream, config, kernels.get_kernel("block_sums"), host, sums)
    stream.sync()
    assert (np.from_dlpack(sums).view(np.int32) == np.arange(1024).reshape(4, 256).sum(axis=1)).all()
    sums.close()
    host.close()


@pytest.mark.parametrize(
    "config", [LaunchConfig(grid=1, block=2048), LaunchConfig(grid=1, block=1, shmem_size=1 << 20)]
)
def test_a_shape_that_no_device_has_is_refused(
    config: LaunchConfig, device: Device, stream: Stream, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource
) -> None:
    buffer = pinned.allocate(4, stream=stream)
    with pytest.raises(Exception, match="CUDA_ERROR_INVALID_VALUE"):
        launch(stream, config, kernels.get_kernel("add_one"), buffer)
    buffer.close()


def test_code_object_of_one_image_serves_two_devices(
    device: Device, kernels: ObjectCode, pinned: LegacyPinnedMemoryResource
) -> None:
    for one in Device.get_all_devices():
        one.set_current()
        stream = one.create_stream()
        buffer = pinned.allocate(4, stream=stream)
        count = np.from_dlpack(buffer).view(np.int32)
        count[:] = 0
        launch(stream, LaunchConfig(grid=3, block=5), kernels.get_kernel("add_one"), buffer)
        stream.sync()
        assert count[0] == 15
        buffer.close()
        stream.close()


def test_a_kernel_that_is_not_there_is_not_found(kernels: ObjectCode) -> None:
    with pytest.raises(Exception, match="CUDA_ERROR_NOT_FOUND"):
        kernels.get_kernel("no_such_kernel")
