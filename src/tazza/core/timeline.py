"""What happened when: the record behind traces and run reports, made from the hooks in bounded memory.

A `Timeline` keeps slices (something ran from here to there), arrows between them, and how many bytes were live in each
account. Slices have a limit and those beyond it are counted. Series of live bytes lose time resolution instead, never a
peak, and figures per stream are exact whatever was left out.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final
from weakref import WeakKeyDictionary

from tazza.core.completion import now_ns
from tazza.core.event import Waitable
from tazza.core.submission import Record, Submission
from tazza.core.task import Task, TaskSubmission
from tazza.hot import Account, Operation, generation, listen

__all__ = ["Arrow", "Instant", "Series", "Slice", "Timeline", "Track", "Usage"]

HOST = "host"
_POINTS, _ACCOUNTS, _NAMES = 20_000, 40, 1_000
_LAUNCH_NS = 500  # width of a launch, which is told of at one moment and needs a slice for its arrow to start at


class Track(NamedTuple):
    """One line of the picture: a stream (`group` is its device) or a host thread (`group` is ``"host"``)."""

    group: str
    name: str


class Slice(NamedTuple):
    """Something on one track, from `start_ns` to `end_ns` of the process's clock.

    `kind` is ``task``, ``copy``, ``fill``, ``call``, ``record`` or ``wait`` on streams, ``launch`` or ``wait`` on host
    threads; `note` is empty, or ``"failed"``, ``"unfinished"``.
    """

    track: int
    kind: str
    name: str
    start_ns: int
    end_ns: int
    nbytes: int = 0
    note: str = ""


class Arrow(NamedTuple):
    """Cause and effect: from one place of the picture to a later one; ``launch`` or ``order``."""

    kind: str
    track: int
    time_ns: int
    to_track: int
    to_ns: int


class Instant(NamedTuple):
    """Something at one moment, such as an allocation that was refused."""

    kind: str
    name: str
    time_ns: int


@dataclass(slots=True)
class Usage:
    """Exact figures of one stream: how often and for how many nanoseconds; `busy_ns` counts nested work once.

    Attributes:
        counts: how many of each kind ran.
        busy_ns: tasks, copies and fills together.
        waiting_ns: it stood still because something else was not over.
        nbytes: moved and filled.
        failed: tasks that ended with a failure.
        tasks: for each name how many ran, nanoseconds for all together, and of the longest.
    """

    counts: dict[str, int] = field(default_factory=dict)
    busy_ns: int = 0
    waiting_ns: int = 0
    nbytes: int = 0
    failed: int = 0
    tasks: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    depth: int = 0

    def add(self, kind: str, name: str, elapsed_ns: int, nbytes: int, failed: bool) -> None:
        """Count something that has ended."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.nbytes += nbytes
        self.failed += failed
        if kind == "wait":
            self.waiting_ns += elapsed_ns
        elif not self.depth:
            self.busy_ns += elapsed_ns
        if kind == "task":
            key = name if name in self.tasks or len(self.tasks) < _NAMES else "(other names)"
            count, total, longest = self.tasks.get(key, (0, 0, 0))
            self.tasks[key] = count + 1, total + elapsed_ns, max(longest, elapsed_ns)


@final
class Series:
    """Live bytes of one owner over time; when it is full, pairs of points become one that keeps the larger value.

    Accounts of equal names are one owner: a program makes a budget anew for each request.

    Attributes:
        owner: names of the accounts, the device's first.
        accounts: those that have held something since it was last looked at.
        points: ``(time_ns, bytes)``, ascending.
    """

    __slots__ = ("_halving", "accounts", "owner", "points")

    def __init__(self, owner: tuple[str, ...]) -> None:
        self.owner = owner
        self.accounts: dict[int, Account] = {}
        self.points: list[tuple[int, int]] = []
        self._halving = threading.Lock()

    def note(self, time_ns: int) -> None:
        """Add what is live now, where that is something else than before."""
        live = 0
        for account in list(self.accounts.values()):
            live += account.live
            if not account.live and len(self.accounts) > 1:
                self.accounts.pop(id(account), None)
        if self.points and self.points[-1][1] == live:
            return
        self.points.append((time_ns, live))
        if len(self.points) >= _POINTS and self._halving.acquire(blocking=False):
            # Whoever comes in between appends behind what is replaced here in one step.
            try:
                count = len(self.points) // 2 * 2 - 2
                pairs = zip(self.points[0:count:2], self.points[1:count:2], strict=True)
                self.points[:count] = [max(pair, key=lambda point: point[1]) for pair in pairs]
            finally:
                self._halving.release()


