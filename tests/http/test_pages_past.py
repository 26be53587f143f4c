"""A run at an earlier offset, as the slider shows it."""

from __future__ import annotations

import pytest
from recording import used_again

from stepfold import Client
from stepfold.client.story import line_json
from stepfold.client.view import RunHistory, state_for
from stepfold.http.pages.run import histories
from stepfold.http.problems import HttpRefusal
from stepfold.log import CLAIM_KEY


async def test_it_is_what_the_records_up_to_there_say() -> None:
    """Also where they are of an earlier run of the same id."""
    client = Client(driver=await used_again())
    runs: set[int] = set()
    async with client:
        records = await client.log.find(0, ("order-42", CLAIM_KEY))
        for record in records:
            alone = RunHistory("order-42", state_for(client.log, "order-42"))
            for one in records:
                if one.offset <= record.offset:
                    alone.take(one)
            if alone.run is None:
                with pytest.raises(HttpRefusal, match="had not begun"):
                    await histories(client, "order-42", at=record.offset)
                continue
            _, past = await histories(client, "order-42", at=record.offset)
            assert past.run is not None
            assert (past.run.phase, past.run.start, past.owner) == (alone.run.phase, alone.run.start, alone.owner)
            assert (past.events, past.owners) == (alone.events, alone.owners)
            assert [line_json(line) for line in past.story()] == [line_json(line) for line in alone.story()]
            runs.add(past.run.start)
    assert len(runs) == 2
