"""The `leakcheck` command. This module parses the command line; `leakcheck.commands` does the work.

Exit codes: 0 clean, 1 leaked, 2 usage or configuration, 3 unknown, 4 the target could not be run, 130 interrupted.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
import typer.core

from leakcheck import __version__
from leakcheck.answers import answering
from leakcheck.cli_evidence import register
from leakcheck.cli_options import Cluster, Json, MetricsAt, MetricsFile, MetricsPrefix, Output, Reports, Resume, Store
from leakcheck.commands.defaults import Configured, configured, target_named, targets_named
from leakcheck.commands.parsing import arena_of, observed, words_of
from leakcheck.commands.process import run_and_exit
from leakcheck.errors import UsageError

# Each command imports what it needs when it runs: the help, a completion and `guard` must start fast.

_CAMPAIGNS = {
    "leaks": "Does a target leave anything behind, however its runs end?",
    "crash": "At which instant must a target be killed for it to leave something behind?",
    "faults": "What does a target leave behind if a step of its clean-up fails?",
    "exhaust": "Does a target fail honestly when the machine lacks something, and work again afterwards?",
    "locks": "Is there never more than one run in a box, whatever happens to its lock and its holder?",
    "state": "Does a target notice damage to its own state, and work on all the same?",
    "stress": "Is every status right under load, and does nothing stay?",
    "soak": "Does a sandbox run for days without a leak, a wrong status or a slowdown?",
}
"""The campaigns and their questions: importing them takes as long as all the rest, and the help needs only these."""


class _Commands(typer.core.TyperGroup):
    """The commands; campaigns are imported only to run them."""

    def format_commands(self, context: Any, formatter: Any) -> None:  # noqa: ARG002 - as it is called
        """Write each command with its whole line, where typer cuts it at the width of the terminal."""
        lines = {name: (command.help or "").partition("\n")[0] for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([*(lines | _CAMPAIGNS).items()])

    def list_commands(self, context: Any) -> list[str]:  # noqa: ARG002
        """Return the names, for completion."""
        self.commands.update(_campaigns())
        return list(self.commands)

    def get_command(self, context: Any, name: str) -> Any:  # noqa: ARG002
        """Return the command of this name."""
        if name not in self.commands:
            self.commands.update(_campaigns())
        return self.commands.get(name)


app = typer.Typer(
    cls=_Commands,
    help="Proves that a Linux sandbox leaves nothing behind.",
    epilog="Exit codes: 0 clean, 1 leaked, 2 usage, 3 unknown, 4 the command could not be run, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


_ROOTS = "Directories to check for files; may be repeated. Default: /tmp, /var/tmp, /dev/shm, /run."
Scope = Annotated[str, typer.Option(metavar="SCOPE", help="host, cgroup:PATH or tree:PID.")]
Kinds = Annotated[
    str | None, typer.Option(metavar="KIND,…", help="Kinds to observe. Default: every kind the scope can delimit.")
]
Roots = Annotated[list[str] | None, typer.Option(metavar="DIR,…", help=_ROOTS)]
LockFiles = Annotated[
    list[str] | None, typer.Option(metavar="PATH,…", help="The target's lock files; may be repeated.")
]
AllowFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML [[allow]] rules: kind, match, reason, expires.")
]
JsonOfGuard = Annotated[
    bool,
    typer.Option("--json", help="Print JSON on stdout instead of a report on stderr; CMD's stdout goes to stderr."),
]
_DEFAULT_TARGET = "refbox"


def _completed(incomplete: str) -> list[str]:
    """Return the built-in targets for completion; if none fits, the shell offers files."""
    from leakcheck.targets.registry import names

    return [name for name in names() if name.startswith(incomplete)]


_TARGET = "A built-in target's name, one of the configuration, or an adapter's path."
Target = Annotated[str, typer.Option(metavar="TARGET", help=_TARGET, autocompletion=_completed, callback=target_named)]
DemoLeak = Annotated[str | None, typer.Option(metavar="KIND", help="Plant a leak, report it, remove it.")]


@app.callback(invoke_without_command=True)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    demo_leak: DemoLeak = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The configuration file, instead of the nearest one.")
    ] = None,
    no_config: Annotated[bool, typer.Option("--no-config", help="Read no configuration file.")] = False,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Use the options of this profile of the configuration.")
    ] = None,
) -> None:
    """Proves that a Linux sandbox leaves nothing behind."""
    if version:
        print(f"leakcheck {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        if demo_leak is not None:
            raise UsageError(f"--demo-leak {demo_leak}: use it without a command, or as an option of guard")
        Configured(config, profile, without=no_config).begin(context)
        return
    if demo_leak is None:
        raise UsageError("no command given: try leakcheck guard -- CMD, or leakcheck --help")
    from leakcheck.commands.demo import demo
    from leakcheck.commands.guard import GuardOptions

    raise typer.Exit(demo(demo_leak, GuardOptions(observe=observed("host", None, None, None))))


@app.command()
def snapshot(
    output: Output = None,
    scope: Scope = "host",
    kinds: Kinds = None,
    roots: Roots = None,
    lock_files: LockFiles = None,
    json: Json = False,
) -> None:
    """Take one snapshot: print it as a table or JSON, or save it for diff."""
    from leakcheck.commands.snapshot import snapshot as run_snapshot

    raise typer.Exit(run_snapshot(observed(scope, kinds, roots, lock_files), output, as_json=json))


@app.command()
def diff(
    context: typer.Context,
    before: Annotated[Path, typer.Argument(metavar="A", help="The earlier snapshot or result.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The later one; a snapshot must be from the same boot.")],
    allow: AllowFile = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Compare two saved snapshots, or two results of a campaign or of verify (exit 1: the later one is worse)."""
    from leakcheck.commands.diff import diff as run_diff

    rules = "" if allow is not None else configured(context).allow
    raise typer.Exit(run_diff(before, after, allow, rules, output, as_json=json))


