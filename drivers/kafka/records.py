# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka and cramjam ship no types; nothing of them leaves this module untyped.
"""Record batches as bytes: decodes batches of any producer, and encodes those that aiokafka's builder cannot.

Anyone may write into an inbox, in any language and with bad intent, and a broker checks little: records may have header names
that are not UTF-8, wrong offsets and counts, or unpack from a megabyte to a gigabyte. `decode` is total over batches that a
broker can have accepted: it returns an unreadable record as damaged, with its bytes and the reason, and reads on.

It raises `Damaged` in two cases, because no producer can cause them and skipping could lose acknowledged records: a batch with a
wrong checksum, which was damaged in storage, and an unknown format of batches.

aiokafka's parser does the work. If it fails, or if its result cannot be right, the parser of this module reads that batch again.
(aiokafka misreads the attributes of a record, which no client uses: above 127 they shift everything that follows.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import cramjam
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import calc_crc32c

T = TypeVar("T")

MAX_UNPACKED_BYTES: Final = 64 * 1024 * 1024
"""The most bytes that a compressed batch, which is a megabyte at most, may unpack to."""
MAX_RECORDS: Final = 500_000
"""The most records in one batch."""
IN_A_TRANSACTION: Final = "produced in a transaction"

_PREFIX: Final = struct.Struct(">qi")
"""Base offset, and the length of the rest."""
_MAGIC_AT, _MAGIC = 16, 2
_LEGACY_MIN: Final = 14
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_CRC_AT: Final = 17
_ATTRIBUTES_AT: Final = 21
_START: Final = struct.Struct(">hi")
"""Attributes, and the last offset's distance from the base."""
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_SPECIAL: Final = _CODEC | _TRANSACTIONAL | _CONTROL
_CODECS: Final = ("", "gzip", "snappy", "lz4", "zstd")
_CONTROL_KEY: Final = struct.Struct(">hh")
_ABORT: Final = 0
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_BYTES: Final = 16
_INT32: Final = struct.Struct(">i")


class Raw(NamedTuple):
    """A record as stored. Bytes of a header's name that are not UTF-8 become surrogates (PEP 383).

    `damage`: why the record cannot be read; `value` then holds the bytes of the record, or of its whole batch.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    damage: str = ""


class Damaged(CorruptRecordException):
    """A batch was damaged in storage, or has an unknown format. `raw`: one damaged record in place of the whole batch."""

    retriable = True  # the batch may have been damaged in transit, and another replica may be intact

    def __init__(self, raw: Raw) -> None:
        super().__init__()
        self.raw = raw

    def __str__(self) -> str:
        return f"the record batch that ends at offset {self.raw.offset} {self.raw.damage}"


class Aborted(NamedTuple):
    """An aborted transaction: its producer, and the offset of its first record."""

    producer: int
    first: int


class _Batch(NamedTuple):
    """The header of a batch of format 2."""

    base: int
    length: int
    epoch: int
    magic: int
    crc: int
    attributes: int
    last_delta: int
    first_timestamp: int
    max_timestamp: int
    producer: int
    producer_epoch: int
    sequence: int
    records: int

    @property
    def last(self) -> int:
        return self.base + max(self.last_delta, 0)


def raw(record: Any) -> Raw:
    """A Raw from aiokafka's record; a Raw stays as it is."""
    if isinstance(record, Raw):
        return record
    return Raw(record.offset, record.timestamp, record.key, record.value, tuple(record.headers))


def decode(
    data: bytes,
    offset: int,
    make: Callable[[Any], T],
    aborted: Sequence[tuple[int, int]] | None = None,
    report: Callable[[Raw], object] = lambda damaged: None,
    until: int | None = None,
) -> tuple[list[T], int]:
    """The results of `make` for each record from `offset` on, and the offset after all of them.

    `make` gets records with offset, timestamp, key, value and headers: aiokafka's, or a Raw. `aborted`: the transactions that the
    broker names in a read-committed answer; their records are left out. None: the partition is not read committed. Then a batch
    of a transaction becomes one damaged Raw, and damaged records go to `report` and lose their bytes. `until`: batches that begin
    at or after this offset are not read.

    Raises Damaged if the first batch to be read is damaged.
    """
    found: list[T] = []
    view = memoryview(data)
    at, size, start = 0, len(data), offset
    transactions = None if aborted is None else _Transactions(aborted)
    while at + _PREFIX.size <= size:
        base, length = _PREFIX.unpack_from(data, at)
        end = at + _PREFIX.size + length
        if end > size:
            break  # the broker cuts the last batch at the size in the request
        try:
            if length < _HEADER.size - _PREFIX.size or data[at + _MAGIC_AT] != _MAGIC:
                found += map(make, _other(view[at : max(end, at)], offset))
                offset = max(offset, base + 1)
            elif until is not None and base >= until:
                offset = max(offset, base)
                break
            else:
                attributes, last_delta = _START.unpack_from(data, at + _ATTRIBUTES_AT)
                last = base + max(last_delta, 0)
                if last >= offset or attributes & _SPECIAL:
                    records: Sequence[Any] | None = None
                    if not attributes & _SPECIAL and base >= offset:
                        records = _plain(view[at:end], base, last)
                    if records is None:
                        records = _read(view[at:end], offset, transactions, report)
                    found += map(make, records)
                    offset = max(offset, last + 1)
        except Damaged:
            if offset > start:
                break  # return the records before it, so that a retry need not decode them again
            raise
        at = end
    if size and not at:
        raise Damaged(Raw(offset, -1, None, data, (), "is not whole"))
    return found, offset


