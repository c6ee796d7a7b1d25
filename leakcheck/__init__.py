"""Proves that a Linux sandbox leaves nothing behind."""

from leakcheck._native import __version__

__all__ = ["__version__"]
