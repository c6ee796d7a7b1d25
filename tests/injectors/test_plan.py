"""The grammar of plans is the one that it always was; what is no plan is refused where it stops being one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injectors import Plan
from leakcheck.errors import UsageError

GRAMMAR = re.compile(r"([a-z][a-z-]*)(?::([^,\s]+))?((?:,[a-z]+)*)")
lines = st.text(max_size=12) | st.text("ab-:, \x1f\u3000é@1", max_size=8) | st.from_regex(GRAMMAR, fullmatch=True)


@given(lines)
def test_a_line_is_a_plan_exactly_if_the_grammar_has_it(line: str) -> None:
    found = GRAMMAR.fullmatch(line)
    if found is None:
        with pytest.raises(UsageError, match=r"^plan .*give KIND\[:ARGUMENT\]\[,FLAG\]$"):
            Plan.read(line)
        return
    plan = Plan.read(line)
    assert (plan.kind, plan.argument, plan.flags) == (found[1], found[2] or "", tuple(found[3].split(",")[1:]))
    assert str(plan) == line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a b", "plan 'a b': unexpected ' ' at character 2; give KIND[:ARGUMENT][,FLAG]"),
        ("", "plan '': unexpected end at character 1; give KIND[:ARGUMENT][,FLAG]"),
        ("a:\udc80", "plan 'a:\\udc80': not UTF-8; give KIND[:ARGUMENT][,FLAG]"),
    ],
)
def test_the_error_says_what_where_and_what_to_give(line: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        Plan.read(line)
    assert str(error.value) == said
