"""The frames of suspended code, and the user's lines among them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any

ENGINE = str(Path(__file__).parents[1]) + os.sep
_STDLIB = str(Path(os.__file__).parent) + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def frames_of(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """The frames of a suspended task, outermost first."""
    coro: Any = task.get_coro()
    while isinstance(coro, CoroutineType) and coro.cr_frame is not None:
        yield coro.cr_frame
        coro = coro.cr_await


def frames_of_traceback(error: BaseException) -> list[FrameType]:
    """The frames of an error's traceback, innermost first."""
    frames: list[FrameType] = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames[::-1]


def source_of(frames: Iterable[FrameType]) -> tuple[str, ...]:
    """The user's lines, as `file:line`: the innermost one and, if that is in an installed package, the innermost one outside.

    Skips code that was made from a string, such as the methods of named tuples.
    """
    lines: list[str] = []
    for frame in frames:
        file = frame.f_code.co_filename
        installed = any(part in file for part in _PACKAGES)
        if file.startswith((ENGINE, "<frozen", "<string>")) or (file.startswith(_STDLIB) and not installed):
            continue
        if not lines or not installed:
            lines.append(f"{file}:{frame.f_lineno}")
        if not installed:
            break
    return tuple(lines)
