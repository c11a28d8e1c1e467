"""Compare versions by their numbers, and requirements with them."""

from __future__ import annotations

import re

from tazza.util.versions import numbers, same_release

__all__ = ["canonical", "holds", "numbers", "parse_requirement", "same_release"]

_CLAUSE = re.compile(r"\s*(===|==|!=|<=|>=|~=|<|>)\s*v?(\d[\w.*+!-]*)\s*")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")


def parse_requirement(text: str) -> tuple[str, str] | None:
    """The name and the version clauses of a ``Requires-Dist`` entry, or None where an extra asks for it.

    >>> parse_requirement('nvidia-cudnn-cu12 (==9.1.0.70) ; platform_system == "Linux"')
    ('nvidia-cudnn-cu12', '==9.1.0.70')
    """
    match = _REQUIREMENT.match(text)
    if match is None or "extra" in (match[3] or ""):
        return None
    return canonical(match[1]), match[2].strip()


def canonical(name: str) -> str:
    """A distribution's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def holds(clauses: str, version: str) -> bool:
    """Tell whether a version meets requirement clauses; what cannot be read counts as met.

    >>> holds(">=1.26,<3", "2.4.6"), holds("==9.1.*", "9.2.0"), holds("~=2.1", "2.0")
    (True, False, False)
    """
    return all(_holds(match[1], match[2], version) for match in map(_CLAUSE.fullmatch, clauses.split(",")) if match)


def _holds(operator: str, wanted: str, version: str) -> bool:
    want, have = numbers(wanted), numbers(version)
    if wanted.endswith(".*"):
        return (have[: len(want)] == want) == (operator == "==")
    width = max(len(want), len(have))
    left, right = (part + (0,) * (width - len(part)) for part in (have, want))
    if operator == "~=":
        return left >= right and have[: len(want) - 1] == want[:-1]
    return {
        "==": left == right,
        "===": left == right,
        "!=": left != right,
        "<=": left <= right,
        ">=": left >= right,
        "<": left < right,
        ">": left > right,
    }[operator]
