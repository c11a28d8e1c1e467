"""Memory of one device: the pool's source over a driver, and the order of relief."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, cast, final

from tazza.core.adapter import adapters
from tazza.core.completion import now_ns
from tazza.core.event import Event
from tazza.core.holders import charged_blocks, holders_of, is_charged, set_aside, settle_charges
from tazza.core.patience import wait_for_room
from tazza.core.pressure import ask
from tazza.core.runner import on_event_loop
from tazza.core.supply import supply_of
from tazza.errors import ArgumentError, CleanupWarning, DeadlockError, OutOfMemoryError, WaitTimeoutError
from tazza.hot import Account, Block, Lane, Operation, Pool, emit, point
from tazza.hot.process import process
from tazza.util.report import report
from tazza.util.sites import capture, written

__all__ = ["POOL_KINDS", "MemoryPool", "host_lane", "pool_of"]

POOL_KINDS = ("caching", "direct", "driver")
"""The pools of a device's own memory: two of tazza's, on every device, and the vendor's where there is one."""

_HOST_KINDS = ("pinned", "shared")  # beside them, made on demand

_RELIEF_TIMEOUT = 5.0  # seconds that relief waits for streams before it goes on to the next step
_SHORT_WAIT = 0.1  # seconds that a waiting allocation leaves others to themselves
_HOLDERS = 5


