"""Bearer tokens in a file: one JSON line for each token, with its SHA-256 in place of the token itself."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
from pydantic import BaseModel, Field, ValidationError

from ..errors import ConfigError
from ..values.names import quoted, valid_name
from .routing import Caller, Role

PREFIX = "sft_"
"""All tokens begin with this, so that scanners for secrets can find them."""


class Token(BaseModel, extra="forbid"):
    """One line of the file. Times: ms since 1970, UTC."""

    name: str = Field(min_length=1, max_length=200)
    roles: list[Role] = Field(min_length=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    created: int
    expires: int | None = None

    def ended(self, now_ms: float) -> bool:
        return self.expires is not None and now_ms >= self.expires


def new_token(name: str, roles: Sequence[Role], expires_ms: int | None) -> tuple[str, Token]:
    """A random token of 256 bits, and its line. `expires_ms`: how long it is valid. Raises ConfigError for an invalid name."""
    if not valid_name(name):
        raise ConfigError(f"{quoted(name)} is not a name: 1 to 200 printable characters")
    secret = PREFIX + secrets.token_urlsafe(32)
    now = int(time.time() * 1000)
    expires = None if expires_ms is None else now + expires_ms
    return secret, Token(name=name, roles=list(roles), sha256=_digest(secret), created=now, expires=expires)


def read_tokens(path: Path) -> list[Token]:
    """All tokens of the file. Raises ConfigError, which names file and line but does not quote the line, and OSError."""
    found: list[Token] = []
    names: set[str] = set()
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token = Token.model_validate(orjson.loads(line))
        except orjson.JSONDecodeError:
            raise ConfigError(f"{path}:{number}: this is not JSON. {_REMEDY}") from None
        except ValidationError as error:
            places = ", ".join(".".join(map(str, one["loc"])) or "the line" for one in error.errors())
            raise ConfigError(f"{path}:{number}: this is not a token ({places}). {_REMEDY}") from None
        if token.name in names or Role.ANYONE in token.roles:
            what = "the name is taken by a line above" if token.name in names else "there is no role 'anyone' to give"
            raise ConfigError(f"{path}:{number}: {what}. {_REMEDY}")
        names.add(token.name)
        found.append(token)
    return found


_REMEDY = "Fix or remove the line, or make a new file with: stepfold token create"


@contextmanager
def changing(path: Path) -> Generator[list[Token]]:
    """A block that changes the list of tokens. At its end the list atomically replaces the file, which only its owner can read.

    The new file is the lock: two commands cannot change a file at the same time. Raises ConfigError and OSError.
    """
    path = path.resolve()
    new = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{new} exists: another command changes {path.name} now, or died while it did; then remove it"
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            tokens = read_tokens(path) if path.exists() else []
            yield tokens
            file.writelines(orjson.dumps(token.model_dump(mode="json"), option=orjson.OPT_APPEND_NEWLINE) for token in tokens)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


class TokenFile:
    """`authenticate=` of an app: the callers of the tokens in a file, which is read again when it changes.

    Raises ConfigError and OSError, when made and when called: while the file cannot be read, nobody gets in.
    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._clock = clock
        self._seen: tuple[int, int, int] | None = None
        self._tokens: list[Token] = []
        self._read()

    def __call__(self, token: str) -> Caller | None:
        self._read()
        digest = _digest(token)
        found: Token | None = None
        for one in self._tokens:  # compares with all of them, so that the time tells nothing
            if hmac.compare_digest(one.sha256, digest):
                found = one
        if found is None or found.ended(self._clock() * 1000):
            return None
        return Caller(found.name, frozenset(found.roles))

    def _read(self) -> None:
        stat = self._path.stat()
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if seen != self._seen:
            self._tokens = read_tokens(self._path)
            self._seen = seen


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
