"""A task watched in the terminal: a live view, or one line for each fact."""

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from app.asking import BAD, INTERRUPTED
from app.client import Client
from app.replies import Interrupted, NoAnswer, Reset, Told, task_of
from app.wording import lasted, line, lines, one_line, planned, problem, whats_needed
from eventstore.events import TaskId, ToolUsed
from projections.task import INITIAL, Status, Task, evolve

POLL_S = 30
NO_OFTENER_THAN_S = 0.1
TOOLS_SHOWN = 8
FRAMES_A_SECOND = 8
MIN_TEXT_LINES = 3
OTHER_LINES = 6
"""At most so many are not text: head, question, error, trouble."""
COLOURS: dict[Status, str] = {
    "absent": "dim",
    "pending": "dim",
    "queued": "dim",
    "running": "cyan",
    "waiting_for_input": "yellow",
    "awaiting_review": "yellow",
    "paused": "yellow",
    "completed": "green",
    "failed": "red",
    "cancelled": "red",
    "timed_out": "red",
}


def watch_task(client: Client, task_id: TaskId, *, plain: bool = False, as_json: bool = False) -> int:
    """Watch to the end, live in a terminal, else line by line. Gives the exit code."""
    live = not plain and not as_json and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    with _leaving(task_id):
        status = watch_live(client, task_id) if live else watch_lines(client, task_id, as_json=as_json)
    return 0 if status == "completed" else BAD


def wait_for(client: Client, content: bytes, *, as_json: bool = False) -> int:
    """Wait for the end of a task that was just created, and print its result. Gives the exit code."""
    body = task_of(content)
    said: str | None = None
    with _leaving(TaskId(body.task_id)):
        while not body.terminal:
            needed = whats_needed(body.status, body.task_id, body.question, body.review)
            if needed is not None and needed != said:
                click.echo(needed, err=True)
            said = needed
            changed = client.changed(TaskId(body.task_id), body.version, within_s=POLL_S)
            if changed is not None:
                content = changed
                body = task_of(content)
                # A task that says much changes twenty times a second, and nobody here needs each of them.
                time.sleep(0 if body.terminal else NO_OFTENER_THAN_S)
    if as_json:
        click.echo(content)
    elif body.result is not None:
        click.echo(lines(body.result) if sys.stdout.isatty() else body.result)
    elif body.approval_mode == "dry_run":
        # The plan is what a dry run is for.
        for planned in body.plan:
            click.echo(lines(f"{planned.tool}: {planned.why}" if planned.why else planned.tool))
    if body.status == "completed":
        return 0
    click.echo(
        f"the task ended as {body.status}" + (f": {one_line(problem(body.error))}" if body.error else ""), err=True
    )
    return BAD


@contextmanager
def _leaving(task_id: TaskId) -> Generator[None]:
    """Ctrl-C leaves the task alone, and says how to come back; so does giving up."""
    back = f"the task itself goes on; come back to it with: tasktrail watch {task_id}"
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"\n{back}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except NoAnswer as error:
        raise NoAnswer(f"{error}\n{back}") from error


def watch_lines(client: Client, task_id: TaskId, *, as_json: bool = False) -> Status:
    """One line for each fact, on standard output; what isn't a fact goes to standard error. Gives the last status."""
    task = INITIAL
    for said in client.follow(task_id):
        match said:
            case Told(recorded=recorded, item=item):
                before, task = task, evolve(task, recorded)
                click.echo(item if as_json else line(recorded))
                needed = _needed(task)
                if needed is not None and needed != _needed(before):
                    click.echo(needed, err=True)
            case Reset():
                task = INITIAL
                click.echo("the log is another than it was; from the beginning:", err=True)
            case Interrupted(why=why):
                click.echo(f"{why}; trying again", err=True)
    return settled(client, task_id, task)


def watch_live(client: Client, task_id: TaskId) -> Status:
    """A view that changes in place, and stays as it last was; below it the result. Gives the last status."""
    console = Console(highlight=False)
    view = View(task_id, console)
    with Live(
        get_renderable=view.render, console=console, refresh_per_second=FRAMES_A_SECOND, vertical_overflow="crop"
    ):
        for said in client.follow(task_id):
            view.take(said)
    body = task_of(client.get(task_id))
    if body.result is not None:
        click.echo(lines(body.result))
    return body.status


def settled(client: Client, task_id: TaskId, task: Task) -> Status:
    """How the task ended; asked for where it ended with a fact that this release does not know."""
    return task.status if task.ended else task_of(client.get(task_id)).status


class View:
    """What is seen of a task. `take` and `render` are called from two threads: what they share is replaced, never
    changed.
    """

    def __init__(self, task_id: TaskId, console: Console) -> None:
        self.task = INITIAL
        self._task_id = task_id
        self._console = console
        self._tools: tuple[ToolUsed, ...] = ()
        self._trouble: str | None = "connecting"

    def take(self, said: Told | Interrupted | Reset) -> None:
        """One more thing that the stream says."""
        match said:
            case Told(recorded=recorded):
                self._trouble = None
                self.task = evolve(self.task, recorded)
                if isinstance(recorded.record.fact, ToolUsed):
                    self._tools = (*self._tools, recorded.record.fact)[-TOOLS_SHOWN:]
            case Reset():
                self.task = INITIAL
                self._tools = ()
            case Interrupted(why=why):
                self._trouble = f"{why}; trying again"

    def render(self) -> RenderableType:
        """The view as it is now."""
        task = self.task
        parts: list[RenderableType] = [self._head(task)]
        rows = Table.grid(padding=(0, 2))
        if task.plan:
            rows.add_row(Text("plan", "dim"), Text(one_line(planned(task.plan))))
        for tool in self._tools:
            rows.add_row(Text("tool", "dim"), _tool(tool))
        if task.in_hand is not None:
            rows.add_row(Text("now", "dim"), Text(one_line(task.in_hand.name or task.in_hand.kind), "cyan"))
        parts.append(rows)
        shown_below = task.result is not None or "result" in task.blobs
        if task.partial_text and not shown_below:
            parts.append(self._end_of(task.partial_text, self._console.height - rows.row_count - OTHER_LINES))
        needed = _needed(task)
        if needed is not None:
            parts.append(Text(needed, "yellow"))
        if task.error is not None:
            parts.append(Text(one_line(problem(task.error)), "red"))
        if self._trouble is not None:
            parts.append(Text(one_line(self._trouble), "yellow"))
        return Group(*parts)

    def _end_of(self, text: str, room: int) -> Text:
        """As much of the text's end as there is room for."""
        room, width = max(MIN_TEXT_LINES, room), self._console.width
        end = Text(lines(text).strip()[-room * width :])
        return Text("\n").join(list(end.wrap(self._console, width))[-room:])

    def _head(self, task: Task) -> Text:
        head = Text(no_wrap=True, overflow="ellipsis")
        head.append(task.status if task.version else "…", f"bold {COLOURS[task.status]}")
        if task.created_at is not None:
            head.append(f"  {lasted(((task.ended_at or datetime.now(UTC)) - task.created_at).total_seconds())}")
        head.append(f"  {task.agent}  {self._task_id}", "dim")
        if task.run > 1:
            head.append(f"  run {task.run}", "dim")
        if task.title:
            head.append(f"  {one_line(task.title)}", "bold")
        return head


def _tool(used: ToolUsed) -> Text:
    said = Text(f"{one_line(used.tool)}  {used.took:.1f} s")
    if used.error is not None:
        said.append(f"  {one_line(problem(used.error))}", "red")
    return said


def _needed(task: Task) -> str | None:
    return whats_needed(task.status, task.task_id, task.question, task.review)
