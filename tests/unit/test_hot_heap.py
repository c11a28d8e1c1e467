"""The heap against a byte map."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tazza.hot.heap import Heap


def test_best_fit_takes_the_smallest_hole_at_the_lowest_address() -> None:
    heap = Heap()
    heap.add(0x1000, 1024)
    blocks = [heap.allocate(n) for n in (64, 256, 64, 128, 64, 128)]
    heap.free(blocks[1], 256)
    heap.free(blocks[5], 128)
    heap.free(blocks[3], 128)
    assert heap.allocate(128) == blocks[3]
    assert heap.allocate(256) == blocks[1]


def test_segments_that_touch_do_not_coalesce() -> None:
    heap = Heap()
    heap.add(4096, 4096)
    heap.add(8192, 4096)
    assert heap.allocate(8192) == -1
    heap.free(heap.allocate(4096), 4096)
    assert heap.idle_nbytes() == 8192
    assert {heap.remove(heap.idle_segment(1)) for _ in range(2)} == {4096}
    assert heap.idle_segment(1) == -1
    assert heap.free_nbytes == 0


def test_a_small_request_does_not_break_up_a_large_idle_segment() -> None:
    heap = Heap(split=2)
    heap.add(0, 1 << 20)
    assert heap.allocate(1 << 18) == -1
    assert heap.allocate(1 << 19) == 0
    assert heap.allocate(1 << 18) == 1 << 19


def test_idle_segment_prefers_the_smallest_that_suffices() -> None:
    heap = Heap()
    for address, nbytes in ((0, 4096), (1 << 20, 16384), (2 << 20, 8192)):
        heap.add(address, nbytes)
    assert heap.idle_segment(5000) == 2 << 20
    assert heap.idle_segment(1 << 30) == 1 << 20


def test_absorb_moves_free_and_live_memory() -> None:
    heap, other = Heap(), Heap()
    other.add(4096, 4096)
    live = other.allocate(64)
    heap.absorb(other)
    assert other.allocate(64) == -1
    heap.free(live, 64)
    assert heap.idle_nbytes() == 4096


def test_leftovers_do_not_pile_up() -> None:
    heap = Heap()
    heap.add(1 << 20, 1 << 20)
    for step in range(5000):
        nbytes = 64 * (1 + step % 97)
        heap.free(heap.allocate(nbytes), nbytes)
    assert heap.idle_nbytes() == 1 << 20
    assert heap.allocate(1 << 20) == 1 << 20


@given(st.integers(0, 2**32), st.sampled_from([2, 1 << 62]))
def test_random_use_never_overlaps_and_always_returns(seed: int, split: int) -> None:
    rng, heap = random.Random(seed), Heap(split)
    segments = {(i + 1) << 20: 64 * rng.randint(1, 200) for i in range(4)}
    for address, nbytes in segments.items():
        heap.add(address, nbytes)
    taken: dict[int, int] = {}
    for _ in range(150):
        if taken and rng.random() < 0.45:
            address = rng.choice(sorted(taken))
            heap.free(address, taken.pop(address))
        else:
            nbytes = 64 * rng.randint(1, 40)
            address = heap.allocate(nbytes)
            if address >= 0:
                segment = address >> 20 << 20
                assert segment <= address
                assert address + nbytes <= segment + segments[segment]
                assert all(address + nbytes <= a or a + n <= address for a, n in taken.items())
                taken[address] = nbytes
        assert heap.free_nbytes == sum(segments.values()) - sum(taken.values())
    for address, nbytes in taken.items():
        heap.free(address, nbytes)
    assert heap.idle_nbytes() == sum(segments.values())
