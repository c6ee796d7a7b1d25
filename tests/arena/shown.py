"""What an arena must show for this interpreter to import leakcheck in it, wherever the checkout lies."""

import sys
from pathlib import Path

from leakcheck.targets.executables import binds

__all__ = ["SHOWN"]

SHOWN = binds([Path(__file__).parents[2], sys.prefix, sys.base_prefix])