class _Transactions:
    """The aborted transactions that are open while batches are read in order."""

    def __init__(self, aborted: Sequence[tuple[int, int]]) -> None:
        self._coming = sorted((Aborted(*one) for one in aborted), key=lambda one: one.first, reverse=True)
        self._open: set[int] = set()

    def gave_up(self, batch: _Batch) -> bool:
        while self._coming and self._coming[-1].first <= batch.last:
            self._open.add(self._coming.pop().producer)
        return batch.producer in self._open

    def marked(self, batch: _Batch, key: bytes | None) -> None:
        if key is not None and len(key) >= _CONTROL_KEY.size and _CONTROL_KEY.unpack_from(key)[1] == _ABORT:
            self._open.discard(batch.producer)


def _plain(view: memoryview, base: int, last: int) -> list[Any] | None:
    """The records of a usual batch, such as our own, read by aiokafka. None if anything about it is unusual."""
    try:
        batch = DefaultRecordBatch(view)
        if not batch.validate_crc():
            return None
        records: list[Any] = []
        append = records.append
        coming = base
        for record in batch:
            if record.offset != coming:
                return None
            append(record)
            coming += 1
    except Exception:  # noqa: BLE001 - aiokafka's parser raises errors of any type
        return None
    return records if coming <= last + 1 else None


def _other(view: memoryview, offset: int) -> Sequence[Raw]:
    """The records of a batch of another format. Raises Damaged."""
    size = len(view) - _PREFIX.size
    base = _PREFIX.unpack_from(view)[0] if size >= 0 else offset
    if size < _LEGACY_MIN:
        raise Damaged(Raw(max(base, offset), -1, None, bytes(view), (), "has a wrong length"))
    magic = view[_MAGIC_AT]
    if magic >= _MAGIC:
        raise Damaged(Raw(max(base, offset), -1, None, bytes(view), (), f"has the unknown format {magic}"))
    return _legacy(view, base, offset, magic) if base >= offset else ()


def _read(view: memoryview, offset: int, transactions: _Transactions | None, report: Callable[[Raw], object]) -> Sequence[Any]:
    """The records of one batch of format 2. Raises Damaged."""
    batch = DefaultRecordBatch(view)
    header = _Batch(*_HEADER.unpack_from(view))
    if not batch.validate_crc():
        why = "is damaged in Kafka's storage (its checksum is wrong): let another replica lead the partition"
        raise Damaged(Raw(max(header.last, offset), header.max_timestamp, None, bytes(view), (), why))
    records: list[Any]
    if header.attributes & _SPECIAL:
        if header.attributes & _CONTROL:
            if transactions is not None:
                for marker in _parse(header, view[_HEADER.size :]):
                    transactions.marked(header, marker.key)
            return ()
        if header.attributes & _TRANSACTIONAL:
            if transactions is None:
                if header.last < offset:
                    return ()
                records = [Raw(header.last, header.max_timestamp, None, None, (), IN_A_TRANSACTION)]
                report(records[0])
                return records
            if transactions.gave_up(header):
                return ()
        if header.last < offset:
            return ()
        records = _unpacked(header, view) if header.attributes & _CODEC else _records(header, batch, view)
    else:
        records = _records(header, batch, view)
    if transactions is None and records and isinstance(records[0], Raw):
        for at, one in enumerate(records):
            if one.damage:
                report(one)
                records[at] = one._replace(key=None, value=None)
    return records if header.base >= offset else [record for record in records if record.offset >= offset]


