"""The exceptions file: its drawn tree is true, and every error survives a trip to another process."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from tazza import errors

CLASSES: dict[str, type[Exception]] = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
}
_LINE = re.compile(r"^(?P<lead>[\s│├└─]*)(?P<name>\w+(?:Error|Warning))(?: \((?P<base>\w+)\))?(?:\s|$)")


def drawn_tree() -> dict[str, tuple[str, ...]]:
    """Name of each class in the docstring's tree with the names of its bases as drawn."""
    tree: dict[str, tuple[str, ...]] = {}
    parents: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if not (match := _LINE.match(line)):
            continue
        indent = len(match["lead"])
        parents = [(depth, name) for depth, name in parents if depth < indent]
        bases = (*(name for _, name in parents[-1:]), *([match["base"]] if match["base"] else []))
        tree[match["name"]] = bases or ("Exception",)
        parents.append((indent, match["name"]))
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert drawn_tree() == {name: tuple(base.__name__ for base in cls.__bases__) for name, cls in CLASSES.items()}


def test_every_class_is_public_and_documented() -> None:
    assert set(errors.__all__) == set(CLASSES)
    assert all(inspect.getdoc(cls) for cls in CLASSES.values())


def samples() -> list[Exception]:
    """One filled-in instance of every class."""
    backend = {"backend": "cuda", "call": "cuMemAlloc", "code": 2, "symbol": "CUDA_ERROR_X", "hint": "wait"}
    special: dict[str, Exception] = {
        "BackendUnavailableError": errors.BackendUnavailableError("cuda", "no driver", "install one"),
        "UpstreamError": errors.UpstreamError("load failed", ValueError("bad chunk")),
        "BackendError": errors.BackendError("broke", **backend),  # type: ignore[arg-type]
        "OutOfMemoryError": errors.OutOfMemoryError(
            "full",
            requested=9,
            limit=8,
            live=7,
            holders=(("a", 7, 1),),
            site=("a.py:1 f",),
            **backend,
        ),
        "DeviceLostError": errors.DeviceLostError("gone", in_flight=("conv", "copy"), **backend),
    }
    return [special.get(name) or cls(f"{name} text") for name, cls in CLASSES.items()]


@pytest.mark.parametrize("error", samples(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_survives_pickling(error: Exception, protocol: int) -> None:
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert {k: repr(v) for k, v in vars(copy).items()} == {k: repr(v) for k, v in vars(error).items()}
    assert repr(copy.__cause__) == repr(error.__cause__)


def test_bad_arguments_are_named_with_what_came_and_what_was_expected() -> None:
    error = errors.ArgumentError.of("nbytes", -1, "zero or more")
    assert str(error) == "nbytes: got -1 (int), expected zero or more"
    assert len(str(errors.ArgumentError.of("x", "y" * 1000, "less"))) < 120


def test_a_backend_error_says_where_what_and_what_helps() -> None:
    error = errors.BackendError("no image", backend="cuda", call="cuLaunch", code=209, symbol="NO_BINARY", hint="new")
    assert str(error) == "cuda.cuLaunch: no image [NO_BINARY]; new"
    assert str(errors.BackendError("odd", backend="cuda", call="f", code=0)) == "cuda.f: odd [0]"
