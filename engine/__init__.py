"""Durable workflows for Python on an append-only log: Kafka, SQLite or memory.

The rooms, from the pure core outwards (imports go one way, downwards in this list to upwards):

    log          the port: what a driver must be able to do
    events       what a record may say, and the published schema
    fold         records -> state, the same for every reader
    loop         asyncio without I/O or clock, in an order every process repeats
    execution    the user's code over its journal: replay, and live execution as replay of the tail
    step context workflow codec retry duration errors     what users touch
    attempt checkpoint owner worker router inbox tail requests client   what makes it run
    testing      the conformance suite for drivers, virtual time
    cli          the command line

Everything public is importable from here, from `stepfold.drivers`, `stepfold.projections` and `stepfold.testing`.
"""

from .client import Client, Run, RunStatus
from .context import Context, Input
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
    RunNotFound,
    StepError,
    StepFailed,
    StepfoldError,
    StepInterrupted,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowUnknown,
)
from .events import Event
from .retry import Retry
from .step import RunningStep, Signal, Step, current_step
from .worker import Worker
from .workflow import Workflow

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
    "RunNotFound",
    "RunStatus",
    "RunningStep",
    "Signal",
    "Step",
    "StepError",
    "StepFailed",
    "StepInterrupted",
    "StepfoldError",
    "Worker",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowFailed",
    "WorkflowUnknown",
    "current_step",
]
