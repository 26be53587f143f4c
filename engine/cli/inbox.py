"""`stepfold inbox …`: how far workers have read the inbox, and refused requests, which can be sent again."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..values.words import iso
from .output import Format, OutputOption, Text, local, print_rows, remark, say, table, zone
from .problems import Exit, Problem
from .target import AppOption, By, UrlOption, Why, asker, run_async
from .topics import kafka_of

if TYPE_CHECKING:
    from ..log import DeadLetter

app = typer.Typer(
    no_args_is_help=True, help="Show how far the workers have read the inbox, list refused requests, and send them again (Kafka)."
)


@app.command("dead-letters")
def dead_letters(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="How many of the newest to show.")] = 100,
    app: AppOption = None,
    url: UrlOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List the requests that could not be served, each with the reason, the oldest first."""
    log = kafka_of(app, url)
    letters = run_async(log.dead_letters(limit))
    made = table("place", f"time ({zone()})", "reason", "value")
    for letter in letters:
        value = "too large, not kept" if letter.omitted else _text(letter.value)
        done = settled_in_words(letter)
        reason = f"{letter.reason} ({done})" if done else letter.reason
        made.add_row(letter.place, local(letter.timestamp), Text(reason), Text(value[:200]), style="dim" if done else "")
    print_rows(output, [_json(letter) for letter in letters], made, nothing=f"{log.name} has no dead letters")


@app.command()
def status(app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Show how far the workers have read each partition of the inbox, and which open transaction holds them up."""
    log = kafka_of(app, url)
    positions = run_async(log.inbox_positions())
    made = table(
        "partition", "read up to", "ends at", "waiting", "held up by", right=("partition", "read up to", "ends at", "waiting")
    )
    for one in positions:
        place = "nowhere yet" if one.position is None else str(one.position)
        made.add_row(str(one.partition), place, str(one.end), str(one.waiting), Text(one.held))
    rows = [
        {"partition": one.partition, "position": one.position, "end": one.end, "waiting": one.waiting, "held": one.held}
        for one in positions
    ]
    print_rows(output, rows, made, nothing=f"{log.name} has no inbox")


@app.command()
def redrive(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PLACE", help="The places of the requests to send; without any, all that were not sent again yet."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--value", metavar="TEXT", help="Send the one request with this value instead of its own.")
    ] = None,
    by: By = None,
    why: Why = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Send refused requests to the inbox again, after you have fixed the cause. Prints how many it sent.

    Exits with 4 if Kafka did not take some of them, and names these on stderr.
    """
    log = kafka_of(app, url)
    value = None if data is None else data.encode("utf-8", "surrogateescape")
    if value is not None and len(places or ()) != 1:
        raise Problem("--value needs the place of one request")
    try:
        done = run_async(log.redrive(places or None, value=value, by=asker(by), why=why))
    except ConfigError as error:
        raise Problem(str(error), Exit.NOT_FOUND) from None
    say(f"{done.sent}")
    for place, reason in done.refused.items():
        remark(f"{place} was not sent: {reason}")
    if done.refused:
        raise Problem(f"{len(done.refused)} of the requests were not sent; see `stepfold topics check`", Exit.LOG)


@app.command()
def drop(
    places: Annotated[list[str], typer.Argument(metavar="PLACE", help="The places of the requests.")],
    by: By = None,
    why: Why = None,
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Say that refused requests will not be sent again. They stay in the list, with your name and why."""
    try:
        run_async(kafka_of(app, url).drop_letters(places, by=asker(by), why=why))
    except ConfigError as error:
        raise Problem(str(error), Exit.NOT_FOUND) from None
    remark(f"{len(places)} {'request is' if len(places) == 1 else 'requests are'} dropped")


def settled_in_words(letter: DeadLetter) -> str:
    """How an operator has settled a dead letter, with name and reason; "" for a waiting one."""
    if not (letter.redriven or letter.dropped):
        return ""
    said = "dropped" if letter.dropped else "sent again"
    said += f" by {letter.by}" if letter.by else ""
    return said + (f": {letter.why}" if letter.why else "")


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace")


def _json(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as JSON. Bytes that are not UTF-8 become Base64, under a name that says so."""
    found: dict[str, Any] = {
        "place": letter.place,
        "time": iso(letter.timestamp),
        "reason": letter.reason,
        "origin": letter.origin,
        "omitted": letter.omitted,
        "redriven": letter.redriven,
        "dropped": letter.dropped,
        "by": letter.by,
        "why": letter.why,
        **_bytes("key", letter.key),
        **_bytes("value", letter.value),
    }
    found["headers"] = [
        {**_bytes("name", name.encode("utf-8", "surrogateescape")), **_bytes("value", value)} for name, value in letter.headers
    ]
    return found


def _bytes(name: str, value: bytes | None) -> dict[str, str | None]:
    try:
        return {name: None if value is None else value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value or b"").decode()}
