"""The `leakcheck` command."""

from leakcheck import __version__


def main() -> None:
    """Print the version."""
    print(f"leakcheck {__version__}")
