"""A generator's state as a dict that JSON can hold, with a checksum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tazza.errors import CheckpointError
from tazza.rng.cursor import Cursor

__all__ = ["Snapshot"]

_FORMAT = "tazza.generator/1 philox4x64-10"


class Snapshot(NamedTuple):
    """All that determines a generator's future values.

    Attributes:
        seed: the seed of the generator or, for a child, of its first ancestor.
        cursor: the next unused place of its stream.
        children: how many children `split` has made.

    >>> state = Snapshot(7, Cursor(key=9, position=4), 0).to_dict()
    >>> Snapshot.from_dict(state).cursor.position
    4
    """

    seed: int
    cursor: Cursor
    children: int

    def to_dict(self) -> dict[str, Any]:
        """Return a new dict of strings, ints (of any size) and None."""
        fields = {"format": _FORMAT, "seed": self.seed, **self.cursor._asdict(), "children": self.children}
        return fields | {"check": _checksum(fields)}

    @classmethod
    def from_dict(cls, state: object) -> Snapshot:
        """Read what `to_dict` wrote; raises `CheckpointError` for anything else."""
        fields = _checked(state)
        cursor = Cursor(fields["key"], fields["position"], fields["half"])
        return cls(fields["seed"], cursor, fields["children"])


def _checked(state: object) -> dict[str, Any]:
    """Return the fields without the checksum."""
    if not isinstance(state, Mapping) or state.get("format") != _FORMAT:
        found = state.get("format", "no format") if isinstance(state, Mapping) else type(state).__name__
        raise CheckpointError(f"not a state of this generator: found {found!r}, expected format {_FORMAT!r}")
    fields = {name: value for name, value in state.items() if name != "check"}
    if fields.keys() != {"format", "seed", *Cursor._fields, "children"}:
        raise CheckpointError(f"damaged generator state: its fields are {sorted(map(str, state))}")
    if state.get("check") != _checksum(fields):
        raise CheckpointError("damaged generator state: its values do not match its checksum; use another checkpoint")
    return fields


def _checksum(fields: Mapping[str, Any]) -> str:
    text = ";".join(f"{name}={fields[name]!r}" for name in sorted(fields))
    import hashlib  # late: it loads OpenSSL

    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
