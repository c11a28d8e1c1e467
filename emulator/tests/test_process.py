"""What a process may do to the emulator: fork, end with work in flight, have sixteen devices."""

import pytest

from .conftest import Script

BEGIN = """
import os, sys
import cuda_emulator
emulator = cuda_emulator.start(devices={devices}, memory="64MiB", jitter_us={jitter_us}, timeout_s=20)
from cuda.bindings import driver as d
def ok(answer):
    assert answer[0] == d.CUresult.CUDA_SUCCESS, answer
    return answer[1] if len(answer) == 2 else answer[1:]
ok(d.cuInit(0))
contexts = [ok(d.cuDevicePrimaryCtxRetain(i)) for i in range({devices})]
ok(d.cuCtxSetCurrent(contexts[0]))
"""


def run(python: Script, script: str, *, devices: int = 2, jitter_us: int = 0) -> str:
    done = python(BEGIN.format(devices=devices, jitter_us=jitter_us) + script)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_forked_child_is_told_that_it_has_no_driver(python: Script) -> None:
    script = """
stream = ok(d.cuStreamCreate(0))
address = ok(d.cuMemAlloc(1 << 20))
ok(d.cuMemsetD8Async(address, 1, 1 << 20, stream))
child = os.fork()
if not child:
    answers = {d.cuMemAlloc(64)[0], d.cuStreamSynchronize(stream)[0], d.cuCtxGetCurrent()[0], d.cuInit(0)[0]}
    os._exit(0 if answers == {d.CUresult.CUDA_ERROR_NOT_INITIALIZED} else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
ok(d.cuStreamSynchronize(stream))
ok(d.cuMemFree(address))
print(emulator.live_bytes())
"""
    assert run(python, script) == "0"


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "os._exit(0)"])
def test_a_process_may_end_with_work_in_flight(python: Script, end: str) -> None:
    script = """
for context in contexts:
    ok(d.cuCtxSetCurrent(context))
    address = ok(d.cuMemAlloc(1 << 20))
    for _ in range(4):
        stream = ok(d.cuStreamCreate(d.CUstream_flags.CU_STREAM_NON_BLOCKING))
        for _ in range(100):
            ok(d.cuMemsetD8Async(address, 1, 1 << 20, stream))
print("said", flush=True)
"""
    assert run(python, script + end, jitter_us=1000) == "said"


def test_sixteen_devices_are_sixteen_memories(python: Script) -> None:
    script = """
addresses = []
for i, context in enumerate(contexts):
    ok(d.cuCtxSetCurrent(context))
    addresses.append(ok(d.cuMemAlloc(1 << 20)))
    ok(d.cuMemsetD8(addresses[-1], i, 1 << 20))
assert len({ok(d.cuDeviceGetUuid(i)).bytes for i in range(16)}) == 16
back = bytearray(1 << 20)
for i in reversed(range(16)):
    ok(d.cuCtxSetCurrent(contexts[i]))
    ok(d.cuMemcpyDtoH(back, addresses[i], len(back)))
    assert set(back) == {i} and emulator.live_bytes(i) == 1 << 20
    ok(d.cuMemFree(addresses[i]))
print(emulator.live_bytes())
"""
    assert run(python, script, devices=16) == "0"
