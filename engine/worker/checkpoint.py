"""Checkpoints: with one, a restart costs the open runs and the tail of the log, not the whole history.

The log stores these items beside each partition. Each key begins with the claim of the owner that wrote the item:
- `<claim>/r/<run id>`: the snapshot of an open run;
- `<claim>/e/<number>`: a chunk of the remembered ids of ended runs;
- `<claim>/o/<offset>/<number>`: a piece of the outbox as it was at this offset, which is that of a marker and of snapshots;
- `<claim>/m`: the marker. The owner writes it when everything that changed before its offset is durable.

A zombie may write at any time. Its items are true of an earlier offset, but it may overwrite or delete items that a newer owner
relies on, or bring back the snapshot of a run that has ended. So the reader takes the marker of the highest claim and the
snapshot of the highest offset of each run. Then it compares the runs with the marker: their number, and the exclusive or of
their fingerprints. Marker and snapshots also hold marks of the log (see `marks`). A snapshot may have a higher offset than the
marker: it comes from a checkpoint that was never finished. The fold then skips records of the run behind the marker; the
messages that they owed are in the outbox of that checkpoint, which was stored before the snapshot. If the log or the runs
differ, or if an item cannot be read, the reader folds from the start of the log, which is always right.
"""

from __future__ import annotations

import asyncio
import logging
import re
import zlib
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import orjson

from ..core.ended import fingerprint
from ..core.fold import PartitionState
from ..core.messages import Outbox
from ..core.runs import Runs
from ..core.snapshot import unpack
from ..errors import ConfigError, PayloadTooLarge, StepfoldError
from ..events import FORMAT
from ..log import Log, Record
from ..marks import Mark, marks_from, marks_of, moved

logger = logging.getLogger("stepfold.worker")

VERSION = 9
"""The format of the stored items. A reader does not use items of another format."""
PIECE_BYTES = 500_000
SUM_BYTES = 4
PACK_RUNS = 200

Pieces = tuple[int, int]
"""How many pieces a stored outbox has, and their checksum."""
_NO_PIECES: Pieces = (0, 0)


