"""Specs and devices travel to other processes; contexts and what belongs to them say why they do not."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

import tazza as tz
from tazza.errors import UsageError
from tazza.testing import simulate
from tests.process.children import TIMEOUT


def draw(spec: tz.Spec, device: tz.Device) -> tuple[tz.Spec, str, list[float]]:
    """Make the context that `spec` describes, in a process of its own."""
    with tz.open(spec) as ctx:
        assert ctx.device == device
        return ctx.spec, device.name, ctx.to_numpy(ctx.random.random(4)).tolist()


@pytest.mark.slow
def test_specs_and_devices_travel_to_a_spawned_process() -> None:
    spawn = multiprocessing.get_context("spawn")
    with simulate(devices=2), ProcessPoolExecutor(1, mp_context=spawn) as executor:  # as they are there
        for name in ("cpu", "sim:1"):
            with tz.open(name, memory_limit="1GiB", max_queued=99) as ctx:
                here = ctx.to_numpy(ctx.random.random(4)).tolist()
                there = executor.submit(draw, ctx.spec, ctx.device).result(TIMEOUT)
                assert there == (ctx.spec, ctx.device.name, here)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_spec_keeps_the_entropy_that_was_drawn(protocol: int) -> None:
    with tz.open("cpu") as ctx:
        spec = pickle.loads(pickle.dumps(ctx.spec, protocol))
        assert spec == ctx.spec
        assert spec.seed is not None


@pytest.mark.parametrize("name", ["cpu", "sim:0"])
def test_contexts_refuse_and_say_what_travels(name: str) -> None:
    with tz.open(name) as ctx:
        with pytest.raises(UsageError, match=r"send ctx\.spec and make one there with tz\.context\(spec\)"):
            pickle.dumps(ctx)


@pytest.mark.parametrize("name", ["cpu", "sim:0"])
@pytest.mark.parametrize("what", ["stream", "event", "task", "buffer"])
def test_what_belongs_to_a_context_cannot_travel_either(name: str, what: str) -> None:
    with tz.open(name) as ctx:
        made = {
            "stream": ctx.stream,
            "event": ctx.stream.record(),
            "task": ctx.launch(lambda: 1),
            "buffer": ctx.allocate(8),
        }
        with pytest.raises(UsageError, match="cannot be pickled; (send|wait for it here and send)"):
            pickle.dumps(made[what])
