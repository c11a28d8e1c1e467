"""Faults to inject, as values and as text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

OPERATIONS = ("kernel", "copy", "fill", "host", "event", "wait", "alloc", "free", "graph")

_TARGET = re.compile(r"cu(?:dnn|blas|rand)?[A-Z]\w*|@(" + "|".join(OPERATIONS) + ")")
_WHEN = re.compile(r"\*|[1-9]\d*\+?|p=(0(\.\d+)?|\.\d+|1(\.0+)?)")
_ERROR = re.compile(r"[A-Z][A-Z0-9_]*|[1-9]\d*")


@dataclass(frozen=True)
class Fault:
    """One rule: which call or operation fails, when, and how.

    Attributes:
        target: a call of the driver (``cuMemAlloc`` stands for each of its versions), which then answers with the error
            and does nothing; or ``@`` and a kind of operation on a stream (``@kernel``, ``@copy``, ...), which then
            fails asynchronously and breaks its context, as on hardware. Calls of the emulated libraries
            (``cudnnCreate``) answer with a status of their own.
        when: ``2`` the second time, ``"2+"`` from the second on, ``"*"`` always, ``"p=0.01"`` at random under the seed.
        error: its name, with or without ``CUDA_ERROR_``, or its number.
        device: the ordinal of the only device that it concerns.
        sticky: whether the error of a call breaks the context too.
    """

    target: str
    when: int | str
    error: int | str
    device: int | None = None
    sticky: bool = False

    def __post_init__(self) -> None:
        if not _TARGET.fullmatch(self.target):
            kinds = " ".join(f"@{kind}" for kind in OPERATIONS)
            raise ValueError(f"target is {self.target!r}; expected a call such as cuMemAlloc, or one of {kinds}")
        if not _WHEN.fullmatch(str(self.when)):
            raise ValueError(f"when is {self.when!r}; expected 2, '2+', '*' or 'p=0.01'")
        object.__setattr__(self, "error", str(self.error).removeprefix("CUDA_ERROR_"))
        if not _ERROR.fullmatch(str(self.error)):
            raise ValueError(f"error is {self.error!r}; expected a name such as OUT_OF_MEMORY, or a number")
        object.__setattr__(self, "when", str(self.when))

    def __str__(self) -> str:
        device = "" if self.device is None else f":device={self.device}"
        return f"{self.target}:{self.when}:{self.error}{device}{':sticky' if self.sticky else ''}"

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Reads ``target:when:error[:device=N][:sticky]``.

        Raises:
            ValueError: the text is not of this form.
        """
        target, _, rest = text.strip().partition(":")
        when, _, rest = rest.partition(":")
        error, *options = rest.split(":")
        device: int | None = None
        sticky = False
        for option in options:
            if option == "sticky":
                sticky = True
            elif re.fullmatch(r"device=\d+", option):
                device = int(option.removeprefix("device="))
            else:
                raise ValueError(f"{option!r} in the fault {text!r}; expected device=N or sticky")
        return cls(target, when, error, device, sticky)


def faults_of(given: str | Fault | Iterable[str | Fault]) -> tuple[Fault, ...]:
    """Faults however they are given: a text with ``;`` between them, a Fault, or several of either.

    Raises:
        ValueError: a text cannot be read.
    """
    if isinstance(given, Fault):
        return (given,)
    if isinstance(given, str):
        return tuple(Fault.parse(item) for item in given.split(";") if item.strip())
    return tuple(fault for item in given for fault in faults_of(item))


def text_of(faults: Iterable[Fault]) -> str:
    """The form that the library reads."""
    return ";".join(str(fault) for fault in faults)