class Checkpoint:
    """The items beside one partition, written by the owner under `claim`.

    A checkpoint does not touch an unchanged run: the run keeps the claim under which its snapshot is stored. `is_idle` says of a
    run id whether the run is idle, as `core.runs.Note` has it.
    """

    def __init__(self, log: Log, partition: int, is_idle: Callable[[str], bool]) -> None:
        self._log = log
        self._partition = partition
        self._is_idle = is_idle
        # other owners may have stored items since `load` or `look_again`, which we have not read
        self.foreign_writes_possible = False
        self.told = 0  # if `load` folds again: refusals of records below this offset were reported before
        self.known = 0  # the end of the log at `load`: we have read what owners stored before it
        self.in_doubt = -1  # claim of a write that timed out and may still arrive later, over newer data
        self._pieces: dict[str, dict[str, None]] = {}  # run id -> keys of its snapshot's pieces after the first
        self._others: dict[str, None] = {}  # keys of markers and chunks, in the order in which we saw them, as below
        self._superseded: dict[str, None] = {}  # keys of snapshots that the next marker replaces
        self.dirty: dict[str, int] = {}  # runs that changed since the last checkpoint began -> claim of their snapshot
        self._incomplete = False
        self._useless = False  # the items found at `load` are unusable and not yet deleted
        self._kept: set[str] = set()  # chunks that the marker refers to
        self._attempted: dict[str, int] = {}  # `dirty` as it was when the last checkpoint began
        self._packing: dict[str, int] = {}  # those of them that are not yet packed
        self._marker = b""
        self._stood: tuple[object, ...] | None = None  # the mark of the last record below the checkpoint's offset
        self._items: dict[str, bytes | None] = {}
        self._claim = -1
        self._prefix = ""
        self._offset = 0
        self._chunks: dict[int, int] = {}  # number -> stored length, under any claim
        self._outbox = _NO_PIECES  # of the checkpoint under way
        self.last: Record | Mark | None = None  # the last folded record; the owner sets it
        self.claimed: Mark | None = None  # the claim in force; the owner sets it
        self.written_bytes = 0  # of the last commit: the runs that had changed, and the marker

    async def load(self) -> PartitionState:
        """Return the state at the best marker that fits the log, or an empty state.

        Raises LogUnavailable; raises ConfigError if the log has lost its beginning, or records after a marker that fits.
        """
        log, partition = self._log, self._partition
        for kept in (self._pieces, self._others, self._superseded, self.dirty, self._packing, self._attempted, self._chunks):
            kept.clear()
        self.last = self.claimed = None
        self.told = 0
        self._incomplete = self.foreign_writes_possible = self._useless = False
        _, self.known = await log.bounds(partition)
        stored = self._stored_state()
        why, remedy = "no checkpoint covers them", "Restore the log from a backup, or use a new namespace"
        state = None
        try:
            async for portion in log.checkpoint_load(partition):
                stored.take(portion)
                await asyncio.sleep(0)
            state = stored.state()
            if state is not None:
                await self._check_log(state, [*stored.marks, *stored.beyond(state.offset)])
        except Misfit as error:
            state, why = None, f"its checkpoint is of another log: {error}"
            remedy = (
                "Replace it with a copy that has its beginning, or restore the checkpoints that belong to it, or use a new "
                "namespace"
            )
            logger.warning(
                "%s partition %d: %s. The present records count; folding them from the start", log.name, partition, why
            )
        except StepfoldError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged checkpoint may raise anything
            state, why = None, f"its checkpoint cannot be read ({error})"
            logger.warning("%s partition %d: checkpoint cannot be read (%s); folding from the start", log.name, partition, error)
            self.told = stored.told
        start, end = await log.bounds(partition)  # read bounds last: the previous owner may still append and checkpoint meanwhile
        if state is None:
            if start > 0:
                raise ConfigError(
                    f"{log.name} partition {partition}: its records below offset {start} are gone and {why}, so its runs cannot "
                    f"be known. {remedy}"
                )
            await self._find_useless()
            return PartitionState(partition, log.partitions)
        if state.offset < start:
            raise ConfigError(
                f"{log.name} partition {partition}: a checkpoint covers it up to offset {state.offset}, but the log holds only "
                f"offsets {start} to {end}: records were lost. Restore the log from a backup, or use a new namespace"
            )
        if stored.marks:
            self.claimed, self.last = stored.marks[0], stored.marks[-1]
        self._others.update(stored.others)
        self._superseded.update(stored.worthless)
        self._pieces.update(stored.pieces)
        self._chunks.update(stored.lengths)
        return state

    async def _find_useless(self) -> None:
        """No stored item can be used: note them all, so that the next checkpoint deletes them."""
        self._useless = True
        async for portion in self._log.checkpoint_load(self._partition):
            for key in portion:
                (self._superseded if _rest(key).startswith("r/") else self._others)[key] = None

    # A method of its own, so that the simulations can watch how a checkpoint is read.
    def _stored_state(self) -> StoredState:
        return StoredState(self._log, self._partition)

    async def fits(self, state: PartitionState) -> bool:
        """Whether the log still holds the marked records of `state` and the records that follow it. Raises LogUnavailable."""
        start, _ = await self._log.bounds(self._partition)
        if state.offset < start:
            return False  # records after `state` are gone; a checkpoint may cover them
        try:
            await self._check_log(state, marks_of(self.claimed, self.last))
        except Misfit as error:
            name = self._log.name
            logger.warning(
                "%s partition %d: the folded state is of another log: %s; reading the log again", name, self._partition, error
            )
            return False
        return True

    async def _check_log(self, state: PartitionState, marks: list[Mark]) -> None:
        """Raises Misfit if the log is not the one that `state` was folded from; raises LogUnavailable."""
        start, end = await self._log.bounds(self._partition)
        offset = await moved(self._log, self._partition, marks, start, end)
        if offset is not None and offset < end:
            raise Misfit(f"offset {offset} holds another record: it was restored from an older copy, or has lost its end")
        if offset is not None or state.offset > end:
            went_to = f"the log ends at offset {end} and went up to {state.offset}"
            raise Misfit(f"{went_to}: it was restored from an older copy, or has lost its end")

    async def look_again(self, state: PartitionState, claim: int) -> None:
        """Read what owners before `claim` have stored since `load`, so that a later checkpoint removes it.

        If one of them stored a run's snapshot, the run becomes dirty: its snapshot from `load` may be gone. Items of a later
        claim stay untouched.
        """
        lengths: dict[int, int] = {}
        async for portion in self._log.checkpoint_load(self._partition):
            for key, value in portion.items():
                writer, rest = _parts(key)
                if value is None or writer > claim:
                    continue
                if not rest.startswith("r/"):
                    self._others[key] = None
                    if rest.startswith("e/"):
                        number = int(rest[2:])
                        lengths[number] = max(lengths.get(number, 0), len(value) - SUM_BYTES)
                    continue
                run_id, _, piece = rest[2:].partition("\n")
                stored = state.runs.stored(run_id)
                if stored != writer:
                    self._superseded[key] = None
                    self.dirty.setdefault(run_id, stored)
                elif piece and key not in self._pieces.get(run_id, {}):
                    self._superseded[key] = None
            await asyncio.sleep(0)
        self._chunks = {number: length for number, length in self._chunks.items() if lengths.get(number, 0) >= length}
        self.foreign_writes_possible = False

    def touch(self, run_id: str, state: PartitionState) -> None:
        """Call this before a record of the run is folded: marks the run dirty and packs it for a checkpoint under way."""
        if run_id in self._packing:
            self._pack(run_id, state)
        if run_id not in self.dirty:
            self.dirty[run_id] = state.runs.stored(run_id)

    def _pack(self, run_id: str, state: PartitionState) -> None:
        stored = self._packing.pop(run_id)
        if stored not in (-1, self._claim):
            self._superseded[f"{stored}/r/{run_id}"] = None
        value = state.runs.snapshot(run_id)
        state.runs.note_stored(run_id, self._claim)
        pieces = [value[i : i + PIECE_BYTES] for i in range(0, len(value), PIECE_BYTES)]
        head = orjson.dumps(
            [VERSION, self._offset, self._is_idle(run_id), len(pieces), zlib.crc32(value), self._stood, self._outbox]
        )
        key = f"{self._prefix}r/{run_id}"
        self._superseded.pop(key, None)
        self._items[key] = head + b"\n" + pieces[0]
        self._superseded |= self._pieces.pop(run_id, {})
        if len(pieces) > 1:
            further = {f"{key}\n{number}": piece for number, piece in enumerate(pieces) if number}
            self._items.update(further)
            for name in further:
                self._superseded.pop(name, None)
            self._pieces[run_id] = dict.fromkeys(further)

    def begin(self, state: PartitionState, claim: int) -> None:
        """Begin a checkpoint of `state` as it is now. `touch` packs a run before the run changes."""
        if self._incomplete:  # the last checkpoint failed: some of its items may be stored
            for run_id in self._attempted:
                self.touch(run_id, state)
        if self._incomplete or self.foreign_writes_possible:
            self._chunks.clear()
        self._incomplete = True
        self._claim = claim
        self._prefix = f"{claim}/"
        self._offset = state.offset
        self._items = {}
        self._attempted, self._packing, self.dirty = self.dirty, {}, {}
        for run_id, stored in self._attempted.items():
            if run_id in state.runs:
                self._packing[run_id] = stored
            elif stored >= 0:
                self._superseded[f"{stored}/r/{run_id}"] = None
                self._superseded |= self._pieces.pop(run_id, {})
        state.ended.forget(self._log.now(), state.memory_ms)
        for number, chunk in state.ended.chunks.items():
            if self._chunks.get(number) != len(chunk):
                self._items[f"{self._prefix}e/{number}"] = zlib.crc32(chunk).to_bytes(SUM_BYTES) + chunk
                self._chunks[number] = len(chunk)
        self._kept = {f"e/{number}" for number in state.ended.chunks}
        self._outbox = self._pack_outbox(state)
        marks = marks_of(self.claimed, self.last)
        self._stood = tuple(marks[-1]) if marks else None
        marker = {
            "version": VERSION,
            "log": self._log.id,
            **summary_of(state),
            "outbox": self._outbox,
            "stood": [tuple(mark) for mark in marks],
            "written_at": self._log.now(),
        }
        self._marker = orjson.dumps({**marker, "sum": _sum_of(marker)})

    def _pack_outbox(self, state: PartitionState) -> Pieces:
        """Add the pieces of the outbox to the items, before the snapshots that rely on them."""
        if not state.outbox.targets:
            return _NO_PIECES
        packed = state.outbox.pack()
        pieces = [packed[i : i + PIECE_BYTES] for i in range(0, len(packed), PIECE_BYTES)]
        for number, piece in enumerate(pieces):
            name = _outbox_piece(state.offset, number)
            self._items[f"{self._prefix}{name}"] = piece
            self._others[f"{self._prefix}{name}"] = None
            self._kept.add(name)
        return len(pieces), zlib.crc32(packed)

    def pack_some(self, state: PartitionState) -> bool:
        """Pack up to `PACK_RUNS` runs. Returns whether more are left."""
        for run_id in list(islice(self._packing, PACK_RUNS)):
            self._pack(run_id, state)
        return bool(self._packing)

    async def commit(self) -> None:
        """Store what was packed. Raises LogUnavailable and PayloadTooLarge.

        If the write is given up, `in_doubt` keeps its claim: nothing more may be stored under that claim, because the write
        may still arrive.
        """
        self.in_doubt = self._claim
        try:
            await self._commit()
        except PayloadTooLarge:
            self.in_doubt = -1  # the log sent nothing
            raise
        self.in_doubt = -1

    async def _commit(self) -> None:
        """Write the packed runs, then the marker; then delete what the marker replaces."""
        items, self._items = self._items, {}
        self.written_bytes = sum(len(value or b"") for value in items.values()) + len(self._marker)
        if self._useless:  # first: a snapshot of a higher offset, from the other log, would win over ours
            nothing: dict[str, bytes | None] = dict.fromkeys((*self._superseded, *self._others))
            if nothing:
                await self._log.checkpoint_put(self._partition, nothing)
            self._superseded.clear()
            self._others.clear()
            self._useless = False
        if items:
            await self._log.checkpoint_put(self._partition, items)
        marker = f"{self._prefix}m"
        await self._log.checkpoint_put(self._partition, {marker: self._marker})
        gone: dict[str, bytes | None] = dict.fromkeys(self._superseded)
        written = {_rest(key) for key in items}
        for key in self._others:
            rest = _rest(key)
            if key != marker and key not in items and (rest == "m" or rest in written or rest not in self._kept):
                gone[key] = None
        self._others.update((key, None) for key in (*items, marker) if not _rest(key).startswith("r/"))
        if gone:
            await self._log.checkpoint_put(self._partition, gone)
        for key in gone:
            self._superseded.pop(key, None)
            self._others.pop(key, None)
        self._incomplete = False


