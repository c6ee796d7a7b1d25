"""Makes hostile text printable. It imports nothing slow: each message of the command passes through it."""

from leakcheck._native import harmless


def printable(text: str) -> str:
    r"""Return `text` with unprintable characters written as ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``.

    What a CI runner would read as a command, anywhere or at the start of a line, is escaped likewise.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return harmless(text)
