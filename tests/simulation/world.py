"""One seed, one world: workers, clients, foreign producers and strangers on a faulty log, until the faults end and all is quiet.

The engine runs unchanged; what is simulated is everything around it: processes, time, chance and the log. All chance comes
from the seed, each kind of fault from a source of its own, so that a failure stays when others are switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import answering
import early
import mischief
import orjson
import programs
from hosts import Host
from observe import Observer, Silent
from projecting import Projecting
from restoring import Restoring
from rules import Broken

import stepfold.worker.pool
from stepfold import Client
from stepfold.client.tail import RunViews
from stepfold.core.state import RunState
from stepfold.errors import LogUnavailable, RunNotFound, StepfoldError
from stepfold.log import Record, partition_of
from stepfold.testing.faulty import FAULTS, FaultyDriver, FaultyLog, LogObserver, Transaction
from stepfold.testing.processes import Process, ProcessLoop, current_process
from stepfold.values.codec import dumps
from stepfold.worker.host import Settings
from stepfold.worker.threads import Inline
from stepfold.worker.worker import Worker

KINDS = (
    *FAULTS,
    "kill",
    "pause",
    "leave",
    "clock",
    "set-back",
    "broker-clock",
    "rebalance",
    "outage",
    "stranger",
    "foreign",
    "transaction",
    "cancel",
    "versions",
    "reread",
    "client-kill",
    "database",
    "restore",
    "hostile",
)
"""Everything that may go wrong; each can be switched off."""
MAX_TURNS = 3000  # what spins costs real time
POLL_S = 1.0
SETTLE_S = 4 * 3600.0
ALWAYS_THE_SAME = 200  # worlds below stay as they are; the others compose branches, publish, wait for conditions or have children
STILL = ("quarantined", "expected")  # phases of runs that wait for somebody outside
_HERE = str(Path(__file__).parent).encode()
_MESSAGE = re.compile(rb'"message":"(?:[^"\\]|\\.)*",?')
_TRACEBACK = re.compile(rb'"traceback":"(?:[^"\\]|\\.)*",?')


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate. `off`: kinds of faults that shall not happen; `runs`: only these programs; `faults_s`: when the
    faults end, if not by the seed. `trace`: keep lines for people."""

    seed: int
    off: frozenset[str] = frozenset()
    runs: frozenset[int] | None = None
    faults_s: float | None = None
    trace: bool = False


@dataclass(slots=True)
class Intent:
    """What a client wants, until it is done."""

    at_s: float
    kind: str
    run: Planned
    request: str
    name: str = ""
    data: Any = None
    done: bool = False


@dataclass(slots=True)
class Planned:
    """A run that somebody is to start."""

    number: int
    id: str
    program: programs.Node
    version: str | None
    foreign: bool
    known: bool = False  # its start was acknowledged, or seen by the world
    cancelled: bool = False
    signals: set[tuple[str, Any]] = field(default_factory=set[tuple[str, Any]])


@dataclass(slots=True)
class Report:
    """How a world went."""

    seed: int
    events: int
    hash: str
    counts: Counter[str]
    failure: BaseException | None
    lines: list[str]
    runs: list[int]
    faults_s: float


