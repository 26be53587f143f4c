"""Durable workflows for Python on an append-only log: Kafka, SQLite or memory.

The parts, from the pure core outwards (imports go up this list):

    errors               the tree of errors
    log marks            the port, which a driver implements; digests by which a reader notices that a log was restored
    values               writes, reads, compares, copies, limits and formats values
    operations core      what a workflow can await, one module for each kind; the meaning of records: state, and the fold to it
    events               the records and their published schema
    replay               asyncio without I/O or clock; runs the user's code over its journal (live execution replays the tail)
    authoring            what the code of workflows uses
    worker               executes runs: members, owners of partitions, attempts of steps, the inbox
    client               what a service uses; reads runs
    testing              the conformance suite for drivers, virtual time
    cli logs             the command line; makes foreign text in log messages visible

Everything public is importable from here, from `stepfold.drivers`, `stepfold.projections` and `stepfold.testing`.
"""

from .authoring.batch import BatchItem, BatchResult, Completion, RaceResult
from .authoring.callback import Callback
from .authoring.compensation import Compensations
from .authoring.context import Context, Input
from .authoring.step import RunningStep, Signal, Step, current_step
from .authoring.workflow import Workflow
from .client.changing import Published, StateChanged
from .client.client import Client
from .client.inspecting import Inspection
from .client.run import ChildRun, Run
from .client.status import RunStatus
from .errors import (
    BatchFailed,
    CallbackFailed,
    CallbackIdInvalid,
    CallbackTimedOut,
    ChildCancelled,
    ChildFailed,
    ChildTimedOut,
    ConditionTimedOut,
    ConfigError,
    ErrorInfo,
    InputInvalid,
    LogUnavailable,
    NonDeterminism,
    NonRetryable,
    PayloadTooLarge,
    ProjectionFailed,
    QueryFailed,
    QueryUnknown,
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
from .logs import prepare_loggers
from .operations.condition import Done
from .values.backoff import Backoff
from .values.retry import Retry
from .values.wait import Wait
from .worker.worker import Worker

__all__ = [
    "Backoff",
    "BatchFailed",
    "BatchItem",
    "BatchResult",
    "Callback",
    "CallbackFailed",
    "CallbackIdInvalid",
    "CallbackTimedOut",
    "ChildCancelled",
    "ChildFailed",
    "ChildRun",
    "ChildTimedOut",
    "Client",
    "Compensations",
    "Completion",
    "ConditionTimedOut",
    "ConfigError",
    "Context",
    "Done",
    "ErrorInfo",
    "Event",
    "Input",
    "InputInvalid",
    "Inspection",
    "LogUnavailable",
    "NonDeterminism",
    "NonRetryable",
    "PayloadTooLarge",
    "ProjectionFailed",
    "Published",
    "QueryFailed",
    "QueryUnknown",
    "RaceResult",
    "Retry",
    "RetryAfter",
    "Run",
    "RunAlreadyExists",
    "RunEnded",
    "RunNotFound",
    "RunStatus",
    "RunningStep",
    "Signal",
    "StateChanged",
    "Step",
    "StepError",
    "StepFailed",
    "StepInterrupted",
    "StepfoldError",
    "ValueInvalid",
    "Wait",
    "Worker",
    "Workflow",
    "WorkflowCancelled",
    "WorkflowFailed",
    "WorkflowUnknown",
    "current_step",
]

prepare_loggers()
