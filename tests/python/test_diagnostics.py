"""`leakcheck diagnostics` tells a maintainer what they need, and nobody a secret."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from leakcheck.redact import Redactor

SECRETS = {
    "DEPLOY_TOKEN": "tok-1234567890",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "DATABASE_URL": "postgres://admin:hunter22@db.example/x",
    "MY_API_KEY": "api-key-of-mine",
    "SOMETHING": "private text",
}


def test_the_file_has_all_parts_and_no_secret(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "leakcheck.toml").write_text(
        "[[allow]]\nkind = 'file'\nreason = 'beside tok-1234567890 and ghp_abcdefghijklmnopqrstuvwxyz0123'\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "leakcheck", "diagnostics", "-o", "told.json"],
        cwd=tmp_path,
        env={
            **os.environ,
            **SECRETS,
            "HOME": str(home),
            "PATH": "/usr/sbin",
            "LEAKCHECK_NOTE": f"{home}/x?token=abcd1234",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0 and "read it before you send it" in done.stderr, done.stderr
    text = (tmp_path / "told.json").read_text()
    told = json.loads(text)
    for secret in (*SECRETS.values(), "hunter22", "ghp_", "abcd1234", str(home)):
        assert secret not in text
    parts = {"leakcheck", "machine", "environment", "doctor", "preflight", "targets", "configuration", "runs"}
    assert told.keys() == parts | {"schema"}
    assert not [part for part in parts if isinstance(told[part], dict) and "error" in told[part]]
    assert set(SECRETS) <= set(told["environment"]["only_names"])
    assert told["environment"]["values"]["LEAKCHECK_NOTE"] == "~/x?token=[redacted]"
    assert "beside [redacted]" in told["configuration"]["text"][2]
    assert {one["name"] for one in told["targets"]} >= {"refbox", "runc"}


def test_a_wrong_configuration_is_told_of_and_prevents_nothing(tmp_path: Path) -> None:
    (tmp_path / "leakcheck.toml").write_text("bogus = 1\n")
    # Without ffmpeg it is sooner ready.
    environment = {**os.environ, "PATH": "/usr/sbin"}
    done = subprocess.run(
        [sys.executable, "-m", "leakcheck", "diagnostics"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0
    told = json.loads((tmp_path / "leakcheck-diagnostics.json").read_text())
    assert "bogus" in told["configuration"]["error"] and told["doctor"]["kernel"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:pass@host/x", "https://[redacted]@host/x"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: [redacted]"),
        ("password = 'x'", "password = [redacted]"),
        ("db_password: x", "db_password: [redacted]"),
        ("key = value", "key = [redacted]"),
        ("monkey = value", "monkey = value"),
        ("curl -H 'x: AKIAABCDEFGHIJKLMNOP'", "curl -H 'x: [redacted]'"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nafter", "[redacted]\nafter"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.abc-_", "[redacted]"),
        ("/home/me/x and /home/meadow", "~/x and /home/meadow"),
        ("settle = 1.0", "settle = 1.0"),
    ],
)
def test_secrets_are_known_by_name_and_form(text: str, clean: str) -> None:
    assert Redactor({}, Path("/home/me")).text(text) == clean


def test_fields_are_redacted_by_their_name_at_any_depth() -> None:
    redactor = Redactor({"A_TOKEN": "short", "B_TOKEN": "long enough"}, Path("/"))
    found = redactor.clean({"list": [{"Password": "x", "secret": 5, "token": ""}], "plain": "a short long enough b"})
    assert found == {
        "list": [{"Password": "[redacted]", "secret": "[redacted]", "token": ""}],
        "plain": "a short [redacted] b",
    }
    assert redactor.count == 3