# Everything after the command's name belongs to the command, with or without "--".
@app.command(context_settings={"allow_interspersed_args": False})
def guard(
    context: typer.Context,
    command: Annotated[list[str] | None, typer.Argument(metavar="-- CMD [ARG]…", help="The command to run.")] = None,
    scope: Scope = "host",
    kinds: Kinds = None,
    roots: Roots = None,
    lock_files: LockFiles = None,
    allow: AllowFile = None,
    settle: Annotated[float, typer.Option(metavar="SECONDS", help="Time allowed for asynchronous teardown.")] = 0.5,
    json: JsonOfGuard = False,
    output: Output = None,
    report: Reports = None,
    recover: Annotated[
        str | None, typer.Option(metavar="CMD", help="The target's own clean-up, run by sh -c after settling.")
    ] = None,
    exit_code: Annotated[
        Literal["leakcheck", "command"], typer.Option(help="Whose exit code to return when clean.")
    ] = "leakcheck",
    demo_leak: DemoLeak = None,
    arena: Annotated[bool, typer.Option("--arena", help="Run the command in a new disposable host.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the arena up and print how to enter it.")] = False,
    size: Annotated[str | None, typer.Option(metavar="BYTES", help="Size of its writable layer: 64M, 1G …")] = None,
    network: Annotated[str, typer.Option(metavar="own|host", help="The arena's network.")] = "own",
    bind: Annotated[
        list[str] | None, typer.Option(metavar="SRC[:DST][:ro]", help="Make this host path visible in the arena.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="FILE=VALUE", help="Cgroup limit of the arena, such as pids.max=100.")
    ] = None,
) -> None:
    """Run a command and report what it leaves behind."""
    if not arena and (keep or size or network != "own" or bind or limit):
        raise UsageError("--keep, --size, --network, --bind and --limit need --arena")
    if arena and (scope != "host" or roots):
        raise UsageError("--arena: the whole arena is observed; omit --scope and --roots")
    from leakcheck._guard import milliseconds
    from leakcheck.commands.guard import GuardOptions
    from leakcheck.commands.guard import guard as run_guard

    options = GuardOptions(
        observe=observed(scope, kinds, roots, lock_files),
        arena=arena_of(size, network, bind or [], limit or [], keep=keep) if arena else None,
        keep=keep,
        allow=allow,
        settle_ms=milliseconds(settle),
        json=json,
        output=output,
        reports=report or [],
        recover=recover,
        pass_exit=exit_code == "command",
    )
    if demo_leak is not None:
        if command:
            raise UsageError(f"--demo-leak {demo_leak}: takes no command; it runs mkleak")
        from leakcheck.commands.demo import demo

        raise typer.Exit(demo(demo_leak, options))
    if allow is None:
        options = dataclasses.replace(options, rules=configured(context).allow)
    if not command:
        raise UsageError("no command to guard: write leakcheck guard [OPTIONS] -- CMD [ARG]…")
    raise typer.Exit(run_guard(command, options))


@app.command()
def doctor(
    scope: Scope = "host",
    kinds: Kinds = None,
    roots: Roots = None,
    preflight: Annotated[
        str | None,
        typer.Option(
            metavar="CHECK,…",
            help="Instead, check what jobs need: ffmpeg, gpu, cache, disk, redis.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what this user can and cannot observe on this machine, and how to get more."""
    if preflight is not None:
        from leakcheck.commands.preflight import run_preflight

        raise typer.Exit(run_preflight(words_of(preflight), as_json=json))
    from leakcheck.commands.doctor import doctor as run_doctor

    observe = observed(scope, kinds, roots, None)
    del observe["lock_files"]
    raise typer.Exit(run_doctor(observe, as_json=json))


@app.command()
def gate(
    context: typer.Context,
    only: Annotated[str | None, typer.Option(metavar="STEP,…", help="Only these steps.")] = None,
    skip: Annotated[str | None, typer.Option(metavar="STEP,…", help="Not these steps.")] = None,
    limit: Annotated[float, typer.Option(metavar="SECONDS", help="Longest time of a step.", min=1)] = 3600,
    output: Output = None,
    json: Json = False,
) -> None:
    """Run everything of a project's configuration that this machine can run, and print one page."""
    from leakcheck.commands.gate import gate as run_gate

    chosen, left = (words_of(text) if text is not None else [] for text in (only, skip))
    raise typer.Exit(run_gate(configured(context), chosen, left, limit, output, as_json=json))


@app.command()
def diagnostics(
    context: typer.Context,
    output: Output = None,
    store: Annotated[
        Path, typer.Option(metavar="FILE", help="A store whose runs are listed, if it exists.", parser=answering)
    ] = Path("leakcheck.db"),
) -> None:
    """Save what a bug report needs in one file, leakcheck-diagnostics.json, without secrets."""
    from leakcheck.commands.diagnostics import diagnostics as run_diagnostics

    raise typer.Exit(run_diagnostics(lambda: configured(context), output, store))


@app.command()
def reap(
    report: Annotated[
        Path, typer.Option("--diff", metavar="FILE", help="A report saved by guard, diff or leaks --host.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only list what would be removed.")] = False,
    json: Json = False,
) -> None:
    """Remove only what a saved report attributes to its run."""
    from leakcheck.commands.reap import reap as run_reap

    raise typer.Exit(run_reap(report, apply=yes, as_json=json))


@functools.cache
def _campaigns() -> dict[str, Any]:
    """Return the command of each campaign."""
    from leakcheck.campaigns import CAMPAIGNS
    from leakcheck.campaigns.sweep import Sweep
    from leakcheck.commands.campaign import command_of

    group = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
    common: dict[str, Any] = {"target": (Target, _DEFAULT_TARGET), "store": (Store, None), "resume": (Resume, False)}
    common |= {"json": (Json, False), "output": (Output, None), "report": (Reports, None)}
    common |= {"metrics": (MetricsAt, None), "metrics_file": (MetricsFile, None)}
    common |= {"metrics_prefix": (MetricsPrefix, "leakcheck")}
    for campaign in CAMPAIGNS.values():
        more = {"cluster": (Cluster, None)} if isinstance(campaign, Sweep) else {}
        group.command(campaign.name)(command_of(campaign, **common, **more))
    return dict(typer.main.get_group(group).commands)


@app.command()
def verify(
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help=f"{_TARGET} May be repeated. Default: refbox.",
            autocompletion=_completed,
            callback=targets_named,
        ),
    ] = None,
    profile: Annotated[
        Literal["quick", "full", "release"], typer.Option(help="How much of each requirement is tried.")
    ] = "quick",
    only: Annotated[str | None, typer.Option(metavar="R1,…", help="Only these requirements or campaigns.")] = None,
    skip: Annotated[str | None, typer.Option(metavar="R1,…", help="Not these requirements or campaigns.")] = None,
    report: Reports = None,
    compare: Annotated[bool, typer.Option("--compare", help="Add a table of the targets side by side.")] = False,
    seed: Annotated[int, typer.Option(metavar="S", help="Random seed.")] = 0,
    store: Store = None,
    resume: Resume = False,
    json: Json = False,
    output: Output = None,
    metrics: MetricsAt = None,
    metrics_file: MetricsFile = None,
    metrics_prefix: MetricsPrefix = "leakcheck",
) -> None:
    """Run the reliability plan R1 to R8 on a target, and print one page of its criteria."""
    from leakcheck.commands.metered import Watch
    from leakcheck.commands.verify import run_verify

    names, chosen = target or [_DEFAULT_TARGET], (words_of(only) if only is not None else [])
    left, watch = (words_of(skip) if skip is not None else []), Watch(metrics, metrics_file, metrics_prefix)
    reports = report or []
    code = run_verify(
        names,
        profile,
        chosen,
        left,
        output,
        reports,
        seed=seed,
        compare=compare,
        as_json=json,
        watch=watch,
        store=store,
        resume=resume,
    )
    raise typer.Exit(code)


# As with guard: options after the name are those of the sandbox.
@app.command(context_settings={"allow_interspersed_args": False})
def init(
    target: Annotated[str, typer.Argument(metavar="NAME", help="The sandbox's name; the file is NAME.toml.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- CMD [ARG]…", help="The command that runs {program} in it, with {wall} if it can."),
    ] = None,
) -> None:
    """Write an adapter for your own sandbox to start from; it overwrites nothing."""
    from leakcheck.commands.init import init as run_init

    # With options of CMD's own allowed, "--" is a word of it.
    words = command or []
    raise typer.Exit(run_init(target, words[1:] if words[:1] == ["--"] else words))


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help=_TARGET, autocompletion=_completed, callback=target_named),
    ],
    json: Json = False,
) -> None:
    """Check an adapter against its real sandbox: statuses, isolation, recovery."""
    from leakcheck.commands.check import check as run_check
    from leakcheck.targets import load as load_target

    raise typer.Exit(run_check(load_target(target), as_json=json))


