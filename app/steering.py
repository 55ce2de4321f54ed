"""The commands that change a task's course: answer, approve, refuse, pause, resume, cancel."""

import click

from app.asking import ApiCommand, json_option, task_argument, text_of
from app.client import Client
from app.replies import task_of
from app.wording import whats_needed
from eventstore.events import TaskId


@click.command(cls=ApiCommand)
@task_argument
@click.option("--reason", help="Why, for the log.")
@json_option
@click.pass_obj
def cancel(client: Client, task_id: TaskId, reason: str | None, as_json: bool) -> None:
    """End a task as cancelled, at once. The step in hand is not interrupted; no further one begins.

    \b
    Example:
      tasktrail cancel task_01890a5d-ac96-774b-bcce-b302099a8057 --reason "no longer needed"
    """
    _report(client.command(task_id, "cancel", {"reason": reason}), as_json=as_json)


@click.command(cls=ApiCommand)
@task_argument
@click.argument("text", callback=text_of)
@json_option
@click.pass_obj
def answer(client: Client, task_id: TaskId, text: str, as_json: bool) -> None:
    """Answer what the task asks; if it asks nothing, leave a message in its inbox. `-` and `@FILE` as in submit.

    \b
    Example:
      tasktrail answer task_01890a5d-ac96-774b-bcce-b302099a8057 "The blue one"
    """
    _report(client.command(task_id, "messages", {"text": text}), as_json=as_json)


@click.command(cls=ApiCommand)
@task_argument
@click.option("--feedback", help="What the agent should know.")
@json_option
@click.pass_obj
def approve(client: Client, task_id: TaskId, feedback: str | None, as_json: bool) -> None:
    """Approve what awaits your review: a plan, or what the agent is about to do.

    \b
    Example:
      tasktrail approve task_01890a5d-ac96-774b-bcce-b302099a8057
    """
    _report(client.command(task_id, "review", {"approved": True, "feedback": feedback}), as_json=as_json)


@click.command(cls=ApiCommand)
@task_argument
@click.option("--feedback", help="What the agent should know.")
@json_option
@click.pass_obj
def refuse(client: Client, task_id: TaskId, feedback: str | None, as_json: bool) -> None:
    """Refuse what awaits your review. The agent is told, and decides how to go on.

    \b
    Example:
      tasktrail refuse task_01890a5d-ac96-774b-bcce-b302099a8057 --feedback "not to customers"
    """
    _report(client.command(task_id, "review", {"approved": False, "feedback": feedback}), as_json=as_json)


@click.command(cls=ApiCommand)
@task_argument
@click.option("--reason", help="Why, for the log.")
@json_option
@click.pass_obj
def pause(client: Client, task_id: TaskId, reason: str | None, as_json: bool) -> None:
    """Pause a task: when its step in hand has ended, or at once where nobody runs it.

    \b
    Example:
      tasktrail pause task_01890a5d-ac96-774b-bcce-b302099a8057
    """
    _report(client.command(task_id, "pause", {"reason": reason}), as_json=as_json)


@click.command(cls=ApiCommand)
@task_argument
@json_option
@click.pass_obj
def resume(client: Client, task_id: TaskId, as_json: bool) -> None:
    """Go on with a paused task.

    \b
    Example:
      tasktrail resume task_01890a5d-ac96-774b-bcce-b302099a8057
    """
    _report(client.command(task_id, "resume"), as_json=as_json)


def _report(content: bytes, *, as_json: bool) -> None:
    """What became of the task."""
    if as_json:
        click.echo(content)
        return
    task = task_of(content)
    click.echo(f"{task.task_id} is {task.status}" + (", to be paused" if task.pause_requested else ""))
    needed = whats_needed(task.status, task.task_id, task.question, task.review)
    if needed is not None:
        click.echo(needed, err=True)
