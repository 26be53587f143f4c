"""Files of tokens."""

from __future__ import annotations

import contextlib
from pathlib import Path

import orjson
import pytest

from stepfold.errors import ConfigError
from stepfold.http import Role, TokenFile
from stepfold.http.tokens import changing, new_token, read_tokens


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.jsonl"
    with changing(path) as kept:
        kept.append(new_token("ops", [Role.VIEW], None)[1])
    return path


def line(**fields: object) -> bytes:
    return orjson.dumps({"name": "other", "roles": ["view"], "sha256": "0" * 64, "created": 1, "expires": None} | fields)


DAMAGED = {
    "not JSON": b"secret!",
    "not UTF-8": b'"secret!\x80"',
    "not an object": b'"secret!"',
    "fields missing": b'{"name": "secret!"}',
    "unknown field": line(more="secret!"),
    "name of another": line(name="ops"),
    "no name": line(name=""),
    "role of nobody": line(roles=["anyone"]),
    "unknown role": line(roles=["secret!"]),
    "no role": line(roles=[]),
    "not a hash": line(sha256="secret!"),
    "not a time": line(expires="secret!"),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named_and_not_repeated(file: Path, damaged: bytes) -> None:
    good = file.read_bytes() + line()
    file.write_bytes(good.replace(b"other", b"third") + b"\n" + damaged + b"\n")
    with pytest.raises(ConfigError, match=r"tokens\.jsonl:3: ") as raised:
        read_tokens(file)
    assert "secret!" not in str(raised.value)
    before = file.read_bytes()
    with pytest.raises(ConfigError), changing(file):
        raise AssertionError("the block must not run")
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_a_change_that_fails_leaves_the_file(file: Path) -> None:
    before = file.read_bytes()
    with contextlib.suppress(ZeroDivisionError), changing(file) as kept:
        kept.clear()
        raise ZeroDivisionError
    assert file.read_bytes() == before and list(file.parent.iterdir()) == [file]


def test_one_command_at_a_time_changes_a_file(file: Path) -> None:
    with changing(file) as kept:
        with pytest.raises(ConfigError, match=r"another command changes tokens\.jsonl now"), changing(file):
            raise AssertionError("the block must not run")
        kept.append(new_token("two", [Role.ADMIN], None)[1])
    assert [token.name for token in read_tokens(file)] == ["ops", "two"]


def test_the_roles_and_the_end_of_a_token(file: Path) -> None:
    secret, token = new_token("brief", [Role.PAYLOAD, Role.OPERATE], 1000)
    with changing(file) as kept:
        kept.append(token)
    now_s = token.created / 1000
    authenticate = TokenFile(file, clock=lambda: now_s)
    caller = authenticate(secret)
    assert caller is not None and (caller.name, caller.roles) == ("brief", {Role.PAYLOAD, Role.OPERATE})
    assert authenticate(secret[:-1]) is None and authenticate(token.sha256) is None and authenticate("\ud800") is None
    now_s += 1
    assert authenticate(secret) is None
    assert len({new_token("x", [Role.VIEW], None)[0] for _ in range(100)}) == 100
