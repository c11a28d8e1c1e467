"""``python -m benchmarks.compare_hooks``: the instrumentation point against a build that does not have it.

Copies the sources twice, takes every test for a listener out of one copy, builds both as the installed tazza was built
(compiled or not; compiling needs Cython), and times the same operations in alternating processes. What a budget of 1.02
means for an operation of 50 ns can only be seen like this; the area ``hooks`` estimates it in one process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.report import BUILD

ROOT = Path(__file__).parents[1]
ROUNDS, AT_MOST = 31, 1.02
TESTS = {"point.listeners is not None": "False", "point.listeners is None": "True"}
MEASURE = """
import json
import tazza as tz
from benchmarks.harness import Case, measure
ctx = tz.context("cpu", memory_limit="1GiB")
names = {"ctx": ctx, "a": ctx.allocate(64), "b": ctx.allocate(64), "allocate": ctx.allocate}
statements = {
    "allocate + free": "allocate(1024)",
    "copy": "ctx.copy(a, b)",
    "fill": "ctx.fill(a, 0)",
    "launch": "ctx.launch(int)",
    "record + synchronize": "ctx.stream.record().synchronize()",
}
cases = [Case(name, statement, names) for name, statement in statements.items()]
seen = measure(cases, rounds=15, sample_seconds=2e-3)
print(json.dumps({name: min(seconds) for name, seconds in seen.items()}))
"""


def build(folder: Path, *, hooks: bool) -> Path:
    """Make a copy of the sources, with or without the tests for a listener, and return what to import it from."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    if not hooks:
        for path in (folder / "src").rglob("*.py"):
            text = path.read_text("utf-8")
            for test, outcome in TESTS.items():
                text = text.replace(test, outcome)
            path.write_text(text, "utf-8")
    if BUILD == "compiled":
        environment = os.environ | {"TAZZA_COMPILE": "1"}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=folder, env=environment, timeout=600, check=True, stdout=subprocess.DEVNULL)
    return folder / "src"


def measure(source: Path) -> dict[str, float]:
    """Seconds per operation, in a fresh process that imports tazza from ``source``."""
    command, environment = [sys.executable, "-c", MEASURE], os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    """Print for each operation the time with and without hooks; return 1 where a ratio is over the budget."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = {hooks: Path(temporary) / str(hooks) for hooks in (True, False)}
        sources = {hooks: build(folder, hooks=hooks) for hooks, folder in folders.items()}
        pairs = [(measure(sources[True]), measure(sources[False])) for _ in range(ROUNDS)]
    missed = 0
    for name in pairs[0][0]:
        ratio = median(ours[name] / bare[name] for ours, bare in pairs)
        missed += ratio > AT_MOST
        time = median(ours[name] for ours, _ in pairs) * 1e9
        print(f"{name:<22} {time:>9.1f} ns   {ratio:.3f} (at most {AT_MOST})   {BUILD}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
