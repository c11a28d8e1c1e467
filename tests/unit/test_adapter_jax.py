"""The adapter for JAX."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

import tazza as tz
from tazza.adapters.jax import JaxAdapter
from tests.interop import need

jax = need("jax")
pytestmark = pytest.mark.interop


def test_the_cpu_is_this_threads_default_device_inside() -> None:
    seen = []

    def look() -> None:
        seen.append(jax.config.jax_default_device)

    before = jax.config.jax_default_device
    with tz.open("cpu") as ctx, ctx.bind():
        assert jax.config.jax_default_device == "cpu"
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(10)
    assert jax.config.jax_default_device == before
    assert seen == [before]
    with tz.open("sim:0") as sim:
        assert JaxAdapter(jax).bind(sim) is None


def test_nothing_is_initialised_by_binding_or_looking() -> None:
    code = (
        "import jax, tazza as tz\n"
        "from tazza.core.adapter import adapters\n"
        "with tz.open('cpu') as ctx, ctx.bind(): pass\n"
        "(adapter,) = [one for one in adapters() if one.name == 'jax']\n"
        "print(adapter.memory(ctx.device))\n"
        "print(jax._src.xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == ["None", "False"]


def test_live_arrays_are_counted_once() -> None:
    adapter, cpu = JaxAdapter(jax), tz.device("cpu")
    jax.numpy.zeros(1).block_until_ready()
    before = adapter.memory(cpu)
    x = jax.numpy.zeros(1 << 18, "float32").block_until_ready()
    during = adapter.memory(cpu)
    assert before is not None
    assert during is not None
    assert during.live - before.live == x.nbytes == 1 << 20
    assert adapter.memory(tz.device("sim:0")) is None
    del x


def test_out_of_memory_is_recognised() -> None:
    adapter = JaxAdapter(jax)
    with pytest.raises(RuntimeError) as caught:
        jax.numpy.ones((1 << 40, 4)).block_until_ready()
    assert adapter.is_out_of_memory(caught.value)
    assert not adapter.is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED"))
