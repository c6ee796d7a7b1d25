"""What is said of a target whose probe does not run."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from leakcheck.trials import preflight
from leakcheck.trials.arena_host import ArenaHost


def test_a_program_that_was_removed_meanwhile_needs_no_rights_and_one_that_is_set_user_id_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, elevates = tmp_path / "gone", tmp_path / "elevates"
    elevates.touch()
    elevates.chmod(0o4755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def said(*programs: Path) -> str:
        target = SimpleNamespace(programs=lambda: [str(program) for program in programs])
        host = ArenaHost.__new__(ArenaHost)
        return preflight._powerless(cast("Any", SimpleNamespace(host=host, target=target)))

    assert said(gone) == ""
    assert str(elevates) in said(gone, elevates)
