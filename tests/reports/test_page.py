"""The page of HTML: what it draws, how large it gets, and that no name in it is read as markup."""

import re
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, browser
from html_tags import read

from leakcheck.reports import page
from leakcheck.reports.figures import Cell, Curves, Line, Lives, Map, Mix, Share, Thing
from leakcheck.reports.rows import Failure, Group, Part, Report, Row, Subject

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e&amp;</style>"
LIMIT = 2_000_000


def report(*parts: Part, name: str = "made") -> Report:
    groups = [Group(name=part.name, status=part.status, tried=1, parts=[part]) for part in parts]
    return Report(command="leakcheck verify", subjects=[Subject(name=name, verdict="leaked", place="x", groups=groups)])


def part(*figures: Map | Lives | Curves | Mix, rows: int = 1, failures: int = 1, text: str = EVIL) -> Part:
    return Part(
        name=f"R3 {text}",
        rule="crash",
        status="fail",
        rows=[Row(name=f"{text} {n}", status="fail", measured=text, limit="0") for n in range(rows)],
        failures=[
            Failure(id=str(n), outcome="leaked", text=f"{text}\n{text}", replay=text, evidence=text)
            for n in range(failures)
        ],
        figures=figures,
    )


def cell(number: int, outcome: str = "clean", text: str = "") -> Cell:
    tone = {"clean": "good", "leaked": "bad"}.get(outcome, "open")
    more = [f"why: {text} {number}", f"replay: leakcheck crash --plan {number} '{text}'"] if outcome == "leaked" else []
    return Cell(name=f"before launch:0/mount({text})#{number}", outcome=outcome, tone=tone, more=more)


def figures(text: str) -> list[Map | Lives | Curves | Mix]:
    cells = [cell(n, "leaked" if n % 7 == 3 else "" if n % 11 == 0 else "clean", text) for n in range(60)]
    return [
        Mix(title=text, of=text, shares=text, rows=[(text, [Share(text, 3, "good"), Share("leaked", 1, "bad")])]),
        Map(title=f"map {text}", phases=[(f"setup {text}", cells[:40]), ("execution", cells[40:])], left_out=3),
        Lives(
            title=text,
            calls=50,
            phases=[(text, 0), ("execution", 30)],
            things=[
                Thing(kind="mount", name=text, begin=3, end=40, said=text, cuts=[5]),
                Thing(kind=text, name="/x", begin=20, end=None, said=text),
            ],
            cuts=[(5, text)],
            left_out=2,
        ),
        Curves(title=text, unit=text, lines=[Line(name=text, points=[(0, 1), (5, 9), (9, 3)])]),
    ]


def test_no_name_is_read_as_markup() -> None:
    evil, plain = (read(page(report(part(*figures(text), text=text), name=text))) for text in (EVIL, "plain"))
    assert evil.tags == plain.tags
    assert evil.attributes == plain.attributes
    assert not {"script", "img", "link", "iframe", "a"} & {*evil.tags}
    assert not any(name.startswith("on") or name in ("src", "href") for name in evil.attributes)
    assert "\x1b" not in evil.text
    assert "\u202e" not in evil.text
    assert "<script>alert(1)</script>" in evil.text


def test_a_cell_says_its_call_its_outcome_why_and_how_to_replay_it() -> None:
    text = read(page(report(part(*figures("/proc"))))).text
    assert "before launch:0/mount(/proc)#3: leakedwhy: /proc 3replay: leakcheck crash --plan 3 '/proc'" in text
    assert "before launch:0/mount(/proc)#1: clean" in text
    assert "before launch:0/mount(/proc)#11: not tried" in text
    legend = re.search(r"setup /proc: ([\w ,-]+)", text)
    assert legend is not None
    assert sum(map(int, re.findall(r"\d+", legend[1]))) == 40
    assert "3 more points are not in the result" in text


@pytest.mark.parametrize("maps", [1, 9])
def test_a_page_of_much_stays_below_two_megabytes_and_says_what_it_leaves_out(maps: int) -> None:
    name = "/run/user/1000/ünïcode-" * 4
    cells = [cell(n, "leaked" if n % 5 == 0 else "clean", name) for n in range(8_000)]
    things = [Thing(kind="mount", name=name, begin=n, end=None, said=name * 4, cuts=[1]) for n in range(120)]
    lives = Lives(
        title="Lives", calls=4_000, phases=[("setup", 0)], things=things, cuts=[(n, name) for n in range(400)]
    )
    curves = [Curves(title="t", unit="ms", lines=[Line(name="median", points=[(n, n) for n in range(60)])])] * 8
    large = [
        part(Map(title="map", phases=[("setup", cells)]), lives, *curves, rows=3_000, failures=900, text=name * 9)
        for _ in range(maps)
    ]
    html = page(report(*large))
    assert len(html.encode()) < LIMIT
    assert "not drawn" in html
    assert re.search(r"And [\d,]+ more findings", html)
    # Failures come before what is clean.
    assert html.count(": leaked<br>") > 0
    assert html.count(": clean</span>") == 0 or html.count(": leaked<br>") == 1600 * maps


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.slow  # it starts a browser
@pytest.mark.parametrize("width", [500, 1100])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_an_error_and_as_wide_as_its_window(
    chromium: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    (tmp_path / "page.html").write_text(page(report(part(*figures(EVIL)))))
    chromium.errors.clear()
    chromium.open(tmp_path / "page.html", width=width, dark=dark)
    assert chromium.errors == []
    assert chromium.value("document.scripts.length") == 0
    assert chromium.value("document.documentElement.scrollWidth") <= width
    background = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(28, 28, 28)" if dark else "rgb(255, 255, 255)")


SHOWN = """(() => {
  const seen = [...document.querySelectorAll(".cells label:not(.none) > span")].filter(
    one => getComputedStyle(one).clipPath === "none");
  return seen.map(one => one.innerText);
})()"""


@pytest.mark.slow  # it starts a browser
def test_a_cell_is_read_by_pointer_by_keyboard_and_by_a_screen_reader(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page(report(part(*figures("/proc")))))
    chromium.open(tmp_path / "page.html", width=500)
    assert chromium.value(SHOWN) == []
    # One stop of Tab for all of the map, whatever number of cells it has.
    chromium.value("document.querySelector('.none input').focus()")
    for _ in range(4):
        chromium.press("ArrowRight", 39)
    (shown,) = chromium.value(SHOWN)
    assert shown.splitlines()[0] == "before launch:0/mount(/proc)#3: leaked"
    assert "leakcheck crash --plan 3 '/proc'" in shown
    box = chromium.value(
        "JSON.stringify(document.querySelector('.cells input:checked + span').getBoundingClientRect())"
    )
    assert '"left":' in box
    chromium.press("Tab", 9)
    assert chromium.value("document.activeElement.closest('.map')") is None
    at = chromium.value(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])"
        "([...document.querySelectorAll('.cells label:not(.none)')][10].getBoundingClientRect())"
    )
    chromium.point(*at)
    assert "before launch:0/mount(/proc)#10: leaked" in " ".join(chromium.value(SHOWN))
    names = chromium.names("radio")
    assert len(names) == 61
    assert any(name.startswith("before launch:0/mount(/proc)#3: leaked") and "--plan 3" in name for name in names)
