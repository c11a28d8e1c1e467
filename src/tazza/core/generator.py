"""Random numbers that are the same on every device, for every number of threads and processes."""

from __future__ import annotations

import builtins
import math
import threading
from collections.abc import Callable, Mapping, MutableSequence
from functools import partial
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tazza.errors import ArgumentError, ForkedError, UnsupportedError, UsageError
from tazza.hot.process import process
from tazza.rng.arguments import (
    Shard,
    Size,
    float_dtype,
    integer,
    integer_dtype,
    integer_range,
    number,
    output,
    part,
    shape,
    text,
)
from tazza.rng.bounded import fill_integers
from tazza.rng.cursor import Cursor
from tazza.rng.filling import Affine, Fill, Kernel, Unit
from tazza.rng.inverse import fill_exponential, fill_normal
from tazza.rng.keys import checked_seed, derived_key, fresh_seed, seed_key
from tazza.rng.selection import Gather, Source, fill_order, fill_sample, sample_words
from tazza.rng.snapshot import Snapshot
from tazza.rng.uniform import fill_halves, fill_random, fill_words

__all__ = ["Generator", "Sink"]

_DIRECT = 4096
"""Most values that `Generator.random` draws under its lock, from a NumPy generator that it keeps at its position."""

_FLOAT64 = np.float64


class Sink(Protocol):
    """Where the values of draws go: what makes arrays on a device."""

    def place(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Callable[[NDArray[Any]], None]) -> Any:
        """Return a new array of the device's library, whose memory ``fill(view)`` writes.

        ``fill`` takes a writable NumPy array of exactly that shape and dtype, with any strides. It holds its counter
        range by value, so that it may run later and in any thread, and it may run again with the same result.
        """
        ...


