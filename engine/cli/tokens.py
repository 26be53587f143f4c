"""`stepfold token …`: the bearer tokens of `stepfold serve`."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..values.duration import duration_ms
from ..values.words import iso
from .output import Format, OutputOption, local, print_rows, remark, say, table, zone
from .problems import Exit, Problem
from .web import needing_web

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the bearer tokens of [bold]stepfold serve[/].")

FileOption = Annotated[
    Path,
    typer.Option("--file", "-f", metavar="FILE", dir_okay=False, help="The file of the tokens, one JSON line each."),
]
DEFAULT = Path("tokens.jsonl")


class Grant(StrEnum):
    """The roles that a token can have."""

    VIEW = "view"
    PAYLOAD = "payload"
    OPERATE = "operate"
    ADMIN = "admin"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who uses the token: it stands in the history as [bold]by[/].")],
    role: Annotated[list[Grant], typer.Option("--role", "-r", help="What the token allows. Can be repeated.")],
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="DURATION", help='For how long it is valid, such as "30d".')
    ] = None,
    file: FileOption = DEFAULT,
) -> None:
    """Make a token and print it. It is shown only now: the file keeps its hash."""
    with needing_web():
        from ..http.routing import Role
        from ..http.tokens import changing, new_token
    try:
        expires_ms = None if expires is None else duration_ms(expires)
    except ValueError as error:
        raise Problem(f"--expires: {error}") from None
    try:
        secret, made = new_token(name, [Role(one) for one in role], expires_ms)
    except ConfigError as error:
        raise Problem(str(error)) from None
    with changing(file) as kept:
        if any(one.name == name for one in kept):
            raise Problem(f"{file} has a token {name!r}: choose another name, or revoke that one", Exit.NO)
        kept.append(made)
    say(secret)
    remark(f"{file} keeps its hash only: this is the one time that the token is shown")


@app.command("list")
def list_(file: FileOption = DEFAULT, output: OutputOption = Format.TABLE) -> None:
    """List the tokens: names, roles and times, not the tokens themselves."""
    with needing_web():
        from ..http.tokens import read_tokens
    found = read_tokens(file)
    now_ms = time.time() * 1000
    made = table("name", "roles", f"created ({zone()})", "expires", "state")
    for one in found:
        state = "expired" if one.ended(now_ms) else "valid"
        made.add_row(one.name, ", ".join(one.roles), local(one.created), local(one.expires), state)
    rows = [
        {
            "name": one.name,
            "roles": one.roles,
            "created": iso(one.created),
            "expires": iso(one.expires),
            "expired": one.ended(now_ms),
        }
        for one in found
    ]
    print_rows(output, rows, made, nothing=f"{file} has no tokens")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The name of the token.")],
    file: FileOption = DEFAULT,
) -> None:
    """Remove a token: servers that use the file refuse it from their next request on, and end its sessions."""
    with needing_web():
        from ..http.tokens import changing, read_tokens
    if not any(one.name == name for one in read_tokens(file)):
        raise Problem(f"{file} has no token {name!r}", Exit.NOT_FOUND)
    with changing(file) as kept:
        kept[:] = [one for one in kept if one.name != name]
    remark(f"{name} is revoked")
