"""Submissions in shared arenas: each one sees the whole compile cache."""

import msgspec

from leakcheck.submissions import Spec, Submission, build, cache_directory
from leakcheck.trials.session import NEXT


def compiled(spec: Spec) -> Submission:
    """Return the submission with the whole cache visible, so that a box needs the same directory for all."""
    return msgspec.structs.replace(build(spec), bundle=str(cache_directory()))


def warm_up() -> Submission:
    """Return the first submission of each box: it needs the same directory as all others."""
    return msgspec.structs.replace(NEXT, bundle=str(cache_directory()))