@final
class Generator:
    """Counter-based random numbers: Philox4x64-10, seeded as NumPy seeds, with the methods of NumPy's generators.

    `random_raw`, `random` and `bytes` give the bits of ``numpy.random.Generator(numpy.random.Philox(seed))``. All other
    draws take one word of the stream an element. Values depend on the seed and on what was drawn before, never on
    device, threads or processes: a draw reserves its range of the stream at once, and concurrent draws get disjoint
    ranges. A draw that fails for want of memory may have used up its range.

    ``shard=(rank, size)`` on a draw returns this rank's slice of the global draw (contiguous along axis 0, the first
    ``n % size`` ranks one row more), while the generator moves on by all of it. It belongs to the call, not to the
    generator, because one program draws both: weights that every rank has alike, and batches of which each has a part.

    Args:
        seed: a non-negative integer of any size; None draws 128 bits of entropy, kept as `seed`.
        sink: makes the arrays; None makes NumPy arrays, filled before the call returns.
        threads: most threads that fill one array; without effect on the values.

    Raises:
        ArgumentError: from any method, for an argument with a wrong value.
        UnsupportedError: from any method, for a dtype or an ability that is not there; names what to use.
        ForkedError: from any draw in a forked child that inherited the generator.

    >>> import tazza as tz
    >>> generator = tz.Generator(7)
    >>> generator.random(2)
    array([0.46881749, 0.42614584])
    >>> generator.integers(0, 10, 4, shard=(1, 2)).shape
    (2,)
    """

    __slots__ = (
        "__weakref__",
        "_children",
        "_generation",
        "_half",
        "_key",
        "_live",
        "_lock",
        "_position",
        "_seed",
        "_sink",
        "_threads",
    )

    def __init__(
        self,
        seed: int | None = None,
        *,
        sink: Sink | None = None,
        threads: int = 1,
    ) -> None:
        known = fresh_seed() if seed is None else checked_seed(seed)
        self._start(known, seed_key(known), sink, integer("threads", threads, least=1))

    def _start(self, seed: int, key: int, sink: Sink | None, threads: int) -> None:
        self._seed, self._key, self._sink, self._threads = seed, key, sink, threads
        self._position, self._children = 0, 0
        self._half: int | None = None
        self._live: np.random.Generator | None = None
        self._lock = threading.Lock()
        self._generation = process.generation

    def __repr__(self) -> str:
        return f"<Generator seed={self._seed} key={self._key:032x} position={self._position}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._sink is not None:
            raise UsageError("a generator of a context cannot be pickled or copied: send generator.state() instead")
        return _restored, (self.state(), self._threads)

    # Uniform values -------------------------------------------------------------------------------------------------

    def random(
        self,
        size: Size = None,
        dtype: DTypeLike = np.float64,
        out: NDArray[Any] | None = None,
        *,
        shard: Shard = None,
    ) -> Any:
        """Draw uniform values of [0, 1): multiples of 2**-53 (float64) or 2**-24 (float32, two from a word).

        Args:
            size: shape of the global draw; None for one value.
            dtype: float32 or float64.
            out: a NumPy array to fill and return instead of a new array; excludes ``shard``.
            shard: ``(rank, size)`` for a slice of the draw.
        """
        count = 1 if size is None else size if type(size) is int else -1
        if (
            0 <= count <= _DIRECT
            and dtype is _FLOAT64
            and out is None
            and shard is None
            and self._generation == process.generation
            and self._sink is None
        ):
            with self._lock:
                live = self._live or self._revived()
                try:
                    values = live.random(size)  # type: ignore[arg-type]  # None or an int, as `count` says
                    self._position += count
                except BaseException:
                    self._live = None  # an interrupt may have left it elsewhere than the position
                    raise
                return values
        kind = float_dtype(dtype)
        return self._draw(fill_random, size, kind, shard, _uniform_unit(kind), out)

    def uniform(
        self,
        low: float = 0.0,
        high: float = 1.0,
        size: Size = None,
        dtype: DTypeLike = np.float64,
        *,
        shard: Shard = None,
    ) -> Any:
        """Draw ``low + (high - low) * random()``, two rounded operations; ``low`` at most ``high``."""
        kind = float_dtype(dtype)
        shift, top = number("low", low, kind), number("high", high, kind)
        affine = Affine(number("high - low", top - shift, kind, least=0.0), shift)
        return self._draw(partial(fill_random, affine=affine), size, kind, shard, _uniform_unit(kind))

    def random_raw(self, size: Size = None, *, shard: Shard = None) -> Any:
        """Draw the stream's 64-bit words themselves, as uint64."""
        return self._draw(fill_words, size, np.dtype(np.uint64), shard)

    def bytes(self, length: int) -> builtins.bytes:
        """Draw random bytes, on the host at once; takes a half word for each four and, as in NumPy, one for none."""
        count = max(1, (integer("length", length, least=0) + 3) // 4)
        halves = np.empty(shape(count, 4), np.uint32)
        self._fill(fill_halves, halves.shape, 0, Unit.HALF)(halves)
        return halves.astype("<u4", copy=False).tobytes()[:length]

    def integers(
        self,
        low: int,
        high: int | None = None,
        size: Size = None,
        dtype: DTypeLike = np.int64,
        endpoint: bool = False,
        *,
        shard: Shard = None,
    ) -> Any:
        """Draw unbiased integers of ``[low, high)``, or ``[0, low)`` without ``high``; ``endpoint`` adds the end."""
        kind = integer_dtype(dtype)
        first, span = integer_range(low, high, kind, endpoint=endpoint)
        return self._draw(partial(fill_integers, low=first, span=span), size, kind, shard)

    # Other distributions --------------------------------------------------------------------------------------------

    def standard_normal(
        self,
        size: Size = None,
        dtype: DTypeLike = np.float64,
        out: NDArray[Any] | None = None,
        *,
        shard: Shard = None,
    ) -> Any:
        """Draw normal values of mean 0 and deviation 1; error bounds are in `tazza.rng.inverse`."""
        return self._draw(fill_normal, size, float_dtype(dtype), shard, out=out)

    def normal(
        self,
        loc: float = 0.0,
        scale: float = 1.0,
        size: Size = None,
        dtype: DTypeLike = np.float64,
        *,
        shard: Shard = None,
    ) -> Any:
        """Draw ``loc + scale * standard_normal()``, two rounded operations; ``scale`` at least 0."""
        kind = float_dtype(dtype)
        affine = Affine(number("scale", scale, kind, least=0.0), number("loc", loc, kind))
        return self._draw(partial(fill_normal, affine=affine), size, kind, shard)

    def standard_exponential(
        self,
        size: Size = None,
        dtype: DTypeLike = np.float64,
        method: str = "inv",
        out: NDArray[Any] | None = None,
        *,
        shard: Shard = None,
    ) -> Any:
        """Draw exponential values of mean 1 by the inverse method, the only one here."""
        if method != "inv":
            raise UnsupportedError(f"method {method!r} takes a varying number of words for a value; use 'inv'")
        return self._draw(fill_exponential, size, float_dtype(dtype), shard, out=out)

    def exponential(
        self, scale: float = 1.0, size: Size = None, dtype: DTypeLike = np.float64, *, shard: Shard = None
    ) -> Any:
        """Draw ``scale * standard_exponential()``; ``scale`` at least 0."""
        kind = float_dtype(dtype)
        affine = Affine(number("scale", scale, kind, least=0.0), 0.0)
        return self._draw(partial(fill_exponential, affine=affine), size, kind, shard)

    # Orders and samples ---------------------------------------------------------------------------------------------

    def permutation(self, x: Any, axis: int = 0, *, shard: Shard = None) -> Any:
        """Draw a random order of ``range(x)`` (int64), or return a copy of the array ``x`` reordered along ``axis``.

        Takes one word for each element of the order.
        """
        source = Source.of("x", x, axis, sharded=shard is not None)
        return self._selection(partial(fill_order, total=source.total), source.total, (source.total,), source, shard)

    def shuffle(self, x: NDArray[Any] | MutableSequence[Any], axis: int = 0) -> None:
        """Reorder a NumPy array or a list in place, on the host; takes one word for each element of the order."""
        if not isinstance(x, (np.ndarray, MutableSequence)):
            raise ArgumentError.of("x", x, "a NumPy array or a mutable sequence; use permutation for a reordered copy")
        source = Source.of("x", x, axis, sharded=False) if isinstance(x, np.ndarray) else Source(None, 0, len(x))
        order = np.empty(source.total, np.int64)
        self._fill(partial(fill_order, total=source.total, start=0), order.shape, 0, Unit.WHOLE)(order)
        if isinstance(x, np.ndarray):
            x[...] = np.take(x, order, axis=source.axis)
        else:
            x[:] = [x[index] for index in order.tolist()]

    def choice(
        self,
        a: Any,
        size: Size = None,
        replace: bool = True,
        p: None = None,
        axis: int = 0,
        shuffle: bool = True,
        *,
        shard: Shard = None,
    ) -> Any:
        """Draw elements of ``range(a)``, or of the array ``a`` along ``axis``, all equally likely.

        Without replacement it takes one word for each value, or one for each element of ``a`` where more than a 16th
        of them are wanted. The sample is in random order, also with ``shuffle=False``, which NumPy has to save time.
        """
        if p is not None:
            raise UnsupportedError("p: weighted choices are not supported; search cumulative weights for random()")
        source = Source.of("a", a, axis, sharded=shard is not None)
        whole, total = shape(size), source.total
        count = math.prod(whole)
        needed = min(count, 1) if replace else count
        if total < needed:
            raise ArgumentError.of("a", a, f"at least {needed} elements to choose {count} from")
        if replace:
            return self._selection(partial(fill_integers, low=0, span=total), None, whole, source, shard)
        kernel = partial(fill_sample, total=total, count=count)
        return self._selection(kernel, sample_words(total, count), whole, source, shard)

    # Streams and state ----------------------------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """The seed of this generator or, for a child, of its first ancestor."""
        return self._seed

    def split(self, n: int) -> list[Generator]:
        """Return ``n`` new, independent generators; later calls return others. Does not move the stream."""
        count = integer("n", n, least=0)
        self._check_process()
        with self._lock:
            first = self._children
            self._children += count
        return [self._derived("split", index) for index in range(first, first + count)]

    def for_purpose(self, name: str) -> Generator:
        """Return the independent generator of that name: always the same one, at its start."""
        return self._derived("purpose", text("name", name))

    def child(self, *key: int) -> Generator:
        """Return the independent generator of these integers: always the same one, at its start."""
        if not key:
            raise ArgumentError.of("key", key, "at least one integer")
        return self._derived("child", *(integer("key", number) for number in key))

    def on_host(self) -> Generator:
        """Return a generator at the same position, independent from now on, that makes NumPy arrays at once."""
        self._check_process()
        generator = Generator.__new__(Generator)
        with self._lock:
            generator._start(self._seed, self._key, None, self._threads)
            generator._position, generator._half, generator._children = self._position, self._half, self._children
        return generator

    def state(self) -> dict[str, Any]:
        """Return all that determines future values, as a dict that JSON can hold."""
        self._check_process()
        with self._lock:
            return Snapshot(self._seed, Cursor(self._key, self._position, self._half), self._children).to_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what any generator's `state` returned.

        Raises:
            CheckpointError: if it is damaged or foreign; nothing is changed then.
        """
        self._check_process()
        snapshot = Snapshot.from_dict(state)
        with self._lock:
            self._live = None
            self._seed, self._children = snapshot.seed, snapshot.children
            self._key, self._position, self._half = snapshot.cursor

    def _derived(self, kind: str, *parts: str | int) -> Generator:
        self._check_process()
        generator = Generator.__new__(Generator)
        key = derived_key(self._key, kind, *parts)
        generator._start(self._seed, key, self._sink, self._threads)
        return generator

    # How draws are made ---------------------------------------------------------------------------------------------

    def _check_process(self) -> None:
        if self._generation != process.generation:
            raise ForkedError(
                "this generator was made before the process was forked and would repeat its parent's numbers; make "
                "one in the child, for example Generator(seed).child(index of the child)"
            )

    def _revived(self) -> np.random.Generator:
        """Return a NumPy generator at this position, to be used and moved under the lock only."""
        live = np.random.Generator(Cursor(self._key, self._position, self._half).bit_generator())
        self._live = live
        return live

    def _reserve(self, count: int, unit: Unit) -> Cursor:
        """Move on by a draw of ``count`` elements and return where it starts."""
        self._check_process()
        with self._lock:
            cursor = Cursor(self._key, self._position, self._half)
            if count:
                self._live = None
                _, self._position, self._half = unit.after(cursor, count)
        return cursor

    def _fill(self, kernel: Kernel, whole: tuple[int, ...], start: int, unit: Unit, words: int | None = None) -> Fill:
        """Reserve a global draw and return what fills its elements from ``start`` on."""
        cursor = self._reserve(math.prod(whole) if words is None else words, unit)
        return Fill(kernel, cursor if unit is Unit.WHOLE else unit.after(cursor, start), unit, self._threads)

    def _draw(
        self,
        kernel: Kernel,
        size: Size,
        dtype: np.dtype[Any],
        shard: Shard,
        unit: Unit = Unit.WORD,
        out: NDArray[Any] | None = None,
    ) -> Any:
        """Draw independent elements into a new array, or into the user's."""
        whole = shape(size, dtype.itemsize)
        if out is None:
            mine = part(whole, shard)
            return self._placed(mine.shape, dtype, self._fill(kernel, whole, mine.start, unit))
        given = output(out, dtype)
        if shard is not None or (size is not None and whole != given.shape):
            raise ArgumentError.of("out", given.shape, "an array of the shape of the whole draw, without shard")
        self._fill(kernel, given.shape, 0, unit)(given)
        return given

    def _selection(
        self, kernel: Callable[..., None], words: int | None, whole: tuple[int, ...], source: Source, shard: Shard
    ) -> Any:
        """Draw indices, of ``words`` words together or one each, and return what they select."""
        mine = part(whole, shard)
        if words is None:
            indices = self._fill(kernel, whole, mine.start, Unit.WORD)
        else:
            indices = self._fill(partial(kernel, start=mine.start), whole, mine.start, Unit.WHOLE, words)
        if isinstance(source.array, np.ndarray):
            # A sink may fill later, when the caller may have changed the array.
            kept = source if self._sink is None else source._replace(array=source.array.copy())
            return self._placed(kept.selected(mine.shape), kept.array.dtype, Gather(kept, mine.shape, indices))
        placed = self._placed(mine.shape, np.dtype(np.int64), indices)
        return placed if source.array is None else source.take(placed, mine.shape)

    def _placed(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Callable[[NDArray[Any]], None]) -> Any:
        if self._sink is not None:
            return self._sink.place(shape, dtype, fill)
        out = np.empty(shape, dtype)
        fill(out)
        return out if shape else out[()]


def _restored(state: Mapping[str, Any], threads: int) -> Generator:
    generator = Generator(0, threads=threads)
    generator.restore(state)
    return generator


def _uniform_unit(dtype: np.dtype[Any]) -> Unit:
    """Return what a uniform float takes: as in NumPy, a float32 takes half a word."""
    return Unit.HALF if dtype.itemsize == 4 else Unit.WORD
