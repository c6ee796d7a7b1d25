"""Submissions: programs whose verdict is known by construction, in several languages, compiled once and cached.

`parse_plan` reads one from a word, `build` compiles it, and `deal` draws many from a mix of verdicts.
"""

from leakcheck.submissions.behaviours import BEHAVIOURS, Behaviour
from leakcheck.submissions.cache import cache_directory
from leakcheck.submissions.languages import LANGUAGES, Found, Language, available, found_languages
from leakcheck.submissions.limits import DEFAULT_LIMITS, Limits, Verdict
from leakcheck.submissions.mix import DEFAULT_LANGUAGES, DEFAULT_MIX, Mix, deal
from leakcheck.submissions.plan import Spec, build, parse_plan, parse_plans, spec
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
    "Submission",
    "Verdict",
    "available",
    "build",
    "cache_directory",
    "deal",
    "found_languages",
    "parse_plan",
    "parse_plans",
    "spec",
]
