"""What hardware punishes at random, planted: each is found, said, and has the error that it should have."""

import ctypes
import os
import signal
import threading

import pytest
from cuda.bindings import driver
from programs import Child, context, fails, hazards, hold, kernels, launch, live, ok, pinned, read, stream

from cuda_emulator import started

LONG, INT = ctypes.c_long, ctypes.c_int
POINTER = None


def broken(error: str) -> None:
    """The context is: every later call fails with the same code, also those that have nothing to do with it."""
    fails(driver.cuCtxSynchronize(), error)
    fails(driver.cuMemAlloc(4), error)
    fails(driver.cuStreamCreate(0), error)
    fails(driver.cuEventCreate(0), error)


def dereference() -> None:
    context()
    ctypes.string_at(int(ok(driver.cuMemAlloc(64))), 1)


def test_the_host_cannot_follow_a_device_pointer(child: Child) -> None:
    child(dereference, returncode=-signal.SIGSEGV)


def freed_in_order() -> None:
    context()
    one, two, gate = stream(), stream(), threading.Event()
    data = int(ok(driver.cuMemAllocAsync(64, one)))
    ok(driver.cuStreamSynchronize(one))
    ok(driver.cuLaunchHostFunc(one, hold(gate), 0))
    ok(driver.cuMemFreeAsync(data, one))
    for _ in range(2):  # while the free waits for its turn, and when it is done
        fails(driver.cuMemsetD8Async(data, 0, 64, two), "INVALID_VALUE")
        fails(driver.cuMemFreeAsync(data, two), "INVALID_VALUE")
        gate.set()
        ok(driver.cuStreamSynchronize(one))
    assert hazards() == ["use after free", "bad free"] * 2


def test_use_after_a_free_in_stream_order(child: Child) -> None:
    child(freed_in_order)


def used_before_allocated() -> None:
    context()
    gate = threading.Event()
    one, two = stream(), stream()
    ok(driver.cuLaunchHostFunc(one, hold(gate), 0))
    data = int(ok(driver.cuMemAllocAsync(64, one)))
    ok(driver.cuMemsetD8Async(data, 0, 64, two))  # nothing orders it behind the allocation
    fails(driver.cuStreamSynchronize(two), "ILLEGAL_ADDRESS")
    gate.set()
    assert hazards() == ["use before allocation"]


def test_use_before_the_allocation_in_stream_order(child: Child) -> None:
    child(used_before_allocated)


def kernel_on_freed() -> None:
    context()
    (poke,) = kernels("poke")
    data = int(ok(driver.cuMemAlloc(64)))
    ok(driver.cuMemFree(data))
    launch(poke, 0, (data, 0, 1), (POINTER, LONG, INT))
    broken("ILLEGAL_ADDRESS")
    assert hazards() == ["invalid address"]


def test_a_kernel_on_freed_memory(child: Child) -> None:
    assert "memory that was freed, or beyond an allocation" in child(kernel_on_freed).stderr


def red_zone_by_kernel() -> None:
    context()
    (poke,) = kernels("poke")
    data = int(ok(driver.cuMemAlloc(100)))
    launch(poke, 0, (data, 99, 1), (POINTER, LONG, INT))
    ok(driver.cuCtxSynchronize())
    launch(poke, 0, (data, 100, 1), (POINTER, LONG, INT))
    broken("ILLEGAL_ADDRESS")
    assert hazards() == ["out of bounds"]


def before_the_start() -> None:
    context()
    (poke,) = kernels("poke")
    data = int(ok(driver.cuMemAlloc(100)))
    launch(poke, 0, (data, -1, 1), (POINTER, LONG, INT))
    fails(driver.cuStreamSynchronize(0), "ILLEGAL_ADDRESS")


def far_out() -> None:
    context()
    (peek,) = kernels("peek")
    data, target = int(ok(driver.cuMemAlloc(100))), int(ok(driver.cuMemAlloc(1)))
    launch(peek, 0, (data, 8192, target), (POINTER, LONG, POINTER))
    broken("ILLEGAL_ADDRESS")


