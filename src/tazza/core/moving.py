"""Bytes that a device's driver moves and fills, as submissions."""

from __future__ import annotations

from typing import Any, final

from tazza.core.event import Event
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.side import Side
from tazza.core.stream import Stream
from tazza.core.strided import moves_between, spread_over
from tazza.core.submission import Submission
from tazza.memory.boxes import Moves
from tazza.spi import CopyKind, Handle

__all__ = ["Fill", "SpreadFill", "Transfer"]


@final
class Transfer(Submission):
    """Bytes moved by the driver."""

    __slots__ = ("_addresses", "_kind", "_moves", "nbytes")

    def __init__(
        self,
        stream: Stream | Runner,
        dst: int,
        src: int,
        nbytes: int,
        kind: CopyKind,
        *,
        needs: tuple[Any, ...] = (),
        holds: tuple[object, ...] = (),
        moves: Moves | None = None,
    ) -> None:
        super().__init__(stream, "copy", needs=needs)
        self._addresses, self.nbytes, self._kind, self.holds = (dst, src), nbytes, kind, holds
        self._moves = moves

    @classmethod
    def of(
        cls,
        stream: Stream | Runner,
        target: Side,
        source: Side,
        kind: CopyKind,
        *,
        needs: tuple[Any, ...] = (),
        holds: tuple[object, ...] = (),
    ) -> Transfer:
        """Everything between two sides; UnsupportedError where the device does not move memory that lies like that."""
        moves = moves_between(target, source, stream.runtime)
        size = target.size
        return cls(stream, target.address, source.address, size, kind, needs=needs, holds=holds, moves=moves)

    def run(self) -> None:
        self.hand_over(None)

    def hand_over(self, queue: Handle | None) -> None:
        for need in self.needs:
            need.raise_outcome()  # what never arrived is not passed on
        runtime = self.stream.runtime
        if self._moves is None:
            runtime.driver.copy(runtime.info, queue, *self._addresses, self.nbytes, self._kind)
        else:
            _hand_over(runtime, queue, self._moves, *self._addresses, self._kind)


def _hand_over(runtime: DeviceRuntime, queue: Handle | None, moves: Moves, dst: int, src: int, kind: CopyKind) -> None:
    starts = [(dst + to, src + of) for to, of in moves.starts()]
    if moves.box.rows > 1:
        runtime.driver.copy_boxes(runtime.info, queue, moves.box, starts, kind)
        return
    for to, of in starts:
        runtime.driver.copy(runtime.info, queue, to, of, moves.box.width, kind)


@final
class Fill(Submission):
    """Bytes filled by the driver."""

    __slots__ = ("_address", "_pattern", "nbytes")

    def __init__(
        self, stream: Stream, address: int, pattern: bytes, nbytes: int, hold: object, needs: tuple[Event, ...]
    ) -> None:
        super().__init__(stream, "fill", needs=needs)
        self._address, self._pattern, self.nbytes = address, pattern, nbytes
        self.holds = (hold,) if stream.runtime.host_addressable else ()

    def run(self) -> None:
        self.hand_over(None)

    def hand_over(self, queue: Handle | None) -> None:
        runtime = self.stream.runtime
        runtime.driver.fill(runtime.info, queue, self._address, self._pattern, self.nbytes)


@final
class SpreadFill(Submission):
    """One element repeated over strided memory of a device by the driver."""

    __slots__ = ("_address", "_pattern", "_spread", "nbytes")

    def __init__(self, stream: Stream, target: Side, pattern: bytes, needs: tuple[Event, ...]) -> None:
        super().__init__(stream, "fill", needs=needs)
        self._address, self._pattern, self.nbytes = target.address, pattern, target.size
        self._spread = spread_over(target, stream.runtime)

    def run(self) -> None:
        self.hand_over(None)

    def hand_over(self, queue: Handle | None) -> None:
        runtime, found = self.stream.runtime, self._spread
        runtime.driver.fill(runtime.info, queue, self._address + found.first, self._pattern, found.width)
        for moves in found.steps:
            _hand_over(runtime, queue, moves, self._address, self._address, CopyKind.WITHIN)
