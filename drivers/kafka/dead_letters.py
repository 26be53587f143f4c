"""Dead letters: refused records of the inbox, each with the reason, its origin and its own key, value and headers.

The reason and the origin are headers after those of the record. A record with the header `stepfold-redriven` marks the letter at
that place as sent to the inbox again, or, if it also has the header `stepfold-dropped`, as dropped; `stepfold-by` and
`stepfold-why` say who did that and why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from aiokafka import TopicPartition

from stepfold.errors import LogUnavailable
from stepfold.log import DeadLetter, EntryTooLarge, InboxRecord

from .cluster import Cluster, describe, log
from .fetcher import scan
from .producer import Message, Producer
from .records import Raw, raw
from .topics import MIN_MESSAGE_BYTES, Namespace

REASON, ORIGIN, OMITTED, REDRIVEN = "stepfold-reason", "stepfold-origin", "stepfold-omitted-bytes", "stepfold-redriven"
DROPPED, BY, WHY = "stepfold-dropped", "stepfold-by", "stepfold-why"
_MOST_REASON: Final = 10_000
_SHORT_REASON: Final = 200
_MOST_BYTES_A_LETTER: Final = 4


class Settled(NamedTuple):
    """How an operator has settled a letter last, with name and reason."""

    dropped: bool
    by: str | None
    why: str | None


class DeadLetterWriter:
    """Writes the dead letters of a namespace."""

    def __init__(
        self, cluster: Callable[[], Cluster], producer: Callable[[], Producer], namespace: Namespace, patience_s: float
    ) -> None:
        self._cluster = cluster
        self._producer = producer
        self._namespace = namespace
        self._patience_s = patience_s
        self._is_gone = False  # the topic does not exist, and the log says so

    async def bury(self, record: InboxRecord, reason: str) -> None:
        """Write a dead letter. If the topic refuses it as too large, write it without its value, or also without key and headers.

        Raises LogUnavailable. If the topic is gone or refuses every letter, the message says what to do.
        """
        topic_partition = TopicPartition(self._namespace.dead_letters, 0)
        for left_out in range(3):
            try:
                await self._producer().send(topic_partition, [letter(self._namespace, record, reason, left_out)])
            except EntryTooLarge:
                continue
            except LogUnavailable as error:
                raise await self._explained(error, record) from None
            self._is_gone = False
            if left_out:
                log.warning(
                    "%s: its dead letter was written without all its bytes: max.message.bytes of %s is too low; see "
                    "`stepfold topics check`",
                    record.place,
                    topic_partition.topic,
                )
            return
        raise LogUnavailable(
            f"{topic_partition.topic} takes no letter at all: raise its max.message.bytes, see `stepfold topics check`"
        )

    async def _explained(self, error: LogUnavailable, record: InboxRecord) -> LogUnavailable:
        """If the topic is gone, an error that says what to do, logged once; else the error itself."""
        topic = self._namespace.dead_letters
        try:
            topics = await describe(self._cluster(), [topic], self._patience_s)
        except LogUnavailable:
            return error
        if topic in topics:
            return error
        if not self._is_gone:
            log.error(
                "%s does not exist any more, so %s waits, and the requests behind it; run `stepfold topics create`",
                topic,
                record.place,
            )
            self._is_gone = True
        return LogUnavailable(f"{topic} does not exist any more; run `stepfold topics create`")


def letter(namespace: Namespace, record: InboxRecord, reason: str, left_out: int = 0) -> Message:
    """A dead letter. `left_out` 1: without its value; 2: also without key, headers and most of the reason."""
    key, value, headers = record.key, record.value, list(record.headers)
    size = sum(len(part or b"") for part in (key, value, *(content for _, content in headers)))
    size += sum(len(name) for name, _ in headers) * _MOST_BYTES_A_LETTER
    ours = [
        (REASON, reason[: _SHORT_REASON if left_out > 1 else _MOST_REASON].encode("utf-8", "backslashreplace")),
        (ORIGIN, f"{namespace.inbox}/{record.place.split('/', 1)[1]}".encode()),
    ]
    if size > MIN_MESSAGE_BYTES or left_out:
        # The record itself is still in the inbox. It may not fit here: a compressed batch holds more than fits uncompressed.
        ours.append((OMITTED, str(size).encode()))
        value = None
        if size - len(record.value or b"") > MIN_MESSAGE_BYTES or left_out > 1:
            key, headers = None, []
    return Message(key, value, [*headers, *ours])


async def read_dead_letters(
    cluster: Cluster, namespace: Namespace, start: int, end: int, keep: Callable[[Raw], None], patience_s: float
) -> dict[str, Settled]:
    """Call `keep` for every refused record from `start` to below `end`. Returns how operators have settled letters, by place.

    If a letter was settled several times, the last time counts. That record comes after the letter, so a range up to the end of
    the topic tells all about its letters.
    """
    topic_partition = TopicPartition(namespace.dead_letters, 0)
    settled: dict[str, Settled] = {}
    async for portion in scan(cluster, topic_partition, start, end, raw, patience_s):
        for record in portion:
            if record.damage:
                continue
            headers = dict(record.headers)
            if REDRIVEN in headers and REASON not in headers:
                said = [None if (word := headers.get(name)) is None else text_of(word) for name in (BY, WHY)]
                settled[text_of(headers[REDRIVEN] or b"")] = Settled(DROPPED in headers, *said)
            else:
                keep(record)
    return settled


def marker(place: str, settled: Settled) -> Message:
    """The record that says how the letter at this place was settled."""
    said = [(name, word.encode()) for name, word in ((BY, settled.by), (WHY, settled.why)) if word is not None]
    return Message(None, None, [(REDRIVEN, place.encode()), *([(DROPPED, b"")] if settled.dropped else []), *said])


def letter_of(namespace: Namespace, record: Raw, settled: dict[str, Settled]) -> DeadLetter:
    """The dead letter in `record`. `settled`: how operators have settled letters, by place."""
    # Our headers were appended after the original ones, which may have the same names.
    ours: dict[str, bytes] = {}
    headers = list(record.headers)
    while headers and headers[-1][0] in (REASON, ORIGIN, OMITTED) and headers[-1][0] not in ours:
        name, value = headers.pop()
        ours[name] = value or b""
    place = f"{namespace.dead_letters}/0/{record.offset}"
    done = settled.get(place)
    return DeadLetter(
        place,
        record.timestamp,
        text_of(ours.get(REASON, b"unknown")),
        text_of(ours.get(ORIGIN, b"unknown/0/0")),
        record.key,
        record.value,
        tuple(headers),
        omitted=OMITTED in ours,
        redriven=done is not None and not done.dropped,
        dropped=done is not None and done.dropped,
        by=None if done is None else done.by,
        why=None if done is None else done.why,
    )


def text_of(value: bytes) -> str:
    """A header as text. Bytes that are not UTF-8 are replaced: anybody may have written it."""
    try:
        return value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return value.decode("utf-8", "replace")