def _records(header: _Batch, batch: Any, view: memoryview, most: int | None = None) -> list[Any]:
    """The records of an uncompressed batch; at most `most` if they must be read one by one."""
    base = header.base
    try:
        records = list(batch)
        offsets = [record.offset for record in records]
        if offsets != list(range(base, base + len(offsets))):  # compaction leaves gaps
            before = base - 1
            for at in offsets:
                if at <= before:
                    raise ValueError("its offsets do not rise")
                before = at
        if offsets and offsets[-1] > header.last:
            raise ValueError("its offsets end above its last one")
    except Exception:  # noqa: BLE001 - aiokafka's parser raises errors of any type
        return list(islice(_parse(header, view[_HEADER.size :]), most))
    return records


def _unpacked(header: _Batch, view: memoryview) -> list[Any]:
    codec = header.attributes & _CODEC
    try:
        unpacked = _unpack(codec, bytes(view[_HEADER.size :]))
    except BaseException as error:
        # A panic of the Rust code in cramjam is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        name = _CODECS[codec] if codec < len(_CODECS) else f"the unknown codec {codec}"
        return [_whole(header, view, f"its batch cannot be unpacked ({name}): {error}")]
    if header.records <= MAX_RECORDS:
        plain = _HEADER.pack(*header._replace(attributes=header.attributes & ~_CODEC)) + unpacked
        records = _records(header, DefaultRecordBatch(plain), memoryview(plain), MAX_RECORDS + 1)
        if len(records) <= MAX_RECORDS:
            return records
    return [_whole(header, view, f"its batch holds more than {MAX_RECORDS:,} records")]


def _whole(header: _Batch, view: memoryview, damage: str) -> Raw:
    return Raw(header.last, header.max_timestamp, None, bytes(view), (), damage)


def _legacy(view: memoryview, base: int, offset: int, magic: int) -> list[Raw]:
    """Records of the formats before Kafka 0.11, which a broker may still keep: a message, or several packed in one message, which
    has the offset of the last.
    """
    try:
        batch = LegacyRecordBatch(view, magic)
        if not batch.validate_crc():
            raise Damaged(Raw(base, -1, None, bytes(view), (), "is damaged in Kafka's storage (its checksum is wrong)"))
        read = [Raw(one.offset, -1 if one.timestamp is None else one.timestamp, one.key, one.value) for one in batch]
        return [one for one in read if offset <= one.offset <= base]
    except Damaged:
        raise
    except Exception as error:  # noqa: BLE001 - aiokafka's parser raises errors of any type
        return [Raw(base, -1, None, bytes(view), (), f"its message of format {magic} cannot be read: {error}")]


def _parse(header: _Batch, payload: memoryview) -> Iterator[Raw]:
    """The records of an unpacked batch, by their lengths: after an unreadable record the next one can be read."""
    at, size, count, before = 0, len(payload), 0, header.base - 1
    while at < size and before < header.last:
        count += 1
        begin = at
        try:
            length, at = _varint(payload, at)
            end = at + length
            if length < 0 or end > size:
                raise ValueError(f"it says that it is {length} bytes long, where {size - at} are left")
        except (ValueError, IndexError) as error:
            yield Raw(header.last, header.max_timestamp, None, bytes(payload[begin:]), (), f"a record cannot be read: {error}")
            return
        try:
            record = _record(header, payload[at:end])
            if not before < record.offset <= header.last:
                raise ValueError(f"it says that its offset is {record.offset}")
        except (ValueError, IndexError) as error:
            said = bytes(payload[begin:end])
            record = Raw(
                before + 1, header.max_timestamp, None, said, (), f"the record cannot be read: {error or 'it is cut off'}"
            )
        before = record.offset
        at = end
        yield record
    if not count and header.records > 0:
        yield _whole(header, payload, f"its batch says that it holds {header.records} records, and holds none")


def _record(header: _Batch, body: memoryview) -> Raw:
    """One record. Raises ValueError or IndexError."""
    delta, at = _varint(body, 1, 63)  # the first byte holds attributes without a meaning
    offset_delta, at = _varint(body, at)
    key, at = _bytes(body, at)
    value, at = _bytes(body, at)
    count, at = _varint(body, at)
    if count < 0:
        raise ValueError(f"it says that it has {count} headers")
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        name, at = _bytes(body, at)
        if name is None:
            raise ValueError("a header has no name")
        content, at = _bytes(body, at)
        headers.append((name.decode("utf-8", "surrogateescape"), content))
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes are left after it")
    timestamp = header.max_timestamp if header.attributes & _APPEND_TIME else _int64(header.first_timestamp + delta)
    return Raw(header.base + offset_delta, timestamp, key, value, tuple(headers))


