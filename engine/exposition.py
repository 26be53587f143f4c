"""Figures in the text format of Prometheus, by prometheus_client, without its registry: that belongs to the whole process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

OTHERS = "(others)"
"""The label of what has no label of its own: foreign names must not make ever more series."""


class Families(Collector):
    """A collector of what is there now."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def exposed(families: Iterable[Metric]) -> bytes:
    """The text of the families."""
    return generate_latest(Families(families))
