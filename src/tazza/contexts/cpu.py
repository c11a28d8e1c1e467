"""The CPU's context."""

from __future__ import annotations

from typing import Any, final

from tazza.core.context import Context
from tazza.core.device import Device, device
from tazza.core.spec import Spec
from tazza.errors import WrongDeviceError
from tazza.hot import Account

__all__ = ["CPUContext"]


@final
class CPUContext(Context):
    """A context on the CPU or on some of its processors: ``tz.CPUContext(seed=7)`` is ``tz.context("cpu", seed=7)``.

    Its own stream is inline: when a call returns, its work is done. Streams from `new_stream` are worker threads that
    run on this device's processors.

    >>> import tazza as tz
    >>> ctx = tz.CPUContext(seed=7)
    >>> len(ctx.cores) >= 1
    True
    >>> ctx.close()
    """

    def __init__(
        self, spec: Spec | None = None, chosen: Device | None = None, above: Account | None = None, /, **options: Any
    ) -> None:
        if spec is None or chosen is None:
            chosen = device(options.pop("device", "cpu"))
            spec = Spec.of(chosen, options)
        if chosen.kind != "cpu":
            raise WrongDeviceError(f"a CPUContext is on the CPU, not on {chosen}; use tz.context({chosen.name!r})")
        super().__init__(spec, chosen, above)

    @property
    def cores(self) -> tuple[int, ...]:
        """The processors on which worker streams of this context run."""
        return self.device.cores
