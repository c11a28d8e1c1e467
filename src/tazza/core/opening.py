"""How contexts are made."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Any, cast

from tazza.core import registry
from tazza.core.budget import Budget
from tazza.core.context import Context
from tazza.core.device import Device, device
from tazza.core.spec import Spec
from tazza.errors import ArgumentError, WrongDeviceError
from tazza.hot import Account

__all__ = ["context", "open"]


def context(what: str | Device | Spec = "auto", *, within: Context | Budget | None = None, **options: Any) -> Context:
    """Make a context; it is not current until entered and must be closed (see `open` for both at once).

    Args:
        what: a device's name, a `Device`, ``"auto"``, or the `Spec` of another context.
        within: a budget, or another context, in which everything that this one holds counts too, so that one limit
            binds several devices that share a memory: the parts of a CPU, for example. It is no part of the spec.
        **options: the other fields of `Spec`: seed, memory_limit, arrays, pool, transfer, deterministic, max_queued.

    Raises:
        ArgumentError: an unknown device or option.
        BackendUnavailableError: the backend cannot be used here; says why and what to install.
        WrongDeviceError: `within` counts another memory than the device's.
        ClosedError: the context of `within` is closed.
    """
    if isinstance(what, Spec):
        chosen, spec = device(what.device), replace(what, **options)
    else:
        chosen = device(what)
        spec = Spec.of(chosen, options)
    name = f"context.{chosen.kind}"
    kind = registry.load(name) if registry.known(name) else Context
    return cast(Context, kind(spec, chosen, None if within is None else _account_above(within, chosen)))


def _account_above(within: Context | Budget, chosen: Device) -> Account:
    if not isinstance(within, (Context, Budget)):
        raise ArgumentError.of("within", within, "a context or a budget")
    owner = within if isinstance(within, Context) else within.context
    owner._check_open()
    if owner.device.memory_domain != chosen.memory_domain:
        raise WrongDeviceError(
            f"{within!r} counts the memory of {owner.device}, and {chosen} has another; "
            f"give its context a memory_limit of its own"
        )
    return within.account


class open:
    """Make a context, enter it, and close it on the way out: ``with tz.open("cpu", seed=7) as ctx:``.

    Takes the arguments of `context`. Where the body raises, the context is closed too and its own failures become
    notes on the exception.

    >>> import tazza as tz
    >>> with tz.open("cpu", seed=7) as ctx:
    ...     tz.current() is ctx
    True
    >>> ctx.is_closed
    True
    """

    def __init__(
        self, what: str | Device | Spec = "auto", *, within: Context | Budget | None = None, **options: Any
    ) -> None:
        self._context = context(what, within=within, **options)

    def __enter__(self) -> Context:
        return self._context.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._context.__exit__(exc_type, exc, None)
        finally:
            del traceback  # whoever keeps an error that is raised here keeps this frame
            self._close(exc)

    def _close(self, exc: BaseException | None) -> None:
        try:
            self._context.close()
        except Exception as failure:
            if exc is None:
                raise
            exc.add_note(f"closing {self._context!r} also failed: {type(failure).__name__}: {failure}")
