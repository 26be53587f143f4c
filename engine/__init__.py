"""Durable workflows for Python on an append-only log: Kafka, SQLite or memory.

The rooms, from the pure core outwards (imports go one way, downwards in this list to upwards):

    errors log marks     the tree of errors, and the port: what a driver must be able to do, and what stood at a place of a log
    values               how values are written and read, compared, copied, limited, and said
    operations core      what a workflow can await, one module for each kind; what records mean: state, and the fold to it
    events               what a record may say, and the published schema
    replay               asyncio without I/O or clock, and the user's code over its journal: live execution is replay of the tail
    authoring            what the code of workflows touches
    worker               what makes runs go on: members, owners of partitions, attempts of steps, the inbox
    client               what a service touches, and how runs are read
    testing              the conformance suite for drivers, virtual time
    cli logs             the command line, and what is logged of others' texts

Everything public is importable from here, from `stepfold.drivers`, `stepfold.projections` and `stepfold.testing`.
"""

from .authoring.context import Context, Input
from .authoring.step import RunningStep, Signal, Step, current_step
from .authoring.workflow import Workflow
from .client.client import Client, Run, RunStatus
from .errors import (
    ConfigError,
    ErrorInfo,
    InputInvalid,
    LogUnavailable,
    NonDeterminism,
    NonRetryable,
    NotOwner,
    PayloadTooLarge,
    ProjectionFailed,
    RetryAfter,
    RunAlreadyExists,
    RunEnded,
    RunNotFound,
    StepError,
    StepFailed,
    StepfoldError,
    StepInterrupted,
    ValueInvalid,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowUnknown,
)
from .events import Event
from .logs import show_foreign_text
from .values.retry import Retry
from .worker.worker import Worker

__all__ = [
    "Client",
    "ConfigError",
    "Context",
    "ErrorInfo",
    "Event",
    "Input",
    "InputInvalid",
    "LogUnavailable",
    "NonDeterminism",
    "NonRetryable",
    "NotOwner",
    "PayloadTooLarge",
    "ProjectionFailed",
    "Retry",
    "RetryAfter",
    "Run",
    "RunAlreadyExists",
    "RunEnded",
    "RunNotFound",
    "RunStatus",
    "RunningStep",
    "Signal",
    "Step",
    "StepError",
    "StepFailed",
    "StepInterrupted",
    "StepfoldError",
    "ValueInvalid",
    "Worker",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowFailed",
    "WorkflowUnknown",
    "current_step",
]

show_foreign_text()
