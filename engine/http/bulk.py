"""The routes of one action on many runs: preview the runs, start a job that asks them, follow it, abort it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, cast
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, Field, model_validator

from stepfold.projections import Selection, list_runs, select_ids, select_runs, snapshot, states_of

from ..client.bulk import ACTIONS, JOB, MOST, OPEN_STATES, BulkJob, Wanted, find_job, items_of, job_id_of, start_job, the_job
from ..client.requests import Sender
from ..client.status import State, status_json
from ..errors import RunAlreadyExists
from ..values.times import utc
from .headers import POSITION, reach, request_id
from .models import Asking, RunId, WaitNow, Words
from .payload import run_for
from .problems import HttpRefusal
from .requests import KEYED, sender_of
from .routing import Answer, HttpCall, Role, Row
from .runs import RunConditions, run_id_of

MOST_IDS = 10_000
COUNTED_IDS = 20_000
"""An answer counts the states of a job's runs only if the job has at most this many runs."""
PAYLOAD_FILTERS = ("search", "error")


def _action(name: str) -> str:
    if name not in ACTIONS:
        raise ValueError(f"the actions are {', '.join(ACTIONS)}")
    return name


ActionName = Annotated[str, AfterValidator(_action), Field(json_schema_extra={"enum": list(ACTIONS)})]


_EXAMPLE = {"action": "cancel", "ids": ["order-1", "order-2"], "why": "out of stock"}


class BulkWanted(Asking, json_schema_extra={"examples": [_EXAMPLE]}):
    """An action on many runs: either those that fulfil at least one condition, or those with these ids.

    `dry_run`: only show which runs these are.
    """

    action: ActionName
    filter: RunConditions | None = None
    ids: Annotated[list[RunId], Field(min_length=1, max_length=MOST_IDS)] | None = None
    dry_run: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> BulkWanted:
        if (self.filter is None) == (self.ids is None):
            raise ValueError("give either `filter` or `ids`")
        if self.filter is not None and not self.filter.model_dump(exclude_none=True):
            raise ValueError("`filter` needs at least one condition")
        return self


class BulkSample(BaseModel):
    """One of the runs that an action would ask."""

    run_id: str
    state: State


class BulkRefusal(BaseModel):
    """How many of the chosen runs the action would leave out, and why."""

    why: str
    count: int


class BulkPreview(BaseModel):
    """The runs that an action would ask now. `position`: how far the tables were, as `partition:offset`; `sample`: the first
    runs."""

    action: str
    count: int
    would_ask: int
    refused: list[BulkRefusal]
    sample: list[BulkSample]
    position: list[str]


class BulkOutcomes(BaseModel):
    """How many runs of a job had each outcome. `open`: runs that the job has not reached yet."""

    asked: int
    ended: int
    unknown: int
    refused: int
    open: int


class BulkItemNow(BaseModel):
    """A run of a job. `outcome`: null until the job reaches the run; `why`: why the job did not ask it; `state`: the run's state
    now, null if the tables do not have the run."""

    run_id: str
    outcome: Literal["asked", "ended", "unknown", "refused"] | None
    why: str | None
    state: State | None


class BulkNow(BaseModel):
    """A job. `state`, `waits`: of the job's own run, which has the same id. `position`: how far the tables were when the runs
    were chosen, as `partition:offset`. `states`: how many of the runs are in each state now; null for a very large job. `reason`:
    why the job was aborted."""

    id: str
    action: str
    state: State
    by: str | None
    why: str | None
    chosen: dict[str, Any]
    position: list[str]
    count: int
    outcomes: BulkOutcomes
    started_at: datetime
    ended_at: datetime | None
    reason: str | None
    waits: list[WaitNow]
    states: dict[str, int] | None = None


class BulkJobNow(BulkNow):
    """A job with a page of its runs, in the order in which the job asks them. `next`: the `first` of the next page."""

    items: list[BulkItemNow]
    next: int | None


class BulkJobs(BaseModel):
    """The newest jobs."""

    jobs: list[BulkNow]


class ItemsWanted(BaseModel, extra="forbid"):
    """Which runs of the job to show: `limit` from number `first` on."""

    first: Annotated[int, Field(ge=0, le=MOST)] = 0
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class JobsWanted(BaseModel, extra="forbid"):
    """How many jobs to list, at most."""

    limit: Annotated[int, Field(ge=1, le=100)] = 20


class AbortWanted(BaseModel, extra="forbid"):
    """Why the job is aborted."""

    why: Annotated[Words, Field(max_length=1000)] | None = None


