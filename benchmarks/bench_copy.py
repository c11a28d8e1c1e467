"""Copies between host and device memory against ``numpy.copyto`` between touched pages."""

from __future__ import annotations

import numpy as np

import tazza as tz
from benchmarks.harness import Area, Budget, Case

SIZES = {"16MiB": 16 << 20, "64MiB": 64 << 20}


def area() -> Area:
    """Cases of host to device and device to host, on cpu and on a simulated device."""
    cases: list[Case] = []
    budgets: list[Budget] = []
    for label, nbytes in SIZES.items():
        host, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
        cases.append(
            Case(f"copy.to{label}.numpy", "copyto(dst, src)", {"copyto": np.copyto, "dst": target, "src": host})
        )
        for device in ("cpu", "sim:0"):
            context = tz.context(device)
            buffer = context.allocate(nbytes)
            context.fill(buffer, 0)
            context.synchronize()
            names = {"copy": context.copy, "wait": context.synchronize, "device": buffer, "host": host, "out": target}
            who = device.partition(":")[0]
            cases.append(Case(f"copy.to{label}.{who}", "copy(device, host); wait()", names))
            cases.append(Case(f"copy.from{label}.{who}", "copy(out, device); wait()", names))
            # A simulated device is late on purpose, so its figure is only reported.
            gated, peer = who == "cpu", f"copy.to{label}.numpy"
            budgets.extend(Budget(case.id, peer, at_most=1 / 0.95, gated=gated) for case in cases[-2:])
    return Area(cases, budgets)
