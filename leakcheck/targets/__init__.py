"""Sandboxes that others wrote, described as adapters (TOML), and what leakcheck needs to run them."""

from leakcheck.targets.registry import builtin, load
from leakcheck.targets.target import Availability, Box, Launch, Reply, Target

__all__ = ["Availability", "Box", "Launch", "Reply", "Target", "builtin", "load"]