# -- shared with the pages


@dataclass(frozen=True, slots=True)
class Chosen:
    """The runs of a request: those that fulfil `filters`, keywords of `list_runs`, or those with `ids`. `said`: the request's
    JSON."""

    filters: dict[str, Any]
    ids: Sequence[str] | None
    said: dict[str, Any]


def chosen_of(call: HttpCall, filters: RunConditions | None, ids: Sequence[str] | None) -> Chosen:
    """The runs that the request chooses. Raises HttpRefusal if it searches payloads and the caller may not see them."""
    if filters is None:
        ids = list(dict.fromkeys(ids or ()))
        return Chosen({}, ids, {"ids": ids})
    return Chosen(filters.filters(call), None, filters.model_dump(mode="json", exclude_none=True))


async def preview_of(call: HttpCall, action: str, chosen: Chosen) -> BulkPreview:
    """The runs that the action would ask now."""
    if chosen.ids is not None:
        selection = await call.service.read(select_ids, chosen.ids)
    else:
        selection = await call.service.read(select_runs, **chosen.filters)
    may = ACTIONS[action].states
    would_ask = sum(count for state, count in selection.states.items() if state in may)
    sample = [BulkSample(run_id=run_id, state=state) for run_id, state in selection.sample]
    return BulkPreview(
        action=action,
        count=selection.count,
        would_ask=would_ask,
        refused=_refused(action, selection),
        sample=sample,
        position=selection.position,
    )


def _refused(action: str, selection: Selection) -> list[BulkRefusal]:
    may = ACTIONS[action].states
    found = [
        BulkRefusal(why=f"{'it is' if state in OPEN_STATES else 'it has ended:'} {state}", count=count)
        for state, count in sorted(selection.states.items())
        if state not in may
    ]
    if selection.unknown:
        found.append(BulkRefusal(why="there is no such run", count=len(selection.unknown)))
    return found


async def ask_many(call: HttpCall, action: str, chosen: Chosen, asked: Sender, key: str | None) -> str:
    """Start a job, and return its id; a repeated request under the same key gets the job of the first.

    Raises HttpRefusal if no run or too many match, and for a key that came before with another request.
    """
    client, projections = call.service.client, call.service.projections
    wanted, job_id = Wanted(action, chosen.said, asked), job_id_of(client, key)
    async with client.patience():
        known = None if key is None else await find_job(client, job_id)
    if known is not None and known.wanted.request == wanted.digest():
        return job_id
    if chosen.ids is not None:
        ids, position = chosen.ids, (await projections.query(select_ids, ())).position
    else:
        ids, position = await projections.query(snapshot, MOST + 1, **chosen.filters)
    if not ids:
        raise HttpRefusal(409, "nothing-matches", "no run matches")
    if len(ids) > MOST:
        raise HttpRefusal(422, "too-many-runs", f"more than {MOST:,} runs match: narrow the conditions")
    try:
        await start_job(client, job_id, wanted, ids, position)
    except RunAlreadyExists:
        raise HttpRefusal(422, "idempotency-key-reused", "this Idempotency-Key came before with another request") from None
    return job_id


async def job_of(call: HttpCall) -> BulkJob:
    """The job in the path. Raises RunNotFound."""
    job_id, client = run_id_of(call), call.service.client
    async with client.patience():
        return await the_job(client, job_id)


async def end_job(call: HttpCall, asked: Sender) -> str:
    """Ask the job in the path to end, unless it has ended or was asked before. Returns its id. Raises RunNotFound."""
    job, client = await job_of(call), call.service.client
    if not job.run.ended and not job.run.cancel_requested:
        async with client.patience():
            await client.cancel_run(job.id, asked.why, client.ids(), asked.by)
    return job.id


async def job_now(call: HttpCall, job: BulkJob) -> BulkNow:
    """The job, without what the caller may not see."""
    return BulkNow.model_validate(_shown(call, job) | {"states": await _states(call, job)})


async def with_items(call: HttpCall, job: BulkJob, first: int, limit: int) -> BulkJobNow:
    """The job with a page of its runs."""
    client = call.service.client
    async with client.patience():
        items = await items_of(client, job, first, limit)
    states = await call.service.projections.query(states_of, [item.run_id for item in items])
    shown = [BulkItemNow.model_validate(item._asdict() | {"state": states.get(item.run_id)}) for item in items]
    following = first + limit if first + limit < job.wanted.count else None
    return BulkJobNow.model_validate(_shown(call, job) | {"states": await _states(call, job), "items": shown, "next": following})


