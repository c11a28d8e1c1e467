"""Versions by their numbers."""

from __future__ import annotations

import re

__all__ = ["numbers", "same_release"]


def numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version.

    >>> numbers("2.13.0+cpu"), numbers("9.1.0rc1"), numbers("none")
    ((2, 13, 0), (9, 1, 0), ())
    """
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, match[1].split("."))) if match else ()


def same_release(one: str, other: str) -> bool:
    """Tell whether two versions agree in the numbers that both state; one that states none agrees with all.

    >>> same_release("9.1.0.70", "9.1.0"), same_release("9.1.0", "9.2.0")
    (True, False)
    """
    return all(a == b for a, b in zip(numbers(one), numbers(other), strict=False))
