"""Every operation through plans of the reference equals the reference itself: values, dtypes, layouts, tasks."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest

import tazza as tz
from tazza.dnn import Dnn, PlannedDnn, ReferenceDnn, ReferenceLibrary, operations
from tazza.dnn.operations import OPERATIONS
from tazza.errors import UsageError
from tests.unit.dnn_cases import CASES, Array

TIMEOUT = 20.0
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
OPERATION = pytest.mark.parametrize("name", OPERATIONS)


def flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, tuple) else [result]


def expected(name: str, dtype: str) -> list[Array]:
    case = CASES[name]
    return flat(case.call(ReferenceDnn(xp), *case.inputs(dtype)))


def test_every_operation_has_a_case_and_a_method() -> None:
    assert set(CASES) == set(OPERATIONS)
    library = ReferenceLibrary()
    for name in OPERATIONS:
        assert callable(getattr(PlannedDnn, name.replace(".", "_")))
        assert library.supports(name, dtype="float64")
        assert not library.supports(name, dtype="float16")


@DTYPES
@OPERATION
def test_results_are_those_of_the_reference(name: str, dtype: str) -> None:
    case = CASES[name]
    inputs = case.inputs(dtype)
    before = [one.tobytes() for one in inputs]
    with tz.open("cpu", seed=0, dnn="reference") as ctx:
        for _ in range(2):  # the second call finds the plan
            results = flat(case.call(ctx.dnn, *(ctx.asarray(one, copy=True) for one in inputs)))
            for one, wanted in zip(results, expected(name, dtype), strict=True):
                assert (one.dtype, one.shape) == (wanted.dtype, wanted.shape)
                np.testing.assert_array_equal(one, wanted)
                assert not any(np.shares_memory(one, given) for given in inputs)
        direct = flat(case.call(ctx.dnn, *inputs))
    assert len(direct) == len(results)
    assert before == [one.tobytes() for one in inputs], "arguments are never changed"


@OPERATION
def test_strides_carry_the_layout(name: str) -> None:
    """Channels last, transposed and with gaps: the values are the same, and images stay channels last."""
    case = CASES[name]
    inputs = case.inputs("float64")
    last = [np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, 3)), 3, 1) if x.ndim == 4 else x for x in inputs]
    turned = [np.asfortranarray(x) for x in inputs]
    gaps = [np.repeat(x, 2, axis=-1)[..., ::2] for x in inputs]
    backwards = [np.ascontiguousarray(x[::-1])[::-1] for x in inputs]
    with tz.open("cpu", seed=0, dnn="reference") as ctx:
        for given in (last, turned, gaps, backwards):
            results = flat(case.call(ctx.dnn, *given))
            for one, wanted in zip(results, expected(name, "float64"), strict=True):
                np.testing.assert_allclose(one, wanted, rtol=1e-12, atol=1e-13)
            if given is last and results[0].ndim == 4:
                assert results[0].transpose(0, 2, 3, 1).flags.c_contiguous


@DTYPES
@OPERATION
def test_tasks_on_a_simulated_device_compute_the_same(name: str, dtype: str) -> None:
    case = CASES[name]
    with tz.open("sim:0", seed=0, dnn="reference") as ctx:
        arrays = [ctx.asarray(one) for one in case.inputs(dtype)]
        task = ctx.launch(lambda *given: tuple(flat(case.call(tz.current().dnn, *given))), *arrays)
        results = [ctx.to_numpy(one) for one in task.result(timeout=TIMEOUT)]
    for one, wanted in zip(results, expected(name, dtype), strict=True):
        assert one.dtype == wanted.dtype
        np.testing.assert_array_equal(one, wanted)


def test_the_host_cannot_compute_on_a_device_with_memory_of_its_own() -> None:
    with tz.open("sim:0", seed=0) as ctx:
        x = ctx.asarray(np.ones(3, "float32"))
        with pytest.raises(UsageError, match="put the operations into a function"):
            ctx.dnn.dropout(x, 0.5, ctx.random)
        with pytest.raises(UsageError, match="put the operations into a function"):
            ctx.dnn.activate(x, "gelu")


@pytest.mark.parametrize("kind", ["relu", "gelu"])
def test_a_library_sees_only_what_the_gradient_follows_from(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    compiled = ReferenceLibrary.compile

    def compile_seen(self: ReferenceLibrary, operation: Any, choice: Any) -> Any:
        seen.append(operation.inputs)
        return compiled(self, operation, choice)

    monkeypatch.setattr(ReferenceLibrary, "compile", compile_seen)
    with tz.open("cpu", seed=0, dnn="reference") as ctx:
        x = np.ones((1, 7, 3))  # of a shape that has no plan yet
        ctx.dnn.activate_backward(x, kind, x=x, y=x)
    [inputs] = seen
    assert [one is None for one in inputs] == ([False, True, False] if kind == "relu" else [False, False, True])


def test_options_are_written_out_for_libraries() -> None:
    x = np.ones((1, 2, 4, 4))
    with tz.open("cpu", seed=0, dnn="reference") as ctx:
        plan = ctx.dnn.plan("avg_pool2d", x, window=2, stride=None, padding=0, count_padding=None)
        assert plan.operation.options == ((2, 2), (2, 2), (0, 0), True)
        plan = ctx.dnn.plan("batch_norm", x, x[0, :, 0, 0], x[0, :, 0, 0], epsilon=1)
        assert plan.operation.options == (1.0,)
        assert [one.shape for one in plan.operation.outputs if one is not None] == [x.shape, (2,), (2,)]
        plan = ctx.dnn.plan("dropout", x, x > 0, rate=np.float32(0.5))
        assert plan.operation.options == (0.5,)
        assert [one.dtype for one in plan.operation.inputs if one is not None] == ["float64", "bool"]


def test_what_is_left_out_by_mistake_is_named() -> None:
    x = np.ones((2, 2))
    with tz.open("cpu", seed=0, dnn="reference") as ctx:
        for name, given, argument in (
            ("matmul", (x, None, None), "b"),
            ("softmax.backward", (None, x), "dy"),
            ("layer_norm", (x, None, x), "gamma"),
            ("batch_norm.backward", (x, x, x[0], None, x[0]), "mean"),
            ("dropout", (x, None), "mask"),
        ):
            options: dict[str, Any] = (
                {"activation": None} if name == "matmul" else {"rate": 0.5} if name == "dropout" else {}
            )
            options |= {"epsilon": 1e-5} if "norm" in name else {}
            with pytest.raises(tz.errors.ArgumentError, match=rf"^{argument}: got None .*, expected an array"):
                ctx.dnn.plan(name, *given, **options)


def rows_of(text: str) -> dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]]:
    """The table of operations in a text: inputs, outputs as written, options."""
    rows = {}
    before: tuple[tuple[str, ...], str, tuple[str, ...]] = ((), "", ())
    for name, inputs, outputs, options in re.findall(
        r"^\| `+([a-z0-9_.]+)`+ \|(.*)\|(.*)\|(.*)\|$", text, re.MULTILINE
    ):
        same = options.strip() == "the same"
        listed = before[2] if same else tuple(options.replace(",", " ").split())
        rows[name] = before = (tuple(inputs.replace(",", " ").split()), outputs.strip(), listed)
    return rows


def test_the_table_of_the_guide_and_of_the_module_are_the_operations() -> None:
    guide = rows_of((Path(__file__).parents[2] / "docs/guides/dnn.md").read_text("utf-8"))
    documented = rows_of(str(operations.__doc__))
    assert guide == documented
    assert list(guide) == list(OPERATIONS)
    for name, (inputs, outputs, options) in guide.items():
        kind, case = OPERATIONS[name], CASES[name]
        assert tuple(one.rstrip("?") for one in inputs) == kind.inputs
        assert options == kind.options
        if name != "dropout":
            parameters = inspect.signature(getattr(Dnn, name.replace(".", "_"))).parameters
            assert set(parameters) - {"self", "need_dx"} == {*kind.inputs, *kind.options}
            for one in inputs:
                assert (parameters[one.rstrip("?")].default is None) == one.endswith("?")
        if not name.startswith(("activate", "dropout")):
            assert len(flat(case.call(ReferenceDnn(xp), *case.arrays))) == len(outputs.split(","))
