"""Output of commands. Data go to stdout, in the form that `-o` asks for; notes to the user go to stderr.

On a terminal, tables have colour and fit its width. In a pipe or a file they have no colour, padding or wrapping. Control
characters in text from outside are always escaped (`stepfold.values.text`); therefore no other module in this folder prints, and
all use the `Text` and `console` of this module instead of rich's. Times in tables are local, and headings name the zone (TZ=UTC
in the environment makes them UTC); times in JSON are UTC.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

import orjson
import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text as RichText

from ..events import Event
from ..values import times
from ..values.text import shown, shown_json

_PIPE_WIDTH = 10_000
_GAP = 2
"""Cells between two columns."""
_WORDS_WIDTH = 16
"""The least width of a column of words, in cells."""


class Format(StrEnum):
    """The forms of printed data."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


OutputOption = Annotated[
    Format, typer.Option("--output", "-o", help="Tables for people, JSON for programs, JSON lines for streams.")
]


class Text(RichText):
    """rich's Text on one line, with invisible characters escaped."""

    def __init__(self, text: str = "", *arguments: Any, **options: Any) -> None:
        super().__init__(shown(text), *arguments, **options)

    def append(self, text: RichText | str, style: str | Style | None = None) -> Self:
        """Like rich's."""
        super().append(shown(text) if isinstance(text, str) else text, style)
        return self

    @classmethod
    def assemble(cls, *parts: str | RichText | tuple[str, str]) -> Self:  # type: ignore[override]  # without rich's options
        """Like rich's."""
        made = cls()
        for part in parts:
            made.append(*part) if isinstance(part, tuple) else made.append(part)
        return made


class _Console(Console):
    """rich's Console, which treats every plain string as `Text`."""

    def render_str(self, text: str, **options: Any) -> RichText:
        return super().render_str(shown(text), **options)


def console(*, stderr: bool = False) -> Console:
    """The console of stdout or stderr. Its width is the terminal's; elsewhere `_PIPE_WIDTH`."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return _Console(file=stream, width=width, highlight=False, soft_wrap=False, markup=False, emoji=False)


def show(*what: RenderableType) -> None:
    """Print for people on stdout."""
    out = console()
    if out.is_terminal:
        out.print(*what, sep="\n")
        return
    with out.capture() as text:
        out.print(*what, sep="\n")
    for line in text.get().splitlines():
        print(line.rstrip())


def say(text: str) -> None:
    """Print one plain line on stdout."""
    print(shown(text), flush=True)


def complain(text: str) -> None:
    """Print one plain line on stderr, after everything on stdout: if both go to one file, they keep their order."""
    sys.stdout.flush()
    print(shown(text), file=sys.stderr, flush=True)


def remark(text: str) -> None:
    """Print a note to the user on stderr, where programs that read stdout do not see it."""
    sys.stdout.flush()
    console(stderr=True).print(text, style="dim")


def print_json(value: Any) -> None:
    """Print one JSON value, indented."""
    print(json_text(value, indent=True))


def print_jsonl(values: Iterable[Any]) -> None:
    """Print one JSON value per line."""
    for value in values:
        print(json_text(value), flush=True)


def json_text(value: Any, *, indent: bool = False) -> str:
    """JSON text with invisible characters escaped."""
    return shown_json(orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else None).decode())


def print_rows(form: Format, rows: Sequence[Mapping[str, Any]], picture: RenderableType, *, nothing: str = "nothing") -> None:
    """Print rows as JSON, or their picture. `nothing`: the note if there are no rows."""
    if form is Format.JSON:
        print_json(rows)
    elif form is Format.JSONL:
        print_jsonl(rows)
    elif rows:
        show(picture)
    else:
        remark(nothing)


def print_object(form: Format, value: Mapping[str, Any], picture: RenderableType) -> None:
    """Print one object as JSON, or its picture."""
    if form is Format.JSON:
        print_json(value)
    elif form is Format.JSONL:
        print_jsonl([value])
    else:
        show(picture)


class _FittingTable(Table):
    """Drops spare columns until ids, numbers and times fit unbroken; only the last column wraps."""

    def __init__(self, spare: Sequence[str]) -> None:
        super().__init__()
        self._spare = spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept, words = list(self.columns), self.columns[-1]

        def fits() -> bool:
            needed = sum((min(_width(one), _WORDS_WIDTH) if one is words else _width(one)) + _GAP for one in kept)
            return needed - _GAP <= options.max_width

        for name in self._spare:
            if fits():
                break
            kept.remove(next(column for column in reversed(kept) if column.header == name))
        shown = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, padding=(0, _GAP, 0, 0))
        for one in kept:
            shown.add_column(one.header, justify=one.justify, overflow="fold", no_wrap=one is not words and fits())
        for row, cells in zip(self.rows, zip(*(column.cells for column in kept), strict=True), strict=True):
            shown.add_row(*cells, style=row.style)
        yield shown


def _width(column: Column) -> int:
    """The width that a column needs to stay unbroken, in cells."""
    return max(cell_len(shown(str(cell))) for cell in (column.header, *column.cells))


def table(*columns: str, right: Sequence[str] = (), spare: Sequence[str] = ()) -> Table:
    """A table with headings and without lines. Columns in `right` hold numbers.

    `spare`: columns that a narrow terminal drops, the least important first. If two columns have the same name, it drops the
    later one.
    """
    made = _FittingTable(spare)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left")
    return made


def zone() -> str:
    """The name of the local time zone, for the heading of a column."""
    return datetime.now().astimezone().tzname() or "local"


def local(ms: int | None, *, date: bool = True) -> str:
    """A local time with milliseconds. Never raises: a record may hold any number."""
    if ms is None:
        return ""
    ms = times.within(ms)
    when = times.utc(ms).astimezone()
    return when.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S") + f".{ms % 1000:03}"


def beside(ms: int, other_ms: int) -> str:
    """A time next to another time: with its date only if the days differ."""
    return local(ms, date=local(ms)[:10] != local(other_ms)[:10])


def event_json(event: Event) -> dict[str, Any]:
    """An event as on the wire, with its `offset` and the log's time (`timestamp`, ms)."""
    fields = event.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return {"offset": event.offset, "timestamp": event.timestamp, "type": event.type, **fields}


class Status:
    """A context manager: the last line of the terminal says what the command waits for. Without a terminal it shows nothing."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._live: Live | None = None
        self._noted = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal and sys.stdout.isatty():
            self._live = Live(console=self._console, transient=True, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, words: str) -> None:
        """Show this text from now on."""
        if self._live is not None:
            self._live.update(Spinner("dots", Text(words, "dim", no_wrap=True, overflow="ellipsis")))

    def note(self, words: str) -> None:
        """Print this text on stderr if it is new; a terminal shows it in its last line instead."""
        if words != self._noted and self._live is None:
            remark(words)
        self._noted = words

    def print(self, what: RenderableType) -> None:
        """Print a line on stdout, above the last line."""
        if self._live is not None:
            self._console.print(what)
        else:
            show(what)
