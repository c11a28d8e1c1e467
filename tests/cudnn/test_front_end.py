"""The real front end in a process without a device: what its plans say, what its calls take, and what they raise.

Nothing is executed. Each script runs in a child, as this process must not load the libraries.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from tazza.dnn.cuda.serialized import written_in
from tazza.dnn.cudnn import A100, H100, CudnnPlanner
from tazza.dnn.cudnn.stub import build_stub
from tazza.errors import ArgumentError, UnsupportedError, WrongDeviceError
from tests.cudnn.test_plans import CASES

INSTALLED = all(importlib.util.find_spec(name) for name in ("cudnn", "nvidia"))
REQUIRED = os.environ.get("TAZZA_CUDNN") == "1"
pytestmark = [
    pytest.mark.cudnn,
    pytest.mark.skipif(not INSTALLED and not REQUIRED, reason="cuDNN is not installed; run tools/cudnn-tests"),
]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CudnnPlanner]:
    with CudnnPlanner(timeout=100, cache=tmp_path_factory.mktemp("cache")) as planner:
        yield planner


@pytest.mark.parametrize("name", CASES)
def test_a_plan_names_its_versions_device_and_arrays(planner: CudnnPlanner, name: str) -> None:
    plan = planner.plan(CASES[name].operation, H100)
    written = written_in(plan)
    given = [number for number, one in enumerate((*plan.operation.inputs, *plan.operation.outputs), 1) if one]
    assert set(written.numbers) <= set(given)
    assert (written.version, written.front_end) == (92800, 12300)
    written.check_version(plan.version)
    written.check_front_end(planner.info().front_end)
    written.check_device((900, 132), H100.name, "cuda:0")
    with pytest.raises(WrongDeviceError, match=r"H100.*\(deviceVer 900, 132 .*cuda:0 is NVIDIA A100.*\(800, 108\)"):
        written.check_device((800, 108), A100.name, "cuda:0")
    with pytest.raises(UnsupportedError, match="made by cuDNN 92800, and 92900"):
        written.check_version(92900)


def test_a_plan_of_another_operation_is_seen(planner: CudnnPlanner) -> None:
    plan = planner.plan(CASES["conv"].operation, H100)
    other = planner.plan(CASES["conv-f32"].operation, H100)
    object.__setattr__(plan, "operation", other.operation)
    with pytest.raises(ArgumentError, match="not of the conv2d"):
        written_in(plan)


START = """
import contextlib, ctypes, inspect, json, sys
from types import SimpleNamespace
from tazza.dnn.cudnn import A100, H100, describe
from tazza.dnn.cudnn.child import Planner
from tazza.dnn.cudnn.graphs import graph_of
from tazza.dnn.cudnn.coherence import examine_installation
from tazza.errors import *
planner = Planner()
said = planner.start({"cudnn": str(examine_installation().library), "stub": sys.argv[1]})
cudnn = planner.front
x, w = describe.channels_last("float16", 2, 8, 6, 6), describe.channels_last("float16", 16, 8, 3, 3)
operation = describe.conv2d(x, w, padding=1, bias=True, activation="relu")
made = planner.plan({"graph": graph_of(operation), "device": H100.to_json(), "sm_version": 90, "max_workspace": None,
                     "deterministic": False})
import base64
serialized = base64.b64decode(made["serialized"])
asked = []
class Primary(contextlib.AbstractContextManager):
    def check(self, call): asked.append(call)
    def check_whole(self, call): asked.append("whole " + call)
    def __exit__(self, *_): pass
runtime = SimpleNamespace(driver=SimpleNamespace(current=lambda info: Primary()), info=None)
from tazza.dnn.cuda.front_end import FrontEnd
front = FrontEnd(cudnn, SimpleNamespace(version=(9, 28, 0)))
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_stub(tmp_path_factory.mktemp("stub"), timeout=60))


def in_child(stub: str, script: str) -> str:
    command = [sys.executable, "-c", START + textwrap.dedent(script), stub]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_its_calls_take_what_ours_give(stub: str) -> None:
    """What the stand-in of the tests on emulated devices copies."""
    in_child(
        stub,
        """
        taken = list(inspect.signature(cudnn.pygraph.execute).parameters.values())
        assert [one.name for one in taken[:4]] == ["self", "tensor_to_device_buffer", "workspace", "handle"]
        assert taken[3].default is None and all(one.default is None for one in taken[4:])
        assert "handle_" in cudnn.pygraph.deserialize.__doc__ and "pyobj" in cudnn.pygraph.deserialize.__doc__
        assert front.version == "1.23.0" and cudnn.backend_version() == 92800
        """,
    )


def test_it_is_found_with_the_libcudnn_that_is_in_use(stub: str) -> None:
    """And with the CUDA runtime library, which it opens by name; only the driver's version is made up."""
    in_child(
        stub,
        """
        from tazza.dnn.cuda.front_end import load_front_end
        from tazza.drivers.cuda import libraries
        libraries._served = lambda: "13.5"
        library = libraries.load_library("cudnn")
        assert library.version == (9, 28, 0) and not library.emulated
        found = load_front_end(library)
        assert found.version == "1.23.0" and load_front_end(library) is found
        ctypes.CDLL("libcudart.so.13")
        """,
    )


def test_loading_without_a_device_is_a_typed_error(stub: str) -> None:
    out = in_child(
        stub,
        """
        try: front.load(runtime, 0, serialized)
        except BackendError as error: print(error, asked)
        else: raise SystemExit("loaded without a device")
        """,
    )
    assert out == (
        "cudnn.deserialize: CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR: Check and Set the "
        "CUDNN_ATTR_EXECUTION_PLAN_HANDLE cudnn_status: CUDNN_STATUS_BAD_PARAM "
        "[CUDNN_STATUS_BAD_PARAM] ['deserialize', 'whole deserialize']\n"
    )


def test_bytes_are_no_sequence_for_it(stub: str) -> None:
    """Why a plan is given as a list of numbers."""
    in_child(
        stub,
        """
        try: cudnn.pygraph(handle=0).deserialize(0, serialized)
        except RuntimeError as error: assert "cast" in str(error), error
        else: raise SystemExit("taken")
        """,
    )


def test_executing_without_a_device_is_a_typed_error(stub: str) -> None:
    """A graph that was planned in this process, as one cannot be loaded."""
    out = in_child(
        stub,
        """
        graph = planner._draw(graph_of(operation), cudnn.create_device_properties(H100.to_json()), 90)
        graph.build([cudnn.heur_mode.A])
        for addresses in ({}, {number: 4096 * number for number in (1, 2, 3, 4)}):
            try: front.execute(runtime, graph, addresses, 4096, 0)
            except BackendError as error: print(repr(error), error.symbol)
            else: raise SystemExit("executed without a device")
        print(asked)
        """,
    )
    assert "not found in variant pack" in out
    assert "CUDNN_STATUS" in out
