"""Buffer and every memory resource."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver
from cuda.core import (
    Buffer,
    Device,
    DeviceMemoryResource,
    DeviceMemoryResourceOptions,
    LegacyPinnedMemoryResource,
    ManagedMemoryResource,
    ManagedMemoryResourceOptions,
    PinnedMemoryResource,
    PinnedMemoryResourceOptions,
    Stream,
    VirtualMemoryResource,
    VirtualMemoryResourceOptions,
)
from cuda.core.utils import StridedMemoryView, copy_batch

from cuda_emulator import Emulator

MIB = 1 << 20

RESOURCES: dict[str, Callable[[Device], Any]] = {
    "default": lambda device: device.memory_resource,
    "device": DeviceMemoryResource,
    "device, limited": lambda device: DeviceMemoryResource(device, DeviceMemoryResourceOptions(max_size=8 * MIB)),
    "device, shared": lambda device: DeviceMemoryResource(
        device, DeviceMemoryResourceOptions(max_size=8 * MIB, ipc_enabled=True)
    ),
    "pinned": lambda device: PinnedMemoryResource(),
    "pinned, limited": lambda device: PinnedMemoryResource(PinnedMemoryResourceOptions(max_size=8 * MIB)),
    "managed": lambda device: ManagedMemoryResource(),
    "managed, placed": lambda device: ManagedMemoryResource(ManagedMemoryResourceOptions(preferred_location=0)),
    "legacy pinned": lambda device: LegacyPinnedMemoryResource(),
    "virtual": lambda device: VirtualMemoryResource(device, VirtualMemoryResourceOptions()),
}


@pytest.mark.parametrize("name", RESOURCES)
def test_a_buffer_carries_data(
    name: str, device: Device, stream: Stream, pinned: LegacyPinnedMemoryResource, cuda_emulator: Emulator
) -> None:
    resource = RESOURCES[name](device)
    before = cuda_emulator.live_bytes()
    buffer = resource.allocate(4096, stream=stream)
    stream.sync()
    assert cuda_emulator.live_bytes() >= before + 4096
    assert buffer.is_device_accessible
    assert buffer.is_host_accessible == any(word in name for word in ("pinned", "managed"))
    staging = pinned.allocate(buffer.size, stream=stream)
    data = np.from_dlpack(staging).view(np.uint8)
    data[:] = np.arange(buffer.size) % 251
    buffer.copy_from(staging, stream=stream)
    stream.sync()
    data[:] = 0
    buffer.copy_to(staging, stream=stream)
    stream.sync()
    assert (data == np.arange(buffer.size) % 251).all()
    buffer.fill(7, stream=stream)
    buffer.copy_to(staging, stream=stream)
    stream.sync()
    assert (data == 7).all()
    staging.close()
    buffer.close(stream=stream)
    stream.sync()
    assert cuda_emulator.live_bytes() == before


@pytest.mark.parametrize("name", ["device, limited", "pinned, limited"])
def test_a_limited_pool_is_full_at_its_limit(name: str, device: Device, stream: Stream) -> None:
    resource = RESOURCES[name](device)
    buffer = resource.allocate(8 * MIB, stream=stream)
    with pytest.raises(Exception, match="CUDA_ERROR_OUT_OF_MEMORY"):
        resource.allocate(8 * MIB, stream=stream)
    buffer.close(stream=stream)
    stream.sync()
    resource.allocate(8 * MIB, stream=stream).close(stream=stream)


def test_a_device_is_full_at_its_memory(device: Device, stream: Stream, cuda_emulator: Emulator) -> None:
    half = cuda_emulator.settings.memory[0] // 2
    buffer = device.allocate(half, stream=stream)
    with pytest.raises(Exception, match="CUDA_ERROR_OUT_OF_MEMORY"):
        device.allocate(half + MIB, stream=stream)
    buffer.close(stream=stream)


def test_pools_answer_for_every_attribute(device: Device) -> None:
    attributes = DeviceMemoryResource(device).attributes
    names = [name for name in dir(attributes) if not name.startswith("_")]
    assert names
    for name in names:
        getattr(attributes, name)


def test_a_pool_grants_and_withdraws_peer_access(device: Device) -> None:
    resource = DeviceMemoryResource(device)
    resource.peer_accessible_by = [1]
    assert [peer.device_id for peer in resource.peer_accessible_by] == [1]
    resource.peer_accessible_by = []
    assert not list(resource.peer_accessible_by)


def test_virtual_memory_grows_where_it_is(device: Device, stream: Stream) -> None:
    resource = VirtualMemoryResource(device)
    buffer = resource.allocate(2 * MIB, stream=stream)
    buffer.fill(5, stream=stream)
    stream.sync()
    grown = resource.modify_allocation(buffer, 4 * MIB)
    assert grown.size == 4 * MIB
    back = np.zeros(2 * MIB, np.uint8)
    assert driver.cuMemcpyDtoH(back.ctypes.data, int(grown.handle), back.nbytes)[0] == 0
    assert (back == 5).all()
    grown.close()


def test_managed_memory_is_advised_and_moved(device: Device, stream: Stream) -> None:
    buffer = ManagedMemoryResource().allocate(MIB, stream=stream)
    stream.sync()
    np.from_dlpack(buffer)[:] = 3
    buffer.read_mostly = True
    buffer.preferred_location = device
    buffer.prefetch(device, stream=stream)
    stream.sync()
    assert buffer.read_mostly
    assert buffer.preferred_location.device_id == 0
    assert (np.from_dlpack(buffer) == 3).all()
    buffer.close(stream=stream)


def test_a_buffer_travels_by_dlpack(device: Device, stream: Stream) -> None:
    buffer = device.allocate(64, stream=stream)
    view = StridedMemoryView.from_dlpack(buffer, stream_ptr=-1)
    assert (view.shape, view.is_device_accessible, view.device_id) == ((64,), True, 0)
    assert view.ptr == int(buffer.handle)
    del view
    buffer.close(stream=stream)


def test_copies_go_in_batches(device: Device, stream: Stream, pinned: LegacyPinnedMemoryResource) -> None:
    sources = [device.allocate(64, stream=stream) for _ in range(3)]
    targets = [pinned.allocate(64, stream=stream) for _ in range(3)]
    for value, source in enumerate(sources):
        source.fill(value, stream=stream)
    copy_batch(stream, sources, targets)
    stream.sync()
    assert [set(np.from_dlpack(target)) for target in targets] == [{0}, {1}, {2}]
    for buffer in (*sources, *targets):
        buffer.close(stream=stream)


def test_a_buffer_may_borrow_memory(device: Device, stream: Stream) -> None:
    error, address = driver.cuMemAlloc(4096)
    assert error == 0
    buffer = Buffer.from_handle(int(address), 4096, owner=object())
    buffer.fill(1, stream=stream)
    stream.sync()
    buffer.close()
    assert driver.cuMemFree(address)[0] == 0


def test_a_shared_pool_and_its_buffer_have_descriptors(device: Device, stream: Stream) -> None:
    resource = RESOURCES["device, shared"](device)
    buffer = resource.allocate(4096, stream=stream)
    assert resource.is_ipc_enabled
    assert int(resource.allocation_handle) >= 0
    assert buffer.ipc_descriptor.size == 4096
    buffer.close(stream=stream)
