"""Tokens that an identity provider signs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from asked import ask
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from stepfold import Client
from stepfold.errors import ConfigError
from stepfold.http import Role, SignedTokens, app

KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
EC = KEYS["ES256"]


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def claims(**changed: Any) -> dict[str, Any]:
    """Good claims, with these changes; None takes one out."""
    good = {"sub": "ada", "iss": "https://id.example", "aud": "stepfold", "exp": time.time() + 600, "roles": ["view", "king"]}
    return {name: value for name, value in (good | changed).items() if value is not None}


def signed(key: Any, algorithm: str, **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()


def of(file: Path) -> SignedTokens:
    return SignedTokens(file, issuer="https://id.example", audience="stepfold")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(EC))
    return path


@pytest.mark.parametrize("algorithm", KEYS)
def test_the_key_decides_on_the_algorithm(tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(KEYS[algorithm]))
    caller = of(path)(signed(KEYS[algorithm], algorithm))
    assert caller is not None and (caller.name, caller.roles) == ("ada", {Role.ANYONE, Role.VIEW})
    for other, key in KEYS.items():
        if other != algorithm:
            assert of(path)(signed(key, other)) is None


def test_a_public_key_is_not_a_shared_secret(file: Path) -> None:
    """The oldest trick: the public key, which everybody has, as the secret of an HMAC."""
    body = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims())}"
    signature = hmac.new(file.read_bytes(), body.encode(), hashlib.sha256).digest()
    assert of(file)(f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}") is None


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", None, 1, "HS256", "RS256", "ES384", "EdDSA", "ES256"], ids=repr
)
def test_without_a_signature_nobody_comes_in(file: Path, algorithm: object) -> None:
    for signature in ("", "AAAA", signed(EC, "ES256").rpartition(".")[2]):
        assert of(file)(f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims())}.{signature}") is None


BAD: dict[str, dict[str, Any]] = {
    "expired": {"exp": time.time() - 60},
    "without an end": {"exp": None},
    "an end in words": {"exp": "soon"},
    "not yet": {"nbf": time.time() + 6000},
    "for another": {"aud": "another"},
    "for a longer name": {"aud": "stepfold.example"},
    "for others": {"aud": ["another"]},
    "for nobody": {"aud": None},
    "of a longer issuer": {"iss": "https://id.example.evil"},
    "of nearly the issuer": {"iss": "https://id.example/"},
    "of no issuer": {"iss": None},
    "about nobody": {"sub": None},
    "without a name": {"sub": ""},
    "with a line in the name": {"sub": "a\nb"},
    "with a long name": {"sub": "x" * 201},
}


@pytest.mark.parametrize("changed", BAD.values(), ids=BAD)
def test_claims_that_are_not_good(file: Path, changed: dict[str, Any]) -> None:
    assert of(file)(signed(EC, "ES256", **changed)) is None
    assert of(file)(signed(EC, "ES256")) is not None


ROLES: dict[str, tuple[object, set[Role]]] = {
    "a list": (["operate", "payload"], {Role.OPERATE, Role.PAYLOAD}),
    "a text": ("openid view", {Role.VIEW}),
    "strange words": (["anyone", "ADMIN", "administrator", 1, None, ["admin"]], set()),
    "an object": ({"admin": True}, set()),
    "nothing": (None, set()),
}


@pytest.mark.parametrize(("said", "roles"), ROLES.values(), ids=ROLES)
def test_only_roles_of_stepfold_count(file: Path, said: object, roles: set[Role]) -> None:
    caller = of(file)(signed(EC, "ES256", roles=said))
    assert caller is not None and caller.roles == {Role.ANYONE, *roles}


def test_a_set_of_keys_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    algorithms: dict[str, Any] = jwt.get_algorithm_by_name("ES256").to_jwk(EC.public_key(), as_dict=True)
    other: dict[str, Any] = jwt.get_algorithm_by_name("EdDSA").to_jwk(KEYS["EdDSA"].public_key(), as_dict=True)
    path.write_bytes(orjson.dumps({"keys": [algorithms | {"kid": "one"}, other | {"kid": "two"}]}))
    authenticate = of(path)
    by_kid = [jwt.encode(claims(), EC, "ES256", {"kid": kid}) for kid in ("one", "two", "three")]
    assert [authenticate(token) is not None for token in by_kid] == [True, False, False]
    assert authenticate(signed(EC, "ES256")) is None
    assert authenticate(jwt.encode(claims(), KEYS["EdDSA"], "EdDSA", {"kid": "two"})) is not None
    path.write_bytes(orjson.dumps({"keys": [other | {"kid": "two"}]}))
    assert [authenticate(token) is not None for token in by_kid] == [False, False, False]


def test_files_that_hold_no_public_key(tmp_path: Path) -> None:
    secret = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256", "kid": "one"}
    private = EC.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    small = pem(rsa.generate_private_key(65537, 1024))
    curve = pem(ec.generate_private_key(ec.SECP521R1()))
    for content in (
        b"",
        b"secret!",
        b"{}",
        b'{"keys": []}',
        b'{"keys": 1}',
        orjson.dumps({"keys": [secret]}),
        private,
        small,
        curve,
    ):
        path = tmp_path / "key"
        path.write_bytes(content)
        with pytest.raises(ConfigError) as raised:
            of(path)
        assert "secret!" not in str(raised.value)
    with pytest.raises(FileNotFoundError):
        of(tmp_path / "nothing")


def test_text_that_is_not_a_token(file: Path) -> None:
    deep = base64.urlsafe_b64encode(b"[" * 20_000).decode()
    assert of(file)(f"{deep}.{deep}.") is None
    for text in ("", ".", "..", "a.b.c", "é.é.é", "\ud800", "x" * 8000, signed(EC, "ES256") + "x", "e30.e30.", "W10.e30."):
        assert of(file)(text) is None


async def test_the_server_takes_them(tmp_path: Path, file: Path) -> None:
    made = app(Client(f"sqlite:///{tmp_path}/log.db"), authenticate=of(file))
    async with made.lifespan():

        async def status(token: str) -> int:
            return (await ask(made, "GET", "/v1/runs/x", headers=[("authorization", f"Bearer {token}")])).status

        assert await status(signed(EC, "ES256")) == 404
        assert await status(signed(EC, "ES256", roles=[])) == 403
        assert await status(signed(EC, "ES256", exp=time.time() - 60)) == 401
