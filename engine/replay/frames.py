"""The frames of suspended code, and the user's lines among them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, CoroutineType, FrameType, TracebackType
from typing import Any

from ..errors import roots

Source = tuple[CodeType, int]
"""A line of code: its code object and the number of the line."""

ENGINE = str(Path(__file__).parents[1]) + os.sep
_STDLIB = str(Path(os.__file__).parent) + os.sep
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def source_of_caller() -> Source:
    """The line that called the function that calls this one."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]  # the documented way costs 50 times as much
    return frame.f_code, frame.f_lineno


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


def line_of(error: BaseException) -> str | None:
    """The innermost line of the user's code in the error's traceback; in an installed package only if no other is there.

    None if there is none. Calls no method of the error: a group with one member counts as that member.
    """
    members = roots(error)
    trace: TracebackType | None = vars(BaseException)["__traceback__"].__get__(members[0] if len(members) == 1 else error)
    line: Source | None = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if _is_users(code.co_filename) and (line is None or not _is_installed(code.co_filename)):
            line = code, trace.tb_lineno
        trace = trace.tb_next
    return None if line is None else line_text(line)


def line_text(source: Source) -> str:
    """A line of code as records say it: the file as it is imported (`orders/workflow.py:61`), the same on every machine."""
    return f"{_imported(source[0].co_filename)}:{source[1]}"


@lru_cache(maxsize=1024)
def _imported(file: str) -> str:
    """The file's path below the folder from which it is imported; at most the last 200 characters."""
    folders = [os.path.join(folder, "") for folder in sys.path if os.path.isabs(folder)]  # noqa: PTH117, PTH118  # words: Path would cost more
    root = max((folder for folder in folders if file.startswith(folder)), key=len, default="")
    return file[len(root) :][-200:].encode(errors="replace").decode()


def _is_installed(file: str) -> bool:
    return any(part in file for part in _PACKAGES)


def _is_users(file: str) -> bool:
    ours = file.startswith((ENGINE, "<frozen", "<string>"))
    return not (ours or (file.startswith(_STDLIB) and not _is_installed(file)))


def source_of(frames: Iterable[FrameType]) -> tuple[str, ...]:
    """The user's lines, as `file:line`: the innermost one and, if that is in an installed package, the innermost one outside.

    Skips code that was made from a string, such as the methods of named tuples.
    """
    lines: list[str] = []
    for frame in frames:
        file = frame.f_code.co_filename
        installed = _is_installed(file)
        if not _is_users(file):
            continue
        if not lines or not installed:
            lines.append(f"{file}:{frame.f_lineno}")
        if not installed:
            break
    return tuple(lines)
