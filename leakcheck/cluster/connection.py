"""The connection to a Dask cluster: one that runs somewhere, or one of this machine for one command."""

import contextlib
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path

import cryptography  # noqa: F401 - for the certificates of a local cluster
import dask
import distributed

from leakcheck.errors import UnavailableError, UsageError, reason

_ANSWER_S = 10
_ADDRESS = re.compile(r"local:(?P<workers>[0-9]{1,4})|(tcp|tls)://[^/\s]+:[0-9]{1,5}")
_MOST = 256


@contextlib.contextmanager
def connected(address: str, directory: Path) -> Generator[distributed.Client, None, None]:
    """Give a client of the cluster at `address`, with at least one worker.

    Args:
        address: ``local:N``, N workers on this machine that end with the command; or that of a scheduler,
            ``tcp://HOST:PORT`` or ``tls://HOST:PORT`` with the certificates of Dask's configuration.
        directory: where local workers keep their files.

    Raises:
        UsageError: there is no such cluster, it does not answer, or has no worker.
    """
    form = _ADDRESS.fullmatch(address)
    if form is None:
        raise UsageError(f"--cluster {address}: give local:N, or tcp://HOST:PORT of a Dask scheduler")
    workers = form["workers"]
    if workers is not None and not 1 <= int(workers) <= _MOST:
        raise UsageError(f"--cluster {address}: give 1 to {_MOST} workers")
    with contextlib.ExitStack() as stack:
        # Dask reports each lost worker by itself, with tracebacks.
        stack.enter_context(
            dask.config.set({"distributed.logging.distributed": "critical", "temporary-directory": str(directory)})
        )
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        try:
            if workers is not None:
                # Encrypted, with certificates of its own: whoever can connect to a scheduler runs code as its user.
                cluster = distributed.LocalCluster(
                    n_workers=int(workers),
                    threads_per_worker=1,
                    memory_limit=None,
                    dashboard_address=None,
                    local_directory=str(directory),
                    security=True,
                    silence_logs=logging.CRITICAL,
                )
                stack.enter_context(cluster)
                client = stack.enter_context(distributed.Client(cluster, timeout=_ANSWER_S, set_as_default=False))
            else:
                client = stack.enter_context(distributed.Client(address, timeout=_ANSWER_S, set_as_default=False))
            client.wait_for_workers(1, timeout=_ANSWER_S)
        except TimeoutError as error:
            raise UsageError(f"--cluster {address}: no worker answered within {_ANSWER_S} s") from error
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise UsageError(f"--cluster {address}: {why}") from error
        yield client


@contextlib.contextmanager
def directory_beside(store: Path) -> Generator[Path, None, None]:
    """Give a new directory beside `store`, of this user alone; what a killed command has left there is removed.

    Raises:
        UsageError: it cannot be made, or another command uses it.
    """
    path = store.absolute().with_name(f"{store.name}-shards")
    with contextlib.ExitStack() as stack:
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o700)
            opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stack.callback(os.close, opened)
            if os.fstat(opened).st_uid != os.geteuid():
                raise UsageError(f"{path}: is of another user; name another store")
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for one in path.iterdir():
                shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
        except BlockingIOError as error:
            raise UsageError(f"store {store}: another command with --cluster uses it; wait for it") from error
        except OSError as error:
            raise UnavailableError(f"{path}: {reason(error)}; it is needed for the shards") from error
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path
