"""Every operation over generated shapes, options and memory layouts: each library gives what the reference does."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tazza as tz
from tazza.dnn import ReferenceDnn
from tazza.dnn.choosing import LIBRARIES, library_named
from tazza.dnn.operations import OPERATIONS
from tazza.errors import BackendUnavailableError
from tests.interop import need
from tests.unit.dnn_generated import Call, calls, compare

SETTINGS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = pytest.mark.parametrize("name", OPERATIONS)


def dtypes_of(library: str, name: str) -> st.SearchStrategy[str]:
    """The dtypes that a library has an operation for; skips the test where there is none."""
    try:
        found = library_named(library)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    dtypes = [dtype for dtype in ("float32", "float64") if found.supports(name, dtype=dtype)]
    if not dtypes:
        pytest.skip(f"{library} lacks {name}")
    return st.sampled_from(dtypes)


@pytest.mark.parametrize("library", LIBRARIES)
@NAMES
def test_values_are_the_references_whatever_the_layouts(name: str, library: str) -> None:
    dtypes = dtypes_of(library, name)
    with tz.open("cpu", seed=0, dnn=library) as ctx:

        @SETTINGS
        @given(calls((name,)), dtypes)
        def check(call: Call, dtype: str) -> None:
            compare(call, ctx.dnn, dtype)

        check()


@NAMES
def test_the_reference_takes_any_layout_itself(name: str) -> None:
    @SETTINGS
    @given(calls((name,)), st.sampled_from(["float32", "float64"]))
    def check(call: Call, dtype: str) -> None:
        compare(call, ReferenceDnn(xp), dtype)

    check()


@pytest.mark.interop
@NAMES
def test_tensors_of_any_layout_are_taken(name: str) -> None:
    torch: Any = need("torch")
    with tz.open("cpu", seed=0, arrays="torch", dnn="reference") as ctx:

        @SETTINGS
        @given(calls((name,), ("rows", "channels last", "columns", "gaps", "inside")), dtypes_of("reference", name))
        def check(call: Call, dtype: str) -> None:
            compare(call, ctx.dnn, dtype, torch.from_numpy)

        check()
