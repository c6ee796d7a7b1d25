"""Sandboxes that others wrote, described as adapters (TOML), and what leakcheck needs to run them."""

from leakcheck.targets.registry import builtin, load
from leakcheck.targets.target import Availability, Box, Launch, Outcome, Target

__all__ = ["Availability", "Box", "Launch", "Outcome", "Target", "builtin", "load"]
