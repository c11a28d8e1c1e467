"""Read Parquet ahead of a group-by, on two parts of the CPU and within one budget: TPC-H query 1, exact to the cent.

Run: python examples/tpch_pipeline.py [--scale 1] [--budget 256MiB] [--rounds 5] [--check-duckdb] [--json]

Needs pyarrow and tpchgen-cli, which makes the data once, and duckdb for the check. docs/guides/data-processing.md
explains each step.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

import tazza as tz

DECIMALS = ("l_quantity", "l_extendedprice", "l_discount", "l_tax")
COLUMNS = (*DECIMALS, "l_returnflag", "l_linestatus", "l_shipdate")
GENERATOR = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
Sums = dict[tuple[str, str], tuple[int, ...]]
LAST_SHIPDATE = 10471  # 1998-09-02, in days since 1970
TIMEOUT = 300.0
QUERY = """
select l_returnflag, l_linestatus, sum(l_quantity), sum(l_extendedprice), sum(l_extendedprice * (1 - l_discount)),
       sum(l_extendedprice * (1 - l_discount) * (1 + l_tax)), avg(l_quantity), avg(l_extendedprice), avg(l_discount),
       count(*)
from read_parquet('{path}') where l_shipdate <= date '1998-12-01' - interval '90' day group by all order by all
"""


# The data ------------------------------------------------------------------------------------------------------------


def generate(scale: float, folder: Path, row_group: str = "8MiB") -> Path:
    """Make `lineitem` once, as a Parquet file of several row groups; returns its path."""
    path = folder / f"lineitem-{scale:g}-{row_group}.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            options = ["-s", f"{scale:g}", "-T", "lineitem", f"--row-group-bytes={row_group}", "--quiet"]
            subprocess.run([str(GENERATOR), "parquet", *options, "--output-dir", draft], check=True, timeout=TIMEOUT)
            os.replace(Path(draft) / "lineitem.parquet", path)
    return path


class Table:
    """A Parquet file as Arrow reads it, in one thread: the streams are the threads."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pa.set_cpu_count(1)
        self.file = pq.ParquetFile(path, read_dictionary=["l_returnflag", "l_linestatus"])
        self.groups = self.file.metadata.num_row_groups
        self.most_rows = max(self.file.metadata.row_group(group).num_rows for group in range(self.groups))

    def bytes_to_read(self, group: int) -> int:
        """What reading a row group takes at most: its pages, and each column twice, as it grows and as it is kept."""
        about = self.file.metadata.row_group(group)
        chunks = (about.column(index) for index in range(about.num_columns))
        pages = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in COLUMNS)
        row = 16 * len(DECIMALS) + 3 * 4  # decimal128; two dictionary indices and a date
        return int(pages + 2 * row * about.num_rows)

    def read(self, group: int) -> Any:
        """Return the columns of a row group as an Arrow table."""
        return self.file.read_row_group(group, columns=list(COLUMNS), use_threads=False)


# The tasks -----------------------------------------------------------------------------------------------------------


class Batch:
    """A row group in memory, and the charge for it, which end together."""

    def __init__(self, table: Table, group: int) -> None:
        charge = tz.current().memory.charge(table.bytes_to_read(group), label="row groups", library="pyarrow")
        self.columns = table.read(group)  # there is room for it now
        charge.resize(taken(self.columns))
        self.charge = charge


