"""Third-party sandboxes, described by adapters (TOML), and the code that runs them."""

from leakcheck.targets.registry import builtin, is_builtin, load
from leakcheck.targets.target import Availability, Box, Launch, Reply, Target

__all__ = ["Availability", "Box", "Launch", "Reply", "Target", "builtin", "is_builtin", "load"]
