"""What a context saves: counters, its generator and the objects that the user registered."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np

from tazza.errors import ArgumentError, CheckpointError, UsageError

__all__ = ["State", "Stateful"]

Array = np.ndarray[Any, np.dtype[Any]]
ToHost = Callable[[Any], Array]
FromHost = Callable[[Array], Any]

_COUNTERS = ("epoch", "step", "launches")
_NUMBER_TYPES = (np.bool_, np.number)


@runtime_checkable
class Stateful(Protocol):
    """An object whose state can be taken and given back.

    State is made of dicts whose keys are texts or integers, lists, tuples, numbers, texts, bytes, None, and arrays of
    the host or of the context's device. It is given back with NumPy arrays in place of all arrays; under
    ``arrays="torch"`` with tensors, so that modules and optimizers of PyTorch can be registered as they are.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state; arrays in it are copied before this object can change them."""
        ...

    def load_state_dict(self, state: Any, /) -> object:
        """Take the state over, or raise and leave the object as it was."""
        ...


class Restorable(Protocol):
    """What State needs of a generator."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any], /) -> object: ...


@final
class State:
    """What ``ctx.state`` is: counters, the generator and registered objects, saved and loaded as one.

    Args:
        generator: the context's generator.
        to_host: copies an array of the context's device into a NumPy array; None where there are no such arrays.
        from_host: makes what objects are given back for a saved array; None gives them the NumPy array.
        spec: the saving context's spec in JSON's types; stored in the file.
        agree: keys of `spec` that must be equal in a file and here. None on either side agrees with everything.

    Attributes:
        epoch: counted by the user.
        step: counted by the user.
        launches: number of launches of the context so far; tasks draw their random numbers from it.

    Example:
        >>> import os, tempfile
        >>> import tazza as tz
        >>> class Optimizer:
        ...     rate = 0.1
        ...     def state_dict(self):
        ...         return {"rate": self.rate}
        ...     def load_state_dict(self, state):
        ...         self.rate = state["rate"]
        >>> with tz.open("cpu", seed=7) as ctx, tempfile.TemporaryDirectory() as folder:
        ...     optimizer = Optimizer()
        ...     ctx.state.register("optimizer", optimizer)
        ...     ctx.state.epoch += 1
        ...     ctx.save(os.path.join(folder, "run.tazza"))
        ...     optimizer.rate = 0.0
        ...     ctx.load(os.path.join(folder, "run.tazza"))
        ...     ctx.state.epoch, optimizer.rate
        (1, 0.1)
    """

    def __init__(
        self,
        generator: Restorable,
        to_host: ToHost | None = None,
        from_host: FromHost | None = None,
        *,
        spec: Mapping[str, object] | None = None,
        agree: tuple[str, ...] = ("seed",),
    ) -> None:
        self.epoch = 0
        self.step = 0
        self.launches = 0
        self._generator = generator
        self._to_host, self._from_host = to_host, from_host
        self._spec = dict(spec or {})
        self._agree = agree
        self._objects: dict[str, Stateful] = {}
        self._waiting: dict[str, Any] = {}  # parts of a resumed file whose objects are not registered yet

    def register(self, name: str, obj: Stateful) -> None:
        """Save and load `obj` under `name` from now on; the state holds it.

        After `resume`, the object is given the part that was saved under its name.

        Raises:
            ArgumentError: the name is empty or taken, or the object lacks state_dict() or load_state_dict().
            CheckpointError: the object refused its part; it is not registered, and the part waits on.
        """
        if type(name) is not str or not name:
            raise ArgumentError.of("name", name, "a text that is not empty")
        if name in self._objects:
            raise ArgumentError(f"name: {name!r} is registered already; unregister it first or choose another name")
        if not isinstance(obj, Stateful):
            raise ArgumentError.of("obj", obj, "an object with state_dict() and load_state_dict(state)")
        if name in self._waiting:
            _give("the resumed file", name, self._loader(obj), self._waiting[name])
            del self._waiting[name]
        self._objects[name] = obj

    def forget(self) -> None:
        """Drop every registered object. Internal: for whoever ends a run, and looks what still lives after it."""
        self._objects.clear()

    def unregister(self, name: str) -> None:
        """Forget the object registered under `name`."""
        if self._objects.pop(name, None) is None:
            raise ArgumentError.of("name", name, f"one of the registered names {sorted(self._objects)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to `path`, in one step; waits for what still writes the registered arrays.

        Raises:
            ArgumentError: a registered object's state holds something that cannot be saved; names where it is.
            OSError: the file cannot be written; an older file at `path` is untouched.
        """
        arrays: dict[str, Array] = {}
        content = {
            "spec": self._spec,
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "generator": self._encode(self._generator.state(), "generator", arrays),
            "objects": {name: self._take(name, arrays) for name in self._objects}
            | {name: self._encode(part, name, arrays) for name, part in self._waiting.items()},
        }
        from tazza.core import statefile  # late: hashing and paths cost more to import than most of the package

        statefile.write(path, content, arrays)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take everything over from `path`; when any part fails, everything is as it was before.

        Raises:
            CheckpointError: the file is damaged or foreign, was saved under another spec or with other objects, or an
                object refused its part.
            OSError: the file cannot be read.
        """
        saved = self._read(path)
        if saved.objects.keys() != self._objects.keys():
            raise CheckpointError(
                f"{saved.path}: holds the objects {sorted(saved.objects)}, registered are {sorted(self._objects)}; "
                "register the same names before loading"
            )
        self._replace(saved)
        self._waiting.clear()

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take counters and generator over from `path`, and each object's part once the object is registered.

        Raises:
            UsageError: objects are registered already; `load` gives them their parts.
            CheckpointError: as in `load`.
            OSError: the file cannot be read.
        """
        if self._objects:
            raise UsageError(f"{sorted(self._objects)} are registered already; use load, which gives them their parts")
        saved = self._read(path)
        self._replace(saved)
        self._waiting = saved.objects

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={getattr(self, name)}" for name in _COUNTERS)
        return f"<State {counts}, objects={sorted(self._objects)}>"

    @property
    def registered(self) -> tuple[str, ...]:
        """Names of the registered objects, in the order in which they were registered."""
        return tuple(self._objects)

    def _read(self, path: str | os.PathLike[str]) -> _Saved:
        from tazza.core import statefile

        header, arrays = statefile.read(path)
        try:
            saved = _Saved(
                path=os.fspath(path),
                spec=dict(header["spec"]),
                counters={name: int(header["counters"][name]) for name in _COUNTERS},
                generator=_decode(header["generator"], arrays),
                objects={name: _decode(tree, arrays) for name, tree in header["objects"].items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{os.fspath(path)}: not the saved state of a context: {error!r}") from error
        for key in self._agree:
            ours, theirs = self._spec.get(key), saved.spec.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                raise CheckpointError(
                    f"{saved.path}: saved with {key}={theirs!r}, this context has {key}={ours!r}; "
                    f"make the context with {key}={theirs!r} or choose another file"
                )
        return saved

    def _replace(self, saved: _Saved) -> None:
        """Give generator, objects and counters what was saved, or leave all of them with what they have now."""
        before: dict[str, Array] = {}
        parts = [("generator", self._generator.restore, saved.generator, self._generator.state())]
        for name, obj in self._objects.items():
            parts.append((name, self._loader(obj), saved.objects[name], _decode(self._take(name, before), before)))
        undo: list[tuple[Callable[[Any], object], Any]] = []
        for name, give, state, previous in parts:
            undo.append((give, previous))
            try:
                _give(saved.path, name, give, state)
            except BaseException as error:
                _roll_back(undo, error)
                raise
        for name, count in saved.counters.items():
            setattr(self, name, count)

    def _loader(self, obj: Stateful) -> Callable[[Any], object]:
        """What gives an object its decoded part."""
        convert = self._from_host
        if convert is None:
            return obj.load_state_dict
        return lambda state: obj.load_state_dict(_converted(state, convert))

    def _take(self, name: str, arrays: dict[str, Array]) -> object:
        return self._encode(self._objects[name].state_dict(), name, arrays)

    def _encode(self, value: Any, where: str, arrays: dict[str, Array]) -> object:
        """Turn a value into JSON's types; every container and array becomes a one-key dict that says what it is."""
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str) and type(key) is not int:
                    raise ArgumentError.of(f"key in {where}", key, "a text or an integer")
            items = {key: self._encode(item, f"{where}.{key}", arrays) for key, item in value.items()}
            # JSON's own objects have text keys only.
            return {"dict": items} if all(isinstance(key, str) for key in items) else {"pairs": list(items.items())}
        if isinstance(value, list | tuple):
            listed = [self._encode(item, f"{where}[{index}]", arrays) for index, item in enumerate(value)]
            return {type(value).__name__ if type(value) in (list, tuple) else "list": listed}
        kind = "array"
        if isinstance(value, bytes):
            kind, value = "bytes", np.frombuffer(value, np.uint8)
        elif isinstance(value, _NUMBER_TYPES):
            kind, value = "number", np.asarray(value)
        key = f"{len(arrays)} {where}"  # the place alone may not be unique: keys may contain dots
        arrays[key] = self._host_copy(value, where)
        return {kind: key}

    def _host_copy(self, value: Any, where: str) -> Array:
        if not isinstance(value, np.ndarray):
            if self._to_host is None:
                raise ArgumentError.of(where, value, "dicts, lists, tuples, numbers, texts, bytes, None or arrays")
            try:
                value = self._to_host(value)
            except (TypeError, ValueError) as error:
                raise ArgumentError(
                    f"{where}: a {type(value).__name__} cannot be saved ({error}); use dicts, lists, tuples, numbers, "
                    "texts, bytes, None or arrays of this context"
                ) from error
        return np.array(value, copy=True, order="C")