_KEY = re.compile(r"([0-9]{1,18})/(m|e/[0-9]{1,9}|o/[0-9]{1,18}/[0-9]{1,9}|r/.+)", re.DOTALL)


def _parts(key: str) -> tuple[int, str]:
    """The claim of a key and the rest of it; (-1, "") for a key that no owner writes."""
    match = _KEY.fullmatch(key)
    return (-1, "") if match is None else (int(match[1]), match[2])


def _rest(key: str) -> str:
    """The part of a key after the claim."""
    return key.partition("/")[2]


def _outbox_piece(offset: int, number: int) -> str:
    return f"o/{offset}/{number}"


def summary_of(state: PartitionState) -> dict[str, Any]:
    """The fields of a marker: the state without outbox, runs and remembered ids. Count, sum and lengths stand for those two."""
    return {
        "offset": state.offset,
        "claim": state.claim,
        "owner": state.owner,
        "format": state.format,
        "memory_ms": state.memory_ms,
        "deaths": [state.deaths, state.claimed_at],
        "sources": state.sources,
        "senders": {source: list(position) for source, position in state.senders.items()},
        "runs": len(state.runs),
        "mark": f"{state.open_mark:032x}",
        "ended": [[number, len(chunk)] for number, chunk in state.ended.chunks.items()],
    }


