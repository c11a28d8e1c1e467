"""The page about the litmus programs says what they are, and they cover the rules."""

from __future__ import annotations

from tests.litmus.table import PAGE, litmus_programs, page

RULES = {1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 15}


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `python -m tests.litmus.table`"


def test_every_rule_has_programs() -> None:
    programs = litmus_programs()
    assert {one.rule for one in programs} == RULES
    assert len({one.name for one in programs}) == len(programs) >= 30


def test_every_program_says_what_it_does() -> None:
    assert all(one.program.__doc__ and one.only for one in litmus_programs())
