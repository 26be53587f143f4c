"""Whatever is in a record batch: read, or given as damaged with its reason, and what follows is read."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from typing import Any

import cramjam
import pytest
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st
from kafka_batches import ABORT, APPEND_TIME, COMMIT, TRANSACTIONAL, batch, marker, record, varint

from stepfold.drivers.kafka import records as kafka_records
from stepfold.drivers.kafka.records import Damaged, Raw, decode, encode, is_plain, raw

NEXT = batch([record(value=b"next")], base=100)


def read(data: bytes, offset: int = 0, aborted: Any = ()) -> list[Raw]:
    return decode(data, offset, raw, aborted)[0]


def one_and_next(data: bytes) -> Raw:
    """What the batch gives; that the next one is served is held by the way."""
    found, after = decode(data + NEXT, 0, raw, ())
    assert after == 101
    assert found[-1] == Raw(100, 1_000, b"key", b"next")
    [first] = found[:-1]
    return first


# Fields that are strange and can be read.


@pytest.mark.parametrize(
    "strange",
    [
        pytest.param({"headers": [(b"\xff\xfe", b"1")]}, id="a header's name that is no UTF-8"),
        pytest.param({"headers": [(b"\xed\xa0\x80", b"1"), (b"", b"")]}, id="a surrogate, and no name at all"),
        pytest.param({"headers": [(b"a", None), (b"a", b"2")]}, id="a header without a value, and one twice"),
        pytest.param({"key": b"\xff", "value": b"\x00\xff"}, id="bytes"),
        pytest.param({"key": None, "value": None}, id="nulls"),
        pytest.param({"key": b"", "value": b""}, id="nothing"),
        pytest.param({"attributes": 0x80}, id="attributes that look like a long number"),
        pytest.param({"attributes": 0xFF, "headers": [(b"\xff", None)]}, id="all attributes"),
        pytest.param({"headers": [(b"%d" % number, b"") for number in range(5_000)]}, id="many headers"),
    ],
)
def test_what_can_be_read_is_read_as_it_was_written(strange: dict[str, Any]) -> None:
    found = one_and_next(batch([record(**strange)]))
    headers = [(name.encode("utf-8", "surrogateescape"), content) for name, content in found.headers]
    assert (found.key, found.value) == (strange.get("key", b"key"), strange.get("value", b"value"))
    assert headers == strange.get("headers", [])
    assert not found.damage


@pytest.mark.parametrize(
    ("fields", "timestamp"),
    [
        ({"first_timestamp": -1}, -1),
        ({"first_timestamp": -(2**63)}, -(2**63)),
        ({"first_timestamp": 2**63 - 1}, 2**63 - 1),
        ({"attributes": APPEND_TIME}, 2_000),
    ],
)
def test_any_timestamp(fields: Any, timestamp: int) -> None:
    assert one_and_next(batch([record()], **fields)).timestamp == timestamp
    assert one_and_next(batch([record(headers=[(b"\xff", b"")])], **fields)).timestamp == timestamp, "and read by ourselves"


def test_a_difference_of_time_that_leaves_the_numbers() -> None:
    found = one_and_next(batch([record(time_delta=2**62, headers=[(b"\xff", b"")])], first_timestamp=2**62))
    assert -(2**63) <= found.timestamp < 2**63


def test_one_strange_record_spoils_no_neighbour() -> None:
    found = read(batch([record(0), record(1, headers=[(b"\xff", b"x")]), record(2, attributes=0x80), record(3)]))
    assert [one.offset for one in found] == [0, 1, 2, 3]
    assert [one.value for one in found] == [b"value"] * 4
    assert not any(one.damage for one in found)


def test_reading_begins_in_the_middle() -> None:
    for strange in (), [(b"\xff", b"")]:
        found = read(batch([record(0, headers=strange), record(1), record(2)]), 1)
        assert [one.offset for one in found] == [1, 2]


def test_batches_behind_the_end_are_not_read() -> None:
    many = batch([record(0), record(1)]) + batch([record(value=b"\0")], base=7, crc=1) + NEXT
    for until in (2, 7):
        found, after = decode(many, 0, raw, None, until=until)
        assert [one.offset for one in found] == [0, 1]
        assert after == 7, "nothing is between them"
    assert [one.offset for one in decode(many, 0, raw, None, until=1)[0]] == [0, 1], "a batch is read as a whole"
    old = bytearray(legacy(1, 1))
    struct.pack_into(">q", old, 0, 2)
    assert [one.value for one in decode(bytes(old), 0, raw, until=1)[0]] == [b"0", b"1", b"2"], "it begins with its last offset"


# Compression.


def lz4(data: bytes) -> bytes:
    return bytes(cramjam.lz4.compress(data))


def zstd(data: bytes) -> bytes:
    return bytes(cramjam.zstd.compress(data))


def snappy(data: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(data))


def xerial(data: bytes) -> bytes:
    blocks = [snappy(data[start : start + 100]) for start in range(0, len(data), 100)]
    return b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1) + b"".join(struct.pack(">i", len(one)) + one for one in blocks)


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:10]) + gzip.compress(data[10:])


PACKERS = [(1, gzip.compress), (1, two_members), (2, snappy), (2, xerial), (3, lz4), (4, zstd)]


@pytest.mark.parametrize(("codec", "pack"), PACKERS)
def test_every_codec(codec: int, pack: Any) -> None:
    payload = b"".join(record(number, value=b"v" * number, headers=[(b"a", b"b")]) for number in range(50))
    data = batch([], attributes=codec, count=50, last_delta=49, payload=pack(payload))
    assert [one.value for one in read(data)] == [b"v" * number for number in range(50)]
    assert [one.offset for one in read(data, 48)] == [48, 49]


@pytest.mark.parametrize(("codec", "pack"), PACKERS)
def test_strange_records_in_every_codec(codec: int, pack: Any) -> None:
    payload = record(0, headers=[(b"\xff", b"")]) + record(1)
    found = read(batch([], attributes=codec, count=2, last_delta=1, payload=pack(payload)))
    assert [(one.value, one.damage) for one in found] == [(b"value", ""), (b"value", "")]


@pytest.mark.parametrize(("codec", "pack"), [*PACKERS, (5, bytes), (7, bytes)])
def test_what_cannot_be_unpacked_is_one_damaged_record(codec: int, pack: Any) -> None:
    packed = pack(record() * 50)
    for broken in (packed[: len(packed) // 2], b"", b"\xff" * 100):
        data = batch([], attributes=codec, count=3, last_delta=2, payload=broken)
        found = one_and_next(data)
        assert found.offset == 2
        assert found.damage
        assert found.value is not None


@pytest.mark.parametrize(("codec", "pack"), [one for one in PACKERS if one[1] not in (xerial, two_members)])
def test_a_bomb_is_not_unpacked(codec: int, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_records, "MAX_UNPACKED_BYTES", 2**20)
    bomb = batch([], attributes=codec, count=1, last_delta=0, payload=pack(bytes(2**20 + 1)))
    found = one_and_next(bomb)
    assert "more than 1 MiB" in found.damage
    assert found.value == bomb


@pytest.mark.parametrize("count", [51, 1])
def test_a_batch_of_too_many_records_is_not_read(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_records, "MAX_RECORDS", 50)
    many = b"".join(record(number, None, None) for number in range(51))
    found = one_and_next(batch([], attributes=4, count=count, last_delta=50, payload=zstd(many)))
    assert "more than 50 records" in found.damage
    assert len(read(batch([record(number) for number in range(51)]))) == 51, "in as many bytes as it was sent, it is no bomb"


# Lies.


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(record(1, header_count=3), id="headers that are missing"),
        pytest.param(record(1, header_count=-1), id="a negative number of headers"),
        pytest.param(record(1, headers=[(None, b"x")]), id="a header without a name"),
        pytest.param(record(1, behind=b"more"), id="something behind it"),
        pytest.param(record(7), id="an offset behind the batch"),
        pytest.param(record(0), id="an offset that was there"),
        pytest.param(record(-5), id="an offset before the batch"),
        pytest.param(varint(3) + b"\x00\x00\x02", id="cut off"),
        pytest.param(varint(9) + b"\x00\x00\x02" + b"\xff" * 6, id="a number without an end"),
        pytest.param(varint(14) + b"\x00\x00\x02" + varint(2**31 - 1) + b"123456", id="a key longer than everything"),
    ],
)
def test_a_record_that_lies_is_damaged_and_the_next_is_read(lie: bytes) -> None:
    first, damaged, third = read(batch([record(0), lie, record(2)]))
    assert [one.offset for one in (first, damaged, third)] == [0, 1, 2]
    assert damaged.damage.startswith("the record cannot be read: ")
    assert damaged.value == lie
    assert (third.value, third.damage) == (b"value", "")


@pytest.mark.parametrize("length", [-1, -(2**31), 2**31 - 1, 1_000])
def test_a_length_that_lies_takes_what_is_behind_it(length: int) -> None:
    first, damaged = read(batch([record(0), record(1, length=length), record(2)]))
    assert first.value == b"value"
    assert damaged.offset == 2
    assert damaged.damage.startswith("a record cannot be read: ")


@pytest.mark.parametrize("count", [0, 1, 3, 2**31 - 1, -1])
def test_a_count_that_lies_hides_nothing(count: int) -> None:
    found = read(batch([record(0), record(1)], count=count))
    assert [(one.value, one.damage) for one in found] == [(b"value", "")] * 2


def test_a_batch_that_holds_nothing() -> None:
    assert decode(batch([], last_delta=4) + NEXT, 0, raw, ())[1] == 101
    assert len(read(batch([], last_delta=4) + NEXT)) == 1, "compaction leaves such"
    assert "holds none" in one_and_next(batch([], count=3, last_delta=4)).damage


def test_offsets_with_gaps() -> None:
    found = read(batch([record(0), record(3), record(9)], last_delta=20))
    assert [one.offset for one in found] == [0, 3, 9]


def test_a_last_offset_below_the_first_ends_no_reading() -> None:
    assert decode(batch([record()], base=5, last_delta=-3), 5, raw, ())[1] == 6


# What no producer can cause is not skipped.


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (batch([record()], crc=1), "checksum is wrong"),
        (batch([record()], magic=3), "unknown format 3"),
        (batch([record()], magic=0x7F), "unknown format 127"),
        (batch([record()], length=-1), "wrong length"),
        (batch([record()], length=3), "wrong length"),
        (batch([record()], length=30), "unknown format 2"),
        (batch([record()])[:-1], "not whole"),
        (b"\x00", "not whole"),
    ],
)
def test_damage_of_the_storage_is_raised(data: bytes, says: str) -> None:
    with pytest.raises(Damaged, match=says) as raised:
        decode(data, 0, raw, ())
    assert raised.value.raw.value
    before = batch([record()])
    if len(data) > 12:
        moved = struct.pack(">q", 1) + data[8:]
        assert decode(before + moved, 0, raw, ()) == ([Raw(0, 1_000, b"key", b"value")], 1), "what is whole goes first"


def test_a_batch_that_is_cut_off_is_left_for_the_next_answer() -> None:
    assert decode(batch([record()]) + NEXT[:-1], 0, raw, ())[1] == 1


# Formats before Kafka 0.11.


def legacy(magic: Any, codec: int = 0) -> bytes:
    builder = LegacyRecordBatchBuilder(magic, codec, 100_000)
    for number in range(3):
        builder.append(number, 5_000 + number, b"key", b"%d" % number)
    return bytes(builder.build())


def test_old_formats() -> None:
    plain = read(legacy(1))
    assert plain == [Raw(number, 5_000 + number, b"key", b"%d" % number) for number in range(3)]
    assert [one.timestamp for one in read(legacy(0))] == [-1, -1, -1]
    for codec in (1, 2, 3):
        packed = bytearray(legacy(1, codec))
        struct.pack_into(">q", packed, 0, 2)
        assert read(bytes(packed)) == plain
        assert read(bytes(packed), 2) == plain[2:]


def test_an_old_message_that_cannot_be_read_is_damaged() -> None:
    body = b"\x01\x01" + struct.pack(">q", 0) + struct.pack(">i", -1) + struct.pack(">i", 4) + b"junk"
    message = struct.pack(">I", zlib.crc32(body)) + body
    found = one_and_next(struct.pack(">qi", 0, len(message)) + message)
    assert "format 1 cannot be read" in found.damage
    wrong = bytearray(legacy(1))
    wrong[12] ^= 1
    with pytest.raises(Damaged, match="checksum"):
        read(bytes(wrong))


# Transactions.


def in_transaction(base: int, producer: int, value: bytes = b"value", headers: Any = ()) -> bytes:
    return batch([record(value=value, headers=headers)], base=base, attributes=TRANSACTIONAL, producer=producer)


def test_what_was_aborted_is_left_out_and_what_was_committed_is_read() -> None:
    data = b"".join(
        [
            in_transaction(0, 1, b"aborted"),
            in_transaction(1, 2, b"committed"),
            batch([record(value=b"in none")], base=2, producer=1),
            in_transaction(3, 1, b"aborted, too"),
            marker(4, ABORT, 1),
            in_transaction(5, 1, b"the next of the same"),
            marker(6, COMMIT, 1),
            marker(7, COMMIT, 2),
            in_transaction(8, 1, b"aborted again"),
            marker(9, ABORT, 1),
        ]
    )
    found, after = decode(data, 0, raw, [(1, 8), (1, 0)])
    assert [one.value for one in found] == [b"committed", b"in none", b"the next of the same"]
    assert after == 10
    assert [one.value for one in decode(data, 5, raw, [(1, 0), (1, 8)])[0]] == [b"the next of the same"], "from the middle, too"


def test_elsewhere_what_is_in_a_transaction_counts_for_nothing_and_is_told() -> None:
    told: list[Raw] = []
    data = in_transaction(0, 1) + marker(1, COMMIT, 1) + batch([record(value=b"ours")], base=2)
    found, after = decode(data, 0, raw, None, told.append)
    assert found == [Raw(0, 2_000, None, None, (), "produced in a transaction"), Raw(2, 1_000, b"key", b"ours")]
    assert after == 3
    assert told == found[:1]


def test_elsewhere_what_is_damaged_has_no_bytes_and_is_told() -> None:
    told: list[Raw] = []
    found, _ = decode(batch([record(0), record(1, behind=b"x"), record(2)]), 0, raw, None, told.append)
    assert [(one.key, one.value, bool(one.damage)) for one in found] == [
        (b"key", b"value", False),
        (None, None, True),
        (b"key", b"value", False),
    ]
    assert [(one.offset, one.value) for one in told] == [(1, record(1, behind=b"x"))]


def test_control_batches_of_any_content() -> None:
    for key in (None, b"", b"\x00", b"\x7f\xff\x00\x00", ABORT):
        control = batch([record(key=key)], attributes=0x20)
        assert read(control + NEXT) == [Raw(100, 1_000, b"key", b"next")]
        assert decode(control + NEXT, 0, raw)[0] == [Raw(100, 1_000, b"key", b"next")]


# Writing.


@given(
    st.none() | st.binary(max_size=50),
    st.none() | st.binary(max_size=50),
    st.lists(st.tuples(st.binary(max_size=20), st.none() | st.binary(max_size=300)), max_size=5),
)
def test_what_is_written_is_read(key: bytes | None, value: bytes | None, headers: list[tuple[bytes, bytes | None]]) -> None:
    texts = tuple((name.decode("utf-8", "surrogateescape"), content) for name, content in headers)
    assert read(encode(7, key, value, texts)) == [Raw(0, 7, key, value, texts)]
    if is_plain(texts):
        assert all(name.encode() for name, _ in texts if name)


# Anything.


def one(data: bytes) -> None:
    """Whatever is fetched: nothing is raised but Damaged, offsets rise, and reading goes on. The entry for fuzzing."""
    for aborted in (None, [(1, 0), (2, 5)]):
        for offset in (0, 3):
            try:
                found, after = decode(data, offset, raw, aborted)
            except Damaged as damaged:
                assert damaged.raw.offset >= 0 or data[:1] >= b"\x80"  # noqa: PT017 - whatever base the bytes say
                continue
            assert after > offset or not found
            places = [one.offset for one in found]
            assert places == sorted(places)
            for name, _ in (header for one in found for header in one.headers):
                name.encode("utf-8", "surrogateescape")


def mended(data: bytearray) -> bytes:
    """With a length and a checksum that are right, so that the mistakes are looked at."""
    from aiokafka.record.util import calc_crc32c

    if len(data) >= 61:
        struct.pack_into(">qi", data, 0, 0, len(data) - 12)
        data[16] = 2
        struct.pack_into(">I", data, 17, calc_crc32c(bytes(data[21:])))
    return bytes(data)


def mutant(rng: random.Random) -> bytes:
    records = [record(number, headers=[(b"name", b"content")]) for number in range(rng.randint(1, 4))]
    codec = rng.randint(0, 7)
    payload = b"".join(records)
    pack = dict(PACKERS).get(codec, bytes)
    data = bytearray(
        batch(
            records,
            attributes=codec | rng.choice([0, 0, 0, 8, 0x10, 0x20, 0x30]),
            payload=pack(payload),
            producer=rng.choice([-1, 1, 2]),
        )
    )
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(21, len(data))
        match rng.randint(0, 3):
            case 0:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 1:
                del data[at : at + rng.randint(1, 8)]
            case 2:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case _:
                data[at] ^= 1 << rng.randrange(8)
        if len(data) <= 61:
            break
    if rng.random() < 0.05:
        return rng.randbytes(rng.randint(0, 200))
    return (mended(data) if rng.random() < 0.95 else bytes(data)) + (NEXT if rng.random() < 0.5 else b"")


def test_whatever_is_fetched() -> None:
    rng = random.Random(0)
    for _ in range(3_000):
        one(mutant(rng))


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    one(data)
    one(mended(bytearray(data)))
