"""ONNX Runtime sessions under a context."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.adapters import onnxruntime as adapter
from tazza.adapters.onnxruntime import OnnxruntimeAdapter, Port, session
from tazza.errors import (
    ArgumentError,
    BackendError,
    BackendUnavailableError,
    ClosedError,
    OutOfMemoryError,
    UnsupportedError,
    UsageError,
)
from tests.interop import need
from tests.unit.onnx_models import FLOAT, INT64, STRING, model, node

ort = need("onnxruntime")
pytestmark = pytest.mark.interop

TIMEOUT = 20.0

# z = (x + y) * x for x of (batch, 3); both are outputs.
ADD_MUL = model(
    [("x", FLOAT, ("batch", 3)), ("y", FLOAT, ("batch", 3))],
    [node("Add", ["x", "y"], ["sum"]), node("Mul", ["sum", "x"], ["product"])],
    [("sum", FLOAT, ("batch", 3)), ("product", FLOAT, ("batch", 3))],
)
# As many values as the caller says.
EXPAND = model(
    [("x", FLOAT, (1,)), ("shape", INT64, ("rank",))],
    [node("Expand", ["x", "shape"], ["y"]), node("ReduceSum", ["y"], ["total"])],
    [("y", FLOAT, ("n",)), ("total", FLOAT, (1,))],
)
TEXT = model([("x", STRING, ("n",))], [node("Identity", ["x"], ["y"])], [("y", STRING, ("n",))])


@pytest.fixture(params=["numpy", "torch"])
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    if request.param == "torch":
        need("torch")
    with tz.open("cpu", seed=1, arrays=request.param) as made:
        yield made


def inputs(batch: int = 2) -> dict[str, Any]:
    return {"x": np.full((batch, 3), 2.0, np.float32), "y": np.ones((batch, 3), np.float32)}


# Running -----------------------------------------------------------------------------------------------------------


def test_outputs_are_arrays_of_the_context_in_its_memory(ctx: tz.Context) -> None:
    run = session(ctx, ADD_MUL)
    given = {name: ctx.asarray(value, copy=True) for name, value in inputs().items()}
    before = ctx.memory.stats().live
    outputs = run.run(given)
    assert list(outputs) == ["sum", "product"]
    assert ctx.memory.stats().live - before == 128
    for output, value in zip(outputs.values(), (3.0, 6.0), strict=True):
        assert ctx.arrays.owns(output)
        assert tz.context_of(output) is ctx
        assert (ctx.to_numpy(output) == np.full((2, 3), value)).all()
    del outputs, output
    gc.collect()
    assert ctx.memory.stats().live == before


def test_buffers_and_lists_are_taken(ctx: tz.Context) -> None:
    buffer = ctx.allocate(24, dtype="float32", shape=(2, 3))
    ctx.fill(buffer, 2.0)
    outputs = session(ctx, ADD_MUL).run({"x": buffer, "y": [[1, 1, 1], [0, 0, 0]]})
    assert ctx.to_numpy(outputs["product"]).tolist() == [[6.0] * 3, [4.0] * 3]


def test_a_session_is_the_function_of_a_task(ctx: tz.Context) -> None:
    run = session(ctx, ADD_MUL)
    stream = ctx.new_stream()
    tasks = [ctx.launch(run.run, inputs(batch), stream=stream) for batch in (1, 4)]
    assert [ctx.to_numpy(task.result(TIMEOUT)["sum"]).shape for task in tasks] == [(1, 3), (4, 3)]
    with ctx.on(stream), pytest.raises(UsageError, match="launch"):
        run.run(inputs())

    async def main() -> Any:
        return await ctx.launch(run.run, inputs(), stream=stream)

    assert ctx.to_numpy(asyncio.run(main())["sum"]).tolist() == [[3.0] * 3] * 2


def test_what_is_no_array_of_numbers_comes_as_it_is(ctx: tz.Context) -> None:
    assert list(session(ctx, TEXT).run({"x": ["cup", "coffee"]})["y"]) == ["cup", "coffee"]


def test_on_a_simulated_device_it_runs_inside_tasks() -> None:
    with tz.open("sim:0") as sim:
        run = session(sim, ADD_MUL)
        x = sim.asarray(inputs()["x"])
        task = sim.launch(lambda x: run.run({"x": x, "y": np.ones((2, 3), np.float32)}), x)
        assert sim.to_numpy(task.result(TIMEOUT)["sum"]).tolist() == [[3.0] * 3] * 2
        with pytest.raises(UsageError, match="launch"):
            run.run(inputs())


# Settings ----------------------------------------------------------------------------------------------------------


def options(made: adapter.Session) -> Any:
    return made._native.get_session_options()


def test_threads_come_from_the_context(ctx: tz.Context) -> None:
    whole = session(ctx, ADD_MUL)
    assert whole.threads == options(whole).intra_op_num_threads == len(ctx.device.cores)
    assert options(whole).inter_op_num_threads == 1
    assert options(whole).get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with tz.limit_threads(1):
        assert session(ctx, ADD_MUL).threads == 1
    with tz.limit_threads(500):
        assert session(ctx, ADD_MUL).threads == len(ctx.device.cores)


def test_a_quota_of_the_group_counts(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    class Quota:
        extra = {"cpu_quota": 0.5}  # noqa: RUF012  read once

    class Device:
        cores, info = (0, 1, 2, 3), Quota

    class Stub:
        device = Device

    stub: Any = Stub()
    assert adapter._threads(stub) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list threads")
@pytest.mark.skipif(len(tz.device("cpu").cores) < 2, reason="this machine has one processor, which cannot be split")
def test_its_threads_stay_on_the_processors_of_a_part() -> None:
    def threads() -> set[str]:
        return set(os.listdir("/proc/self/task"))

    cores = tz.device("cpu").cores
    part = tz.device(f"cpu:0[{cores[0]}-{cores[1]}]" if cores[1] == cores[0] + 1 else "cpu")
    with tz.open(part) as ctx:
        before = threads()
        run = session(ctx, ADD_MUL)
        assert run.threads == 2
        (worker,) = threads() - before
        assert os.sched_getaffinity(int(worker)) == set(part.cores)
        assert ctx.to_numpy(run.run(inputs())["sum"]).tolist() == [[3.0] * 3] * 2


@pytest.mark.parametrize("arena", ["none", "shrink", "keep"])
def test_arenas(ctx: tz.Context, arena: Any) -> None:
    made = session(ctx, ADD_MUL, arena=arena, config={"session.intra_op.allow_spinning": "1"})
    assert options(made).enable_cpu_mem_arena == (arena != "none")
    assert options(made).get_session_config_entry("session.intra_op.allow_spinning") == "1"
    for _ in range(3):
        assert ctx.to_numpy(made.run(inputs())["sum"]).tolist() == [[3.0] * 3] * 2


def test_determinism_comes_from_the_spec() -> None:
    for wanted in (True, False):
        with tz.open("cpu", deterministic=wanted) as ctx:
            assert options(session(ctx, ADD_MUL)).use_deterministic_compute is wanted


def test_models_come_from_files_too(ctx: tz.Context, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(ADD_MUL)
    made = session(ctx, tmp_path / "model.onnx")
    assert made.inputs == {"x": Port("x", "float32", ("batch", 3)), "y": Port("y", "float32", ("batch", 3))}
    assert list(made.outputs) == ["sum", "product"]
    assert repr(made) == f"<Session ['x', 'y'] -> ['sum', 'product'] on cpu:0, {made.threads} threads>"
    assert made.context is ctx


# Refusals ----------------------------------------------------------------------------------------------------------


def test_bad_inputs_are_named(ctx: tz.Context) -> None:
    run = session(ctx, ADD_MUL)
    good: dict[str, Any] = inputs()
    for bad, message in (
        ([1], "inputs: got .* a mapping"),
        ({}, r"inputs: got \[\] .* exactly x, y"),
        (good | {"z": 1}, "exactly x, y"),
        (good | {"x": good["x"].astype("float64")}, r"inputs\['x'\]: got 'float64' .* expected float32"),
        (good | {"x": np.ones((2, 4), "float32")}, r"inputs\['x'\]: got \(2, 4\) .* shape \('batch', 3\)"),
        (good | {"x": np.ones(3, "float32")}, r"inputs\['x'\]: got \(3,\)"),
        (good | {"x": "text"}, r"inputs\['x'\]: this is no float32"),
    ):
        with pytest.raises(ArgumentError, match=message):
            run.run(bad)  # type: ignore[arg-type]  # on purpose


def test_a_failing_run_says_why(ctx: tz.Context) -> None:
    run = session(ctx, ADD_MUL)
    with pytest.raises(BackendError, match="broadcast") as caught:
        run.run({"x": np.ones((2, 3), "float32"), "y": np.ones((5, 3), "float32")})
    assert (caught.value.backend, caught.value.call) == ("onnxruntime", "run")
    assert caught.value.symbol


def test_models_that_cannot_be_loaded_say_why(ctx: tz.Context, tmp_path: Path) -> None:
    for broken in (tmp_path / "absent.onnx", b"no model at all", ADD_MUL[:-20]):
        with pytest.raises(BackendError, match="the model cannot be loaded") as caught:
            session(ctx, broken)
        assert caught.value.call == "load"
    with pytest.raises(ArgumentError, match="arena: got 'large'"):
        session(ctx, ADD_MUL, arena="large")  # type: ignore[arg-type]  # on purpose


def test_closed_ones_refuse(ctx: tz.Context) -> None:
    with session(ctx, ADD_MUL) as run:
        run.run(inputs())
    run.close()
    assert "closed" in repr(run)
    with pytest.raises(ClosedError):
        run.run(inputs())
    other = tz.context("cpu")
    run = session(other, ADD_MUL)
    other.close()
    with pytest.raises(ClosedError):
        run.run(inputs())


def test_devices_that_run_no_host_functions_are_refused() -> None:
    class Device:
        name = "npu:0"

        class capabilities:
            host_functions = False

    class Stub:
        device = Device

    stub: Any = Stub()
    with pytest.raises(UnsupportedError, match="CPU context"):
        session(stub, ADD_MUL)


def test_a_missing_runtime_is_named(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match="pip install onnxruntime"):
        session(ctx, ADD_MUL)


# Memory ------------------------------------------------------------------------------------------------------------


def test_the_limit_binds_outputs() -> None:
    with tz.open("cpu", memory_limit="1KiB") as ctx:
        run = session(ctx, EXPAND)
        assert ctx.to_numpy(run.run({"x": [1.0], "shape": [10]})["total"]) == 10
        with pytest.raises(OutOfMemoryError) as caught:
            run.run({"x": [1.0], "shape": [10_000]})
        assert caught.value.limit == 1024
        assert ctx.to_numpy(run.run({"x": [1.0], "shape": [10]})["total"]) == 10


def test_the_models_size_is_charged_while_it_is_open() -> None:
    with tz.open("cpu", memory_limit=2 * len(EXPAND)) as ctx:
        first = session(ctx, EXPAND)
        assert ctx.memory.stats().live == len(EXPAND)
        assert ctx.memory.holders()[0][0] == "a model's weights"
        with session(ctx, EXPAND), pytest.raises(OutOfMemoryError, match="a model's weights"):
            session(ctx, EXPAND)
        with pytest.raises(BackendError, match="cannot be loaded"):
            session(ctx, EXPAND[:-20])
        assert ctx.memory.stats().live == len(EXPAND)
        del first
        gc.collect()
        assert ctx.memory.stats().live == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize("arena", ["none", "keep"])
def test_its_own_out_of_memory_is_ours(arena: str) -> None:
    program = f"""
        import resource
        import onnxruntime as ort
        import tazza as tz
        from tazza.adapters.onnxruntime import OnnxruntimeAdapter, session
        from tests.unit.test_adapter_onnxruntime import EXPAND

        with tz.open("cpu") as ctx:
            run = session(ctx, EXPAND, arena={arena!r})
            used = int(open("/proc/self/statm").read().split()[0]) * 4096
            resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
            try:
                run.run({{"x": [1.0], "shape": [1 << 34]}})
            except tz.OutOfMemoryError as error:
                print(error.backend, error.call, OnnxruntimeAdapter(ort).is_out_of_memory(error.__cause__))
            print(ctx.to_numpy(run.run({{"x": [1.0], "shape": [10]}})["total"]).item())
    """
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.stdout.splitlines() == ["onnxruntime run True", "10.0"], done.stderr


def test_other_errors_are_not_out_of_memory() -> None:
    known = OnnxruntimeAdapter(ort)
    assert not known.is_out_of_memory(MemoryError("bad allocation"))
    assert not known.is_out_of_memory(RuntimeError("bad allocation"))
    assert isinstance(adapter._error(MemoryError(), "run", "no memory"), OutOfMemoryError)