@dataclass(frozen=True, slots=True)
class _Saved:
    """A file's content, decoded."""

    path: str
    spec: dict[str, Any]
    counters: dict[str, int]
    generator: dict[str, Any]
    objects: dict[str, Any]


def _give(path: str, name: str, give: Callable[[Any], object], state: Any) -> None:
    try:
        give(state)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: {name!r} refused its state: {error}") from error


def _decode(tree: Any, arrays: Mapping[str, Array]) -> Any:
    """Undo `State._encode`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    match kind:
        case "dict":
            return {key: _decode(item, arrays) for key, item in value.items()}
        case "pairs":
            return {key: _decode(item, arrays) for key, item in value}
        case "list":
            return [_decode(item, arrays) for item in value]
        case "tuple":
            return tuple(_decode(item, arrays) for item in value)
        case "bytes":
            return arrays[value].tobytes()
        case "number":
            return arrays[value][()]
        case "array":
            return arrays[value]
    raise ValueError(f"unknown kind {kind!r}")


def _converted(state: Any, convert: FromHost) -> Any:
    """Replace every array of a decoded state."""
    if isinstance(state, dict):
        return {key: _converted(item, convert) for key, item in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_converted(item, convert) for item in state)
    return convert(state) if isinstance(state, np.ndarray) else state


def _roll_back(undo: list[tuple[Callable[[Any], object], Any]], cause: BaseException) -> None:
    for give, previous in reversed(undo):
        try:
            give(previous)
        except Exception as error:
            cause.add_note(f"and going back to the state before the load failed: {error!r}")
