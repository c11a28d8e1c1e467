"""An HTTP service around an ONNX model: eight requests at a time, the others wait their turn or are told to come back.

Run: python examples/inference_server.py               asks itself 64 times at once and prints what it measured
     python examples/inference_server.py --port 8000   serves until SIGTERM or Ctrl-C
     curl --data-binary @speech.f32 http://127.0.0.1:8000/infer
Needs: pip install onnxruntime silero-vad

The model finds speech: 16 kHz mono audio as little-endian float32 comes in, and for each 32 ms a probability goes out.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import signal
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tazza as tz
from tazza.adapters import onnxruntime

RATE, FRAME, BEFORE = 16_000, 512, 64  # samples: a second, a frame, and what the model sees of the frame before
MIB = 1 << 20
RESONANCES = ((1.0, 700, 80), (0.5, 1220, 90), (0.25, 2600, 120))  # gain, Hz, half the width in Hz
OUTPUT = ["speech_probs"]
QUANTILES = (0.5, 0.9, 0.99)
Samples = NDArray[np.float32]


# The model ------------------------------------------------------------------------------------------------------------


def model_file() -> Path:
    """Where the package silero-vad keeps its model; the package, which wants PyTorch, is not imported."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("the model is a file of the package silero-vad: pip install silero-vad")
    path = Path(found.submodule_search_locations[0], "data", "silero_vad_16k_sequence.onnx")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: pip install 'silero-vad>=6.2.3'")
    return path


