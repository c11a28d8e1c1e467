"""Where CUDA cannot be used: importing is clean, other devices work, and everybody who asks is told the same."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.cuda.conftest import ROOT, missing

LOOK = """
    import sys
    import tazza as tz

    def traces():
        modules = [name for name in sys.modules if name.split(".")[0] in ("cuda", "cupy", "numba", "torch")]
        return modules, "libcuda" in open("/proc/self/maps").read()

    assert traces() == ([], False), traces()
    tz.backends()
    with tz.open("cpu") as ctx:
        ctx.asarray([1.0])
    assert traces() in ((["cuda"], False), ([], False)), traces()  # looking for cuda.bindings finds what it is in
    assert {device.kind for device in tz.devices()} == {"cpu", "sim"}
    assert tz.device("auto").kind == "cpu"
    told = set()
    for ask in (lambda: tz.devices("cuda"), lambda: tz.context("cuda"), lambda: tz.context("cuda:0"), tz.CUDAContext):
        try:
            ask()
        except tz.errors.BackendUnavailableError as error:
            assert error.reason in str(error) and error.hint in str(error)
            told.add((error.reason, error.hint))
        else:
            raise AssertionError("there is a CUDA device")
    [status] = [one for one in tz.backends() if one.name == "cuda"]
    assert not status.usable
    told.add((status.reason, status.hint))
    [(reason, hint)] = told  # the same to everybody
    print(reason)
    print(hint)
"""

HIDE = """
    import sys

    class Hide:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "cuda":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Hide())
"""


def environment(case: str, folder: Path) -> dict[str, str]:
    """The variables of a process in which a case of having no GPU is true."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "TAZZA_", "COV_"))}
    environ.pop("LD_LIBRARY_PATH", None)
    if case == "no bindings":
        (folder / "sitecustomize.py").write_text(textwrap.dedent(HIDE))
        paths.insert(0, str(folder))
    elif reason := missing():
        pytest.skip(reason)
    if case == "no device":
        import cuda_emulator

        environ = cuda_emulator.environment(cuda_emulator.Settings(), cuda_emulator.library(), environ)
        environ["CUDA_VISIBLE_DEVICES"] = ""
    return environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(environ: dict[str, str], *arguments: str) -> str:
    """Run this interpreter; returns what it printed."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


CASES = {
    "no bindings": ("no module 'cuda'", "pip install 'tazza[cuda13]'", "no module 'cuda'"),
    "no driver": ("no library libcuda.so.1", "install NVIDIA's driver", "no library libcuda.so.1"),
    "no device": ("CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES is set", "CUDA_ERROR_NO_DEVICE"),
}
"""What is told as the reason, as what to do, and by the doctor."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    """A way of having no GPU."""
    if request.param == "no driver" and any(Path("/dev").glob("nvidia*")):
        pytest.skip("this machine has NVIDIA's driver")
    return str(request.param)


def test_whoever_asks_for_a_device_is_told_why_there_is_none_and_what_to_do(case: str, tmp_path: Path) -> None:
    reason, hint = run(environment(case, tmp_path), "-c", textwrap.dedent(LOOK)).splitlines()
    assert CASES[case][0] in reason
    assert CASES[case][1] in hint


@pytest.mark.slow
def test_the_commands_say_the_same(case: str, tmp_path: Path) -> None:
    environ = environment(case, tmp_path) | {"COLUMNS": "200"}
    listed = run(environ, "-m", "tazza", "devices")
    assert CASES[case][0] in listed
    assert CASES[case][1] in listed
    assert "cuda:0" not in listed
    assert CASES[case][2] in run(environ, "-m", "tazza", "doctor")


def test_in_a_forked_child_there_are_no_cuda_devices_and_it_is_told_why(tmp_path: Path) -> None:
    environ = environment("no device", tmp_path)
    del environ["CUDA_VISIBLE_DEVICES"]
    script = """
        import tazza as tz
        from tests.process.children import in_fork

        assert len(tz.devices("cuda")) == 2

        def child():
            assert {device.kind for device in tz.devices()} == {"cpu", "sim"}
            try:
                tz.context("cuda")
            except tz.errors.BackendUnavailableError as error:
                assert "forked" in error.reason and "spawn" in error.hint
            else:
                raise AssertionError("CUDA after fork")
            [status] = [one for one in tz.backends() if one.name == "cuda"]
            assert "forked" in status.reason and "spawn" in status.hint and not status.usable

        in_fork(child)
        assert len(tz.devices("cuda")) == 2
    """
    run(environ, "-c", textwrap.dedent(script))
