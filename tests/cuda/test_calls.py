"""The calls of every day, in both forms, on emulated devices."""

from __future__ import annotations

from tests.cuda.conftest import Child

OPTIONS = ("-q", "-n0", "-p", "no:cacheprovider", "-p", "no:randomly", "--strict-markers")


def test_the_tests_inside_pass(emulated: Child) -> None:
    assert " passed" in emulated("", "-m", "pytest", *OPTIONS, "tests/cuda/inside_calls.py")
