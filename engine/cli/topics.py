"""`stepfold topics …`: the Kafka topics of a namespace, and the contract of their records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType

from ..errors import ConfigError
from .output import Format, OutputOption, Text, print_object, print_rows, remark, say, table
from .problems import Exit, Problem
from .target import AppOption, UrlOption, client_of, run_async

if TYPE_CHECKING:
    from stepfold.drivers import KafkaDriver

app = typer.Typer(no_args_is_help=True, help="Create, check and describe the Kafka topics of a namespace.")


def kafka_of(app: str | None, url: str | None) -> KafkaDriver:
    """The Kafka log that the options name. Raises Problem for any other log."""
    from stepfold.drivers import KafkaDriver

    log = client_of(app, url).log
    if not isinstance(log, KafkaDriver):
        raise Problem(f"{log.name} has no topics: name a Kafka log with --url kafka://host:port/namespace")
    return log


@app.command()
def create(
    partitions: Annotated[
        int,
        typer.Option(
            "--partitions", "-p", min=1, max=1_000_000, help="Partitions of the history. Fixed for ever; in production 32 to 256."
        ),
    ],
    replication: Annotated[
        int, typer.Option("--replication", "-r", min=1, max=1_000, help="Copies of each record; in production 3.")
    ],
    app: AppOption = None,
    url: UrlOption = None,
) -> None:
    """Create the missing topics. Creates none if one exists with other settings."""
    log = kafka_of(app, url)

    async def go() -> None:
        before = {topic.name for topic in await log.describe()}
        try:
            await log.create_topics(partitions, replication)
        except ConfigError as error:
            raise Problem(str(error), Exit.LOG) from None
        for topic in await log.describe():
            say(f"{topic.name} {'exists' if topic.name in before else 'created'}")

    run_async(go())


@app.command()
def check(app: AppOption = None, url: UrlOption = None, output: OutputOption = Format.TABLE) -> None:
    """Check the topics; print each problem and its fix. Exits with 1 if workers would refuse to run."""
    log = kafka_of(app, url)
    findings = run_async(log.check_topics())
    rows = [{"topic": f.topic, "problem": f.problem, "mend": f.mend, "fatal": f.fatal} for f in findings]
    picture: list[RenderableType] = []
    for finding in findings:
        label = ("error  ", "bold red") if finding.fatal else ("advice ", "bold yellow")
        picture += [Text.assemble(label, (finding.topic, "bold"), f": {finding.problem}"), Text(f"       {finding.mend}")]
    print_rows(output, rows, Group(*picture), nothing=f"the topics of {log.name} are as they should be")
    wrong = sum(finding.fatal for finding in findings)
    if wrong:
        raise Problem(f"{wrong} of the findings must be fixed before a worker can run on {log.name}", Exit.NO)


@app.command()
def describe(
    app: AppOption = None,
    url: UrlOption = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the history instead. Needs no broker.")
    ] = False,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="Print the AsyncAPI 3 document instead. Needs no broker.")] = False,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show the topics as they are, or print the contract of their records, for programs that use them without stepfold."""
    if schema and asyncapi:
        raise Problem("--schema and --asyncapi: ask for one of them")
    if schema:
        from .asyncapi import history_schema

        print_object(Format.JSON if output is Format.TABLE else output, history_schema(), "")
        return
    log = kafka_of(app, url)
    if asyncapi:
        from .asyncapi import document

        print_object(Format.JSON if output is Format.TABLE else output, document(log.namespace, log.bootstrap), "")
        return
    topics = run_async(log.describe())
    rows = [
        {"name": t.name, "id": t.id, "partitions": t.partitions, "replication": t.replication, "settings": dict(t.settings)}
        for t in topics
    ]
    made = table("topic", "partitions", "replication", "kept", "id", right=("partitions", "replication"))
    for topic in topics:
        cleanup = topic.settings.get("cleanup.policy", "")
        retention_ms = int(topic.settings.get("retention.ms", "-1"))
        kept = "for ever" if retention_ms < 0 else f"{retention_ms / 86_400_000:g} d"
        kept = "the latest per key" if cleanup == "compact" else kept
        made.add_row(topic.name, str(topic.partitions), str(topic.replication), kept, topic.id)
    print_rows(output, rows, made, nothing=f"{log.name} has no topics yet: stepfold topics create")
    if output is Format.TABLE:
        remark("their contents: --schema (JSON Schema of the history), --asyncapi (all topics)")