# As with guard: options after the name are those of the command.
@app.command(context_settings={"allow_interspersed_args": False})
def config(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND [OPTION]…]", help="Only this one, with these options.")
    ] = None,
    json: Json = False,
) -> None:
    """Print the options of each command, and where each value comes from."""
    from leakcheck.commands.config import config as run_config

    raise typer.Exit(run_config(context, command or [], as_json=json))


@app.command()
def service(
    action: Annotated[
        Literal["init"] | None, typer.Argument(metavar="[init]", help="Write a contract to start from to stdout.")
    ] = None,
    contract: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The contract of the service. Default: that of examples/judge of a checkout."
        ),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="S3,S1.5,…", help="Only these rows or groups of rows.")] = None,
    profile: Annotated[
        Literal["quick", "full"], typer.Option(help="How much of each scenario is tried, and whether slow ones are.")
    ] = "quick",
    seed: Annotated[int, typer.Option(metavar="S", help="Random seed.")] = 0,
    settle: Annotated[float, typer.Option(metavar="SECONDS", help="Time allowed for asynchronous teardown.")] = 2.0,
    history: Annotated[
        str | None,
        typer.Option(metavar="ACTIONS", help="Replay this history of actions in S3.11, as a finding has it."),
    ] = None,
    openapi: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="With init: the OpenAPI document to read.")
    ] = None,
    json: Json = False,
    output: Output = None,
    report: Reports = None,
) -> None:
    """Test a job service by hostile but valid use, and what it leaves beneath (S1 to S3)."""
    from leakcheck.commands.service import run_scenarios, write_contract

    if action == "init":
        raise typer.Exit(write_contract(openapi))
    if openapi is not None:
        raise UsageError("--openapi: use it as leakcheck service init --openapi FILE|URL")
    chosen, actions = (words_of(only) if only is not None else []), (history or "").split()
    code = run_scenarios(
        contract,
        chosen,
        profile,
        output,
        report or [],
        seed=seed,
        settle=settle,
        actions=actions,
        as_json=json,
    )
    raise typer.Exit(code)


@app.command()
def targets(context: typer.Context, json: Json = False) -> None:
    """List the sandboxes that have adapters, and test which of them can run here."""
    from leakcheck.commands.targets import targets as run_targets

    raise typer.Exit(run_targets([*configured(context).targets.values()], as_json=json))


register(app)


def main() -> NoReturn:
    """Run the command line and exit; a failure is one line on stderr, a traceback only with ``LEAKCHECK_DEBUG=1``."""
    run_and_exit(_command)


def _command() -> object:
    return typer.main.get_command(app).main(prog_name="leakcheck", standalone_mode=False)