async def _states(call: HttpCall, job: BulkJob) -> dict[str, int] | None:
    if job.wanted.count > COUNTED_IDS:
        return None
    client = call.service.client
    async with client.patience():
        ids = [item.run_id for item in await items_of(client, job, 0, job.wanted.count)]
    selection = await call.service.projections.query(select_ids, ids)
    return cast("dict[str, int]", selection.states)


def _shown(call: HttpCall, job: BulkJob) -> dict[str, Any]:
    status = run_for(call.caller, status_json(job.run, job.owner is not None))
    wanted, payload = job.wanted, call.caller.may(Role.PAYLOAD)
    chosen = {name: value if payload or name not in PAYLOAD_FILTERS else None for name, value in wanted.chosen.items()}
    left = wanted.count - job.done
    return {
        "id": job.id,
        "action": wanted.action,
        "state": status["state"],
        "by": wanted.by,
        "why": wanted.why,
        "chosen": chosen,
        "position": wanted.position,
        "count": wanted.count,
        "outcomes": {name: job.outcomes[name] for name in ("asked", "ended", "unknown", "refused")} | {"open": left},
        "started_at": utc(job.run.started_at),
        "ended_at": None if job.run.ended_at is None else utc(job.run.ended_at),
        "reason": job.run.reason,
        "waits": status["waits"],
    }


async def newest_jobs(call: HttpCall, limit: int) -> list[BulkNow]:
    """The newest jobs, without the states of their runs."""
    client = call.service.client
    rows = await call.service.projections.query(list_runs, workflow=JOB, limit=limit)
    jobs: list[BulkNow] = []
    for row in rows:
        async with client.patience():
            job = await find_job(client, row.run_id)
        if job is not None:
            jobs.append(BulkNow.model_validate(_shown(call, job)))
    return jobs


# -- routes


async def post_bulk(call: HttpCall) -> Answer:
    """Ask many runs for the same action. The answer is a job, which a worker carries out, or with `dry_run` a preview.

    The job asks the runs that match now. It checks each again before it asks.
    """
    body: BulkWanted = call.body
    chosen, asked, key = chosen_of(call, body.filter, body.ids), sender_of(call), request_id(call.request)
    await reach(call.service, call.request)
    if body.dry_run:
        return Answer(await preview_of(call, body.action, chosen))
    job_id = await ask_many(call, body.action, chosen, asked, key)
    async with call.service.client.patience():
        job = await the_job(call.service.client, job_id)
    location = f"{call.request.scope.get('root_path', '')}/v1/bulk/{quote(job_id, safe='')}"
    return Answer(await job_now(call, job), 202, {"Location": location})


async def get_jobs(call: HttpCall) -> Answer:
    """List the jobs, the newest first."""
    await reach(call.service, call.request)
    return Answer(BulkJobs(jobs=await newest_jobs(call, call.query.limit)))


async def get_job(call: HttpCall) -> Answer:
    """Show a job with the outcome of each run."""
    await reach(call.service, call.request)
    return Answer(await with_items(call, await job_of(call), call.query.first, call.query.limit))


async def delete_job(call: HttpCall) -> Answer:
    """Abort a job: it asks no more runs. Requests that it has made stay made."""
    await end_job(call, Sender(call.caller.name, call.query.why))
    return Answer(await job_now(call, await job_of(call)), 202)


ROWS = (
    Row(
        method="POST",
        path="/v1/bulk",
        role=Role.OPERATE,
        name="start_bulk",
        handler=post_bulk,
        body=BulkWanted,
        headers=(*KEYED, POSITION),
        answers={200: BulkPreview, 202: BulkNow},
        sends={202: ("Location",)},
    ),
    Row(
        method="GET",
        path="/v1/bulk",
        role=Role.VIEW,
        name="list_bulk",
        handler=get_jobs,
        query=JobsWanted,
        headers=(POSITION,),
        answers={200: BulkJobs},
    ),
    Row(
        method="GET",
        path="/v1/bulk/{id}",
        role=Role.VIEW,
        name="get_bulk",
        handler=get_job,
        query=ItemsWanted,
        headers=(POSITION,),
        answers={200: BulkJobNow},
    ),
    Row(
        method="DELETE",
        path="/v1/bulk/{id}",
        role=Role.OPERATE,
        name="abort_bulk",
        handler=delete_job,
        query=AbortWanted,
        answers={202: BulkNow},
    ),
)
