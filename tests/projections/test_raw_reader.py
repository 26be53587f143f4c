"""The published rule, as examples/raw_reader.py implements it without stepfold, judges as the fold does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from histories import record
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recording import records_of
from unit.test_fold_properties import BEGINNING, CHOICES, FIELDS, JSON_VALUES, Author, Choice, changed

from stepfold import Client, Context, Retry, Run, RunNotFound, Step
from stepfold.core.fold import PartitionState, fold
from stepfold.core.state import EXPECTED, RunState
from stepfold.events import Event
from stepfold.log import CLAIM_KEY, Entry, Log, Record, partition_of

SCRIPT = Path(__file__).parents[2] / "examples" / "raw_reader.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("raw_reader", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


raw_reader = load()


def agree(records: list[Record], partition: int = 0, partitions: int = 1) -> PartitionState:
    """Both accept the same records and end with the same runs."""
    state, other = PartitionState(partition, partitions), raw_reader.Partition(partition, partitions)
    last: dict[str, RunState] = {}
    for each in records:
        change = fold(state, each)
        assert other.take(*each) == (change is not None), each
        if change is not None and change.run is not None:
            last[change.run.id] = change.run
    assert (other.claim, other.format) == (state.claim, state.format)
    expected = {run_id for run_id in state.runs.ids() if state.runs.peek(run_id).phase == EXPECTED}
    assert set(other.open) == set(state.runs.ids()) - expected and set(other.early) == expected
    assert other.places == state.sources
    assert {run_id: (run.state, run.steps) for run_id, run in other.last.items()} == {
        run_id: (run.phase, sum(delivery.outcome == "result" for delivery in run.journal)) for run_id, run in last.items()
    }
    return state


def test_it_imports_nothing_of_stepfold() -> None:
    assert "import stepfold" not in SCRIPT.read_text() and "from stepfold" not in SCRIPT.read_text()


def test_it_knows_every_event() -> None:
    models = {model.model_fields["type"].default: model.model_fields for model in get_args(Event)}
    assert set(raw_reader.FIELDS) == set(models)
    for kind, fields in models.items():
        required = {name for name, field in fields.items() if field.is_required()} | {"v"}
        known = {field.alias or name for name, field in fields.items() if not field.exclude and field.annotation is not Any}
        optional = known - required - {"type"}
        written: list[str] = ["v:i", "at:i", *raw_reader.FIELDS[kind].split()]
        assert {field.partition(":")[0] for field in written if field[0] != "("} == required
        assert {field[1:].partition(":")[0] for field in written if field[0] == "("} == optional


@given(CHOICES)
@settings(max_examples=150, deadline=None)
def test_it_judges_any_history_as_the_fold_does(choices: list[Choice]) -> None:
    """Repeats, stale claims, ids used again, foreign and cut records."""
    author = Author()
    author.write(BEGINNING + choices)
    agree(author.ledger.records)


ODD = [
    *(
        b'{"a":NaN}',
        b"[1e999]",
        b'"\\ud800"',
        b'"\\ud83d\\ude00"',
        b"\xef\xbb\xbf{}",
        b"{'a':1}",
        b'{"a":1,}',
        b"[01]",
        b'"\t"',
        b'"\x7f"',
    ),
    *(b"123456789012345678901234567890", b"9" * 400, b"-0", b"0.1e-400", b" {} ", b'{"type":["claim"]}', b'{"type":null}'),
    *(b"[" * depth + b"]" * depth for depth in (209, 210, 900, 5000)),
    b'{"a":' * 209 + b"[]" + b"}" * 209,
]


@given(
    CHOICES,
    st.lists(
        st.tuples(
            st.integers(0, 100),
            st.sampled_from(["a", "b", CLAIM_KEY, "", "@x", "x\u2028", "y\x85", "z" * 201]),
            st.binary(max_size=40)
            | st.sampled_from(ODD)
            | JSON_VALUES.map(orjson.dumps)
            | st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES),
        ),
        max_size=12,
    ),
)
@example([], [(0, "a", {"run_id": "a", "step_id": "s", "attempt": 2**64 - 1})])
@settings(max_examples=150, deadline=None)
def test_it_judges_any_bytes_as_the_fold_does(choices: list[Choice], wild: list[tuple[int, str, Any]]) -> None:
    author = Author()
    records = author.write(BEGINNING + choices)[:]
    for place, key, value in wild:
        model = records[place % len(records)].value
        records.insert(place % len(records), record(0, key, changed(model, value)))
    agree([Record(offset, each.timestamp, each.key, each.value) for offset, each in enumerate(records)])


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_it_reads_json_as_strictly(text: bytes) -> None:
    start = b'{"type":"started","v":1,"run_id":"a","at":1,"request":"r","workflow":"w","input":%b}'
    agree([record(0, "a", start % text), record(1, "a", text), record(2, "a", start.replace(b"1", text) % b"1")])


def test_it_knows_the_partition_of_a_run() -> None:
    for number in range(50):
        run_id = f"run-é-{number}"
        event = {"type": "started", "v": 1, "run_id": run_id, "at": 1, "request": "r", "workflow": "w", "input": None}
        for partition in range(5):
            state = agree([record(0, run_id, event)], partition, 5)
            assert bool(state.runs) == (partition_of(run_id, 5) == partition)


# Over real logs.


async def signal(run: Run[int]) -> None:
    with contextlib.suppress(RunNotFound):  # it has ended
        await run.signal("go")


async def some_runs(client: Client, count: int) -> None:
    """Retries, sleeps, signals, cancellations, two workers one after the other, and what does not belong there."""
    tries: dict[str, int] = {}

    @client.workflow(id="mixed")
    async def mixed(ctx: Context[int], step: Step) -> int:
        def flaky() -> int:
            tries[ctx.run_id] = tries.get(ctx.run_id, 0) + 1
            if tries[ctx.run_id] < 2:
                raise ValueError("again")
            return ctx.input.data

        total = await step.run("flaky", flaky, retry=Retry(3, backoff="1ms"))
        await asyncio.gather(step.sleep("nap", "1ms"), step.run("other", lambda: None))
        await step.wait_for_signal("go", signal="go", timeout="5ms" if ctx.input.data % 2 else None)
        return total

    async with client:
        async with client.worker(grace=0):
            runs = [await client.start_workflow(mixed, number, run_id=f"mixed-{number}") for number in range(count)]
            for run in runs[: count // 2]:
                await signal(run)
        async with client.worker():
            await runs[10].cancel()
            for number, run in enumerate(runs):
                if number % 4:
                    await signal(run)
            await asyncio.gather(*(run.result() for number, run in enumerate(runs) if number % 4), return_exceptions=True)
        log = client.log
        for partition in range(log.partitions):
            for old in await records_of(log, partition):
                await log.append(partition, [Entry(old.key, old.value), Entry(old.key, old.value[:-2]), Entry("", b"\xff")])


async def expected_lines(log: Log) -> list[str]:
    found: list[str] = []
    for partition in range(log.partitions):
        state = PartitionState(partition, log.partitions)
        last: dict[str, RunState] = {}
        for each in await records_of(log, partition):
            change = fold(state, each)
            if change is not None and change.run is not None:
                last[change.run.id] = change.run
        for run_id, run in last.items():
            steps = sum(delivery.outcome == "result" for delivery in run.journal)
            found.append(f"{run_id}\t{run.phase}\t{steps} steps\t{int(run.ended)} ends")
    return sorted(found)


def printed(*arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


async def test_over_an_sqlite_log(tmp_path: Path) -> None:
    client = Client(f"sqlite:///{tmp_path / 'runs.db'}")
    await some_runs(client, 12)
    async with client:
        expected = await expected_lines(client.log)
    assert await asyncio.to_thread(printed, str(tmp_path / "runs.db")) == expected
    assert len(expected) == 12
    assert {line.split("\t")[1] for line in expected} == {"completed", "cancelled", "open"}


@pytest.mark.kafka
async def test_over_kafka(kafka_namespace: str) -> None:
    client = Client(kafka_namespace)
    await some_runs(client, 12)
    async with client:
        expected = await expected_lines(client.log)
    servers, _, namespace = kafka_namespace.removeprefix("kafka://").partition("/")
    assert await asyncio.to_thread(printed, servers, namespace) == expected
    assert len(expected) == 12
