"""The documentation is true: every snippet runs, and what repeats the code equals it."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tazza as tz
from tazza import config, errors
from tazza.cli.exits import ExitCode
from tazza.hot import COMPILED
from tazza.testing import simulate
from tests.interop import need

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in one language, each with the number of its first line."""
    text = path.read_text("utf-8")
    return [(text[: m.start()].count("\n") + 2, m[2]) for m in _BLOCK.finditer(text) if m[1] == language]


def libraries(page: Path) -> list[str]:
    """What a page's snippets import besides tazza's own dependencies; its first line is ``<!-- needs: torch -->``."""
    found = re.match(r"<!-- needs: (.*) -->\n", page.read_text("utf-8"))
    return found[1].split() if found else []


def marks(page: Path) -> list[pytest.MarkDecorator]:
    """Where a page's snippets run: cuDNN is in an environment of its own."""
    needed = libraries(page)
    return [pytest.mark.cudnn] if "cudnn" in needed else [pytest.mark.interop] if needed else []


ON_THE_EMULATOR = [page for page in PAGES if "cuda_emulator" in libraries(page)]
"""Run by tests/cuda/test_guide.py."""

WITH_PYTHON = [
    pytest.param(page, marks=marks(page), id=str(page.relative_to(ROOT)))
    for page in PAGES
    if blocks(page, "python") and page not in ON_THE_EMULATOR
]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in libraries(page):
        need(library)
    monkeypatch.chdir(tmp_path)
    run_snippets(page)


def run_snippets(page: Path) -> None:
    """The snippets of a page run in order, in one namespace, and leave no context behind.

    A comment ``# prints: text`` after a snippet's last line pins what the whole snippet prints; one with
    ``# needs: the compiled part`` is left out where there is none.
    """
    names: dict[str, object] = {"__name__": "snippet"}
    with simulate(devices=2):  # whatever an earlier test did to the simulated devices
        for line, source in blocks(page, "python"):
            if "# needs: the compiled part" in source and not COMPILED:
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("\n" * (line - 1) + source, str(page), "exec"), names)
            if expected := re.findall(r"^# prints: (.*)$", source, re.MULTILINE):
                assert output.getvalue().splitlines() == expected, f"{page.name}, line {line}"
    with pytest.raises(errors.NoCurrentContextError):
        tz.current()


def test_the_backend_of_the_guide_passes_the_contract_that_it_declares(tmp_path: Path) -> None:
    [(_, driver), *_] = blocks(DOCS / "guides" / "write-a-backend.md", "python")
    register = "import tazza as tz\ntz.register_backend('npu', NpuDriver)\n"
    (tmp_path / "npu_backend.py").write_text(driver + register, "utf-8")
    options = ["-q", "-p", "no:cacheprovider", "-p", "npu_backend", "--tazza-backend=npu"]
    command = [sys.executable, "-m", "pytest", *options, "--pyargs", "tazza.testing.contract"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_console_examples_run(page: Path) -> None:
    for line, source in blocks(page, "pycon"):
        test = doctest.DocTestParser().get_doctest(source, {"tz": tz}, page.name, str(page), line)
        report: list[str] = []
        failed = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append).failed
        assert not failed, "".join(report)


def test_the_readme_opens_with_a_short_example() -> None:
    [(_, source), *_] = blocks(ROOT / "README.md", "python")
    assert len(source.splitlines()) <= 15


def test_the_error_tree_is_the_one_in_the_code() -> None:
    [(_, drawn)] = [block for block in blocks(DOCS / "errors.md", "text") if "TazzaError" in block[1]]
    text = (errors.__doc__ or "").replace("\n    ", "\n")
    start, end = text.index("TazzaError"), text.index("Every error can")
    assert [line.rstrip() for line in drawn.strip().splitlines()] == text[start:end].strip().splitlines()


def test_every_environment_variable_is_documented() -> None:
    def variables(text: str) -> set[str]:
        return set(re.findall(r"TAZZA_[A-Z_]+", text))

    page = (DOCS / "environment.md").read_text("utf-8")
    table = {name for line in page.splitlines() if line.startswith("| `TAZZA") for name in variables(line)}
    assert variables(config.__doc__ or "") <= table
    used = {name for path in (ROOT / "src").rglob("*.py") for name in variables(path.read_text("utf-8"))}
    assert used <= table, f"not in docs/environment.md: {sorted(used - table)}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    missing = [page.name for page in DOCS.rglob("*.md") if str(page.relative_to(DOCS)) not in navigation]
    assert not missing, f"add to nav in mkdocs.yml: {missing}"


def test_the_mapping_from_caffe2_names_what_exists() -> None:
    """Every ``tz.name`` is public; every row has a file of code and a test that exist."""
    page = (DOCS / "caffe2.md").read_text("utf-8")
    rows = [line.strip().strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in row] for row in rows if row[0].strip() != "Caffe2"]
    assert len(rows) > 60
    named = {name for row in rows for name in re.findall(r"`tz\.(\w+)", row[1])}
    missing = sorted(name for name in named if not hasattr(tz, name))
    assert not missing, f"not public: {missing}"
    for what, _, _, where in rows:
        code, test = re.findall(r"`([^`]+)`", where)
        file, _, name = test.partition("::")
        assert (ROOT / "src" / "tazza" / code).is_file(), f"{what}: no {code}"
        path = ROOT / "tests" / file
        assert path.exists(), f"{what}: no {file}"
        assert not name or f"\ndef {name}(" in path.read_text("utf-8"), f"{what}: no {name} in {file}"


def test_the_exit_codes_are_the_ones_in_the_code() -> None:
    page = (DOCS / "command-line.md").read_text("utf-8")
    table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE))
    assert table == {str(int(code)): code.meaning for code in ExitCode}
