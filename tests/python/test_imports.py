"""Who may import whom: one way, from the command line down to the native core; and how long a file may be."""

import ast
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# From the top; who stands in a line may import what stands in it or below, and nothing above.
LAYERS = [
    ("leakcheck.__main__",),
    ("leakcheck.cli", "leakcheck.cli_evidence", "leakcheck.cli_options", "leakcheck.commands"),
    ("leakcheck.cluster",),
    (
        "leakcheck.metrics",
        "leakcheck.reports.of_verify",
        "leakcheck.reports.of_campaign",
        "leakcheck.reports.campaign_figures",
        "leakcheck.schemas",
        "leakcheck.evidence",
    ),
    ("leakcheck.verify",),
    ("leakcheck.conformance",),
    ("leakcheck.service",),
    ("leakcheck.campaigns", "leakcheck.strategies"),
    ("leakcheck.trials",),
    ("leakcheck.stats", "leakcheck.targets"),
    ("leakcheck.submissions",),
    ("injectors",),
    ("leakcheck.arena", "leakcheck.pytest_plugin"),
    ("leakcheck.snapshots", "leakcheck.pytest_summary"),
    ("leakcheck.pytest_item", "leakcheck.pytest_reports"),
    ("leakcheck.reports",),
    (
        "leakcheck._guard",
        "leakcheck.deliver",
        "leakcheck.answers",
        "leakcheck.config",
        "leakcheck.config_file",
        "leakcheck.pytest_garbage",
        "leakcheck.pytest_origins",
        "leakcheck.pytest_rules",
    ),
    ("leakcheck.render", "leakcheck.stack", "leakcheck.subprocesses"),
    ("leakcheck.warden", "leakcheck.report", "leakcheck.allow"),
    ("leakcheck.atomic_write", "leakcheck.group", "leakcheck.renamed", "leakcheck.init", "leakcheck._bin"),
    ("leakcheck.toml_lines", "leakcheck.preflight"),
    ("leakcheck.errors", "leakcheck.printable", "leakcheck.redact"),
    ("leakcheck._native",),
]
FOR_INJECTORS = ("injectors", "leakcheck.warden", "leakcheck.errors", "leakcheck._native")
FILES = sorted([*ROOT.glob("leakcheck/**/*.py"), *ROOT.glob("injectors/**/*.py")])


def module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[str]:
    """Yield what it imports as a module, at once or later."""
    known = {module(one) for one in FILES}
    tree = ast.parse(file.read_text())
    apart = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in apart:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in known else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layer(name: str) -> int | None:
    return next((number for number, packages in enumerate(LAYERS) if within(name, packages)), None)


def test_every_module_has_its_place() -> None:
    # The package itself imports each name when it is first used.
    assert [name for file in FILES if layer(name := module(file)) is None] == ["leakcheck"]


@pytest.mark.parametrize("file", [file for file in FILES if layer(module(file)) is not None], ids=module)
def test_imports_go_one_way(file: Path) -> None:
    own = layer(module(file))
    assert own is not None
    above = [name for name in imports(file) if (theirs := layer(name)) is not None and theirs < own]
    assert above == []


@pytest.mark.parametrize("file", [file for file in FILES if file.is_relative_to(ROOT / "injectors")], ids=module)
def test_injectors_import_little_of_leakcheck(file: Path) -> None:
    assert [one for one in imports(file) if within(one, ("leakcheck",)) and not within(one, FOR_INJECTORS)] == []


def circles(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """Return the modules that stand in a circle or above one, with what they need of the others."""
    graph = {name: needed & graph.keys() - {name} for name, needed in graph.items()}
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    return {name: sorted(needed & graph.keys()) for name, needed in graph.items()}


def test_no_two_modules_import_each_other() -> None:
    assert circles({module(file): set(imports(file)) for file in FILES}) == {}


@pytest.mark.parametrize("crate", ["mkleak", "parse", "plan", "refbox", "warden"])
def test_no_two_modules_of_a_crate_use_each_other(crate: str) -> None:
    source = ROOT / "rust" / crate / "src"
    graph: dict[str, set[str]] = {}
    for file in source.rglob("*.rs"):
        top = file.relative_to(source).with_suffix("").parts[0]
        text = file.read_text().split("#[cfg(test)]")[0]
        groups = re.findall(r"crate::(\w+|\{[^}]*\})", text)
        graph.setdefault(top, set()).update(name for group in groups for name in re.findall(r"\w+", group))
    assert circles(graph) == {}


@pytest.mark.parametrize(
    "file", [*ROOT.glob("leakcheck/campaigns/*.py"), *ROOT.glob("leakcheck/trials/*.py")], ids=module
)
def test_no_file_of_campaigns_and_trials_is_long(file: Path) -> None:
    assert file.read_text().count("\n") <= 250


def test_no_six_lines_stand_in_two_campaigns() -> None:
    def sixes(file: Path) -> set[tuple[str, ...]]:
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(("from ", "import "))]
        return {tuple(lines[start : start + 6]) for start in range(len(lines) - 5)}

    shared = {
        (one.name, other.name): sixes(one) & sixes(other)
        for one, other in combinations(sorted(ROOT.glob("leakcheck/campaigns/*.py")), 2)
    }
    assert {pair: found for pair, found in shared.items() if found} == {}
