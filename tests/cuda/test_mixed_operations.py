"""Many threads, many devices, all operations mixed, with little patience for what is left over in the end."""

from __future__ import annotations

import os

import pytest

from tests.cuda.conftest import Child

FULL = os.environ.get("TAZZA_FULL") == "1"
OPERATIONS = 200_000 if FULL else 10_000
"""10,000 take 6 s on two cores, 30,000 took 23 s on two busy ones; time grows in proportion."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mixed_operations_of_eight_threads_on_four_devices_leave_nothing(emulated: Child) -> None:
    out = emulated(
        "",
        "-m",
        "tests.cuda.mixed_operations",
        str(OPERATIONS),
        devices=4,
        jitter_us=50,
        patience=500 if FULL else 90,
    )
    assert int(out.split()[0]) >= OPERATIONS


def test_data_are_really_compared(emulated: Child) -> None:
    out = emulated(
        """
        from tests.cuda import mixed_operations
        mixed_operations.Worker.after = lambda self, stream, *held: None  # nobody waits for anybody
        try:
            mixed_operations.main(400)
        except AssertionError as error:
            print(error)
        """,
        devices=4,
        jitter_us=30_000,  # far slower than any host
    )
    assert "found other data" in out
