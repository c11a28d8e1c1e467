"""What a context is made from; specs travel, contexts do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tazza.core.device import Device
from tazza.errors import ArgumentError
from tazza.util.text import parse_nbytes

__all__ = ["Spec"]

_TRANSFERS = ("allow", "log", "disallow")


@dataclass(frozen=True)
class Spec:
    """Everything that a context is made from; ``tz.context(spec)`` makes an equal one, in any process.

    Attributes:
        device: the device's name.
        seed: seed of the context's generator; never None in a context's own spec.
        memory_limit: bytes that may be live at once, or None.
        arrays: the array library's name.
        pool: ``"caching"``, ``"direct"``, or ``"driver"``: the vendor's, where the device has one.
        transfer: implicit moves of task results between devices: ``"allow"``, ``"log"`` or ``"disallow"``.
        deterministic: libraries choose algorithms that give equal bits on one machine.
        dnn: the deep-learning library: ``"onednn"``, ``"reference"``, ``"cudnn"``, or ``"auto"``: the best one
            installed for the device, and on hosts the reference for what that one lacks.
        max_queued: submissions that a stream holds before it is full.

    >>> import tazza as tz
    >>> tz.Spec("cpu:0", memory_limit="1KiB").memory_limit
    1024
    """

    device: str
    seed: int | None = None
    memory_limit: int | None = None
    arrays: str = "numpy"
    pool: str = "caching"
    transfer: str = "allow"
    deterministic: bool = False
    max_queued: int = 1024
    dnn: str = "auto"

    def __post_init__(self) -> None:
        if self.memory_limit is not None:
            object.__setattr__(self, "memory_limit", parse_nbytes(self.memory_limit, argument="memory_limit"))
        if self.transfer not in _TRANSFERS:
            raise ArgumentError.of("transfer", self.transfer, f"one of {', '.join(_TRANSFERS)}")
        if isinstance(self.max_queued, bool) or not isinstance(self.max_queued, int) or self.max_queued < 1:
            raise ArgumentError.of("max_queued", self.max_queued, "a positive integer")
        if not isinstance(self.deterministic, bool):
            raise ArgumentError.of("deterministic", self.deterministic, "True or False")

    @classmethod
    def of(cls, chosen: Device, options: Mapping[str, Any]) -> Spec:
        """The spec of a context on a device, from the options that a user gave; None stands for the default."""
        names = [name for name in cls.__dataclass_fields__ if name != "device"]
        if unknown := sorted(set(options) - set(names)):
            raise ArgumentError(f"unknown option {', '.join(unknown)}; the options are {', '.join(names)}")
        given = {name: value for name, value in options.items() if value is not None}
        return cls(chosen.name, **{"arrays": chosen.capabilities.array_libraries[0], **given})

    def as_dict(self) -> dict[str, Any]:
        """The fields in JSON's types."""
        return asdict(self)
