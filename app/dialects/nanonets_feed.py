"""A task's history as Nanonets tells it: the feed of all that was done, and the messages; written as they are read."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from hashlib import sha256
from typing import Literal, assert_never

import msgspec
import structlog
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from app.auth import Principal, Revocations
from app.bounding import held_by
from app.bounds import NoRoom
from app.dialects.nanonets import agent_id, bare
from app.following import READING, history_page
from app.readers import LEFT, Reader
from app.streams import Streams, abort_later, gone, held, until_over
from app.tasks import Tasks
from app.telling import send_body
from eventstore.events import (
    InputReceived,
    InputRequested,
    Json,
    PartialProduced,
    PauseRequested,
    PlanProposed,
    ReviewDecided,
    ReviewRequested,
    RunFailed,
    StepFinished,
    StepStarted,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFact,
    TaskFailed,
    TaskPaused,
    TaskQueued,
    TaskResumed,
    TaskStarted,
    TaskTimedOut,
    ToolUsed,
    UnknownFact,
    tag_of,
)
from eventstore.log import LogError, Recorded
from projections.task import Task

log = structlog.stdlib.get_logger()

Whole = tuple[Recorded, TaskFact | UnknownFact]
Items = Callable[[Task, AsyncGenerator[Whole]], AsyncGenerator[Json]]
SLICE = 64 * 1024


class Message(Struct, kw_only=True):
    """What one of the two said."""

    id: str
    task_id: str
    agent_id: str
    role: Literal["user", "assistant"]
    content: str
    created_at: datetime


class History:
    """An ASGI response: `head`, the items of the task's history up to `task` with commas between, `end`. Only a page
    of it is in memory at once. A cut breaks the body: it never looks like an end."""

    def __init__(
        self,
        tasks: Tasks,
        streams: Streams,
        revocations: Revocations,
        principal: Principal,
        task: Task,
        items: Items,
        *,
        head: bytes,
        end: bytes,
    ) -> None:
        self._tasks = tasks
        self._streams = streams
        self._revocations = revocations
        self._principal = principal
        self._task = task
        self._items = items
        self._head = head
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write to the end, a cut, or the client's leaving. Raises NoRoom, TooManyStreams, NotAuthenticated,
        LogUnavailable: before anything was written."""
        self._held = held_by(scope)
        await self._held.more(READING)
        reader = Reader()
        async with held(self._streams, self._revocations, self._principal, reader):
            why = await until_over(self._write(send), gone(receive), reader)
        if why not in (None, LEFT):
            self._tasks.metrics.streams_cut.labels(why).inc()
            log.info("stream.cut", task_id=self._task.task_id, why=why)
            abort_later(scope)

    async def _write(self, send: Send) -> str | None:
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"private, no-cache")]
        async with aclosing(self._slices()) as slices:
            first = await anext(slices)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                await send_body(send, first)
                async for piece in slices:
                    await send_body(send, piece)
            except TimeoutError:
                return "stalled"
            except NoRoom:
                return "no_room"
            except LogError as error:
                log.warning("stream.unreadable", task_id=self._task.task_id, error=str(error))
                return "unreadable"
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    async def _slices(self) -> AsyncGenerator[bytes]:
        waiting, comma = bytearray(self._head), b""
        async with aclosing(self._items(self._task, self._whole())) as items:
            async for item in items:
                waiting += comma + msgspec.json.encode(item)
                comma = b","
                if len(waiting) >= SLICE:
                    yield bytes(waiting)
                    waiting.clear()
        yield bytes(waiting + self._end)

    async def _whole(self) -> AsyncGenerator[Whole]:
        after, up_to = 0, self._task.sequence
        async with self._tasks.attach(self._task.owner, self._task.task_id) as attached:
            while after < up_to:
                for recorded in await history_page(self._tasks.log, attached, after, up_to):
                    after = recorded.sequence
                    yield recorded, await self._whole_fact(recorded)

    async def _whole_fact(self, recorded: Recorded) -> TaskFact | UnknownFact:
        """With room for it as it comes and as it is told; what was before it is written."""
        reference = recorded.record.blob
        self._held.keep(READING)
        await self._held.more(0 if reference is None else 2 * reference.bytes)
        return await self._tasks.whole_fact(recorded)


