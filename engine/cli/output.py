"""What commands print. Data go to stdout, in the form that `-o` asks for; remarks for a person go to stderr.

To a terminal tables have colour and fit its width; into a pipe or a file they have neither, nor any padding or wrapping.
Text from elsewhere is shown, not sent (`stepfold.values.text`): here, on whatever way it takes. So nothing else in this folder
prints, and its `Text` and `console` are used instead of rich's.
Times in tables are local and say so (TZ=UTC in the environment makes them UTC); in JSON they are UTC.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from types import TracebackType
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
"""Between two columns."""
_WORDS_WIDTH = 16
"""What a column of words needs at least."""


class Format(StrEnum):
    """The forms that data may be printed in."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


OutputOption = Annotated[
    Format, typer.Option("--output", "-o", help="Tables for people, JSON for programs, JSON lines for streams.")
]


class Text(RichText):
    """rich's, with all that cannot be seen as an escape; always one line."""

    def __init__(self, text: str = "", *arguments: Any, **options: Any) -> None:
        super().__init__(shown(text), *arguments, **options)

    def append(self, text: RichText | str, style: str | Style | None = None) -> Self:
        """As rich's."""
        super().append(shown(text) if isinstance(text, str) else text, style)
        return self

    @classmethod
    def assemble(cls, *parts: str | RichText | tuple[str, str]) -> Self:  # type: ignore[override]  # without its options
        """As rich's."""
        made = cls()
        for part in parts:
            made.append(*part) if isinstance(part, tuple) else made.append(part)
        return made


class _Console(Console):
    """rich's, for which plain strings are `Text` too, wherever they stand."""

    def render_str(self, text: str, **options: Any) -> RichText:
        return super().render_str(shown(text), **options)


def console(*, stderr: bool = False) -> Console:
    """The console of stdout or stderr, as wide as what it is."""
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
    """One plain line on stdout."""
    print(shown(text), flush=True)


def complain(text: str) -> None:
    """One plain line on stderr, after all that has been said on stdout: where both go to one file, in that order."""
    sys.stdout.flush()
    print(shown(text), file=sys.stderr, flush=True)


def remark(text: str) -> None:
    """Say something to whoever sits there; programs that read stdout are not disturbed."""
    sys.stdout.flush()
    console(stderr=True).print(text, style="dim")


def print_json(value: Any) -> None:
    """One JSON value, indented."""
    print(json_text(value, indent=True))


def print_jsonl(values: Iterable[Any]) -> None:
    """One JSON value per line."""
    for value in values:
        print(json_text(value), flush=True)


def json_text(value: Any, *, indent: bool = False) -> str:
    """JSON in which what cannot be seen is escaped."""
    return shown_json(orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else None).decode())


def print_rows(form: Format, rows: Sequence[Mapping[str, Any]], picture: RenderableType, *, nothing: str = "nothing") -> None:
    """Rows as JSON, or their picture; `nothing` is what to tell a person when there are none."""
    if form is Format.JSON:
        print_json(rows)
    elif form is Format.JSONL:
        print_jsonl(rows)
    elif rows:
        show(picture)
    else:
        remark(nothing)


def print_object(form: Format, value: Mapping[str, Any], picture: RenderableType) -> None:
    """One object as JSON, or its picture."""
    if form is Format.JSON:
        print_json(value)
    elif form is Format.JSONL:
        print_jsonl([value])
    else:
        show(picture)


class _FittingTable(Table):
    """Leaves out spare columns until ids, numbers and times stand unbroken; only the words of the last column wrap."""

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
    """What a column needs to stand unbroken."""
    return max(cell_len(shown(str(cell))) for cell in (column.header, *column.cells))


def table(*columns: str, right: Sequence[str] = (), spare: Sequence[str] = ()) -> Table:
    """A table without lines: columns that say what they hold. Those in `right` are numbers.

    `spare`: what a narrow terminal does without, first what matters least; of two columns of one name the later.
    """
    made = _FittingTable(spare)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left")
    return made


def zone() -> str:
    """The name of the local time zone, for the head of a column."""
    return datetime.now().astimezone().tzname() or "local"


def local(ms: int | None, *, date: bool = True) -> str:
    """A time for people: local, to the millisecond. Total: a record may hold any number."""
    if ms is None:
        return ""
    ms = times.within(ms)
    when = times.utc(ms).astimezone()
    return when.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S") + f".{ms % 1000:03}"


def utc(ms: int | None) -> str | None:
    """A time for programs: ISO 8601, UTC. Total: what is beyond the years that ISO 8601 has is given as the nearest."""
    if ms is None:
        return None
    return times.utc(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def took(ms: int) -> str:
    """A span for people."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.2f} s"
    minutes, seconds = divmod(ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def short(value: Any, limit: int = 60) -> str:
    """JSON on one line, cut where it gets long."""
    text = json_text(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def event_json(event: Event) -> dict[str, Any]:
    """An event as it is on the wire, with its place (`offset`) and the log's time (`timestamp`, ms)."""
    fields = event.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return {"offset": event.offset, "timestamp": event.timestamp, "type": event.type, **fields}


class Status:
    """While it is entered: one line at the foot of the terminal that says what is being waited for. Elsewhere, nothing."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._live: Live | None = None
        self._noted = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal and sys.stdout.isatty():
            self._live = Live(console=self._console, transient=True, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, words: str) -> None:
        """Show this from now on."""
        if self._live is not None:
            self._live.update(Spinner("dots", Text(words, "dim", no_wrap=True, overflow="ellipsis")))

    def note(self, words: str) -> None:
        """Say this on stderr, where it is not what was said last; a terminal shows it at its foot anyway."""
        if words != self._noted and self._live is None:
            remark(words)
        self._noted = words

    def print(self, what: RenderableType) -> None:
        """Print a line on stdout, above the foot."""
        if self._live is not None:
            self._console.print(what)
        else:
            show(what)