@pytest.mark.parametrize("program", [red_zone_by_kernel, before_the_start, far_out])
def test_out_of_bounds_in_a_kernel(child: Child, program: object) -> None:
    child(program)


def copies_out_of_bounds() -> None:
    context()
    data = int(ok(driver.cuMemAlloc(100)))
    fails(driver.cuMemcpyHtoD(data, bytes(101), 101), "INVALID_VALUE")
    fails(driver.cuMemsetD8(data + 50, 0, 51), "INVALID_VALUE")
    fails(driver.cuMemcpyDtoD(data, data + 100, 1), "INVALID_VALUE")
    ok(driver.cuMemsetD8(data + 50, 0, 50))
    ok(driver.cuCtxSynchronize())


def test_copies_and_fills_out_of_bounds_are_refused_at_the_call(child: Child) -> None:
    child(copies_out_of_bounds)


def uninitialised() -> None:
    context()
    assert read(ok(driver.cuMemAlloc(64)), 64) == b"\xcb" * 64
    one = stream()
    data = int(ok(driver.cuMemAllocAsync(64, one)))
    ok(driver.cuStreamSynchronize(one))
    assert read(data, 64) == b"\xcb" * 64
    assert bytes(pinned(64)) == b"\xcb" * 64


def test_new_memory_is_poisoned(child: Child) -> None:
    child(uninitialised)


def peer() -> None:
    first, second = context(0), context(1)
    (poke,) = kernels("poke")
    data = int(ok(driver.cuMemAlloc(64)))  # of device 1
    ok(driver.cuCtxSetCurrent(first))
    fails(driver.cuMemsetD8(data, 0, 64), "INVALID_VALUE")
    if ok(driver.cuDeviceCanAccessPeer(0, 1)):
        ok(driver.cuCtxEnablePeerAccess(second, 0))
        fails(driver.cuCtxEnablePeerAccess(second, 0), "PEER_ACCESS_ALREADY_ENABLED")
        launch(poke, 0, (data, 0, 7), (POINTER, LONG, INT))
        ok(driver.cuCtxSynchronize())
        assert read(data, 1) == b"\7"
        ok(driver.cuCtxDisablePeerAccess(second))
    else:
        fails(driver.cuCtxEnablePeerAccess(second, 0), "PEER_ACCESS_UNSUPPORTED")
    own = int(ok(driver.cuMemAlloc(64)))
    ok(driver.cuMemcpyPeer(own, first, data, second, 64))  # the driver copies without access, too
    launch(poke, 0, (data, 0, 7), (POINTER, LONG, INT))
    broken("ILLEGAL_ADDRESS")
    ok(driver.cuCtxSetCurrent(second))
    ok(driver.cuCtxSynchronize())  # the other device is well


@pytest.mark.parametrize("peers", ["all", "none", "1-0"])
def test_peer_access_is_enforced(child: Child, peers: str) -> None:
    done = child(peer, devices=2, peers=peers)
    assert "memory of another device, to which this one has no peer access" in done.stderr


def wild() -> None:
    context()
    (follow,) = kernels("follow")
    launch(follow, 0, (16,), (LONG,))
    broken("ILLEGAL_ADDRESS")


def pageable() -> None:
    context()
    (poke,) = kernels("poke")
    host = ctypes.create_string_buffer(64)
    launch(poke, 0, (ctypes.addressof(host), 0, 1), (POINTER, LONG, INT))
    broken("ILLEGAL_ADDRESS")
    assert host.raw[0] == 0


@pytest.mark.parametrize("program", [wild, pageable])
def test_a_kernel_on_addresses_that_are_not_the_devices(child: Child, program: object) -> None:
    child(program)


