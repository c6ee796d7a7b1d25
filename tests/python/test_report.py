"""Reports as data and as text, on canned JSON."""

import io
import json
from typing import Any

import msgspec
import pytest
from rich.console import Console

from leakcheck.errors import UsageError
from leakcheck.render import leak_lines, lines, print_lines, printable, summary
from leakcheck.report import Leak, Report


def leak(**changes: Any) -> dict[str, Any]:
    base = {
        "kind": "process",
        "class": "orphaned",
        "label": "process 41 (sleep): sleep 60",
        "attribution": "descent",
        "key": "process 41 90210",
        "evidence": {
            "resource": {"pid": 41, "start": 90210},
            "who": "parent 1 (init), uid 0",
            "since": "2026-01-02T03:04:05Z",
            "look": "cat /proc/41/status",
            "argv": "sleep 60",
        },
    }
    return base | changes


def report(**changes: Any) -> str:
    base: dict[str, Any] = {
        "schema": "leakcheck.report/1",
        "verdict": "clean",
        "boot_id": "0f0f0f0f-0000-4000-8000-000000000000",
        "leaks": [],
        "unattributed": [],
        "transient": [],
        "allowed": [],
        "unused_rules": [],
        "noise": 0,
        "vanished": [],
        "coverage": {"process": {"level": "full", "reason": ""}},
        "unreadable": [],
        "gauges": {},
        "command": {"argv": ["./judge", "1.cpp"], "exit": 0},
        "settle": {"looks": 6, "ms": 512.25, "extended": False},
        "timing_ms": {"baseline": 3.5, "run": 10.0, "settle": 512.25},
    }
    return json.dumps(base | changes)


def test_a_cgroup_of_several_hierarchies_is_one_line_but_not_with_another_holder() -> None:
    def cgroup(hierarchy: str, who: str = "empty", path: str = "/box") -> dict[str, Any]:
        evidence = {"resource": {"path": path, "hierarchy": hierarchy}, "who": who}
        return leak(kind="cgroup", label=f"cgroup {hierarchy} {path}", evidence=evidence)

    three = [cgroup(name) for name in ("pids", "memory", "cpu")]
    held, other = cgroup("v2", "holds process 9"), cgroup("pids", path="/two")
    read = Report.from_json(report(verdict="leaked", leaks=[*three, held, leak(), other]))
    shown = [text.plain for text in lines(read)]
    assert shown[0].startswith("leakcheck: leaked, 6 leaks")
    assert [text.split("cgroup ")[-1] for text in shown if "/box" in text] == [
        "pids /box (and memory, cpu) · empty",
        "v2 /box · holds process 9",
    ]
    assert len(shown) == 5, "each other leak has its line"
    assert "  … and 3 more" in [text.plain for text in lines(read, leaks_shown=1)]


def test_the_lines_of_leaks_have_every_key_and_what_is_removed_later_comes_last() -> None:
    resource = {"path": "/box", "hierarchy": "pids"}
    leaks = [
        Leak(kind="file", class_="reclaimable", label="file /a", key="1"),
        Leak(kind="cgroup", class_="orphaned", label="cgroup pids /box", key="2", evidence={"resource": resource}),
        Leak(kind="cgroup", class_="orphaned", label="cgroup cpu /box", key="3",
             evidence={"resource": resource | {"hierarchy": "cpu"}}),
    ]  # fmt: skip
    shown = leak_lines(leaks)
    assert {key: bool(line) for key, line in shown.items()} == {"1": True, "2": True, "3": False}
    assert "cgroup pids /box (and cpu)" in shown["2"]
    listed = [text.plain for text in lines(Report(verdict="leaked", leaks=leaks))]
    assert "/box" in listed[1] and "/a" in listed[2]


def rendered(text: str, **console: object) -> str:
    out = io.StringIO()
    print_lines(lines(Report.from_json(text)), Console(file=out, width=80, **console))  # type: ignore[arg-type]
    return out.getvalue()


class TestData:
    def test_a_report_survives_a_round_trip(self) -> None:
        first = Report.from_json(report(verdict="leaked", leaks=[leak()]))
        assert Report.from_json(first.to_json()) == first
        assert first.leaks[0].class_ == "orphaned"
        assert '"class":"orphaned"' in first.to_json()

    def test_unknown_fields_are_ignored(self) -> None:
        assert Report.from_json(report(colour="red")).verdict == "clean"

    def test_a_report_is_frozen(self) -> None:
        with pytest.raises(AttributeError):
            Report.from_json(report()).verdict = "clean"  # type: ignore[misc]

    def test_another_schema_version_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"schema 'leakcheck\.report/2'.*create it again"):
            Report.from_json(report(schema="leakcheck.report/2"))

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", '{"verdict": "clean"}', report()[:-20], "\x00", '"\ud800"']
    )
    def test_what_is_no_report_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError, match="not a leakcheck report"):
            Report.from_json(text.encode("utf-8", "surrogatepass"))

    def test_an_unknown_verdict_word_is_never_taken_for_clean(self) -> None:
        with pytest.raises(UsageError, match="damaged"):
            Report.from_json(report(verdict="fine"))

    def test_gaps_are_the_kinds_not_seen_in_full(self) -> None:
        coverage = {"fd": {"level": "full", "reason": ""}, "net": {"level": "none", "reason": "no permission"}}
        assert list(Report.from_json(report(coverage=coverage)).gaps) == ["net"]


