"""`stepfold worker --processes N`: a process that starts N workers, and restarts each that dies.

Each worker is the command for one worker, in a process of its own. Its stdin is a socket to this process. The worker writes to
the socket once it serves, and ends when the socket closes, however this process ended. This process imports no user code and
opens no log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from random import Random

from ..values.backoff import Pauses
from ..worker.stopping import told_by_signals
from .problems import Exit

logger = logging.getLogger("stepfold.worker")

RESTART_S = (0.5, 30.0)


def name_of(number: int) -> str:
    """The name of a process in log lines."""
    return f"worker-{number}"


async def keep_running(options: Sequence[str], processes: int) -> int:
    """Run `stepfold worker` with these options in `processes` processes, until told to stop. Returns the exit code.

    If a worker cannot start and none serves, all end.
    """
    return await _Processes(options).run(processes)


class _Processes:
    def __init__(self, options: Sequence[str]) -> None:
        self._options = options
        self._running: dict[int, Process] = {}
        self._serving: set[int] = set()
        self._one_serves = asyncio.Event()
        self._over = asyncio.Event()
        self._signal = signal.SIGTERM
        self._code = 0

    async def run(self, processes: int) -> int:
        """Start one worker first, and the others when it serves: a cause that prevents one from starting is then logged once."""
        with told_by_signals(self._told, at_once=self._kill):
            async with asyncio.TaskGroup() as keeping:
                keeping.create_task(self._keep(1))
                await self._one_serves.wait()
                for number in range(2, processes + 1):
                    keeping.create_task(self._keep(number))
        return self._code

    def _told(self, number: int) -> None:
        if not self._over.is_set():
            self._signal = signal.Signals(number)
            self._end(Exit.OK)

    def _end(self, code: int) -> None:
        self._code = code
        self._over.set()
        self._one_serves.set()
        self._send(self._signal)

    def _kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in self._running.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    # asyncio's `send_signal` may reap the process: the task that waits for it then gets no exit code
                    os.kill(process.pid, number)

    async def _keep(self, number: int) -> None:
        """Run one process, and restart it whenever it ends by itself."""
        loop = asyncio.get_running_loop()
        backoff = Pauses(*RESTART_S, Random())
        while not self._over.is_set():
            began = loop.time()
            try:
                code, served = await self._one(number)
            except OSError as error:  # no memory, too many processes or files
                logger.warning("%s cannot be started: %s", name_of(number), error)
                code, served = Exit.LOG, False
            if self._over.is_set():
                if served:
                    self._code = self._code or (code if code >= 0 else 128 - code)
                return
            if code > 0 and not served and not self._serving:
                self._end(code)  # the worker has printed the reason
                return
            if loop.time() - began > RESTART_S[1]:
                backoff.reset()
            pause_s = backoff.next_s()
            how = f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
            logger.warning("%s %s; a new one starts in %.1f s", name_of(number), how, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), pause_s)

    async def _one(self, number: int) -> tuple[int, bool]:
        """Start one process and wait for its end. Returns its exit code, and whether it has served."""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            with theirs:
                process = self._running[number] = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "stepfold.cli.app", "worker", f"--number={number}", *self._options),
                    stdin=theirs.fileno(),
                    start_new_session=True,
                )
            if self._over.is_set():  # told to stop while the process started
                self._send(self._signal)
            said = asyncio.create_task(asyncio.get_running_loop().sock_recv(ours, 1))
            ended = asyncio.create_task(process.wait())
            await asyncio.wait([said, ended], return_when=asyncio.FIRST_COMPLETED)
            served = said.done() and said.result() != b""
            if served:
                self._serving.add(number)
                self._one_serves.set()
            code = await ended
            self._serving.discard(number)
            said.cancel()  # a child of the worker may still hold its stdin
            await asyncio.wait([said])
            return code, served
