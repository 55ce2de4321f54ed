"""Niyra's calls, however they came: by its HTTP routes, or as tools of its MCP endpoint."""

from collections.abc import Callable, Mapping
from time import monotonic
from uuid import uuid4

import msgspec
from msgspec import Struct

from app.agents.catalogue import Catalogue
from app.auth import Principal
from app.bounds import Held, NoRoom
from app.commands import DecideReview
from app.conversation import earlier_tasks
from app.decide import Rejected
from app.dialects.niyra import (
    NewExecution,
    NewQuestion,
    ToolDisabled,
    confirmed_id,
    render_answered,
    render_executed,
    to_command,
)
from app.dialects.polling import large_fields, wait_until
from app.problems import BadRequest, NotFound, Refused
from app.settings import HttpSettings
from app.tasks import Cause, Tasks
from app.views import Lists
from projections.task import Task

NOTHING_TO_CONFIRM = "confirmed_task_id: this task has no plan that could be confirmed"


class Caller(Struct, frozen=True, kw_only=True):
    """Who calls, by which request, which may hold so much, and under which idempotency key."""

    principal: Principal
    cause: Cause
    held: Held
    key: str | None = None


class Told(Struct, frozen=True, kw_only=True):
    """The answer, and the task that it is about; `replayed`: the key's first call had begun it."""

    task: Task
    body: bytes
    replayed: bool = False


class Calls:
    """What the calls are carried out with."""

    def __init__(self, *, tasks: Tasks, lists: Lists, catalogue: Catalogue, http: HttpSettings) -> None:
        self.tasks = tasks
        self._lists = lists
        self._catalogue = catalogue
        self._http = http

    async def execute(self, caller: Caller, wanted: NewExecution) -> Told:
        """Do it, and wait for the end, or until it waits for somebody, or until the window is over.

        Raises NotAllowed, BadRequest, NotFound, Refused, ToolDisabled, ViewsUnavailable, LogError."""
        began = monotonic()
        caller.principal.need("niyra:execute")
        if wanted.confirmed_task_id is None:
            task, replayed = await self._begin(caller, wanted)
        else:
            task, replayed = await self._confirm(caller, wanted.confirmed_task_id), False
        task = await self._waited(task, _done_here, self._http.niyra_execute_window_s, began)
        body = render_executed(task, await self._large_of(caller, task), _ms_since(began))
        return Told(task=task, body=body, replayed=replayed)

    async def ask(self, caller: Caller, question: NewQuestion) -> Told:
        """Find the answer, until the window is over. Raises as `execute`."""
        began = monotonic()
        caller.principal.need("niyra:ask")
        task, replayed = await self._begin(caller, question)
        task = await self._waited(task, _done_here, self._http.niyra_ask_window_s, began)
        body = render_answered(task, await self._large_of(caller, task), _ms_since(began))
        return Told(task=task, body=body, replayed=replayed)

    async def _begin(self, caller: Caller, wanted: NewExecution | NewQuestion) -> tuple[Task, bool]:
        """The new task, or the one that this idempotency key stands for."""
        owner = caller.principal.owner
        conversation_id = str(wanted.conversation_id or uuid4())
        command = to_command(wanted, agent=self._catalogue.default, conversation_id=conversation_id)
        if wanted.conversation_id is not None:
            caller.principal.need("niyra:followup")
            earlier = await earlier_tasks(self.tasks, self._lists, owner, conversation_id)
            command = msgspec.structs.replace(command, earlier=earlier)
        done = await self.tasks.create(owner, command, caller.cause, key=caller.key)
        if isinstance(done, Rejected):
            raise Refused(done)
        return done.task, done.recorded is None

    async def _confirm(self, caller: Caller, pending: str) -> Task:
        """The task whose plan is approved now, or was before."""
        owner, task_id = caller.principal.owner, confirmed_id(pending)
        attached, _ = await self.tasks.get(owner, task_id)
        if attached is None:
            raise NotFound("no such task")
        task = attached.task
        if task.dialect != "niyra" or task.approval_mode != "confirm":
            # Its result is for whoever may poll it, which this call's scope does not allow.
            raise BadRequest(NOTHING_TO_CONFIRM)
        if task.plan_awaits_review:
            # By its step: not a later plan, which its owner has not seen.
            approve = DecideReview(approved=True, step=task.plan_step)
            done = await self.tasks.execute(owner, task_id, approve, caller.cause)
            if not isinstance(done, Rejected):
                return done.task
            if done.reason not in ("ended", "not_waiting"):
                raise Refused(done)
            async with self.tasks.attach(owner, task_id) as again:  # somebody else was faster
                task = again.task
        if task.ended or task.plan_approved:
            return task
        raise BadRequest(NOTHING_TO_CONFIRM)

    async def _waited(self, task: Task, answers: Callable[[Task], bool], window_s: float, began: float) -> Task:
        return await wait_until(self.tasks, task, answers, window_s - (monotonic() - began))

    async def _large_of(self, caller: Caller, task: Task) -> Mapping[str, object]:
        """Raises ToolDisabled: that is no answer, but a refusal; NoRoom, though the task has begun."""
        if task.status == "failed" and task.error is not None and task.error.code == "tool_disabled":
            raise ToolDisabled(task)
        try:
            return await large_fields(caller.held, self.tasks, task)
        except NoRoom as error:
            raise NoRoom(task.task_id) from error


def _done_here(task: Task) -> bool:
    """Whether waiting on is of no use: its next word is its caller's, or another person's."""
    return task.ended or task.status in ("waiting_for_input", "awaiting_review")


def _ms_since(began: float) -> int:
    return round((monotonic() - began) * 1000)
