"""Record the allocations of real training into ``benchmarks/traces``.

Each network is trained with PyTorch on the CPU under its profiler, which reports every allocation and release of its
allocator with address and size. A trace is an array of int32: a positive entry allocates that many bytes, an entry
-1 - k frees what the k-th allocation returned. What was never freed stays.

Run it with the extra ``bench``: ``python benchmarks/record_traces.py``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

TRACES = Path(__file__).parent / "traces"
STEPS = 6


def main() -> None:
    """Record every network and say how large it was."""
    TRACES.mkdir(exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, train in NETWORKS.items():
        trace = record(train)
        np.savez_compressed(TRACES / f"{name}.npz", events=trace)
        print(f"{name}: {len(trace)} events, peak {peak(trace) / 2**20:.1f} MiB")


def record(train: Callable[[], None]) -> np.ndarray:
    """Return the trace of one call of `train`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        document = json.loads(path.read_text())
    reports = [event for event in document["traceEvents"] if event.get("name") == "[memory]"]
    reports.sort(key=lambda event: event["ts"])
    return encode((event["args"]["Addr"], event["args"]["Bytes"]) for event in reports)


def encode(reports: Iterable[tuple[int, int]]) -> np.ndarray:
    """Turn (address, signed bytes) into the format of a trace; frees of what came before the trace are left out."""
    live: dict[int, int] = {}
    events: list[int] = []
    allocations = 0
    for address, nbytes in reports:
        if nbytes > 0:
            live[address] = allocations
            allocations += 1
            events.append(nbytes)
        elif nbytes < 0 and address in live:
            events.append(-1 - live.pop(address))
    return np.array(events, np.int32)


def peak(trace: np.ndarray) -> int:
    """Return the most bytes live at once."""
    sizes = trace[trace > 0].astype(np.int64)
    deltas = np.where(trace > 0, trace, 0).astype(np.int64)
    freed = trace < 0
    deltas[freed] = -sizes[-1 - trace[freed]]
    return int(np.cumsum(deltas).max())


def train_steps(network: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], optimiser: str) -> None:
    """Train for one step per batch with cross-entropy."""
    parameters = list(network.parameters())
    step = torch.optim.Adam(parameters) if optimiser == "adam" else torch.optim.SGD(parameters, 0.01, momentum=0.9)
    for x, y in batches:
        step.zero_grad()
        output = network(x)
        loss = nn.functional.cross_entropy(output.reshape(-1, output.shape[-1]), y.reshape(-1))
        loss.backward()
        step.step()


def digits() -> None:
    """The demo's network, batch 32 with a smaller last batch."""
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    sizes = [32] * STEPS + [29] + [32] * STEPS
    train_steps(network, ((torch.rand(n, 1, 8, 8), torch.randint(10, (n,))) for n in sizes), "sgd")


def perceptron() -> None:
    """A wide multi-layer perceptron with Adam."""
    network = nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))
    train_steps(network, ((torch.rand(256, 784), torch.randint(10, (256,))) for _ in range(STEPS)), "adam")


class Residual(nn.Module):
    """Two convolutions with batch normalisation round which the input is added."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out))
        self.short = nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return nn.functional.relu(self.second(self.first(x)) + self.short(x))


def residual() -> None:
    """A small residual network on 32 x 32 images."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    train_steps(network, ((torch.rand(64, 3, 32, 32), torch.randint(10, (64,))) for _ in range(STEPS)), "sgd")


class Recurrent(nn.Module):
    """A language model with an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = (
            nn.Embedding(500, 64),
            nn.LSTM(64, 128, batch_first=True),
            nn.Linear(128, 500),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits for each position."""
        return self.head(self.lstm(self.embed(x))[0])


class Transformer(nn.Module):
    """A small encoder-only language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(500, 96), nn.Linear(96, 500)
        layer = nn.TransformerEncoderLayer(96, 4, 192, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits for each position."""
        return self.head(self.layers(self.embed(x)))


def sentences(batch: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of random tokens of lengths that differ, as sentences do."""
    for length in (17, 40, 23, 31, 64, 12, 51, 28)[: STEPS + 2]:
        yield torch.randint(500, (batch, length)), torch.randint(500, (batch, length))


def recurrent() -> None:
    """Train the LSTM on sentences of different lengths."""
    train_steps(Recurrent(), sentences(16), "adam")


def transformer() -> None:
    """Train the transformer on sentences of different lengths."""
    train_steps(Transformer(), sentences(8), "adam")


NETWORKS: dict[str, Callable[[], None]] = {
    "digits": digits,
    "perceptron": perceptron,
    "recurrent": recurrent,
    "residual": residual,
    "transformer": transformer,
}

if __name__ == "__main__":
    main()
