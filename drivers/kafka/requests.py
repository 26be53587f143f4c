# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# aiokafka ships no types; nothing of it leaves this module untyped.
"""Requests of Kafka's protocol that aiokafka does not have, made from schemas. Does not know a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Schema


def request_of(name: str, key: int, version: int, says: Schema, answered: Schema) -> Callable[..., Any]:
    """A request class of this number, in one flexible version. Call it with the fields of `says`, without the tags."""

    class Answer(Response):
        API_KEY = key  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] - aiokafka declares a property
        API_VERSION = version  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType] - as the line before
        SCHEMA = answered

    class Struct(RequestStruct):
        API_KEY = key
        API_VERSION = version
        FLEXIBLE_VERSION = True
        RESPONSE_TYPE = Answer
        SCHEMA = says

    class Asked(Request[Struct]):
        API_KEY = key

        def __init__(self, *fields: object) -> None:
            self._fields = fields

        def build(self, request_struct_class: type[Struct]) -> Struct:
            return request_struct_class(*self._fields, {})

    Asked.__name__ = name  # aiokafka shows the name in messages
    return Asked
