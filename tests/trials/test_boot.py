"""Another boot id in an arena."""

import os
from unittest.mock import Mock

import pytest

from leakcheck.errors import UnavailableError
from leakcheck.trials.boot import warm_up_after_boot


def test_an_arena_that_shows_no_other_boot_id_says_nothing_about_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    session = Mock()
    session.output_of.return_value = "mount: permission denied\nan-old-id\n"
    with pytest.raises(UnavailableError, match="permission denied"):
        warm_up_after_boot(session)
