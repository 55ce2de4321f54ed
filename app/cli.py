"""The command line: `tasktrail`, its process commands, and how every command ends.

Exit codes: 0 done, 1 the answer is bad (the task failed, say), 2 it could not be tried.
"""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from app import __version__
from app.agents.builtin import catalogue
from app.agents.catalogue import UnknownAgent
from app.child import COULD_NOT_TRY, ChildGaveUp, die_with_supervisor
from app.freezing import freeze_soon
from app.limit_options import BOUNDS, LIMITS
from app.listening import ServeError
from app.logs import configure_logs
from app.open_doors import warn_of_open_doors
from app.open_files import raise_open_files
from app.options import (
    AUDIT,
    GIVEN_NATS,
    LEASE,
    LISTEN,
    LOG,
    LOG_LEVEL,
    OAUTH,
    OFFER,
    OUR_NATS,
    SERVING,
    SWEEP,
    VIEWS,
    WEB,
    WORKING,
    agent_settings,
    as_environment,
    audit_settings,
    http_settings,
    log_settings,
    without_token,
    worker_settings,
)
from app.readiness import say_ready, wait_to_go
from app.supervisor import Ready, Site
from app.supervisor import serve as supervise
from eventstore.lock import DirectoryError
from eventstore.log import LogError
from eventstore.server import EmbeddedServerError

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


class NotTried(click.ClickException):
    """It could not be tried."""

    exit_code = COULD_NOT_TRY


