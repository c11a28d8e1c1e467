"""How adapters are found: ours, those of installed packages, and only of libraries that somebody imported."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

import tazza as tz
from tazza.core import registry
from tazza.core.adapter import Adapter
from tests.interop import need

OURS = ("cupy", "jax", "numba", "onnxruntime", "pyarrow", "torch")


def test_every_method_has_a_default_that_does_nothing() -> None:
    class Plain(Adapter):
        pass

    adapter, device = Plain(ModuleType("mylib")), tz.device("cpu")
    assert adapter.name == "mylib"
    adapter.trim(device)
    with tz.open("cpu") as ctx:
        assert (adapter.bind(ctx), adapter.memory(device)) == (None, None)
    assert not adapter.is_out_of_memory(MemoryError())


@pytest.mark.parametrize("library", OURS)
def test_ours_are_registered_and_need_no_library_to_be_imported(library: str) -> None:
    code = (
        "import sys; from tazza.core import registry\n"
        f"kind = registry.load_adapter({library!r})\n"
        f"print(kind.__name__, {library!r} in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [f"{library.capitalize()}Adapter", "False"]
    assert library in registry.adapter_names()


@pytest.mark.interop
@pytest.mark.parametrize("library", [name for name in OURS if name not in ("cupy", "numba")])
def test_examples_run(library: str) -> None:
    need(library)
    module = importlib.import_module(f"tazza.adapters.{library}")
    result = doctest.testmod(module, extraglobs={"tz": tz})
    assert result.attempted
    assert not result.failed


def test_a_package_adds_one(tmp_path: Path) -> None:
    """As an installed package would: a distribution with an entry point, a library, and an adapter for it."""
    metadata = tmp_path / "tazza_mylib-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tazza-mylib\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tazza.adapters]\nmylib = tazza_mylib:MylibAdapter\n")
    (tmp_path / "mylib.py").write_text("device, held = 'its own', 4096\n")
    (tmp_path / "tazza_mylib.py").write_text(
        textwrap.dedent(
            """
            from tazza.core.adapter import Adapter, ForeignMemory


            class MylibAdapter(Adapter):
                def bind(self, context):
                    before, self.library.device = self.library.device, context.device.name
                    return lambda: setattr(self.library, "device", before)

                def memory(self, device):
                    return ForeignMemory(self.library.held, note="planted")
            """
        )
    )
    program = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import tazza as tz
        from tazza.core.adapter import adapters

        with tz.open("cpu") as ctx:
            with ctx.bind():
                print("mylib" in [adapter.name for adapter in adapters()])
            import mylib
            with ctx.bind():
                print(mylib.device)
            print(mylib.device)
        print([adapter.memory(ctx.device).live for adapter in adapters() if adapter.name == "mylib"])
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["False", "cpu:0", "its own", "[4096]"]
