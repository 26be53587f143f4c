"""One action on many runs: a job, which is itself a run, of a workflow that every worker serves.

The request takes a snapshot of run ids. They go into the log in parts, each the input of a run that does nothing else; the job
names its parts, and is written last, so it exists whole or not at all. Each step of the job asks some of the runs. The id of a
request follows from job and run, so a repeat after a crash asks nobody twice.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from pydantic import BaseModel

from ..authoring.context import Context
from ..authoring.step import Step
from ..authoring.workflow import DEFAULT_VERSION, Registry, Workflow
from ..core.state import RunState
from ..errors import NonRetryable, RunAlreadyExists, RunNotFound
from ..log import Entry, partition_of
from ..values.names import BUILT_IN
from ..values.retry import Retry
from .actions import actions
from .requests import Sender, cancel_requested
from .run import Gateway, Run

if TYPE_CHECKING:
    from .client import Client

JOB, PART = f"{BUILT_IN}bulk", f"{BUILT_IN}bulk-part"
"""The workflows of jobs and of their parts."""
MOST = 1_000_000
"""How many runs one job may have."""
PART_IDS, PART_BYTES = 5000, 400_000
STEP_IDS = 200
"""How many runs a step of a job asks."""
AT_A_TIME = 20
_PATIENT = Retry(max_attempts=1_000_000, max_backoff="1m")
ASKED, ENDED, UNKNOWN, REFUSED = "asked", "ended", "unknown", "refused"
OPEN_STATES = frozenset({"pending", "running", "waiting", "quarantined"})


class BulkAction(NamedTuple):
    """An action that a job can ask for. `does`: in words, of a run; `asked`: the run was so; `states`: those in which a run may
    take it; `refused`: why a run in one of them does not; `entry`: makes the request from run id, request id, time and sender."""

    name: str
    does: str
    asked: str
    states: frozenset[str]
    refused: str
    entry: Callable[[str, str, int, Sender], Entry]


def _cancel(run_id: str, request: str, at: int, asked: Sender) -> Entry:
    return cancel_requested(run_id, asked.why, request=request, at=at, by=asked.by)


ACTIONS = {
    "cancel": BulkAction("cancel", "cancel", "asked to end", OPEN_STATES, "it was asked to end before", _cancel),
}
"""The actions by name; they must be among those that `actions` of a run names."""


class PartOfJob(BaseModel):
    """A part of a job: the run that holds its ids, their number, and their digest."""

    run_id: str
    count: int
    digest: str


class JobInput(BaseModel):
    """The input of a job. `chosen`: the conditions or the number of ids, as asked; `position`: `partition:offset` of the tables
    from which the snapshot was taken; `request`: a digest of all that was asked for."""

    action: str
    by: str | None
    why: str | None
    chosen: dict[str, Any]
    position: list[str]
    count: int
    request: str
    parts: list[PartOfJob]


class PartInput(BaseModel):
    """The input of a part: run ids of a job."""

    job: str
    ids: list[str]


class Wanted(NamedTuple):
    """A job as it is asked for. `chosen`: the conditions, or `{"ids": [...]}`."""

    action: str
    chosen: dict[str, Any]
    asked: Sender

    def digest(self) -> str:
        return _digest([self.action, self.chosen, self.asked.by, self.asked.why])


class BulkItem(NamedTuple):
    """A run of a job: its outcome ("asked", "ended", "unknown", "refused"; None: its turn has not come), and why."""

    run_id: str
    outcome: str | None
    why: str | None


@dataclass(frozen=True, slots=True)
class BulkJob:
    """A job as the log has it. `outcomes`: how many runs had each outcome."""

    id: str
    wanted: JobInput
    run: RunState
    owner: str | None
    outcomes: Counter[str]
    steps: dict[int, list[Any]]

    @property
    def done(self) -> int:
        """The number of runs whose turn has come."""
        return sum(self.outcomes.values())


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


# -- the workflows


def built_in(gateway: Gateway) -> Registry:
    """The workflows that every worker serves."""

    async def ask(job_id: str, part: PartOfJob, first: int, wanted: JobInput) -> list[Any]:
        own = (await gateway.views.read(job_id)).run
        if own is None or own.cancel_requested:  # its code may not have heard of it yet
            return [0, []]
        ids = await ids_of(gateway, part)
        places = asyncio.Semaphore(AT_A_TIME)

        async def turn(run_id: str) -> list[str] | None:
            async with places:
                return await _turn(gateway, job_id, run_id, wanted)

        turns = await asyncio.gather(*(turn(run_id) for run_id in ids[first : first + STEP_IDS]))
        others = [[at, *outcome] for at, outcome in enumerate(turns) if outcome is not None]
        return [len(turns), others]

    async def job(ctx: Context[JobInput], step: Step[Any]) -> dict[str, int]:
        wanted, outcomes = ctx.input.data, Counter[str]()
        for at, part, first in _steps(wanted):
            if ctx.cancelling:
                raise asyncio.CancelledError
            with step.shield():  # those that were asked are on record before the job ends
                outcomes += _counted(await step.run(f"ask-{at}", ask, ctx.run_id, part, first, wanted, retry=_PATIENT))
        if ctx.cancelling and sum(outcomes.values()) < wanted.count:
            raise asyncio.CancelledError
        return dict(outcomes)

    async def part(ctx: Context[PartInput], step: Step[Any]) -> int:
        return len(ctx.input.data.ids)

    registry = Registry()
    for handler, name in ((job, JOB), (part, PART)):
        registry.add(Workflow(handler, name, DEFAULT_VERSION))
    return registry


def _steps(wanted: JobInput) -> Iterator[tuple[int, PartOfJob, int]]:
    """The steps of a job: the number of its first run in the job, the part that it is in, and its number there."""
    at = 0
    for part in wanted.parts:
        for first in range(0, part.count, STEP_IDS):
            yield at + first, part, first
        at += part.count


def _counted(result: list[Any]) -> Counter[str]:
    count, others = result
    outcomes = Counter(outcome for _, outcome, _ in others)
    return outcomes + Counter({ASKED: count - len(others)})


async def _turn(gateway: Gateway, job_id: str, run_id: str, wanted: JobInput) -> list[str] | None:
    """Ask one run, once. Its outcome and why; None: it was asked."""
    log, action = gateway.connected(), ACTIONS[wanted.action]
    request = _digest([job_id, run_id])[:32]
    run = (await gateway.views.read(run_id)).run
    if run is not None and request in run.requests:
        return None
    if run is None:
        return [UNKNOWN, "the log has no such run"]
    if run.workflow.startswith(BUILT_IN):
        return [REFUSED, "it is a job of stepfold: abort that itself"]
    if run.ended:
        return [ENDED, f"it had ended: {run.phase}"]
    if action.name not in actions(run):
        return [REFUSED, action.refused]
    entry = action.entry(run_id, request, log.now(), Sender(wanted.by, wanted.why))
    await log.append(partition_of(run_id, log.partitions), [entry])
    return None


async def ids_of(gateway: Gateway, part: PartOfJob) -> list[str]:
    """The ids of a part. Raises NonRetryable if the log does not hold those that the job names."""
    run = (await gateway.views.read(part.run_id)).run
    ids: list[str] = [] if run is None else run.start_input["ids"]
    if _digest(ids) != part.digest:
        raise NonRetryable(f"run {part.run_id!r} does not hold the run ids of this job")
    return ids


# -- requests


def job_id_of(client: Client, key: str | None) -> str:
    """The id of a new job, the same one for the same idempotency key."""
    return f"bulk-{_digest(key)[:24] if key is not None else client.ids()}"


async def start_job(client: Client, job_id: str, wanted: Wanted, ids: Sequence[str], position: Sequence[str]) -> Run[Any]:
    """Write a job for a snapshot of run ids. Returns the one that is there if it was asked for in the same way.

    Raises RunAlreadyExists if another was asked for under this id, ValueError and LogUnavailable.
    """
    registry, request = built_in(client), wanted.digest()
    job, part = registry.find(JOB, None), registry.find(PART, None)
    assert job is not None and part is not None
    wanted.asked.fields()
    parts: list[PartOfJob] = []
    for some in _in_parts(ids):
        digest = _digest(some)
        parts.append(PartOfJob(run_id=f"{job_id}/{digest[:16]}", count=len(some), digest=digest))
        await client.start_workflow(part, {"job": job_id, "ids": some}, run_id=parts[-1].run_id)
    data = JobInput(
        action=wanted.action,
        by=wanted.asked.by,
        why=wanted.asked.why,
        chosen=wanted.chosen if "ids" not in wanted.chosen else {"ids": len(wanted.chosen["ids"])},
        position=list(position),
        count=len(ids),
        request=request,
        parts=parts,
    )
    try:
        return await client.start_workflow(job, data, run_id=job_id, by=wanted.asked.by, why=wanted.asked.why)
    except RunAlreadyExists:  # another snapshot, perhaps of the same request
        known = await find_job(client, job_id)
        if known is None or known.wanted.request != request:
            raise
        return client.run(job_id)


def _in_parts(ids: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for run_id in ids:
        length = len(orjson.dumps(run_id)) + 1
        if part and (len(part) >= PART_IDS or size + length > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(run_id)
        size += length
    if part:
        yield part


# -- what became of it


async def find_job(gateway: Gateway, job_id: str) -> BulkJob | None:
    """The job of this id; None if there is none. Raises LogUnavailable."""
    view = await gateway.views.read(job_id)
    if view.run is None or view.run.workflow != JOB:
        return None
    steps = {
        int(one.step_id.removeprefix("ask-")): one.value
        for one in view.run.journal
        if one.outcome == "result" and one.step_id.startswith("ask-")
    }
    outcomes = sum(map(_counted, steps.values()), Counter[str]())
    return BulkJob(job_id, JobInput.model_validate(view.run.start_input), view.run, view.owner, outcomes, steps)


async def the_job(gateway: Gateway, job_id: str) -> BulkJob:
    """The job of this id. Raises RunNotFound and LogUnavailable."""
    job = await find_job(gateway, job_id)
    if job is None:
        name = gateway.connected().name
        raise RunNotFound(job_id, name, f"{name} has no bulk job {job_id!r}")
    return job


async def items_of(gateway: Gateway, job: BulkJob, first: int, limit: int) -> list[BulkItem]:
    """`limit` runs of a job from number `first` on, in the order of their turns."""
    items: list[BulkItem] = []
    at = 0
    for part in job.wanted.parts:
        if at + part.count > first and at < first + limit:
            for number, run_id in enumerate(await ids_of(gateway, part)):
                if first <= at + number < first + limit:
                    items.append(_item(job, at, number, run_id))
        at += part.count
    return items


def _item(job: BulkJob, part_at: int, number: int, run_id: str) -> BulkItem:
    begin = number // STEP_IDS * STEP_IDS
    step = job.steps.get(part_at + begin)
    if step is None or number - begin >= step[0]:
        return BulkItem(run_id, None, None)
    for at, outcome, why in step[1]:
        if at == number - begin:
            return BulkItem(run_id, outcome, why)
    return BulkItem(run_id, ASKED, None)
