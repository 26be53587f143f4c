"""Checkpoints: what makes a restart cost the open runs and the tail, not the whole history.

Beside each partition lie, under keys that begin with the claim of the owner that wrote them: a snapshot per open run
(`<claim>/r/<run id>`), the remembered ids of ended runs in chunks (`<claim>/e/<number>`), and a marker (`<claim>/m`),
written after everything that changed before its offset is durable.

A zombie may write at any time. What it writes is true of an earlier offset, but it may also overwrite or delete what a
newer owner relies on, or bring back a snapshot of a run that has ended. So the reader takes the marker of the highest
claim and the highest snapshot of each run, and then checks that the runs it has are those the marker speaks of: their
number and the exclusive or of their fingerprints. If not, or if anything cannot be read, it folds from the start of the
log, which is always right.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import orjson

from .errors import ConfigError, PayloadTooLarge
from .events import FORMAT
from .fold import PartitionState, Runs, RunState, fingerprint
from .log import Log

logger = logging.getLogger("stepfold.worker")

VERSION = 2
"""The format of what is stored; another one is not read."""
PIECE_BYTES = 500_000
SUM_BYTES = 4
PACK_RUNS = 200


class Checkpoint:
    """What is stored beside one partition, as the owner under `claim` keeps it up.

    A run that has not changed costs nothing here: the claim under which its snapshot is stored is kept with the run.
    """

    def __init__(self, log: Log, partition: int, is_idle: Callable[[RunState], bool]) -> None:
        self._log = log
        self._partition = partition
        self._is_idle = is_idle
        self.unsure = False  # others may have written since `load` or `look_again`, and what they wrote is not known here
        self.known = 0  # what was written before the log had this end is known
        self.in_doubt = -1  # the claim under which a write was given up: it may still land, on whatever stands there then
        self._pieces: dict[str, dict[str, None]] = {}  # run id -> the keys of what its snapshot has beyond the first piece
        self._others: dict[str, None] = {}  # markers and chunks; keys in the order in which they became known, as below
        self._superseded: dict[str, None] = {}  # keys of snapshots that the next marker makes worthless
        self.dirty: dict[str, int] = {}  # runs that changed since the last marker began -> the claim they were stored under
        self._incomplete = False
        self._kept: set[str] = set()  # chunks that the marker speaks of
        self._attempted: dict[str, int] = {}  # what was dirty when the last marker began
        self._packing: dict[str, int] = {}  # what of that is still to be packed
        self._marker = b""
        self._items: dict[str, bytes | None] = {}
        self._claim = -1
        self._prefix = ""
        self._offset = 0
        self._chunks: dict[int, int] = {}  # number -> length that is stored, under whichever claim

    async def load(self) -> PartitionState:
        """The state at the best marker, or an empty one. Raises ConfigError where the log has lost what a marker covers."""
        log, partition = self._log, self._partition
        for kept in (self._pieces, self._others, self._superseded, self.dirty, self._packing, self._attempted, self._chunks):
            kept.clear()
        self._incomplete = self.unsure = False
        _, self.known = await log.bounds(partition)
        found = self._finding()
        try:
            async for portion in log.checkpoint_load(partition):
                found.take(portion)
                await asyncio.sleep(0)
            state = found.state()
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            logger.warning("%s partition %d: checkpoint cannot be read (%s); folding from the start", log.name, partition, error)
            state = None
        start, end = await log.bounds(partition)  # not before: the owner before may still write, and a checkpoint of that
        if state is None:
            if start > 0:
                raise ConfigError(
                    f"{log.name} partition {partition}: its records below offset {start} are gone and no checkpoint covers them, "
                    f"so its runs cannot be known. Restore the log from a backup, or use a new namespace"
                )
            async for portion in log.checkpoint_load(partition):
                for key in portion:
                    (self._superseded if _rest(key).startswith("r/") else self._others)[key] = None
            return PartitionState(partition, log.partitions)
        if state.offset > end or state.offset < start:
            raise ConfigError(
                f"{log.name} partition {partition}: a checkpoint covers it up to offset {state.offset}, but the log holds only "
                f"offsets {start} to {end}: records were lost. Restore the log from a backup, or use a new namespace"
            )
        self._others.update(found.others)
        self._superseded.update(found.worthless)
        self._pieces.update(found.pieces)
        self._chunks.update(found.lengths)
        return state

    def _finding(self) -> Found:
        return Found(self._log, self._partition)

    async def look_again(self, state: PartitionState, claim: int) -> None:
        """Learn what the owners before `claim` have stored since `load`, so that nothing of it stays for ever.

        A run that one of them has stored anew is stored again, for its snapshot here may be gone. What stands under a later
        claim is not ours to judge.
        """
        lengths: dict[int, int] = {}
        async for portion in self._log.checkpoint_load(self._partition):
            for key, value in portion.items():
                writer, _, rest = key.partition("/")
                if value is None or int(writer) > claim:
                    continue
                if not rest.startswith("r/"):
                    self._others[key] = None
                    if rest.startswith("e/"):
                        number = int(rest[2:])
                        lengths[number] = max(lengths.get(number, 0), len(value) - SUM_BYTES)
                    continue
                run_id, _, piece = rest[2:].partition("\n")
                stored = state.runs.peek(run_id).stored if run_id in state.runs else -1
                if stored != int(writer):
                    self._superseded[key] = None
                    self.dirty.setdefault(run_id, stored)
                elif piece and key not in self._pieces.get(run_id, {}):
                    self._superseded[key] = None
            await asyncio.sleep(0)
        self._chunks = {number: length for number, length in self._chunks.items() if lengths.get(number, 0) >= length}
        self.unsure = False

    def touch(self, run_id: str, state: PartitionState) -> None:
        """A record of this run is about to be folded."""
        if run_id in self._packing:
            self._pack(run_id, state)
        if run_id not in self.dirty:
            run = state.runs.get(run_id)
            self.dirty[run_id] = -1 if run is None else run.stored

    def _pack(self, run_id: str, state: PartitionState) -> None:
        stored = self._packing.pop(run_id)
        if stored not in (-1, self._claim):
            self._superseded[f"{stored}/r/{run_id}"] = None
        run = state.runs.at_hand.get(run_id)
        value = state.runs.snapshot(run_id)
        state.runs.mark_stored(run_id, self._claim)
        pieces = [value[i : i + PIECE_BYTES] for i in range(0, len(value), PIECE_BYTES)]
        is_idle = state.runs.is_idle(run_id) if run is None else self._is_idle(run)
        head = orjson.dumps([VERSION, self._offset, is_idle, len(pieces), zlib.crc32(value)])
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
        """Begin a checkpoint of `state` as it is now; runs are packed before they next change."""
        if self._incomplete:  # the last one was given up: nobody knows what of it is there
            for run_id in self._attempted:
                self.touch(run_id, state)
        if self._incomplete or self.unsure:
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
        state.ended.forget(self._log.now())
        for number, chunk in state.ended.chunks.items():
            if self._chunks.get(number) != len(chunk):
                self._items[f"{self._prefix}e/{number}"] = zlib.crc32(chunk).to_bytes(SUM_BYTES) + chunk
                self._chunks[number] = len(chunk)
        self._kept = {f"e/{number}" for number in state.ended.chunks}
        self._marker = orjson.dumps(
            {
                "version": VERSION,
                "log": self._log.id,
                "offset": state.offset,
                "claim": state.claim,
                "owner": state.owner,
                "format": state.format,
                "runs": len(state.runs),
                "mark": f"{state.open_mark:032x}",
                "ended": [[number, len(chunk)] for number, chunk in state.ended.chunks.items()],
                "written_at": self._log.now(),
            }
        )

    def pack_some(self, state: PartitionState) -> bool:
        """Pack some of the runs that are due; whether there are more."""
        for run_id in list(islice(self._packing, PACK_RUNS)):
            self._pack(run_id, state)
        return bool(self._packing)

    async def commit(self) -> None:
        """Store what was packed. Once given up, nothing more may be stored under its claim: what is under way may land on it."""
        self.in_doubt = self._claim
        try:
            await self._commit()
        except PayloadTooLarge:
            self.in_doubt = -1  # nothing of that was sent
            raise
        self.in_doubt = -1

    async def _commit(self) -> None:
        """Write the packed runs, then the marker, then remove what is no longer needed."""
        items, self._items = self._items, {}
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


def _rest(key: str) -> str:
    """A key without its claim."""
    return key.partition("/")[2]


class Found:
    """What is stored, portion by portion. Everything raises on what cannot be read or does not fit."""

    def __init__(self, log: Log, partition: int) -> None:
        self._log = log
        self._state = PartitionState(partition, log.partitions)
        self._markers: dict[int, bytes] = {}
        self._chunks: dict[str, bytes] = {}
        self._large: dict[str, bytes] = {}  # snapshots of several pieces: key -> piece
        self._last_start = -1
        self.others: dict[str, None] = {}
        self.worthless: dict[str, None] = {}
        self.pieces: dict[str, dict[str, None]] = {}
        self.lengths: dict[int, int] = {}  # of the chunks that are stored as the marker says

    def take(self, portion: Mapping[str, bytes | None]) -> None:
        """The next ones; a key that comes again replaces what it said before."""
        for key, value in portion.items():
            claim, _, rest = key.partition("/")
            if rest.startswith("r/"):
                self._snapshot(int(claim), rest[2:], key, value)
            elif value is None:
                self.others.pop(key, None)
                self._markers.pop(int(claim), None)
                self._chunks.pop(key, None)
            else:
                self.others[key] = None
                if rest == "m":
                    self._markers[int(claim)] = value
                elif rest.startswith("e/"):
                    self._chunks[key] = value

    def _snapshot(self, claim: int, run_id: str, key: str, value: bytes | None) -> None:
        if value is None:
            self._large.pop(key, None)
            run = self._state.runs.peek(run_id) if run_id in self._state.runs else None
            if run is not None and run.stored == claim:
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
        """Keep the snapshot, unless there is one of a higher offset."""
        version, offset, is_idle, _, checksum = fields
        if version != VERSION or zlib.crc32(value) != checksum:
            raise ValueError(f"snapshot of run {run_id!r} is damaged")
        runs = self._state.runs
        if run_id in runs:
            known = runs.peek(run_id)
            if known.stored != claim and known.folded > offset:
                self.worthless[key] = None
                return
            if known.stored != claim:
                self.worthless[f"{known.stored}/r/{run_id}"] = None
            self._drop(run_id)
        self._last_start = max(self._last_start, self._keep(runs, run_id, value, offset, claim, is_idle))
        self._state.open_mark ^= fingerprint(run_id)

    def _keep(self, runs: Runs, run_id: str, value: bytes, offset: int, claim: int, is_idle: bool) -> int:
        """Take a run in, and say where it began. An idle one stays packed."""
        if is_idle:
            _, workflow, _, _, _, start, *_ = orjson.loads(value)
            runs.put(run_id, workflow, value, offset, claim)
            return start
        run = runs[run_id] = RunState.unpack(value)
        run.folded, run.stored = offset, claim
        return run.start

    def _drop(self, run_id: str) -> None:
        del self._state.runs[run_id]
        self._state.open_mark ^= fingerprint(run_id)

    def state(self) -> PartitionState | None:
        """The state that the best marker speaks of; None where there is none."""
        log, partition, state = self._log, self._state.partition, self._state
        if not self._markers:
            return None
        marker: dict[str, Any] = orjson.loads(self._markers[max(self._markers)])
        if marker["version"] != VERSION:
            raise ValueError(f"version {marker['version']}")
        if marker["log"] != log.id:
            raise ConfigError(
                f"{log.name} partition {partition}: its checkpoint belongs to another log (id {marker['log']}, this one is "
                f"{log.id}): the log was deleted and made again. Delete its checkpoints too, or use a new namespace"
            )
        state.offset = marker["offset"]
        state.claim = marker["claim"]
        state.owner = marker["owner"]
        state.format = marker["format"]
        state.needs_format = max(FORMAT, state.format)
        self._load_ended(marker["ended"])
        self._join_pieces()
        wanted = (marker["runs"], marker["mark"])
        if self._last_start >= state.offset or (len(state.runs), f"{state.open_mark:032x}") != wanted:
            self._drop_others()
        if (len(state.runs), f"{state.open_mark:032x}") != wanted:
            raise ValueError(f"{len(state.runs)} open runs found, {marker['runs']} expected, or others")
        return state

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

    def _join_pieces(self) -> None:
        """Put together what is stored in several pieces."""
        self.worthless.update((key, None) for key in self._large if "\n" in key)
        for key in [key for key in self._large if "\n" not in key]:
            head, _, piece = self._large[key].partition(b"\n")
            fields = orjson.loads(head)
            further = [f"{key}\n{number}" for number in range(1, fields[3])]
            claim, _, run_id = key.partition("/r/")
            self._add(int(claim), run_id, key, fields, piece + b"".join(self._large[name] for name in further))
            if key not in self.worthless:
                self.pieces[run_id] = dict.fromkeys(further)
        for further in self.pieces.values():
            for key in further:
                self.worthless.pop(key, None)

    def _drop_others(self) -> None:
        """Leave out runs that had not begun at the marker, or had ended: somebody wrote them after it, or brought them back."""
        state = self._state
        for run_id in list(state.runs):
            run = state.runs.peek(run_id)
            if run.start >= state.offset or state.ended.remembers(run_id, run.now):
                self.worthless[f"{run.stored}/r/{run_id}"] = None
                self._drop(run_id)
