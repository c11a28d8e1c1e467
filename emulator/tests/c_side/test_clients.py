"""The libraries that the emulator is for, unmodified: cuda.core and Numba."""

import multiprocessing
import multiprocessing.connection
from typing import Any

import pytest
from programs import KERNELS, Child, live

pytest.importorskip("numpy")


def core_buffers() -> None:
    import numpy as np
    from cuda.core import (
        Device,
        DeviceMemoryResource,
        EventOptions,
        LegacyPinnedMemoryResource,
        ManagedMemoryResource,
        PinnedMemoryResource,
    )

    device = Device(0)
    device.set_current()
    on = device.create_stream()
    pinned = LegacyPinnedMemoryResource()
    source, target = pinned.allocate(4096), pinned.allocate(4096)
    view = np.from_dlpack(source)
    view[:] = np.arange(view.size) % 100
    resources: list[Any] = [DeviceMemoryResource(device), PinnedMemoryResource(), ManagedMemoryResource()]
    for resource in (device.memory_resource, *resources):
        buffer = resource.allocate(4096, stream=on)
        buffer.copy_from(source, stream=on)
        buffer.copy_to(target, stream=on)
        on.sync()
        assert (np.from_dlpack(target) == view).all(), resource
        buffer.fill(3, stream=on)
        buffer.copy_to(target, stream=on)
        on.sync()
        assert (np.from_dlpack(target).view(np.uint8) == 3).all(), resource
        buffer.close()
    first = on.record(options=EventOptions(timing_enabled=True))
    second = on.record(options=EventOptions(timing_enabled=True))
    second.sync()
    assert second - first >= 0
    assert second.is_done
    other = device.create_stream()
    other.wait(on)
    other.wait(second)
    other.sync()
    device.default_stream.sync()
    source.close()
    target.close()
    assert live()[0] == 0


def test_cuda_core_streams_events_and_every_memory_resource(child: Child) -> None:
    pytest.importorskip("cuda.core")
    child(core_buffers)


def core_virtual_memory() -> None:
    import numpy as np
    from cuda.core import Device, VirtualMemoryResource

    device = Device(0)
    device.set_current()
    on = device.create_stream()
    resource = VirtualMemoryResource(device)
    buffer = resource.allocate(1000, stream=on)
    size = buffer.size
    buffer.fill(5, stream=on)
    on.sync()
    buffer = resource.modify_allocation(buffer, 5 * size)  # moves: the gap behind it is not so large
    target = _host(5 * size)
    buffer.copy_to(target, stream=on)
    on.sync()
    words = np.from_dlpack(target).view(np.uint8)
    assert (words[:size] == 5).all()
    assert (words[size:] == 0xCB).all()
    buffer.close()


def test_cuda_core_virtual_memory_grows(child: Child) -> None:
    pytest.importorskip("cuda.core")
    child(core_virtual_memory)


def core_kernels_and_graphs() -> None:
    import numpy as np
    from cuda.core import Device, GraphMemoryResource, LaunchConfig, LegacyPinnedMemoryResource, ObjectCode, launch

    from cuda_emulator.kernels import compile_kernels

    device = Device(0)
    device.set_current()
    on = device.create_stream()
    affine = ObjectCode.from_cubin(compile_kernels(KERNELS)).get_kernel("affine")
    assert affine.num_arguments == 4
    config = LaunchConfig(grid=4, block=32)
    target = LegacyPinnedMemoryResource().allocate(512)
    words = np.from_dlpack(target).view(np.int32)
    data = device.allocate(512, stream=on)
    data.fill(0, stream=on)
    launch(on, config, affine, data, np.int32(1), np.int32(7), np.uint32(128))
    data.copy_to(target, stream=on)
    on.sync()
    assert (words == 7).all()
    builder = device.create_graph_builder()
    builder.begin_building()
    left, right = builder.split(2)
    launch(left, config, affine, data, np.int32(2), np.int32(1), np.uint32(64))
    builder = left.join(left, right)
    launch(builder, config, affine, data, np.int32(1), np.int32(100), np.uint32(64))
    builder.end_building()
    graph = builder.complete()
    graph.upload(on)
    graph.launch(on)
    graph.launch(on)
    data.copy_to(target, stream=on)
    on.sync()
    assert (words[:64] == 2 * 115 + 101).all()
    assert (words[64:] == 7).all()
    memory = GraphMemoryResource(device)
    builder = device.create_graph_builder()
    builder.begin_building()
    inside = memory.allocate(512, stream=builder)
    inside.fill(1, stream=builder)
    inside.copy_to(target, stream=builder)
    inside.close()
    builder.end_building()
    graph = builder.complete()
    graph.launch(on)
    on.sync()
    assert (words == 0x01010101).all()