def taken(columns: Any) -> int:
    """Bytes that Arrow's pool gave for a table: its buffers, each rounded up to 64 bytes."""
    found = (buffer for column in columns.columns for chunk in column.chunks for buffer in buffers(chunk))
    return sum(-(-buffer.size // 64) * 64 for buffer in found)


def buffers(values: Any) -> list[Any]:
    """The buffers of an Arrow array, of its dictionary too."""
    own = [buffer for buffer in values.buffers() if buffer is not None]
    return own + (buffers(values.dictionary) if hasattr(values, "dictionary") else [])


def column(columns: Any, name: str) -> Any:
    """One column as an Arrow array."""
    chunks = columns.column(name)
    return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()


def hundredths(values: Any) -> Any:
    """A decimal column as whole hundredths: the low halves of its 16-byte numbers, which hold up to 18 digits."""
    if values.null_count or values.type.scale != 2 or values.type.precision > 18:
        raise ValueError(f"expected decimals of 2 places and at most 18 digits without nulls, got {values.type}")
    words = np.frombuffer(values.buffers()[1], np.int64)
    return words[2 * values.offset : 2 * (values.offset + len(values)) : 2]


def group_by(batch: Batch) -> Sums:
    """The sums of one batch: quantity, price, discounted price, charge, discount and rows of each group, exactly.

    They are whole hundredths, their products 1e-4 and 1e-6; the sums of a few million rows stay far below 2**63.
    """
    return sums_of(batch.columns, tz.current().xp)


def sums_of(columns: Any, xp: Any) -> Sums:
    """The work of `group_by`, on an Arrow table and in any namespace of arrays."""
    quantity, price, discount, tax = (hundredths(column(columns, name)) for name in DECIMALS)
    flags, status = column(columns, "l_returnflag"), column(columns, "l_linestatus")
    shipped = np.frombuffer(column(columns, "l_shipdate").buffers()[1], np.int32)
    code = flags.indices.to_numpy() * len(status.dictionary) + status.indices.to_numpy()
    code = xp.where(shipped <= LAST_SHIPDATE, code, -1)
    discounted = price * (100 - discount)
    charged = discounted * (100 + tax)
    sums = {}
    for i, flag in enumerate(flags.dictionary.to_pylist()):
        for j, letter in enumerate(status.dictionary.to_pylist()):
            rows = code == i * len(status.dictionary) + j
            count = int(xp.count_nonzero(rows))
            if count:
                found = (xp.sum(values[rows]) for values in (quantity, price, discounted, charged, discount))
                sums[flag, letter] = (*(int(value) for value in found), count)
    return sums


def reduce(parts: list[Sums]) -> list[tuple[Any, ...]]:
    """Add the batches up and write the rows as the query's answer has them."""
    totals: dict[tuple[str, str], list[int]] = {}
    for part in parts:
        for group, values in part.items():
            before = totals.setdefault(group, [0] * len(values))
            totals[group] = [one + more for one, more in zip(before, values, strict=True)]
    rows = []
    for group, (quantity, price, discounted, charged, discount, count) in sorted(totals.items()):
        sums = (_decimal(quantity, 2), _decimal(price, 2), _decimal(discounted, 4), _decimal(charged, 6))
        means = (total / (100 * count) for total in (quantity, price, discount))  # the nearest double each
        rows.append((*group, *sums, *means, count))
    return rows


def _decimal(value: int, places: int) -> Decimal:
    return Decimal(value).scaleb(-places)


# The pipeline --------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one run gave and took."""

    answer: list[tuple[Any, ...]]
    seconds: float
    peak: int
    watched: dict[str, int] = field(default_factory=dict)


def pipeline(path: Path, limit: str | int, *, overlapped: bool = True, watch: bool = False) -> Outcome:
    """Answer the query from a file.

    Args:
        path: the Parquet file.
        limit: bytes that the whole pipeline may hold.
        overlapped: read ahead on one part of the CPU while the other computes; else all on one stream, in turn.
        watch: take the memory account half-way.
    """
    table = Table(path)
    parts = tz.device("cpu").split(2) if len(tz.device("cpu").cores) > 1 else tz.device("cpu").split(1) * 2
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(tz.open("cpu"))
        budget = host.memory.budget(limit, name="pipeline", on_full="wait", timeout=TIMEOUT)
        reader = stack.enter_context(tz.open(parts[0], within=budget))
        worker = stack.enter_context(tz.open(parts[1], within=budget)) if overlapped else reader
        reading = reader.new_stream(label="read")
        working = worker.new_stream(label="compute") if overlapped else reading
        # Set aside before anything is read ahead: what is read must not take the room that computing it needs.
        scratch = stack.enter_context(worker.memory.budget(None, name="group by", reserve=96 * table.most_rows))
        start = time.perf_counter()
        sums = []
        for group in range(table.groups):
            batch = reader.launch(Batch, table, group, stream=reading, label=f"read {group}")
            sums.append(worker.launch(group_by, batch, stream=working, label=f"group by {group}"))
            del batch  # held by the task that takes it, and by nobody else
        watched = _watch(host, sums[: table.groups // 2]) if watch else {}
        answer = reduce(results(sums))
        seconds = time.perf_counter() - start
        del scratch
    return Outcome(answer, seconds, budget.peak, watched)


def plain(path: Path) -> list[tuple[Any, ...]]:
    """The same by PyArrow and NumPy alone, one row group after the other: what the benchmark compares with."""
    table = Table(path)
    return reduce([sums_of(table.read(group), np) for group in range(table.groups)])


def results(tasks: list[tz.Task]) -> list[Any]:
    """Wait for every task, then return their results or raise the first failure; none goes unseen."""
    found, failures = [], []
    for task in tasks:
        try:
            found.append(task.result(timeout=TIMEOUT))
        except Exception as error:  # raised below, once the others are over
            failures.append(error)
    if failures:
        raise failures[0]
    return found


def _watch(host: tz.Context, first: list[tz.Task]) -> dict[str, int]:
    """What Arrow's pool says that it holds, and what is charged for it, in the middle of the work."""
    results(first)
    snapshot = host.memory.snapshot()
    pool = sum(heading.nbytes for heading in snapshot.headings if heading.name == "foreign: pyarrow")
    charged = sum(holding.nbytes for holding in snapshot.holdings if holding.library == "pyarrow")
    return {"arrow_pool": pool, "arrow_charged": charged}


# Figures -------------------------------------------------------------------------------------------------------------


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or with ``VmHWM`` at most since `reset_peak`; 0 where that is unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:")), 0)


def reset_peak() -> None:
    """Let the system's record of the peak start again from now (Linux); it misses nothing, as sampling would."""
    with contextlib.suppress(OSError):  # where it cannot be reset the peak since the start is shown, which is no less
        Path("/proc/self/clear_refs").write_text("5")


def duckdb_answer(path: Path) -> list[tuple[Any, ...]]:
    """The same query by DuckDB."""
    import duckdb

    return list(duckdb.sql(QUERY.format(path=path)).fetchall())


def equal(ours: list[tuple[Any, ...]], theirs: list[tuple[Any, ...]]) -> bool:
    """Tell whether two answers have the same rows: keys, sums and counts exactly, averages but for their last bit.

    DuckDB rounds an average twice where its plan shares the sum with another column, and once where it does not.
    """
    if len(ours) != len(theirs):
        return False
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    return all(abs(a - b) <= math.ulp(a) if type(a) is type(b) is float else a == b for a, b in pairs)


def measure(path: Path, limit: str, rounds: int) -> dict[str, Any]:
    """Run both forms in turn; the ratio is the median of the ratios of each round."""
    before = resident()
    reset_peak()
    first = pipeline(path, limit, watch=True)
    outcomes = [(pipeline(path, limit, overlapped=False), pipeline(path, limit)) for _ in range(rounds)]
    peak = resident("VmHWM")
    runs = [first, *(run for pair in outcomes for run in pair)]
    if any(run.answer != first.answer for run in runs):
        raise SystemExit("the runs do not agree")
    return {
        "row_groups": Table(path).groups,
        "rows": Table(path).file.metadata.num_rows,
        "budget": tz.Spec("cpu:0", memory_limit=limit).memory_limit,  # type: ignore[arg-type]
        "account_peak": max(run.peak for run in runs),
        "resident_over_imports": peak - before,
        "serial_s": statistics.median(serial.seconds for serial, _ in outcomes),
        "overlapped_s": statistics.median(overlapped.seconds for _, overlapped in outcomes),
        "overlapped_over_serial": statistics.median(two.seconds / one.seconds for one, two in outcomes),
        **first.watched,
        "answer": first.answer,
    }


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description="TPC-H query 1 over Parquet, within a budget.")
    parser.add_argument("--scale", type=float, default=0.1, help="TPC-H scale factor; 1 is 6 million rows")
    parser.add_argument("--budget", default="256MiB", help="what the pipeline may hold")
    parser.add_argument("--rounds", type=int, default=3, help="how often each form runs")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tazza-tpch", help="for the data")
    parser.add_argument("--row-group", default="8MiB", help="size of a row group, all columns, encoded")
    parser.add_argument("--check-duckdb", action="store_true", help="compare with DuckDB, row for row; exit 1 if not")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if importlib.util.find_spec("pyarrow") is None or not GENERATOR.exists():
        print("this example needs pyarrow and tpchgen-cli: pip install 'tazza[interop]'")
        return
    import pyarrow.parquet  # noqa: F401  what it takes is not the pipeline's

    path = generate(options.scale, options.folder, options.row_group)
    figures = measure(path, options.budget, options.rounds)
    if options.check_duckdb:
        figures["equals_duckdb"] = equal(figures["answer"], duckdb_answer(path))
    if options.json:
        print(json.dumps(figures, default=str, indent=2))
    else:
        for name, value in figures.items():
            rows = value if name == "answer" else []
            print(f"{name}:", *[" ".join(map(str, row)) for row in rows] or [value], sep="\n  " if rows else " ")
    if not figures.get("equals_duckdb", True):
        sys.exit(1)


if __name__ == "__main__":
    main()