def with_faulthandler() -> None:
    import faulthandler

    context()
    (follow,) = kernels("follow")
    launch(follow, 0, (16,), (LONG,))
    fails(driver.cuCtxSynchronize(), "ILLEGAL_ADDRESS")
    faulthandler.enable()  # takes the signal over
    ok(driver.cuDevicePrimaryCtxReset(0))
    launch(follow, 0, (16,), (LONG,))
    fails(driver.cuCtxSynchronize(), "ILLEGAL_ADDRESS")
    ctypes.string_at(8)  # and a fault of the client's own is still told by it


def test_faults_of_kernels_and_of_the_client_are_told_apart(child: Child) -> None:
    assert "Fatal Python error" in child(with_faulthandler, returncode=-signal.SIGSEGV).stderr


def reset() -> None:
    current = context()
    (follow,) = kernels("follow")
    data, on = int(ok(driver.cuMemAlloc(1000))), stream()
    launch(follow, on, (16,), (LONG,))
    fails(driver.cuStreamSynchronize(on), "ILLEGAL_ADDRESS")
    ok(driver.cuDevicePrimaryCtxReset(0))
    ok(driver.cuCtxSynchronize())
    assert ok(driver.cuCtxGetCurrent()) == current
    fails(driver.cuStreamSynchronize(on), "INVALID_HANDLE")
    fails(driver.cuMemFree(data), "INVALID_VALUE")
    ok(driver.cuMemsetD8(int(ok(driver.cuMemAlloc(10))), 1, 10))
    ok(driver.cuCtxSynchronize())


def test_a_reset_ends_everything_and_the_sticky_error_too(child: Child) -> None:
    child(reset)


def lost() -> None:
    first, _ = context(0), context(1)
    emulator = started()
    assert emulator is not None
    emulator.lose_device(1)
    fails(driver.cuMemAlloc(4), "DEVICE_UNAVAILABLE")
    fails(driver.cuDevicePrimaryCtxRetain(1), "DEVICE_UNAVAILABLE")
    ok(driver.cuDevicePrimaryCtxReset(1))
    fails(driver.cuCtxSynchronize(), "DEVICE_UNAVAILABLE")
    ok(driver.cuCtxSetCurrent(first))
    ok(driver.cuMemAlloc(4))


def test_a_lost_device_stays_lost(child: Child) -> None:
    child(lost, devices=2)


def forked() -> None:
    context()
    pid = os.fork()
    if not pid:
        refused = driver.cuMemAlloc(4)[0], driver.cuInit(0)[0], driver.cuDeviceGetCount()[0]
        os._exit(0 if {code.name for code in refused} == {"CUDA_ERROR_NOT_INITIALIZED"} else 1)
    assert os.waitpid(pid, 0)[1] == 0
    ok(driver.cuMemAlloc(4))


def test_every_call_fails_after_fork(child: Child) -> None:
    child(forked)


def foreign_images() -> None:
    context()
    for image in (b".version 8.0\n.target sm_90\n\0", b"\x50\xed\x55\xba" + bytes(64), b"\x7fELF\2\1\1" + bytes(80)):
        fails(driver.cuModuleLoadData(image), "NO_BINARY_FOR_GPU")
    fails(driver.cuModuleLoadData(bytes(64)), "INVALID_IMAGE")


def test_code_for_real_devices_is_refused(child: Child) -> None:
    child(foreign_images)


def leftovers() -> None:
    context()
    before = live()
    on = stream()
    made = ok(driver.cuEventCreate(0))
    data = int(ok(driver.cuMemAllocAsync(1000, on)))
    assert live() == (before[0] + 1000, before[1] + 2)
    ok(driver.cuMemFreeAsync(data, on))
    ok(driver.cuStreamSynchronize(on))
    ok(driver.cuEventDestroy(made))
    ok(driver.cuStreamDestroy(on))
    assert live() == before


def test_what_lives_is_counted(child: Child) -> None:
    child(leftovers)
