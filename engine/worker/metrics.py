"""The figures of one worker for Prometheus, served over HTTP: counts of what it has folded, and what it holds now.

These counts are of this process; the counts of a server are of the log. Two workers in one process have two objects and two
ports, and share nothing. The labels of a worker are the workflows that it knows, the partitions that it has, and fixed words.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ..core.lifecycle import ENDS
from ..core.state import RunState
from ..errors import ConfigError, StepfoldError
from ..exposition import OTHERS
from ..log import Log, time_at
from ..operations import COUNTED
from .observer import Note, Observer
from .owner.figures import Figures
from .worker import Worker

PATIENCE_S = 3.0
"""How long an answer waits for the worker's loop, and a look for the log. Without them the answer has the counts alone."""
TICK_S = 0.5
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400)
"""The upper bounds of the buckets of all durations."""
_RAN = ("steps_completed", "attempts_failed")
_BOUNDS_MS = tuple(bound * 1000 for bound in SECONDS)


class Durations:
    """A histogram of durations."""

    __slots__ = ("counts", "sum_ms")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_MS) + 1)
        self.sum_ms = 0.0

    def take(self, ms: float) -> None:
        self.counts[bisect_left(_BOUNDS_MS, ms)] += 1
        self.sum_ms += ms

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        bounds = [*map(str, map(float, SECONDS)), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(self.counts), strict=True)), self.sum_ms / 1000)


class _OfWorkflow:
    """The counts of one workflow: records by type, ends of attempts, last failures of steps; durations of runs and attempts."""

    __slots__ = ("attempts", "failed_steps", "queued", "ran", "records", "runs")

    def __init__(self) -> None:
        self.records: Counter[str] = Counter()
        self.attempts: Counter[str | None] = Counter()  # by the words of `Base.counted_as`
        self.failed_steps = 0
        self.runs = Durations()
        self.queued = Durations()
        self.ran = Durations()


class Behind(NamedTuple):
    """How far an owner is behind its partition: records that it has not folded, and how long ago the first of them came."""

    records: int
    seconds: float


class Metrics(Observer, Collector):
    """Counts the events that a worker reports, and collects its figures. `is_known` says whether the worker knows a workflow."""

    def __init__(self, is_known: Callable[[str], bool]) -> None:
        self._is_known = is_known
        self._of: dict[str, _OfWorkflow] = {}
        self._notes: Counter[Note] = Counter()
        self._lags = Durations()
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tick: asyncio.TimerHandle | None = None

    # -- told by the worker

    def folded(self, run: RunState, event: dict[str, Any]) -> None:
        of = self._of.get(run.workflow) or self._counts_of(run.workflow)
        kind: str = event["type"]
        of.records[kind] += 1
        counted = COUNTED.get(kind)
        of.attempts[counted] += 1
        if counted in _RAN:
            began = event.get("began_at", event["at"])
            of.queued.take(max(began - event.get("queued_at", began), 0))
            of.ran.take(max(event["at"] - began, 0))
            if counted == "attempts_failed" and event.get("next_at") is None:
                of.failed_steps += 1
        elif kind in ENDS:
            of.runs.take(max((run.ended_at or run.now) - run.started_at, 0))

    def noted(self, note: Note) -> None:
        self._notes[note] += 1

    def _counts_of(self, workflow: str) -> _OfWorkflow:
        return self._of.setdefault(workflow if self._is_known(workflow) else OTHERS, _OfWorkflow())

    # -- the life of the worker

    def begin(self, worker: Worker) -> None:
        """Look at this worker, from its loop, until `end`."""
        self._worker, self._loop = worker, asyncio.get_running_loop()
        self._again(self._loop.time())

    def end(self) -> None:
        self._worker = None
        if self._tick is not None:
            self._tick.cancel()

    def _again(self, due: float) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self._lags.take(max(now - due, 0) * 1000)
        self._tick = self._loop.call_at(now + TICK_S, self._again, now + TICK_S)

    # -- asked by Prometheus, in a thread

    def collect(self) -> Iterator[Metric]:
        yield from self._counted()
        worker, loop = self._worker, self._loop
        seen: list[Held] | None = None
        if worker is not None and loop is not None:
            looking = asyncio.run_coroutine_threadsafe(_look(worker), loop)
            try:
                seen = looking.result(2 * PATIENCE_S)
            except (TimeoutError, RuntimeError, asyncio.CancelledError):
                looking.cancel()
        yield from _held(worker, seen)

    def _counted(self) -> Iterator[Metric]:
        counts = sorted(self._of.items())
        for name, told, count_of in _COUNTS:
            counter = CounterMetricFamily(f"stepfold_worker_{name}", told, labels=["workflow"])
            for workflow, of in counts:
                counter.add_metric([workflow], count_of(of))
            yield counter
        for name, told, counts_of in _OUTCOMES:
            counter = CounterMetricFamily(f"stepfold_worker_{name}", told, labels=["workflow", "outcome"])
            for workflow, of in counts:
                for outcome, count in counts_of(of).items():
                    counter.add_metric([workflow, outcome], count)
            yield counter
        for name, told, durations_of in _DURATIONS:
            histogram = HistogramMetricFamily(f"stepfold_worker_{name}", told, labels=["workflow"])
            for workflow, of in counts:
                durations_of(of).add_to(histogram, [workflow])
            yield histogram
        for note, name, told in _NOTES:
            yield CounterMetricFamily(f"stepfold_worker_{name}", told, value=self._notes[note])
        lags = HistogramMetricFamily("stepfold_worker_loop_lag_seconds", "How late the event loop runs a timer.", labels=[])
        self._lags.add_to(lags, [])
        yield lags


