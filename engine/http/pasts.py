"""A cache of the runs that were read last: the next read costs only their new records."""

from __future__ import annotations

from collections import OrderedDict

from ..client.past import Past
from ..client.view import RunView, state_for
from ..log import CLAIM_KEY, Log, partition_of

MOST_RUNS = 50
MOST_BYTES = 64_000_000


class Pasts:
    """Reads runs, and keeps the last ones, up to a bound of memory. A run that alone is larger is not kept.

    Each read begins with the last record that was read before. If that offset now holds another record, the log was truncated,
    made again or restored from a copy, and the run is read from its start.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._known: OrderedDict[str, Past] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """The approximate memory of the kept runs, in bytes."""
        return sum(past.size_bytes for past in self._known.values())

    async def read(self, run_id: str) -> Past:
        """The run and its past, up to date. Raises RunNotFound and LogUnavailable.

        Copy what you need before you await anything: other reads change the same objects.
        """
        partition, past = partition_of(run_id, self._log.partitions), self._known.get(run_id)
        if past is not None:
            last = past.records[-1]
            records = await self._log.find(partition, (run_id, CLAIM_KEY), last.offset)
            if records and records[0] == last:
                past.take(records)
            else:
                self._known.pop(run_id, None)
                past = None
        if past is None:
            past = Past(RunView(run_id, state_for(self._log, run_id)))
            past.take(await self._log.find(partition, (run_id, CLAIM_KEY)))
            past.found(self._log)
        self._keep(run_id, past)
        return past

    def _keep(self, run_id: str, past: Past) -> None:
        self._known[run_id] = past
        self._known.move_to_end(run_id)
        if past.size_bytes > MOST_BYTES:
            del self._known[run_id]
        while len(self._known) > MOST_RUNS or self.size_bytes > MOST_BYTES:
            self._known.popitem(last=False)
