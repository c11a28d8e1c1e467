"""Memory of one device: the pool's source over a driver, the order of relief, and what ``ctx.memory`` offers."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast, final

from tazza.core.completion import now_ns
from tazza.core.hostmemory import PinnedMemory, SharedMemory
from tazza.core.supply import supply_of
from tazza.errors import ArgumentError, DeadlockError, ForkedError, OutOfMemoryError, WaitTimeoutError
from tazza.hot import Account, Block, Lane, Pool
from tazza.hot.process import process
from tazza.memory.stats import MemoryStats
from tazza.util.text import parse_nbytes

__all__ = ["POOL_KINDS", "Memory", "MemoryPool", "pool_of"]

POOL_KINDS = ("caching", "direct")
"""The pools that tazza implements itself; every device has them."""

_HOST_KINDS = ("pinned", "shared")  # beside them, made on demand

_RELIEF_TIMEOUT = 5.0  # seconds that relief waits for streams before it goes on to the next step
_HOLDERS = 5
_Relief = Callable[[Account | None], None]


@final
class MemoryPool:
    """One pool of a device runtime: the `tazza.hot.pool.Source` of its `pool`.

    Args:
        runtime: the device runtime; its ``driver``, ``info``, ``capabilities``, ``name``, ``pools``, ``runners()``,
            ``lost()`` and ``reclaim()`` are used.
        kind: ``"caching"`` or ``"direct"`` for the device's own memory, ``"pinned"`` or ``"shared"`` for the host's.

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
        # User handlers and budgets plug in here; every step may run any code, none runs under a lock. A limit is only
        # relieved by what is charged under it: no cache of the device is.
        self._limit_relief: tuple[_Relief, ...] = (self._relieve_pending, _collect)
        self._device_relief: tuple[_Relief, ...] = (
            self._relieve_pending,
            self._relieve_own,
            self._relieve_others,
            _collect,
        )

    def __repr__(self) -> str:
        return f"<MemoryPool {self.kind} of {self.runtime.name}: {self.pool!r}>"

    # Source --------------------------------------------------------------------------------------------------------

    def reserve(self, nbytes: int) -> int:
        """Return the address of `nbytes` fresh bytes."""
        return self.supply.reserve(nbytes)

    def release(self, address: int, nbytes: int) -> None:
        """Give a reservation back."""
        self.supply.release(address)

    def retire(self, block: Block) -> _AllDone | None:
        """Record an event on every stream that still uses the block; the home stream's too where it leaves the pool."""
        # Streams of any device may use memory of the host. Nothing runs on a lost one, and it tells nothing.
        users = [use for use in block.users or () if use[0].runtime.lost() is None]
        events = [runner.mark() for runner, number in users if not runner.reached(number)]
        if block.island:
            home = self.quiescent(block.lane)
            if home is not None:
                events.append(home)
        return _AllDone(events) if events else None

    def quiescent(self, lane: Lane) -> Any | None:
        """Record an event on the lane's stream unless all its work is done."""
        home = self._home(lane)
        return None if home is None or home.reached(home.submitted) else home.mark()

    def order(self, lane: Lane) -> Any | None:
        """Record an event on the lane's stream unless its work up to ``lane.freed_at`` is done."""
        home = self._home(lane)
        if home is None or home.reached(lane.freed_at):
            return None
        event = home.mark()
        return None if event.is_done else event

    def _home(self, lane: Lane) -> Any | None:
        """Return who knows the lane's queue; None where no queue works, as on a lost device."""
        return None if lane.home is None or self.runtime.lost() is not None else lane.home()

    def relieve(self, nbytes: int, refused: Account | None, attempt: int) -> bool:
        """Work down the order of relief, one step an attempt; the last step is followed by one retry."""
        steps = self._device_relief if refused is None else self._limit_relief
        me = threading.get_ident()
        if attempt >= len(steps) or me in self._relieving:
            return False
        self._relieving.add(me)
        try:
            steps[attempt](refused)
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
        holders = self.holders(_HOLDERS, refused)
        if refused is not None:
            limit, live = refused.limit, refused.live
            problem = f"{refused.name} holds {live} bytes of its limit of {limit}"
            advice = "raise the limit (ctx.memory.limit), or drop some of what it holds"
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
        totals: dict[str, tuple[int, int]] = {}
        for block in _live_blocks(self.runtime):
            owner = block.account
            if owner is None or not _charges(block, account):
                continue
            label = block.label or f"{owner.name} (unlabelled)"
            nbytes, blocks = totals.get(label, (0, 0))
            totals[label] = nbytes + block.nbytes, blocks + 1
        ranked = sorted(totals.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple((label, nbytes, blocks) for label, (nbytes, blocks) in ranked[:count])

    def idle_nbytes(self) -> int:
        """Return the bytes of segments of which nothing is live, stacked blocks put back first."""
        with process.lock:
            for lane in self.pool.lanes:
                lane.unstack()
            return sum(lane.idle_nbytes() for lane in self.pool.lanes)

    # Relief --------------------------------------------------------------------------------------------------------

    def _relieve_pending(self, refused: Account | None) -> None:
        for runner in self.runtime.runners():
            runner.reached(0)  # makes it drop what finished work held
            last = runner.letting_go(lambda held: _charges(held.block, refused))
            if last is not None:
                _settle([_AllDone([last])])
                runner.reached(0)
        pools = [other.pool for other in list(self.runtime.pools.values())]
        for pool in pools:
            pool.drain()
        _settle([ticket for pool in pools for ticket, block in list(pool.limbo) if _charges(block, refused)])
        for pool in pools:
            pool.drain()

    def _relieve_own(self, refused: Account | None) -> None:
        tickets = [self.quiescent(lane) for lane in list(self.pool.lanes)]
        _settle([_AllDone([ticket]) for ticket in tickets if ticket is not None])
        self.pool.trim()

    def _relieve_others(self, refused: Account | None) -> None:
        for other in list(self.runtime.pools.values()):
            if other is not self:
                other._relieve_pending(None)
                other._relieve_own(None)
        self.runtime.reclaim()


@final
class Memory:
    """What a context holds: ``ctx.memory``.

    >>> import tazza as tz
    >>> with tz.open("cpu", memory_limit="1MiB") as ctx:
    ...     buffer = ctx.allocate(1000, label="weights")
    ...     ctx.memory.stats().live, ctx.memory.limit, ctx.memory.holders()
    (1024, 1048576, (('weights', 1024, 1),))
    """

    def __init__(self, pool: MemoryPool, account: Account, context: Any) -> None:
        self._pool = pool
        self._account = account
        self._pinned = PinnedMemory(context, partial(_host_lane, pool.runtime, "pinned"))
        self._shared = SharedMemory(context, partial(_host_lane, pool.runtime, "shared"))

    def __repr__(self) -> str:
        return f"<Memory of {self._account.name}: {self._account!r} in the {self.pool} pool>"

    @property
    def pool(self) -> str:
        """The kind of the pool: ``"caching"`` or ``"direct"``."""
        return self._pool.kind

    @property
    def pinned(self) -> PinnedMemory:
        """Page-locked host memory, a pool of its own beside this one."""
        return self._pinned

    @property
    def shared(self) -> SharedMemory:
        """Host memory that other processes map by name."""
        return self._shared

    @property
    def limit(self) -> int | None:
        """The most bytes that may be live at once, or None.

        Setting takes what ``memory_limit=`` takes: bytes, a text like ``"2GiB"``, or None.

        Raises:
            ArgumentError: on setting, where it is no size or less than what is live.
            ForkedError: on setting, in a process forked from the one of the context.
        """
        return self._account.limit

    @limit.setter
    def limit(self, limit: int | str | None) -> None:
        self._check_process()
        nbytes = None if limit is None else parse_nbytes(limit, argument="limit")
        self._pool.pool.drain()
        if nbytes is not None and nbytes < self._account.live:
            raise ArgumentError.of("limit", limit, f"at least the {self._account.live} bytes that are live; drop some")
        self._account.limit = nbytes

    def stats(self) -> MemoryStats:
        """Return the figures of now; takes back first what was freed since the last allocation.

        Raises:
            ForkedError: in a process forked from the one of the context.
        """
        self._check_process()
        pool, account = self._pool.pool, self._account
        pool.drain()
        idle = self._pool.idle_nbytes()
        pending, live, peak, requested, allocations, blocks, all_live, reserved, reserved_peak = pool.figures(account)
        return MemoryStats(
            live=live,
            peak=peak,
            pending=pending,
            limit=account.limit,
            allocated_bytes=live - pending,
            requested_bytes=requested,
            reserved_bytes=reserved,
            reserved_bytes_peak=reserved_peak,
            inactive_split_bytes=max(0, reserved - all_live - idle),
            allocations=allocations,
            frees=allocations - blocks,
            num_alloc_retries=pool.retries,
            num_ooms=account.ooms,
        )

    def trim(self, keep: int | str = 0) -> int:
        """Give unused memory of the pool back to the device while more than `keep` bytes are reserved.

        Returns:
            Bytes given back.

        Raises:
            ForkedError: in a process forked from the one of the context.
        """
        self._check_process()
        return self._pool.pool.trim(parse_nbytes(keep, argument="keep"))

    def reset_peak(self) -> None:
        """Let the peak start again from what is live now; raises ForkedError in a forked process."""
        self._check_process()
        self._pool.pool.drain()
        self._account.reset_peak()

    def holders(self, count: int = 10) -> tuple[tuple[str, int, int], ...]:
        """Return the largest holders of this context's memory as (label, bytes, blocks), largest first."""
        self._check_process()
        return self._pool.holders(count, self._account)

    def _check_process(self) -> None:
        if self._pool.pool.generation != process.generation:
            raise ForkedError(f"{self!r} was made before this process was forked; make a new context here")


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


def pool_of(runtime: Any, kind: str) -> MemoryPool:
    """The pool of a kind of a device, made when it is first asked for."""
    with runtime.lock:
        pool = runtime.pools.get(kind)
        if pool is None:
            pool = runtime.pools[kind] = MemoryPool(runtime, kind)
        return cast(MemoryPool, pool)


def _host_lane(runtime: Any, kind: str) -> Lane:
    """The one lane of a pool in host memory: the host orders its use, on every device."""
    pool_of(runtime, kind)
    return cast(Lane, runtime.shared_lane(kind))


def _live_blocks(runtime: Any) -> list[Block]:
    """The live blocks of every pool of a device, those in host memory too: the same limits bind them."""
    return [block for pool in list(runtime.pools.values()) for block in pool.pool.live_blocks()]


def _charges(block: Block, above: Account | None) -> bool:
    """Tell whether a block counts in the account `above`; None stands for the whole device."""
    account = block.account
    while account is not None and account is not above:
        account = account.parent
    return account is above


def _collect(refused: Account | None) -> None:
    gc.collect()
