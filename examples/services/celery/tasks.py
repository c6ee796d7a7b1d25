"""The tasks of the contract beside it: a command, as job services run them."""

import os
import subprocess

from celery import Celery

app = Celery("tasks", broker=os.environ["REDIS"], backend=os.environ["REDIS"])
# Without it, a task that runs is said to be pending.
app.conf.task_track_started = True


@app.task
def run(*argv: str) -> None:
    """Run a command to its end; it raises `CalledProcessError` if that fails."""
    subprocess.run(argv, check=True)
