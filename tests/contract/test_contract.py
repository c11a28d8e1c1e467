"""The contract battery inside the normal run, on every setting of ``conftest.py``."""

from __future__ import annotations

from types import ModuleType
from typing import cast

import pytest

import tazza as tz
from tazza.spi import Level
from tazza.testing.contract import (
    level_1_strided,
    level_1_transport,
    level_1_waist,
    level_2_kernels,
    level_3_arrays,
    level_4_dnn,
    levels_declared,
)
from tazza.testing.contract.battery import Target, note_outcome
from tazza.testing.contract.level_1_strided import *  # noqa: F403
from tazza.testing.contract.level_1_transport import *  # noqa: F403
from tazza.testing.contract.level_1_waist import *  # noqa: F403
from tazza.testing.contract.level_2_kernels import *  # noqa: F403
from tazza.testing.contract.level_3_arrays import *  # noqa: F403
from tazza.testing.contract.level_4_dnn import *  # noqa: F403
from tazza.testing.contract.levels_declared import *  # noqa: F403

FILES = (level_1_transport, level_1_waist, level_1_strided, level_2_kernels, level_3_arrays, level_4_dnn)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__.rpartition(".")[2])
def test_no_test_of_the_battery_is_hidden_by_another(file: ModuleType) -> None:
    tests = {name: member for name, member in vars(file).items() if name.startswith("test_")}
    assert tests
    assert all(globals()[name] is test for name, test in tests.items())


def test_a_skip_that_is_not_declared_is_found() -> None:
    target = Target(tz.device("cpu"))
    target.outcomes["reported"] = level_1_transport.test_memory_is_reported, "did not feel like it"
    with pytest.raises(AssertionError):
        levels_declared.test_skips_equal_the_declaration(target)


def test_a_declared_skip_that_did_not_happen_is_found() -> None:
    target = Target(tz.device("cpu"))
    target.outcomes["queue"] = level_1_transport.test_a_queue_keeps_its_order, None
    with pytest.raises(AssertionError):
        levels_declared.test_skips_equal_the_declaration(target)


def test_a_level_that_is_not_declared_is_skipped() -> None:
    class Modest:
        name = "modest:0"
        capabilities = tz.device("cpu").capabilities._replace(level=Level.KERNELS)

    target = Target(cast(tz.Device, Modest()))
    assert target.missing(level_2_kernels.test_results_are_passed_on) is None
    assert "declares the level kernels" in str(target.missing(level_3_arrays.test_arrays_compute))


def test_a_skip_for_another_reason_becomes_a_failure(target: Target, request: pytest.FixtureRequest) -> None:
    where = ("file", 1, "Skipped: did not feel like it")
    report = pytest.TestReport(request.node.nodeid, ("file", 1, "test"), {}, "skipped", where, "call")
    note_outcome(request.node, report)
    target.outcomes.pop(request.node.originalname)
    assert report.failed
    assert "did not feel like it" in str(report.longrepr)
