"""`stepfold demo`: an order through a failing step, a sleep, a signal, parallel steps and the death of its worker.

This process starts workers, sends the signal and kills one worker; all that it shows comes from the log. Each worker is the
command `stepfold worker`, as users start it. Steps write their effects to a file; the demo counts these and compares the counts
with the history.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from ..client.client import Client
from ..client.tail import follow
from ..client.view import RunHistory
from ..core.fold import PartitionState, fold
from ..log import CLAIM_KEY
from ..operations.line import Line
from .dev import PORT, local_kafka, start_worker, stop_worker
from .output import Text, console, remark, show, table
from .picture import event_line, history_table, run_picture, since
from .problems import Exit, Problem
from .target import connected, end_as_with_ctrl_c, load, run_async, until_first
from .web import address, bound, http_app, serve_http

if TYPE_CHECKING:
    from ..http.guard import Guard

APP = "stepfold.cli.demo_app:client"
EFFECTS = "STEPFOLD_DEMO_EFFECTS"
RUN_ID = "order-42"
PATIENCE_S = 60
STEPS = ("reserve", "charge", "parcel/pack", "parcel/label", "parcel/invoice", "ship")


def demo(
    kafka: Annotated[bool, typer.Option("--kafka", help="On a real Kafka broker, started here (stepfold\\[broker]).")] = False,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Also in the browser, until Ctrl-C (stepfold\\[web]).")] = False,
) -> None:
    """Watch an order survive a failing step and the SIGKILL of its worker. Ends by itself, with 0 if all checks passed."""
    end_as_with_ctrl_c()
    make_app = http_app() if dashboard else None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stepfold-demo-")))
        url = f"sqlite:///{folder / 'demo.db'}"
        if kafka:
            # Kafka notices a dead worker when its session times out: here after 3 s, by default after 10.
            url = stack.enter_context(local_kafka("demo", "?session_timeout_s=3"))
        performance = Performance(url, folder, on_kafka=kafka)
        try:
            run_async(performance.perform() if make_app is None else _in_browser(performance, make_app))
        except TimeoutError:
            raise Problem(f"the demo did not end within {PATIENCE_S} s; {performance.last_words()}", Exit.NO) from None
        finally:
            performance.clear_away()
        if not performance.held():
            raise Problem("some checks failed; see above", Exit.NO)
        remark("in the browser (stepfold[web]): stepfold demo --dashboard; your own workflows: stepfold dev module:client")


async def _in_browser(performance: Performance, make_app: Callable[..., Guard]) -> None:
    """Run and review the demo with the dashboard, and serve the dashboard until Ctrl-C or a failed check."""
    with bound("127.0.0.1", PORT, or_any=True) as listening:
        async with connected(Client(performance.url), may_create=True) as client:
            client.registry = load(APP).registry

            async def play() -> None:
                remark(f"dashboard {address(listening)}/runs/{RUN_ID} (the run begins in a moment)")
                await performance.perform()
                performance.clear_away()
                if await asyncio.to_thread(performance.held):
                    remark(f"the dashboard stays until Ctrl-C: {address(listening)}/runs/{RUN_ID}")
                    await asyncio.Event().wait()

            await until_first(play(), serve_http(make_app(client), listening))


class Performance:
    """One run of the demo: its workers, its workflow run, and the events that this process has seen."""

    def __init__(self, url: str, folder: Path, *, on_kafka: bool) -> None:
        self.url = url
        self.on_kafka = on_kafka
        self.client = Client(url)
        self.effects = folder / "effects.jsonl"
        self.effects.touch()
        self.export = folder / f"{RUN_ID}.jsonl"
        self.order = {"order_id": "42", "items": ["lamp", "book"]}
        self.out = console()
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.logs = {name: folder / f"worker-{name}.log" for name in "AB"}
        self.killed: str | None = None
        self.began_before_kill: Counter[str] = Counter()
        self.done_before_kill: Counter[str] = Counter()
        self.history: RunHistory | None = None  # the run's, once it has begun
        self.owner: str | None = None
        self.begun_at = 0
        self._letters: dict[str, str] = {}  # by worker
        self._live: Live | None = None
        self._held: bool | None = None  # of the review

    # -- the performance

    async def perform(self) -> None:
        """Run the demo from the first worker to the end of the run. Raises TimeoutError, LogUnavailable and Problem."""
        async with connected(self.client, may_create=True), asyncio.timeout(PATIENCE_S):
            self.begun_at = self.client.log.now()
            if self.out.is_terminal:
                self._live = Live(get_renderable=self.stage, console=self.out, refresh_per_second=8, transient=True)
                self._live.start()
            try:
                for name, log in self.logs.items():
                    self.workers[name] = start_worker(APP, self.url, output=log, env={EFFECTS: str(self.effects)})
                pids = " and ".join(f"{name} (process {worker.pid})" for name, worker in self.workers.items())
                self.say(f"workers {pids} on {self.client.log.name}")
                await until_first(self.play(), self.watch_over_workers())
            finally:
                if self._live is not None:
                    self._live.stop()
            from stepfold.projections.audit import export_run

            await export_run(self.client.log, RUN_ID, self.export)

    async def play(self) -> None:
        """Wait until each worker owns partitions, start the run, and follow it to its end."""
        while not (owners := await self.owners()):
            await asyncio.sleep(0.05)
        shares = ", ".join(f"{name} {owners.count(name)}" for name in sorted(set(owners)))
        self.say(f"they share its {self.client.log.partitions} partitions: {shares}")
        await self.start()
        await self.follow()

    async def owners(self) -> list[str]:
        """The owner of each partition; empty while a partition has no owner or a worker owns none."""
        log = self.client.log
        found: list[str] = []
        for partition in range(log.partitions):
            state = PartitionState(partition, log.partitions)
            for record in await log.find(partition, (CLAIM_KEY,)):
                fold(state, record)
            if state.owner is None:
                return []
            found.append(self.name_of(state.owner))
        return found if set(found) == set(self.workers) else []

    async def start(self) -> None:
        """Start the run: with a plain Kafka record if there is an inbox, else with the client."""
        if not self.on_kafka:
            await self.client.start_workflow("order", self.order, run_id=RUN_ID)
            self.say(f"started {RUN_ID}: from now on it will finish, whatever happens to a worker")
            return
        from stepfold.drivers import KafkaDriver

        log = self.client.log
        assert isinstance(log, KafkaDriver)
        request = {"type": "start", "workflow": "order", "run_id": RUN_ID, "data": self.order}
        script = Path(__file__).with_name("demo_producer.py")
        producer = await asyncio.create_subprocess_exec(
            sys.executable, script, log.bootstrap, log.namespace.inbox, json.dumps(request)
        )
        if await producer.wait() != 0:
            raise Problem("the Kafka producer could not publish the start", Exit.LOG)
        self.say(f"a plain Kafka producer, without stepfold, wrote a start to {log.namespace.inbox}")

    async def follow(self) -> None:
        """Read each event as it comes, and act at the scripted points."""
        async with aclosing(follow(self.client.log, RUN_ID, wait_for_start=True)) as all_news:
            async for event, self.history, owner, _ in all_news:
                if owner != self.owner and self.killed and owner is not None:
                    self.say(f"worker {self.name_of(owner)} has taken over: it reads the history and continues from there")
                self.owner = owner
                if event is None:
                    continue
                if self._live is None:
                    show(event_line(event, self.begun_at))
                if event.type == "wait-started":
                    await self.approve()
                if self.killed is None and {"parcel/label", "parcel/invoice"} <= self.completed():
                    self.kill()

    async def approve(self) -> None:
        await asyncio.sleep(0.8)
        self.say('somebody approves: stepfold run signal order-42 approve --data \'{"by": "Ada"}\'')
        await self.client.run(RUN_ID).signal("approve", {"by": "Ada"})

    def kill(self) -> None:
        """Send SIGKILL to the worker that is packing."""
        effects = self.read_effects()
        packing = next(effect["pid"] for effect in effects if effect["step"] == "parcel/pack")
        name = next(name for name, worker in self.workers.items() if worker.pid == packing)
        self.killed = name
        self.workers[name].send_signal(signal.SIGKILL)
        self.workers[name].wait()
        for effect in self.read_effects():
            (self.began_before_kill if effect["what"] == "began" else self.done_before_kill)[effect["step"]] += 1
        self.say(f"kill -9 {packing}: worker {name} is dead in the middle of parcel/pack", "bold red")

    async def watch_over_workers(self) -> None:
        """Raises Problem when a worker ends that the demo did not kill; else never returns."""
        while True:
            for name, worker in self.workers.items():
                if worker.poll() is not None and name != self.killed:
                    raise Problem(f"worker {name} ended with {worker.returncode}; {self.last_words()}", Exit.NO)
            await asyncio.sleep(0.2)

    def clear_away(self) -> None:
        """Stop all workers."""
        for worker in self.workers.values():
            stop_worker(worker)

    # -- observations

    def completed(self) -> set[str]:
        return {step.step_id for step in self.history.story() if step.became == "done"} if self.history else set()

    def read_effects(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.effects.read_bytes().splitlines()]

    def name_of(self, owner: str) -> str:
        """The letter of the worker with this name. Each worker logs the name under which it has joined."""
        if owner not in self._letters:
            joined = f"joined as worker {owner}\n"
            self._letters[owner] = next((name for name, log in self.logs.items() if joined in log.read_text()), "?")
        return self._letters[owner]

    def say(self, text: str, style: str = "bold") -> None:
        """Print a line about what this process does."""
        line = Text.assemble((since(self.client.log.now() - self.begun_at), "dim"), ("▸ " + text, style))
        if self._live is not None:
            self.out.print(line)
        else:
            show(line)

    def stage(self) -> RenderableType:
        """The picture that a terminal shows during the demo."""
        grid = Table.grid(padding=(0, 3, 0, 0))
        cells: list[Text] = []
        for name, worker in self.workers.items():
            if name == self.killed:
                state = ("killed by SIGKILL", "red")
            elif self.owner is not None and self.name_of(self.owner) == name:
                state = ("owns the run", "green")
            else:
                state = ("stands by", "dim")
            cells.append(Text.assemble((f"worker {name} ", "bold"), (f"{worker.pid} ", "dim"), state))
        grid.add_row(*cells)
        if self.history is None or self.history.run is None:
            return Group("", grid)
        picture = run_picture(self.history.run, self.history.story(), self.owner, now_ms=self.client.log.now())
        return Group("", grid, "", picture)

    def last_words(self) -> str:
        """The end of the workers' logs."""
        lines = [line for log in self.logs.values() if log.exists() for line in log.read_text().splitlines()]
        return f"the workers' last words: {' | '.join(lines[-4:])}" if lines else "the workers wrote nothing"

    # -- afterwards

    def held(self) -> bool:
        """Print what happened, once. Returns whether all promises held."""
        if self._held is None:
            self._held = self._review()
        return self._held

    def _review(self) -> bool:
        history = self.history
        assert history is not None and history.run is not None
        lines = history.story()
        show("", run_picture(history.run, lines, None, now_ms=0))
        show("", Text("The history, as any program can read it", "bold underline"), history_table(history.events), "")
        checks = [(history.run.phase == "completed", f"the run {history.run.phase}"), *self.count_effects(lines), *self.replay()]
        show("")
        for held, text in checks:
            show(Text.assemble(("✔ ", "green") if held else ("✗ ", "red"), text))
        return all(held for held, _ in checks)

    def count_effects(self, lines: Sequence[Line]) -> list[tuple[bool, str]]:
        """Print how often each step ran, by the file of effects. Returns the promises, each with whether it held."""
        effects = self.read_effects()
        began = Counter(effect["step"] for effect in effects if effect["what"] == "began")
        done = Counter(effect["step"] for effect in effects if effect["what"] == "done")
        in_history = {line.step_id: line for line in lines}
        made = table(
            "step", "began", "finished", "attempts in the history", "", right=("began", "finished", "attempts in the history")
        )
        for step_id in STEPS:
            step = in_history[step_id]
            failed = step.attempts - step.lost - 1
            why = ", ".join(
                words
                for count, words in ((failed, "failed once and was tried again"), (step.lost, "lost once with its worker"))
                if count
            )
            made.add_row(step_id, str(began[step_id]), str(done[step_id]), str(step.attempts), Text(why, "dim"))
        show(Text("How often each step ran, counted in the file that the steps write to", "bold underline"), made)
        before = self.done_before_kill
        packers = [effect["pid"] for effect in effects if effect["step"] == "parcel/pack"]
        return [
            (all(done[step_id] == 1 for step_id in STEPS), "every step did its work once"),
            (
                bool(before) and all(began[step_id] == self.began_before_kill[step_id] for step_id in before),
                f"none of the {len(before)} steps that had finished before the kill ran again",
            ),
            (
                all(began[step_id] <= in_history[step_id].attempts for step_id in STEPS),
                "the history records every attempt that began, including the one that died",
            ),
            (
                len(set(packers)) == 2,
                f"parcel/pack began in process {packers[0]}, which was killed, and finished in {packers[-1]}",
            ),
        ]

    def replay(self) -> list[tuple[bool, str]]:
        """Verify the exported history and replay it in this process, which has executed no step."""
        from stepfold.projections.audit import replay, verify

        verification = verify(self.export)
        replayed = replay(self.export, load(APP))
        head = (verification.head or "")[:12]
        return [
            (verification.ok, f"exported {verification.records} records, chained by SHA-256 up to {head}…: nothing was altered"),
            (replayed.ok, "replaying the exported history gives the same steps and the same result"),
        ]
