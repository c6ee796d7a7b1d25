"""The helper programs that ship with the package; the build backend puts them into this directory."""

from pathlib import Path


def helper(name: str) -> Path:
    """Return the path of the packaged helper program `name`, such as ``mkleak``; raise `FileNotFoundError`."""
    path = Path(__file__).with_name(name)
    if not path.is_file():
        # pip builds the helpers.
        how = "run `pip install` on the checkout, or `make setup`"
        raise FileNotFoundError(f"find helper program {path}: not built; {how}")
    return path
