"""Campaigns: many trials that answer one question.

`run` runs one of `CAMPAIGNS` on a target; each has its own options, from which the command line is derived.
"""

from typing import Any

from leakcheck.campaigns.campaign import Campaign
from leakcheck.campaigns.crash import Crash, CrashOptions
from leakcheck.campaigns.engine import run
from leakcheck.campaigns.exhaust import Exhaust, ExhaustOptions
from leakcheck.campaigns.faults import Faults, FaultsOptions
from leakcheck.campaigns.leaks import Leaks, LeaksOptions
from leakcheck.campaigns.locks import Locks, LocksOptions
from leakcheck.campaigns.result import Criterion, Finding, Result
from leakcheck.campaigns.soak import Soak, SoakOptions
from leakcheck.campaigns.state import State, StateOptions
from leakcheck.campaigns.stress import Stress
from leakcheck.campaigns.stress_options import StressOptions

__all__ = [
    "CAMPAIGNS",
    "Campaign",
    "Crash",
    "CrashOptions",
    "Criterion",
    "Exhaust",
    "ExhaustOptions",
    "Faults",
    "FaultsOptions",
    "Finding",
    "Leaks",
    "LeaksOptions",
    "Locks",
    "LocksOptions",
    "Result",
    "Soak",
    "SoakOptions",
    "State",
    "StateOptions",
    "Stress",
    "StressOptions",
    "is_strict",
    "run",
]

_ALL: tuple[Campaign[Any, Any], ...] = (Leaks(), Crash(), Faults(), Exhaust(), Locks(), State(), Stress(), Soak())
CAMPAIGNS = {one.name: one for one in _ALL}
"""The campaigns by name; each is a command."""


def is_strict(name: str) -> bool:
    """Return whether any unmet criterion of the campaign means exit code 1; ``service`` is none of `CAMPAIGNS`."""
    return name not in CAMPAIGNS or CAMPAIGNS[name].strict
