"""Bearer tokens that an identity provider signs (JWT, OIDC). The key decides which algorithms are allowed, never the token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from ..errors import ConfigError
from ..values.names import valid_name
from .routing import Caller, Role

ROLES = {role.value: role for role in Role if role is not Role.ANYONE}
CURVES = {"secp256r1": ["ES256"], "secp384r1": ["ES384"]}
RSA_BITS = 2048
LEEWAY_S = 30


class SignedTokens:
    """`authenticate=` of an app: the callers of JSON Web Tokens with this issuer and audience.

    `key`: a file with a public key (PEM) or a set of keys (JWKS), which is read again when it changes. `roles`: the name of the
    token's claim with the caller's roles, a list or a text with spaces; unknown roles are ignored. The caller's name is `sub`.
    Raises ConfigError and OSError for the key file, when made and when called.
    """

    def __init__(self, key: str | Path, *, issuer: str, audience: str, roles: str = "roles") -> None:
        self._path = Path(key)
        self._issuer = issuer
        self._audience = audience
        self._roles = roles
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str | None, tuple[Any, list[str]]] = {}
        self._read()

    def __call__(self, token: str) -> Caller | None:
        self._read()
        try:
            key, algorithms = self._key(jwt.get_unverified_header(token).get("kid"))
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, KeyError, RecursionError):  # the last three come from forged tokens
            return None
        name = claims["sub"]
        return Caller(name, self._roles_in(claims)) if valid_name(name) else None

    def _key(self, kid: object) -> tuple[Any, list[str]]:
        """The key with this id, or the only key. Raises KeyError if there is none."""
        if len(self._keys) == 1 and (kid is None or None in self._keys):
            return next(iter(self._keys.values()))
        if not isinstance(kid, str):
            raise KeyError(kid)
        return self._keys[kid]

    def _roles_in(self, claims: Mapping[str, Any]) -> frozenset[Role]:
        said = claims.get(self._roles)
        words = said.split() if isinstance(said, str) else cast(list[Any], said) if isinstance(said, list) else []
        return frozenset({Role.ANYONE, *(ROLES[word] for word in words if isinstance(word, str) and word in ROLES)})

    def _read(self) -> None:
        stat = self._path.stat()
        seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if seen != self._seen:
            self._keys = read_keys(self._path)
            self._seen = seen


def read_keys(path: Path) -> dict[str | None, tuple[Any, list[str]]]:
    """Keys by their ids, each with its allowed algorithms. Raises ConfigError for an unusable file, and OSError."""
    content = path.read_bytes()
    try:
        if content.lstrip().startswith(b"{"):
            keys: dict[str | None, Any] = {one.key_id: one.key for one in jwt.PyJWKSet.from_json(content.decode()).keys}
        else:
            keys = {None: load_pem_public_key(content)}
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is neither a public key (PEM) nor a set of keys (JWKS): {type(error).__name__}") from None
    return {kid: (key, _algorithms(key, path)) for kid, key in keys.items()}


def _algorithms(key: Any, path: Path) -> list[str]:
    if isinstance(key, RSAPublicKey) and key.key_size >= RSA_BITS:
        return ["RS256", "PS256"]
    if isinstance(key, Ed25519PublicKey):
        return ["EdDSA"]
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    raise ConfigError(f"{path}: only public keys are used: RSA from {RSA_BITS} bits on, P-256, P-384 and Ed25519")
