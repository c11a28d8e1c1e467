"""Every operation over generated shapes, options and memory layouts: plans of the reference against the reference."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tazza as tz
from tazza.dnn import ReferenceDnn
from tazza.dnn.operations import OPERATIONS
from tests.interop import need
from tests.unit.dnn_generated import Call, calls, compare

DTYPES = st.sampled_from(["float32", "float64"])
SETTINGS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = pytest.mark.parametrize("name", OPERATIONS)


@NAMES
def test_plans_and_the_reference_agree_whatever_the_layouts(name: str) -> None:
    with tz.open("cpu", seed=0, dnn="reference") as ctx:

        @SETTINGS
        @given(calls((name,)), DTYPES)
        def check(call: Call, dtype: str) -> None:
            compare(call, ctx.dnn, dtype)
            compare(call, ReferenceDnn(xp), dtype)

        check()


@pytest.mark.interop
@NAMES
def test_tensors_of_any_layout_are_taken(name: str) -> None:
    torch: Any = need("torch")
    with tz.open("cpu", seed=0, arrays="torch", dnn="reference") as ctx:

        @SETTINGS
        @given(calls((name,), ("rows", "channels last", "columns", "gaps", "inside")), DTYPES)
        def check(call: Call, dtype: str) -> None:
            compare(call, ctx.dnn, dtype, torch.from_numpy)

        check()
