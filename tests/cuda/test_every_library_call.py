"""Every call that tazza makes of cuBLAS, cuDNN and cuRAND fails once, at its first, second and last time, or always."""

from __future__ import annotations

import pytest

from tests.cuda.conftest import Child

USED = {"cublasSetWorkspace", "cudnnConvolutionForward", "cudnnDestroyTensorDescriptor", "curandSetStream"}

PARTS = [*(("plain", f"{number}/4") for number in (1, 2, 3, 4)), ("sticky", "1/2"), ("sticky", "2/2")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_whatever_call_fails_the_context_works_on_or_says_that_it_is_lost(
    emulated: Child, kind: str, part: str
) -> None:
    out = emulated("", "-m", "tests.cuda.every_library_call", kind, part, libraries=True)
    calls = set(out.splitlines()[-1].partition(": ")[2].split())
    assert len(calls) > 30
    assert calls >= USED
