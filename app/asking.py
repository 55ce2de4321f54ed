"""The commands of the command line that ask a running service: their shared options, their errors, their exit codes.

0: done. 1: the answer is bad (the task failed; a 4xx). 2: it could not be tried (no service, no token, bad usage).
"""

import io
import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from app.checked import checked_nats_url
from app.client import Client, local_in, where
from app.dialects.native import task_id_of
from app.local import DEFAULT_DIRECTORY
from app.logs import configure_logs
from app.replies import ClientError, NoAddress, Refused
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from eventstore.log import LogError

BAD, UNTRIED = 1, 2
MAX_DIGITS = 18
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


DIRECTORY = click.Option(
    ["--data-dir"],
    type=click.Path(path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    envvar="TASKTRAIL_DATA_DIR",
    help="Where the service on this machine keeps its address and token.",
)
SERVICE = (
    DIRECTORY,
    click.Option(
        ["--url"],
        envvar="TASKTRAIL_URL",
        metavar="URL",
        help="The service's URL, where it is not on this machine; needs a token.",
    ),
    click.Option(
        ["--token"],
        envvar="TASKTRAIL_TOKEN",
        metavar="TOKEN",
        help="Better in the environment as TASKTRAIL_TOKEN: others on this machine can read a command line (ps).",
    ),
    click.Option(
        ["--retry-for"],
        type=click.FloatRange(min=0),
        envvar="TASKTRAIL_RETRY_FOR",
        metavar="SECONDS",
        help="How long to go on trying where nothing answers (default: 5, and 60 while a task is being watched).",
    ),
)
NATS = (
    DIRECTORY,
    click.Option(
        ["--nats-url"],
        envvar="TASKTRAIL_NATS_URL",
        metavar="URL",
        callback=checked_nats_url,
        help="Where NATS is, if not where the service on this machine has it.",
    ),
    click.Option(
        ["--nats-creds"],
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        envvar="TASKTRAIL_NATS_CREDS",
        help="A NATS credentials file.",
    ),
    click.Option(
        ["--nats-ca"],
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        envvar="TASKTRAIL_NATS_CA",
        help="The authority (PEM) that signs NATS's certificate.",
    ),
)


class TaskIdType(click.ParamType[TaskId]):
    """A task's id."""

    name = "task_id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> TaskId:
        """`task_<uuid>`, or the bare UUID."""
        task_id = task_id_of(value)
        if task_id is None:
            self.fail(f"{value!r} is no task id: one is task_ and a UUID", param, ctx)
        return task_id


TASK_ID = TaskIdType()


class TimeType(click.ParamType[datetime]):
    """A moment: a date, or a date and a time; in UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """RFC 3339, or a part of it."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time: write 2026-01-31, or 2026-01-31T12:00:00Z", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


TIME = TimeType()


class SequenceType(click.ParamType[int]):
    """A place in the log."""

    name = "sequence"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A number, also as `show --events` writes it."""
        if isinstance(value, int):
            return value
        digits = value.removeprefix("#")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS):
            self.fail(f"{value!r} is no sequence of the log: `tasktrail show TASK_ID --events` tells them", param, ctx)
        return int(digits)


SEQUENCE = SequenceType()


json_option = click.option("--json", "as_json", is_flag=True, help="For programs: the task as the API gives it.")
task_argument = click.argument("task_id", type=TASK_ID)


def text_of(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The text itself; `-`: standard input; `@file`: that file."""
    if value is None:
        return None
    try:
        if value == "-":
            return sys.stdin.buffer.read().decode()
        if value.startswith("@"):
            return Path(value[1:]).read_bytes().decode()
    except OSError as error:
        raise click.BadParameter(f"{value[1:]}: {error.strerror}", ctx, param) from error
    except UnicodeError as error:
        raise click.BadParameter("it is no UTF-8 text", ctx, param) from error
    return value


class Asking(click.Command):
    """A command whose errors are one line on standard error, and its exit code."""

    def invoke(self, ctx: click.Context) -> object:
        """Run it; never a traceback for what is wrong with the world."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # What an agent says may not fit the terminal's encoding: better a question mark than no answer.
                stream.reconfigure(errors="replace")
        for name, value in ctx.params.items():
            if isinstance(value, str) and _has_surrogates(value):
                raise click.BadParameter("it is no UTF-8 text", ctx, param_hint=name)
        try:
            return self.ask(ctx)
        except Refused as error:
            click.echo(f"refused: {error}", err=True)
            ctx.exit(BAD)
        except (ClientError, LogError) as error:
            click.echo(str(error), err=True)
            ctx.exit(UNTRIED)

    def ask(self, ctx: click.Context) -> object:
        """What it does, once it is connected."""
        return super().invoke(ctx)


class ApiCommand(Asking):
    """A command that asks the HTTP API: its function's first argument is a Client (by `click.pass_obj`)."""

    def ask(self, ctx: click.Context) -> object:
        """Connect first."""
        data_dir: Path = ctx.params.pop("data_dir")
        url: str | None = ctx.params.pop("url")
        token: str | None = ctx.params.pop("token")
        retry_for_s: float | None = ctx.params.pop("retry_for")
        with Client(where(data_dir, url, token), retry_for_s=retry_for_s) as client:
            ctx.obj = client
            return super().ask(ctx)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, and where the service is."""
        own = super().get_params(ctx)
        return [*own[:-1], *SERVICE, *own[-1:]]


class NatsCommand(Asking):
    """A command that writes to NATS itself: its function's first argument is a NatsAddress (by `click.pass_obj`)."""

    def ask(self, ctx: click.Context) -> object:
        """Find the address first."""
        data_dir: Path = ctx.params.pop("data_dir")
        url: str | None = ctx.params.pop("nats_url")
        creds: Path | None = ctx.params.pop("nats_creds")
        ca: Path | None = ctx.params.pop("nats_ca")
        # Standard output is for what was asked for, and warnings of the connection are not.
        configure_logs("error")
        ctx.obj = _nats_in(data_dir) if url is None else NatsAddress(url=url, creds=creds, ca=ca)
        return super().ask(ctx)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, and where NATS is."""
        own = super().get_params(ctx)
        return [*own[:-1], *NATS, *own[-1:]]


def _nats_in(data_dir: Path) -> NatsAddress:
    local = local_in(data_dir)
    if local.nats is None:
        raise NoAddress(f"the service of {data_dir} is stopped; `tasktrail serve` starts it")
    return local.nats


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeError:
        return True
    return False
