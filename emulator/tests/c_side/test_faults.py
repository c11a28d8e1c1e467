"""Faults that the emulator injects, and the trace that it writes."""

import ctypes
import json
from pathlib import Path

from cuda.bindings import driver
from programs import Child, context, fails, kernels, launch, ok, read, stream

from cuda_emulator import started

INT, LONG = ctypes.c_int, ctypes.c_long


def counted() -> None:
    context()
    data = [int(ok(driver.cuMemAlloc(8)))]
    fails(driver.cuMemAlloc(8), "OUT_OF_MEMORY")
    data.append(int(ok(driver.cuMemAlloc(8))))
    for address in data:
        ok(driver.cuMemFree(address))
    ok(driver.cuCtxSynchronize())  # not sticky


def test_the_second_call_only(child: Child) -> None:
    child(counted, faults="cuMemAlloc:2:OUT_OF_MEMORY")


def sticky_call() -> None:
    context()
    fails(driver.cuStreamCreate(0), "LAUNCH_FAILED")
    fails(driver.cuMemAlloc(1), "LAUNCH_FAILED")


def test_a_sticky_fault_of_a_call(child: Child) -> None:
    child(sticky_call, faults="cuStreamCreate:1:LAUNCH_FAILED:sticky")


def asynchronous() -> None:
    contexts = [context(device) for device in (1, 0)]
    data = int(ok(driver.cuMemAlloc(4)))
    (poke,) = kernels("poke")
    for value in (1, 2, 3):
        launch(poke, 0, (data, 0, value), (None, LONG, INT))  # the call itself is well
        if value == 2:
            ok(driver.cuCtxSynchronize())
            assert read(data, 1) == b"\2"
    fails(driver.cuCtxSynchronize(), "ECC_UNCORRECTABLE")
    fails(driver.cuMemAlloc(4), "ECC_UNCORRECTABLE")
    ok(driver.cuCtxSetCurrent(contexts[0]))
    ok(driver.cuCtxSynchronize())


def test_the_third_kernel_of_a_device(child: Child) -> None:
    child(asynchronous, devices=2, faults="@kernel:3:ECC_UNCORRECTABLE:device=0")


def at_random() -> None:
    context()
    print("".join("x" if driver.cuEventCreate(0)[0] else "." for _ in range(200)))


def test_faults_at_random_are_the_seed_s(child: Child) -> None:
    seen = [child(at_random, faults="cuEventCreate:p=0.2:OUT_OF_MEMORY", seed=seed).stdout for seed in (1, 1, 2)]
    assert seen[0] == seen[1] != seen[2]
    assert 15 < seen[0].count("x") < 70


def in_code() -> None:
    context()
    emulator = started()
    assert emulator is not None
    with emulator.injecting("cuMemAllocAsync:2+:INVALID_VALUE"):
        ok(driver.cuMemAllocAsync(4, 0))
        for _ in range(3):
            fails(driver.cuMemAllocAsync(4, 0), "INVALID_VALUE")
    ok(driver.cuMemAllocAsync(4, 0))


def test_faults_can_be_set_in_code(child: Child) -> None:
    child(in_code)


def traced() -> None:
    context()
    on = stream()
    data = int(ok(driver.cuMemAlloc(40)))
    ok(driver.cuMemsetD8Async(data, 1, 40, on))
    ok(driver.cuStreamSynchronize(on))
    driver.cuMemAlloc(0)


def test_a_trace_has_calls_and_operations(child: Child, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    child(traced, trace=str(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    calls = [line for line in lines if "call" in line]
    (fill,) = [line for line in lines if line.get("operation") == "fill"]
    assert fill["bytes"] == 40
    assert fill["queued"] <= fill["start"] <= fill["end"]
    assert fill["result"] == 0
    allocations = [line for line in calls if line["call"] == "cuMemAlloc_v2"]
    assert [(line["result"], line.get("bytes")) for line in allocations] == [(0, 40), (1, None)]
    assert all(line["start"] <= line["end"] for line in calls)
