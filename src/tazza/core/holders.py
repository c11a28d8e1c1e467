"""Who holds the memory of a device: blocks of its pools, NumPy's arrays, and charges for what other libraries took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tazza.hot import Account, Block, ForeignBlock, host_blocks

__all__ = ["charged_blocks", "foreign_blocks", "holders_of", "is_charged", "set_aside", "settle_charges"]


def is_charged(block: Block | ForeignBlock, above: Account | None) -> bool:
    """Tell whether a block counts in the account `above`; None stands for every block that is charged at all."""
    account = block.account
    return account is not None and (above is None or account.counts_in(above))


def foreign_blocks(runtime: Any) -> list[ForeignBlock]:
    """What counts in the memory that a device lies in, and lies in no pool; each once, whichever device it is for."""
    sharing = runtime.sharing()
    for one in sharing:
        settle_charges(one)
    arrays = host_blocks() if runtime.host_addressable else []
    charges = [charge for one in sharing for charge in list(one.charges.values())]
    roots = [one.account for one in sharing]
    return [block for block in (*arrays, *charges) if any(is_charged(block, root) for root in roots)]


def charged_blocks(runtime: Any, above: Account | None = None) -> Iterator[Block | ForeignBlock]:
    """Every live block in a device's memory that counts in `above`, pending ones included."""
    for one in runtime.sharing():
        for pool in list(one.pools.values()):
            for block in pool.pool.live_blocks():
                if is_charged(block, above):
                    yield block
    for foreign in foreign_blocks(runtime):
        if is_charged(foreign, above):
            yield foreign


def set_aside(runtime: Any, above: Account | None) -> list[ForeignBlock]:
    """What budgets hold in `above` without using it: the rest of their reserves."""
    accounts = [budget.account for one in runtime.sharing() for budget in one.reserving()]
    return [
        ForeignBlock(0, one.reserve - one.live, one, 0, "tazza", f"{one.name} (set aside)")
        for one in accounts
        if one.reserve > one.live and one is not above and (above is None or one.counts_in(above))
    ]


def holders_of(blocks: Iterable[Block | ForeignBlock], count: int) -> tuple[tuple[str, int, int], ...]:
    """Return the largest holders among blocks as (label, bytes, blocks), largest first, at most `count`."""
    totals: dict[str, tuple[int, int]] = {}
    for block in blocks:
        owner = block.account
        if owner is not None:
            what = "unlabelled" if block.library == "tazza" else f"{block.library} arrays"
            label = block.label or f"{owner.name} ({what})"
            nbytes, blocks_so_far = totals.get(label, (0, 0))
            totals[label] = nbytes + block.nbytes, blocks_so_far + 1
    ranked = sorted(totals.items(), key=lambda item: (-item[1][0], item[0]))
    return tuple((label, nbytes, number) for label, (nbytes, number) in ranked[:count])


def settle_charges(runtime: Any) -> None:
    """Take back the charges whose owners were dropped: their finalisers only left word of it."""
    while runtime.dropped_charges:
        try:
            key = runtime.dropped_charges.pop()
        except IndexError:  # another thread took the last one
            return
        block = runtime.charges.pop(key, None)
        if block is not None:
            block.account.uncharge(block.nbytes, block.nbytes)
