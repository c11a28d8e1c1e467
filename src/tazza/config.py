"""Every environment variable of the package, parsed and checked here and nowhere else.

| variable | meaning | default |
|---|---|---|
| ``TAZZA_DEVICE`` | device that ``"auto"`` means | cuda, else a SYCL GPU, else cpu |
| ``TAZZA_WAIT_TIMEOUT`` | seconds that a wait without a ``timeout=`` may take | 60 |
| ``TAZZA_EXIT_TIMEOUT`` | seconds that interpreter exit drains unfinished work | 5 |
| ``TAZZA_SIM_DEVICES`` | number of simulated devices | 2 |
| ``TAZZA_SIM_MEMORY`` | memory of each, for example ``512MiB`` | 1GiB |
| ``TAZZA_SIM_SEED`` | seed of the lateness of their queues | 0 |
| ``TAZZA_SIM_LATENESS`` | longest delay of an operation in microseconds | 100 |
| ``TAZZA_SIM_WITHOUT`` | abilities switched off, comma-separated | none |

They are read when first needed, so that a program may set them before it makes its first context.
"""

from __future__ import annotations

import os

from tazza.errors import ArgumentError
from tazza.util.text import parse_nbytes

__all__ = [
    "device",
    "exit_timeout",
    "sim_devices",
    "sim_lateness",
    "sim_memory",
    "sim_seed",
    "sim_without",
    "wait_timeout",
]


def device() -> str | None:
    """The device that ``"auto"`` means, or None where the environment does not say."""
    return os.environ.get("TAZZA_DEVICE") or None


def wait_timeout() -> float:
    """Seconds that a wait may take where the caller gave no timeout."""
    return _number("TAZZA_WAIT_TIMEOUT", 60.0)


def exit_timeout() -> float:
    """Seconds that interpreter exit may spend on draining."""
    return _number("TAZZA_EXIT_TIMEOUT", 5.0)


def sim_devices() -> int:
    """Number of simulated devices."""
    return int(_number("TAZZA_SIM_DEVICES", 2))


def sim_memory() -> int:
    """Bytes of memory of each simulated device."""
    return parse_nbytes(os.environ.get("TAZZA_SIM_MEMORY") or 2**30, argument="TAZZA_SIM_MEMORY")


def sim_seed() -> int:
    """Seed of the lateness of simulated queues."""
    return int(_number("TAZZA_SIM_SEED", 0))


def sim_lateness() -> float:
    """Longest delay of a simulated operation in seconds."""
    return _number("TAZZA_SIM_LATENESS", 100.0) * 1e-6


def sim_without() -> frozenset[str]:
    """Abilities that simulated devices do not have."""
    text = os.environ.get("TAZZA_SIM_WITHOUT", "")
    return frozenset(word.strip() for word in text.split(",") if word.strip())


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise ArgumentError.of(variable, text, "a number") from None
    if not 0 <= value < float("inf"):
        raise ArgumentError.of(variable, text, "a finite number that is not negative")
    return value
