"""The adapter for Apache Arrow."""

from __future__ import annotations

import numpy as np
import pytest

import tazza as tz
from tazza.adapters.pyarrow import PyarrowAdapter
from tests.interop import need

pa = need("pyarrow")
pytestmark = pytest.mark.interop


def test_its_pool_is_watched_and_trimmed() -> None:
    adapter, cpu = PyarrowAdapter(pa), tz.device("cpu")
    before = adapter.memory(cpu)
    column = pa.array(np.arange(1 << 17)[::2])
    during = adapter.memory(cpu)
    assert before is not None
    assert during is not None
    assert during.live - before.live >= column.nbytes == 1 << 19
    assert pa.default_memory_pool().backend_name in during.note
    del column
    adapter.trim(cpu)
    after = adapter.memory(cpu)
    assert after is not None
    assert after.live == before.live


def test_only_the_host_has_it() -> None:
    adapter, sim = PyarrowAdapter(pa), tz.device("sim:0")
    assert adapter.memory(sim) is None
    adapter.trim(sim)


def test_out_of_memory_is_recognised() -> None:
    adapter = PyarrowAdapter(pa)
    with pytest.raises(MemoryError) as caught:
        pa.allocate_buffer(1 << 60)
    assert adapter.is_out_of_memory(caught.value)
    assert not adapter.is_out_of_memory(MemoryError())