class Life:
    """One life of one worker."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.worker: Worker | None = None
        self.client: Client | None = None
        self.leaving = False
        self.left = asyncio.Event()


def _stop(*_: object) -> None:
    os._exit(130)


class World(LogObserver):
    """Made and run once: `World(plan).run()`, which closes its loop. `observer` may be replaced before."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.observer: Observer = Silent()
        self.failure: BaseException | None = None
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []
        self.events = 0
        self.runs: list[Planned] = []
        self.loop = ProcessLoop()
        random = self.random = self.source("world")
        kafka = random.random() < 0.7
        self.partitions = random.choice((1, 2, 3))
        self.faults_s = plan.faults_s if plan.faults_s is not None else random.choice((2.0, 8.0, 25.0, 80.0))
        self.intensity = random.choice((0.0, 0.3, 1.0, 2.0))
        self.live_runs = random.choice((2, 5, 10_000))
        self.checkpoint_records = random.choice((20, 200, 20_000))
        self.checkpoint_s = random.choice((3.0, 30.0))
        self.concurrency = random.choice((1, 4, 100))
        self._projects = random.random() < 0.1
        self.beating = self.source("steps").random() < 0.4
        self.versions: tuple[str, ...] = ("1",)
        self.faulty = True
        self.log = FaultyLog(
            self.loop,
            self.source("log"),
            character="kafka" if kafka else "sqlite",
            partitions=self.partitions,
            rates=self._rates(random),
            observer=self,
            name="simulated",
        )
        self.lives: list[Life] = []  # the living, by slot
        self.clients: list[Process] = []
        self.graves: list[Any] = []
        self.projecting = Projecting(self)
        self.agendas: list[list[Intent]] = []
        self._births: Counter[str] = Counter()
        self._ahead_ms: dict[str, int] = {}  # by process: the most that its clock was ever ahead
        self._hash = hashlib.blake2b(digest_size=16)
        self._by_id: dict[str, Planned] = {}
        self._has_children = plan.seed >= ALWAYS_THE_SAME and plan.seed % 4 == 0
        self._plan_runs()
        self._hostile = {run.id for run in self.runs if programs.contains(run.program, "hostile")}
        self.deaths: Counter[str] = Counter()  # by run: how often it has ended its process
        self.restoring = Restoring(self)
        self.restoring.happens &= not self._has_children  # a target that is put back has lost messages that were delivered
        self.restoring.projects &= self.restoring.happens
        self.answering = answering.Answering(self)
        self._kills = self.source("kill")
        self._pauses = self.source("pause")

    def source(self, kind: str) -> Random:
        """Chance for one purpose."""
        return Random(f"{self.plan.seed}/{kind}")

    def _rates(self, random: Random) -> dict[str, float]:
        rates = {kind: self.intensity * random.choice((0.0, 0.005, 0.02)) for kind in FAULTS}
        rates.update({"gap": random.choice((0.0, 0.02, 0.3)), "prefix": random.choice((0.0, 0.05, 0.5))})
        rates.update({"unknown-offset": random.choice((0.0, 0.05)), "compacted": random.choice((0.0, 0.2, 1.0))})
        rates["crash"] *= 0.3
        return {kind: rate for kind, rate in rates.items() if kind not in self.plan.off}

    # -- running

    def run(self) -> Report:
        """To the end, or to the first promise broken."""
        asyncio.set_event_loop(None)
        watching = _Errors(self)
        logger = logging.getLogger("stepfold")
        logger.addHandler(watching)
        at_once = stepfold.worker.pool._start_at_once  # pyright: ignore[reportPrivateUsage]  # 3.11 cannot start a task at once
        stepfold.worker.pool._start_at_once = None  # pyright: ignore[reportPrivateUsage]  # so no version does
        self.loop.set_exception_handler(self._unhandled)
        on_sigint = signal.signal(signal.SIGINT, _stop)  # a KeyboardInterrupt is a run's own
        try:
            main = self.loop.create_task(self._main())
            main.add_done_callback(lambda _: self.loop.stop())
            self.loop.run_forever()
            if self.failure is None:
                self.failure = main.exception()
        except Exception as error:  # noqa: BLE001  # whatever it is belongs to this seed
            self.failure = self.failure or error
        finally:
            logger.removeHandler(watching)
            signal.signal(signal.SIGINT, on_sigint)
            stepfold.worker.pool._start_at_once = at_once  # pyright: ignore[reportPrivateUsage]  # what was replaced is put back
            self._bury()
        self.counts.update(self.log.counts)
        digest = self._hash.hexdigest()
        runs = [run.number for run in self.runs]
        return Report(self.plan.seed, self.events, digest, self.counts, self.failure, self.lines, runs, self.faults_s)

    def _bury(self) -> None:
        """Whoever still lives is killed, and whatever is left is cleaned up now; it may complain, nobody listens."""
        self.loop.set_exception_handler(lambda loop, context: None)
        for process in (*self.clients, *(life.process for life in self.lives)):
            process.kill()
        self.loop.close()

    def fail(self, error: BaseException) -> None:
        """A promise is broken: the world stands still."""
        if self.failure is None:
            self.failure = error
            self.loop.stop()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception) and not isinstance(error, StepfoldError):
            self.fail(error)

    def tell(self, what: Callable[[Observer], None]) -> None:
        """Tell the observer; what it finds ends the world, wherever it was called from."""
        if self.failure is None:
            try:
                what(self.observer)
            except Exception as error:  # noqa: BLE001  # mostly AssertionError; any other is a mistake of the observer
                self.fail(error)

    def note(self, line: str) -> None:
        """For people."""
        if self.plan.trace:
            self.lines.append(f"{self.loop.time():10.4f}  {line}")

    def happened(self, kind: str, line: str) -> None:
        """A fault."""
        self.counts[kind] += 1
        self.note(f"** {kind}: {line}")

    # -- what the log tells

    def appended(self, partition: int, record: Record, writer: str) -> None:
        self.events += 1
        value = _TRACEBACK.sub(b"", record.value) if b'"traceback":"' in record.value else record.value
        value = value.replace(_HERE, b"")
        if record.key in self._hostile:  # what they raise is told in other words by each Python, and with addresses
            value = _MESSAGE.sub(b"", value)
        self._hash.update(b"%d %d %d %b%b" % (partition, record.offset, record.timestamp, record.key.encode(), value))
        if self.plan.trace:
            self.note(f"{partition}/{record.offset} {writer}: {value.decode(errors='replace')}")
        if record.key in self._by_id and record.value.startswith(b'{"type":"started"'):
            self._by_id[record.key].known = True
        self.tell(lambda eye: eye.appended(partition, record, writer))

    def acknowledged(self, partition: int, offset: int, writer: str) -> None:
        self.tell(lambda eye: eye.acknowledged(partition, offset, writer))

    def read(self, partition: int, record: Record, reader: str) -> None:
        if self.failure is None:
            try:
                self.observer.read(partition, record, reader)
            except Exception as error:  # noqa: BLE001  # as in `tell`
                self.fail(error)

    def checkpoint(self, partition: int, items: Mapping[str, bytes | None]) -> None:
        self.tell(lambda eye: eye.checkpoint(partition, items))

    def crash(self, process: Process) -> None:
        self.died(process, "while a write was under way")

    # -- processes

    def born(self, kind: str) -> Process:
        self._births[kind] += 1
        skew = self.source(f"skew/{kind}/{self._births[kind]}")
        process = Process(self.loop, f"{kind}.{self._births[kind]}")
        self.set_clock(process, skew.choice((0, 0, -40, 900)) if "clock" not in self.plan.off else 0)
        return process

    def set_clock(self, process: Process, skew_ms: int) -> None:
        process.skew_ms = skew_ms
        self._ahead_ms[process.name] = max(skew_ms, self._ahead_ms.get(process.name, skew_ms))

    def latest(self, process: str) -> int:
        """The latest time, in ms, that a process can have seen on its clock by now."""
        return self.loop.clock() + self._ahead_ms.get(process, 0)

    def died(self, process: Process, how: str) -> None:
        if process.state == "dead":
            return
        self.happened("kill", f"{process.name} {how}")
        process.kill()
        self.tell(lambda eye: eye.died(process.name))
        if process in self.clients:
            slot = self.clients.index(process)
            self.after(self.random.random() * 3, self._start_client, slot)
            return
        for slot, life in enumerate(self.lives):
            if life.process is process:
                self.graves.append(life)
                self.after(self.random.choice((0.05, 1.0, 5.0, 25.0)) if self.faulty else 0.05, self._start_worker, slot, life)

    def everybody_dies(self, how: str, projections_come_s: float) -> None:
        """Workers, clients and projections, who all come again; the last so much later."""
        for process in [*(life.process for life in self.lives), *self.clients]:
            self.died(process, how)
        for grave in self.graves:  # whose slot another one has, and who was leaving
            if isinstance(grave, Life):
                grave.process.kill()
        self.projecting.die(projections_come_s)

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> None:
        """On nobody's side."""
        self.loop.call_later(delay_s, call, *args, context=self.log.context)

    def _ids(self, process: Process) -> Callable[[], str]:
        random = self.source(f"ids/{process.name}")
        return lambda: f"{random.getrandbits(128):032x}"

    def _start_worker(self, slot: int, after: Life | None = None) -> None:
        if after is not None and self.lives[slot] is not after:  # it has been replaced already
            return
        process = self.born(f"w{slot}")
        life = Life(process)
        if slot < len(self.lives):
            self.lives[slot] = life
        else:
            self.lives.append(life)
        if self.faulty:
            self._arm(process)
        self.note(f"-- {process.name} starts, versions {', '.join(self.versions)}")
        process.start(self._worker(life), f"{process.name}")

    def _arm(self, process: Process) -> None:
        """It will be killed or paused at some await."""
        kill = "kill" not in self.plan.off and self._kills.random() < 0.3 * self.intensity
        pause = "pause" not in self.plan.off and self._pauses.random() < 0.2 * self.intensity
        if kill:
            process.turns = 1 + int(self._kills.expovariate(1 / 2500))
            process.on_turn = lambda: self.died(process, f"at an await ({_where()})") if self.faulty else None
        elif pause:
            process.turns = 1 + int(self._pauses.expovariate(1 / 2500))
            process.on_turn = lambda: self.pause(process)

    def pause(self, process: Process) -> None:
        if not self.faulty or process.state != "running":
            return
        for_s = self._pauses.choice((0.1, 2.0, 15.0, 70.0))
        self.happened("pause", f"{process.name} for {for_s} s")
        process.pause()
        self.after(for_s, self.resume, process)

    def resume(self, process: Process) -> None:
        if process.state == "paused":
            self.note(f"-- {process.name} goes on")
            process.resume()

    async def _worker(self, life: Life) -> None:
        process = life.process
        client = life.client = self.client_of(process)
        programs.register(client, Host(self, process), self.versions)
        settings = Settings(
            concurrency=self.concurrency,
            live_runs=self.live_runs,
            checkpoint_records=self.checkpoint_records,
            checkpoint_s=self.checkpoint_s,
            max_turns=MAX_TURNS,
        )
        async with client:
            while True:
                worker = Worker(
                    client.log,
                    client.registry,
                    settings,
                    client.signal_run,
                    random=self.source(f"worker/{process.name}"),
                    ids=client.ids,
                    threads=_inline,
                )
                worker.name = process.name
                try:
                    await worker.start()
                except LogUnavailable:
                    await asyncio.sleep(1)
                else:
                    break
            life.worker = worker
            try:
                await worker.wait()
            except Exception as error:  # noqa: BLE001  # a worker that cannot go on is what is looked for
                self.fail(AssertionError(f"worker {process.name} gave up: {error!r}"))
            life.left.set()

    def client_of(self, process: Process) -> Client:
        driver = FaultyDriver(self.log, process)
        return Client(driver=driver, random=self.source(f"client/{process.name}"), ids=self._ids(process), threads=_inline)

    def leave(self, slot: int) -> None:
        """A worker leaves in good order, and another comes."""
        life = self.lives[slot]
        if life.leaving or life.worker is None or life.process.state != "running":
            return
        life.leaving = True
        self.happened("leave", life.process.name)
        self.graves.append(life)
        life.process.start(self._left(life))
        self.after(self.random.random() * 3, self._start_worker, slot, life)

    async def _left(self, life: Life) -> None:
        assert life.worker is not None
        with contextlib.suppress(LogUnavailable):
            await life.worker.stop(self.random.choice((0, 1, 10)))

    # -- clients

    def _plan_runs(self) -> None:
        random = self.source("programs")
        count = random.choice((5, 20, 60, 150))
        ids = [f"run-{self.plan.seed}-{number}" for number in range(count)]
        hostility = 0 if "hostile" in self.plan.off else self.source("hostile").choice((0.0, 0.1, 0.4))
        foreign_allowed = self.log.kafka and "foreign" not in self.plan.off
        composes = self.plan.seed >= ALWAYS_THE_SAME and self.plan.seed % 4 == 1
        waits = self.plan.seed >= ALWAYS_THE_SAME and self.plan.seed % 4 == 2
        for number, run_id in enumerate(ids):
            own = Random(f"{self.plan.seed}/program/{number}")
            program = programs.generate(own, others=ids)
            if composes:
                program = programs.composed(Random(f"{self.plan.seed}/composed/{number}"), program)
            if self.plan.seed >= ALWAYS_THE_SAME and self.plan.seed % 4 == 3:
                program = programs.telling(Random(f"{self.plan.seed}/telling/{number}"), program)
            if waits:
                program = programs.polls(Random(f"{self.plan.seed}/polls/{number}"), program)
            if self._has_children:
                program = programs.parental(Random(f"{self.plan.seed}/children/{number}"), program)
            spoils = Random(f"{self.plan.seed}/hostile/{number}")
            if spoils.random() < hostility:
                program = programs.spoiled(spoils, program)
            version = own.choice((None, None, "1", "2" if "versions" not in self.plan.off else "1"))
            run = Planned(number, run_id, program, version, foreign_allowed and own.random() < 0.3)
            if self.plan.runs is None or number in self.plan.runs:
                self.runs.append(run)
                self._by_id[run_id] = run

    def _plan_agendas(self) -> None:
        self.agendas = [[], []]
        for run in self.runs:
            own = Random(f"{self.plan.seed}/agenda/{run.number}")
            at_s = own.random() * self.faults_s * 0.7
            agenda = own.choice(self.agendas)
            if run.foreign:
                self.after(at_s, self._foreign_start, run, own.random() < 0.3)
                early.plan(self, run, at_s)
            else:
                agenda.append(Intent(at_s, "start", run, f"{run.id}/start"))
                if own.random() < 0.2:
                    own.choice(self.agendas).append(Intent(at_s + own.random() * 5, "start", run, f"{run.id}/again"))
            for index, name in enumerate(programs.waits(run.program)):
                if name == "release":
                    continue  # comes when the faults are over
                when = at_s + own.random() * min(self.faults_s, 40)
                own.choice(self.agendas).append(Intent(when, "signal", run, f"{run.id}/signal/{index}", name, index))
            if "cancel" not in self.plan.off and own.random() < 0.12:
                own.choice(self.agendas).append(
                    Intent(at_s + own.random() * 20, "cancel", run, f"{run.id}/cancel", data="enough")
                )
        for agenda in self.agendas:
            agenda.sort(key=lambda intent: intent.at_s)

    def _foreign_start(self, run: Planned, twice: bool) -> None:
        partition = partition_of(run.id, self.partitions)
        value = dumps({"type": "start", "workflow": "program", "run_id": run.id, "version": run.version, "data": run.program})
        random = self.source(f"transaction/{run.number}")
        for _ in range(2 if twice else 1):
            if "transaction" not in self.plan.off and random.random() < 0.2:
                self._start_in_transactions(random, partition, run.id.encode(), value)
            else:
                self.log.put_inbox(partition, run.id.encode(), value)
        self.happened("foreign", f"start of {run.id}")

    def _start_in_transactions(self, random: Random, *record: Any) -> None:
        """One that is given up may come before the one that is committed."""
        for commit in (False, True)[random.randrange(2) :]:
            transaction = Transaction(self.log)
            transaction.put(*record)
            self.after(random.choice((0, 0.5, 5, 20)), transaction.end, commit)

    def _start_client(self, slot: int) -> None:
        process = self.born(f"c{slot}")
        if slot < len(self.clients):
            self.clients[slot] = process
        else:
            self.clients.append(process)
        random = self.source(f"kill/{process.name}")
        if self.faulty and "client-kill" not in self.plan.off and random.random() < 0.2 * self.intensity:
            process.turns = 1 + random.randrange(1500)
            process.on_turn = lambda: self.died(process, "at an await") if self.faulty else None
        process.start(self._client(process, self.agendas[slot]), process.name)

    async def _client(self, process: Process, agenda: list[Intent]) -> None:
        client = self.client_of(process)
        self.graves.append(client)
        results: set[asyncio.Task[None]] = set()
        async with client:
            for intent in agenda:
                if intent.done:
                    continue
                await asyncio.sleep(max(0.0, intent.at_s - self.loop.time()))
                while not intent.done:
                    try:
                        await self._do(client, intent, results)
                    except LogUnavailable:
                        await asyncio.sleep(self.random.random() * 2)
            if results:
                await asyncio.wait(results)

    async def _do(self, client: Client, intent: Intent, results: set[asyncio.Task[None]]) -> None:
        run = intent.run
        if intent.kind == "start":
            run.known = True
            handle = await client.start_workflow("program", run.program, run_id=run.id, version=run.version)
            self.tell(lambda eye: eye.client_acked("start", run.id, "", run.program))
            if len(results) < 5:
                results.add(asyncio.create_task(self._result(client, handle.id)))
        elif intent.kind == "callback":
            await answering.answer(self, client, intent)
        elif not run.known:
            await asyncio.sleep(0.5)
            return
        elif intent.kind == "signal":
            run.signals.add((intent.name, intent.data))
            try:
                await client.signal_run(run.id, intent.name, dumps(intent.data), intent.request)
            except RunNotFound:
                if not await self._has_ended(client, run):
                    await asyncio.sleep(0.5)
                    return
            else:
                self.tell(lambda eye: eye.client_acked("signal", run.id, intent.request, (intent.name, intent.data)))
        else:
            run.cancelled = True
            try:
                await client.run(run.id).cancel(intent.data)
            except RunNotFound:
                if not await self._has_ended(client, run):
                    await asyncio.sleep(0.5)
                    return
            else:
                self.counts["cancel"] += 1
                self.tell(lambda eye: eye.client_acked("cancel", run.id, "", intent.data))
        intent.done = True

    async def _has_ended(self, client: Client, run: Planned) -> bool:
        found = (await RunViews(client.log).read(run.id)).run
        return found is not None and found.ended

    async def _result(self, client: Client, run_id: str) -> None:
        outcome: Any
        while True:
            try:
                outcome = await client.run(run_id).result(timeout=3600)
            except LogUnavailable:
                await asyncio.sleep(1)
                continue
            except TimeoutError:
                return
            except StepfoldError as error:
                outcome = error
            self.tell(lambda eye, o=outcome: eye.client_result(run_id, o))
            return

    # -- faults by the clock

    async def _mischief(self, kind: str, mean_s: float, do: Callable[[World, Random], None]) -> None:
        if kind in self.plan.off or not self.intensity:
            return
        random = self.source(kind)
        while True:
            await asyncio.sleep(random.expovariate(self.intensity / mean_s))
            if not self.faulty:
                return
            do(self, random)

    # -- the course of the world

    async def _main(self) -> None:
        self._plan_agendas()
        random = self.random
        if self._projects or self.restoring.projects:
            await self.projecting.start()
        self.restoring.plan()
        for slot in range(random.choice((1, 2, 2, 3))):
            self._start_worker(slot)
        for slot in range(len(self.agendas)):
            self._start_client(slot)
        doing = [asyncio.create_task(self._mischief(kind, *what)) for kind, what in mischief.ALL.items()]
        watching = asyncio.create_task(self._watch())
        while self.loop.time() < self.faults_s:
            await asyncio.sleep(min(POLL_S, self.faults_s - self.loop.time()))
            if random.random() < 0.02 and self._settled() and not self._pending():
                break
        self._heal()
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
        await self._settle()
        watching.cancel()
        await self._check()
        self.tell(lambda eye: eye.quiet(self))
        await self._end()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(5 * POLL_S if self.loop.time() < 2 * self.faults_s else 60 * POLL_S)
            self._tell_states()
            await self.projecting.tell()

    def _tell_states(self) -> None:
        for life in self.lives:
            if life.worker is None or life.process.state != "running":
                continue
            for partition, owner in life.worker.owners.items():
                state = owner.state
                if state is not None and owner.active:
                    self.tell(lambda eye, w=life.process.name, p=partition, s=state: eye.state(w, p, s))

    def _heal(self) -> None:
        """The faults end: everybody who is paused goes on, every worker was restarted, all code is there."""
        self.note("-- the faults end")
        self.faulty = False
        self.log.set_rates({})
        self.log.down_until = 0.0
        self.log.clock_ms = 0
        self.versions = ("1", "2")
        for slot, life in enumerate(self.lives):
            self.set_clock(life.process, 0)
            if life.process.state == "paused":
                self.resume(life.process)
            self.loop.call_later(0.01 * slot, self.died, life.process, "as the last of the faults", context=self.log.context)
        for process in self.clients:
            self.set_clock(process, 0)
        self.tell(lambda eye: eye.healed())
        mischief.set_back(self)
        late_s = max((intent.at_s for agenda in self.agendas for intent in agenda), default=0.0)
        released = [run for run in self.runs if "release" in programs.waits(run.program)]
        at_s = max(late_s, self.loop.time()) + 60
        self._start_agenda([Intent(at_s, "signal", run, f"{run.id}/release", "release") for run in released])

    def ask(self, run_id: str, kind: str, name: str, data: Any) -> None:
        """A client of its own asks for something now."""
        self._start_agenda([Intent(self.loop.time(), kind, self._by_id[run_id], "", name, data)])

    def _start_agenda(self, agenda: list[Intent]) -> None:
        self.agendas.append(agenda)
        self._start_client(len(self.agendas) - 1)

    def _pending(self) -> bool:
        return any(not intent.done for agenda in self.agendas for intent in agenda)

    def _settled(self, but: AbstractSet[str] = frozenset()) -> bool:
        """Whether every run that the log knows, but for these, has ended, or stands still for good."""
        for number, part in enumerate(self.log.partitions):
            if self.log.kafka and part.routed < len(part.inbox):
                return False
            owners = [
                life.worker.owners[number]
                for life in self.lives
                if life.worker is not None and life.process.state == "running" and number in life.worker.owners
            ]
            active = [owner for owner in owners if owner.active and owner.caught_up.is_set()]
            if len(active) != 1 or active[0].state is None:
                return False
            state = active[0].state
            if active[0]._told._waiting:  # pyright: ignore[reportPrivateUsage]  # there is nothing else to see
                return False
            if state.outbox.targets or (part.records and state.offset <= part.records[-1].offset):
                return False
            if any(run_id not in but and state.runs.peek(run_id).phase not in STILL for run_id in state.runs.ids()):
                return False
        return True

    async def _settle(self) -> None:
        """The neighbours of those that linger come to their ends first, whatever those do; then these are cancelled."""
        lingering = {run.id for run in self.runs if programs.lingers(run.program)}
        await self._quiet(lingering)
        self._start_agenda([Intent(self.loop.time(), "cancel", self._by_id[run], f"{run}/end") for run in sorted(lingering)])
        await self._quiet(set())

    async def _quiet(self, but: AbstractSet[str]) -> None:
        until = self.loop.time() + SETTLE_S
        quiet = 0
        while quiet < 5:
            await asyncio.sleep(5 * POLL_S)
            quiet = quiet + 1 if self._settled(but) and not self._pending() else 0
            if self.loop.time() > until:
                raise Broken(17 if but else 14, f"{SETTLE_S / 3600:g} hours after the faults had ended: {self._unsettled(but)}")

    def _unsettled(self, but: AbstractSet[str]) -> str:
        """What is waited for."""
        said = [
            f"run {run.id} on {life.process.name} waits for {sorted(run.open)} with signals {run.signals}"
            for life in self.lives
            if life.worker is not None
            for owner in life.worker.owners.values()
            if owner.active and owner.state is not None
            for run in map(owner.state.runs.peek, owner.state.runs.ids())
            if run.phase not in STILL and run.id not in but
        ]
        said += [f"{intent.kind} of {intent.run.id} is not done" for a in self.agendas for intent in a if not intent.done]
        return "; ".join(said) or "a partition has no owner that is caught up"

    async def _check(self) -> None:
        """What came of each run is what its program allows."""
        process = self.born("judge")
        driver = FaultyDriver(self.log, process)
        await driver.open()
        sent = {(name, f"from {run.id}") for run in self.runs for name in "xyz"} | {("release", None)}
        for run in self.runs:
            found = (await RunViews(driver).read(run.id)).run
            if found is None:
                raise AssertionError(f"run {run.id} is not in the log, although its start was acknowledged")
            problem = self._judge(run, found, run.signals | sent)
            if problem:
                what = f"run {run.id} of {orjson.dumps(run.program).decode()}: {problem}"
                raise Broken(19, what) if run.id in self._hostile else AssertionError(what)
        for life in self.lives:
            worker = life.worker
            if worker is None:
                continue
            busy = len(worker.pool)
            live = [run_id for owner in worker.owners.values() for run_id in owner.live]
            if busy or live:
                raise AssertionError(f"every run has ended, and {life.process.name} keeps {busy} attempts and the code of {live}")
        self._tell_states()
        await self.projecting.check()

    def _judge(self, run: Planned, found: RunState, signals: set[tuple[str, Any]]) -> str:
        if found.phase == "completed":
            if programs.allowed(run.program, found.result, run.id, signals):
                return ""
            return f"completed with {found.result}"
        if found.phase == "cancelled":
            return "" if run.cancelled else "cancelled, and nobody asked for it"
        if found.phase in programs.ends(run.program):
            return ""
        if found.phase == "failed":
            meant = programs.contains(run.program, "fail") and found.error["message"] == "meant to fail"
            return "" if meant else f"failed: {found.error}"
        if found.phase == "quarantined":
            kind = found.error["type"]
            if kind == "NonDeterminism" and programs.contains(run.program, "drift"):
                return ""
            return "" if kind == "StepInterrupted" else f"quarantined: {found.error}"  # how often it was lost, the checker counts
        return f"is {found.phase}"

    async def _end(self) -> None:
        """Everybody leaves; nothing may be left running."""
        stops = [life.process.start(life.worker.stop(1)) for life in self.lives if life.worker is not None]
        await asyncio.gather(*stops)
        await asyncio.sleep(10)
        for process in self.clients:
            if process.state == "paused":
                process.resume()
        await asyncio.sleep(2 * 3600)
        graves = set[Any]().union(*(process.remains for process in self.loop.dead))
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and task not in graves]
        if left:
            raise AssertionError(f"tasks are left when everybody has gone: {sorted(task.get_name() for task in left)}")


def _where() -> str:
    process = current_process()
    return process.name if process is not None else "its turn"


_inline = partial(Inline, delay_s=0.002)
"""A thread, which takes a moment."""


class _Errors(logging.Handler):
    """The engine logs an exception that it does not expect, and goes on: here it ends the world."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if (
            record.exc_info and record.exc_info[1] is not None and not hasattr(record, "run_id")
        ):  # what users' code raises is told
            fell = Broken(17, f"an owner or a worker fell over: {record.getMessage()}: {record.exc_info[1]!r}")
            fell.__cause__ = record.exc_info[1]
            self._world.fail(fell)
