"""The client's commands: submit, watch, show; and all of them, for the command line."""

import click
import msgspec

from app.asking import SEQUENCE, ApiCommand, json_option, task_argument, text_of
from app.audit import audit
from app.client import Client, new_key
from app.replies import NotTried, task_of
from app.schema_commands import schemas
from app.steering import answer, approve, cancel, pause, refuse, resume
from app.token_commands import tokens
from app.tool_commands import tools
from app.view_commands import list_tasks, views
from app.watching import wait_for, watch_task
from app.wording import as_it_was, card, line, whats_needed
from eventstore.events import Json, TaskId

MAX_KEY = 255


def metadata_of(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, Json]:
    """A JSON object."""
    try:
        return {} if value is None else msgspec.json.decode(value, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise click.BadParameter(f"not a JSON object: {error}", ctx, param) from error


def key_of(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """The key that was given, else one of our own: a command that is repeated is still one."""
    if value is None:
        return new_key()
    if not (1 <= len(value) <= MAX_KEY and value.isascii() and value.isprintable()):
        raise click.BadParameter(f"a key has 1 to {MAX_KEY} printable ASCII characters", ctx, param)
    return value


@click.command(cls=ApiCommand)
@click.argument("text", callback=text_of)
@click.option("--agent", help="The agent to do it.  [the service's default]")
@click.option("--title", help="What to call it.")
@click.option("--session", "session_id", help="The session that it belongs to.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="It ends as timed out if it is not done by then.",
)
@click.option("--approval-mode", type=click.Choice(["auto", "dry_run", "confirm"]), help="What its plan needs.")
@click.option("--metadata", callback=metadata_of, metavar="JSON", help="A JSON object to keep with it.")
@click.option("--json-input", is_flag=True, help="TEXT is JSON, and is sent as that instead of as a text.")
@click.option("--key", callback=key_of, help="An idempotency key: the same key and task again is the same task.")
@click.option("--wait", is_flag=True, help="Wait for its end and print its result.")
@click.option("--watch", "watched", is_flag=True, help="Watch it to its end.")
@json_option
@click.pass_obj
@click.pass_context
def submit(
    ctx: click.Context,
    client: Client,
    text: str,
    json_input: bool,
    key: str,
    wait: bool,
    watched: bool,
    as_json: bool,
    **wishes: object,
) -> None:
    """Begin a task and print its id. TEXT says what is wanted; `-` reads standard input, `@FILE` a file.

    Trying again where the service does not answer creates nothing twice: an idempotency key goes with it.

    \b
    Examples:
      tasktrail submit "Compare NATS and Kafka" --agent researcher --watch
      tasktrail submit @scenario.json --agent simulator --wait > result.txt
    """
    if wait and watched:
        raise click.UsageError("--wait or --watch, not both")
    body = {name: wish for name, wish in wishes.items() if wish is not None}
    body["input"] = _json(text) if json_input else text
    try:
        created = client.submit(body, key=key)
    except NotTried as error:
        raise NotTried(
            f"{error}; whether or not it was created, repeating it with --key {key} creates it once"
        ) from error
    task = task_of(created)
    if wait or watched:
        click.echo(f"{task.task_id} was created", err=True)
    if wait:
        ctx.exit(wait_for(client, created, as_json=as_json))
    if watched:
        ctx.exit(watch_task(client, TaskId(task.task_id), as_json=as_json))
    click.echo(created if as_json else task.task_id)


def _json(text: str) -> Json:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--json-input: TEXT is no JSON: {error}") from error


@click.command(cls=ApiCommand)
@task_argument
@click.option("--plain", is_flag=True, help="A line for each fact, also in a terminal.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each fact, as the API gives it.")
@click.pass_obj
@click.pass_context
def watch(ctx: click.Context, client: Client, task_id: TaskId, plain: bool, as_json: bool) -> None:
    """Watch a task from its beginning to its end: status, tools, text as it arrives. Ctrl-C leaves the task running.

    Where standard output is no terminal, a line for each fact. A cut connection is made anew and nothing is missed or
    doubled. The exit code is 0 if the task completed, else 1.

    \b
    Example:
      tasktrail watch task_01890a5d-ac96-774b-bcce-b302099a8057
    """
    ctx.exit(watch_task(client, task_id, plain=plain, as_json=as_json))


@click.command(cls=ApiCommand)
@task_argument
@click.option("--events", is_flag=True, help="Its history instead: a line for each fact, with its sequence (for --at).")
@click.option("--at", type=SEQUENCE, metavar="SEQUENCE", help="As it was when the log was there.")
@json_option
@click.pass_obj
def show(client: Client, task_id: TaskId, events: bool, at: int | None, as_json: bool) -> None:
    """Show a task as it is now, or as it was.

    \b
    Examples:
      tasktrail show task_01890a5d-ac96-774b-bcce-b302099a8057
      tasktrail show task_01890a5d-ac96-774b-bcce-b302099a8057 --events --json
      tasktrail show task_01890a5d-ac96-774b-bcce-b302099a8057 --at 31
    """
    if events and at is not None:
        raise click.UsageError("--events or --at, not both")
    if events:
        for told in client.history(task_id):
            click.echo(told.item if as_json else f"#{told.recorded.sequence:<6} {line(told.recorded)}")
        return
    content = client.get(task_id, at=at)
    if as_json:
        click.echo(content)
        return
    body = task_of(content)
    if at is not None:
        click.echo(card(body, now=body.updated_at))
        click.echo(as_it_was(body, at), err=True)
        return
    click.echo(card(body))
    needed = whats_needed(body.status, body.task_id, body.question, body.review)
    if needed is not None:
        click.echo(needed, err=True)


COMMANDS: list[click.Command] = [
    submit,
    watch,
    show,
    list_tasks,
    answer,
    approve,
    refuse,
    pause,
    resume,
    cancel,
    tokens,
    tools,
    views,
    audit,
    schemas,
]