class TestText:
    def test_clean_is_one_line(self) -> None:
        assert rendered(report()) == "leakcheck: clean after ./judge 1.cpp (exit 0)\n"

    def test_a_leak_is_one_line_with_what_who_since_and_how_to_look(self) -> None:
        lines = rendered(report(verdict="leaked", leaks=[leak()])).splitlines()
        assert len(lines) == 2
        assert lines[0].startswith("leakcheck: leaked, 1 leak after ./judge 1.cpp")
        for part in (
            "process",
            "orphaned",
            "sleep 60",
            "parent 1 (init)",
            "since 2026-01-0",
            "inspect: cat /proc/41/status",
        ):
            assert part in lines[1]

    def test_a_leak_that_nothing_ties_to_the_run_says_so(self) -> None:
        assert "nothing ties it to the run" in rendered(report(verdict="leaked", leaks=[leak(attribution="none")]))

    def test_transient_allowed_unused_and_gaps_are_listed_with_their_reasons(self) -> None:
        text = rendered(
            report(
                verdict="unknown",
                transient=[{"kind": "cgroup", "label": "cgroup v2 /box", "key": "k", "gone_after_ms": 35.4}],
                allowed=[{"kind": "file", "label": "file /tmp/cache", "key": "k", "reason": "the cache stays"}],
                unused_rules=[{"kind": "net", "reason": "mended"}],
                coverage={"key": {"level": "partial", "reason": "other users' keyrings"}},
            )
        )
        assert "transient cgroup  cgroup v2 /box  gone after 35 ms" in text
        assert "allowed file  file /tmp/cache  reason: the cache stays" in text
        assert "unused rule net  reason: mended" in text
        assert "not fully seen key: partial, other users' keyrings" in text
        assert "unknown, no leak seen, but not everything was observed: key" in text

    def test_of_what_nothing_ties_to_the_run_the_first_are_shown_and_the_others_counted(self) -> None:
        text = rendered(report(unattributed=[leak(attribution="none") for _ in range(1000)]))
        assert text.count("unattributed process  orphaned") == 5
        assert "unattributed process  and 995 more: see --json" in text
        assert len(text.splitlines()) == 7

    def test_what_the_targets_clean_up_removed_is_counted_apart_from_leaks(self) -> None:
        removed = leak(**{"class": "reclaimable"})
        assert rendered(report(leaks=[removed])).startswith("leakcheck: clean, 1 reclaimable after ./judge")
        both = rendered(report(verdict="leaked", leaks=[removed, leak()]))
        assert both.startswith("leakcheck: leaked, 1 leak, 1 reclaimable after ./judge")

    def test_a_comparison_does_not_speak_of_settling_and_lists_the_first_of_what_vanished(self) -> None:
        vanished = [{"kind": "file", "label": f"file /tmp/{n}", "key": f"{n}"} for n in range(7)]
        settle = {"looks": 0, "ms": 0, "extended": False}
        compared: dict[str, Any] = {"verdict": "leaked", "leaks": [leak()], "vanished": vanished}
        text = rendered(report(**compared, settle=settle, command=None))
        assert "settled" not in text
        assert text.count("vanished file  file /tmp/") == 5
        assert "vanished file  and 2 more: see --json" in text
        assert "vanished" not in rendered(report(**compared))

    @pytest.mark.parametrize(
        ("code", "words"), [(0, "exit 0"), (7, "exit 7"), (-9, "killed by signal 9"), (None, "end not observed")]
    )
    def test_it_tells_how_the_command_ended(self, code: int | None, words: str) -> None:
        assert words in rendered(report(command={"argv": ["x"], "exit": code}))

    def test_an_odd_time_is_shown_as_it_is(self) -> None:
        assert "since yesterday" in rendered(report(verdict="leaked", leaks=[leak(evidence={"since": "yesterday"})]))

    @pytest.mark.parametrize(
        "name",
        ["[bold red]x[/]", "[link=file:///etc]y[/link]", ":skull:", "<b>html</b>", "a\\x1b[31mb", "[/]", "{0} %s"],
    )
    def test_markup_in_a_hostile_name_is_shown_and_not_interpreted(self, name: str) -> None:
        text = report(verdict="leaked", leaks=[leak(label=f"file /tmp/{name}")])
        assert f"file /tmp/{name}" in rendered(text, force_terminal=True, color_system=None)

    @pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "a\rb", "\x9b31m", "\u202eevil", "\x00", "\u2028", "\ud800"])
    def test_what_could_steer_a_terminal_is_escaped_even_if_the_core_let_it_through(self, name: str) -> None:
        line = summary(msgspec.structs.replace(Report.from_json(report(verdict="leaked")), leaks=_leaks(name)))
        assert len(line.splitlines()) == 2
        assert all(c.isprintable() for c in line.replace("\n", ""))

    def test_an_exception_lists_twenty_leaks_and_counts_the_rest(self) -> None:
        text = summary(Report.from_json(report(verdict="leaked", leaks=[leak()] * 25)))
        assert text.count("sleep 60") == 20
        assert "… and 5 more" in text


def _leaks(label: str) -> list[object]:
    return [msgspec.structs.replace(Report.from_json(report(leaks=[leak()])).leaks[0], label=label)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ✓ ü", "plain ✓ ü"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\n", "\\n"),
        ("\u202e", "\\u202e"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_printable_escapes_only_what_is_not(text: str, shown: str) -> None:
    assert printable(text) == shown
