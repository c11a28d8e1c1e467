"""One self-contained HTML file: inline style and script under a strict policy, data that cannot become markup.

The policy forbids every load and every connection, and allows only the script and style of this file, by their hashes.
Data stand in an element of their own as JSON without the characters that could end it; the scripts put every text into
the page as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from importlib import resources
from typing import Any

from tazza.util.files import replace_file

__all__ = ["Texts", "embed", "write_document"]

# What could end the script element or begin a comment in it; the rest that JavaScript dislikes is not ASCII.
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}

_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<p id="missing">This page is drawn by a script that it contains; nothing is loaded. If you read this, the script did not
run.</p>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def write_document(path: str | os.PathLike[str], title: str, scripts: tuple[str, ...], data: object) -> None:
    """Write a page, atomically.

    Args:
        path: the file.
        title: shown by the browser's tab.
        scripts: names of files in ``assets`` that run one after the other, in one scope.
        data: what the scripts find as ``DATA``; anything that JSON can hold.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    style, code = _asset("page.css"), '"use strict";\n' + "\n".join(_asset(name) for name in scripts)
    script = f"\n(() => {{\n{code}\n}})();\n"
    allowed = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    page = _DOCUMENT.format(
        policy=f"{allowed}; base-uri 'none'; form-action 'none'",
        title=html.escape(title),
        style=style,
        data=embed(data),
        script=script,
    )
    replace_file(path, [page.encode("utf-8", "replace")])


def embed(data: object) -> str:
    """Return JSON that may stand in a script element: ASCII without ``<``, ``>`` and ``&``.

    >>> embed("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


class Texts:
    """Numbers for texts that occur often; -1 stands for None.

    >>> texts = Texts()
    >>> texts.number("a"), texts.number("b"), texts.number("a"), texts.number(None), texts.all
    (0, 1, 0, -1, ['a', 'b'])
    """

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, text: Any) -> int:
        """Return the number of a text, or of a tuple of texts."""
        if text is None:
            return -1
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.all)
            self.all.append(text)
        return number


def _asset(name: str) -> str:
    return resources.files("tazza.pages").joinpath("assets", name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
