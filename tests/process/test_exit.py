"""Interpreter exit with work in flight: drained for a while, what is abandoned is named, the exit code stays."""

from __future__ import annotations

import time

import pytest

from tests.process.children import run_script

HEAD = """
import atexit, sys, threading
import tazza as tz
ctx = tz.context(sys.argv[1] if len(sys.argv) > 1 else "{device}")
stream = ctx.new_stream(label="queued")
forever = threading.Event()
"""

DEVICES = pytest.mark.parametrize("device", ["cpu", "sim:0"])


def script(device: str, body: str) -> str:
    return HEAD.format(device=device) + body


@DEVICES
def test_work_in_flight_is_finished(device: str) -> None:
    done = run_script(
        script(
            device,
            """
first = ctx.launch(forever.wait, 0.2, stream=stream)
for number in range(3):
    ctx.launch(print, number, after=first, stream=stream)
print("main is over", flush=True)
""",
        )
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["main is over", "0", "1", "2"]


@DEVICES
def test_what_does_not_end_is_abandoned_by_name(device: str) -> None:
    started = time.monotonic()
    done = run_script(
        script(
            device,
            """
running = threading.Event()
ctx.launch(lambda: (running.set(), forever.wait()), stream=stream, label="endless solver")
ctx.launch(print, "never", stream=stream, label="behind it")
assert running.wait(10)
""",
        ),
        TAZZA_EXIT_TIMEOUT="0.3",
    )
    assert done.returncode == 0
    assert "CleanupWarning: interpreter exit abandons work on " in done.stderr
    assert "behind it" in done.stderr
    assert "endless solver" in done.stderr
    assert "Traceback" not in done.stderr
    assert "never" not in done.stdout
    assert time.monotonic() - started < 10


@DEVICES
def test_work_that_waits_for_a_host_event_is_abandoned_by_name(device: str) -> None:
    done = run_script(
        script(device, "\nctx.launch(print, 'never', after=tz.HostEvent('nobody'), stream=stream, label='gated')"),
        TAZZA_EXIT_TIMEOUT="0.3",
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "abandons work" in done.stderr
    assert "gated" in done.stderr


def test_the_timeout_is_for_all_contexts_together() -> None:
    started = time.monotonic()
    done = run_script(
        """
        import threading
        import tazza as tz
        kept = [tz.context(name) for name in ("cpu", "sim:0", "sim:1") for _ in range(3)]
        for number, ctx in enumerate(kept):
            ctx.launch(threading.Event().wait, stream=ctx.new_stream(), label=f"stuck {number}")
        """,
        TAZZA_EXIT_TIMEOUT="0.5",
    )
    assert done.returncode == 0
    assert all(f"stuck {number}" in done.stderr for number in range(9))
    assert time.monotonic() - started < 10


@DEVICES
def test_failure_that_nobody_saw_is_reported_by_name(device: str) -> None:
    done = run_script(script(device, "\nctx.launch(lambda: 1 / 0, stream=stream, label='forgotten')"))
    assert done.returncode == 0
    assert done.stderr.count("failed and nobody asked: ZeroDivisionError") == 1
    assert "CleanupWarning" in done.stderr
    assert "forgotten" in done.stderr


@DEVICES
@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("raise KeyError('mine')", 1)])
def test_the_exit_code_is_the_users(device: str, ending: str, code: int) -> None:
    done = run_script(script(device, f"\nctx.launch(print, 'drained', stream=stream)\n{ending}"))
    assert (done.returncode, done.stdout) == (code, "drained\n")
    assert ("KeyError: 'mine'" in done.stderr) == (code == 1)


@DEVICES
def test_no_new_work_is_taken_once_exit_has_begun(device: str) -> None:
    done = run_script(
        "import atexit\natexit.register(lambda: late())\n"  # runs after tazza's own hook
        + script(
            device,
            """
def late():
    for use in (lambda: ctx.launch(print), lambda: ctx.allocate(8), ctx.new_stream, stream.record):
        try:
            use()
        except tz.errors.ClosedError:
            print("refused")
""",
        )
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["refused"] * 4


@DEVICES
def test_main_ends_while_another_thread_still_works(device: str) -> None:
    done = run_script(
        script(
            device,
            """
def work():
    forever.wait(0.2)
    with tz.open(ctx.device) as own:
        print(own.launch(lambda: 5, stream=own.new_stream()).result(10))
    print(ctx.launch(lambda: 6, stream=stream).result(10))
threading.Thread(target=work).start()
""",
        )
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["5", "6"], "")


@DEVICES
def test_daemon_threads_that_keep_submitting_do_not_hold_up_the_exit(device: str) -> None:
    done = run_script(
        script(
            device,
            """
flowing = threading.Event()
def flood():
    try:
        while True:
            ctx.launch(flowing.set, stream=stream)
    except tz.errors.ClosedError:
        pass
for _ in range(3):
    threading.Thread(target=flood, daemon=True).start()
assert flowing.wait(10)
""",
        ),
        TAZZA_EXIT_TIMEOUT="2",
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "Fatal" not in done.stderr
    assert "Traceback" not in done.stderr


@DEVICES
def test_contexts_that_were_dropped_without_closing_do_not_matter(device: str) -> None:
    done = run_script(
        script(
            device,
            """
task = ctx.launch(lambda: 4, stream=stream)
buffers = [ctx.allocate(1000) for _ in range(10)]
del ctx, stream
print(task.result(10))
""",
        )
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
