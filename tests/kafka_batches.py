"""Record batches byte by byte, right or wrong in every field, as no client library would write them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from aiokafka.record.util import calc_crc32c

CONTROL, TRANSACTIONAL, APPEND_TIME = 0x20, 0x10, 0x08
ABORT, COMMIT = b"\x00\x00\x00\x00", b"\x00\x00\x00\x01"

Headers = Sequence[tuple[bytes | None, bytes | None]]


def varint(number: int) -> bytes:
    number = (number << 1) ^ (number >> 63)
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def nullable(part: bytes | None) -> bytes:
    return varint(-1) if part is None else varint(len(part)) + part


def record(
    delta: int = 0,
    key: bytes | None = b"key",
    value: bytes | None = b"value",
    headers: Headers = (),
    *,
    attributes: int = 0,
    time_delta: int = 0,
    length: int | None = None,
    header_count: int | None = None,
    behind: bytes = b"",
) -> bytes:
    body = bytes((attributes,)) + varint(time_delta) + varint(delta) + nullable(key) + nullable(value)
    body += varint(len(headers) if header_count is None else header_count)
    body += b"".join(nullable(name) + nullable(content) for name, content in headers) + behind
    return varint(len(body) if length is None else length) + body


def batch(
    records: Iterable[bytes],
    *,
    base: int = 0,
    attributes: int = 0,
    count: int | None = None,
    last_delta: int | None = None,
    producer: int = -1,
    first_timestamp: int = 1_000,
    max_timestamp: int = 2_000,
    magic: int = 2,
    crc: int | None = None,
    length: int | None = None,
    payload: bytes | None = None,
) -> bytes:
    """`payload` in place of the records, compressed for instance."""
    parts = list(records)
    epoch = sequence = 0 if producer >= 0 else -1
    rest = struct.pack(
        ">hiqqqhii",
        attributes,
        len(parts) - 1 if last_delta is None else last_delta,
        first_timestamp,
        max_timestamp,
        producer,
        epoch,
        sequence,
        len(parts) if count is None else count,
    )
    rest += b"".join(parts) if payload is None else payload
    checked = struct.pack(">ibI", 0, magic, calc_crc32c(rest) if crc is None else crc) + rest
    return struct.pack(">qi", base, len(checked) if length is None else length) + checked


def marker(base: int, key: bytes, producer: int) -> bytes:
    """The end of a transaction."""
    return batch(
        [record(key=key, value=b"\x00\x00\x00\x00\x00\x00")],
        base=base,
        attributes=CONTROL | TRANSACTIONAL,
        producer=producer,
    )