def _bytes(body: memoryview, at: int) -> tuple[bytes | None, int]:
    size, at = _varint(body, at)
    if size < 0:
        return None, at
    end = at + size
    if end > len(body):
        raise ValueError(f"{size} bytes are said to follow, where {len(body) - at} are left")
    return bytes(body[at:end]), end


def _varint(body: memoryview, at: int, longest: int = 28) -> tuple[int, int]:
    """A zigzag number of at most 5 bytes, or 10 with `longest` 63; returns it with the next index."""
    found = shift = 0
    while True:
        byte = body[at]
        at += 1
        found |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (found >> 1) ^ -(found & 1), at
        shift += 7
        if shift > longest:
            raise ValueError("a number is too long")


def _int64(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _unpack(codec: int, packed: bytes) -> bytes:
    """Unpack a batch. Raises the errors of the codec's library, and ValueError above MAX_UNPACKED_BYTES."""
    match codec:
        case 1:
            return _gunzip(packed)
        case 2:
            return _unsnap(packed)
        case 3:
            return _into(cramjam.lz4.decompress_into, packed)
        case 4:
            return _into(cramjam.zstd.decompress_into, packed)
        case _:
            raise ValueError("no client knows it")


def _too_much() -> ValueError:
    return ValueError(f"more than {MAX_UNPACKED_BYTES // 1024 // 1024} MiB")


def _gunzip(packed: bytes) -> bytes:
    parts: list[bytes] = []
    room = MAX_UNPACKED_BYTES
    while packed:
        member = zlib.decompressobj(31)
        parts.append(member.decompress(packed, room + 1))
        room -= len(parts[-1])
        if room < 0:
            raise _too_much()
        if not member.eof:
            raise ValueError("it is cut off")
        packed = member.unused_data
    return b"".join(parts)


def _unsnap(packed: bytes) -> bytes:
    """Unpack Snappy: one block, or, in the format of Java's library, a header and several blocks with their lengths."""
    blocks: list[bytes] = []
    if packed.startswith(_XERIAL):
        at = _XERIAL_BYTES
        while at < len(packed):
            (size,) = _INT32.unpack_from(packed, at)
            at += _INT32.size
            if not 0 <= size <= len(packed) - at:
                raise ValueError(f"a block says that it is {size} bytes long")
            blocks.append(packed[at : at + size])
            at += size
    else:
        blocks.append(packed)
    room = MAX_UNPACKED_BYTES - sum(map(cramjam.snappy.decompress_raw_len, blocks))
    if room < 0:
        raise _too_much()
    return b"".join(bytes(cramjam.snappy.decompress_raw(block)) for block in blocks)


def _into(decompress_into: Callable[[bytes, bytearray], int], packed: bytes) -> bytes:
    """Unpack into a larger and larger buffer, up to the limit: the size is unknown, and the producer must not choose it."""
    room = min(max(64 * 1024, 8 * len(packed)), MAX_UNPACKED_BYTES)
    while True:
        unpacked = bytearray(room)
        try:
            return bytes(memoryview(unpacked)[: decompress_into(packed, unpacked)])
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise
        if room == MAX_UNPACKED_BYTES:
            raise _too_much()
        room = min(room * 8, MAX_UNPACKED_BYTES)


# Writing.


def is_plain(headers: Sequence[tuple[str, bytes | None]]) -> bool:
    """Whether aiokafka's builder can write the headers: their names must be UTF-8."""
    try:
        for name, _ in headers:
            name.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode(
    timestamp: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
    producer: int = -1,
    producer_epoch: int = -1,
    sequence: int = -1,
) -> bytes:
    """A batch with this record alone; header names may hold any bytes."""
    body = bytearray((0, 0, 0))  # attributes, time delta and offset delta are 0
    for part in (key, value):
        _write(body, part)
    _write_number(body, len(headers))
    for name, content in headers:
        _write(body, name.encode("utf-8", "surrogateescape"))
        _write(body, content)
    record = bytearray()
    _write_number(record, len(body))
    record += body
    length = _HEADER.size - _PREFIX.size + len(record)
    batch = bytearray(
        _HEADER.pack(0, length, 0, 2, 0, 0, 0, timestamp, timestamp, producer, producer_epoch, sequence, 1) + record
    )
    struct.pack_into(">I", batch, _CRC_AT, calc_crc32c(bytes(batch[_ATTRIBUTES_AT:])))
    return bytes(batch)


def _write(body: bytearray, part: bytes | None) -> None:
    _write_number(body, -1 if part is None else len(part))
    body += part or b""


def _write_number(body: bytearray, number: int) -> None:
    number = (number << 1) ^ (number >> 63)
    while number > 0x7F:
        body.append(number & 0x7F | 0x80)
        number >>= 7
    body.append(number)
