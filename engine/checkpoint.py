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

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from .errors import ConfigError
from .events import FORMAT
from .fold import PartitionState, RunState, fingerprint
from .log import Log

logger = logging.getLogger("stepfold.worker")

VERSION = 1
"""The format of what is stored; another one is not read."""
PIECE_BYTES = 500_000
DIGEST_BYTES = 8
PACK_RUNS = 200


class Checkpoint:
    """What is stored beside one partition, as the owner under `claim` keeps it up."""

    def __init__(self, log: Log, partition: int, is_idle: Callable[[RunState], bool]) -> None:
        self._log = log
        self._partition = partition
        self._is_idle = is_idle
        self._stored: dict[str, set[str]] = {}  # run id -> the keys under which it is stored
        self._others: set[str] = set()  # markers and chunks of other claims
        self.dirty: set[str] = set()  # runs that changed since the last marker began
        self._incomplete = False
        self._packing: set[str] = set()
        self._gone: set[str] = set()
        self._forgotten: set[str] = set()
        self._marker = b""
        self._items: dict[str, bytes | None] = {}
        self._prefix = ""
        self._offset = 0
        self._chunks: dict[int, int] = {}  # number -> length written under our claim

    async def load(self) -> PartitionState:
        """The state at the best marker, or an empty one. Raises ConfigError where the log has lost what a marker covers."""
        log, partition = self._log, self._partition
        items = await log.checkpoint_load(partition)
        self._stored.clear()
        self._others.clear()
        self._chunks.clear()
        self.dirty.clear()
        self._packing.clear()
        for key in items:
            rest = key.partition("/")[2]
            if rest.startswith("r/"):
                self._stored.setdefault(rest[2:].rsplit("\n", 1)[0], set()).add(key)
            else:
                self._others.add(key)
        start, end = await log.bounds(partition)
        try:
            state = _restore(items, log, partition)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            logger.warning("%s partition %d: checkpoint cannot be read (%s); folding from the start", log.name, partition, error)
            state = None
        if state is None:
            if start > 0:
                raise ConfigError(
                    f"{log.name} partition {partition}: its records below offset {start} are gone and no checkpoint covers them, "
                    f"so its runs cannot be known. Restore the log from a backup, or use a new namespace"
                )
            return PartitionState(partition, log.partitions)
        if state.offset > end or state.offset < start:
            raise ConfigError(
                f"{log.name} partition {partition}: a checkpoint covers it up to offset {state.offset}, but the log holds only "
                f"offsets {start} to {end}: records were lost. Restore the log from a backup, or use a new namespace"
            )
        return state

    def touch(self, run_id: str, state: PartitionState) -> None:
        """A record of this run is about to be folded."""
        self.dirty.add(run_id)
        if run_id in self._packing:
            self._pack(run_id, state)

    def _pack(self, run_id: str, state: PartitionState) -> None:
        self._packing.discard(run_id)
        run = state.runs.get(run_id)
        if run is None:
            return
        value = run.pack()
        key = f"{self._prefix}r/{run_id}"
        pieces = [value[i : i + PIECE_BYTES] for i in range(0, len(value), PIECE_BYTES)]
        head = orjson.dumps([VERSION, self._offset, self._is_idle(run), len(pieces), _digest(value).hex()])
        keys = self._stored.setdefault(run_id, set())
        for number, piece in enumerate(pieces):
            name = key if number == 0 else f"{key}\n{number}"
            self._items[name] = head + b"\n" + piece if number == 0 else piece
            keys.add(name)

    def begin(self, state: PartitionState, claim: int) -> None:
        """Begin a checkpoint of `state` as it is now; runs are packed before they next change."""
        if self._incomplete:  # the last one was given up: nobody knows what of it is there
            self.dirty.update(state.runs, self._stored)
            self._chunks.clear()
        self._incomplete = True
        self._prefix = f"{claim}/"
        self._offset = state.offset
        self._items = {}
        self._packing, self.dirty = self.dirty, set()
        self._gone = {run_id for run_id in self._packing if run_id not in state.runs}
        forgotten = state.ended.forget(self._log.now())
        for number, chunk in state.ended.chunks.items():
            if self._chunks.get(number) != len(chunk):
                self._items[f"{self._prefix}e/{number}"] = _digest(chunk) + chunk
                self._chunks[number] = len(chunk)
        self._forgotten = {f"/e/{number}" for number in forgotten}
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
        for run_id in [run_id for run_id, _ in zip(self._packing, range(PACK_RUNS), strict=False)]:
            self._pack(run_id, state)
        return bool(self._packing)

    async def commit(self) -> None:
        """Write the packed runs, then the marker, then remove what is no longer needed."""
        items, self._items = self._items, {}
        if items:
            await self._log.checkpoint_put(self._partition, items)
        marker = f"{self._prefix}m"
        await self._log.checkpoint_put(self._partition, {marker: self._marker})
        gone: dict[str, bytes | None] = {}
        for run_id in self._gone:
            for key in self._stored.pop(run_id, ()):
                gone[key] = None
        for key in items:
            if "/r/" in key:
                run_id = key.partition("/r/")[2].rsplit("\n", 1)[0]
                for old in [old for old in self._stored.get(run_id, ()) if old not in items]:
                    self._stored[run_id].discard(old)
                    gone[old] = None
        written = {key.partition("/")[2] for key in items}
        for key in list(self._others):
            rest = key.partition("/")[2]
            if key != marker and key not in items and (rest == "m" or rest in written or f"/{rest}" in self._forgotten):
                gone[key] = None
                self._others.discard(key)
        self._others.update(key for key in items if "/e/" in key)
        self._others.add(marker)
        if gone:
            await self._log.checkpoint_put(self._partition, gone)
        self._incomplete = False


