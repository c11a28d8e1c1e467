"""What stands for cuDNN and its front end where they are not installed: a library in C, a package, an installation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tazza.dnn.cudnn import planner
from tazza.dnn.cudnn.coherence import Installation

__all__ = ["LIBRARY", "compile_library", "install", "without_coverage"]

NAMES = ("libcudnn.so.9", *(f"libcudnn_{part}.so.9" for part in ("graph", "ops", "cnn", "adv", "heuristic")))
LIBRARY = r"""
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#ifndef CHECK
#define CHECK 0
#endif

static char device[8192], plan[8192];

size_t cudnnGetVersion(void) { return 92800; }
size_t cudnnGetMaxDeviceVersion(void) { return 1210; }
int cudnnGraphVersionCheck(void) { return CHECK; }
int cudnnOpsVersionCheck(void) { return 0; }
const char *cudnnGetErrorString(int status) {
    return status == 3007 ? "CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH" : "CUDNN_STATUS_X";
}
void cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "the reason"); }
int cudnnBackendCreateDescriptor(int kind, void **made) { *made = kind == 5 ? plan : device; return 0; }
int cudnnBackendDestroyDescriptor(void *made) { (void)made; return 0; }
int cudnnBackendSetAttribute(void *into, int name, int type, long long count, const void *from) {
    (void)type;
    if (name == 407) return 0;
    memcpy(into, from, (size_t)count);
    ((char *)into)[count] = 0;
    return 0;
}
/* A plan fits a device of the name that it has; an old one fits none. */
int cudnnBackendFinalize(void *made) {
    if (made == device) return 0;
    if (strstr(plan, "\"old\"")) return 1002;
    char *name = strstr(device, "\"deviceName\": \"");
    if (!name) return 2000;
    char wanted[300];
    snprintf(wanted, sizeof wanted, "%.*s", (int)strcspn(name + 15, "\"") + 16, name);
    return strstr(plan, wanted) ? 0 : 3007;
}
int cudnnBackendGetAttribute(void *of, int name, int type, long long wanted, long long *count, long long *into) {
    (void)of, (void)name, (void)type, (void)wanted;
    *count = 1;
    *into = 77;
    return 0;
}
"""


def compile_library(source: str, library: Path, *flags: str) -> None:
    """Build a library from C; skips the test where no compiler is installed."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("needs a C compiler")
    file = library.with_suffix(".c")
    file.write_text(source, "utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", *flags, "-o", library, file], timeout=60, check=True)


def without_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no half-written file of a child that is killed; the lines of a script are not counted anyway."""
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Installation:
    """Make an installation in a folder, which the planner and its process then find."""
    libraries = folder / "nvidia" / "cudnn" / "lib"
    libraries.mkdir(parents=True)
    compile_library(LIBRARY, libraries / NAMES[0], *flags)
    files = {libraries / name: (1, 1) for name in NAMES}
    installation = Installation("nvidia-cudnn-cu13", "9.28.0.42", "0.0", files)
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    without_coverage(monkeypatch)
    monkeypatch.setattr(planner, "examine_installation", lambda: installation)
    return installation
