"""Whether a device can still be used."""

from __future__ import annotations

from typing import final

from tazza.errors import DeviceLostError

__all__ = ["Health"]


@final
class Health:
    """The health of a context's device, which all its contexts share; true while the device is well.

    A user's own failures never change it. For a readiness probe: ``return 200 if ctx.health else 503``.

    Attributes:
        cause: the first sticky failure with what was in flight, or None.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     bool(ctx.health), ctx.health.status
    (True, 'ok')
    """

    __slots__ = ("cause",)

    def __init__(self, cause: DeviceLostError | None) -> None:
        self.cause = cause

    def __bool__(self) -> bool:
        return self.cause is None

    def __repr__(self) -> str:
        return f"<Health {self.status}{'' if self.cause is None else f': {self.cause}'}>"

    @property
    def status(self) -> str:
        """``"ok"`` or ``"lost"``."""
        return "ok" if self.cause is None else "lost"