async def feed(task: Task, history: AsyncGenerator[Whole]) -> AsyncGenerator[Json]:
    """Every fact, with its sequence and time; `type` is its public name."""
    del task
    async with aclosing(history):
        async for recorded, fact in history:
            said: dict[str, Json] = {"sequence": recorded.sequence, "type": tag_of(fact), "at": recorded.record.at}
            fields = fact.fields if isinstance(fact, UnknownFact) else msgspec.to_builtins(fact)
            yield said | {name: value for name, value in fields.items() if name != "type"}


async def messages(task: Task, history: AsyncGenerator[Whole]) -> AsyncGenerator[Json]:
    """What the user and the agent said to each other, oldest first."""
    text, told = "", Told()
    async with aclosing(history):
        async for recorded, fact in history:
            match fact:
                case TaskStarted():
                    text = ""  # the run before did not finish it: it is said again
                case PartialProduced(text=more):
                    text += more
                case _:
                    role, content = _said(fact, text)
                    if isinstance(fact, StepFinished):
                        text = ""
                    if content and not (isinstance(fact, TaskCompleted) and told.has(content)):
                        told.note(role, content)
                        yield _message(task, recorded, role, content)


class Told:
    """What the agent has said so far, of which only digests are kept: a result is often all of it once more, or what
    came after the user's last word, or the last of that; and nothing is said twice. Blanks do not make it another."""

    def __init__(self) -> None:
        self._whole, self._since, self._last = sha256(), sha256(), b""

    def note(self, role: Literal["user", "assistant"], content: str) -> None:
        """One of the two said this."""
        if role == "user":
            self._since = sha256()
            return
        words = _words(content)
        self._whole.update(words)
        self._since.update(words)
        self._last = sha256(words).digest()

    def has(self, content: str) -> bool:
        """Whether it was said."""
        return sha256(_words(content)).digest() in (self._last, self._since.digest(), self._whole.digest())


def _words(content: str) -> bytes:
    return "".join(content.split()).encode()


def _said(fact: TaskFact | UnknownFact, text: str) -> tuple[Literal["user", "assistant"], str]:
    """Who says what by this fact ("": nobody anything), after so much `text` of the step in hand."""
    match fact:
        case TaskCreated(input=query):
            return "user", query if isinstance(query, str) else _written(query)
        case InputReceived(text=answer):
            return "user", answer
        case ReviewDecided(feedback=feedback):
            return "user", feedback or ""
        case StepFinished(message=message) | ToolUsed(message=message):
            return "assistant", text or message or ""
        case InputRequested(question=question):
            return "assistant", question
        case ReviewRequested(subject=subject):
            return "assistant", subject
        case TaskCompleted(result=result):
            return "assistant", result or ""
        case TaskFailed() | TaskCancelled() | TaskTimedOut():
            return "assistant", text
        case TaskStarted() | PartialProduced() | TaskQueued() | StepStarted() | PlanProposed():
            return "assistant", ""
        case PauseRequested() | TaskPaused() | TaskResumed() | RunFailed() | UnknownFact():
            return "assistant", ""
        case _:
            assert_never(fact)


def _written(query: Json) -> str:
    return "" if query is None else msgspec.json.encode(query).decode()


def _message(task: Task, recorded: Recorded, role: Literal["user", "assistant"], content: str) -> Message:
    return Message(
        id=recorded.record.record_id,
        task_id=bare(task),
        agent_id=agent_id(task.agent),
        role=role,
        content=content,
        created_at=recorded.record.at,
    )
