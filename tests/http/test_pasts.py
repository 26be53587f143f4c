"""The cache of runs that were looked at: it follows the log, forgets one that was replaced, and stays small."""

from __future__ import annotations

import gc
import tracemalloc

import orjson
import pytest
from http_served import served
from recording import log_of, used_again

from stepfold import Client
from stepfold.client.status import run_state
from stepfold.client.view import RunView, state_for
from stepfold.drivers import MemoryDriver
from stepfold.errors import RunNotFound
from stepfold.http import pasts
from stepfold.http.pasts import Pasts
from stepfold.log import CLAIM_KEY, Entry, Log, Record


async def begun(log: Log, run_id: str, steps: int, words: str = "") -> None:
    """A run of the log's first partition, under its first claim."""

    def entry(kind: str, **fields: object) -> Entry:
        return Entry(run_id, orjson.dumps({"type": kind, "v": 1, "run_id": run_id, "at": 1, **fields}))

    started = entry("started", request=run_id, workflow="w", input=words)
    results = [entry("step-completed", claim=0, step_id=f"s-{n}", attempt=1, result=f"{words}{n}") for n in range(steps)]
    await log.append(0, [started, *results])


async def claimed() -> Log:
    log = MemoryDriver()
    await log.open()
    claim = {"type": "claim", "v": 1, "at": 0, "prev": -1, "owner": "worker", "nonce": "n"}
    await log.append(0, [Entry(CLAIM_KEY, orjson.dumps(claim))])
    return log


class Counting:
    """A log that notes from which offsets it is asked for records."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    async def find(self, partition: int, keys: tuple[str, ...], start: int = 0) -> list[Record]:
        self.asked.append(start)
        return list(await self._log.find(partition, keys, start))


async def test_a_look_reads_the_new_records_only() -> None:
    log = await claimed()
    await begun(log, "r", 5)
    counting = Counting(log)
    known = Pasts(counting)  # pyright: ignore[reportArgumentType]  # it passes everything else on
    assert len((await known.read("r")).now().events) == 6
    await log.append(
        0, [Entry("r", orjson.dumps({"type": "completed", "v": 1, "run_id": "r", "at": 1, "claim": 0, "result": 1}))]
    )
    now = (await known.read("r")).now()
    assert now.run is not None and now.run.phase == "completed"
    assert (await known.read("r")).at(3, log).operations == 2
    assert counting.asked == [0, 6, 7]
    with pytest.raises(RunNotFound):
        await known.read("another")


@pytest.mark.parametrize("kept", [3, 0])
async def test_a_log_that_was_put_back_is_read_anew(kept: int) -> None:
    """Also where it has grown since, so that the offset that was read last holds another record."""
    log = await claimed()
    await begun(log, "r", 5)
    known = Pasts(log)
    assert (await known.read("r")).now().operations == 5
    records = await log.find(0, ("r", CLAIM_KEY))
    other = await log_of(
        [*records[: kept + 2], *(record._replace(timestamp=record.timestamp + 1) for record in records[kept + 2 :])]
    )
    shorter = await log_of(records[: kept + 2])
    for log_now, operations in ((other, 5), (shorter, kept)):
        known._log = log_now  # pyright: ignore[reportPrivateUsage]  # as if the log were another now
        past = await known.read("r")
        assert past.records == list(await log_now.find(0, ("r", CLAIM_KEY)))
        assert past.now().operations == operations


async def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of runs, by their size as it is estimated, and the estimate is not below the truth."""
    log = await claimed()
    for number in range(8):
        await begun(log, f"r-{number}", 300, "words " * (50 * (number % 3)))
    known = Pasts(log)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    sizes = {number: (await known.read(f"r-{number}")).size_bytes for number in range(8)}
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before <= known.size_bytes == sum(sizes.values())
    monkeypatch.setattr(pasts, "MOST_BYTES", sizes[1] + sizes[2])
    await known.read("r-2")
    assert known.size_bytes <= pasts.MOST_BYTES
    monkeypatch.setattr(pasts, "MOST_RUNS", 1)
    await known.read("r-0")
    assert known.size_bytes == sizes[0]
    monkeypatch.setattr(pasts, "MOST_BYTES", sizes[1])
    await known.read("r-2")
    assert known.size_bytes in (0, sizes[0]), "a run that is larger than the bound is not kept"
    assert (await known.read("r-2")).now().operations == 300


async def test_page_and_api_agree_on_the_past() -> None:
    """At each offset, also where the records are of an earlier run of the same id, and before the first."""
    client = Client(driver=await used_again())
    async with served(client) as browser:
        view, found = RunView("order-42", state_for(client.log, "order-42")), 0
        for record in await client.log.find(0, ("order-42", CLAIM_KEY)):
            view.take(record)
            shown = await browser.get(f"/v1/runs/order-42?at={record.offset}")
            page = await browser.get(f"/runs/order-42?at={record.offset}")
            if view.run is None:
                assert (shown.status_code, page.status_code, shown.json()["code"]) == (404, 404, "run-not-found")
                assert "had not begun at offset 0" in shown.json()["detail"] and "had not begun at offset 0" in page.text
                continue
            state = run_state(view.run, view.owner is not None)
            assert (shown.json()["state"], shown.json()["offset"]) == (state, record.offset)
            assert f"</span>{state}</span>" in page.text.split("<h2")[0]
            found += 1
        assert found == 6
