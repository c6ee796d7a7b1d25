"""The helper programs that ship with the package; the build backend puts them into this directory."""

from pathlib import Path


def helper(name: str) -> Path:
    """Return the path of the packaged helper program `name`, such as ``mkleak``.

    Raises:
        FileNotFoundError: the package was not installed by pip, which builds the helpers.
    """
    path = Path(__file__).with_name(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"find helper program {path}: not built; run `pip install` on the checkout, or `make setup`"
        )
    return path
