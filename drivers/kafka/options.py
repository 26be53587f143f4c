"""The keyword options of `KafkaDriver`."""

from __future__ import annotations

import ssl
from typing import Final, Literal, TypedDict
from urllib.parse import parse_qs, urlsplit

from aiokafka.abc import AbstractTokenProvider

from stepfold.errors import ConfigError

_LONGEST_S: Final = 86_400


class KafkaSecurity(TypedDict, total=False):
    """The connection options of aiokafka's AIOKafkaClient."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
    ssl_context: ssl.SSLContext
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"]
    sasl_plain_username: str
    sasl_plain_password: str
    sasl_kerberos_service_name: str
    sasl_kerberos_domain_name: str
    sasl_oauth_token_provider: AbstractTokenProvider


class KafkaOptions(KafkaSecurity, total=False):
    """The keyword options of KafkaDriver."""

    session_timeout_s: float
    patience_s: float


def check(bootstrap: str, session_timeout_s: float, patience_s: float) -> None:
    """Raise ConfigError for a bad address or a time that is out of range."""
    for address in bootstrap.split(","):
        host, _, port = address.rpartition(":")
        if not _is_host(host) or not port.isdecimal() or len(port) > 5 or not 1 <= int(port) <= 65535:
            raise ConfigError(f"{address!r} is not the address of a Kafka broker: host:port, such as localhost:9092")
    for name, seconds in ("session_timeout_s", session_timeout_s), ("patience_s", patience_s):
        if not 0 < seconds <= _LONGEST_S:  # excludes NaN, too
            raise ConfigError(f"{name} must be a number of seconds above 0 and up to {_LONGEST_S:,}, not {seconds}")


def parsed(url: str) -> tuple[str, str, KafkaOptions]:
    """Bootstrap servers, namespace and options of a Kafka URL. Raises ConfigError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}") from None
    namespace = parts.path.strip("/")
    if parts.scheme != "kafka" or not parts.netloc or not namespace or parts.fragment or "@" in url:
        told = f"kafka://…@{url.rpartition('@')[2]}" if "@" in url else url
        raise ConfigError(f"{told!r} is not a Kafka URL: kafka://host:port[,host:port]/namespace; credentials are options")
    options: KafkaOptions = {}
    for name, values in parse_qs(parts.query, keep_blank_values=True).items():
        if name not in ("session_timeout_s", "patience_s"):
            raise ConfigError(f"{url!r}: unknown option {name!r}; the options are session_timeout_s and patience_s")
        try:
            options[name] = float(values[-1])
        except ValueError:
            raise ConfigError(f"{url!r}: {name} must be a number of seconds") from None
    return parts.netloc, namespace, options


def _is_host(name: str) -> bool:
    """Whether a host name can be looked up: each label between dots has 1 to 63 characters."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False
