"""PEP 517 and PEP 660 backend: maturin's hooks, after cargo has built the helper programs.

maturin packs one pyo3 module and no second binary (its issue 368). So the helpers are built first and copied to
``leakcheck/_bin``, from where the ``include`` list of pyproject.toml takes them into a wheel and an editable install
sees them in place.
"""

import os

import maturin
from leakcheck_helpers import build_helpers
from maturin import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# Without Rust, maturin would fetch its own for the binding; the helpers would still find no cargo.
os.environ.setdefault("MATURIN_NO_INSTALL_RUST", "1")


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the helpers, then the wheel (PEP 517)."""
    build_helpers()
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the helpers, then the editable wheel (PEP 660)."""
    build_helpers()
    return maturin.build_editable(wheel_directory, config_settings, metadata_directory)
