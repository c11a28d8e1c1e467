"""Time small statements side by side and judge their ratios.

Every case is a statement that runs in a tight loop (`timeit`, garbage collector off). All cases of an area run
interleaved, one short sample each per round, in one process: whatever the machine does meanwhile it does to all of
them. A budget compares two cases by the median over the rounds of their ratio *within* a round.

    >>> cases = [Case("sum.small.tuple", "sum(x)", {"x": (1, 2)}), Case("sum.small.list", "sum(x)", {"x": [1, 2]})]
    >>> results = measure(cases, rounds=3, sample_seconds=1e-4)
    >>> sorted(results)
    ['sum.small.list', 'sum.small.tuple']
    >>> judge([Budget("sum.small.tuple", "sum.small.list", at_most=100.0)], results)[0].verdict
    'ok'
"""

from __future__ import annotations

import timeit
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from statistics import geometric_mean, median

__all__ = ["Area", "Budget", "Case", "Missing", "Verdict", "judge", "measure"]


@dataclass(frozen=True)
class Case:
    """One statement to time.

    Attributes:
        id: ``area.case.who``; the same ``area.case`` with another ``who`` does the same work by other means.
        statement: Python source, run many times.
        names: what the statement's names mean.
        setup: source that runs once before each sample, outside the time.
        operations: how many operations one run of the statement performs; times are per operation.
        rounds: samples at most, where one takes long.
    """

    id: str
    statement: str
    names: Mapping[str, object]
    setup: str = "pass"
    operations: int = 1
    rounds: int | None = None


@dataclass(frozen=True)
class Missing:
    """A case that cannot run here, with the reason; it is listed, never an error."""

    id: str
    reason: str


@dataclass(frozen=True)
class Budget:
    """The time of one case may be at most ``at_most`` times that of another.

    With a ``*`` in both names it is about all pairs of cases that are named alike, with the same text there, and about
    the geometric mean of their ratios. It is not judged where one of them lacks its peer.

    Attributes:
        gated: a miss fails ``--check``; otherwise the ratio is only reported.
    """

    case: str
    peer: str
    at_most: float
    gated: bool = True


@dataclass(frozen=True)
class Area:
    """The cases of one subject and what is promised about them.

    Attributes:
        cases: what is timed.
        budgets: what is promised; they may name amounts too.
        amounts: what is counted and not timed, by id, for example bytes.
        scope: entered while the cases run, for example a limit on threads.
    """

    cases: Sequence[Case | Missing]
    budgets: Sequence[Budget] = ()
    amounts: Mapping[str, float] = field(default_factory=dict)
    scope: AbstractContextManager[object] = field(default_factory=nullcontext)


@dataclass(frozen=True)
class Verdict:
    """A budget with the ratio that was seen, or None where one side is missing."""

    budget: Budget
    ratio: float | None

    @property
    def verdict(self) -> str:
        """``ok``, ``MISSED``, ``over (reported)`` or ``not measured``."""
        if self.ratio is None:
            return "not measured"
        if self.ratio <= self.budget.at_most:
            return "ok"
        return "MISSED" if self.budget.gated else "over (reported)"


def measure(cases: Sequence[Case], *, rounds: int, sample_seconds: float) -> dict[str, list[float]]:
    """Return for each case its seconds per operation in every round.

    Args:
        cases: what to run, interleaved; each round starts with another case, and every other one runs backwards, as
            who comes second finds in the caches what both use.
        rounds: samples per case.
        sample_seconds: how long one sample lasts at least; less than twice that on a quiet machine.
    """
    timers = [timeit.Timer(case.statement, case.setup, globals=dict(case.names)) for case in cases]
    counts = [_count(timer, sample_seconds) for timer in timers]
    results: dict[str, list[float]] = {case.id: [] for case in cases}
    for turn in range(rounds):
        for step in range(len(cases)):
            i = (turn - step if turn % 2 else turn + step) % len(cases)
            if turn >= (cases[i].rounds or rounds):
                continue
            results[cases[i].id].append(timers[i].timeit(counts[i]) / counts[i] / cases[i].operations)
    return {case.id: results[case.id] for case in cases}


def judge(budgets: Sequence[Budget], results: Mapping[str, Sequence[float]]) -> list[Verdict]:
    """Compare the measured ratios with the budgets."""
    verdicts = []
    for budget in budgets:
        ratios = [_ratio(results, *pair) for pair in _pairs(budget, results)]
        known = [ratio for ratio in ratios if ratio is not None]
        verdicts.append(Verdict(budget, geometric_mean(known) if known and len(known) == len(ratios) else None))
    return verdicts


def _pairs(budget: Budget, names: Iterable[str]) -> list[tuple[str, str]]:
    """The cases that a budget compares."""
    head, star, tail = budget.case.partition("*")
    if not star:
        return [(budget.case, budget.peer)]
    alike = [name for name in names if name.startswith(head) and name.endswith(tail)]
    return [(name, budget.peer.replace("*", name[len(head) : len(name) - len(tail)])) for name in alike]


def _ratio(results: Mapping[str, Sequence[float]], case: str, peer: str) -> float | None:
    pairs = zip(results.get(case, ()), results.get(peer, ()), strict=False)
    ratios = [ours / theirs for ours, theirs in pairs]
    return median(ratios) if ratios else None


def _count(timer: timeit.Timer, seconds: float) -> int:
    timer.timeit(1)  # the first run may import or compile something
    count = 1
    # The smaller of two: one hiccup of the machine must not leave a case with samples that are too short.
    while min(timer.repeat(2, count)) < seconds:
        count *= 2
    return count
