"""Memory: limits, kinds, copies of every shape, pools, virtual memory."""

import ctypes
import threading

from cuda.bindings import driver
from programs import Child, context, event, fails, hold, host, kernels, launch, live, ok, pinned, read, stream

MIB = 1 << 20


def limits() -> None:
    context()
    assert ok(driver.cuMemGetInfo()) == (8 * MIB, 8 * MIB)
    data = int(ok(driver.cuMemAlloc(6 * MIB)))
    fails(driver.cuMemAlloc(3 * MIB), "OUT_OF_MEMORY")
    fails(driver.cuMemAllocAsync(3 * MIB, 0), "OUT_OF_MEMORY")
    assert ok(driver.cuMemGetInfo())[0] == 2 * MIB
    ok(driver.cuMemFree(data))
    ok(driver.cuMemFree(int(ok(driver.cuMemAlloc(8 * MIB)))))
    for _ in range(100):  # addresses are new each time, the memory is not
        ok(driver.cuMemFree(int(ok(driver.cuMemAlloc(8 * MIB)))))
    context(1)
    assert ok(driver.cuMemGetInfo()) == (4 * MIB, 4 * MIB)


def test_each_device_has_its_limit(child: Child) -> None:
    child(limits, devices=2, memory="8MiB,4MiB")


def pool_reuse() -> None:
    context()
    gate = threading.Event()
    one, two = stream(), stream()
    first = int(ok(driver.cuMemAllocAsync(6 * MIB, one)))
    ok(driver.cuLaunchHostFunc(one, hold(gate), 0))
    order: list[str] = []
    ok(driver.cuLaunchHostFunc(one, host(lambda: order.append("before the free")), 0))
    ok(driver.cuMemFreeAsync(first, one))
    second = int(ok(driver.cuMemAllocAsync(6 * MIB, one)))  # behind the free, in the same stream
    ok(driver.cuMemFreeAsync(second, one))
    third = int(ok(driver.cuMemAllocAsync(6 * MIB, two)))  # made to wait for the other stream's free
    ok(driver.cuLaunchHostFunc(two, host(lambda: order.append("behind the allocation")), 0))
    ok(driver.cuMemsetD8Async(third, 1, 6 * MIB, two))
    fails(driver.cuMemAllocAsync(6 * MIB, two), "OUT_OF_MEMORY")
    threading.Timer(0.1, gate.set).start()
    ok(driver.cuMemFreeAsync(third, two))
    ok(driver.cuStreamSynchronize(two))
    ok(driver.cuStreamSynchronize(one))
    assert order == ["before the free", "behind the allocation"]
    assert live()[0] == 0
    assert ok(driver.cuMemGetInfo())[0] == 8 * MIB


def test_memory_is_reused_in_the_order_of_streams(child: Child) -> None:
    child(pool_reuse, devices=1, memory="8MiB")


def no_dependencies() -> None:
    context()
    gate = threading.Event()
    pool = ok(driver.cuDeviceGetDefaultMemPool(0))
    attribute = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES
    ok(driver.cuMemPoolSetAttribute(pool, attribute, 0))
    one, two = stream(), stream()
    first = int(ok(driver.cuMemAllocAsync(6 * MIB, one)))
    ok(driver.cuLaunchHostFunc(one, hold(gate), 0))
    ok(driver.cuMemFreeAsync(first, one))
    fails(driver.cuMemAllocAsync(6 * MIB, two), "OUT_OF_MEMORY")
    gate.set()
    ok(driver.cuStreamSynchronize(one))
    ok(driver.cuMemAllocAsync(6 * MIB, two))


def test_without_internal_dependencies_an_allocation_does_not_wait(child: Child) -> None:
    child(no_dependencies, devices=1, memory="8MiB")


def threshold() -> None:
    context()
    attribute = driver.CUmemPool_attribute
    properties = driver.CUmemPoolProps()
    properties.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    pool = ok(driver.cuMemPoolCreate(properties))
    ok(driver.cuMemPoolSetAttribute(pool, attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, driver.cuuint64_t(4 * MIB)))
    data = int(ok(driver.cuMemAllocFromPoolAsync(6 * MIB, pool, 0)))
    ok(driver.cuMemFreeAsync(data, 0))
    ok(driver.cuCtxSynchronize())

    def number(name: str) -> int:
        return int(ok(driver.cuMemPoolGetAttribute(pool, getattr(attribute, f"CU_MEMPOOL_ATTR_{name}"))))

    assert (number("USED_MEM_CURRENT"), number("RESERVED_MEM_CURRENT")) == (0, 4 * MIB)
    assert (number("USED_MEM_HIGH"), number("RESERVED_MEM_HIGH")) == (6 * MIB, 6 * MIB)
    assert ok(driver.cuMemGetInfo())[0] == 4 * MIB
    other = int(ok(driver.cuMemAlloc(7 * MIB)))  # what a pool only holds goes to who needs it
    assert number("RESERVED_MEM_CURRENT") == 0
    ok(driver.cuMemFree(other))
    kept = int(ok(driver.cuMemAllocFromPoolAsync(MIB, pool, 0)))
    ok(driver.cuMemPoolDestroy(pool))  # it ends with its last allocation
    fails(driver.cuMemAllocFromPoolAsync(MIB, pool, 0), "INVALID_VALUE")
    assert len(read(kept, 10)) == 10
    ok(driver.cuMemFreeAsync(kept, 0))
    ok(driver.cuCtxSynchronize())
    assert ok(driver.cuMemGetInfo())[0] == 8 * MIB