def _digest(value: bytes | bytearray) -> bytes:
    return hashlib.blake2b(value, digest_size=DIGEST_BYTES).digest()


def _restore(items: Mapping[str, bytes], log: Log, partition: int) -> PartitionState | None:
    """The state that the best marker speaks of; None where there is none. Raises on what cannot be read or does not fit."""
    markers = sorted((int(key.partition("/")[0]), value) for key, value in items.items() if key.partition("/")[2] == "m")
    if not markers:
        return None
    marker: dict[str, Any] = orjson.loads(markers[-1][1])
    if marker["version"] != VERSION:
        raise ValueError(f"version {marker['version']}")
    if marker["log"] != log.id:
        raise ConfigError(
            f"{log.name} partition {partition}: its checkpoint belongs to another log (id {marker['log']}, this one is "
            f"{log.id}): the log was deleted and made again. Delete its checkpoints too, or use a new namespace"
        )
    state = PartitionState(partition, log.partitions)
    state.offset = marker["offset"]
    state.claim = marker["claim"]
    state.owner = marker["owner"]
    state.format = marker["format"]
    state.needs_format = max(FORMAT, state.format)
    chunks: dict[int, bytes] = {}
    best: dict[str, tuple[int, str, list[Any], bytes]] = {}
    for key, value in items.items():
        rest = key.partition("/")[2]
        if rest.startswith("e/"):
            number = int(rest[2:])
            chunk = value[DIGEST_BYTES:]
            if len(chunk) > len(chunks.get(number, b"")) and value[:DIGEST_BYTES] == _digest(chunk):
                chunks[number] = chunk
        elif rest.startswith("r/") and "\n" not in rest:
            head, _, piece = value.partition(b"\n")
            fields = orjson.loads(head)
            run_id = rest[2:]
            if run_id not in best or fields[1] > best[run_id][0]:
                best[run_id] = (fields[1], key, fields, piece)
    for number, length in marker["ended"]:
        if len(chunks[number]) < length:
            raise ValueError(f"chunk {number} of the ended runs is not complete")
        state.ended.load(number, chunks[number][:length])
    for run_id, (offset, key, fields, piece) in best.items():
        value = piece + b"".join(items[f"{key}\n{number}"] for number in range(1, fields[3]))
        if fields[0] != VERSION or _digest(value).hex() != fields[4]:
            raise ValueError(f"snapshot of run {run_id!r} is damaged")
        run = RunState.unpack(value)
        if run.start >= state.offset or state.ended.remembers(run_id, run.now):
            continue
        run.folded = offset
        run.idle = fields[2]
        state.runs[run_id] = run
        state.open_mark ^= fingerprint(run_id)
    if len(state.runs) != marker["runs"] or f"{state.open_mark:032x}" != marker["mark"]:
        raise ValueError(f"{len(state.runs)} open runs found, {marker['runs']} expected, or others")
    return state