@final
class MemoryPool:
    """One pool of a device runtime: the `tazza.hot.pool.Source` of its `pool`.

    Args:
        runtime: the device runtime; its ``driver``, ``info``, ``capabilities``, ``name``, ``pools``, ``runners()``,
            ``lost()``, ``loans``, ``end_loans()`` and ``reclaim()`` are used.
        kind: ``"caching"``, ``"direct"`` or ``"driver"`` for the device's own memory, ``"pinned"`` or ``"shared"`` for
            the host's.

    Attributes:
        supply: where the bytes come from.

    >>> import tazza as tz
    >>> with tz.open("cpu", pool="direct") as ctx:
    ...     ctx.memory.pool
    'direct'
    """

    def __init__(self, runtime: Any, kind: str) -> None:
        if kind not in POOL_KINDS + _HOST_KINDS:
            raise ArgumentError.of("pool", kind, f"one of {', '.join(POOL_KINDS)}")
        self.runtime = runtime
        self.kind = kind
        self.supply = supply = supply_of(runtime, kind)
        self.pool = Pool(self, cached=supply.cached, alignment=supply.alignment, owner=supply.owner, exact=supply.exact)
        self._relieving: set[int] = set()
        self._deadlines: dict[int, int] = {}  # when the wait of a thread ends, in the nanoseconds of `now_ns`
        # Every step may run any code, none runs under a lock. A limit is only relieved by what is charged under it: no
        # cache of the device is. Where waiting is allowed, a short wait comes before users and the collector are
        # troubled, and the rest of it last.
        self._limit_relief: tuple[_Step, ...] = (
            _Step("pending", self._relieve_pending),
            _Step("short wait", self._wait_briefly),
            _Step("handlers", self._ask_handlers),
            _Step("gc", self._collect),
            _Step("wait", self._wait),
        )
        self._device_relief: tuple[_Step, ...] = (
            _Step("pending", self._relieve_pending),
            _Step("own cache", self._relieve_own),
            _Step("other caches", self._relieve_others),
            _Step("workspaces", self._relieve_workspaces),
            _Step("foreign caches", self._relieve_foreign),
            _Step("handlers", self._ask_handlers),
            _Step("gc", self._collect),
        )

    def __repr__(self) -> str:
        return f"<MemoryPool {self.kind} of {self.runtime.name}: {self.pool!r}>"

    # Source --------------------------------------------------------------------------------------------------------

    def reserve(self, nbytes: int, lane: Lane) -> tuple[int, Event | None]:
        """Return the address of `nbytes` fresh bytes, and what other streams have to wait for."""
        return self.supply.reserve(nbytes, self._home(lane))

    def release(self, address: int, nbytes: int, lane: Lane) -> None:
        """Give a reservation back."""
        self.supply.release(address, self._home(lane))

    def retire(self, block: Block) -> _AllDone | None:
        """Record an event on every stream that still uses the block.

        On the home stream's too where the block leaves the pool, unless that happens in the home stream's order.
        """
        # Streams of any device may use memory of the host. Nothing runs on a lost one, and it tells nothing.
        users = [use for use in block.users or () if use[0].runtime.lost() is None]
        events = [held for runner, number in users if (held := runner.hold(number)) is not None]
        if block.island and not self.supply.orders(self._home(block.lane)):
            home = self.quiescent(block.lane)
            if home is not None:
                events.append(home)
        return _AllDone(events) if events else None

    def quiescent(self, lane: Lane) -> Any | None:
        """Record an event on the lane's stream unless all its work is done."""
        home = self._home(lane)
        return None if home is None else home.hold(home.submitted)

    def order(self, lane: Lane) -> Any | None:
        """Record an event on the lane's stream unless its work up to ``lane.freed_at`` is done."""
        home = self._home(lane)
        if home is None or home.reached(lane.freed_at):
            return None
        return home.unfinished()

    def _home(self, lane: Lane) -> Any | None:
        """Return who knows the lane's queue; None where no queue works, as on a lost device."""
        return None if lane.home is None or self.runtime.lost() is not None else lane.home()

    def relieve(self, nbytes: int, refused: Account | None, attempt: int) -> bool:
        """Work down the order of relief, one step an attempt; the last step is followed by one retry."""
        steps = self._device_relief if refused is None else self._limit_relief
        me = threading.get_ident()
        if me in self._relieving:  # a handler or a finaliser that allocates: it gets no relief of its own
            return False
        if attempt == 0:
            self._deadlines.pop(me, None)
        import logging  # late: it costs as much as a third of the core

        logger = logging.getLogger("tazza.memory")
        self._relieving.add(me)
        try:
            if attempt >= len(steps):  # what came back was taken by somebody else: wait on, as long as there is time
                return self._wait(refused, nbytes)
            logger.debug("%s: %d bytes wanted, relief: %s", self.runtime.name, nbytes, steps[attempt].name)
            steps[attempt].act(refused, nbytes)
        finally:
            self._relieving.discard(me)
        return True

    def closed(self, block: Block) -> None:
        """Take back costly memory at once: the next allocation of its kind may be long in coming."""
        self.supply.closed(block.address)
        self.pool.drain()

    def exhausted(self, requested: int, refused: Account | None, account: Account) -> OutOfMemoryError:
        """Describe who holds the memory, and what to do."""
        account.ooms += 1
        if point.listeners is not None:
            emit(Operation("oom", nbytes=requested, subject=account))
        holders = self.holders(_HOLDERS, refused)
        if refused is not None:
            limit, live = refused.limit, refused.live
            problem = f"{refused.name} holds {live} bytes of its limit of {limit}"
            if refused.patience:
                problem += f", and waiting for up to {refused.patience:g} s did not help"
            advice = "raise the limit, or drop some of what it holds"
            if refused.patience and on_event_loop():
                advice += "; on an event loop's thread use `async with` and a reserve, or asyncio.to_thread"
        else:
            limit, live = None, self.pool.live
            problem = f"{self.runtime.name} has no room left for {account.name}; its pool holds {live} bytes live"
            advice = self.supply.advice
        largest = ", ".join(f"{label} {nbytes} bytes in {blocks} block(s)" for label, nbytes, blocks in holders)
        return OutOfMemoryError(
            f"no room for {requested} bytes: {problem}. Largest holders: {largest or 'none'}",
            requested=requested,
            limit=limit,
            live=live,
            holders=holders,
            site=written(capture()),
            backend=self.runtime.info.backend,
            hint=advice,
        )

    # Reports -------------------------------------------------------------------------------------------------------

    def holders(self, count: int, account: Account | None = None) -> tuple[tuple[str, int, int], ...]:
        """Return the largest holders as (label, bytes, blocks), largest first.

        Args:
            count: how many at most.
            account: only what is charged to it or below it; None for all.
        """
        return holders_of((*charged_blocks(self.runtime, account), *set_aside(self.runtime, account)), count)

    def idle_nbytes(self) -> int:
        """Return the bytes of segments of which nothing is live, stacked blocks put back first."""
        with process.lock:
            for lane in self.pool.lanes:
                lane.unstack()
            return sum(lane.idle_nbytes() for lane in self.pool.lanes)

    def charge(self, account: Account, nbytes: int) -> None:
        """Count bytes that lie in no pool, with the same relief as an allocation.

        Raises:
            OutOfMemoryError: a limit refuses them after all relief.
        """
        settle_charges(self.runtime)
        attempt = 0
        while (refused := account.charge(nbytes, nbytes)) is not None:
            if not self.relieve(nbytes, refused, attempt):
                raise self.exhausted(nbytes, refused, account)
            attempt += 1

    # Relief --------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take back everything that finalisers left and streams are done with; does not wait."""
        settle_charges(self.runtime)
        for pool in list(self.runtime.pools.values()):
            pool.pool.drain()

    def _drain_all(self) -> None:
        for runtime in self.runtime.sharing():
            settle_charges(runtime)
            for pool in list(runtime.pools.values()):
                pool.pool.drain()

    def _take_back(self) -> None:
        for runtime in self.runtime.sharing():
            runtime.end_loans()
        for runner in self._runners():
            runner.reached(0)  # makes it drop what finished work held
        self._drain_all()

    def _runners(self) -> list[Any]:
        return [runner for runtime in self.runtime.sharing() for runner in runtime.runners()]

    def _relieve_pending(self, refused: Account | None, nbytes: int) -> None:
        patient = refused is not None and refused.patience > 0  # then waiting is a step of its own
        for runtime in self.runtime.sharing():
            _end_loans(runtime, 0.0 if patient else _RELIEF_TIMEOUT)
        for runner in self._runners():
            runner.reached(0)  # makes it drop what finished work held
            last = None if patient else runner.letting_go(lambda held: is_charged(held.block, refused))
            if last is not None:
                _settle([_AllDone([last])])
                runner.reached(0)
        self._drain_all()
        if not patient:
            pools = [pool.pool for one in self.runtime.sharing() for pool in list(one.pools.values())]
            _settle([ticket for pool in pools for ticket, block in list(pool.limbo) if is_charged(block, refused)])
        self._drain_all()

    def _relieve_own(self, refused: Account | None, nbytes: int) -> None:
        tickets = [self.quiescent(lane) for lane in list(self.pool.lanes)]
        tickets += [ticket for _, ticket in list(self.pool.closing)]
        _settle([_AllDone([ticket]) for ticket in tickets if ticket is not None])
        self.pool.trim()

    def _relieve_others(self, refused: Account | None, nbytes: int) -> None:
        for other in list(self.runtime.pools.values()):
            if other is not self:
                other._relieve_pending(None, nbytes)
                other._relieve_own(None, nbytes)
        self.runtime.reclaim()

    def _relieve_workspaces(self, refused: Account | None, nbytes: int) -> None:
        if sum(one.trim() for runtime in self.runtime.sharing() for one in runtime.workspaces.now()):
            self._regain(nbytes)

    def _relieve_foreign(self, refused: Account | None, nbytes: int) -> None:
        for adapter in adapters():
            try:
                adapter.trim(self.runtime.device)
            except Exception as error:  # another library's failure: relief goes on with what is left
                report(f"{adapter.name} could not give memory back", CleanupWarning, error=error)

    def _ask_handlers(self, refused: Account | None, nbytes: int) -> None:
        def is_enough() -> bool:
            if refused is not None:
                self._drain_all()
                return refused.refuses(nbytes) is None
            self._regain(nbytes)
            return self.supply.has_room(nbytes)

        ask([runtime.pressure for runtime in self.runtime.sharing()], nbytes, refused, is_enough)

    def _collect(self, refused: Account | None, nbytes: int) -> None:
        gc.collect()
        if refused is None:
            self._regain(nbytes)

    def _regain(self, nbytes: int) -> None:
        """Give the device what was freed into the pools meanwhile."""
        self._relieve_pending(None, nbytes)
        self._relieve_own(None, nbytes)
        self._relieve_others(None, nbytes)

    def _wait_briefly(self, refused: Account | None, nbytes: int) -> bool:
        return self._wait(refused, nbytes, _SHORT_WAIT)

    def _wait(self, refused: Account | None, nbytes: int, most: float = float("inf")) -> bool:
        """Wait for room where the account that refused allows it; tell whether there was some."""
        if refused is None or not refused.patience:
            return False
        now = now_ns()
        deadline = self._deadlines.setdefault(threading.get_ident(), now + int(refused.patience * 1e9))
        seconds = min(most, (deadline - now) * 1e-9)
        return wait_for_room(self.runtime, refused, nbytes, seconds, self._take_back)


