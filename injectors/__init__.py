"""Who does the harm: performs fault plans on a running target."""

from injectors.protocol import Injector

__all__ = ["Injector"]
