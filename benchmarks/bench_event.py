"""Record an event and let a stream wait for it, against the simulated driver's own primitives."""

from __future__ import annotations

from collections.abc import Callable

import tazza as tz
from benchmarks.harness import Area, Budget, Case
from tazza.drivers.sim.driver import SimConfig, SimDriver
from tazza.testing import simulate

BATCH = 100
TIMEOUT = 60.0


def through_tazza(stream: tz.Stream, other: tz.Stream) -> Callable[[], None]:
    """Record on one stream, wait on the other, drain at the end of the batch."""

    def run() -> None:
        for _ in range(BATCH):
            other.wait(stream.record())
        other.synchronize(TIMEOUT)

    return run


def raw() -> Callable[[], None]:
    """The same on two queues of the driver, without tazza above it."""
    driver = SimDriver(SimConfig(devices=1, lateness=0))
    [device] = driver.devices()
    queue, other = driver.queue_create(device, 0), driver.queue_create(device, 0)

    def run() -> None:
        for _ in range(BATCH):
            event = driver.event_record(device, queue, False)
            driver.queue_wait(device, other, event)
            driver.event_destroy(device, event)
        driver.event_synchronize(device, driver.event_record(device, other, False), TIMEOUT)

    return run


def area() -> Area:
    """Cases on the inline stream of the CPU, on its worker streams, and on a simulated device that is not late."""
    with simulate(devices=1, lateness=0):
        sim = tz.context("sim:0")  # keeps this device after the block
    cpu = tz.context("cpu")
    runs = {
        "inline.tazza": through_tazza(cpu.stream, cpu.stream),
        "worker.tazza": through_tazza(cpu.new_stream(), cpu.new_stream()),
        "sim.tazza": through_tazza(sim.stream, sim.new_stream()),
        "sim.driver": raw(),
    }
    kept = {"contexts": (cpu, sim)}  # a context's own stream does not keep it
    cases = [
        Case(f"event.record_wait_{name}", "run()", {"run": run} | kept, operations=BATCH) for name, run in runs.items()
    ]
    # The raw driver is a Python queue; what the ratio says about a real driver is decided on that one.
    return Area(cases, [Budget("event.record_wait_sim.tazza", "event.record_wait_sim.driver", 1.5, gated=False)])
