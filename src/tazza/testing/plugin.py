"""pytest plugin: the fixture ``tazza_ctx``, the options of the test tools, and the collection of the contract battery.

pytest loads it wherever tazza is installed, so it imports nothing but pytest until a test asks for something.

| option | meaning | default |
|---|---|---|
| ``--tazza-backend=NAME`` | backend or device for ``tazza_ctx`` and the battery; may be repeated | every usable one |
| ``--tazza-seed=N`` | seed of ``tazza_ctx`` and of simulated devices | 0 |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tazza.core.context import Context

__all__ = ["backend_names", "seed_of", "tazza_ctx"]

_CONTRACT = Path(__file__).parent / "contract"

pytest.register_assert_rewrite("tazza.testing.contract")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    group = parser.getgroup("tazza")
    group.addoption(
        "--tazza-backend",
        action="append",
        metavar="NAME",
        help="backend or device for tazza_ctx and the contract battery, for example sim or cpu:0; may be repeated",
    )
    group.addoption("--tazza-seed", type=int, default=0, metavar="N", help="seed of contexts and simulated devices")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say the seed where it is not the default."""
    seed = seed_of(config)
    return f"tazza: seed {seed}" if seed else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that asks for ``tazza_ctx`` on each backend."""
    if "tazza_ctx" in metafunc.fixturenames:
        metafunc.parametrize("tazza_ctx", backend_names(metafunc.config), indirect=True)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect the battery, whose files are named by level, for ``pytest --pyargs tazza.testing.contract``."""
    by_itself = parent.session.isinitpath(file_path)  # named on the command line: pytest takes it anyway
    if file_path.parent == _CONTRACT and file_path.name.startswith("level") and not by_itself:
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture
def tazza_ctx(request: pytest.FixtureRequest) -> Iterator[Context]:
    """An open, entered context, on the CPU, on one of two fresh simulated devices, and on what else is usable.

    Closed after the test, which fails where a task failed and nobody asked.
    """
    from tazza.core.opening import open as open_context
    from tazza.testing.simulation import simulate

    seed = seed_of(request.config)
    with simulate(devices=2, seed=seed), open_context(request.param, seed=seed) as ctx:
        yield ctx


def backend_names(config: pytest.Config) -> list[str]:
    """The devices to run on: as ``--tazza-backend`` says, else the first of every usable backend that computes."""
    chosen: list[str] | None = config.getoption("--tazza-backend")
    if chosen:
        return chosen

    from tazza.core.device import devices

    # Where arrays are Buffers without arithmetic, a test that computes with operators could only fail.
    return [one.name for one in devices() if one.ordinal == 0 and one.capabilities.array_libraries[:1] != ("buffers",)]


def seed_of(config: pytest.Config) -> int:
    """The seed as ``--tazza-seed`` says."""
    return int(config.getoption("--tazza-seed"))
