"""The account of a device at one moment: every used byte under a heading, whoever took it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from tazza.core.adapter import adapters
from tazza.core.holders import foreign_blocks
from tazza.core.runtime import DeviceRuntime, live_runtimes
from tazza.core.snapshot import Balance, Heading, Holding, MemorySnapshot, RecordedBlock, Segment
from tazza.errors import CleanupWarning
from tazza.hot import Account, Block, ForeignBlock
from tazza.hot.process import process
from tazza.util.report import report

__all__ = ["leaked_blocks", "survey"]

_ALWAYS_RESIDENT = 64 << 10  # bytes below which an array's pages are taken as touched: asking costs more than it tells
_WORKSPACE = "workspace"


def survey(runtime: DeviceRuntime) -> MemorySnapshot:
    """Take the account of the memory that a device lies in, of all runtimes that share it."""
    domain, sharing = runtime.info.memory_domain, runtime.sharing()
    # Contexts of other devices have pools in the host's memory too.
    pools = [pool for other in live_runtimes() for pool in list(other.pools.values()) if _domain(pool) == domain]
    for pool in pools:
        pool.drain()
    use = runtime.driver.memory_use(runtime.info)
    segments = tuple(segment for pool in pools for segment in _segments(pool))
    foreign = foreign_blocks(runtime)
    balances = _balances(sharing, foreign)  # now: other threads go on while the rest is worked out
    recording = runtime.recording
    events, lost = recording.events() if recording is not None else ((), 0)
    arrays = tuple(sorted((_recorded_foreign(runtime, block) for block in foreign), key=lambda one: one.address))
    headings = _headings(runtime, use, segments, arrays)
    return MemorySnapshot(
        device=runtime.name,
        time_ns=time.time_ns(),
        total=use.total,
        used=use.used,
        headings=(*headings, Heading("unexplained", use.used - sum(heading.nbytes for heading in headings))),
        holdings=_holdings((*(block for segment in segments for block in segment.blocks), *arrays)),
        balances=balances,
        segments=segments,
        blocks=arrays,
        largest_placeable=max((_largest_gap(segment) for segment in segments), default=0),
        events=events,
        events_lost=lost,
    )


def leaked_blocks(runtime: DeviceRuntime, account: Account) -> tuple[RecordedBlock, ...]:
    """What is live under an account, largest first; pending blocks are not."""
    found = [_recorded(runtime, block, "live") for block in _live_blocks(runtime) if _is_under(block, account)]
    found += [_recorded_foreign(runtime, block) for block in foreign_blocks(runtime) if _is_under(block, account)]
    return tuple(sorted(found, key=lambda block: (-block.nbytes, block.address)))


def _live_blocks(runtime: DeviceRuntime) -> Iterable[Block]:
    for one in runtime.sharing():
        for pool in list(one.pools.values()):
            pool.drain()
            waiting = {id(block) for block in pool.pool.waiting()}
            yield from (block for block in pool.pool.live_blocks() if id(block) not in waiting)


def _is_under(block: Block | ForeignBlock, account: Account) -> bool:
    return block.account is not None and block.account.counts_in(account)


# Headings ------------------------------------------------------------------------------------------------------------


def _headings(
    runtime: DeviceRuntime, use: Any, segments: tuple[Segment, ...], arrays: tuple[RecordedBlock, ...]
) -> list[Heading]:
    blocks = [(segment.pool, block) for segment in segments for block in segment.blocks]
    held = [block for block in arrays if block.address]  # a charge holds nothing: its bytes are another library's
    headings = [
        Heading("live", _total(b for pool, b in blocks if b.state == "live" and _is_plain(pool, b))),
        Heading("live: numpy", _total(held), "arrays that NumPy made inside contexts"),
        Heading("pending", _total(b for _, b in blocks if b.state == "pending"), "freed, a stream may still use it"),
        Heading("cached", _total(b for _, b in blocks if b.state == "free"), "free in the pools"),
        Heading("workspaces", _total(b for _, b in blocks if b.state == "live" and _is_workspace(b))),
    ]
    headings += [
        Heading(pool, _total(b for kind, b in blocks if kind == pool and b.state == "live" and not _is_workspace(b)))
        for pool in sorted({kind for kind, _ in blocks} - _PLAIN_POOLS)
    ]
    untouched = _untouched(runtime, segments, held)
    foreign = _foreign(runtime)
    if untouched:
        headings.append(Heading("not touched yet", -untouched, "granted, and not counted by the system before use"))
    headings += foreign
    if use.process is not None:
        ours = sum(heading.nbytes for heading in headings)
        headings.append(Heading("other of this process", max(0, use.process - ours)))
    return [*headings, *(Heading(name, nbytes) for name, nbytes in use.parts.items())]


_PLAIN_POOLS = {"caching", "direct", "driver"}


def _is_plain(pool: str, block: RecordedBlock) -> bool:
    return pool in _PLAIN_POOLS and not _is_workspace(block)


def _is_workspace(block: RecordedBlock) -> bool:
    return block.label is not None and block.label.startswith(_WORKSPACE)


def _total(blocks: Iterable[RecordedBlock]) -> int:
    return sum(block.nbytes for block in blocks)


def _untouched(runtime: DeviceRuntime, segments: tuple[Segment, ...], arrays: list[RecordedBlock]) -> int:
    driver, info = runtime.driver, runtime.info
    ranges = [(segment.address, segment.nbytes) for segment in segments]
    ranges += [(block.address, block.nbytes) for block in arrays if block.nbytes >= _ALWAYS_RESIDENT]
    return sum(nbytes - driver.memory_resident(info, address, nbytes) for address, nbytes in ranges)


def _foreign(runtime: DeviceRuntime) -> list[Heading]:
    headings = []
    for adapter in adapters():
        try:
            memory = adapter.memory(runtime.device)
        except Exception as error:  # another library's failure: its bytes are among those of the process then
            report(f"{adapter.name} could not say what memory it holds", CleanupWarning, error=error)
            continue
        if memory is not None:
            headings.append(Heading(f"foreign: {adapter.name}", memory.live + memory.cached, memory.note))
    return headings


# Blocks and segments -------------------------------------------------------------------------------------------------


def _domain(memory_pool: Any) -> str:
    return str(memory_pool.supply.owner.info.memory_domain)


def _segments(memory_pool: Any) -> list[Segment]:
    pool, runtime = memory_pool.pool, memory_pool.runtime
    with process.lock:
        waiting = {id(block) for block in pool.waiting()}
        lanes = [*pool.lanes, *(lane for lane, _ in pool.closing)]
        ranges = {
            address: nbytes
            for lane in lanes
            for heap in (lane.small, lane.large)
            for address, nbytes in list(heap.segments.items())  # a finaliser may allocate meanwhile
        }
        blocks = []
        for block in list(pool.blocks.values()):
            if block.island:
                ranges[block.address] = block.nbytes
            state = "free" if not block.live else "pending" if id(block) in waiting else "live"
            if state != "free":
                blocks.append(_recorded(runtime, block, state))
    return sorted(_filled(ranges, blocks, memory_pool.kind), key=lambda segment: segment.address)


def _filled(ranges: dict[int, int], blocks: list[RecordedBlock], kind: str) -> list[Segment]:
    """Sort blocks into their segments, with what lies between them as free blocks."""
    starts = sorted(ranges)
    inside: dict[int, list[RecordedBlock]] = {start: [] for start in starts}
    for block in sorted(blocks, key=lambda one: one.address):
        position = bisect_right(starts, block.address) - 1
        if position >= 0:  # else its lane was closed or its segment is being given back at this moment
            inside[starts[position]].append(block)
    segments = []
    for start in starts:
        filled, end = list[RecordedBlock](), start
        for block in inside[start]:
            if block.address > end:
                filled.append(RecordedBlock(end, block.address - end, 0, "free"))
            filled.append(block)
            end = block.address + block.nbytes
        if end < start + ranges[start]:
            filled.append(RecordedBlock(end, start + ranges[start] - end, 0, "free"))
        segments.append(Segment(start, ranges[start], kind, tuple(filled)))
    return segments


def _largest_gap(segment: Segment) -> int:
    return max((block.nbytes for block in segment.blocks if block.state == "free"), default=0)


def _recorded(runtime: DeviceRuntime, block: Block, state: str) -> RecordedBlock:
    owner = () if block.account is None else block.account.path
    site = _site(runtime, block.address)
    return RecordedBlock(block.address, block.nbytes, block.requested, state, owner, block.label, "tazza", site)


def _recorded_foreign(runtime: DeviceRuntime, block: ForeignBlock) -> RecordedBlock:
    owner = () if block.account is None else block.account.path
    site = _site(runtime, block.address) if block.address else ()
    return RecordedBlock(block.address, block.nbytes, block.nbytes, "live", owner, block.label, block.library, site)


def _site(runtime: DeviceRuntime, address: int) -> tuple[str, ...]:
    recording = runtime.recording
    return () if recording is None else recording.site_of(address)


# Owners --------------------------------------------------------------------------------------------------------------


def _holdings(blocks: Iterable[RecordedBlock]) -> tuple[Holding, ...]:
    totals: dict[tuple[tuple[str, ...], str | None, str], tuple[int, int]] = {}
    for block in blocks:
        if block.state != "free":
            key = block.owner, block.label, block.library
            nbytes, count = totals.get(key, (0, 0))
            totals[key] = nbytes + block.nbytes, count + 1
    ranked = sorted(totals.items(), key=lambda item: (-item[1][0], item[0][0], item[0][1] or "", item[0][2]))
    return tuple(Holding(*key, nbytes, count) for key, (nbytes, count) in ranked)


def _balances(sharing: list[DeviceRuntime], foreign: list[ForeignBlock]) -> tuple[Balance, ...]:
    accounts: dict[int, Account] = {}

    def note(account: Account | None) -> None:
        while account is not None and account.parent is not None:
            accounts[id(account)] = account
            account = account.parent

    for runtime in sharing:
        for context in runtime.contexts():
            note(context.account)
        for budget in runtime.budgets.now():
            note(budget.account)
        for pool in list(runtime.pools.values()):
            for block in pool.pool.live_blocks():
                note(block.account)
    for block in foreign:
        note(block.account)
    rows: dict[tuple[str, ...], list[Account]] = {}
    for account in accounts.values():
        rows.setdefault(account.path, []).append(account)
    return tuple(_balance(owner, rows[owner]) for owner in sorted(rows))


def _balance(owner: tuple[str, ...], accounts: list[Account]) -> Balance:
    limits = [one.limit for one in accounts if one.limit is not None]
    return Balance(
        owner,
        live=sum(one.live for one in accounts),
        peak=max(one.peak for one in accounts),
        limit=max(limits) if len(limits) == len(accounts) else None,
        reserve=sum(one.reserve for one in accounts),
        ooms=sum(one.ooms for one in accounts),
        accounts=len(accounts),
    )
