"""What an Emulator can be asked, and told, in code."""

import pytest

from cuda_emulator import Emulator, Fault

from .conftest import Script

driver = pytest.importorskip("cuda.bindings.driver")


def test_it_reports_what_lives_and_what_was_called(cuda_emulator: Emulator) -> None:
    calls = cuda_emulator.report()["calls"].get("cuMemAlloc_v2", 0)
    driver.cuInit(0)
    context = driver.cuDevicePrimaryCtxRetain(0)[1]
    driver.cuCtxSetCurrent(context)
    objects = cuda_emulator.live_objects()
    address, stream = driver.cuMemAlloc(4000)[1], driver.cuStreamCreate(0)[1]
    report = cuda_emulator.report()
    assert {"address": int(address), "bytes": 4000}.items() <= report["allocations"][-1].items()
    assert report["calls"]["cuMemAlloc_v2"] == calls + 1
    assert report["n_hazards"] == len(report["hazards"])
    assert cuda_emulator.live_bytes(0) >= 4000
    assert cuda_emulator.live_objects() == objects + 1
    driver.cuMemFree(address)
    driver.cuStreamDestroy(stream)
    driver.cuDevicePrimaryCtxRelease(0)


def test_faults_last_as_long_as_their_with(cuda_emulator: Emulator) -> None:
    with cuda_emulator.injecting(Fault("cuInit", 2, "UNKNOWN"), "cuInit:3:999"):
        assert [int(driver.cuInit(0)[0]) for _ in range(4)] == [0, 999, 999, 0]
        assert len(cuda_emulator.faults) == 2
    assert not cuda_emulator.faults
    assert driver.cuInit(0)[0] == 0


def test_an_error_that_the_driver_does_not_have_is_refused(cuda_emulator: Emulator) -> None:
    with pytest.raises(ValueError, match="cannot read the fault 'cuInit:2:NO_SUCH_ERROR'"):
        cuda_emulator.faults = "cuInit:1:UNKNOWN;cuInit:2:NO_SUCH_ERROR"
    assert not cuda_emulator.faults
    assert driver.cuInit(0)[0] == 0


def test_it_can_be_waited_for(python: Script) -> None:
    script = """
import cuda_emulator
emulator = cuda_emulator.start(jitter_us=20000)
from cuda.bindings import driver as d
d.cuInit(0)
d.cuCtxSetCurrent(d.cuDevicePrimaryCtxRetain(0)[1])
stream, address = d.cuStreamCreate(0)[1], d.cuMemAlloc(64)[1]
for _ in range(10):
    d.cuMemsetD8Async(address, 1, 64, stream)
busy = d.cuStreamQuery(stream)[0] == d.CUresult.CUDA_ERROR_NOT_READY
print(busy, emulator.wait_idle(), d.cuStreamQuery(stream)[0].name)
"""
    assert python(script).stdout.split() == ["True", "True", "CUDA_SUCCESS"]


def test_a_device_that_is_not_there_is_refused(cuda_emulator: Emulator) -> None:
    with pytest.raises(ValueError, match="device is 2; this emulator has 0 to 1"):
        cuda_emulator.live_bytes(2)
    with pytest.raises(ValueError, match="device is -1"):
        cuda_emulator.lose_device(-1)
    with pytest.raises(ValueError, match="device is 2"):
        cuda_emulator.restore_device(2)


@pytest.mark.parametrize(
    "broken", ["emulator.lose_device(0)", "emulator.faults = 'cuMemGetInfo:1:LAUNCH_FAILED:sticky'"]
)
def test_a_device_can_be_made_well_again(python: Script, broken: str) -> None:
    script = f"""
import cuda_emulator
emulator = cuda_emulator.start()
from cuda.bindings import driver as d
d.cuInit(0)
context = d.cuDevicePrimaryCtxRetain(0)[1]
d.cuCtxSetCurrent(context)
before, stream = d.cuMemAlloc(64)[1], d.cuStreamCreate(0)[1]
{broken}
d.cuMemGetInfo()
print(d.cuMemAlloc(64)[0].name != "CUDA_SUCCESS", d.cuDevicePrimaryCtxRetain(0)[0].name != "CUDA_SUCCESS")
emulator.restore_device(0)
print(int(d.cuCtxGetCurrent()[1]) == int(context), emulator.live_bytes(0), d.cuStreamQuery(stream)[0].name)
after = d.cuMemAlloc(64)[1]
print(int(after) != int(before), d.cuMemsetD8(after, 7, 64)[0].name, d.cuCtxSynchronize()[0].name)
"""
    said = python(script).stdout.split()
    assert said[0] == "True"
    assert said[2:] == ["True", "0", "CUDA_ERROR_INVALID_HANDLE", "True", "CUDA_SUCCESS", "CUDA_SUCCESS"], said


def test_a_lost_device_fails_and_the_other_works_on(python: Script) -> None:
    script = """
import cuda_emulator
emulator = cuda_emulator.start()
from cuda.bindings import driver as d
d.cuInit(0)
answers = []
for device in range(2):
    d.cuCtxSetCurrent(d.cuDevicePrimaryCtxRetain(device)[1])
    if not device:
        emulator.lose_device(0)
    print(d.cuMemAlloc(64)[0].name)
"""
    assert python(script).stdout.split() == ["CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA_SUCCESS"]
