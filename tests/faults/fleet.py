"""The processes of a fault test: started, killed and replaced by the test, and all gone when its block ends."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rawlog import Audit, Counts, History, StepExecution

PROGRAMS = Path(__file__).parent / "workload.py"

MAX_FAILURES = {"flaky": 2}
"""Of the programs' steps: how often they may fail, where that is not the default."""
DEADLINE_S = 120.0
"""Only a failing test waits this long."""
FINISH_S = 300.0
"""Nor does any other wait this long for all runs to end: those that kill workers take many, one after the other."""


class Fleet:
    """Workers and clients on one log; `folder` keeps what they leave behind."""

    def __init__(self, url: str, folder: Path, seed: int) -> None:
        self.url = url
        self.folder = folder
        self.kills = 0
        self.pauses = 0
        self.sent_home = 0
        self.suicides = 0
        self.random = random.Random(seed)
        self._seed = seed
        self._workers: list[subprocess.Popen[bytes]] = []
        self._all: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._explain()
        for process in self._all:
            process.kill()
        for process in self._all:
            process.wait()
            assert process.stdin is not None
            process.stdin.close()

    def _explain(self) -> None:
        """Whoever is alive says in its log what it is doing."""
        alive = [process for process in self._all if process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        print(f"seed {self._seed}, {self.kills} kills, {self.pauses} pauses, {self.sent_home} sent home")
        print(f"alive: {[process.pid for process in alive]}")
        print(f"the processes' logs are in {self.folder}")

    def _start(self, role: str, argument: object, url: str | None = None, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        log = self.folder / f"{role}-{len(self._all)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*within, sys.executable, str(PROGRAMS), role, url or self.url, str(self.folder), str(argument)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._all.append(process)
        self._logs[process.pid] = log
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has written to its log."""
        return self._logs[process.pid].read_text()

    def client(self, rate: float, *, rogues: bool = False) -> subprocess.Popen[bytes]:
        """A client that starts `rate` runs a second; with `rogues`, every tenth does what no run should."""
        return self._start("client+rogues" if rogues else "client", rate)

    def worker(self, url: str | None = None, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Another worker, with a URL of its own if that is given, and by the commands of `within`."""
        worker = self._start("worker", self.random.randrange(1_000_000), url, within)
        self._workers.append(worker)
        return worker

    def replace_the_dead(self) -> None:
        """Others for those that a rogue has killed, of what they run. Nobody else may have ended."""
        for worker in [worker for worker in self._workers if worker.poll() is not None]:
            assert worker.returncode == -signal.SIGKILL, f"worker {worker.pid} had ended by itself: {worker.returncode}"
            self._workers.remove(worker)
            self.suicides += 1
            self.worker()

    def workers(self) -> list[subprocess.Popen[bytes]]:
        """The workers that were neither killed nor told to leave, nor are paused."""
        return [*self._workers]

    def kill(self, worker: subprocess.Popen[bytes] | None = None) -> None:
        """SIGKILL one, a random one unless said; it must have been alive, if a rogue has not been quicker."""
        worker = worker or self.random.choice(self._workers)
        self._workers.remove(worker)
        assert worker.poll() in (None, -signal.SIGKILL), f"worker {worker.pid} had ended by itself"
        worker.kill()
        worker.wait()
        self.kills += 1

    def send_home(self, worker: subprocess.Popen[bytes] | None = None) -> subprocess.Popen[bytes]:
        """SIGTERM one, a random one unless said: it finishes what runs and leaves in good order."""
        worker = worker or self.random.choice(self._workers)
        self._workers.remove(worker)
        worker.terminate()
        self.sent_home += 1
        return worker

    async def gives_up(self, worker: subprocess.Popen[bytes]) -> None:
        """A worker ends by itself with an error, soon."""
        self._workers.remove(worker)
        await happens(lambda: worker.poll() is not None)
        assert worker.returncode == 1

    async def pause(self, seconds: float) -> None:
        """A random worker stands still and does not know it; meanwhile nothing else happens to it."""
        worker = self.random.choice(self._workers)
        self._workers.remove(worker)
        worker.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            worker.send_signal(signal.SIGCONT)
        self._workers.append(worker)
        self.pauses += 1

    async def finish(self, client: subprocess.Popen[bytes], history: History, audit: Audit) -> Counts:
        """Start no more runs, wait until all have ended, and judge what everybody was told and what was done.

        Raises AssertionError with what was broken, and if the client or a worker has given up.
        """
        client.terminate()

        def is_over() -> bool:
            self.replace_the_dead()
            return not audit.unfinished(self.acknowledged()) and client.poll() is not None

        await until(is_over, history, audit, FINISH_S)
        assert client.returncode == 0
        self.replace_the_dead()
        audit.check_runs(self.acknowledged(), self.outcomes(), MAX_FAILURES)
        audit.check_returned()
        audit.check_executions(self.executions())
        counts = audit.conclude()
        assert counts.ends.keys() == {"completed"}
        return counts

    # What they left behind.

    def told(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "told")

    def acknowledged(self) -> list[str]:
        """The runs whose start was acknowledged."""
        return [line["started"] for line in self.told() if "started" in line]

    def outcomes(self) -> dict[str, dict[str, Any]]:
        """By run, what the client was told of its end."""
        return {line.pop("ended"): line for line in self.told() if "ended" in line}

    def executions(self) -> list[StepExecution]:
        return [StepExecution(**line) for line in _lines(self.folder / "executions")]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole ones: the last may be in the making."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


async def happens(what: Callable[[], bool]) -> None:
    """`what` comes to hold, whether or not the log can be read meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.1)


async def until(what: Callable[[], bool], history: History, audit: Audit, patience_s: float = DEADLINE_S) -> None:
    """Read on until `what` holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    while True:
        audit.follow(await history.news(), history.partitions)
        if what():
            return
        if loop.time() > deadline:
            open_runs = [run for run in audit.runs.values() if run.end is None]
            owners = {number: partition.claims[-1] for number, partition in audit.partitions.items() if partition.claims}
            raise AssertionError(
                f"it did not happen; {len(open_runs)} runs are open: {open_runs[:5]}; owners: {owners}; {audit.counts}"
            )
        await asyncio.sleep(0.2)