class Commands(click.Group):
    """The client's commands are imported when one is asked for: no process of a service should carry them."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of ours, else one of the client's."""
        return super().get_command(ctx, cmd_name) or self._of_the_client().get(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The client's after ours."""
        return [*self.commands, *self._of_the_client()]

    def _of_the_client(self) -> dict[str, click.Command]:
        from app.client_commands import COMMANDS

        return {command.name: command for command in COMMANDS if command.name}


@click.group(
    cls=Commands,
    context_settings={
        "auto_envvar_prefix": "TASKTRAIL",
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="tasktrail")
def tasktrail() -> None:
    """Run long tasks for AI agents, and tell everyone the truth about them.

    \b
    tasktrail serve                       everything on this machine, in one command
    tasktrail submit "a text" --watch     a task, watched as it goes

    Exit codes: 0 done; 1 the answer is bad (the task failed, say); 2 it could not be tried.
    """


@tasktrail.command(
    params=[
        *(*LISTEN, *SERVING, *OFFER, OUR_NATS, *LOG, VIEWS, *AUDIT, *WEB, *OAUTH, *BOUNDS, *LIMITS, *WORKING),
        *(LEASE, SWEEP, LOG_LEVEL),
    ]
)
@click.pass_context
def serve(
    context: click.Context,
    data_dir: Path,
    token: str | None,
    api_processes: int,
    worker_processes: int,
    sync_interval: str,
    replicas: int,
    log_level: str,
    nats_url: str | None,
    views_url: str | None,
    audit_key: Path | None,
    **others: object,
) -> None:
    """Start everything on this machine.

    That is nats-server, API, projector and workers; what dies is started again, and all is kept in the data directory.
    Prints the URL, a token and a first `curl` when it is ready; the logs go to standard error. Ctrl-C stops it in
    order, a second Ctrl-C at once.
    """
    configure_logs(log_level, process="supervisor")
    if nats_url is None and (others["nats_creds"] or others["nats_ca"] or replicas != 1):
        raise click.UsageError("--nats-creds, --nats-ca and --replicas need --nats-url")
    environment = os.environ | as_environment(context)
    if nats_url is None and api_processes == 1:
        # Nobody else serves this log: within one API process polls and streams tell one story, unasked.
        environment.setdefault("TASKTRAIL_READS", "bounded")
    site = Site(
        data_dir=data_dir,
        http=http_settings(context.params),
        # The token is not among it: only this process needs it.
        environment=without_token(environment),
        nats=log_settings(context.params).nats if nats_url else None,
        views_url=views_url,
        audit_key=audit_key,
        token=token,
        replicas=replicas,
        api_processes=api_processes,
        worker_processes=worker_processes,
        sync_interval=sync_interval,
    )
    with tried():
        catalogue(agent_settings(context.params))
        warn_of_open_doors(site.http)
        raise_open_files()
        run(supervise(site, announce))


@tasktrail.command(params=[*LISTEN, GIVEN_NATS, *LOG, VIEWS, *OFFER, *WEB, *OAUTH, *BOUNDS, *LIMITS, LOG_LEVEL])
@click.option("--fd", type=int, hidden=True, help="A socket that already listens: the supervisor's.")
@click.option("--go-fd", type=int, hidden=True, help="What is closed when there is a NATS.")
@click.option("--ready-fd", type=int, hidden=True, help="Where to say that we are ready.")
@click.option("--name", default="api", hidden=True, help="Which of the supervisor's it is.")
def api(
    fd: int | None, go_fd: int | None, ready_fd: int | None, name: str, views_url: str | None, **given: object
) -> None:
    """Answer HTTP, on a shared NATS.

    As many of these as wanted, each with an address of its own, behind any load balancer.
    """
    # Imported here: it takes litestar along, which no other process needs.
    from app.serving import answer

    configure_logs(str(given["log_level"]), process=name)
    die_with_supervisor()
    http = http_settings(given)

    def told() -> None:
        if ready_fd is not None:
            say_ready(ready_fd, name)

    with tried():
        agents = catalogue(agent_settings(given))
        if fd is None:
            warn_of_open_doors(http)
            raise_open_files()
        if go_fd is not None:
            wait_to_go(go_fd)
        run(answer(log_settings(given), http, agents, views_url, fd, told))


@tasktrail.command(params=[GIVEN_NATS, *LOG, *OFFER, *WORKING, LEASE, LOG_LEVEL])
@click.option("--worker-id", envvar="TASKTRAIL_WORKER_ID", hidden=True, help="A name that no other worker has had.")
def worker(worker_id: str | None, **given: object) -> None:
    """Run agents, on a shared NATS.

    As many of these as wanted. A task whose worker dies is taken over when its lease ends.
    """
    from app.worker import new_worker_id, run_worker

    worker_id = worker_id or new_worker_id()
    configure_logs(str(given["log_level"]), process=worker_id)
    die_with_supervisor()
    with tried():
        agents = catalogue(agent_settings(given))
        run(until_told(run_worker(log_settings(given), agents, worker_settings(given), worker_id)))


@tasktrail.command(params=[GIVEN_NATS, *LOG, VIEWS, *AUDIT, *OFFER, LEASE, SWEEP, LOG_LEVEL])
def projector(views_url: str | None, **given: object) -> None:
    """Hand out the work, carry the views that lists are read from, and sign checkpoints of the log, on a shared NATS.

    One is needed; of several one leads in each, and the others stand by.
    """
    from app.projecting import run_projector

    configure_logs(str(given["log_level"]), process="projector")
    die_with_supervisor()
    with tried():
        settings = agent_settings(given)
        agents = catalogue(settings)
        limits = {name: agents.limit(name) for name in agents.names}
        work = worker_settings(given)
        signing = audit_settings(given)
        run(until_told(run_projector(log_settings(given), settings, work, limits, views_url, signing)))


async def until_told(work: Coroutine[object, object, None]) -> None:
    """Until SIGINT or SIGTERM; a second one interrupts the leaving too."""
    running = asyncio.ensure_future(work)
    freeze_soon()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    with suppress(asyncio.CancelledError):
        await running


def run(work: Coroutine[object, object, None]) -> None:
    """On uvloop, where there is one."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


@contextmanager
def tried() -> Generator[None]:
    """What is wrong with the world, not with us, is one line and exit code 2."""
    try:
        yield
    except (ServeError, ChildGaveUp, DirectoryError, EmbeddedServerError, LogError, UnknownAgent) as error:
        raise NotTried(str(error)) from error


def announce(ready: Ready) -> None:
    """What a newcomer needs, on standard output."""
    trust = f" --cacert {shlex.quote(str(ready.certificate))}" if ready.certificate else ""
    bearer = shlex.quote(f"Authorization: Bearer {ready.token}")
    click.echo(f"""\
Tasktrail {__version__} is ready; Ctrl-C stops it.

  URL    {ready.url}   (reference: {ready.url}/docs)
  token  {ready.token}
  data   {ready.data_dir}

Try it:

  curl -i{trust} {ready.url}/tasks -H {bearer} -H 'Content-Type: application/json' -d '{{"input": "hello"}}'
""")
    sys.stdout.flush()


def main() -> None:
    """Run a command; every error is one line on standard error."""
    try:
        code: object = tasktrail.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"tasktrail: {' '.join(error.format_message().split())}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)
