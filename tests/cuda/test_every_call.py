"""Every call that the backend makes of the driver fails once, at its first, second and last time, or every time."""

from __future__ import annotations

import pytest

from tests.cuda.conftest import Child

USED = {"cuMemAlloc", "cuMemFree", "cuEventRecord", "cuStreamWaitEvent", "cuMemcpyPeerAsync", "cuCtxPopCurrent"}
USED |= {"cuMemcpy3DAsync", "cuMemcpy3DPeerAsync"}

PARTS = [*(("plain", f"{number}/5") for number in range(1, 6)), *(("sticky", f"{number}/2") for number in (1, 2))]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_whatever_call_fails_the_context_works_on_or_says_that_it_is_lost(
    emulated: Child, kind: str, part: str
) -> None:
    out = emulated("", "-m", "tests.cuda.every_call", kind, part)
    calls = set(out.splitlines()[-1].partition(": ")[2].split())
    assert len(calls) > 30
    assert calls >= USED
