"""The outcome of an examination."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, final

from tazza.doctor.facts import Facts
from tazza.doctor.findings import Finding, Severity

__all__ = ["Report"]


@final
@dataclass(frozen=True, slots=True)
class Report:
    """Facts, and what is to be said about them.

    Attributes:
        facts: everything that was found out.
        findings: the most severe first.

    Example:
        >>> import tazza.doctor
        >>> report = tazza.doctor.examine()
        >>> report.healthy == (not any(finding.severity == "error" for finding in report.findings))
        True
    """

    facts: Facts
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no finding of the severity *error*."""
        return not any(finding.severity is Severity.ERROR for finding in self.findings)

    def coherence(self) -> dict[str, bool]:
        """For each family of loaded libraries, whether the set is coherent: no error and no warning is about it."""
        wrong = {finding.family for finding in self.findings if finding.severity is not Severity.NOTE}
        families = dict.fromkeys(library.family for library in self.facts.libraries if library.loaded)
        return {family: family not in wrong for family in families}

    def count(self) -> dict[str, int]:
        """How many findings there are of each severity, the most severe first."""
        counted = Counter(finding.severity for finding in self.findings)
        return {severity.value: counted[severity] for severity in Severity}

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's types; the keys are those of the classes and stay."""
        return {
            "healthy": self.healthy,
            "count": self.count(),
            "coherence": self.coherence(),
            **asdict(self.facts),
            "environment": dict(self.facts.environment),
            "preloaded": dict(self.facts.preloaded),
            "findings": [asdict(finding) for finding in self.findings],
        }
