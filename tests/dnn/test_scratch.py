"""Scratch memory that two executions share, as a planted mistake, in every form: it is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import tazza as tz
from tazza.dnn import DnnState
from tazza.errors import UsageError
from tazza.testing import simulate
from tests.dnn.forms import DEVICES, library_of, pattern_plan, wrapper_of
from tests.dnn.pattern import TIMEOUT


@pytest.fixture(params=DEVICES)
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    with simulate(devices=1), tz.open(request.param) as ctx:
        yield ctx


def test_scratch_that_two_calls_share_is_found(ctx: tz.Context) -> None:
    """The mistake that leases keep away, planted: a second call between a first one's writing and its reading."""
    library = library_of(ctx, "shared scratch")
    wrapper = wrapper_of(ctx, library)
    first, second = pattern_plan(library, 1000), pattern_plan(library, 1000)

    def execute(plan: Any, state: DnnState, lease: Any) -> None:
        plan.execute(state, (), lease)

    def inside(shared: bool) -> None:
        def intrude(one: DnnState, lease: Any) -> None:
            def use(two: DnnState) -> None:
                own = two.workspace
                if not shared:
                    with own.get(1000) as other:
                        execute(second, two, other)
                    return
                with pytest.raises(UsageError, match="another state's"):
                    execute(second, two, lease)
                two.workspace = one.workspace
                try:
                    execute(second, two, lease)
                finally:
                    two.workspace = own

            wrapper.with_state(1, use)

        def begin(one: DnnState) -> None:
            with one.workspace.get(1000) as lease:
                first.between = lambda: intrude(one, lease)
                execute(first, one, lease)

        wrapper.with_state(0, begin)

    for shared in (False, True):
        ctx.launch(inside, shared).result(timeout=TIMEOUT)
        ctx.synchronize(TIMEOUT)
        assert bool(first.overwritten) == shared
        assert not second.overwritten
    wrapper.close(TIMEOUT)
    assert library.opened == library.closed
