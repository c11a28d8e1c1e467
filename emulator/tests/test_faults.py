"""Faults: values and their text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuda_emulator import Fault
from cuda_emulator.faults import OPERATIONS, faults_of, text_of

FAULTS = st.builds(
    Fault,
    target=st.sampled_from(["cuMemAlloc", "cuMemFree_v2", *(f"@{kind}" for kind in OPERATIONS)]),
    when=st.one_of(st.integers(1, 10**6), st.sampled_from(["*", "3+", "p=0.25", "p=1"])),
    error=st.one_of(st.integers(1, 999), st.sampled_from(["OUT_OF_MEMORY", "CUDA_ERROR_LAUNCH_FAILED"])),
    device=st.one_of(st.none(), st.integers(0, 15)),
    sticky=st.booleans(),
)


@given(st.lists(FAULTS))
def test_faults_survive_their_text(faults: list[Fault]) -> None:
    assert faults_of(text_of(faults)) == tuple(faults)


def test_forms_that_mean_the_same_are_equal() -> None:
    assert Fault("cuMemAlloc", 2, "CUDA_ERROR_OUT_OF_MEMORY") == Fault.parse("cuMemAlloc:2:OUT_OF_MEMORY")
    assert faults_of(Fault("cuInit", 1, 3)) == faults_of("cuInit:1:3") == faults_of(["cuInit:1:3", ";"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("malloc:1:OUT_OF_MEMORY", "target is 'malloc'"),
        ("@launch:1:OUT_OF_MEMORY", "target is '@launch'.*@kernel"),
        ("cuInit:0:UNKNOWN", "when is '0'"),
        ("cuInit:p=2:UNKNOWN", "when is 'p=2'"),
        ("cuInit:1:", "error is ''"),
        ("cuInit:1:no such", "error is 'no such'"),
        ("cuInit:1:UNKNOWN:device=x", "'device=x'"),
        ("cuInit:1:UNKNOWN:often", "'often'.*sticky"),
    ],
)
def test_a_bad_text_is_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Fault.parse(text)