_COUNTS: tuple[tuple[str, str, Callable[[_OfWorkflow], int]], ...] = (
    ("runs_started", "Runs that have started while this worker had their partition.", lambda of: of.records["started"]),
    ("runs_quarantined", "Runs that were quarantined.", lambda of: of.records["quarantined"]),
)
_OUTCOMES: tuple[tuple[str, str, Callable[[_OfWorkflow], dict[str, int]]], ...] = (
    ("runs_ended", "Runs that have ended.", lambda of: {end: of.records[end] for end in sorted(ENDS)}),
    (
        "steps_ended",
        "Steps that have ended with their last attempt.",
        lambda of: {"completed": of.attempts["steps_completed"], "failed": of.failed_steps},
    ),
    (
        "attempts_ended",
        "Attempts of steps that have ended; lost ones with their worker.",
        lambda of: {
            "completed": of.attempts["steps_completed"],
            "failed": of.attempts["attempts_failed"],
            "lost": of.attempts["attempts_lost"],
        },
    ),
)
_DURATIONS: tuple[tuple[str, str, Callable[[_OfWorkflow], Durations]], ...] = (
    ("run_duration_seconds", "From the start of runs to their end.", lambda of: of.runs),
    ("attempt_queue_seconds", "How long attempts waited for a slot.", lambda of: of.queued),
    ("attempt_duration_seconds", "How long the functions of attempts ran.", lambda of: of.ran),
)
_NOTES: tuple[tuple[Note, str, str], ...] = (
    ("claim", "claims", "Partitions that this worker has claimed."),
    ("claim-lost", "claims_lost", "Partitions that another worker has claimed from this one."),
    ("inbox", "inbox_requests", "Requests of the inbox that came into the history."),
    ("dead-letter", "dead_letters", "Requests that went to the dead letters."),
    ("checkpoint", "checkpoints", "Checkpoints that were written."),
)


class Held(NamedTuple):
    """A partition as its owner holds it. `behind` is None where the log did not answer; `now`: ms since 1970."""

    figures: Figures
    behind: Behind | None
    now: int


