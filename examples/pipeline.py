"""Read in threads, compute on a device: each task is ordered by the data it takes.

Run: python examples/pipeline.py [device]
"""

from __future__ import annotations

import sys

import numpy as np

import tazza as tz


def read(chunk: int) -> np.ndarray:
    """Stand in for reading a file: 1,000 rows of 8 columns."""
    return np.random.default_rng(chunk).random((1000, 8))


def totals(table: np.ndarray) -> np.ndarray:
    """Sum the columns, wherever the table lies."""
    return table.sum(axis=0)


def main(device: str) -> None:
    """Sum 20 chunks, two readers ahead of the device."""
    with tz.open("cpu") as cpu, tz.open(device, memory_limit="64MiB") as ctx:
        readers = [cpu.new_stream(label=f"reader {i}") for i in range(2)]
        chunks = [cpu.launch(read, i, stream=readers[i % 2]) for i in range(20)]
        sums = [ctx.launch(totals, chunk) for chunk in chunks]  # moves each chunk when it is there
        columns = sum(ctx.to_numpy(result) for result in tz.wait(sums, timeout=30))
        print(f"{device}: peak {ctx.memory.stats().peak} bytes, column sums {np.round(columns, 2).tolist()}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["sim:0"])