def framed(samples: Samples) -> dict[str, Samples]:
    """Cut audio into the model's inputs: frames, each after the end of the one before, and a state of zeros."""
    count = -(-samples.size // FRAME)
    padded = np.zeros(BEFORE + count * FRAME, "float32")
    padded[BEFORE : BEFORE + samples.size] = samples
    frames = np.lib.stride_tricks.sliding_window_view(padded, BEFORE + FRAME)[::FRAME]
    state = np.zeros((1, 1, 128), "float32")
    return {"input": np.ascontiguousarray(frames), "h": state, "c": state}


# The service ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What the service grants.

    Attributes:
        admitted: requests that are worked on at once.
        waiting: requests that may wait for that; the next one is refused.
        reserve: bytes that each request may hold, set aside before it starts.
        seconds: for one request, its wait included.
        longest: samples in one request.
    """

    admitted: int = 8
    waiting: int = 64
    reserve: int = 4 * MIB
    seconds: float = 10.0
    longest: int = 30 * RATE


class RefusedError(Exception):
    """Nothing is taken now; says why."""


OUTCOMES = {RefusedError: "refused", TimeoutError: "late", asyncio.CancelledError: "cancelled"}


class Service:
    """The model under a context; knows nothing of HTTP. All but its tasks runs on the event loop's thread."""

    def __init__(self, ctx: tz.Context, settings: Settings | None = None) -> None:
        self.ctx, self.settings = ctx, settings or Settings()
        with tz.limit_threads(1):  # one thread for a run, and as many runs at once as the device has processors
            self.model = onnxruntime.session(ctx, model_file())
        self.streams = {ctx.new_stream(): 0 for _ in ctx.device.cores}  # each with how many requests wait for it
        self.limit = self.settings.admitted * self.settings.reserve
        self.budget = ctx.memory.budget(self.limit, name="requests")
        self.present = self.running = 0  # requests that are here, and those of them that are admitted
        self.is_closing = False
        self.outcomes: Counter[str] = Counter()
        self.latencies: deque[float] = deque(maxlen=1000)

    async def infer(self, samples: Samples) -> list[float]:
        """Return the probability of speech in each 32 ms.

        Raises:
            RefusedError: come back later, or ask another server.
            TimeoutError: it took longer than the settings grant.
        """
        begin, outcome = time.perf_counter(), "answered"
        self.present += 1
        try:
            if trouble := self.trouble():
                raise RefusedError(trouble)
            if self.is_full and self.waiting > self.settings.waiting:
                raise RefusedError(f"{self.settings.waiting} requests are waiting already")
            async with asyncio.timeout(self.settings.seconds):
                return await self._admitted(samples)
        except BaseException as error:  # only to be counted
            outcome = OUTCOMES.get(type(error), "failed")
            raise
        finally:
            self.present -= 1
            self.outcomes[outcome] += 1
            if outcome == "answered":
                self.latencies.append(time.perf_counter() - begin)

    async def _admitted(self, samples: Samples) -> list[float]:
        """Wait for the reserve and work under it; whatever happens, all of it is given back."""
        reserve = self.settings.reserve
        with self.budget:
            async with self.ctx.memory.budget(reserve, name="request", reserve=reserve):
                self.running += 1
                try:
                    return await self._launched(samples)
                finally:
                    self.running -= 1

    async def _launched(self, samples: Samples) -> list[float]:
        """Run the model on the least busy stream."""
        stream = min(self.streams, key=self.streams.__getitem__)
        task = self.ctx.launch(self._detect, self.ctx.asarray(samples, copy=True), stream=stream, label="detect")
        self.streams[stream] += 1
        try:
            probabilities: list[float] = await task
            return probabilities
        except asyncio.CancelledError:
            task.cancel()  # one that has started goes on, and gives its memory back when it ends
            raise
        finally:
            self.streams[stream] -= 1

    def _detect(self, samples: Samples) -> list[float]:
        """The task: numbers come out and no array, so nothing of a request outlives its budget."""
        probabilities: list[float] = self.model.run(framed(samples), OUTPUT)["speech_probs"].tolist()
        return probabilities

    @property
    def waiting(self) -> int:
        """Requests that are not admitted yet."""
        return self.present - self.running

    def trouble(self) -> str:
        """Why no request can be answered, or nothing."""
        if not self.ctx.health:
            return str(self.ctx.health.cause)
        return "closing" if self.is_closing or self.ctx.is_closed else ""

    def unready(self) -> str:
        """Why a load balancer should send requests elsewhere, or nothing."""
        busy = self.is_full and self.waiting
        return self.trouble() or (f"{self.running} requests are worked on and {self.waiting} wait" if busy else "")

    @property
    def is_full(self) -> bool:
        """Whether the budget has no room for one more request."""
        return self.budget.live + self.settings.reserve > self.limit

    def figures(self) -> dict[str, float]:
        """What /metrics tells."""
        latencies = np.quantile(self.latencies or [0.0], QUANTILES)
        return {
            **{f'requests_total{{outcome="{name}"}}': count for name, count in sorted(self.outcomes.items())},
            **{f'latency_seconds{{quantile="{q}"}}': float(one) for q, one in zip(QUANTILES, latencies, strict=True)},
            "requests_waiting": self.waiting,
            "requests_running": self.running,
            "budget_live_bytes": self.budget.live,
            "budget_peak_bytes": self.budget.peak,
            "context_live_bytes": self.ctx.memory.stats().live,
        }


# HTTP -----------------------------------------------------------------------------------------------------------------


class BadRequestError(Exception):
    """What came is no request that can be answered."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def read_request(reader: asyncio.StreamReader, longest: int) -> tuple[str, bytes]:
    """Return the method with the path, and the body."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.splitlines()
        method, path, _ = line.split(" ", 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        length = int(headers.get("content-length", "0"))
    except (ValueError, asyncio.LimitOverrunError) as error:
        raise BadRequestError(400, f"no HTTP request: {error}") from None
    if not 0 <= length <= longest:
        raise BadRequestError(413, f"a body of {length} bytes; at most {longest} are taken")
    return f"{method} {path}", await reader.readexactly(length)


def read_samples(body: bytes) -> Samples:
    """Read the audio of a request."""
    if not body or len(body) % 4:
        raise BadRequestError(400, f"a body of {len(body)} bytes; float32 samples take 4 each")
    samples = np.frombuffer(body, "<f4")
    if not np.isfinite(samples).all():
        raise BadRequestError(400, "a sample is not finite")
    return samples


class Server:
    """HTTP/1.1 in front of a service, one request a connection. For real traffic put a proxy in front of it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.connections: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> int:
        """Listen on loopback and return the port."""
        self.listener = await asyncio.start_server(self._converse, "127.0.0.1", port, backlog=256)
        return int(self.listener.sockets[0].getsockname()[1])

    async def stop(self, seconds: float = 10.0) -> None:
        """Take nothing new, finish what is under way for so long, and cancel the rest."""
        self.service.is_closing = True  # connections that are open get a 503 from here on
        self.listener.close()
        if self.connections:
            _, late = await asyncio.wait(self.connections, timeout=seconds)
            for one in late:
                one.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self.connections.add(connection)
        try:
            async with asyncio.timeout(self.service.settings.seconds):
                request, body = await read_request(reader, 4 * self.service.settings.longest)
            await self._answer(request, body, reader, writer)
        except BadRequestError as error:
            await send(writer, error.status, str(error))
        except (TimeoutError, OSError, EOFError):  # too slow or gone: nobody is left to be answered
            pass
        finally:
            self.connections.discard(connection)
            writer.close()

    async def _answer(
        self, request: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer, unless the client goes first: then the work is cancelled."""
        answer = asyncio.ensure_future(self._respond(request, body))
        gone = asyncio.ensure_future(reader.read(1))  # ends when the client closes its side: it sends nothing more
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                await send(writer, *answer.result())
        finally:
            answer.cancel()
            gone.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _respond(self, request: str, body: bytes) -> tuple[int, str]:
        service = self.service
        if request == "GET /healthz":
            unready = service.unready()
            return (503, unready) if unready else (200, "ready")
        if request == "GET /metrics":
            return 200, "".join(f"{name} {value}\n" for name, value in service.figures().items())
        if request != "POST /infer":
            raise BadRequestError(404, "there are POST /infer, GET /healthz and GET /metrics")
        try:
            return 200, json.dumps({"speech": await service.infer(read_samples(body))})
        except TimeoutError:
            return 504, f"no answer within {service.settings.seconds:g} s"
        except (RefusedError, tz.OutOfMemoryError, tz.errors.ClosedError, tz.errors.DeviceLostError) as error:
            return 503, str(error)
        except tz.errors.TazzaError as error:
            return 500, str(error)


async def send(writer: asyncio.StreamWriter, status: int, text: str) -> None:
    """Send a response."""
    body = text.encode()
    again = "Retry-After: 1\r\n" if status == 503 else ""
    kind = "application/json" if text.startswith("{") else "text/plain; charset=utf-8"
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}{again}Connection: close\r\n\r\n".encode() + body)
    await writer.drain()


# A client, to see it work ---------------------------------------------------------------------------------------------


def voice(seconds: float = 1.0) -> Samples:
    """A sung vowel: a buzz of 120 Hz with the resonances of a mouth, in syllables."""
    time_axis = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 3 * time_axis)) / RATE
    spectrum = np.fft.rfft(sum(np.sin(k * phase) / k for k in range(1, 30)))
    frequency = np.fft.rfftfreq(time_axis.size, 1 / RATE)
    mouth = sum(gain / (1 + ((frequency - at) / wide) ** 2) for gain, at, wide in RESONANCES)
    sound = np.fft.irfft(spectrum * mouth, time_axis.size) * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * time_axis))
    return np.asarray(sound / np.abs(sound).max() / 2, "<f4")


