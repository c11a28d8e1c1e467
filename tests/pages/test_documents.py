"""Pages as files: what stands in them cannot become markup, and nothing outside is asked for."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest

import tazza as tz
from tazza.errors import ArgumentError
from tazza.pages.document import Texts, embed, write_document
from tazza.pages.memory import address, page_data, when
from tests.pages.snapshots import EMPTY, HOSTILE, Made

HARD = [HOSTILE, "<!--", "]]>", "\u2028\u2029", "\ud800", "\0", "'\"\\", "&lt;", "<script>", "日本語"]


class Elements(html.parser.HTMLParser):
    """What a parser finds in a page: elements with their attributes, and the content of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.content: list[str] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.content.append("")
        self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.content[-1] += data

    def of(self, tag: str) -> list[str]:
        """The content of every element of that name."""
        return [text for (name, _), text in zip(self.found, self.content, strict=True) if name == tag]


@pytest.mark.parametrize("text", HARD)
def test_texts_survive_and_cannot_end_the_element(text: str) -> None:
    embedded = embed({text: [text]})
    assert embedded.isascii()
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == {text: [text]}


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        embed(float("nan"))


def test_a_page_has_only_the_elements_of_its_frame(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_document(path, HOSTILE, ("shared.js",), HARD)
    found = Elements(path.read_text("utf-8"))
    tags = [tag for tag, _ in found.found]
    assert tags == ["html", "head", *["meta"] * 2, *["meta"] * 2, "title", "style", "body", "p", "script", "script"]
    assert json.loads(found.of("script")[0]) == HARD
    keys = {key for _, attributes in found.found for key in attributes}
    assert keys == {"lang", "charset", "http-equiv", "content", "name", "id", "type"}


def test_the_policy_allows_the_page_itself_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_document(path, "x", ("shared.js", "account.js", "memory.js"), {})
    found = Elements(path.read_text("utf-8"))
    [policy] = [str(a["content"]) for _, a in found.found if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == rules.pop("base-uri") == rules.pop("form-action") == "'none'"

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules == {"script-src": digest(found.of("script")[1]), "style-src": digest(found.of("style")[0])}


def test_no_asset_puts_text_in_as_markup_or_names_an_address() -> None:
    folder = Path(tz.__file__).parent / "pages" / "assets"
    forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function"
    forbidden += r"|https?:|url\(|@import|\bfetch\b|XMLHttpRequest|sendBeacon|WebSocket"
    for path in folder.iterdir():
        assert not re.search(forbidden, path.read_text("utf-8")), path.name
        assert path.read_text("utf-8").count("\n") < 500, path.name


def test_the_data_of_a_snapshot() -> None:
    snapshot = Made(500).snapshot
    data = page_data(snapshot)
    events, texts = data["events"], data["texts"]
    assert len({len(column) for column in events.values()}) == len({len(c) for c in data["blocks"].values()}) == 1
    assert events["nbytes"] == [event.nbytes for event in snapshot.events]
    assert [texts[number] for number in events["owner"]] == [" / ".join(event.owner) for event in snapshot.events]
    labels = [None if number < 0 else texts[number] for number in events["label"]]
    assert labels == [event.label for event in snapshot.events]
    assert [data["sites"][number] for number in events["site"]] == [event.site for event in snapshot.events]
    assert events["time"][0] == 0
    assert events["time"][-1] == snapshot.events[-1].time_ns - snapshot.events[0].time_ns
    assert set(data["blocks"]["segment"]) == {-1, *range(len(snapshot.segments))}
    assert sum(heading["nbytes"] for heading in data["headings"]) == data["used"]
    json.loads(embed(data))


def test_an_empty_snapshot_has_data_too() -> None:
    data = page_data(EMPTY)
    assert data["events"]["time"] == data["blocks"]["address"] == data["headings"] == []


def test_addresses_stay_exact() -> None:
    assert address(0x7F00_0000_0000) == 0x7F00_0000_0000
    assert address(0xFFFF_FFFF_FFFF_FFC0) == "0xffffffffffffffc0"


def test_moments_are_written_in_utc() -> None:
    assert when(1_700_000_000_999_999_999) == "2023-11-14 22:13:20 UTC"


def test_equal_texts_have_one_number() -> None:
    texts = Texts()
    assert [texts.number(text) for text in ("a", None, "b", "a")] == [0, -1, 1, 0]
    assert texts.all == ["a", "b"]


def test_a_snapshot_is_saved_by_the_suffix_of_the_path(tmp_path: Path) -> None:
    EMPTY.save(tmp_path / "a.html")
    EMPTY.save(str(tmp_path / "a.pickle"))
    assert (tmp_path / "a.html").read_text("utf-8").startswith("<!doctype html>")
    assert (tmp_path / "a.pickle").read_bytes()[0] == 0x80
    with pytest.raises(ArgumentError, match=r"\.html or \.pickle"):
        EMPTY.save(tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.pickle"]
