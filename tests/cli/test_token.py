"""`stepfold token …`: the file of tokens, by its commands."""

from __future__ import annotations

import hashlib
import stat

import orjson
from shell import Shell


def test_a_token_is_made_listed_and_revoked(shell: Shell) -> None:
    made = shell("token", "create", "ops", "--role", "view", "--role", "payload", "--expires", "30d", "--file", "t.jsonl")
    secret = made.stdout.strip()
    file = shell.folder / "t.jsonl"
    [line] = map(orjson.loads, file.read_bytes().splitlines())
    assert line["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert line["expires"] - line["created"] == 30 * 86_400_000
    assert secret not in file.read_text() and secret not in made.stderr and len(secret) > 43
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert shell("token", "create", "ops", "--role", "view", "-f", "t.jsonl", code=1).stdout == ""
    shell("token", "create", "me", "--role", "admin", "-f", "t.jsonl")
    assert [(one["name"], one["roles"], one["expired"]) for one in shell.json("token", "list", "-f", "t.jsonl")] == [
        ("ops", ["view", "payload"], False),
        ("me", ["admin"], False),
    ]
    assert "view, payload" in shell("token", "list", "-f", "t.jsonl").stdout
    shell("token", "revoke", "ops", "-f", "t.jsonl")
    assert "no token 'ops'" in shell("token", "revoke", "ops", "-f", "t.jsonl", code=3).stderr
    assert [one["name"] for one in shell.json("token", "list", "-f", "t.jsonl")] == ["me"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in shell.folder.iterdir() if path.name.startswith("t.")] == ["t.jsonl"]


def test_a_damaged_file_is_named_with_its_line_and_stays_as_it_is(shell: Shell) -> None:
    shell("token", "create", "ops", "--role", "view", "-f", "t.jsonl")
    file = shell.folder / "t.jsonl"
    damaged = file.read_text() + '{"name": "secret!"}\n'
    file.write_text(damaged)
    for command in (("token", "list", "-f"), ("token", "create", "me", "--role", "view", "-f"), ("serve", "--tokens")):
        told = shell(*command, "t.jsonl", code=2).stderr
        assert "t.jsonl:2: this is not a token" in told and "secret!" not in told
    assert file.read_text() == damaged


def test_mistakes_with_tokens(shell: Shell) -> None:
    assert "No such file" in shell("token", "list", "-f", "t.jsonl", code=4).stderr
    assert "No such file" in shell("serve", "--tokens", "t.jsonl", code=4).stderr
    assert (
        "is not a duration"
        in shell("token", "create", "x", "--role", "view", "--expires", "soon", "-f", "t.jsonl", code=2).stderr
    )
    assert "is not a name" in shell("token", "create", "", "--role", "view", "-f", "t.jsonl", code=2).stderr
    assert "--role" in shell("token", "create", "x", "-f", "t.jsonl", code=2).stderr
    shell("token", "create", "x", "--role", "anyone", "-f", "t.jsonl", code=2)
    assert not (shell.folder / "t.jsonl").exists()
    (shell.folder / "t.jsonl.new").touch()
    assert "another command changes t.jsonl" in shell("token", "create", "x", "--role", "view", "-f", "t.jsonl", code=2).stderr
    assert sorted(path.name for path in shell.folder.iterdir()) == ["shop.py", "t.jsonl.new"]
