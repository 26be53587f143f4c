"""`step.ext` and `ctx.ext` on Kafka. `publish` checks its arguments at the call, before the step runs."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Final, Protocol, cast

import orjson
from pydantic import BaseModel
from pydantic_core import to_json

from stepfold.errors import ConfigError, InputInvalid
from stepfold.values.codec import written

_TOPIC: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_OF_KAFKA: Final = ("__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata")


class _Publishes(Protocol):
    """The method of KafkaDriver that KafkaStep uses."""

    async def publish(
        self, topic: str, value: bytes, key: bytes | None, headers: Sequence[tuple[str, bytes]], spread_by: bytes
    ) -> tuple[int, int]: ...


class _Runs(Protocol):
    """The method of Step that KafkaStep uses."""

    def run(self, id: str, fn: Callable[[], Awaitable[None]], /) -> Coroutine[Any, Any, None]: ...


class KafkaStep:
    """`step.ext` on Kafka."""

    def __init__(self, driver: _Publishes, step: _Runs) -> None:
        self._driver = driver
        self._step = step

    def publish(
        self, topic: str, value: object, key: str | bytes | None = None, headers: Mapping[str, str | bytes] | None = None
    ) -> Coroutine[Any, Any, None]:
        """Produce one record to `topic`, as the step `publish/<topic>`: delivered at least once.

        `value` is bytes, a str, or a value that pydantic can write as JSON. The header `stepfold-id` is the step's idempotency
        key, the same in every attempt, so that a consumer can recognise a repeat. Encodes the arguments at the call; later
        changes to them have no effect. Raises InputInvalid for a value that cannot be written or would lose something (NaN, a
        model's secret), TypeError or ValueError for a key or header that cannot be written, ConfigError for a topic that no
        cluster can have. The step is not tried again for a record that is too large for the topic (PayloadTooLarge).
        """
        _check_topic(topic)
        data = _value(topic, value)
        key_bytes = None if key is None else _bytes(key, f"the key for topic {topic!r}")
        sent = [] if headers is None else _headers(topic, headers)

        async def produce() -> None:
            from stepfold import current_step

            stable_id = current_step().idempotency_key.encode()
            await self._driver.publish(topic, data, key_bytes, [*sent, ("stepfold-id", stable_id)], stable_id)

        return self._step.run(f"publish/{topic}", produce)


@dataclass(frozen=True, slots=True)
class KafkaContext:
    """`ctx.ext` on Kafka: the run's namespace and partition."""

    namespace: str
    partition: int


def _bytes(value: object, what: str) -> bytes:
    """Raises TypeError and ValueError."""
    if isinstance(value, bytes):
        return bytes(value)
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str or bytes, not {_type(value)}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not text that can be written: {error}") from None


def _check_topic(topic: object) -> None:
    """Raises TypeError and ConfigError."""
    if not isinstance(topic, str):
        raise TypeError(f"the topic must be a str, not {_type(topic)}")
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise ConfigError(
            f"{topic[:300]!r} cannot be the name of a Kafka topic: 1 to 249 letters, digits, dots, hyphens and underscores, and "
            "not `.` or `..`. Publish to another one"
        )
    if topic in _OF_KAFKA:
        raise ConfigError(f"topic {topic!r} is Kafka's own, and takes no records of others. Publish to another one")


def _headers(topic: str, headers: object) -> list[tuple[str, bytes]]:
    """Raises TypeError and ValueError."""
    what = f"for topic {topic!r}"
    if not isinstance(headers, Mapping):
        raise TypeError(f"the headers {what} must be a mapping of names to values, not {_type(headers)}")
    sent: list[tuple[str, bytes]] = []
    for name, value in cast(Mapping[object, object], headers).items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a header {what} must be a str, not {_type(name)}")
        _bytes(name, f"the name {name!r} of a header {what}")
        sent.append((str(name), _bytes(value, f"the header {name!r} {what}")))
    return sent


def _type(value: object) -> str:
    return type(value).__name__


def _value(topic: str, value: object) -> bytes:
    """Raises InputInvalid."""
    what = f"the value for topic {topic!r}"
    if isinstance(value, str | bytes):
        try:
            return _bytes(value, what)
        except ValueError as error:
            raise InputInvalid(str(error), [{"msg": str(error)}]) from None
    try:
        data = to_json(value, inf_nan_mode="constants")
        orjson.loads(data)
    except ValueError as error:
        raise InputInvalid(f"{what} is not JSON: {error}", [{"msg": str(error)}]) from error
    return written(value, what) if isinstance(value, BaseModel) or is_dataclass(value) else data
