"""The reference says what there is."""

from pathlib import Path

import pytest

from leakcheck.submissions import BEHAVIOURS, LANGUAGES, Behaviour, Language

PAGE = (Path(__file__).parents[2] / "docs/reference/submissions.md").read_text()


@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=lambda one: one.name)
def test_each_behaviour_has_its_row(behaviour: Behaviour) -> None:
    marks = ["✓" if language in behaviour.languages else "" for language in LANGUAGES]
    status = behaviour.expect + (", hostile" if behaviour.hostile else "")
    assert f"| `{behaviour.name}` | {status} | {behaviour.summary} | {' | '.join(marks)} |" in PAGE


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda one: one.name)
def test_each_language_has_its_row(language: Language) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{language.name}` |")]
    assert language.install.partition(",")[0] in row
    for program in language.tools or (language.runtime,):
        assert f"`{program}`" in row
