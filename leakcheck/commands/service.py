"""The command `service`: the scenarios on a job service, or a contract to start from."""

import contextlib
import functools
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import leakcheck
from leakcheck.campaigns.render import lines
from leakcheck.commands import EXIT_OF, INTERRUPTED, LEAKED
from leakcheck.commands.progress import Progress
from leakcheck.deliver import check_apart, deliver, notify, output_to, show_progress
from leakcheck.errors import StoppedError, UsageError
from leakcheck.render import print_lines
from leakcheck.reports.files import Reports
from leakcheck.reports.of_campaign import of_campaign
from leakcheck.service import ServiceOptions, load_contract, run_service
from leakcheck.service.engine import select
from leakcheck.service.scenario import Profile
from leakcheck.subprocesses import Interrupts, in_background
from leakcheck.warden import shutdown

_EXAMPLE = Path(leakcheck.__file__).resolve().parents[1] / "examples" / "judge" / "contract.toml"
_PATIENCE = 50
"""Extra seconds that a running scenario has to end after we were asked to end."""


def run_scenarios(
    contract: Path | None,
    only: Sequence[str],
    profile: Profile,
    output: Path | None,
    reports: Sequence[Path],
    *,
    seed: int,
    settle: float,
    actions: Sequence[str],
    as_json: bool,
) -> int:
    """Run the scenarios; the exit code is 1 if one fails, else the verdict's, 130 if interrupted."""
    path = _EXAMPLE if contract is None else contract
    if contract is None and not path.exists():
        raise UsageError("the example service is only in a checkout of leakcheck: name a contract by --contract FILE")
    if not 0 <= settle <= 60:
        raise UsageError(f"--settle {settle}: give seconds from 0 to 60")
    known = load_contract(path)
    options = ServiceOptions(only=only, seed=seed, profile=profile, settle=settle, actions=actions)
    select(only, profile)
    check_apart(None, output, reports, None)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(output_to(output))
        written = stack.enter_context(Reports(reports))
        interrupts = stack.enter_context(Interrupts())
        began = time.monotonic()
        try:
            ui = Progress(known.name, "scenarios", None)
            work = functools.partial(run_service, known, path, options, ui, stop=interrupts.seen)
            result = in_background(work, interrupts, _PATIENCE)
        except StoppedError as stopped:
            show_progress("")
            shutdown()
            notify(f"{stopped}: no result")
            return INTERRUPTED
        finally:
            show_progress("")
        shutdown()
        code = LEAKED if result.failed else EXIT_OF[result.verdict]
        show = None if as_json else lambda: print_lines(lines(result), Console(stderr=True))
        code = deliver(code, result.to_json(), place, show)
        code = written.write(code, lambda: of_campaign(result, time.monotonic() - began))
        return INTERRUPTED if interrupts.seen() else code


def write_contract(openapi: str | None) -> int:
    """Print a contract to start from, filled in from an OpenAPI document; return the exit code."""
    from leakcheck.service.draft import draft

    print(draft(openapi), end="", flush=True)
    return 0
