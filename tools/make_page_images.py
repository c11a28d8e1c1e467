"""Make the pictures of the report and of the memory page in ``docs/images`` from a real run: needs Chromium.

    python -m tools.make_page_images [FOLDER]

A small training program runs under ``tazza run --report`` in a temporary folder and saves a snapshot of its memory on
the way; headless Chromium opens both pages and takes the pictures. Figures differ from run to run, the pages do not.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tools.browser import Browser

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, SCALE = 1180, 1.5

PROGRAM = '''
"""Train a two-layer network on batches that a second stream prepares ahead, within a budget."""

import numpy as np

import tazza as tz

ctx = tz.current()
loader, trainer = ctx.new_stream(label="loader"), ctx.new_stream(label="trainer")
SIZES = {"weights 1": (784, 512), "weights 2": (512, 10)}
STEPS = 60


def load_batch(number):
    images = ctx.random.standard_normal((768, 784), dtype="float32")
    for _ in range(3):
        images = np.tanh(images) * np.float32(1.5)
    return images, np.asarray(images[:, :10] > 0, np.float32)


def train_step(first, second, batch):
    images, targets = batch
    hidden = np.maximum(images @ first, 0)
    error = (hidden @ second - targets) / np.float32(len(images))
    back = (error @ second.T) * (hidden > 0)
    second -= np.float32(0.01) * (hidden.T @ error)
    first -= np.float32(0.01) * (images.T @ back)
    return float(np.abs(error).sum())


def evaluate(first, second, batch):
    return float(np.mean(np.maximum(batch[0] @ first, 0) @ second > 0))


def scale(weights):
    weights *= np.float32(0.02)


model = {}
with ctx.memory.budget("8MiB", name="model"):
    for name, shape in SIZES.items():
        nbytes = 4 * shape[0] * shape[1]
        model[name] = ctx.allocate(nbytes, dtype="float32", shape=shape, label=name)
        ctx.copy(model[name], ctx.random.standard_normal(shape, dtype="float32"))
        ctx.launch(scale, model[name], label="scale weights")

steps = []
for number in range(STEPS):
    with ctx.memory.budget("48MiB", name="prefetch"):
        batch = ctx.launch(load_batch, number, stream=loader, label="load batch")
    with ctx.memory.budget(None, name="training"):
        steps.append(ctx.launch(train_step, *model.values(), batch, stream=trainer, label="train step"))
        if number % 12 == 11:
            steps.append(ctx.launch(evaluate, *model.values(), batch, stream=trainer, label="evaluate"))
    if number >= 4:
        steps[-4].result()
ctx.memory.snapshot().save("memory.html")
print("loss", tz.wait(steps)[-2])
'''


def main(folder: Path = IMAGES) -> None:
    """Run the program and take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        (place / "train.py").write_text(PROGRAM.lstrip(), "utf-8")
        options = ["--device", "cpu", "--seed", "7", "--memory-limit", "512MiB", "--report", "report.html"]
        command = [sys.executable, "-m", "tazza", "run", *options, "train.py"]
        subprocess.run(command, cwd=place, timeout=300, check=True)
        with Browser(timeout=120) as browser:
            for page, height, picture in (("report", 1560, "report"), ("memory", 1900, "memory-page")):
                browser.resize(WIDTH, height, scale=SCALE)
                browser.open(place / f"{page}.html")
                browser.until("document.documentElement.dataset.painted")
                browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                browser.screenshot(folder / f"{picture}.png")
                if browser.problems or browser.requests:
                    raise SystemExit(f"{page}: {browser.problems} {browser.requests}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
