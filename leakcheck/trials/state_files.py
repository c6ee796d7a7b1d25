"""The state files of a target, recorded once a supervisor was killed while its payload ran."""

from pathlib import Path

from injectors.crash import crash_once_payload_runs
from leakcheck.errors import TargetError
from leakcheck.targets import Target
from leakcheck.trials import open_host
from leakcheck.trials.payload import SLEEPING
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import Session


def record_state_files(target: Target, stop: Stop) -> dict[str, bytes]:
    """Return the content of each state file, by its name in the adapter; the first, if the name stands for several.

    It raises `TargetError` if the warm-up run is not right, or none of the files is there.
    """
    with open_host(target, 0, live=False) as host:
        session = Session(target, host, stop=stop)
        if wrong := session.again():
            raise TargetError(f"{target.name}: warm-up run: {wrong}")
        session.renew()
        with session.tracing(lambda stage, _, payload: crash_once_payload_runs(payload) if stage == "launch" else None):
            session.run_crashed(session.prepare(SLEEPING), SLEEPING)
        found = {declared: session.state_files(declared) for declared in target.adapter.state_files}
        contents = {declared: host.read(Path(paths[0])) for declared, paths in found.items() if paths}
    if not contents:
        names = " and no ".join(target.adapter.state_files)
        hint = f"mend state_files in {target.path}"
        raise TargetError(f"{target.name}: while its payload runs there is no {names}; {hint}")
    return contents