def begin_at(state: PartitionState, summary: Mapping[str, Any]) -> None:
    """Set the fields that `summary_of` returned, except the counts and sums."""
    state.offset = summary["offset"]
    state.claim = summary["claim"]
    state.owner = summary["owner"]
    state.format = summary["format"]
    state.needs_format = max(FORMAT, state.format)
    state.memory_ms = summary["memory_ms"]
    state.deaths, state.claimed_at = summary["deaths"]
    state.sources = dict(summary["sources"])
    state.senders = {source: (offset, n) for source, (offset, n) in summary["senders"].items()}


def _sum_of(marker: dict[str, Any]) -> int:
    return zlib.crc32(orjson.dumps(marker))


class Misfit(Exception):
    """The stored state belongs to another log: this one was restored, cut off, or made again."""


class StoredState:
    """Reads what is stored, portion by portion. Its methods raise on items that cannot be read or do not fit."""

    def __init__(self, log: Log, partition: int) -> None:
        self._log = log
        self._state = PartitionState(partition, log.partitions)
        self._markers: dict[int, bytes] = {}
        self._chunks: dict[str, bytes] = {}
        self._outbox: dict[str, bytes] = {}  # pieces of outboxes by their keys
        self._outboxes: dict[tuple[int, int], Pieces] = {}  # by claim and offset of the snapshots beside them
        self._large: dict[str, bytes] = {}  # snapshots in several pieces: key -> piece
        self._last_start = -1
        self.others: dict[str, None] = {}
        self.worthless: dict[str, None] = {}
        self.pieces: dict[str, dict[str, None]] = {}
        self.lengths: dict[int, int] = {}  # number -> length of the chunks that are stored as the marker says
        self.told = 0  # the marker's offset, even if items that it refers to are missing
        self.marks: list[Mark] = []  # of the claim, and of the last record below the marker's offset
        self._stood: dict[Mark, int] = {}  # mark of the last record below a snapshot's offset -> that offset

    def take(self, portion: Mapping[str, bytes | None]) -> None:
        """Read a portion. A key that comes again replaces the item read before."""
        for key, value in portion.items():
            claim, rest = _parts(key)
            if rest.startswith("r/"):
                self._snapshot(claim, rest[2:], key, value)
            elif value is None:
                self.others.pop(key, None)
                self._markers.pop(claim, None)
                self._chunks.pop(key, None)
                self._outbox.pop(key, None)
            else:
                self.others[key] = None
                if rest == "m":
                    self._markers[claim] = value
                elif rest.startswith("e/"):
                    self._chunks[key] = value
                elif rest.startswith("o/"):
                    self._outbox[key] = value

    def _snapshot(self, claim: int, run_id: str, key: str, value: bytes | None) -> None:
        if value is None:
            self._large.pop(key, None)
            if run_id in self._state.runs and self._state.runs.stored(run_id) == claim:
                self._drop(run_id)
            return
        if "\n" in run_id:
            self._large[key] = value
            return
        head, _, piece = value.partition(b"\n")
        fields = orjson.loads(head)
        if fields[3] > 1:
            self._large[key] = value
        else:
            self._large.pop(key, None)
            self._add(claim, run_id, key, fields, piece)

    def _add(self, claim: int, run_id: str, key: str, fields: list[Any], value: bytes) -> None:
        """Keep a snapshot unless one of a higher offset is known. Raises ValueError for another version or a wrong checksum."""
        if fields[0] != VERSION:
            raise ValueError(f"snapshot of run {run_id!r} is of version {fields[0]}")
        _, offset, is_idle, _, checksum, stood, outbox = fields
        if zlib.crc32(value) != checksum:
            raise ValueError(f"snapshot of run {run_id!r} is damaged")
        if stood is not None:
            self._stood[Mark(*stood)] = offset
        if outbox[0]:
            self._outboxes[claim, offset] = outbox
        runs = self._state.runs
        if run_id in runs:
            stored = runs.stored(run_id)
            if stored != claim and runs.peek(run_id).folded > offset:
                self.worthless[key] = None
                return
            if stored != claim:
                self.worthless[f"{stored}/r/{run_id}"] = None
            self._drop(run_id)
        self._last_start = max(self._last_start, self._keep(runs, run_id, value, offset, claim, is_idle))
        self._state.open_mark ^= fingerprint(run_id)

    def _keep(self, runs: Runs, run_id: str, value: bytes, offset: int, claim: int, is_idle: bool) -> int:
        """Add a run and return the offset at which it began. An idle run stays packed."""
        if is_idle:
            _, workflow, _, _, _, start, *_ = orjson.loads(value)
            runs.put(run_id, workflow, value, offset, claim)
            return start
        run = runs.add(unpack(value))
        run.folded = offset
        runs.note_stored(run_id, claim)
        return run.start

    def _drop(self, run_id: str) -> None:
        self._state.runs.remove(run_id)
        self._state.open_mark ^= fingerprint(run_id)

    def state(self) -> PartitionState | None:
        """The state at the marker of the highest claim; None without a marker. Raises ValueError and Misfit."""
        log, state = self._log, self._state
        if not self._markers:
            return None
        marker: dict[str, Any] = orjson.loads(self._markers[max(self._markers)])
        if marker["version"] != VERSION:
            if marker["log"] == log.id and type(marker["offset"]) is int:
                self.told = marker["offset"]
            raise ValueError(f"version {marker['version']}")
        if marker.pop("sum") != _sum_of(marker):
            raise ValueError("the marker is damaged")
        if marker["log"] != log.id:
            raise Misfit(f"its id is {log.id}, and was {marker['log']}, so it was deleted and recreated, or copied")
        self.told = marker["offset"]
        self.marks = marks_from(marker["stood"])
        begin_at(state, marker)
        self._load_ended(marker["ended"])
        state.outbox = self._load_outbox(max(self._markers), state.offset, marker["outbox"])
        for (claim, offset), outbox in self._outboxes.items():
            if offset > state.offset:
                for target, message in self._load_outbox(claim, offset, outbox):
                    if message.offset >= state.offset:
                        state.outbox.add(target, message)
        self._join_pieces()
        wanted = (marker["runs"], marker["mark"])
        if self._last_start >= state.offset or (len(state.runs), f"{state.open_mark:032x}") != wanted:
            self._drop_others()
        if (len(state.runs), f"{state.open_mark:032x}") != wanted:
            raise ValueError(f"{len(state.runs)} open runs found, {marker['runs']} expected, or their ids differ")
        return state

    def beyond(self, offset: int) -> list[Mark]:
        """The marks of snapshots whose offset is above `offset`."""
        return [mark for mark, of_snapshot in self._stood.items() if of_snapshot > offset]

    def _load_ended(self, lengths: list[tuple[int, int]]) -> None:
        chunks: dict[int, memoryview] = {}
        for key, value in self._chunks.items():
            number = int(_rest(key)[2:])
            chunk = memoryview(value)[SUM_BYTES:]
            if len(chunk) > len(chunks.get(number, b"")) and int.from_bytes(value[:SUM_BYTES]) == zlib.crc32(chunk):
                chunks[number] = chunk
        self._chunks.clear()
        for number, length in lengths:
            if len(chunks[number]) < length:
                raise ValueError(f"chunk {number} of the ended runs is not complete")
            self._state.ended.load(number, chunks[number][:length])
            if len(chunks[number]) == length:
                self.lengths[number] = length

    def _load_outbox(self, claim: int, offset: int, outbox: Pieces) -> Outbox:
        pieces, checksum = outbox
        packed = b"".join(self._outbox[f"{claim}/{_outbox_piece(offset, number)}"] for number in range(pieces))
        if zlib.crc32(packed) != checksum:
            raise ValueError("the outbox is damaged")
        return Outbox.unpack(packed) if packed else Outbox()

    def _join_pieces(self) -> None:
        """Join the pieces of large snapshots."""
        self.worthless.update((key, None) for key in self._large if "\n" in key)
        for key in [key for key in self._large if "\n" not in key]:
            head, _, piece = self._large[key].partition(b"\n")
            fields = orjson.loads(head)
            if fields[3] > len(self._large):
                raise ValueError(f"some of the {fields[3]} pieces of {key!r} are missing")
            further = [f"{key}\n{number}" for number in range(1, fields[3])]
            claim, rest = _parts(key)
            run_id = rest[2:]
            self._add(claim, run_id, key, fields, piece + b"".join(self._large[name] for name in further))
            if key not in self.worthless:
                self.pieces[run_id] = dict.fromkeys(further)
        for further in self.pieces.values():
            for key in further:
                self.worthless.pop(key, None)

    def _drop_others(self) -> None:
        """Drop runs that began after the marker or had ended before it: a zombie, or an unfinished checkpoint, stored them."""
        state = self._state
        for run_id in state.runs.ids():
            run = state.runs.peek(run_id)
            if run.start >= state.offset or state.ended.remembers(run_id, run.now, state.memory_ms):
                self.worthless[f"{state.runs.stored(run_id)}/r/{run_id}"] = None
                self._drop(run_id)