@final
class Timeline:
    """Listens at the hooks from `start` to `stop`; holds no buffer, task or event alive.

    Args:
        limit: slices that are kept, and as many arrows; later ones are counted in `lost`.

    Attributes:
        tracks, slices, arrows, instants: see the classes.
        usage: for each stream's track its figures.
        start_ns, stop_ns: of the process's clock; `epoch_ns` is the start in nanoseconds since the epoch.
        lost: slices and arrows that there was no room for.

    >>> import tazza as tz
    >>> timeline = Timeline(1000)
    >>> timeline.start()
    >>> with tz.open("cpu") as ctx:
    ...     total = ctx.launch(sum, [1, 2], label="add").result()
    >>> timeline.stop()
    True
    >>> [(one.kind, one.name) for one in timeline.slices]
    [('launch', 'launch add'), ('task', 'add')]
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tracks: list[Track] = []
        self.slices: list[Slice] = []
        self.arrows: list[Arrow] = []
        self.instants: list[Instant] = []
        self.usage: dict[int, Usage] = {}
        self.start_ns = self.stop_ns = self.epoch_ns = 0
        self.lost = 0
        self._lock = threading.Lock()  # only for what is new: tracks, accounts, and counting what is lost
        self._streams: WeakKeyDictionary[Any, dict[int, int]] = WeakKeyDictionary()
        self._threads: dict[tuple[int, str], int] = {}
        self._owners: dict[tuple[str, ...], Series] = {}
        self._open: dict[tuple[int, int], int] = {}
        self._unfinished: dict[tuple[int, int], tuple[str, str]] = {}
        # A waiter may be told of before what it waited for: arrows are drawn at the end, from numbers.
        self._numbers: WeakKeyDictionary[Waitable, int] = WeakKeyDictionary()
        self._next_number = itertools.count()
        self._begins: dict[int, tuple[int, int]] = {}
        self._ends: dict[int, tuple[int, int]] = {}
        self._orders: list[tuple[int, int, int]] = []
        self._generation = generation()
        self._unlisten: Callable[[], None] | None = None
        self._handlers: dict[str, Callable[[Operation, int], None]] = {
            "allocate": self._on_memory,
            "begin": self._on_begin,
            "end": self._on_end,
            "free": self._on_memory,
            "launch": self._on_launch,
            "oom": self._on_refusal,
            "record": self._on_record,
        }

    def start(self) -> None:
        """Begin to listen."""
        self.epoch_ns, self.start_ns = time.time_ns(), now_ns()
        self._unlisten = listen(self._hear)

    def stop(self) -> bool:
        """End listening; what still runs becomes a slice up to now. False where it was over, or another process is."""
        unlisten, self._unlisten = self._unlisten, None
        if unlisten is None:
            return False
        unlisten()
        if self._generation != generation():
            return False
        self.stop_ns = now_ns()
        for key, start in list(self._open.items()):
            kind, name = self._unfinished.get(key, ("call", ""))
            self._keep(Slice(key[0], kind, name, start, self.stop_ns, 0, "unfinished"))
        for number, track, at in self._orders:
            if (end := self._ends.get(number)) is not None:
                self.arrows.append(Arrow("order", end[0], min(end[1], at), track, at))
        for left in (self._open, self._unfinished, self._begins, self._ends, self._orders):
            left.clear()
        return True

    # What the hooks tell -------------------------------------------------------------------------------------------

    def _hear(self, operation: Operation) -> None:
        handler = self._handlers.get(operation.kind)
        if handler is not None and self._generation == generation():  # a forked child is not traced
            handler(operation, now_ns())

    def _on_launch(self, operation: Operation, now: int) -> None:
        track = self._thread_track()
        if self._keep(Slice(track, "launch", f"launch {operation.label}", now, now + _LAUNCH_NS)):
            self._begins[self._number(operation.subject)] = track, now

    def _on_record(self, operation: Operation, now: int) -> None:
        self._number(operation.subject)

    def _on_begin(self, operation: Operation, now: int) -> None:
        subject = operation.subject
        track = self._track(operation.stream)
        if isinstance(subject, Submission):
            self._unfinished[track, id(subject)] = _kind_of(subject), subject.label
            self.usage[track].depth += 1
        else:
            self._unfinished[track, id(subject)] = "wait", _wait_name(subject)
        self._open[track, id(subject)] = now
        if isinstance(subject, TaskSubmission):
            launched = self._begins.pop(self._number(subject.task), None)
            if launched is not None and self._has_room(self.arrows):
                self.arrows.append(Arrow("launch", *launched, track, now))
            self._order((*subject.host_needs, *subject.needs), track, now)

    def _on_end(self, operation: Operation, now: int) -> None:
        subject = operation.subject
        track = self._track(operation.stream)
        start = self._open.pop((track, id(subject)), None)
        self._unfinished.pop((track, id(subject)), None)
        if start is None:  # it began before anybody listened
            return
        if isinstance(subject, Submission):
            self._end_submission(subject, track, start, now)
            return
        name = _wait_name(subject)
        if track in self.usage:
            self.usage[track].add("wait", name, now - start, 0, False)
        self._keep(Slice(track, "wait", name, start, now))
        self._order((subject,), track, now - 1)

    def _end_submission(self, subject: Submission, track: int, start: int, now: int) -> None:
        kind, usage = _kind_of(subject), self.usage[track]
        usage.depth -= 1
        if isinstance(subject, Record):
            if subject.event not in self._numbers:  # tazza's own, for the order of memory
                return
            end: tuple[Waitable, int] | None = (subject.event, start)
        else:
            end = (subject.task, max(start, now - 1)) if isinstance(subject, TaskSubmission) else None
        failed = isinstance(subject, TaskSubmission) and subject.task.error is not None
        usage.add(kind, subject.label, now - start, subject.nbytes, failed)
        kept = self._keep(Slice(track, kind, subject.label, start, now, subject.nbytes, "failed" if failed else ""))
        if end is not None and kept:
            self._ends[self._number(end[0])] = track, end[1]

    def _on_memory(self, operation: Operation, now: int) -> None:
        subject = operation.subject
        account = getattr(subject, "block", subject).account
        while account is not None:
            self._know(account)
            account = account.parent
        # All of them at once: other threads have changed theirs and may tell of it much later.
        for series in list(self._owners.values()):
            series.note(now)

    def _on_refusal(self, operation: Operation, now: int) -> None:
        if len(self.instants) < self.limit:
            self.instants.append(Instant("oom", getattr(operation.subject, "name", "out of memory"), now))

    # Keeping -------------------------------------------------------------------------------------------------------

    def _keep(self, one: Slice) -> bool:
        if room := self._has_room(self.slices):
            self.slices.append(one)
        return room

    def _has_room(self, kept: list[Any]) -> bool:
        if len(kept) < self.limit:
            return True
        with self._lock:
            self.lost += 1
        return False

    def _number(self, what: Waitable) -> int:
        number = self._numbers.get(what)
        return self._numbers.setdefault(what, next(self._next_number)) if number is None else number

    def _order(self, needs: tuple[Any, ...], track: int, now: int) -> None:
        for need in needs:
            number = self._numbers.get(need) if isinstance(need, Waitable) else None
            if number is not None and self._has_room(self._orders):
                self._orders.append((number, track, now))

    def _track(self, stream: Any) -> int:
        return self._thread_track() if stream is None else self._stream_track(stream)

    def _thread_track(self) -> int:
        key = threading.get_ident(), threading.current_thread().name
        track = self._threads.get(key)
        return self._new_track(self._threads, key, Track(HOST, key[1])) if track is None else track

    def _stream_track(self, stream: Any) -> int:
        """The track of a stream; an inline one has another in each thread, where it may run at the same time."""
        runner = stream.runner
        thread = threading.get_ident() if runner.is_inline else 0
        tracks = self._streams.get(runner)
        if tracks is None:
            tracks = self._streams.setdefault(runner, {})
        track = tracks.get(thread)
        if track is not None:
            return track
        main = not runner.is_inline or threading.current_thread() is threading.main_thread()
        name = runner.label if main else f"{runner.label} in {threading.current_thread().name}"
        return self._new_track(tracks, thread, Track(runner.runtime.name, name))

    def _new_track(self, known: dict[Any, int], key: Any, track: Track) -> int:
        with self._lock:
            number = known.get(key)
            if number is None:
                number = len(self.tracks)
                self.tracks.append(track)
                if track.group != HOST:
                    self.usage[number] = Usage()
                known[key] = number
            return number

    def _know(self, account: Account) -> None:
        """Follow an account from now on; where there are too many owners it counts in its parents only."""
        names = []
        above: Account | None = account
        while above is not None:
            names.append(above.name)
            above = above.parent
        owner = tuple(reversed(names))
        series = self._owners.get(owner)
        if series is None and len(self._owners) < _ACCOUNTS:
            series = self._owners.setdefault(owner, Series(owner))
        if series is not None:
            series.accounts.setdefault(id(account), account)

    @property
    def series(self) -> list[Series]:
        """Live bytes of each owner, in the order in which they first held something."""
        return list(self._owners.values())


def _kind_of(submission: Submission) -> str:
    if isinstance(submission, TaskSubmission):
        return "task"
    return submission.label if submission.label in ("copy", "fill", "record") else "call"


def _wait_name(what: Any) -> str:
    if isinstance(what, Task):
        return f"wait for {what.label}"
    stream = getattr(what, "stream", what)
    return f"wait for {getattr(stream, 'label', None) or 'an event'}"
