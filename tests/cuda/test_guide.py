"""The pages whose snippets need a CUDA device: run on emulated ones, each in a child of its own."""

from __future__ import annotations

import pytest

from tests.cuda.conftest import Child
from tests.test_docs import DOCS, ON_THE_EMULATOR


@pytest.mark.parametrize("page", ON_THE_EMULATOR, ids=lambda page: str(page.relative_to(DOCS)))
def test_snippets_run_on_emulated_devices(emulated: Child, page: object) -> None:
    emulated(f"from pathlib import Path\nfrom tests.test_docs import run_snippets\nrun_snippets(Path({str(page)!r}))")


def test_doctor_says_that_the_driver_is_an_emulator(emulated: Child) -> None:
    said = emulated("", "-m", "tazza", "doctor")
    assert "CUDA emulator   stands in for NVIDIA's driver, fine" in said
    assert "NVIDIA driver " not in said
