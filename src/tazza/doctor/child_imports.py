"""Run in a child process: import the named modules one after the other and say what is in the process then."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

__all__ = ["main"]


def main(modules: list[str]) -> None:
    """Import `modules`, writing one JSON object a line before and after each, and at the end the process's facts."""
    # The modules may print: their output goes to the error stream, ours to where it was going.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def say(**values: Any) -> None:
            out.write(json.dumps(values) + "\n")
            out.flush()  # at once: the next import may be the last

        for name in modules:
            say(begin=name)
            try:
                module = importlib.import_module(name)
            except Exception as error:  # whatever it is, it is the finding
                say(module=name, error=f"{type(error).__name__}: {error}")
                continue
            version, path = getattr(module, "__version__", ""), getattr(module, "__file__", "")
            say(module=name, version=str(version), path=str(path or ""))
        say(**process_facts())


def process_facts() -> dict[str, Any]:
    """The memory map, the thread pools and the number of threads of this process."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            maps = file.read()
        threads: int | None = len(os.listdir("/proc/self/task"))
    except OSError:  # another system: the thread pools name their libraries at least
        maps, threads = "", None
    try:
        import threadpoolctl

        pools = threadpoolctl.threadpool_info()
    except Exception:  # without it, or where a library refuses to be asked, the pools stay unknown
        pools = None
    return {"maps": maps, "threads": threads, "pools": pools}


if __name__ == "__main__":
    main(sys.argv[1:])