def test_pools_hold_memory_up_to_their_threshold(child: Child) -> None:
    child(threshold, devices=1, memory="8MiB")


def pool_access() -> None:
    context(1)
    context(0)
    data = int(ok(driver.cuMemAllocAsync(64, 0)))
    ok(driver.cuStreamSynchronize(0))
    pool = ok(driver.cuDeviceGetMemPool(0))
    second = context(1)
    (poke,) = kernels("poke")
    fails(driver.cuMemsetD8(data, 1, 64), "INVALID_VALUE")
    description = driver.CUmemAccessDesc()
    description.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    description.location.id = 1
    description.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    ok(driver.cuMemPoolSetAccess(pool, [description], 1))
    launch(poke, 0, (data, 3, 9), (None, ctypes.c_long, ctypes.c_int))
    ok(driver.cuCtxSynchronize())
    assert read(data + 3, 1) == b"\t"
    assert ok(driver.cuCtxGetCurrent()) == second


def test_a_pool_says_who_may_use_its_memory(child: Child) -> None:
    child(pool_access, devices=2)


def host_kinds() -> None:
    context()
    (affine,) = kernels("affine")
    managed = int(ok(driver.cuMemAllocManaged(64, driver.CUmemAttach_flags.CU_MEM_ATTACH_GLOBAL.value)))
    words = (ctypes.c_int * 16).from_address(managed)
    words[:] = list(range(16))
    types = (None, ctypes.c_int, ctypes.c_int, ctypes.c_uint)
    launch(affine, 0, (managed, 2, 1, 16), types, 16)
    ok(driver.cuCtxSynchronize())
    assert list(words) == [2 * x + 1 for x in range(16)]
    own = (ctypes.c_int * 1024)(*range(1024))
    address = ctypes.addressof(own)
    ok(driver.cuMemHostRegister(address, 4096, 0))
    fails(driver.cuMemHostRegister(address + 4, 4, 0), "HOST_MEMORY_ALREADY_REGISTERED")
    assert int(ok(driver.cuMemHostGetDevicePointer(address, 0))) == address
    launch(affine, 0, (address, 1, 5, 16), types, 16)
    ok(driver.cuCtxSynchronize())
    assert list(own[:16]) == list(range(5, 21))
    ok(driver.cuMemHostUnregister(address))
    fails(driver.cuMemHostUnregister(address), "HOST_MEMORY_NOT_REGISTERED")
    attribute = driver.CUpointer_attribute
    kind = driver.CUmemorytype
    device = int(ok(driver.cuMemAlloc(64)))
    pin = ctypes.addressof(pinned(64))
    found = [
        ok(driver.cuPointerGetAttribute(attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, x)) for x in (device, managed, pin)
    ]
    assert [int(x) for x in found] == [int(kind.CU_MEMORYTYPE_DEVICE)] * 2 + [int(kind.CU_MEMORYTYPE_HOST)]
    fails(driver.cuPointerGetAttribute(attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address), "INVALID_VALUE")
    assert [int(x) for x in ok(driver.cuMemGetAddressRange(device + 5))] == [device, 64]


def test_managed_pinned_and_registered_memory(child: Child) -> None:
    child(host_kinds)


def asynchrony() -> None:
    context()
    gate = threading.Event()
    on = stream()
    data = int(ok(driver.cuMemAlloc(4)))
    source, target = pinned(4), pinned(4)
    source[:] = (ctypes.c_ubyte * 4)(1, 1, 1, 1)
    ok(driver.cuLaunchHostFunc(on, hold(gate), 0))
    ok(driver.cuMemcpyHtoDAsync(data, ctypes.addressof(source), 4, on))
    ok(driver.cuMemcpyDtoHAsync(ctypes.addressof(target), data, 4, on))
    source[:] = (ctypes.c_ubyte * 4)(2, 2, 2, 2)  # the copy from pinned memory has not happened yet
    gate.set()
    ok(driver.cuStreamSynchronize(on))
    assert bytes(target) == b"\2\2\2\2"
    plain = ctypes.create_string_buffer(4)
    ok(driver.cuMemcpyDtoHAsync(plain, data, 4, on))  # to pageable memory it is there on return
    assert plain.raw == b"\2\2\2\2"


