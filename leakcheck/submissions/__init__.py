"""Submissions: programs whose status is known by construction, in several languages, compiled once and cached.

`parse_spec` parses one, `build` compiles it, and `sample` draws many from a mix of statuses.
"""

from leakcheck.submissions.behaviours import BEHAVIOURS, Behaviour
from leakcheck.submissions.cache import cache_directory
from leakcheck.submissions.languages import LANGUAGES, Found, Language, available, found_languages
from leakcheck.submissions.limits import DEFAULT_LIMITS, Limits, Status
from leakcheck.submissions.mix import DEFAULT_LANGUAGES, DEFAULT_MIX, Mix, sample
from leakcheck.submissions.specs import Spec, build, parse_spec, parse_specs, spec
from leakcheck.submissions.submission import BUILTIN, Submission

__all__ = [
    "BEHAVIOURS",
    "BUILTIN",
    "DEFAULT_LANGUAGES",
    "DEFAULT_LIMITS",
    "DEFAULT_MIX",
    "LANGUAGES",
    "Behaviour",
    "Found",
    "Language",
    "Limits",
    "Mix",
    "Spec",
    "Status",
    "Submission",
    "available",
    "build",
    "cache_directory",
    "found_languages",
    "parse_spec",
    "parse_specs",
    "sample",
    "spec",
]
