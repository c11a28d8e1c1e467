"""``tazza doctor``: which libraries a process has, where they come from, and whether they fit together.

Facts are collected once, as plain values (`Facts`); small checks look at nothing else and return findings, each with
its fix. `docs/guides/doctor.md` lists all of them.
"""

from tazza.doctor.examine import examine as examine
from tazza.doctor.facts import Facts as Facts
from tazza.doctor.facts import Library as Library
from tazza.doctor.findings import Finding as Finding
from tazza.doctor.findings import Severity as Severity
from tazza.doctor.report import Report as Report
