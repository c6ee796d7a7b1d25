"""Submissions as shared arenas run them: the whole compile cache is shown to each."""

import msgspec

from leakcheck.submissions import Spec, Submission, build, cache_directory
from leakcheck.trials.session import NEXT

__all__ = ["compiled", "warm_up"]


def compiled(spec: Spec) -> Submission:
    """Return the submission; the whole cache is shown to it, so that a box needs the same directory for each."""
    return msgspec.structs.replace(build(spec), bundle=str(cache_directory()))


def warm_up() -> Submission:
    """Return what is run first in each box: it needs what all others need."""
    return msgspec.structs.replace(NEXT, bundle=str(cache_directory()))
