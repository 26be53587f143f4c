"""What helps to test: the conformance suite for drivers."""

from .suite import LogSuite as LogSuite

__all__ = ["LogSuite"]