class _Step(NamedTuple):
    """One step of the order of relief; it is told the account that refused, or None, and the bytes wanted."""

    name: str
    act: Callable[[Account | None, int], object]


class _AllDone:
    """Ticket for several events."""

    __slots__ = ("events",)

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    @property
    def is_done(self) -> bool:
        self.events = [event for event in self.events if not event.is_done]
        return not self.events

    def synchronize(self, timeout: float) -> bool:
        """Wait for all; returns False where one was not done in time."""
        try:
            for event in list(self.events):
                event.synchronize(timeout=timeout)
        except (WaitTimeoutError, DeadlockError):  # too late for this step, or asked for by the work that it waits for
            return False
        return True


def _settle(tickets: list[_AllDone]) -> None:
    """Wait for tickets, for `_RELIEF_TIMEOUT` all together."""
    deadline = now_ns() + int(_RELIEF_TIMEOUT * 1e9)
    for ticket in tickets:
        ticket.synchronize(max(0.0, (deadline - now_ns()) * 1e-9))


def _end_loans(runtime: Any, seconds: float) -> None:
    """Take back what other libraries have let go of, and wait for what their queues still have."""
    runtime.end_loans()
    tickets = [_AllDone([event]) for loan in list(runtime.loans) for event in loan.pending]
    if tickets and seconds:
        _settle(tickets)
        runtime.end_loans()


def pool_of(runtime: Any, kind: str) -> MemoryPool:
    """The pool of a kind of a device, made when it is first asked for."""
    with runtime.lock:
        pool = runtime.pools.get(kind)
        if pool is None:
            pool = runtime.pools[kind] = MemoryPool(runtime, kind)
        return cast(MemoryPool, pool)


def host_lane(runtime: Any, kind: str) -> Lane:
    """The one lane of a pool in host memory: the host orders its use, on every device."""
    pool_of(runtime, kind)
    return cast(Lane, runtime.shared_lane(kind))
