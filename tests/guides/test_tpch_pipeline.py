"""The data-processing guide's pipeline: DuckDB's answer exactly, within a budget that makes its reader wait."""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tazza as tz
from tests.interop import need

pa, duckdb = need("pyarrow"), need("duckdb")
if not (Path(sysconfig.get_path("scripts")) / "tpchgen-cli").exists():
    pytest.skip("tpchgen-cli is not installed; pip install '.[interop]'", allow_module_level=True)

pytestmark = pytest.mark.interop
SCRIPT = Path(__file__).parents[2] / "examples" / "tpch_pipeline.py"
BUDGET = 3 << 20  # a few of the row groups of this file


def load() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("tpch_pipeline", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["tpch_pipeline"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(example.generate(0.02, tmp_path_factory.mktemp("tpch"), "512KB"))


@pytest.fixture(autouse=True)
def arrow_gets_all_back() -> Iterator[None]:
    """What Arrow's pool held before a test it holds after it."""
    gc.collect()
    before = pa.total_allocated_bytes()
    yield
    gc.collect()
    assert pa.total_allocated_bytes() <= before


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[tz.Context]:
    """Every context that the pipeline makes."""
    made: list[tz.Context] = []

    class Noted(tz.open):
        def __enter__(self) -> tz.Context:
            made.append(super().__enter__())
            return made[-1]

    monkeypatch.setattr(tz, "open", Noted)
    return made


@pytest.mark.parametrize("overlapped", [True, False])
def test_the_answer_is_duckdbs(path: Path, overlapped: bool, contexts: list[tz.Context]) -> None:
    outcome = example.pipeline(path, BUDGET, overlapped=overlapped)
    expected = example.duckdb_answer(path)
    assert example.equal(outcome.answer, expected)
    assert [row[:6] + row[9:] for row in outcome.answer] == [row[:6] + row[9:] for row in expected]
    assert [[type(value) for value in row] for row in outcome.answer] == [[type(v) for v in row] for row in expected]
    assert 0 < outcome.peak <= BUDGET
    assert [context.memory.leaks() for context in contexts] == [()] * len(contexts)


def test_the_reader_waits_for_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing starts only once the reader stands still: it cannot run further ahead than the budget lets it."""
    from tazza.core.waiting import blocked

    group_by = example.group_by
    waited: list[bool] = []

    def late(batch: Any) -> Any:
        while not waited and not any(wait.what is None for wait in dict(blocked).values()):
            pass  # nothing else could tell that the reader stands still
        waited.append(True)
        return group_by(batch)

    monkeypatch.setattr(example, "group_by", late)
    outcome = example.pipeline(path, BUDGET)
    assert example.equal(outcome.answer, example.duckdb_answer(path))
    assert BUDGET / 2 < outcome.peak <= BUDGET
    assert len(waited) == example.Table(path).groups


def test_arrow_is_watched_and_charged(path: Path) -> None:
    table = example.Table(path)
    with tz.open("cpu") as ctx:
        table.read(0)  # what the file itself keeps is there after the first read
        before = pa.total_allocated_bytes()
        batch = example.Batch(table, 2)
        taken = pa.total_allocated_bytes() - before
        assert abs(batch.charge.nbytes - taken) <= 4096  # a read may keep the decoder's own state
        assert taken <= table.bytes_to_read(2)
        snapshot = ctx.memory.snapshot()
        [watched] = [heading for heading in snapshot.headings if heading.name == "foreign: pyarrow"]
        assert watched.nbytes >= taken
        [charged] = [holding for holding in snapshot.holdings if holding.library == "pyarrow"]
        assert (charged.label, charged.nbytes) == ("row groups", batch.charge.nbytes)
        del batch
        assert ctx.memory.stats().live == 0
        assert ctx.memory.leaks() == ()


def test_the_estimate_covers_what_reading_takes_at_most(path: Path) -> None:
    """Measured in a process of its own, as a pool's record of its peak cannot be reset."""
    program = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tpch_pipeline", {str(SCRIPT)!r})
example = sys.modules["tpch_pipeline"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
import pyarrow
table = example.Table({str(path)!r})
columns = table.read(0)
print(pyarrow.default_memory_pool().max_memory(), table.bytes_to_read(0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    most, estimate = map(int, done.stdout.split())
    assert most <= 1.1 * estimate  # the file's own metadata are in it too


def test_a_budget_for_less_than_one_row_group_names_the_holders(path: Path) -> None:
    table = example.Table(path)
    limit = 96 * table.most_rows + table.bytes_to_read(0) // 2
    with pytest.raises(tz.errors.UpstreamError) as info:
        example.pipeline(path, limit)
    cause = info.value.cause
    assert isinstance(cause, tz.OutOfMemoryError)
    assert cause.limit == limit
    assert cause.requested == table.bytes_to_read(0)
    assert "pipeline" in str(cause)
    assert cause.holders == (("group by (set aside)", 96 * table.most_rows, 1),)


def test_a_failing_reader_is_told_and_leaks_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, contexts: list[tz.Context]
) -> None:
    read = example.Table.read

    def broken(table: Any, group: int) -> Any:
        if group == 2:
            raise OSError("the disk is gone")
        return read(table, group)

    monkeypatch.setattr(example.Table, "read", broken)
    with pytest.raises(tz.errors.UpstreamError, match="the disk is gone") as info:
        example.pipeline(path, BUDGET)
    assert isinstance(info.value.cause, OSError)
    assert [context.memory.leaks() for context in contexts] == [()] * len(contexts)


def test_plain_libraries_give_the_same(path: Path) -> None:
    assert example.plain(path) == example.pipeline(path, BUDGET).answer


def test_another_answer_is_told_apart(path: Path) -> None:
    answer = example.duckdb_answer(path)
    [row, *others] = answer
    assert example.equal(answer, answer)
    assert not example.equal(answer, others)
    for place in (0, 2, 6, 9):
        wrong = [*row]
        wrong[place] = row[place] + (row[place] if place == 0 else type(row[place])(1))
        assert not example.equal(answer, [tuple(wrong), *others])


def test_columns_that_are_no_exact_hundredths_are_refused() -> None:
    for wrong in (
        pa.array([1], pa.decimal128(15, 3)),
        pa.array([1], pa.decimal128(30, 2)),
        pa.array([None], pa.decimal128(15, 2)),
    ):
        with pytest.raises(ValueError, match="decimals"):
            example.hundredths(wrong)


def test_hundredths_of_a_slice() -> None:
    values = pa.array([1, -2, 3], pa.int64()).cast(pa.decimal128(21, 2)).cast(pa.decimal128(15, 2))
    assert example.hundredths(values[1:]).tolist() == [-200, 300]


def test_the_script_prints_its_figures(path: Path) -> None:
    options = ["--scale", "0.02", "--row-group", "512KB", "--folder", str(path.parent), "--budget", str(BUDGET)]
    command = [sys.executable, "-W", "error", str(SCRIPT), *options, "--rounds", "1", "--check-duckdb", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["equals_duckdb"] is True
    assert figures["account_peak"] <= figures["budget"] == BUDGET
    assert figures["resident_over_imports"] <= BUDGET + (150 << 20)
    assert figures["arrow_pool"] > 0
