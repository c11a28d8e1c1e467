"""What all contexts of one device share in one process: pools, streams in flight, health."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol, final

from tazza.core import registry
from tazza.core.completion import raise_copy, timeout_or_default
from tazza.core.device import Device
from tazza.core.pressure import Pressure
from tazza.errors import DeviceLostError, ForkedError
from tazza.hot import Account, Buffer, ForeignBlock, after_fork, generation, point, top
from tazza.hot.hooks import Operation, emit
from tazza.spi import Driver
from tazza.util.liveset import LiveSet

__all__ = ["DeviceRuntime", "Outstanding", "forget_runtimes", "live_runtimes", "runtime_of"]


class Outstanding(Protocol):
    """What goes back once nothing uses it any more: borrowed memory, programs, memory of streams that are closed."""

    @property
    def pending(self) -> Sequence[Any]:
        """The events that relief of memory may wait for."""

    def end(self) -> bool:
        """Give it back if nothing uses it; tell whether that is so. Never waits."""


@final
class DeviceRuntime:
    """One device in one process. Internal: contexts own an account and streams in it, users never hold one."""

    def __init__(self, device: Device) -> None:
        self.device, self.driver, self.info = device, device.driver, device.info
        self.capabilities = device.capabilities
        self.name = device.name
        self.host_addressable = self.capabilities.host_addressable
        self.account = Account(device.name)
        self.pools: dict[str, Any] = {}
        self.pressure = Pressure()
        self.recording: Any = None
        self.budgets: LiveSet[Any] = LiveSet()
        self.libraries: dict[str, Any] = {}  # states of DNN libraries, by the library's name
        self.workspaces: LiveSet[Any] = LiveSet()  # their scratch memory, which relief trims
        self.charges: dict[int, ForeignBlock] = {}  # what `Memory.charge` counted, by number
        self.dropped_charges: list[int] = []  # numbers that finalisers left, for `holders.settle_charges`
        self._lanes: dict[str, Any] = {}
        self._exports: Any = None
        self.courier: Any = None  # made by the first move of a result that has to pass through the host
        self._contexts: LiveSet[Any] = LiveSet()
        self._runners: list[Any] = []
        self.in_flight: dict[int, str] = {}
        self.orphans: list[Any] = []  # runners whose streams were dropped, for `check` to close
        self.loans: list[Outstanding] = []  # whose uses may not be over, for `check` to end
        self.programs: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()  # loaded, by their code
        self.lock = threading.RLock()  # looking at an event under it may find the device lost, which takes it again
        self.generation = generation()
        self._lost: DeviceLostError | None = None

    def shared_lane(self, kind: str) -> Any:
        """The lane of a pool for every stream of a device whose queued work holds the memory it uses."""
        with self.lock:
            lane = self._lanes.get(kind)
            if lane is None:
                lane = self._lanes[kind] = self.pools[kind].pool.new_lane(shared=True)
            return lane

    def check(self) -> None:
        """Raise where nothing can be done on this device any more: another process, or a lost device."""
        if self.generation != generation():
            self.check_process()
        if self.loans:
            self.end_loans()  # also of a lost device: other libraries go on with their memory
        if self._lost is not None or self.driver.poison(self.info) is not None:
            lost = self.lost()
            if lost is not None:
                raise_copy(lost)
        while self.orphans:
            try:
                runner = self.orphans.pop()
            except IndexError:  # another thread took the last one
                return
            runner.close()

    def end_loans(self) -> None:
        """Give back what nothing uses any more; calls foreign code: never under a lock."""
        for _ in range(len(self.loans)):
            try:
                loan = self.loans.pop(0)  # now nobody else has it, whatever the code that it calls does
            except IndexError:  # another thread took the last one
                return
            over = False
            try:
                over = loan.end()
            finally:
                if not over:
                    self.loans.append(loan)

    def check_process(self) -> None:
        """Raise in a process that was forked after the device was opened."""
        if self.generation != generation():
            raise ForkedError(f"{self.name} was opened before this process was forked; make a new context here")

    def lost(self) -> DeviceLostError | None:
        """The first cause that made the device unusable, or None. The first look keeps what was in flight."""
        if self._lost is None:
            reason = self.driver.poison(self.info)
            if reason is not None:
                error = DeviceLostError(
                    f"{self.name} is lost: {reason}",
                    in_flight=tuple(self.in_flight.values()),
                    backend=self.info.backend,
                    hint=_REBUILD if self.capabilities.rebuild else _NEW_PROCESS,
                )
                with self.lock:
                    self._lost = self._lost or error
                for context in self.contexts():
                    context.phase = context.phase or _LOST  # allocation looks at the phase alone
        return self._lost

    def host_access(self, buffer: Buffer) -> None:
        """Wait for every stream that is known to have used the buffer, before the host touches its bytes.

        A stream whose task is asking is left out: its own order already says what comes first.
        """
        self.check()
        if point.listeners is not None:
            emit(Operation("host_access", nbytes=buffer.nbytes, reads=(buffer,), subject=buffer))
        frame = top()
        asking = None if frame is None else frame.task
        for stream in buffer._streams():
            if asking is None or not asking.runs_on(stream):
                stream.settle(timeout_or_default(None))
                stream.runtime.check()  # lost meanwhile: the bytes are not what was queued

    def exports_to(self, runner: Any) -> bool:
        """Whether a runner is over a queue of another library."""
        return self._exports is not None and self._exports.knows(runner)

    @property
    def exports(self) -> Any:
        """What shows the device's memory to other libraries (`tazza.core.export`), made when it is first asked for."""
        with self.lock:
            if self._exports is None:
                self._exports = registry.load("foreign.export")(self)
            return self._exports

    def add_context(self, context: Any) -> None:
        """Know a context as long as it lives."""
        self._contexts.add(context)

    def contexts(self) -> list[Any]:
        """The live contexts, at one moment."""
        return self._contexts.now()

    def reserving(self) -> list[Any]:
        """The budgets that hold a reserve, at one moment."""
        return [budget for budget in self.budgets.now() if budget.account.reserve]

    def add_runner(self, runner: Any) -> None:
        """Know a runner until it is closed and idle."""
        with self.lock:
            self._runners = [known for known in self._runners if not known.is_over]
            self._runners.append(runner)

    def runners(self) -> list[Any]:
        """The runners of every stream whose work may not be over, at one moment."""
        with self.lock:
            return list(self._runners)

    def trim(self) -> None:
        """Forget streams that are over, then have the driver give back what it keeps for reuse beside memory."""
        if self.lost() is None:
            self.check()  # closes streams that were dropped
            with self.lock:
                self._runners = [known for known in self._runners if not known.is_over]
            self.driver.trim(self.info)

    def sharing(self) -> list[DeviceRuntime]:
        """The runtimes of every device that lies in the same memory, this one included: one limit may bind them all."""
        domain = self.info.memory_domain
        return [self, *(one for one in live_runtimes() if one is not self and one.info.memory_domain == domain)]

    def reclaim(self) -> int:
        """Give every cached block of every pool back to the driver, and have that keep none; returns the bytes."""
        nbytes: int = sum(pool.pool.trim() for pool in list(self.pools.values()))
        self.trim()
        return nbytes

    def __repr__(self) -> str:
        return f"<DeviceRuntime {self.name}>"


_LOST = 3
_REBUILD = "call ctx.rebuild() for a new context from its spec and last saved state"
_NEW_PROCESS = "the driver demands a new process; start one from ctx.spec and the last saved state"

_runtimes: dict[tuple[int, str], DeviceRuntime] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _runtimes.clear()


after_fork(_after_fork)


def runtime_of(device: Device) -> DeviceRuntime:
    """The runtime of a device, made when its first context is."""
    key = id(device.driver), device.name  # a driver that was replaced starts afresh
    with _lock:
        runtime = _runtimes.get(key)
        if runtime is None:
            runtime = _runtimes[key] = DeviceRuntime(device)
        return runtime


def live_runtimes() -> list[DeviceRuntime]:
    """Every runtime of this process."""
    with _lock:
        return list(_runtimes.values())


def forget_runtimes(backend: str, driver: Driver | None = None) -> None:
    """Have the next context of a backend, or of one of its drivers, open its device anew.

    Contexts that exist keep what they have.
    """
    with _lock:
        for key, runtime in list(_runtimes.items()):
            if runtime.info.backend == backend and (driver is None or runtime.driver is driver):
                del _runtimes[key]
