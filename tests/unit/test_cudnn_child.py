"""What runs in the planner's process, called here: the front end and the library are stand-ins."""

from __future__ import annotations

import ctypes
import json
import sys
from base64 import b64decode, b64encode
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tazza.dnn.cudnn import A100, H100, child, describe
from tazza.dnn.cudnn.child import Planner, Refused, answer, read_ubjson, serve
from tazza.dnn.cudnn.graphs import graph_of
from tests.unit.cudnn_fake import LIBRARY, compile_library
from tests.unit.cudnn_fake import cudnn as front
from tests.unit.cudnn_fake.cudnn.ubjson import encoded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="plans are made on Linux")

Q = describe.contiguous("float16", 1, 2, 4, 8)
X, W = describe.channels_last("float16", 2, 8, 6, 6), describe.channels_last("float16", 4, 8, 3, 3)
OPERATIONS = {
    "conv_fprop bias relu": describe.conv2d(X, W, bias=True, activation="relu"),
    "sdpa": describe.attention(Q, Q, Q),
    "sdpa_backward": describe.attention_backward(Q, Q, Q),
    "matmul": describe.linear(describe.contiguous("float32", 2, 3), describe.contiguous("float32", 4, 3)),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "stands_for_dnn.so"
    compile_library(LIBRARY, path)
    return path


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The alarms that were set, instead of setting them in the process that runs the tests."""
    found: list[float] = []
    fake = SimpleNamespace(ITIMER_REAL=0, setitimer=lambda which, seconds: found.append(seconds))
    monkeypatch.setattr(child, "signal", fake)
    return found


@pytest.fixture
def planner(library: Path, timers: list[float], monkeypatch: pytest.MonkeyPatch) -> Planner:
    monkeypatch.setitem(sys.modules, "cudnn", front)
    monkeypatch.setattr(child, "_load_driver", lambda stub: "stand-in")
    planner = Planner()
    said = ask(planner, "start", cudnn=str(library))
    assert said["version"] == said["front_version"] == 92800
    assert said["checks"] == {"Graph": 0, "Ops": 0}, "those that this library has"
    assert (said["newest"], said["front"], said["driver"]) == (1210, "0.0", "stand-in")
    return planner


def ask(planner: Planner, do: str, **request: Any) -> dict[str, Any]:
    return answer(planner, json.dumps({"do": do, "seconds": 5, **request}).encode())


def plan(planner: Planner, operation: Any, name: str = "a device", limit: int | None = None) -> dict[str, Any]:
    device = replace(H100, name=name)
    asked = {"graph": graph_of(operation), "device": device.to_json(), "sm_version": 90, "max_workspace": limit}
    return ask(planner, "plan", deterministic=False, **asked)


@pytest.mark.parametrize("calls", OPERATIONS)
def test_a_graph_is_drawn_call_by_call(planner: Planner, calls: str) -> None:
    said = plan(planner, OPERATIONS[calls])
    assert (said["algorithm"], said["workspace"], said["candidates"], said["index"]) == ("eng1_k2=1", 4096, 4, 0)
    _, written, around = child.plan_json(b64decode(said["serialized"]))
    assert [call.partition("(")[0] for call in written["calls"]] == calls.split()
    assert around == 1000


def test_the_first_plan_within_the_limit_is_taken(planner: Planner) -> None:
    assert plan(planner, OPERATIONS["matmul"], limit=100)["index"] == 2
    said = ask(
        planner,
        "plan",
        graph=graph_of(OPERATIONS["matmul"]),
        device=H100.to_json(),
        sm_version=90,
        max_workspace=None,
        deterministic=True,
    )
    assert said["index"] == 2


def test_where_none_can_be_built_the_answer_says_so(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "CANDIDATES", [("eng1", None), ("eng2", 500)])
    said = plan(planner, OPERATIONS["matmul"], limit=100)
    assert said["error"] == "unsupported"
    assert said["message"] == "none of its 2 plans can be built within what was asked for"


def test_refusals_have_a_kind_and_one_line(planner: Planner) -> None:
    said = plan(planner, OPERATIONS["matmul"], name="unsupported")
    assert said == {"error": "unsupported", "message": "No valid engine configs", "symbol": ""}
    said = plan(planner, OPERATIONS["matmul"], name="unknown")
    assert (said["error"], said["message"]) == ("failed", "CUDNN_STATUS_BAD_PARAM")
    assert child._first_line(ValueError()) == "ValueError"


def check(planner: Planner, serialized: bytes, device: str) -> dict[str, Any]:
    return ask(planner, "check", serialized=b64encode(serialized).decode(), device=device)


def test_a_plan_is_loaded_for_its_device_alone(planner: Planner) -> None:
    serialized = b64decode(plan(planner, OPERATIONS["matmul"], name=H100.name)["serialized"])
    assert check(planner, serialized, H100.to_json()) == {"workspace": 1077}
    said = check(planner, serialized, A100.to_json())
    assert said["error"] == "foreign"
    assert json.loads(said["message"])["deviceName"] == H100.name
    assert said["symbol"] == "CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH"
    old = encoded({"cudnn_backend_data": '{"a": "old"}'})
    assert check(planner, old, H100.to_json()) == {
        "error": "failed",
        "message": "the reason",
        "symbol": "CUDNN_STATUS_X",
    }


@pytest.mark.parametrize(
    "serialized",
    [
        b"",
        b"?",
        b"{i\x01a",
        b"{i\xff",
        b"[" * 100_000,
        encoded({}),
        encoded([]),
        encoded({"cudnn_backend_data": 7}),
        encoded({"cudnn_backend_data": "no JSON"}),
        encoded({"cudnn_backend_data": '{"GPUProfile": 7}'}),
        encoded({"cudnn_backend_data": "{}", "fe_workspace_size": "x"}),
    ],
)
def test_damaged_plans_never_reach_the_library(planner: Planner, serialized: bytes) -> None:
    planner.library = None
    assert check(planner, serialized, H100.to_json())["error"] == "damaged"


def test_every_answer_had_an_alarm_that_was_taken_back(planner: Planner, timers: list[float]) -> None:
    plan(planner, OPERATIONS["matmul"])
    assert timers == [5, 0, 5, 0]


def test_a_library_that_does_not_load_is_unavailable(planner: Planner, tmp_path: Path) -> None:
    said = ask(planner, "start", cudnn=str(tmp_path / "none.so"))
    assert said["error"] == "unavailable"
    assert said["message"].startswith("OSError: ")


def test_lines_are_answered_in_pieces(timers: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_load_driver", lambda stub: "")
    written = bytearray()

    def write(piece: memoryview) -> int:
        written.extend(piece[:3])
        return len(piece[:3])

    serve([b'{"do": "start", "seconds": 1}\n'] * 2 + [b"\n", b"never read"], write)
    assert written == b'{"need": "libcuda.so.1"}\n' * 2


def loading(monkeypatch: pytest.MonkeyPatch, **known: int) -> list[str]:
    """Replace the loader by one that knows only these libraries, by what their cuInit says."""
    asked: list[str] = []

    def load(name: str, mode: int) -> Any:
        asked.append(name)
        assert mode == ctypes.RTLD_GLOBAL
        if name.partition(".")[0] not in known:
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace(cuInit=lambda flags: known[name.partition(".")[0]])

    monkeypatch.setattr(child, "ctypes", SimpleNamespace(CDLL=load, RTLD_GLOBAL=ctypes.RTLD_GLOBAL))
    return asked


def test_the_real_driver_comes_first_and_the_stand_in_only_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = loading(monkeypatch, libcuda=0, stub=100)
    assert child._load_driver("stub.so") == "real"
    assert asked == ["libcuda.so.1"]
    asked = loading(monkeypatch, stub=100)
    assert child._load_driver(None) == ""
    assert child._load_driver("stub.so") == "stand-in"
    assert asked == ["libcuda.so.1", "libcuda.so.1", "stub.so"]


def test_something_else_in_place_of_the_stand_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loading(monkeypatch, stub=0)
    with pytest.raises(Refused, match=r"stub\.so is not the stand-in"):
        child._load_driver("stub.so")
    with pytest.raises(Refused, match=r"cannot be loaded: gone\.so"):
        child._load_driver("gone.so")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES)
def test_what_was_written_is_read(value: Any) -> None:
    assert read_ubjson(encoded(value)) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        read_ubjson(data)
    except ValueError:  # UnicodeDecodeError is one
        pass


def test_values_that_our_writer_does_not_write() -> None:
    assert read_ubjson(b"Cx") == "x"
    assert read_ubjson(b"HU\x0212") == "12"
    assert read_ubjson(b"[d" + bytes(4) + b"D" + bytes(8) + b"]") == [bytes(4), bytes(8)]


def test_mapped_files_are_those_of_cudnn() -> None:
    assert child.mapped_files() == []
