"""`tasktrail list`, which reads the views over HTTP, and `tasktrail views rebuild`, which builds them anew."""

import time
from datetime import datetime
from pathlib import Path

import click

from app.asking import TIME, ApiCommand, NatsCommand
from app.checked import checked_views_url
from app.client import Client, local_in
from app.freezing import run_frozen
from app.progress import Show, bar
from app.replies import NoAddress, NotTried, task_of
from app.token_commands import connected, replicas_of
from app.wording import moment, table
from eventstore.connection import NatsAddress
from eventstore.jetstream import STREAM, JetStreamLog

MAX_PAGE = 100


@click.command(name="list", cls=ApiCommand)
@click.option("--status", multiple=True, metavar="A,B", help="Only those with one of these statuses; repeatable.")
@click.option("--agent", help="Only those of this agent.")
@click.option("--session", "session_id", help="Only those of this session.")
@click.option(
    "--created-after", type=TIME, metavar="TIME", help="Only later ones: 2026-01-31, or 2026-01-31T12:00:00Z."
)
@click.option("--created-before", type=TIME, metavar="TIME", help="Only earlier ones.")
@click.option("--q", metavar="TEXT", help="Only those with this in their title or input.")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=20, help="How many.", show_default=True)
@click.option("--all", "everything", is_flag=True, help="All of them, however many.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, one task a line, as the API gives it.")
@click.pass_obj
def list_tasks(
    client: Client,
    limit: int,
    everything: bool,
    as_json: bool,
    status: tuple[str, ...],
    **filters: str | datetime | None,
) -> None:
    """List your tasks, newest first.

    \b
    Examples:
      tasktrail list --status running,waiting_for_input
      tasktrail list --all --json
    """
    query: dict[str, str | int] = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in filters.items()
        if value is not None
    }
    if status:
        query["status"] = ",".join(status)
    query["limit"] = MAX_PAGE if everything else limit
    rows: list[tuple[str, ...]] = []
    while True:
        page = client.tasks(query)
        for raw in page.data:
            if as_json:
                click.echo(bytes(raw))
            else:
                rows.append(_row(bytes(raw)))
        if page.next_cursor is None or not everything:
            break
        query["cursor"] = page.next_cursor
    if not as_json:
        click.echo(table(("ID", "STATUS", "AGENT", "CREATED", "TITLE"), rows))
    if page.has_more and not everything:
        click.echo("there are more: --all lists them too", err=True)


def _row(content: bytes) -> tuple[str, ...]:
    task = task_of(content)
    title = task.title or (task.input if isinstance(task.input, str) else "")
    created = "" if task.created_at is None else moment(task.created_at)
    return task.task_id, task.status, task.agent, created, title[:60]


@click.group(name="views")
def views() -> None:
    """Look after the views, from which lists are read: all in them comes from the log."""


class ViewsCommand(NatsCommand):
    """A command that is also told where the views are: its option, else what the data directory says."""

    def ask(self, ctx: click.Context) -> object:
        """Find that address first."""
        data_dir: Path = ctx.params["data_dir"]
        if ctx.params["views_url"] is None:
            ctx.params["views_url"] = _views_in(data_dir)
        return super().ask(ctx)


def _views_in(data_dir: Path) -> str:
    local = local_in(data_dir)
    if local.views is None:
        raise NoAddress(f"the service of {data_dir} is stopped; `tasktrail serve` starts it, or give --views-url")
    return local.views


@views.command(cls=ViewsCommand)
@click.option(
    "--views-url",
    envvar="TASKTRAIL_VIEWS_URL",
    metavar="URL",
    callback=checked_views_url,
    help="Where the views are, if not where the service on this machine has them.",
)
@click.pass_obj
def rebuild(nats: NatsAddress, views_url: str) -> None:
    """Build the views anew from the log, beside those that are read meanwhile, and switch to them at the end.

    \b
    Example:
      tasktrail views rebuild
    """
    since = time.monotonic()
    with bar() as show:
        records = run_frozen(_rebuild(nats, views_url, show))
    seconds = max(time.monotonic() - since, 0.001)
    click.echo(f"the views are built anew: {records:,} records in {seconds:.1f} s, {records / seconds:,.0f} a second")


async def _rebuild(nats: NatsAddress, views_url: str, show: Show) -> int:
    # Imported here: most commands have no use for a database's driver.
    from projections.database import Database
    from projections.generations import Generation
    from projections.projector import Projector
    from projections.views_errors import ViewsError

    async with connected(nats, "tasktrail-views-rebuild") as connection:
        replicas = await replicas_of(connection, STREAM)
        if not replicas:
            raise NotTried("there is no log on this NATS yet, so there is nothing to build from")
        event_log = await JetStreamLog.open(connection, replicas=replicas)
        database = Database.open(views_url)
        try:
            generation = await Generation.fresh(database)
            projector = Projector(
                event_log, database, generation=generation, on_progress=lambda at: show(at.position, at.end)
            )
            try:
                return await projector.run_to_end()
            finally:
                await projector.close()
        except ViewsError as error:
            raise NotTried(f"the views could not be built: {error}") from error
        finally:
            await database.close()
            await event_log.close()