def test_pinned_copies_are_asynchronous_and_pageable_ones_are_safe(child: Child) -> None:
    child(asynchrony)


def boxes() -> None:
    context()
    data, pitch = (int(x) for x in ok(driver.cuMemAllocPitch(10, 5, 4)))
    source = bytes(range(50))
    copy = driver.CUDA_MEMCPY2D()
    copy.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_HOST
    copy.srcHost, copy.srcPitch = source, 10
    copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.dstDevice, copy.dstPitch = data, pitch
    copy.WidthInBytes, copy.Height = 10, 5
    ok(driver.cuMemcpy2D(copy))
    rows = read(data, pitch * 4 + 10)
    assert [rows[i * pitch : i * pitch + 10] for i in range(5)] == [source[10 * i : 10 * i + 10] for i in range(5)]
    target = ctypes.create_string_buffer(8)
    box = driver.CUDA_MEMCPY3D()
    box.srcMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_UNIFIED
    box.srcDevice, box.srcPitch, box.srcHeight = data, pitch, 2  # five rows read as slices of two
    box.srcXInBytes, box.srcY, box.srcZ = 3, 1, 0
    box.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_HOST
    box.dstHost, box.dstPitch, box.dstHeight = ctypes.addressof(target), 4, 1
    box.WidthInBytes, box.Height, box.Depth = 4, 1, 2
    ok(driver.cuMemcpy3D(box))
    assert target.raw == source[13:17] + source[33:37]
    ok(driver.cuMemsetD2D16(data, pitch, 0x0102, 5, 2))
    assert read(data, 10) == b"\2\1" * 5
    assert read(data + 2 * pitch, 10) == source[20:30]


def test_rows_and_boxes(child: Child) -> None:
    child(boxes)


def virtual() -> None:
    context()
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    grain = int(
        ok(
            driver.cuMemGetAllocationGranularity(
                properties, driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
            )
        )
    )
    address = int(ok(driver.cuMemAddressReserve(2 * grain, 0, 0, 0)))
    blocks = [ok(driver.cuMemCreate(grain, properties, 0)) for _ in range(2)]
    for i, block in enumerate(blocks):
        ok(driver.cuMemMap(address + i * grain, grain, 0, block, 0))
    fails(driver.cuMemsetD8(address, 1, 1), "INVALID_VALUE")  # nobody has access yet
    access = driver.CUmemAccessDesc()
    access.location.type = properties.location.type
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    ok(driver.cuMemSetAccess(address, 2 * grain, [access], 1))
    ok(driver.cuMemsetD8(address + grain - 2, 7, 4))  # across two mappings
    assert read(address + grain - 3, 6) == b"\xcb\7\7\7\7\xcb"
    fails(driver.cuMemAddressFree(address, 2 * grain), "INVALID_VALUE")
    ok(driver.cuMemUnmap(address + grain, grain))
    fails(driver.cuMemsetD8(address + grain - 2, 7, 4), "INVALID_VALUE")
    ok(driver.cuMemMap(address + grain, grain, 0, blocks[0], 0))  # the first block a second time
    ok(driver.cuMemSetAccess(address + grain, grain, [access], 1))
    ok(driver.cuMemsetD8(address + grain, 9, 1))
    assert read(address, 1) == b"\t"
    retained = ok(driver.cuMemRetainAllocationHandle(address))
    assert int(retained) == int(blocks[0])
    for block in (*blocks, retained):
        ok(driver.cuMemRelease(block))
    assert ok(driver.cuMemGetInfo())[0] == 256 * MIB - grain
    ok(driver.cuMemUnmap(address, 2 * grain))
    ok(driver.cuMemAddressFree(address, 2 * grain))
    assert ok(driver.cuMemGetInfo())[0] == 256 * MIB
    assert live() == (0, 0)


def test_virtual_memory(child: Child) -> None:
    child(virtual)


def waits_for_work() -> None:
    context()
    gate = threading.Event()
    on, made = stream(), event()
    data = int(ok(driver.cuMemAlloc(64)))
    ok(driver.cuLaunchHostFunc(on, hold(gate), 0))
    ok(driver.cuMemsetD8Async(data, 1, 64, on))
    ok(driver.cuEventRecord(made, on))
    threading.Timer(0.05, gate.set).start()
    ok(driver.cuMemFree(data))
    ok(driver.cuEventQuery(made))
    ok(driver.cuCtxSynchronize())


def test_a_free_waits_for_what_was_submitted(child: Child) -> None:
    child(waits_for_work)
