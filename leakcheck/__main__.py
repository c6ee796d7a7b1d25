"""``python -m leakcheck`` is the command."""

from leakcheck.cli import main

main()