def noise(seconds: float = 1.0, seed: int = 7) -> Samples:
    """Hiss."""
    return (np.random.default_rng(seed).standard_normal(int(seconds * RATE)) * 0.05).astype("<f4")


async def ask(port: int, request: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send one request and return status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{request} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
        return int(head.split()[1]), answer
    finally:
        writer.close()


async def leave(port: int, body: bytes) -> None:
    """Send a request and go away."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    writer.close()


async def demonstrate(ctx: tz.Context) -> None:
    """Ask 64 times at once, go away from eight further requests, and stop."""
    service = Service(ctx)
    server = Server(service)
    port = await server.start()
    sounds = (voice().tobytes(), noise().tobytes())
    leaving = [leave(port, sounds[0]) for _ in range(8)]
    asking = [ask(port, "POST /infer", sounds[i % 2]) for i in range(64)]
    answers = (await asyncio.gather(*leaving, *asking))[len(leaving) :]
    means = [float(np.mean(json.loads(answer[1])["speech"])) for answer in answers if answer is not None]
    assert min(means[::2]) > 0.5 > max(means[1::2]), "speech and hiss are told apart"
    _, metrics = await ask(port, "GET /metrics")
    print(metrics.decode(), end="")
    print(f"healthz: {(await ask(port, 'GET /healthz'))[1].decode()}")
    await server.stop()
    assert service.budget.peak <= service.limit
    print(f"{len(means)} answers; at most {service.budget.peak // service.settings.reserve} requests at once")


async def serve(ctx: tz.Context, port: int) -> None:
    """Serve until told to stop."""
    server, stop = Server(Service(ctx)), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print(f"http://127.0.0.1:{await server.start(port)}", flush=True)
    await stop.wait()
    await server.stop()


def main(arguments: list[str] | None = None) -> int:
    """Serve, or show that it works."""
    parser = argparse.ArgumentParser(description="Speech detection over HTTP.")
    parser.add_argument("--port", type=int, help="serve on this port of the loopback interface (0: any)")
    parser.add_argument("--memory-limit", default="256MiB", help="of the context (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tz.open("cpu", memory_limit=options.memory_limit) as ctx:
        asyncio.run(demonstrate(ctx) if options.port is None else serve(ctx, options.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
