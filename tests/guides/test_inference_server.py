"""The service of the inference guide: nothing is lost, nothing grows, and everything is given back."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest

import tazza as tz
from examples.inference_server import (
    FRAME,
    MIB,
    RefusedError,
    Server,
    Service,
    Settings,
    ask,
    framed,
    model_file,
    noise,
    voice,
)
from examples.inference_server import main as run_example
from tazza.core import registry
from tazza.spi import Driver
from tazza.testing.simulation import installed
from tests.bad_input.health import TIMEOUT, Hold
from tests.interop import folder, need

onnxruntime = need("onnxruntime")
MODELS = folder("silero_vad") / "data"
pytestmark = pytest.mark.interop
ROOT = Path(__file__).parents[2]
T = TypeVar("T")

FULL = os.environ.get("TAZZA_FULL") == "1"
REQUESTS = 10_000 if FULL else 1_000
SEED = 20
CLIP = voice(0.25)
BODY = CLIP.tobytes()
POST = "POST /infer"


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu", memory_limit="256MiB") as made:
        yield made
        # The session charges its model; NumPy makes constants of a few bytes on first use and keeps them.
        assert made.memory.stats().live < model_file().stat().st_size + 1024


def run(main: Coroutine[Any, Any, T], seconds: float = TIMEOUT) -> T:
    """Run to the end, for at most so many seconds."""

    async def bounded() -> T:
        return await asyncio.wait_for(main, seconds)

    return asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something holds."""
    while not condition():
        await asyncio.sleep(0.001)


