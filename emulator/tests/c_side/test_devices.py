"""Devices and contexts."""

import threading

import pytest
from cuda.bindings import driver
from programs import Child, context, fails, ok


def visible() -> None:
    ok(driver.cuInit(0))
    count = ok(driver.cuDeviceGetCount())
    print(*(ok(driver.cuDeviceGetUuid(device)).bytes[15] for device in range(count)))
    print(*(ok(driver.cuDeviceTotalMem(device)) >> 20 for device in range(count)))
    print(*(ok(driver.cuDeviceCanAccessPeer(0, device)) for device in range(count)))
    for device in range(count):
        assert int(ok(driver.cuDeviceGetByPCIBusId(ok(driver.cuDeviceGetPCIBusId(20, device))))) == device


@pytest.mark.parametrize(
    ("mask", "devices", "memory", "peers"),
    [
        (None, "0 1 2", "1 2 3", "0 1 0"),
        ("2,0", "2 0", "3 1", "0 1"),
        ("1,7,0", "1", "2", "0"),
        ("0,1,0", "0 1", "1 2", "0 1"),
        ("GPU-63756461-2d65-6d75-6c61-746f722d0001,0", "1 0", "2 1", "0 0"),
    ],
)
def test_visible_devices(
    child: Child, monkeypatch: pytest.MonkeyPatch, mask: str | None, devices: str, memory: str, peers: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    done = child(visible, devices=3, memory="1MiB,2MiB,3MiB", peers="0-1,2-0")
    assert done.stdout.splitlines() == [devices, memory, peers]


def none_visible() -> None:
    fails(driver.cuInit(0), "NO_DEVICE")
    fails(driver.cuDeviceGetCount(), "NOT_INITIALIZED")


@pytest.mark.parametrize("mask", ["-1", "", "9"])
def test_no_visible_device(child: Child, monkeypatch: pytest.MonkeyPatch, mask: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    child(none_visible)


def contexts() -> None:
    fails(driver.cuCtxGetCurrent(), "NOT_INITIALIZED")
    first = context(0)
    second = ok(driver.cuCtxCreate(None, 0, 0))
    assert int(ok(driver.cuCtxGetCurrent())) == int(second)
    ok(driver.cuCtxPushCurrent(first))
    assert int(ok(driver.cuCtxPopCurrent())) == int(first)
    on = ok(driver.cuStreamCreate(0))
    assert int(ok(driver.cuStreamGetCtx(on))) == int(second)
    data = int(ok(driver.cuMemAlloc(10)))
    ok(driver.cuCtxDestroy(second))
    assert int(ok(driver.cuCtxGetCurrent())) == int(first)
    fails(driver.cuStreamQuery(on), "INVALID_HANDLE")
    fails(driver.cuMemFree(data), "INVALID_VALUE")
    fails(driver.cuCtxSetCurrent(second), "INVALID_CONTEXT")
    seen: list[str] = []

    def other_thread() -> None:
        seen.append(driver.cuMemAlloc(1)[0].name)  # a new thread has no context
        ok(driver.cuCtxSetCurrent(first))
        ok(driver.cuMemAlloc(1))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join(30)
    assert seen == ["CUDA_ERROR_INVALID_CONTEXT"]
    assert ok(driver.cuDevicePrimaryCtxGetState(0)) == (0, 1)
    ok(driver.cuDevicePrimaryCtxRelease(0))
    assert ok(driver.cuDevicePrimaryCtxGetState(0)) == (0, 0)
    fails(driver.cuMemAlloc(1), "CONTEXT_IS_DESTROYED")
    fails(driver.cuDevicePrimaryCtxRelease(0), "INVALID_CONTEXT")
    again = ok(driver.cuDevicePrimaryCtxRetain(0))
    assert int(again) == int(first)
    ok(driver.cuMemAlloc(1))


def test_contexts_and_stacks(child: Child) -> None:
    child(contexts)


def missing() -> None:
    context()
    fails(driver.cuArrayCreate(driver.CUDA_ARRAY_DESCRIPTOR()), "NOT_SUPPORTED")
    fails(driver.cuArrayCreate(driver.CUDA_ARRAY_DESCRIPTOR()), "NOT_SUPPORTED")
    fails(driver.cuGetExportTable(driver.CUuuid()), "NOT_FOUND")


def test_what_is_not_emulated_says_so_once(child: Child) -> None:
    assert child(missing).stderr.count("cuArrayCreate_v2 is not emulated") == 1
