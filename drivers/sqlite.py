"""The log in one SQLite file, shared by any number of processes on one machine.

An append is durable when it returns: WAL with `synchronous=FULL`. With `durability="normal"` a commit is not synced by
itself: the last transactions before a power failure or a crash of the operating system may be lost (and the acknowledged
ones among them), not by the end of a process, and the file stays sound.

    event loop ──▶ queue ──▶ writer thread: all that waits becomes one transaction (group commit), one call back with all acks
                             between commits it looks for what other processes have committed, while somebody waits for it
    event loop ──▶ executor of one thread: fetch, find, load checkpoints

The event loop knows where the partitions end from the commits and those looks, so a reader at the end costs nothing. Members
are locked files beside the file (`_members`), the file itself is `_sqlite_file`. POSIX only, on a local file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from stepfold.errors import ConfigError, LogUnavailable, StepfoldError
from stepfold.log import Ack, Entry, Record

from ._local import MAX_VALUE_BYTES, LocalReader, NoExtras, Tail, check_entries, wall_clock_ms
from ._members import Roll, assign
from ._sqlite_file import Queries, Row, Writer

T = TypeVar("T")

MAX_PARTITIONS = 256

LOOK_FIRST_S, LOOK_LAST_S = 0.002, 0.05
"""How often to look for news of other processes: right after there was some, and after a while of silence."""

ROLL_CALL_S = 0.1
"""How often a member looks who else is alive."""

GIVE_WAY_S = 0.002
"""See `_Session._give_way`."""

RECENT_BYTES = 1_000_000
"""How much of what it has just appended a process keeps in memory for its readers, for each partition."""

CLOSE_S = 15.0
"""How long `close` waits for what is under way."""


class SQLiteDriver:
    """`Log` in the SQLite file at `path`, which is made if its directory exists.

    `partitions` counts for a new file only (4 if left out) and must otherwise be what the file has.
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
        if path in ("", ":memory:"):
            raise ConfigError(f"{self.name} names no file; give a path such as sqlite:///orders.db, or use memory://")
        if durability not in ("full", "normal"):
            raise ConfigError(f'{self.name}: durability is "full" or "normal", not {durability!r}')
        if partitions is not None and not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(f"{self.name}: partitions is a number from 1 to {MAX_PARTITIONS}, not {partitions}")
        self._path = Path(os.path.realpath(path))
        self._durability = durability
        self._wanted_partitions = partitions
        self._clock = clock
        self._id = ""
        self._partitions = 0
        self._session: _Session | None = None

    @classmethod
    def from_url(cls, url: str) -> SQLiteDriver:
        """`sqlite:///relative.db` or `sqlite:////absolute.db`, with `?durability=full|normal` and `&partitions=N`."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        durability, partitions = options.pop("durability", "full"), options.pop("partitions", None)
        if parts.scheme != "sqlite" or parts.netloc or parts.fragment or options:
            wrong = f"unknown option {next(iter(options))}" if options else "a path follows three slashes"
            raise ConfigError(f"{url!r}: {wrong}; expected sqlite:///orders.db[?durability=normal&partitions=4]")
        if partitions is not None and not partitions.isdecimal():
            raise ConfigError(f"{url!r}: partitions is a number, not {partitions!r}")
        return cls(
            unquote(parts.path[1:]),
            durability=cast(Literal["full", "normal"], durability),
            partitions=None if partitions is None else int(partitions),
        )

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
            session = _Session(self.name, self._path)
            self._id, self._partitions = await session.start(
                lambda: Writer(self._path, synchronous=self._durability, partitions=self._wanted_partitions, clock=self._clock)
            )
            self._session = session

    async def close(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _opened(self, partition: int = 0) -> _Session:
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
        return LocalReader(self._read, partition, offset)

    async def _read(self, reader: LocalReader, limit: int, wait: float | None) -> Sequence[Record]:
        while True:
            session = self._opened(reader.partition)
            tail = session.tails[reader.partition]
            if reader.position >= tail.end and (wait != 0 or session.is_watching):
                if wait == 0:
                    await asyncio.sleep(0)  # a loop of reads must let others run
                else:
                    await session.beyond(tail, reader, wait)
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

    async def join(self, member: str) -> _Membership:
        return await self._opened().join(member)

    async def checkpoint_put(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        await self._opened(partition).checkpoint(partition, items)

    async def checkpoint_load(self, partition: int, prefix: str = "") -> Mapping[str, bytes]:
        session = self._opened(partition)
        return await session.ask(session.queries.checkpoints, partition, prefix)

    def inbox(self) -> None:
        return None

    def step_ext(self, step: Any) -> NoExtras:
        return NoExtras("sqlite:///", "step.ext")

    def ctx_ext(self, run_id: str) -> NoExtras:
        return NoExtras("sqlite:///", "ctx.ext")


class _Recent:
    """What this process has just appended to one partition, so that its own readers at the end need not ask the file."""

    def __init__(self) -> None:
        self._blocks: deque[tuple[Sequence[Row], int]] = deque()
        self._end = 0
        self._bytes = 0

    def add(self, rows: Sequence[Row]) -> None:
        if rows[0][0] != self._end:  # others have appended in between
            self._blocks.clear()
            self._bytes = 0
        size = sum(len(value) for _, _, _, value in rows)
        self._blocks.append((rows, size))
        self._end = rows[-1][0] + 1
        self._bytes += size
        while self._bytes > RECENT_BYTES:
            _, size = self._blocks.popleft()
            self._bytes -= size

    def since(self, start: int, limit: int) -> list[Record]:
        """Up to `limit` records from `start` on; nothing where it does not have that one any more."""
        if not self._blocks or not self._blocks[0][0][0][0] <= start < self._end:
            return []
        found: list[Sequence[Row]] = []
        for rows, _ in reversed(self._blocks):
            first = rows[0][0]
            found.append(rows[max(start - first, 0) :])
            if first <= start:
                break
        return [Record._make(row) for row in islice(chain.from_iterable(reversed(found)), limit)]


class _Append(NamedTuple):
    partition: int
    entries: Sequence[Entry]
    answer: asyncio.Future[Any]


class _Checkpoint(NamedTuple):
    partition: int
    items: Mapping[str, bytes | None]
    answer: asyncio.Future[Any]


class _Call(NamedTuple):
    """Something for the writer thread that is no transaction."""

    function: Callable[[], object]
    answer: asyncio.Future[Any]


_Work = _Append | _Checkpoint | _Call


class _Session:
    """From one `open` to its `close`. What begins with `_on_` runs on the writer thread, everything else on the event loop."""

    def __init__(self, name: str, path: Path) -> None:
        self.tails: list[Tail] = []
        self.recent: list[_Recent] = []
        self.queries = Queries(path)
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{name} reader")
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()  # None only wakes the thread
        self._closing = False
        self._ended: asyncio.Future[Any] = self._loop.create_future()

        self._watchers = 0
        self._asleep = False
        self._look_s = LOOK_FIRST_S

        self._roll = Roll(path.with_name(path.name + ".members"))
        self._members: dict[str, _Membership] = {}
        self._shares: Mapping[str, frozenset[int]] = {}
        self._roll_call_due = 0.0

        self._under_way = 0
        self._giving_way: asyncio.TimerHandle | None = None

    async def start(self, make: Callable[[], Writer]) -> tuple[str, int]:
        """Returns the log's id and its number of partitions."""
        started: asyncio.Future[Any] = self._loop.create_future()
        threading.Thread(target=self._on_thread, args=(make, started), name=f"{self._name} writer", daemon=True).start()
        try:
            log_id, ends = await started
        except BaseException:
            self._stop()
            raise
        self.tails = [Tail(self._loop, end) for end in ends]
        self.recent = [_Recent() for _ in ends]
        return log_id, len(ends)

    async def close(self) -> None:
        self._stop()
        closed = self._executor.submit(self.queries.close)
        self._executor.shutdown(wait=False)
        _, unfinished = await asyncio.wait([self._ended, asyncio.wrap_future(closed)], timeout=CLOSE_S)
        for tail in self.tails:
            tail.close(f"{self._name} was closed")
        for member in [*self._members]:
            self._members.pop(member).wake()
        if self._giving_way is not None:
            self._giving_way.cancel()
        if unfinished:
            raise LogUnavailable(f"{self._name} was still busy {CLOSE_S:g} s after it was told to close")

    def _stop(self) -> None:
        self._closing = True
        self._queue.put(None)

    # Questions and answers.

    async def append(self, partition: int, entries: Sequence[Entry]) -> Sequence[Ack]:
        return await self._submit(_Append(partition, entries, self._loop.create_future()))

    async def checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        await self._submit(_Checkpoint(partition, items, self._loop.create_future()))

    def _submit(self, work: _Work) -> asyncio.Future[Any]:
        self._begin()
        self._queue.put(work)
        return work.answer

    async def ask(self, question: Callable[..., T], *arguments: object) -> T:
        """Put a question to the file."""
        self._begin()
        try:
            return await self._loop.run_in_executor(self._executor, question, *arguments)
        finally:
            self._under_way -= 1

    def _begin(self) -> None:
        self._under_way += 1
        if self._giving_way is None:
            self._giving_way = self._loop.call_later(GIVE_WAY_S, self._give_way)

    def _give_way(self) -> None:
        """Let the threads have the interpreter while something is under way.

        A busy event loop releases the interpreter's lock only for the moment of a `select` that does not wait, and takes it
        again before a thread that waits for it has woken. Beside such a loop 3 commits a second were measured without this
        and 400 with it.
        """
        self._giving_way = None
        if self._under_way:
            time.sleep(0)
            self._giving_way = self._loop.call_later(GIVE_WAY_S, self._give_way)

    def _answer(self, works: Sequence[_Work], answers: Sequence[object]) -> None:
        self._under_way -= len(works)
        for work, answer in zip(works, answers, strict=True):
            if not work.answer.done():
                work.answer.set_result(answer)

    def _committed(
        self, works: Sequence[_Work], answers: Sequence[object], rows: Mapping[int, Sequence[Row]], ends: Sequence[int]
    ) -> None:
        self._answer(works, answers)  # first: whoever appended may move its reader past what it wrote
        for partition, of_partition in rows.items():
            self.recent[partition].add(of_partition)
        self._advance(ends)

    def _refuse(self, works: Sequence[_Work], error: StepfoldError) -> None:
        self._under_way -= len(works)
        for work in works:
            if not work.answer.done():
                work.answer.set_exception(type(error)(*error.args))

    # News of other processes.

    @property
    def is_watching(self) -> bool:
        """Whether the known ends are kept up to date with other processes."""
        return self._watchers > 0

    async def beyond(self, tail: Tail, reader: LocalReader, wait: float | None) -> None:
        self._watchers += 1
        if self._asleep:
            self._queue.put(None)
        try:
            await tail.beyond(reader, wait)
        finally:
            self._watchers -= 1

    def _advance(self, ends: Sequence[int]) -> None:
        for tail, end in zip(self.tails, ends, strict=True):
            tail.advance(end)

    def _lose(self, error: StepfoldError) -> None:
        for tail in self.tails:
            tail.fail(str(error))

    # Members.

    async def join(self, member: str) -> _Membership:
        name = uuid.uuid4().hex
        membership = self._members[name] = _Membership(self, name, member)
        try:
            await self._submit(_Call(lambda: self._roll.enter(name, member), self._loop.create_future()))
            await self._submit(_Call(self._on_roll_call, self._loop.create_future()))
        except BaseException:
            self._leave(name)
            raise
        return membership

    async def leave(self, name: str) -> None:
        if name in self._members:
            await self._leave(name)

    def _leave(self, name: str) -> asyncio.Future[Any]:
        self._members.pop(name).wake()
        return self._submit(_Call(lambda: self._roll.leave(name), self._loop.create_future()))

    def share(self, name: str) -> frozenset[int] | None:
        """What a member should own; None if it is none."""
        return self._shares.get(name, frozenset()) if name in self._members else None

    def _share(self, live: Sequence[str]) -> None:
        self._shares = assign(live, len(self.tails))
        for member in self._members.values():
            member.wake()

    # The writer thread.

    def _on_thread(self, make: Callable[[], Writer], started: asyncio.Future[Any]) -> None:
        try:
            writer = make()
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller of `open`
            self._on_tell(_resolve, started, None, error)
            return
        self._on_tell(_resolve, started, (writer.id, tuple(writer.ends)))
        try:
            while not (self._closing and self._queue.empty()):
                self._on_turn(writer, self._on_wait())
        finally:
            self._roll.close()
            writer.close()
            self._on_tell(_resolve, self._ended, None)

    def _on_wait(self) -> list[_Work]:
        """What is to be done; nothing once it is time to look around."""
        self._asleep = not self._watchers
        wait = self._look_s if self._watchers else ROLL_CALL_S if self._members else None
        try:
            found = [self._queue.get(timeout=wait)]
        except queue.Empty:
            return []
        finally:
            if self._asleep:
                self._asleep, self._look_s = False, LOOK_FIRST_S
        found += [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        return [work for work in found if work is not None]

    def _on_turn(self, writer: Writer, works: Sequence[_Work]) -> None:
        changes = [work for work in works if not isinstance(work, _Call)]
        if changes:
            self._on_change(writer, changes)
        elif self._watchers:
            self._on_look(writer)
        for work in works:
            if isinstance(work, _Call):
                self._on_call(work)
        if self._members and time.monotonic() >= self._roll_call_due:
            with contextlib.suppress(OSError):  # a member that joins is told; who is one tries again
                self._on_roll_call()

    def _on_change(self, writer: Writer, works: Sequence[_Append | _Checkpoint]) -> None:
        """One transaction for all of them."""
        self._look_s = LOOK_FIRST_S
        try:
            acks, rows = writer.commit(
                [(work.partition, work.entries) for work in works if isinstance(work, _Append)],
                [(work.partition, work.items) for work in works if isinstance(work, _Checkpoint)],
            )
        except StepfoldError as error:
            self._on_tell(self._refuse, works, error)
        else:
            each = iter(acks)
            answers = [next(each) if isinstance(work, _Append) else None for work in works]
            self._on_tell(self._committed, works, answers, rows, tuple(writer.ends))

    def _on_look(self, writer: Writer) -> None:
        before = writer.ends
        try:
            writer.look()
        except StepfoldError as error:
            self._on_tell(self._lose, error)
        if writer.ends != before:
            self._look_s = LOOK_FIRST_S
            self._on_tell(self._advance, tuple(writer.ends))
        else:
            self._look_s = min(self._look_s * 1.5, LOOK_LAST_S)

    def _on_call(self, call: _Call) -> None:
        try:
            call.function()
        except OSError as error:
            self._on_tell(self._refuse, [call], ConfigError(f"{self._name} needs a directory for its members: {error}"))
        else:
            self._on_tell(self._answer, [call], [None])

    def _on_roll_call(self) -> None:
        self._roll_call_due = time.monotonic() + ROLL_CALL_S
        self._on_tell(self._share, self._roll.live())

    def _on_tell(self, callback: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed without closing the log; nobody is left to be told
            self._loop.call_soon_threadsafe(callback, *arguments)


class _Membership:
    def __init__(self, session: _Session, name: str, member: str) -> None:
        self._session = session
        self._name = name
        self._member = member
        self._answered: frozenset[int] | None = None
        self._changed = asyncio.Event()

    def wake(self) -> None:
        self._changed.set()

    async def assigned(self) -> frozenset[int]:
        while (share := self._session.share(self._name)) is not None:
            if share != self._answered:
                self._answered = share
                return share
            self._changed.clear()
            await self._changed.wait()
        raise LogUnavailable(f"member {self._member!r} has left; join again")

    async def leave(self) -> None:
        await self._session.leave(self._name)


def _resolve(future: asyncio.Future[Any], result: object, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
