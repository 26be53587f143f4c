"""One session of a SQLite log, from `open` to `close`: its two threads, and the event loop's knowledge of the file.

    event loop: commits the appends of one turn as one transaction at its end (group commit), as long as a commit is quick
               ──▶ queue ──▶ writer thread: commits, if commits are slow or another process has the file; checkpoints;
                             between them it looks for commits of other processes, while a reader waits for them
               ──▶ executor of one thread: fetch, find, load checkpoints

A synced commit takes 0.2 to 0.5 ms on a solid-state disk. Handing it to a thread and back takes 0.1 ms, and more beside a busy
event loop, because both need the interpreter. So the loop itself commits unless most commits take longer than `QUICK_S`.

This module contains no SQL, and holds no state that another process could change. Methods that begin with `_on_` run on the
writer thread and reach the event loop only by `_on_tell`. All others run on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from stepfold.errors import ConfigError, LogUnavailable, StepfoldError
from stepfold.log import Ack, Entry, Record, record_of

from .._local import LocalReader, LocalTail, copy_of
from .file import Locked, PutBack, Queries, Row, Writer
from .members import Roll, assign

T = TypeVar("T")

LOOK_FIRST_S, LOOK_LAST_S = 0.002, 0.05
"""How often to look for commits of other processes: right after one, and after a while without any."""

ROLL_CALL_S = 0.1
"""How often a member checks which others are alive."""

QUICK_S = 0.005
"""The loop commits itself if most commits take at most this long."""

TRY_AGAIN = 100
"""The number of turns with slow commits after which the loop tries a commit itself again."""

GIVE_WAY_S = 0.002
"""How often the loop yields to the threads. See `Session._give_way`."""

RECENT_BYTES = 1_000_000
"""How many bytes of its latest appends a process keeps in memory for its readers, per partition."""

CLOSE_S = 15.0
"""How long `close` waits for work under way; longer than the writer waits for a locked file."""


class _Append(NamedTuple):
    partition: int
    entries: Sequence[Entry]
    answer: asyncio.Future[Any]


class _Checkpoint(NamedTuple):
    partition: int
    items: Mapping[str, bytes | None]
    answer: asyncio.Future[Any]


class _Call(NamedTuple):
    """A call on the writer thread, outside a transaction."""

    function: Callable[[], object]
    answer: asyncio.Future[Any]


_Work = _Append | _Checkpoint | _Call


class Session:
    def __init__(self, name: str, path: Path) -> None:
        self.queries = Queries(path)
        self.tails: list[LocalTail] = []
        self.recent: list[Recent] = []
        self.copies = 0  # how often an older copy has replaced the file
        self.put_back = ""  # the message about the last time
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"{name} reader")
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()  # None only wakes the thread
        self._closing = False
        self._ended: asyncio.Future[Any] = self._loop.create_future()

        self._writer: Writer | None = None
        self._using_writer = threading.Lock()
        self._turn: list[_Append] = []
        self._changing = 0
        self._slow_share = 0.0
        self._slow_turns = 0

        self._with_threads = 0  # requests that the threads have not yet answered
        self._giving_way: asyncio.TimerHandle | None = None

        self._watchers = 0
        self._asleep = False
        self._look_s = LOOK_FIRST_S
        self._looked_at = 0.0  # when the loop last committed: a commit finds what others have appended before

        self._roll = Roll(path.with_name(f"{path.name}.members"))
        self._roll_call_due = 0.0
        self._members: dict[str, SQLiteMembership] = {}
        self._shares: Mapping[str, frozenset[int]] = {}

    async def start(self, make: Callable[[], Writer]) -> tuple[str, int]:
        """Open the file by `make`, on the thread that will use it. Returns the log's id and its number of partitions."""
        started: asyncio.Future[Any] = self._loop.create_future()
        threading.Thread(target=self._on_thread, args=(make, started), name=f"{self._name} writer", daemon=True).start()
        try:
            writer = self._writer = await started
        except BaseException:
            self._stop()
            raise
        self.queries.file = writer.file
        self.tails = [LocalTail(self._loop, end) for end in writer.ends]
        self.recent = [Recent() for _ in writer.ends]
        return writer.id, writer.partitions

    async def close(self) -> None:
        self._commit_turn()
        self._stop()
        closed = self._executor.submit(self.queries.close)
        self._executor.shutdown(wait=False)
        _, unfinished = await asyncio.wait([self._ended, asyncio.wrap_future(closed)], timeout=CLOSE_S)
        for tail in self.tails:
            tail.close(f"{self._name} was closed")
        for member in [*self._members]:
            self._members.pop(member).changed.set()
        if self._giving_way is not None:
            self._giving_way.cancel()
        if unfinished:
            raise LogUnavailable(f"{self._name} was still busy {CLOSE_S:g} s after it was told to close")

    def _stop(self) -> None:
        self._closing = True
        self._queue.put(None)

    # Calls and commits.

    def append(self, partition: int, entries: Sequence[Entry]) -> asyncio.Future[Sequence[Ack]]:
        self._check_open()
        work = _Append(partition, entries, self._loop.create_future())
        self._turn.append(work)
        if len(self._turn) == 1:
            self._loop.call_soon(self._commit_turn)
        return work.answer

    def _commit_turn(self) -> None:
        """Commit the appends of this turn: here if commits are quick and no change is queued, else on the writer thread."""
        works, self._turn = self._turn, []
        if not works:
            return
        here = self._changing == 0 and self._is_quick()
        self._changing += len(works)
        if not (here and self._commit_here(works)):
            for work in works:
                self._hand_over(work)

    def _is_quick(self) -> bool:
        """Whether most commits are quick. After `TRY_AGAIN` slow turns this is true once, to try again."""
        if self._slow_share >= 0.5:
            self._slow_turns += 1
            if self._slow_turns == TRY_AGAIN:
                self._slow_turns, self._slow_share = 0, 0.25
        return self._slow_share < 0.5

    def _commit_here(self, works: Sequence[_Append]) -> bool:
        """Commit without waiting for a lock. Returns False if another process holds it."""
        writer = self._writer
        if writer is None or self._closing or not self._using_writer.acquire(blocking=False):
            return False
        began = time.perf_counter()
        try:
            acks, rows = writer.commit([(work.partition, work.entries) for work in works], wait=False)
        except Locked:
            return False
        except Exception as error:  # noqa: BLE001 - the appending tasks get any error
            self._refuse(works, self._on_unavailable(error))
            if isinstance(error, PutBack):
                self._start_over(tuple(writer.ends), error)
        else:
            self._slow_share += ((time.perf_counter() - began > QUICK_S) - self._slow_share) / 16
            self._looked_at = time.monotonic()
            self._committed(works, acks, rows, tuple(writer.ends))
        finally:
            self._using_writer.release()
        return True

    def checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> asyncio.Future[None]:
        return self._submit(_Checkpoint(partition, items, self._loop.create_future()))

    def _call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        return self._submit(_Call(function, self._loop.create_future()))

    def _submit(self, work: _Work) -> asyncio.Future[Any]:
        self._check_open()
        self._changing += not isinstance(work, _Call)
        self._hand_over(work)
        return work.answer

    def _hand_over(self, work: _Work) -> None:
        """Give work to the writer thread."""
        self._queue.put(work)
        self._wait_for_threads()
        work.answer.add_done_callback(self._thread_done)

    async def ask(self, question: Callable[..., T], *arguments: object) -> T:
        """Run one of `queries` in the executor."""
        self._check_open()
        self._wait_for_threads()
        try:
            return await self._loop.run_in_executor(self._executor, question, *arguments)
        finally:
            self._thread_done()

    def _check_open(self) -> None:
        if self._closing:
            raise LogUnavailable(f"{self._name} was closed")

    def _wait_for_threads(self) -> None:
        self._with_threads += 1
        if self._giving_way is None:
            self._giving_way = self._loop.call_later(GIVE_WAY_S, self._give_way)

    def _thread_done(self, _answer: object = None) -> None:
        self._with_threads -= 1

    def _give_way(self) -> None:
        """Let the threads have the interpreter while they have work.

        A busy event loop releases the interpreter's lock only for a `select` that does not wait, and takes it again before a
        waiting thread has woken. Yielding does not make the usual append faster; it limits the stalls. The worst p99 in nine
        rounds beside such a loop was 33 ms with it and 829 ms without.
        """
        self._giving_way = None
        if self._with_threads:
            time.sleep(0)
            self._giving_way = self._loop.call_later(GIVE_WAY_S, self._give_way)

    def _answer(self, works: Sequence[_Work], answers: Sequence[object]) -> None:
        self._done(works)
        for work, answer in zip(works, answers, strict=True):
            if not work.answer.done():
                work.answer.set_result(answer)

    def _done(self, works: Sequence[_Work]) -> None:
        self._changing -= sum(not isinstance(work, _Call) for work in works)

    def _refuse(self, works: Sequence[_Work], error: StepfoldError) -> None:
        self._done(works)
        for work in works:
            if not work.answer.done():
                work.answer.set_exception(copy_of(error))

    # News of the partitions.

    def _committed(
        self, works: Sequence[_Work], answers: Sequence[object], rows: Mapping[int, Sequence[Row]], ends: Sequence[int]
    ) -> None:
        self._answer(works, answers)  # before `_advance`: appending tasks may then move their readers past their own records
        for partition, of_partition in rows.items():
            self.recent[partition].add(of_partition)
        self._advance(ends)

    def _advance(self, ends: Sequence[int]) -> None:
        for tail, end in zip(self.tails, ends, strict=True):
            tail.advance(end)

    def _start_over(self, ends: Sequence[int], error: PutBack) -> None:
        """Called when an older copy has replaced the file: raise the error in all waiting readers."""
        self.put_back = str(error)
        self.copies += 1
        self.recent = [Recent() for _ in ends]
        for tail, end in zip(self.tails, ends, strict=True):
            tail.end = end
            tail.fail(error)

    def _lose(self, error: StepfoldError) -> None:
        for tail in self.tails:
            tail.fail(error)

    @property
    def is_watching(self) -> bool:
        """Whether the writer thread looks for commits of other processes."""
        return self._watchers > 0

    async def beyond(self, reader: LocalReader, wait: float | None) -> None:
        """Wait until the reader's partition ends beyond its position, at most `wait` seconds (None: without limit)."""
        self._watchers += 1
        if self._asleep:
            self._queue.put(None)
        try:
            await self.tails[reader.partition].beyond(reader, wait)
        finally:
            self._watchers -= 1

    # Members.

    async def join(self, member: str) -> SQLiteMembership:
        name = uuid.uuid4().hex
        membership = self._members[name] = SQLiteMembership(self, name, member)
        try:
            await self._call(lambda: self._roll.enter(name, member))
            await self._call(self._on_roll_call)
        except BaseException:
            self._forget(name)
            raise
        return membership

    async def is_live(self, member: str) -> bool:
        return await self._call(lambda: self._roll.is_live(member))

    async def retire(self, name: str) -> None:
        if name in self._members and not self._closing:
            await self._call(lambda: self._roll.retire(name))
            await self._call(self._on_roll_call)

    async def leave(self, name: str) -> None:
        left = self._forget(name)
        if left is not None:
            await left

    def _forget(self, name: str) -> asyncio.Future[None] | None:
        """Remove a member. While the session closes, the writer thread removes all members at its end."""
        if name not in self._members or self._closing:
            return None
        self._members.pop(name).changed.set()
        return self._call(lambda: self._roll.leave(name))

    def share(self, name: str) -> frozenset[int] | None:
        """The partitions that a member should own; None if it has left."""
        return self._shares.get(name, frozenset()) if name in self._members else None

    def _share_out(self, members: Sequence[str]) -> None:
        self._shares = assign(members, len(self.tails))
        for member in self._members.values():
            member.changed.set()

    # The writer thread.

    def _on_thread(self, make: Callable[[], Writer], started: asyncio.Future[Any]) -> None:
        try:
            writer = make()
        except Exception as error:  # noqa: BLE001 - the caller of `open` gets any error
            self._on_tell(_resolve, started, None, error)
            return
        self._on_tell(_resolve, started, writer)
        try:
            while not (self._closing and self._queue.empty()):
                self._on_turn(writer, self._on_wait())
        finally:
            with contextlib.suppress(OSError, StepfoldError):
                self._roll.close()
                writer.close()
            self._on_tell(_resolve, self._ended, None)

    def _on_wait(self) -> list[_Work]:
        """Wait for work; returns an empty list when it is time to look at the file or the members."""
        self._asleep = not self._watchers  # before `wait` is computed: a later reader then wakes the thread
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
        with self._using_writer:
            if changes:
                self._on_change(writer, changes)
            elif self._watchers and time.monotonic() - self._looked_at >= LOOK_FIRST_S:
                self._on_look(writer)
        for work in works:
            if isinstance(work, _Call):
                self._on_call(work)
        if self._members and time.monotonic() >= self._roll_call_due:
            with contextlib.suppress(OSError):  # a joining member gets the error; the next check raises it again
                self._on_roll_call()

    def _on_change(self, writer: Writer, works: Sequence[_Append | _Checkpoint]) -> None:
        """Commit all works in one transaction."""
        self._look_s = LOOK_FIRST_S
        try:
            acks, rows = writer.commit(
                [(work.partition, work.entries) for work in works if isinstance(work, _Append)],
                [(work.partition, work.items) for work in works if isinstance(work, _Checkpoint)],
            )
        except Exception as error:  # noqa: BLE001 - no error may end the thread
            self._on_tell(self._refuse, works, self._on_unavailable(error))
            if isinstance(error, PutBack):
                self._on_tell(self._start_over, tuple(writer.ends), error)
        else:
            each = iter(acks)
            answers = [next(each) if isinstance(work, _Append) else None for work in works]
            self._on_tell(self._committed, works, answers, rows, tuple(writer.ends))

    def _on_look(self, writer: Writer) -> None:
        before = writer.ends
        try:
            writer.look()
        except PutBack as error:
            self._on_tell(self._start_over, tuple(writer.ends), error)
            return
        except Exception as error:  # noqa: BLE001 - the waiting readers get any error
            self._on_tell(self._lose, self._on_unavailable(error))
        if writer.ends != before:
            self._look_s = LOOK_FIRST_S
            self._on_tell(self._advance, tuple(writer.ends))
        else:
            self._look_s = min(self._look_s * 1.5, LOOK_LAST_S)

    def _on_unavailable(self, error: Exception) -> StepfoldError:
        return error if isinstance(error, StepfoldError) else LogUnavailable(f"{self._name}: {error!r}")

    def _on_call(self, call: _Call) -> None:
        try:
            answer = call.function()
        except OSError as error:
            self._on_tell(self._refuse, [call], ConfigError(f"{self._name} needs a directory for its members: {error}"))
        else:
            self._on_tell(self._answer, [call], [answer])

    def _on_roll_call(self) -> None:
        self._roll_call_due = time.monotonic() + ROLL_CALL_S
        self._on_tell(self._share_out, self._roll.sharing())

    def _on_tell(self, callback: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed without closing the log, so no task is left to inform
            self._loop.call_soon_threadsafe(callback, *arguments)


class SQLiteMembership:
    """The port's `Membership`. `changed` is set when its share may have changed."""

    def __init__(self, session: Session, name: str, member: str) -> None:
        self.changed = asyncio.Event()
        self._session = session
        self._name = name
        self._member = member
        self._answered: frozenset[int] | None = None

    async def assigned(self) -> frozenset[int]:
        while (share := self._session.share(self._name)) is not None:
            if share != self._answered:
                self._answered = share
                return share
            self.changed.clear()
            await self.changed.wait()
        raise LogUnavailable(f"member {self._member!r} has left; join again")

    async def is_live(self, member: str) -> bool:
        return await self._session.is_live(member)

    async def retire(self) -> None:
        await self._session.retire(self._name)

    async def leave(self) -> None:
        await self._session.leave(self._name)


class Recent:
    """The latest appends of this process to one partition, so that readers at the end need not ask the file.

    Saves CPU (a third, with 64 writers and 4 readers), not time.
    """

    def __init__(self) -> None:
        self._blocks: deque[tuple[Sequence[Row], int]] = deque()
        self._end = 0
        self._bytes = 0

    def add(self, rows: Sequence[Row]) -> None:
        if rows[0][0] != self._end:  # other processes have appended in between
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
        """Up to `limit` records from `start` on; empty if that record is not kept."""
        if not self._blocks or not self._blocks[0][0][0][0] <= start < self._end:
            return []
        found: list[Sequence[Row]] = []
        for rows, _ in reversed(self._blocks):
            first = rows[0][0]
            found.append(rows[max(start - first, 0) :])
            if first <= start:
                break
        return [record_of(row) for row in islice(chain.from_iterable(reversed(found)), limit)]


def _resolve(future: asyncio.Future[Any], result: object, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
