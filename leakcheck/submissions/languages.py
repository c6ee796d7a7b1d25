"""The languages that submissions are written in, how a suite is compiled, and how it is run."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from leakcheck.errors import CompileError, UsageError
from leakcheck.submissions.cache import compiled, run_compiler
from leakcheck.submissions.limits import Limits

_SOURCES = Path(__file__).parent / "sources"
_MIB = 1 << 20


class Found(msgspec.Struct, frozen=True):
    """Whether a language's toolchain is installed; `reason` is what is missing, `hint` how to install it."""

    ready: bool
    reason: str = ""
    hint: str = ""


class Language(msgspec.Struct, frozen=True, kw_only=True):
    """One language. The words of a command are separated by spaces, and filled in one by one.

    Args:
        name: its name in specs.
        source: its suite, in `sources`.
        tools: the programs that compile it.
        runtime: the program that runs it, which sandboxes see only below /usr; empty if it needs none.
        compile: commands, run in a directory with the suite; ``{TOOL}`` is a tool's path.
        run: its command, ``{}`` being the bundle's directory, ``{runtime}`` and ``{heap}`` (MiB) filled in too.
        version: the command that prints the compiler's or interpreter's version.
        install: how to install it.
        least_memory: the smallest memory limit, in bytes, under which its runtime starts.
        least_processes: likewise, of processes and threads.
        environment: added to the environment of its compilation.
    """

    name: str
    source: str
    tools: tuple[str, ...] = ()
    runtime: str = ""
    compile: tuple[str, ...] = ()
    run: str
    version: str
    install: str
    least_memory: int = 16 * _MIB
    least_processes: int = 2
    environment: dict[str, str] = {}

    def available(self) -> Found:
        """Return whether it can be compiled and run here."""
        missing = [name for name in self.tools if _tool(name) is None]
        if missing:
            return Found(False, f"no {' and no '.join(missing)} on PATH", self.install)
        if self.runtime and _runtime(self.runtime) is None:
            return Found(False, f"no {self.runtime} below /usr, where sandboxes see it", self.install)
        return Found(True)

    def bundle(self, cache: Path | None = None) -> Path:
        """Return the directory with the suite, compiled if the cache lacks it; raise `UsageError` or `CompileError`."""
        state = self.available()
        if not state.ready:
            raise UsageError(f"language {self.name}: {state.reason}; install it: {state.hint}")
        source = (_SOURCES / self.source).read_bytes()
        tools = {name: _tool(name) for name in self.tools} | {"runtime": _runtime(self.runtime)}
        version = _version(tuple(word.format_map(tools) for word in self.version.split()))
        # Of the paths only the commands' names matter: the versions identify the rest.
        recipe = [repr((self.compile, self.environment)).encode(), source, version.encode()]

        def build(directory: Path) -> None:
            (directory / self.source).write_bytes(source)
            for command in self.compile:
                try:
                    run_compiler([word.format_map(tools) for word in command.split()], directory, self.environment)
                except CompileError as error:
                    raise CompileError(f"compile {self.name}, {_SOURCES / self.source}: {error}") from error

        return compiled(self.name, recipe, build, cache)

    def argv(self, bundle: Path, limits: Limits) -> tuple[str, ...]:
        """Return the argv of the suite in `bundle`, without its arguments."""
        # Above the limit, so that the sandbox kills a program that takes too much, not the runtime.
        heap = 2 * max(limits.memory // _MIB, 1024)
        return tuple(word.format(bundle, runtime=_runtime(self.runtime), heap=heap) for word in self.run.split())


_version = functools.lru_cache(maxsize=64)(run_compiler)

LANGUAGES: dict[str, Language] = {
    one.name: one
    for one in (
        Language(
            name="python",
            source="suite.py",
            runtime="python3",
            # -I -S: use nothing of the user, and nothing in /etc, which a sandbox may lack.
            run="{runtime} -I -S -B {}/suite.py",
            version="{runtime} --version",
            install="apt-get install python3",
        ),
        Language(
            name="cpp",
            source="suite.c",
            tools=("g++",),
            compile=("{g++} -x c++ -std=c++17 -O1 -o suite suite.c",),
            run="{}/suite",
            version="{g++} --version",
            install="apt-get install g++",
        ),
        Language(
            name="c",
            source="suite.c",
            tools=("gcc",),
            compile=("{gcc} -std=gnu11 -O1 -o suite suite.c",),
            run="{}/suite",
            version="{gcc} --version",
            install="apt-get install gcc",
        ),
        Language(
            name="java",
            source="Main.java",
            tools=("javac", "jlink"),
            # A separate runtime, because Debian's has links into /etc, which a sandbox may lack. The dump makes the
            # start quick. Srt loads its own agent, which needs java.instrument.
            compile=(
                "{javac} -encoding UTF-8 Main.java",
                "{jlink} --add-modules java.base,java.instrument "
                "--strip-debug --no-header-files --no-man-pages --output runtime",
                "runtime/bin/java -Xshare:dump",
            ),
            run="{}/runtime/bin/java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xshare:auto -XX:-UsePerfData "
            "-Xss512k -Xms16m -Xmx{heap}m -cp {} Main",
            version="{javac} -version",
            install="apt-get install openjdk-17-jdk-headless",
            least_memory=256 * _MIB,
            least_processes=64,
        ),
        Language(
            name="rust",
            source="suite.rs",
            tools=("rustc",),
            compile=("{rustc} --edition 2021 -O -o suite suite.rs",),
            run="{}/suite",
            version="{rustc} --version",
            install="apt-get install rustc, or https://rustup.rs",
        ),
        Language(
            name="go",
            source="suite.go",
            tools=("go",),
            compile=("{go} build -o suite suite.go",),
            run="{}/suite",
            version="{go} version",
            install="apt-get install golang-go",
            least_memory=32 * _MIB,
            least_processes=32,
            # Download nothing, and ignore any Go module around the cache.
            environment={"CGO_ENABLED": "0", "GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOFLAGS": ""},
        ),
        Language(
            name="node",
            source="suite.js",
            runtime="node",
            run="{runtime} --max-old-space-size={heap} {}/suite.js",
            version="{runtime} --version",
            install="apt-get install nodejs",
            least_memory=256 * _MIB,
            least_processes=64,
        ),
    )
}
"""The languages by name, the one with the quickest compiler first."""


def available() -> dict[str, Found]:
    """Return for each language whether its toolchain is installed."""
    return {name: language.available() for name, language in LANGUAGES.items()}


def found_languages(wanted: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Return the names of the installed languages among `wanted`, in the order of `LANGUAGES`."""
    return [name for name, found in available().items() if found.ready and wanted(name)]


def _tool(name: str) -> str | None:
    """Return the path of a compiler: on PATH, or where its installer puts it."""
    cargo = os.environ.get("CARGO_HOME") or f"{os.environ.get('HOME', '')}/.cargo"
    places = [os.environ.get("PATH", os.defpath), f"{cargo}/bin", "/usr/local/go/bin"]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found and name in ("javac", "jlink"):
        # The rest of a JDK is beside it, behind the links of alternatives.
        found = str(Path(found).resolve())
    return found


def _runtime(name: str) -> str | None:
    """Return the path of an interpreter that sandboxes see: all of them show /usr."""
    found = shutil.which(name, path="/usr/bin:/usr/local/bin") if name else None
    resolved = Path(found).resolve() if found else None
    return str(resolved) if resolved is not None and resolved.is_relative_to("/usr") else None