def test_cuda_core_kernels_and_graphs(child: Child) -> None:
    pytest.importorskip("cuda.core")
    child(core_kernels_and_graphs, jitter_us=20)


def _other_process(connection: Any) -> None:
    """Reads what the first process wrote, behind its event, and answers in the same memory."""
    import cuda_emulator

    cuda_emulator.start()
    from cuda.core import Buffer, Device, DeviceMemoryResource, Event

    device = Device(0)
    device.set_current()
    on = device.create_stream()
    resource, buffer, descriptor = connection.recv()
    assert isinstance(resource, DeviceMemoryResource)
    assert isinstance(buffer, Buffer)
    on.wait(Event.from_ipc_descriptor(descriptor))
    target = _host(buffer.size)
    buffer.copy_to(target, stream=on)
    buffer.fill(9, stream=on)
    on.sync()
    connection.send(bytes(_bytes(target)))
    buffer.close()


def _host(size: int) -> Any:
    from cuda.core import LegacyPinnedMemoryResource

    return LegacyPinnedMemoryResource().allocate(size)


def _bytes(buffer: Any) -> Any:
    import numpy as np

    return np.from_dlpack(buffer).view(np.uint8)


def core_between_processes() -> None:
    from cuda.core import Device, DeviceMemoryResource, DeviceMemoryResourceOptions, EventOptions

    device = Device(0)
    device.set_current()
    on = device.create_stream()
    resource = DeviceMemoryResource(device, options=DeviceMemoryResourceOptions(max_size=1 << 20, ipc_enabled=True))
    other = resource.allocate(300, stream=on)
    buffer = resource.allocate(10_000, stream=on)
    buffer.fill(4, stream=on)
    made = on.record(options=EventOptions(ipc_enabled=True))
    start = multiprocessing.get_context("spawn")
    here, there = start.Pipe()
    process = start.Process(target=_other_process, args=(there,))
    process.start()
    here.send((resource, buffer, made.ipc_descriptor))
    assert here.poll(60), "no answer"
    assert here.recv() == b"\4" * 10_000
    process.join(60)
    assert process.exitcode == 0
    target = _host(10_000)
    buffer.copy_to(target, stream=on)
    on.sync()
    assert bytes(_bytes(target)) == b"\t" * 10_000
    other.copy_to(_host(300), stream=on)
    on.sync()


def test_cuda_core_pools_and_events_between_processes(child: Child) -> None:
    pytest.importorskip("cuda.core")
    child(core_between_processes, jitter_us=200)


def numba() -> None:
    import numpy as np
    from numba import cuda as untyped

    cuda: Any = untyped
    values = np.arange(1000.0)
    on = cuda.stream()
    data = cuda.to_device(values, stream=on)
    assert data.copy_to_host(stream=on).sum() == values.sum()
    pinned = cuda.pinned_array(1000)
    pinned[:] = 3
    data.copy_to_device(pinned, stream=on)
    first, second = cuda.event(), cuda.event()
    first.record(on)
    second.record(on)
    second.synchronize()
    assert first.elapsed_time(second) >= 0
    on.synchronize()
    assert data.copy_to_host().sum() == 3000
    managed = cuda.managed_array(10)
    managed[:] = 2
    assert managed.sum() == 20
    with cuda.pinned(values):
        cuda.to_device(values, stream=on)
        on.synchronize()
    with cuda.gpus[1]:
        assert cuda.to_device(values).copy_to_host().sum() == values.sum()
    cuda.profile_start()
    cuda.profile_stop()
    cuda.close()


def test_numba_memory_streams_and_events(child: Child) -> None:
    pytest.importorskip("numba_cuda")
    child(numba, devices=2)