def held(service: Service, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Have every task of the service stop before it does anything."""
    hold, detect = Hold(), service._detect
    monkeypatch.setattr(service, "_detect", lambda samples: hold.block() or detect(samples))
    return hold


def nothing_is_left(service: Service) -> bool:
    """Whether everything was given back, the bytes of tasks that nobody waits for included."""
    runtime = service.ctx._runtime
    return service.budget.live == 0 and not runtime.reserving() and not runtime.in_flight and service.present == 0


def start(service: Service, count: int) -> list[asyncio.Task[list[float]]]:
    """Make so many requests at once."""
    return [asyncio.ensure_future(service.infer(CLIP)) for _ in range(count)]


def test_the_model_tells_speech_from_noise_as_its_streaming_form_does(ctx: tz.Context) -> None:
    async def main() -> list[list[float]]:
        service = Service(ctx)
        return [await service.infer(sound) for sound in (voice(), noise())]

    speech, hiss = run(main())
    assert np.mean(speech) > 0.5 > np.mean(hiss)
    assert len(speech) == -(-voice().size // FRAME)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    streaming = onnxruntime.InferenceSession(str(MODELS / "silero_vad.onnx"), options)
    state, expected = np.zeros((2, 1, 128), "float32"), []
    for frame in framed(voice())["input"]:
        [[[probability]], state] = streaming.run(None, {"input": frame[None], "state": state, "sr": np.array(16_000)})
        expected.append(float(probability))
    np.testing.assert_allclose(speech, expected, rtol=0, atol=1e-6)


def test_sixty_four_at_once_under_a_budget_for_eight(ctx: tz.Context) -> None:
    async def main() -> tuple[Service, list[list[float]]]:
        service = Service(ctx)
        [alone] = await asyncio.gather(*start(service, 1))
        answers = await asyncio.gather(*start(service, 64))
        assert all(answer == alone for answer in answers)
        return service, answers

    service, answers = run(main())
    assert (len(answers), service.outcomes) == (64, {"answered": 65})
    assert service.budget.peak == 8 * service.settings.reserve
    assert ctx.memory.stats().peak >= service.budget.peak
    assert nothing_is_left(service)


def test_a_limit_of_the_context_below_the_budget_admits_fewer() -> None:
    async def main(ctx: tz.Context) -> None:
        service = Service(ctx)
        answers = await asyncio.gather(*start(service, 24))
        assert len(answers) == 24
        assert service.budget.peak <= 9 * MIB
        assert nothing_is_left(service)

    with tz.open("cpu", memory_limit="9MiB") as small:
        run(main(small))
        assert small.memory.stats().peak <= 9 * MIB


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident size is read from /proc")
@pytest.mark.timeout(600)
def test_memory_is_flat(ctx: tz.Context, record_property: Callable[[str, object], None]) -> None:
    """Measured between rounds of requests from 64 clients, when nothing is under way."""
    rounds = 20

    async def client(service: Service, numbers: Iterator[int]) -> None:
        for _ in numbers:
            assert len(await service.infer(CLIP)) == 8

    async def main() -> tuple[Service, list[tuple[int, int]]]:
        service, seen = Service(ctx), list[tuple[int, int]]()
        for _ in range(rounds):
            numbers = iter(range(REQUESTS // rounds))
            await asyncio.gather(*(client(service, numbers) for _ in range(64)))
            assert nothing_is_left(service)
            seen.append((resident(), ctx.memory.stats().live))
        return service, seen

    service, seen = run(main(), seconds=500)
    assert service.outcomes == {"answered": REQUESTS}
    assert service.budget.peak == 8 * service.settings.reserve
    settled = np.array(seen[rounds // 4 :], "float64")  # the first rounds fill caches
    done = np.arange(len(settled)) * (REQUESTS / rounds)
    slopes = [float(np.polyfit(done, column, 1)[0]) for column in settled.T]
    record_property("resident bytes a request", round(slopes[0], 2))
    record_property("live bytes a request", round(slopes[1], 2))
    print(f"{REQUESTS} requests: resident {slopes[0]:+.1f}, live {slopes[1]:+.1f} bytes a request")
    assert len({live for _, live in seen}) == 1
    # A request takes 40 KiB or so: 50 that are not given back would be seen, and what the allocator does is not.
    assert slopes[0] * REQUESTS < 2 * MIB


def test_cancelled_requests_give_everything_back(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service = Service(ctx)
        hold = held(service, monkeypatch)
        asked = start(service, 20)
        await until(lambda: service.running == 8 and hold.entered.is_set())
        for number in (19, 12, 7, 0, 1, 2, 3, 4, 5, 6, 8):  # waiting, running, queued on a stream
            asked[number].cancel()
        await until(lambda: service.present == 9)
        # What has started holds its bytes, what has not holds nothing, and the places went to those who waited.
        await until(lambda: service.running >= 6)
        hold.release()
        done = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(one, asyncio.CancelledError) for one in done) == 11
        await until(lambda: nothing_is_left(service))
        assert service.outcomes == {"answered": 9, "cancelled": 11}
        assert service.budget.peak <= service.limit

    run(main())


def test_cancelling_at_any_moment(ctx: tz.Context) -> None:
    """Requests are cancelled after a number of the loop's turns drawn from a seed, one in three not at all."""
    draws = random.Random(SEED)

    async def one(service: Service) -> str:
        asked = asyncio.ensure_future(service.infer(CLIP))
        if draws.random() < 2 / 3:
            for _ in range(draws.randrange(40)):
                await asyncio.sleep(0)
            asked.cancel()
        try:
            return "answered" if len(await asked) == 8 else "wrong"
        except asyncio.CancelledError:
            return "cancelled"

    async def main() -> None:
        service = Service(ctx, Settings(waiting=300))
        outcomes = await asyncio.gather(*(one(service) for _ in range(300)))
        assert outcomes.count("answered") >= 100, f"seed {SEED}"
        assert outcomes.count("cancelled") > 0, f"seed {SEED}"
        assert "wrong" not in outcomes
        await until(lambda: nothing_is_left(service))
        assert service.budget.peak <= service.limit
        assert len(await service.infer(CLIP)) == 8

    run(main())


def test_requests_that_take_too_long(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service = Service(ctx, Settings(admitted=2, seconds=0.2))
        hold = held(service, monkeypatch)
        port = await (server := Server(service)).start()
        late = await asyncio.gather(*start(service, 5), return_exceptions=True)  # running, and waiting
        assert all(type(one) is TimeoutError for one in late)
        status, why = await ask(port, POST, BODY)
        assert (status, why) == (504, b"no answer within 0.2 s")
        hold.release()
        await until(lambda: nothing_is_left(service))
        assert (await ask(port, POST, BODY))[0] == 200
        assert service.outcomes == {"late": 6, "answered": 1}
        await server.stop(TIMEOUT)

    run(main())


def test_back_pressure(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service = Service(ctx, Settings(admitted=2, waiting=3))
        hold = held(service, monkeypatch)
        port = await (server := Server(service)).start()
        assert await ask(port, "GET /healthz") == (200, b"ready")
        asked = start(service, 5)
        await until(lambda: service.running == 2)
        with pytest.raises(RefusedError, match="3 requests are waiting already"):
            await service.infer(CLIP)
        head, _ = await raw(port, request(POST, BODY))
        assert head.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 1" in head
        assert await ask(port, "GET /healthz") == (503, b"2 requests are worked on and 3 wait")
        hold.release()
        assert [len(answer) for answer in await asyncio.gather(*asked)] == [8] * 5
        assert await ask(port, "GET /healthz") == (200, b"ready")
        status, metrics = await ask(port, "GET /metrics")
        assert status == 200
        assert 'requests_total{outcome="refused"} 2' in metrics.decode().splitlines()
        assert f"budget_peak_bytes {2 * service.settings.reserve}" in metrics.decode().splitlines()
        await server.stop(TIMEOUT)

    run(main())


def request(line: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    return f"{line} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def raw(port: int, data: bytes) -> tuple[bytes, bytes]:
    """Send bytes and return head and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head, body


def test_clients_that_go_away(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service = Service(ctx, Settings(admitted=4))
        hold = held(service, monkeypatch)
        port = await (server := Server(service)).start()
        writers = []
        for _ in range(12):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request(POST, BODY))
            writers.append(writer)
        await until(lambda: service.present == 12 and service.running == 4)
        staying = asyncio.ensure_future(ask(port, POST, BODY))
        await until(lambda: service.present == 13)
        for number, writer in enumerate(writers):
            writer.transport.abort() if number % 2 else writer.close()
        await until(lambda: service.present == 1)
        hold.release()
        status, answer = await staying
        assert (status, len(json.loads(answer)["speech"])) == (200, 8)
        await until(lambda: nothing_is_left(service))
        assert service.outcomes == {"answered": 1, "cancelled": 12}
        await server.stop(TIMEOUT)

    run(main())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("GET /elsewhere"), 404),
        (request("PUT /infer", BODY), 404),
        (request(POST), 400),
        (request(POST, b"abc"), 400),
        (request(POST, np.array([0, np.nan], "<f4").tobytes()), 400),
        (b"POST /infer HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 413),
        (b"POST /infer HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_bad_requests(ctx: tz.Context, data: bytes, status: int) -> None:
    async def main() -> None:
        service = Service(ctx)
        port = await (server := Server(service)).start()
        head, why = await raw(port, data)
        assert (int(head.split()[1]), bool(why)) == (status, True)
        assert (await ask(port, POST, BODY))[0] == 200
        assert nothing_is_left(service)
        await server.stop(TIMEOUT)

    run(main())


def test_stopping_finishes_what_is_under_way(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service = Service(ctx)
        hold = held(service, monkeypatch)
        port = await (server := Server(service)).start()
        asked = [asyncio.ensure_future(ask(port, POST, BODY)) for _ in range(12)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)  # asks when it is too late
        await until(lambda: service.present == 12 and len(server.connections) == 13)
        stopping = asyncio.ensure_future(server.stop(TIMEOUT))
        await until(lambda: service.is_closing)
        writer.write(request("GET /healthz"))
        assert (await reader.read()).endswith(b"closing")
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await ask(port, POST, BODY)
        hold.release()
        await stopping
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 12
        assert nothing_is_left(service)

    run(main())


def test_stopping_cancels_what_takes_too_long(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service = Service(ctx)
        hold = held(service, monkeypatch)
        port = await (server := Server(service)).start()
        asked = [asyncio.ensure_future(ask(port, POST, BODY)) for _ in range(12)]
        await until(lambda: service.present == 12)
        await server.stop(0.05)
        assert service.outcomes == {"cancelled": 12}
        with pytest.raises(IndexError):  # no status line: the connection was closed
            await asked[0]
        await asyncio.gather(*asked, return_exceptions=True)
        hold.release()
        await until(lambda: nothing_is_left(service))

    run(main())


def test_a_closed_context_is_not_ready() -> None:
    async def main(ctx: tz.Context) -> None:
        service = Service(ctx)
        port = await (server := Server(service)).start()
        assert await ask(port, "GET /healthz") == (200, b"ready")
        ctx.close(TIMEOUT)
        assert await ask(port, "GET /healthz") == (503, b"closing")
        assert await ask(port, POST, BODY) == (503, b"closing")
        await server.stop(TIMEOUT)

    run(main(tz.context("cpu")))


def test_a_lost_device_is_not_ready() -> None:
    class Losing:
        """The CPU, until it is lost."""

        def __init__(self, driver: Driver) -> None:
            self.driver, self.reason = driver, cast("str | None", None)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.driver, name)

        def poison(self, info: object) -> str | None:
            return self.reason

    async def main(ctx: tz.Context, driver: Losing) -> None:
        service = Service(ctx)
        port = await (server := Server(service)).start()
        assert (await ask(port, POST, BODY))[0] == 200
        driver.reason = "machine check"
        for asked in ("GET /healthz", POST):
            status, why = await ask(port, asked, BODY)
            assert (status, b"machine check" in why) == (503, True)
        assert nothing_is_left(service)
        await server.stop(TIMEOUT)

    driver = Losing(registry.driver("cpu"))
    with installed("cpu", cast(Driver, driver)):
        ctx = tz.context("cpu")
        run(main(ctx, driver))
        ctx.close(abandon=True)


def test_a_failing_model_is_the_servers_fault(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(samples: object) -> None:
        raise tz.errors.BackendError("the graph is broken", backend="onnxruntime", call="run")

    async def main() -> None:
        service = Service(ctx)
        port = await (server := Server(service)).start()
        with monkeypatch.context() as broken:
            broken.setattr(service, "_detect", fail)
            status, why = await ask(port, POST, BODY)
            assert (status, b"the graph is broken" in why) == (500, True)
        assert (await ask(port, POST, BODY))[0] == 200
        assert nothing_is_left(service)
        await server.stop(TIMEOUT)

    run(main())


def test_the_page_shows_the_code_of_the_example() -> None:
    page = (ROOT / "docs" / "guides" / "inference-server.md").read_text("utf-8")
    code = (ROOT / "examples" / "inference_server.py").read_text("utf-8")
    shown = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert shown
    assert [block for block in shown if block not in code] == []


def test_the_example_demonstrates_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_example([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "64 answers; at most 8 requests at once"


def test_the_program_stops_when_told_to() -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / "inference_server.py"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        assert run(ask(port, POST, BODY))[0] == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.wait(TIMEOUT)
