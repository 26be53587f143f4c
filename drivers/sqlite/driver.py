"""The log in one SQLite file, shared by any number of processes on one machine.

An append is durable when it returns: WAL with `synchronous=FULL`. With `durability="normal"` single commits are not synced: a
power failure or a crash of the operating system may lose the last transactions, even acknowledged ones. In both modes the end of
a process, even by SIGKILL, loses nothing, and the file stays valid.

The work is in `session` (threads, group commit, commits of other processes), `file` (tables and queries) and `members` (living
members, by locked files beside the log). POSIX only, on a local file system.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from stepfold.errors import ConfigError, LogUnavailable
from stepfold.log import Ack, Entry, InboxRecord, Record

from .._local import MAX_VALUE_BYTES, LocalReader, NoExtras, check_entries, check_real_time, wall_clock_ms
from .file import Writer
from .session import Session, SQLiteMembership

MAX_PARTITIONS = 256


class SQLiteDriver:
    """`Log` in the SQLite file at `path`. Makes the file if its directory exists.

    `partitions` counts for a new file only (default 4). An existing file keeps its number; a warning says so if they differ.
    That is not an error, so that a command with a plain URL may make the file first.
    """

    max_value_bytes = MAX_VALUE_BYTES

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["full", "normal"] = "full",
        partitions: int | None = None,
        clock: Callable[[], int] = wall_clock_ms,
    ) -> None:
        path = os.fspath(path)
        self.name = f"sqlite:///{path}"
        if path == ":memory:" or not Path(path).name or "\0" in path:
            raise ConfigError(f"{self.name} names no file; give a path such as sqlite:///orders.db, or use memory://")
        if durability not in ("full", "normal"):
            raise ConfigError(f'{self.name}: durability must be "full" or "normal", not {durability!r}')
        if partitions is not None and not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(f"{self.name}: partitions must be a number from 1 to {MAX_PARTITIONS}, not {partitions}")
        self._given_path = path
        self._path = Path(os.path.realpath(path))
        self._durability = durability
        self._wanted_partitions = partitions
        self._clock = clock
        self._id = ""
        self._partitions = 0
        self._session: Session | None = None

    @classmethod
    def from_url(cls, url: str) -> SQLiteDriver:
        """Parses `sqlite:///relative.db` or `sqlite:////absolute.db`, with `?durability=full|normal` and `&partitions=N`."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"{url!r} is not a URL: {error}") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        durability, partitions = options.pop("durability", "full"), options.pop("partitions", None)
        if parts.scheme != "sqlite" or parts.netloc or parts.fragment or options:
            wrong = f"unknown option {next(iter(options))!r}" if options else "a path follows three slashes"
            raise ConfigError(f"{url!r}: {wrong}; expected sqlite:///orders.db[?durability=normal&partitions=4]")
        if partitions is not None and (not partitions.isdecimal() or len(partitions) > 9):
            raise ConfigError(f"{url!r}: partitions must be a number, not {partitions!r}")
        return cls(
            unquote(parts.path[1:], errors="surrogateescape"),
            durability=cast(Literal["full", "normal"], durability),
            partitions=None if partitions is None else int(partitions),
        )

    @property
    def url(self) -> str:
        partitions = {} if self._wanted_partitions is None else {"partitions": self._wanted_partitions}
        options = urlencode(({} if self._durability == "full" else {"durability": self._durability}) | partitions)
        path = quote(self._given_path, errors="surrogateescape")
        return f"sqlite:///{path}?{options}" if options else f"sqlite:///{path}"

    @property
    def id(self) -> str:
        return self._id

    @property
    def partitions(self) -> int:
        return self._partitions

    def now(self) -> int:
        return self._clock()

    async def open(self) -> None:
        if self._session is None:
            check_real_time(asyncio.get_running_loop(), self.name)
            session = Session(self.name, self._path)
            self._id, self._partitions = await session.start(
                lambda: Writer(self._path, synchronous=self._durability, partitions=self._wanted_partitions, clock=self._clock)
            )
            self._session = session

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _opened(self, partition: int = 0) -> Session:
        if self._session is None:
            raise LogUnavailable(f"{self.name} is not open; open it, or enter its client, first")
        if not 0 <= partition < self._partitions:
            raise ConfigError(f"{self.name} has {self._partitions} partitions; there is no partition {partition}")
        return self._session

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        session = self._opened(partition)
        check_entries(self.name, entries)
        return await session.append(partition, entries) if entries else ()

    async def bounds(self, partition: int) -> tuple[int, int]:
        session = self._opened(partition)
        return 0, await session.ask(session.queries.end, partition)

    def reader(self, partition: int, offset: int) -> LocalReader:
        reader = LocalReader(self._read, partition, offset)
        if self._session is not None:
            reader.copy = self._session.copies
        return reader

    async def _read(self, reader: LocalReader, limit: int, wait: float | None) -> Sequence[Record]:
        while True:
            session = self._opened(reader.partition)
            tail = session.tails[reader.partition]
            if reader.copy != session.copies:
                if reader.copy is not None:
                    raise LogUnavailable(session.put_back or f"{self.name} was closed and opened again")
                reader.copy = session.copies
            if reader.position >= tail.end and (wait != 0 or session.is_watching):
                if wait == 0:
                    await asyncio.sleep(0)  # tasks that read in a loop must let others run
                else:
                    await session.beyond(reader, wait)
                if reader.position >= tail.end:
                    return ()
            start, end = reader.position, tail.end
            records = session.recent[reader.partition].since(start, limit)
            if not records:
                records = await session.ask(session.queries.fetch, reader.partition, start, limit)
            if records:
                tail.advance(records[-1].offset + 1)
            if (records and records[-1].offset != start + len(records) - 1) or (not records and start < end):
                raise LogUnavailable(f"{self.name} no longer has all records of partition {reader.partition} from {start} on")
            if reader.position > start:
                records = [record for record in records if record.offset >= reader.position]
            if records:
                reader.position = records[-1].offset + 1
            if records or wait is not None:
                return records

    async def find(self, partition: int, keys: Iterable[str], start: int = 0) -> Sequence[Record]:
        session = self._opened(partition)
        return await session.ask(session.queries.find, partition, keys, start)

    async def dead_letter(self, record: InboxRecord, reason: str) -> None:
        """Does nothing: without an inbox there is no producer to inform, and the fold's refusal is logged."""

    async def join(self, member: str) -> SQLiteMembership:
        return await self._opened().join(member)

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        await self._opened(partition).checkpoint(partition, items)

    async def checkpoint_load(self, partition: int) -> AsyncIterator[Mapping[str, bytes | None]]:
        session = self._opened(partition)
        after: str | None = None
        while portion := await session.ask(session.queries.checkpoints, partition, after):
            yield portion
            after = next(reversed(portion))

    def step_ext(self, step: Any) -> NoExtras:
        return NoExtras("sqlite:///", "step.ext")

    def ctx_ext(self, run_id: str) -> NoExtras:
        return NoExtras("sqlite:///", "ctx.ext")