def _held(worker: Worker | None, seen: Sequence[Held] | None) -> Iterator[Metric]:
    """The gauges. `seen` is None if the loop did not answer; then partitions have no samples."""
    running = waiting = places = interruptions = held_s = 0.0
    if worker is not None:
        running, places, interruptions = worker.pool.running, worker.settings.concurrency, worker.watch.interruptions
        waiting = len(worker.pool) - running
        held_s = (worker.watch.held_up() or ("", 0.0))[1]

    def gauge(name: str, told: str, value: float) -> Metric:
        return GaugeMetricFamily(f"stepfold_worker_{name}", told, value=value)

    yield gauge("responding", "1 if the event loop of the worker answers, else 0.", int(seen is not None))
    yield gauge("attempts_running", "Attempts that hold a slot.", running)
    yield gauge("attempts_waiting", "Attempts that wait for a slot.", waiting)
    yield gauge("attempts_places", "Slots for attempts, as --concurrency says.", places)
    yield gauge("held_up_seconds", "For how long one piece of code has held the event loop.", held_s)
    interrupted = "How often the watchdog has interrupted the code of a run."
    yield CounterMetricFamily("stepfold_worker_interruptions", interrupted, value=interruptions)
    for name, told, value_of in _PARTITIONS:
        family = GaugeMetricFamily(f"stepfold_worker_{name}", told, labels=["partition"])
        for held in seen or ():
            value = value_of(held)
            if value is not None:
                family.add_metric([str(held.figures.partition)], value)
        yield family


def _checkpoint_age(held: Held) -> float | None:
    at = held.figures.checkpoint_at
    return None if at is None else (held.now - at) / 1000


_PARTITIONS: tuple[tuple[str, str, Callable[[Held], float | None]], ...] = (
    ("partition_caught_up", "1 if the partition is owned and recovered, else 0.", lambda held: int(held.figures.caught_up)),
    ("lag_records", "Records that are not folded.", lambda held: held.behind and held.behind.records),
    ("lag_seconds", "How long ago the first record came that is not folded.", lambda held: held.behind and held.behind.seconds),
    ("open_runs", "Runs that have not ended.", lambda held: held.figures.open_runs),
    ("resident_runs", "Runs whose code is in memory.", lambda held: held.figures.resident_runs),
    ("timers", "Timers that are set.", lambda held: held.figures.timers),
    ("timer_late_seconds", "For how long the next timer has been due.", lambda held: held.figures.timer_late_s),
    ("append_queue", "Records that wait to be appended.", lambda held: held.figures.append_queue),
    ("checkpoint_age_seconds", "Since this worker's last checkpoint of the partition.", _checkpoint_age),
    ("checkpoint_size_bytes", "Of the last checkpoint: the runs that had changed.", lambda held: held.figures.checkpoint_bytes),
    ("checkpoint_changes", "Records since the last checkpoint.", lambda held: held.figures.changes),
)


async def _look(worker: Worker) -> list[Held]:
    """Look at all partitions of a worker, on its loop."""
    now = worker.log.now()
    figures = [held for owner in worker.served if (held := owner.figures()) is not None]
    looks = await asyncio.gather(*(behind_of(worker.log, one) for one in figures))
    return [Held(one, behind, now) for one, behind in zip(figures, looks, strict=True)]


async def behind_of(log: Log, figures: Figures) -> Behind | None:
    """How far an owner is behind; None if the log does not answer."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            _, end = await log.bounds(figures.partition)
            if end <= figures.offset:
                return Behind(0, 0.0)
            first = await time_at(log, figures.partition, figures.offset)
    except (StepfoldError, TimeoutError):
        return None
    return Behind(end - figures.offset, 0.0 if first is None else max(log.now() - first, 0) / 1000)


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`PORT` (on loopback), `HOST:PORT` or `[IPV6]:PORT`; port 0 chooses a free one. Raises ConfigError."""
        host, _, port = text.rpartition(":")
        if not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise ConfigError(f"metrics: {text!r} is not an address: give PORT, or HOST:PORT such as 127.0.0.1:9464")
        return cls(host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port))

    def __str__(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


class MetricsServer:
    """An HTTP server of one worker's metrics, in threads of its own. `at`: where it listens."""

    def __init__(self, metrics: Metrics, at: Address) -> None:
        """Raises ConfigError if the address is taken."""
        try:
            self._server, self._thread = start_http_server(at.port, at.host, registry=metrics)
        except OSError as error:
            raise ConfigError(f"metrics: cannot listen at {at.host} port {at.port}: {error.strerror or error}") from None
        self.at = Address(at.host, self._server.server_port)

    async def close(self) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
